"""What a connection brings, on its way into a file: no more than was asked for, and nothing is waited for for long."""

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from proxy import files
from proxy.blob_stream import Interrupted, Rest, Watch
from proxy.files import Handle, Inlet, receiving

BODY = os.urandom(700_000)


class Line:
    """Both ends of a connection, and a file for what comes."""

    def __init__(self, stack: contextlib.ExitStack, path: Path) -> None:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.far = stack.enter_context(socket.create_connection(listener.getsockname()))
        self.near = stack.enter_context(listener.accept()[0])
        self.near.setblocking(False)
        self.inlet = stack.enter_context(contextlib.closing(Inlet(self.near.fileno())))
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        stack.callback(os.close, self.fd)
        self.path = path
        self.told = [0]

    async def draw(self, most: int = len(BODY)) -> int:
        """As much as comes; where that ends."""
        await files.hop(self.inlet.draw, self.fd, self.told[-1], most, self.told.append)
        return self.told[-1]

    @property
    def got(self) -> bytes:
        return os.pread(self.fd, 2 * len(BODY), 0)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with contextlib.ExitStack() as stack:
        yield Line(stack, tmp_path / "file")


async def test_all_of_it_comes_in_order_after_what_had_been_read_before(line: Line) -> None:
    line.inlet.begin(BODY[:1000])
    await files.hop(line.far.sendall, BODY[1000:300_000])
    while line.told[-1] < 300_000:
        await line.draw()
    assert line.got == BODY[:300_000]
    assert line.told == sorted(line.told)


async def test_little_is_not_kept_waiting_for_more(line: Line) -> None:
    await files.hop(line.far.sendall, BODY[:10])
    assert await line.draw() == 10
    assert await line.draw() == 10
    assert not line.inlet.is_over
    await files.hop(line.far.sendall, BODY[10:20])
    await line.inlet.readable()
    assert await line.draw() == 20


async def test_no_more_is_taken_than_was_asked_for(line: Line) -> None:
    await files.hop(line.far.sendall, BODY[:50_000])
    await line.inlet.readable()
    assert await line.draw(20_000) == 20_000
    left = b""
    while len(left) < 30_000:
        left += line.near.recv(50_000)
    assert left == BODY[20_000:50_000]


async def test_the_end_is_told_from_a_break_and_neither_costs_what_came_before(line: Line) -> None:
    await files.hop(line.far.sendall, BODY[:50_000])
    line.far.shutdown(socket.SHUT_WR)
    while not line.inlet.is_over:
        await line.draw()
    assert line.got == BODY[:50_000]


async def test_what_stands_behind_an_urgent_byte_comes_all_the_same(line: Line) -> None:
    await files.hop(line.far.sendall, BODY[:1000])
    line.far.send(b"!", socket.MSG_OOB)
    await files.hop(line.far.sendall, BODY[1000:2000])
    async with asyncio.timeout(5):
        while line.told[-1] < 2000:
            await line.draw()
            if line.told[-1] < 2000:
                await line.inlet.readable()
    assert line.got == BODY[:2000]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EPERM])
@pytest.mark.parametrize("side", ["connection", "file"])
async def test_where_nothing_can_be_spliced_it_is_read_and_written(
    line: Line, monkeypatch: pytest.MonkeyPatch, number: int, side: str
) -> None:
    real = os.splice

    def splice(source: int, target: int, count: int, **settings: Any) -> int:
        if (target == line.fd) == (side == "file"):
            raise OSError(number, os.strerror(number))
        return real(source, target, count, **settings)

    monkeypatch.setattr(os, "splice", splice)
    await files.hop(line.far.sendall, BODY[:100_000])
    while line.told[-1] < 100_000:
        await line.draw()
    assert line.got == BODY[:100_000]


async def test_the_time_that_a_thread_waited_is_told(line: Line) -> None:
    await files.hop(line.far.sendall, BODY[:10])
    waited = await files.hop(line.inlet.draw, line.fd, 0, len(BODY), line.told.append)
    assert waited >= receiving.BRIEF / 1000


async def test_no_thread_waits_for_what_comes_a_little_at_a_time(line: Line) -> None:
    waited = []
    for end in range(10, 50, 10):
        await files.hop(line.far.sendall, BODY[end - 10 : end])
        await line.inlet.readable()
        waited.append(await files.hop(line.inlet.draw, line.fd, line.told[-1], len(BODY), line.told.append))
    assert line.got == BODY[:40]
    assert waited[1:] == [0.0, 0.0, 0.0]


async def test_a_break_is_the_connections_and_not_the_files(line: Line) -> None:
    line.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.far.close()
    with pytest.raises(ConnectionError):
        await line.draw()


async def test_nothing_is_left_open(line: Line) -> None:
    before = await files.count_descriptors()
    with contextlib.closing(Inlet(line.near.fileno())):
        assert await files.count_descriptors() == before + 3
    assert await files.count_descriptors() == before


async def test_nothing_is_left_open_where_a_pipe_would_be_too_small(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await files.count_descriptors()

    def refused(*_: object) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(fcntl, "fcntl", refused)
    with pytest.raises(PermissionError):
        Inlet(line.near.fileno())
    assert await files.count_descriptors() == before


async def test_to_close_it_twice_closes_nobody_elses_descriptor(line: Line) -> None:
    inlet = Inlet(line.near.fileno())
    inlet.close()
    with contextlib.closing(Inlet(line.near.fileno())):
        before = await files.count_descriptors()
        inlet.close()
        assert await files.count_descriptors() == before


async def poured(rest: Rest, handle: Handle, line: Line) -> None:
    """All of it."""
    with ThreadPoolExecutor(1) as threads:
        while rest.left:
            await rest.pour(threads, handle, line.told[-1], len(BODY), line.told.append)


async def test_what_drips_is_too_slow_however_often_a_byte_comes(line: Line) -> None:
    rest = Rest(line.inlet, len(BODY), Watch(0.5), lambda _: None)
    handle = Handle(os.dup(line.fd), 0)

    async def drip() -> None:
        while True:  # 1 KiB/s are enough, and this is less
            line.far.send(b"x")
            await asyncio.sleep(0.0015)

    dripping = asyncio.create_task(drip())
    try:
        with pytest.raises(Interrupted, match="bytes a second"):
            await poured(rest, handle, line)
    finally:
        dripping.cancel()
        handle.close()
