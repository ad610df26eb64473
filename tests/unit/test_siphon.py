"""A file that is written by one thread and hashed by another: how far they may part, and that they end as one."""

import asyncio
import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, cast

import pytest

from proxy import files, siphon, tee
from proxy.blob_stream import Interrupted, Rest
from proxy.files import Handle, calls
from proxy.siphon import Siphon
from proxy.tee import Growth

BODY = os.urandom(1_000_000)
PIECE = 100_000


class Body:
    """What is left of a body that comes in pieces, until it breaks off, or there is no more for now."""

    def __init__(self, breaks_at: int = len(BODY), pauses_at: int = len(BODY)) -> None:
        self.left = len(BODY)
        self.breaks_at = breaks_at
        self.pauses_at = pauses_at
        self.came = asyncio.Event()  # three pieces

    async def pour(
        self, thread: Executor | None, handle: Handle, offset: int, most: int, wrote: Callable[[int], None]
    ) -> None:
        if offset >= self.breaks_at:
            raise Interrupted("it breaks off")
        if offset >= self.pauses_at:
            await asyncio.Event().wait()
        piece = BODY[offset : offset + min(most, PIECE)]
        count = await files.hop_to(thread, lambda: os.pwrite(handle.fd, piece, offset))
        self.left -= count
        if self.left <= len(BODY) - 3 * PIECE:
            self.came.set()
        wrote(offset + count)


class SlowHasher:
    """One that begins when it is told to."""

    def __init__(self) -> None:
        self.real = hashlib.sha256()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def update(self, data: memoryview) -> None:
        self.begun.set()
        self.go_on.wait()
        self.real.update(data)


async def room(_: int) -> int:
    return len(BODY)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Handle]:
    handle = Handle(os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT), 0)
    yield handle
    handle.close()


async def run(growth: Growth, body: Body, told: list[int]) -> None:
    await Siphon(growth, told.append).run(cast(Rest, body), room)


async def test_at_the_end_all_of_it_is_hashed_and_told_of(writer: Handle) -> None:
    growth, told = Growth(writer, hashlib.sha256()), list[int]()
    await run(growth, Body(), told)
    assert (growth.done, growth.hasher.hexdigest()) == (len(BODY), hashlib.sha256(BODY).hexdigest())
    assert told == sorted(told)
    assert told[-1] == len(BODY)


class LongTurn(Body):
    """All that is left in one turn, which lasts until somebody has heard of what it brought."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = threading.Event()
        self.was_heard = False

    async def pour(
        self, thread: Executor | None, handle: Handle, offset: int, most: int, wrote: Callable[[int], None]
    ) -> None:
        def turn() -> bool:
            os.pwrite(handle.fd, BODY, 0)
            wrote(len(BODY))
            return self.heard.wait(5)

        self.was_heard = await files.hop_to(thread, turn)
        self.left = 0


@pytest.mark.parametrize(("stretch", "pause"), [(len(BODY), 1e9), (1e9, 0.0)])
async def test_a_stretch_is_told_of_at_once_and_less_in_time_while_a_turn_lasts(
    writer: Handle, monkeypatch: pytest.MonkeyPatch, stretch: float, pause: float
) -> None:
    monkeypatch.setattr(siphon, "STRETCH", stretch)
    monkeypatch.setattr(siphon, "PAUSE", pause)
    body = LongTurn()
    await Siphon(Growth(writer, hashlib.sha256()), lambda _: body.heard.set()).run(cast(Rest, body), room)
    assert body.was_heard


async def test_its_threads_end_with_it(writer: Handle) -> None:
    before = set(threading.enumerate())
    await run(Growth(writer, hashlib.sha256()), Body(), [])
    ending = [thread for thread in threading.enumerate() if thread not in before and thread.name.startswith("siphon")]
    for thread in ending:
        await asyncio.to_thread(thread.join, 10)
    assert not any(thread.is_alive() for thread in ending)


async def test_after_a_break_just_what_came_is_hashed(writer: Handle) -> None:
    growth = Growth(writer, hashlib.sha256())
    with pytest.raises(Interrupted):
        await run(growth, Body(300_000), [])
    assert (growth.done, growth.hasher.hexdigest()) == (300_000, hashlib.sha256(BODY[:300_000]).hexdigest())


async def test_no_more_is_written_while_too_much_is_not_hashed(writer: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(siphon, "LAG", 3 * PIECE)
    hasher, body = SlowHasher(), Body()
    growth = Growth(writer, cast(Any, hasher))
    running = asyncio.create_task(run(growth, body, []))
    await asyncio.to_thread(hasher.begun.wait)
    await body.came.wait()
    done, _ = await asyncio.wait({running}, timeout=0.05)  # in which there could be more
    assert not done
    assert body.left == len(BODY) - 3 * PIECE
    hasher.go_on.set()
    await running
    assert hasher.real.digest() == hashlib.sha256(BODY).digest()


async def test_who_is_cancelled_waits_until_nothing_is_at_the_file(
    writer: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(siphon, "LAG", PIECE)
    hasher = SlowHasher()
    growth = Growth(writer, cast(Any, hasher))
    running = asyncio.create_task(run(growth, Body(), []))
    await asyncio.to_thread(hasher.begun.wait)
    for _ in range(3):
        running.cancel()
        await asyncio.sleep(0)
    assert not running.done()
    hasher.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert growth.done % PIECE == 0


async def test_who_is_cancelled_does_not_wait_for_what_nobody_needs_hashed(
    writer: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "PIECE", PIECE)
    hasher, body = SlowHasher(), Body(pauses_at=3 * PIECE)
    growth = Growth(writer, cast(Any, hasher))
    running = asyncio.create_task(run(growth, body, []))
    await body.came.wait()
    await asyncio.to_thread(hasher.begun.wait)
    running.cancel()
    for _ in range(3):  # until it has heard of that
        await asyncio.sleep(0)
    hasher.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert growth.done == PIECE


async def test_a_sync_that_failed_is_told_of_though_those_after_it_do_not(
    writer: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tee, "SYNCED", 0.0)
    real, errors = os.fdatasync, [OSError(errno.EIO, os.strerror(errno.EIO))]

    def fdatasync(fd: int) -> None:
        if errors:
            raise errors.pop()
        real(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with pytest.raises(OSError, match="Input/output error"):
        await run(Growth(writer, hashlib.sha256()), Body(), [])


async def test_what_the_disk_does_not_give_back_is_raised_whatever_else_happens(
    writer: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", failing)
    growth = Growth(writer, hashlib.sha256())
    with pytest.raises(OSError, match="Input/output error"):
        await run(growth, Body(300_000), [])
    assert growth.done == 0
