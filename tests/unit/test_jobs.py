"""What is done once in a while: by one process at a time, and not again before it is due."""

import asyncio
import io
import json
import time

import pytest

from proxy import jobs
from proxy.files import Tree, hop, write_number
from proxy.jobs import Job, Jobs
from proxy.telemetry import make_logger, quiet


def done_at(tree: Tree, when: float) -> None:
    """Have the job "test" be done then."""
    with tree.claimed("jobs/test") as fd:
        assert fd is not None
        write_number(fd, int(when))


class Count:
    """Work that counts, and may be held up or fail."""

    def __init__(self) -> None:
        self.done = self.tried = 0
        self.error: Exception | None = None
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> None:
        self.begun.set()
        await self.gate.wait()
        self.tried += 1
        if self.error is not None:
            raise self.error
        self.done += 1


async def test_a_job_is_done_at_once_and_not_again_before_it_is_due_whoever_asks(tree: Tree) -> None:
    work = Count()
    job = Job("test", 3600.0, work)
    assert await Jobs(tree, [], quiet()).turn(job) == 3600.0
    assert 3590 < await Jobs(tree, [], quiet()).turn(job) <= 3600  # another process, or this one after a restart
    assert work.done == 1


async def test_a_job_is_done_again_once_it_is_due(tree: Tree) -> None:
    work = Count()
    job = Job("test", 3600.0, work)
    await hop(done_at, tree, time.time() - 3601)
    await Jobs(tree, [], quiet()).turn(job)
    assert work.done == 1


async def test_a_clock_that_was_ahead_when_a_job_was_done_does_not_put_it_off(tree: Tree) -> None:
    work = Count()
    await hop(done_at, tree, time.time() + 86400)
    await Jobs(tree, [], quiet()).turn(Job("test", 3600.0, work))
    assert work.done == 1


async def test_one_process_at_a_time_is_at_a_job(tree: Tree) -> None:
    work = Count()
    work.gate.clear()
    job = Job("test", 0.0, work)
    first = asyncio.create_task(Jobs(tree, [], quiet()).turn(job))
    async with asyncio.timeout(10):
        await work.begun.wait()  # to look at the lock would take it from the one who is to have it
    assert await Jobs(tree, [], quiet()).turn(job) == jobs.LOOK
    assert work.done == 0
    work.gate.set()
    await first
    assert work.done == 1


async def test_a_job_that_fails_is_said_to_and_is_not_taken_for_done(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "LOOK", 0.01)
    work, other, stream = Count(), Count(), io.StringIO()
    work.error = OSError(5, "Input/output error")
    log = make_logger("json", "info", stream)
    running = asyncio.create_task(Jobs(tree, [Job("bad", 60.0, work), Job("good", 60.0, other)], log).run())
    async with asyncio.timeout(10):
        while work.tried < 3:  # noqa: ASYNC110  it has no event
            await asyncio.sleep(0.005)
        work.error = OSError(30, "Read-only file system")
        while work.tried < 6:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        work.error = None
        while not work.done:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (work.done, other.done) == (1, 1)
    told = [json.loads(line) for line in stream.getvalue().splitlines()]  # each trouble once, however often it is tried
    assert [(line["event"], line["job"], line["reason"]) for line in told] == [
        ("job failed; it is tried again", "bad", "Input/output error"),
        ("job failed; it is tried again", "bad", "Read-only file system"),
    ]
