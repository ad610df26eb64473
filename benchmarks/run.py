"""One run of the cases: what was measured until its end, or until it was broken off."""

import asyncio
import signal
from collections.abc import Sequence

from rich.progress import Progress

from benchmarks import results
from benchmarks.bench import FAILURES, Bench, Case
from benchmarks.report import Sample
from benchmarks.results import Group, Results


async def run(bench: Bench, cases: Sequence[Case], progress: Progress) -> Results:
    """All cases, one after the other. One that fails is said, is in `bench.failed`, and the next one's turn comes."""
    when, machine = results.now(), results.here(bench.folder)
    groups: list[Group] = []
    samples: list[Sample] = []
    step = progress.add_task("", total=len(cases))
    if (task := asyncio.current_task()) is not None:  # ended by a signal, it ends what it has started
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    for case in cases:
        own: list[Sample] = []
        try:
            bench.begin()
            async for sample in case.run(bench):
                own.append(sample)
                progress.update(step, description=f"{sample.case}: {sample.contender}")
        except FAILURES as error:
            bench.fail(case.name, error)
        except asyncio.CancelledError:  # Ctrl-C, or SIGTERM
            bench.fail(case.name, KeyboardInterrupt("broken off"))
            break
        finally:
            samples += own
            groups.append(results.group(case, own))
        progress.advance(step)
    return Results(when, results.commit(), bench.repeats, machine, results.versions(), tuple(groups), tuple(samples))
