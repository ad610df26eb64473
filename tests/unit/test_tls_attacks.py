"""What clients do to a connection by TLS that they should not."""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web

from proxy import tls
from proxy.channel import SMALL, Channel
from proxy.files import Extent, Handle, Senders
from proxy.serving import listening

BODY = os.urandom(SMALL + 30_000)  # one piece of a thread's, and more than a socket with a small buffer takes
PATIENCE = 5.0
REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def handle(tmp_path: Path) -> Iterator[Handle]:
    (tmp_path / "file").write_bytes(BODY)
    with contextlib.closing(Handle(os.open(tmp_path / "file", os.O_RDONLY), len(BODY))) as one:
        yield one


@dataclass
class Place:
    """A server, and a way to ask it."""

    sock: socket.socket
    client: ssl.SSLContext
    server: web.Server

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        near = socket.socket()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
        near.setblocking(False)
        await asyncio.get_running_loop().sock_connect(near, self.sock.getsockname())
        return await asyncio.open_connection(sock=near, ssl=self.client, server_hostname="localhost")


Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def place(ca: trustme.CA, handler: Handler) -> AsyncIterator[Place]:
    ours, theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    ca.issue_cert("localhost").configure_cert(ours)
    ca.configure_trust(theirs)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)  # its connections inherit it
        sock.setblocking(False)
        async with listening(handler, sock, PATIENCE, ours) as listener:
            yield Place(sock, theirs, listener.server)


@contextlib.asynccontextmanager
async def sending(ca: trustme.CA, handle: Handle) -> AsyncIterator[Place]:
    """A server that sends the file, by a thread."""
    async with contextlib.aclosing(Senders(1)) as senders:

        async def send(request: web.BaseRequest) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Length": str(handle.size)})
            await response.prepare(request)
            with contextlib.closing(Channel(request, response, senders, PATIENCE)) as channel:
                await channel.put(Extent(handle, 0, handle.size))
            return response

        async with place(ca, send) as one:
            yield one


async def test_the_end_of_a_file_that_was_not_in_memory_reaches_a_slow_client(
    ca: trustme.CA, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.preadv

    def cold(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            raise BlockingIOError
        return really(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", cold)
    async with sending(ca, handle) as server, asyncio.timeout(10):
        reader, writer = await server.connect()
        with contextlib.closing(writer):
            writer.write(REQUEST)
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(len(BODY)) == BODY


async def test_a_client_that_has_gone_is_not_waited_for(ca: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, timers = asyncio.get_running_loop(), []
    really = loop.call_later

    def noted(delay: float, call: Any, *args: Any, **how: Any) -> asyncio.TimerHandle:
        timers.append(really(delay, call, *args, **how))
        return timers[-1]

    async def answer(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response()

    async with place(ca, answer) as server:
        reader, writer = await server.connect()
        monkeypatch.setattr(loop, "call_later", noted)
        writer.write(REQUEST)
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()
        async with asyncio.timeout(5):
            while server.server.connections:  # noqa: ASYNC110  nobody tells of it
                await asyncio.sleep(0.005)
        assert all(timer.cancelled() for timer in timers)


async def test_a_client_that_says_no_more_and_reads_nothing_is_not_waited_for_for_ever(
    ca: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "FAREWELL", 0.05)

    async def answer(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=bytes(8 * 1024 * 1024))

    async with place(ca, answer) as server:
        reader, writer = await server.connect()
        with contextlib.closing(writer):
            writer.write(REQUEST)
            await reader.readuntil(b"\r\n\r\n")
            near = writer.get_extra_info("socket")
            assert near is not None
            with socket.socket(fileno=os.dup(near.fileno())) as one:
                one.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(5):
                while server.server.connections:  # noqa: ASYNC110  nobody tells of it
                    await asyncio.sleep(0.005)
            writer.transport.abort()
