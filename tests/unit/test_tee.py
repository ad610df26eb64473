"""What comes of a blob, on its way into its file: all of it, in order, and nothing at the file once it is given up."""

import asyncio
import errno
import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from proxy import files, tee
from proxy.files import Handle, calls
from proxy.tee import Growth, Tee

PIECES = [bytes([number]) * (number * 40_000) for number in range(1, 12)]


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Handle]:
    """A file to write to."""
    handle = Handle(os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT), 0)
    yield handle
    handle.close()


async def test_all_of_it_is_written_hashed_and_told_of_in_order(
    writer: Handle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tee, "BATCH", 100_000)
    monkeypatch.setattr(tee, "STRIDE", 50_000)
    monkeypatch.setattr(tee, "SYNCED", 0.0)
    growth, told = Growth(writer, hashlib.sha256()), list[int]()
    one = Tee(growth, told.append)
    for piece in PIECES:
        await one.put(memoryview(piece))
    await one.flush()
    body = b"".join(PIECES)
    assert await asyncio.to_thread((tmp_path / "file").read_bytes) == body
    assert (growth.hasher.hexdigest(), growth.done, one.end) == (hashlib.sha256(body).hexdigest(), len(body), len(body))
    assert told == sorted(told)
    assert told[-1] == len(body)


@pytest.mark.parametrize("call", ["pwritev", "fdatasync"])
async def test_what_the_disk_refuses_is_raised_and_nothing_is_written_after_it(
    writer: Handle, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(tee, "SYNCED", 0.0)
    calls = 0

    def refusing(*_: object) -> int:
        nonlocal calls
        calls += 1
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, refusing)
    one = Tee(Growth(writer, hashlib.sha256()), lambda _: None)
    await one.put(memoryview(b"some"))
    for _ in range(2):  # it stays so
        with pytest.raises(OSError, match="Input/output error"):
            await one.flush()
    with pytest.raises(OSError, match="Input/output error"):
        await one.put(memoryview(b"more"))
    assert calls == 1


async def test_a_write_ends_at_an_edge_where_more_is_waiting(
    writer: Handle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, pwritev = list[int](), os.pwritev

    def observed(fd: int, pieces: list[memoryview], offset: int) -> int:
        ends.append(offset + sum(map(len, pieces)))
        return pwritev(fd, pieces, offset)

    monkeypatch.setattr(os, "pwritev", observed)
    monkeypatch.setattr(calls, "EDGE", 100)
    monkeypatch.setattr(calls, "GATHERED", 3)
    growth = Growth(writer, hashlib.sha256())
    sizes = [130, 50, 120, 0, 10, 20, 5, 5, 5, 30, 80, 40]
    pieces = [memoryview(bytes([number]) * size) for number, size in enumerate(sizes)]
    await growth.pour(deque(pieces), lambda: None)
    assert ends == [100, 300, 330, 345, 400, 495]  # of 330 and 345 as many pieces as are written at once come short
    body = b"".join(pieces)
    assert await asyncio.to_thread((tmp_path / "file").read_bytes) == body
    assert (growth.hasher.hexdigest(), growth.done) == (hashlib.sha256(body).hexdigest(), len(body))


async def test_who_is_cancelled_waits_until_nothing_is_at_the_file(
    writer: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, pwritev = threading.Event(), threading.Event(), os.pwritev

    def slow(fd: int, pieces: list[memoryview], offset: int) -> int:
        begun.set()
        go_on.wait()
        return pwritev(fd, pieces, offset)

    monkeypatch.setattr(os, "pwritev", slow)
    growth = Growth(writer, hashlib.sha256())
    one = Tee(growth, lambda _: None)
    await one.put(memoryview(b"some"))
    flushing = asyncio.create_task(one.flush())
    await asyncio.to_thread(begun.wait)
    for _ in range(3):
        flushing.cancel()
        await asyncio.sleep(0)
    assert not flushing.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await flushing
    assert growth.done == 4


async def test_the_first_piece_is_told_of_though_the_next_takes_long(
    writer: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, pwritev, told = threading.Event(), threading.Semaphore(0), os.pwritev, asyncio.Event()

    def slow(fd: int, pieces: list[memoryview], offset: int) -> int:
        begun.set()
        go_on.acquire()
        return pwritev(fd, pieces, offset)

    monkeypatch.setattr(os, "pwritev", slow)
    one = Tee(Growth(writer, hashlib.sha256()), lambda _: told.set())
    await one.put(memoryview(b"some"))
    await asyncio.to_thread(begun.wait)
    await one.put(memoryview(b"more"))
    go_on.release()
    async with asyncio.timeout(10):
        await told.wait()
    go_on.release()
    await one.flush()


async def test_a_defect_in_writing_is_not_passed_over(writer: Handle) -> None:
    def defective(_: int) -> None:
        raise ValueError("a defect")

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # it is told as well, of the first piece
    one = Tee(Growth(writer, hashlib.sha256()), defective)
    await one.put(memoryview(b"some"))
    with pytest.raises(ValueError, match="a defect"):
        await one.flush()


async def test_a_blob_that_comes_faster_than_the_disk_takes_it_keeps_no_thread_from_others(
    writer: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "TURN", 0.0005)
    with ThreadPoolExecutor(1) as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        waiting = deque([memoryview(b"some")])
        growth, other = Growth(writer, hashlib.sha256()), threading.Event()

        def more() -> None:
            if growth.done < 10_000_000:
                waiting.append(memoryview(b"more"))

        async def write() -> None:
            while waiting and not other.is_set():
                await growth.pour(waiting, more)

        writing = asyncio.create_task(write())
        await asyncio.sleep(0)
        await files.hop(other.set)
        await writing
    assert waiting
