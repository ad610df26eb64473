"""One run of the cases: what was measured until its end, or until it was broken off."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator, Sequence

from rich.progress import Progress

from benchmarks import results
from benchmarks.bench import Bench, Case
from benchmarks.report import Sample
from benchmarks.results import Group, Results


async def run(bench: Bench, cases: Sequence[Case], progress: Progress) -> Results:
    """All cases, one after the other. One that fails is said, is in `bench.failed`, and the next one's turn comes."""
    when, machine = results.now(), results.here(bench.folder)
    groups: list[Group] = []
    samples: list[Sample] = []
    step = progress.add_task("", total=len(cases))
    for case in cases:
        own: list[Sample] = []
        before = len(bench.failed)
        try:
            bench.begin()
            with _broken_off_by_sigterm():
                async for sample in case.run(bench):
                    own.append(sample)
                    progress.update(step, description=f"{sample.case}: {sample.contender}")
        except Exception as error:
            bench.fail(case.name, error)
        except asyncio.CancelledError:  # Ctrl-C, or SIGTERM
            bench.fail(case.name, KeyboardInterrupt("broken off"))
            break
        finally:
            samples += own
            groups.append(results.group(case, own, bench.failed[before:]))
        progress.advance(step)
    return Results(when, results.commit(), bench.repeats, machine, results.versions(), tuple(groups), tuple(samples))


@contextlib.contextmanager
def _broken_off_by_sigterm() -> Iterator[None]:
    """Have SIGTERM do what Ctrl-C does, so that what has been started is ended too."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is not None:
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
