"""A body on its way to a client: what was written before a file goes before it."""

import asyncio
import contextlib
import errno
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.channel import SMALL, Channel
from proxy.files import Extent, Handle, Senders


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
            channel = Channel(request, response, senders, 5.0)
            sending = asyncio.create_task(channel.put(Extent(handle, 0, len(body))))
            received = await asyncio.to_thread(far.recv, len(body), socket.MSG_WAITALL)
            await sending
            channel.close()
            assert channel.sent == len(body)
    assert received == body
    assert left
    assert max(left) <= 0, "a file was sent before what had been written"


class Written:
    """A response that takes what is written, or never anything."""

    chunked = True

    def __init__(self, *, takes: bool = True) -> None:
        self.body = b""
        self._takes = takes

    async def write(self, data: bytes) -> None:
        if not self._takes:
            await asyncio.Event().wait()
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
        channel = Channel(request, sent_by, senders, PATIENCE)
        await channel.put(extent)
    return channel


async def test_a_disk_that_takes_its_time_is_no_client_that_does() -> None:
    response = Written()
    channel = await copied(Disk(), response)
    assert len(response.body) == channel.sent == SMALL + 1


async def test_a_disk_that_times_out_is_an_error_of_the_file() -> None:
    with pytest.raises(TimeoutError):
        await copied(Disk(TimeoutError(errno.ETIMEDOUT, "timed out")), Written())


async def test_a_client_that_takes_nothing_that_is_written_is_let_go() -> None:
    with pytest.raises(ConnectionResetError, match="too long"):
        await copied(Disk(), Written(takes=False))
