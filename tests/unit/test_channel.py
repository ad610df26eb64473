"""A body on its way to a client: what was written before a file goes before it."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proxy import channel
from proxy.channel import SHORT, SMALL, TINY, Channel
from proxy.files import Extent, Handle, Senders, send_now, sending
from proxy.tls import Secured

from .stretches import BODY


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes went out at once, each time, of what is taken to be in memory."""
    sent = list[int]()

    def counted(descriptor: int, extent: Extent) -> int:
        sent.append(send_now(descriptor, extent))
        return sent[-1]

    monkeypatch.setattr(sending, "is_in_memory", lambda *_: True)
    monkeypatch.setattr(channel, "send_now", counted)
    return sent


class Transport:
    """A connection whose buffer is empty after it was looked at so often."""

    def __init__(self, sock: socket.socket, looks: int) -> None:
        self._socket = sock
        self.looks = looks

    def get_write_buffer_size(self) -> int:
        self.looks -= 1
        return max(0, self.looks)

    def get_extra_info(self, name: str) -> object:
        return self._socket if name == "socket" else None

    def is_closing(self) -> bool:
        return False


async def test_a_file_is_sent_once_all_that_was_written_before_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = os.urandom(SMALL + 1)
    (tmp_path / "file").write_bytes(body)
    near, far = socket.socketpair()
    near.setblocking(False)
    transport, sendfile, left = Transport(near, 3), os.sendfile, list[int]()

    def watched(*arguments: Any) -> int:
        left.append(transport.looks)
        return sendfile(*arguments)

    monkeypatch.setattr(os, "sendfile", watched)
    request: Any = SimpleNamespace(transport=transport)
    response: Any = SimpleNamespace(chunked=False)
    handle = Handle(os.open(tmp_path / "file", os.O_RDONLY), len(body))
    async with contextlib.aclosing(Senders(1)) as senders:
        with near, far, contextlib.closing(handle):
            way = Channel(request, response, senders, 5.0)
            putting = asyncio.create_task(way.put(Extent(handle, 0, len(body))))
            received = await asyncio.to_thread(far.recv, len(body), socket.MSG_WAITALL)
            await putting
            way.close()
            assert way.sent == len(body)
    assert received == body
    assert left
    assert max(left) <= 0, "a file was sent before what had been written"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The server's end of a connection, by which only little goes at once, and the client's."""
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
        yield near, far


async def until(now: list[int]) -> None:
    """Until something has gone out at once."""
    async with asyncio.timeout(10):
        while not now:  # noqa: ASYNC110  nobody tells of it
            await asyncio.sleep(0)


async def sent(
    pair: tuple[socket.socket, socket.socket],
    senders: Senders,
    extent: Extent,
    before: Coroutine[Any, Any, None] | None = None,
) -> None:
    """Send a stretch of BODY to a client that reads all of it, after something that it waits for."""
    near, far = pair
    request: Any = SimpleNamespace(transport=Transport(near, 0))
    response: Any = Written(to=near)
    way = Channel(request, response, senders, 5.0)
    putting = asyncio.create_task(way.put(extent))
    if before is not None:
        await before
    received = await asyncio.to_thread(far.recv, extent.count, socket.MSG_WAITALL)
    await putting
    way.close()
    assert received == BODY[extent.offset : extent.end]
    assert way.sent == extent.count


@pytest.mark.parametrize("size", [SHORT, SMALL // 2])
async def test_what_of_a_stretch_does_not_go_out_at_once_comes_after_it(
    handle: Handle, senders: Senders, pair: tuple[socket.socket, socket.socket], size: int, now: list[int]
) -> None:
    await sent(pair, senders, Extent(handle, 3, size), until(now))  # nobody reads before: else all of it may go
    assert len(now) == 1
    assert 0 < now[0] < size


@pytest.mark.parametrize(("size", "times"), [(TINY, 0), (TINY + 1, 1), (SHORT, 1), (SHORT + 1, 0)])
async def test_only_what_is_short_goes_out_at_once(
    handle: Handle,
    senders: Senders,
    pair: tuple[socket.socket, socket.socket],
    size: int,
    times: int,
    now: list[int],
) -> None:
    await sent(pair, senders, Extent(handle, 0, size))
    assert len(now) == times


async def test_nothing_of_a_file_that_is_being_written_goes_out_at_once(
    handle: Handle, senders: Senders, pair: tuple[socket.socket, socket.socket], now: list[int]
) -> None:
    await sent(pair, senders, Extent(handle, 0, SHORT, grows=True))
    assert now == []


async def test_nothing_goes_out_at_once_by_a_connection_that_is_encrypted(
    handle: Handle, senders: Senders, now: list[int]
) -> None:
    class Encrypted(Secured):
        def __init__(self) -> None:
            """Without a session."""

        def is_closing(self) -> bool:
            return False

    request: Any = SimpleNamespace(transport=Encrypted())
    response: Any = Written()
    response.chunked = False
    way = Channel(request, response, senders, 5.0)
    await way.put(Extent(handle, 0, SMALL))
    assert response.body == BODY[:SMALL]
    assert now == []


class Written:
    """A response that takes what is written, or never anything."""

    def __init__(self, *, takes: bool = True, to: socket.socket | None = None) -> None:
        """`to`: where it goes, at once, if it is not chunked."""
        self.chunked = to is None
        self.body = b""
        self._takes = takes
        self._to = to

    async def write(self, data: bytes) -> None:
        if not self._takes:
            await asyncio.Event().wait()
        if self._to is not None:
            await asyncio.get_running_loop().sock_sendall(self._to, data)
        self.body += data


class Disk:
    """A file that is not in memory, and takes its time, or fails."""

    def __init__(self, error: OSError | None = None) -> None:
        self._error = error

    def at_hand(self, _offset: int, _count: int) -> None:
        return None

    async def read_all(self, _offset: int, count: int) -> bytes:
        if self._error is not None:
            raise self._error
        await asyncio.sleep(PATIENCE * 3)
        return b"x" * count


PATIENCE = 0.02


async def copied(disk: Disk, response: Written) -> Channel:
    transport = SimpleNamespace(abort=lambda: None)
    request: Any = SimpleNamespace(transport=transport)
    extent: Any = Extent(disk, 0, SMALL + 1)  # type: ignore[arg-type]
    sent_by: Any = response
    async with contextlib.aclosing(Senders(1)) as senders:
        way = Channel(request, sent_by, senders, PATIENCE)
        await way.put(extent)
    return way


async def test_a_disk_that_takes_its_time_is_no_client_that_does() -> None:
    response = Written()
    way = await copied(Disk(), response)
    assert len(response.body) == way.sent == SMALL + 1


async def test_a_disk_that_times_out_is_an_error_of_the_file() -> None:
    with pytest.raises(TimeoutError):
        await copied(Disk(TimeoutError(errno.ETIMEDOUT, "timed out")), Written())


async def test_a_client_that_takes_nothing_that_is_written_is_let_go() -> None:
    with pytest.raises(ConnectionResetError, match="too long"):
        await copied(Disk(), Written(takes=False))
