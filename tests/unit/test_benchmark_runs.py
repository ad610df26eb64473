"""A run of the benchmarks: what fails costs nobody else anything, and what was measured is kept."""

import asyncio
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.progress import Progress

from benchmarks import contenders
from benchmarks.__main__ import main
from benchmarks.bench import Bench, Case
from benchmarks.contenders import Contender
from benchmarks.docs import section
from benchmarks.drain import Drained, WrongAnswerError
from benchmarks.load import middle
from benchmarks.report import Sample
from benchmarks.results import Results
from benchmarks.run import run
from benchmarks.servers import _end, free_port, process

SERVER = """
import os, signal, sys
own, does = sys.argv[1:]
def told(*_):
    if does == "ends":
        os.unlink(own)
        sys.exit()
signal.signal(signal.SIGTERM, told)
print("ready", flush=True)
while True:
    signal.pause()
"""
GOOD, BAD = Contender("good", contenders.direct), Contender("bad", contenders.direct)


@pytest.fixture
def said() -> list[str]:
    """The lines to who waits."""
    return []


@pytest.fixture
def bench(tmp_path: Path, said: list[str]) -> Bench:
    return Bench(tmp_path, 2, is_full=False, say=said.append)


def case(name: str, measured: Callable[[Contender], list[Sample]]) -> Case:
    """One in which both take part."""

    async def both(bench: Bench) -> AsyncIterator[Sample]:
        """Both of them."""

        async def one(contender: Contender) -> list[Sample]:
            return measured(contender)

        async for sample in bench.measure(bench.turns([GOOD, BAD]), one):
            yield sample

    return Case(name, "seconds", "good", both)


def sound(name: str) -> Callable[[Contender], list[Sample]]:
    return lambda one: [Sample(name, one.name, "seconds", 1.0)]


def defective(_: Contender) -> list[Sample]:
    raise IndexError("a defect")


async def ran(bench: Bench, *cases: Case) -> Results:
    return await run(bench, cases, Progress(disable=True))


async def test_a_contender_that_fails_is_left_out_of_its_case_alone_and_named(bench: Bench, said: list[str]) -> None:
    def fails(one: Contender) -> list[Sample]:
        if one is BAD:
            raise WrongAnswerError("404")
        return sound("first")(one)

    done = await ran(bench, case("first", fails), case("second", sound("second")))
    assert [(one.case, one.contender) for one in done.samples] == [
        ("first", "good"), ("first", "good"), ("second", "good"), ("second", "bad"), ("second", "bad"),
        ("second", "good"),
    ]  # fmt: skip
    assert (said, bench.failed) == (["bad failed: 404"], ["bad"])
    assert [group.failed for group in done.groups] == [("bad",), ()]
    assert "Failed: bad." in list(section(done, "pictures", set()))


async def test_a_defect_costs_its_case_and_nothing_else(bench: Bench, said: list[str]) -> None:
    done = await ran(bench, case("first", defective), case("second", sound("second")))
    assert {one.case for one in done.samples} == {"second"}
    assert bench.failed == ["first"]
    assert "IndexError" in "".join(said)


async def test_what_was_measured_until_a_run_is_broken_off_is_kept(bench: Bench) -> None:
    reached = asyncio.Event()

    async def hangs(_: Bench) -> AsyncIterator[Sample]:
        yield Sample("first", "good", "seconds", 1.0)
        reached.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(ran(bench, Case("first", "seconds", "good", hangs), case("second", sound("second"))))
    await reached.wait()
    running.cancel()
    done = await running
    assert done.samples == (Sample("first", "good", "seconds", 1.0),)
    assert [group.failed for group in done.groups] == [("first",)]


async def test_results_are_read_as_they_were_written(bench: Bench, tmp_path: Path) -> None:
    done = await ran(bench, case("first", sound("first")), case("second", defective))
    done.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == done


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ([], ".work/bench"),
        (["--case", "manifest"], ".work/bench-some"),
        (["--case", "manifest", "--out", "elsewhere"], "elsewhere"),
    ],
)
def test_what_some_cases_came_to_does_not_take_the_place_of_a_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], place: str
) -> None:
    async def nothing(bench: Bench, _cases: object, progress: Progress) -> Results:
        return await run(bench, [], progress)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("benchmarks.__main__.run", nothing)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    assert CliRunner().invoke(main, options).exit_code == 0
    assert list(tmp_path.rglob("results.json")) == [tmp_path / place / "results.json"]


def test_a_client_that_gets_nothing_whole_is_no_figure() -> None:
    assert middle(Drained(totals=(3.0, 1.0, 2.0))) == 2.0
    with pytest.raises(WrongAnswerError, match="whole within"):
        middle(Drained(seconds=2.0))


@pytest.mark.parametrize("does", ["ends", "goes on"])
async def test_a_server_that_is_told_to_end_may_tidy_up_and_is_ended_if_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str
) -> None:
    monkeypatch.setattr("benchmarks.servers.END", 10 if does == "ends" else 0.05)
    own = tmp_path / "its own"
    own.touch()
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, str(own), does, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    assert await server.stdout.readline() == b"ready\n"
    await _end(server)
    assert own.exists() == (does == "goes on")
    assert server.returncode == (0 if does == "ends" else -signal.SIGKILL)


GONE = """
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    listener.accept()[0].close()
sys.exit("the reason")
"""


async def test_what_a_server_said_that_ended_by_itself_is_told_with_what_failed_for_it(
    tmp_path: Path, bench: Bench, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.servers.SOON", 20.0)
    port = free_port()
    with bench.sparing(GOOD):
        async with process([sys.executable, "-c", GONE, str(port)], port, log=tmp_path / "log"):
            raise RuntimeError("nobody answers")
    assert "good failed: nobody answers" in said[-1]
    assert "status 1, and said: the reason" in said[-1]
