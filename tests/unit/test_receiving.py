"""What a connection brings, on its way into a file: no more than was asked for, and nothing is waited for for long."""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import files
from proxy.files import Inlet

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
