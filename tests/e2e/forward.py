"""A forward proxy on 127.0.0.1: CONNECT and absolute-form, right until told otherwise."""

import asyncio
import contextlib
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Iterable
from urllib.parse import urlsplit

from .upstream.journal import Changes
from .upstream.listener import Listener
from .upstream.peer import Peer
from .upstream.wire import Request, read_request

REASONS = {200: "OK", 403: "Forbidden", 407: "Proxy Authentication Required", 502: "Bad Gateway"}


class ForwardProxy(Changes, Listener):
    """Goes to the hosts it knows, all of them on this machine; for others it answers 502.

    `known`: names, without a port, that lead here. `users`: who may use it, or everybody.
    """

    def __init__(
        self,
        *,
        known: Iterable[str] = (),
        users: dict[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        name: str = "127.0.0.1",
    ) -> None:
        Changes.__init__(self)
        Listener.__init__(self, tls=tls, name=name)
        self.known = {"127.0.0.1", *known}
        self.asked: list[Request] = []
        """Every request that was made of the proxy itself, in order."""
        self.answer: int | None = None
        """A status in place of doing what is asked."""
        self.marks: tuple[str, ...] = ()
        """Header lines that the proxy's own answers have."""
        self.fate: str = ""
        """"hang": says nothing; "die": hangs up in place of an answer."""
        self._users = users

    @property
    def targets(self) -> list[str]:
        """What was asked for: host:port of a CONNECT, or a URL."""
        return [request.target for request in self.asked]

    @property
    def hosts(self) -> set[str]:
        """The hosts that were asked for, with their ports."""
        return {urlsplit(target).netloc if "://" in target else target for target in self.targets}

    def authorizations(self) -> list[str | None]:
        """The Proxy-Authorization of each request."""
        return [request.header("Proxy-Authorization") for request in self.asked]

    async def serve(self, peer: Peer) -> None:
        """Do what one connection asks for."""
        while (request := await read_request(peer.reader, peer.number)) is not None:
            self.asked.append(request)
            self.changed()
            if self.fate == "hang":
                await peer.gone.wait()
            status = self._status(request)
            if self.fate or status != 200:
                return await self._refuse(peer, status)
            if request.method == "CONNECT":
                return await self._tunnel(peer, request)
            if not await self._relay(peer, request):
                return await peer.finish()
        return await peer.finish()

    def _status(self, request: Request) -> int:
        if self._users is not None and request.header("Proxy-Authorization") not in self._permitted():
            return 407
        place = request.target if request.method == "CONNECT" else urlsplit(request.target).netloc
        return self.answer or (200 if place.rpartition(":")[0] in self.known else 502)

    def _permitted(self) -> set[str]:
        return {f"Basic {b64encode(f'{user}:{word}'.encode()).decode()}" for user, word in (self._users or {}).items()}

    async def _refuse(self, peer: Peer, status: int) -> None:
        if self.fate:
            return await peer.drop()
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Other')}", "Content-Length: 4", *self.marks]
        if status == 407:
            lines.append('Proxy-Authenticate: Basic realm="forward"')
        await peer.send("\r\n".join([*lines, "", "no!\n"]).encode())
        return await peer.finish()

    async def _tunnel(self, peer: Peer, request: Request) -> None:
        async with _connected(int(request.target.rpartition(":")[2])) as (reader, writer):
            await peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
            away = asyncio.create_task(_pump(peer.reader, writer))
            try:
                while data := await reader.read(65536):
                    await peer.send(data)
            finally:
                away.cancel()
                await asyncio.gather(away, return_exceptions=True)
        await peer.finish()

    async def _relay(self, peer: Peer, request: Request) -> bool:
        """One request in absolute-form, its hop-by-hop headers kept here; whether the connection goes on."""
        parts = urlsplit(request.target)
        async with _connected(parts.port or 80) as (reader, writer):
            path = request.target.partition(parts.netloc)[2] or "/"
            headers = [pair for pair in request.headers if not pair[0].lower().startswith(("proxy-", "connection"))]
            lines = [f"{request.method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
            writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + request.body)
            while data := await reader.read(65536):
                await peer.send(data)
        return False


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


@contextlib.asynccontextmanager
async def _connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
