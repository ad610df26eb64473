"""A client that takes nothing of what was sent is let go, once its connection has been closed as well."""

import asyncio
import contextlib
import socket

from aiohttp import web

from proxy.serving import bind, listening
from proxy.values import Listen
from tests.e2e.harness import until

REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"


async def test_a_closed_connection_does_not_wait_for_ever_for_a_client_that_reads_nothing() -> None:
    async def answer(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=bytes(60_000))

    with contextlib.closing(bind(Listen(host="127.0.0.1", port=0), "listen")) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # its connections inherit it
        async with listening(answer, sock, 0.25) as listener:
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(client, sock.getsockname())
                await loop.sock_sendall(client, REQUEST)
                await until(
                    lambda: any(one.transport and one.transport.is_closing() for one in listener.server.connections)
                )
                await until(lambda: not listener.server.connections)
