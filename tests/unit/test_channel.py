"""A body on its way to a client: what was written before a file goes before it."""

import contextlib
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
    with near, far, contextlib.closing(Senders(1)) as senders, contextlib.closing(handle):
        channel = Channel(request, response, senders, 5.0)
        await channel.put(Extent(handle, 0, len(body)))
        channel.close()
        assert channel.sent == len(body)
        received = b""
        while len(received) < len(body):
            received += far.recv(len(body))
    assert received == body
    assert left
    assert max(left) <= 0, "a file was sent before what had been written"
