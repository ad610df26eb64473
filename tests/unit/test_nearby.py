"""Which congestion control a client's connection has, by where the client is."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from functools import partial

import pytest
from aiohttp import web

from proxy import nearby
from proxy.serving import bind, listening
from proxy.values import Listen

REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"  # what connects from another address than it connects to is elsewhere

needs_pacing = pytest.mark.skipif(nearby.paced() is None, reason="the system's congestion control does not pace")


def congestion_control(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


def systems() -> bytes:
    with socket.socket() as sock:
        return congestion_control(sock)


async def answer(request: web.BaseRequest) -> web.StreamResponse:
    assert request.transport is not None
    return web.Response(body=congestion_control(request.transport.get_extra_info("socket")))


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[socket.socket]:
    with contextlib.closing(bind(Listen(host=HERE, port=0), "listen")) as sock:
        async with listening(answer, sock, 5):
            yield sock


async def found(sock: socket.socket, client: str) -> bytes:
    """What a server uses for a client with that address."""
    reader, writer = await asyncio.open_connection(*sock.getsockname(), local_addr=(client, 0))
    with contextlib.closing(writer):
        writer.write(REQUEST)
        return (await reader.read()).partition(b"\r\n\r\n")[2]


@needs_pacing
async def test_a_client_on_this_machine_is_not_paced() -> None:
    async with server() as sock:
        assert await found(sock, HERE) == nearby.SIMPLE


@needs_pacing
async def test_a_client_elsewhere_is_sent_to_as_the_system_does() -> None:
    async with server() as sock:
        assert await found(sock, ELSEWHERE) == systems()


@needs_pacing
async def test_what_another_process_did_to_a_shared_listener_is_not_taken_for_the_systems() -> None:
    async with server() as sock, listening(answer, sock.dup(), 5):
        assert {await found(sock, ELSEWHERE) for _ in range(8)} == {systems()}


async def test_nothing_is_changed_where_the_system_does_not_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearby, "PACING", b"something else")
    async with server() as sock:
        assert {await found(sock, HERE), await found(sock, ELSEWHERE), congestion_control(sock)} == {systems()}


async def test_a_listener_that_is_not_tcp_is_left_alone() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        assert await asyncio.to_thread(partial(nearby.begin_unpaced, sock)) is None
