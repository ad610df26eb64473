"""The way of a body to one client: bytes, and stretches of files, at the pace at which it takes them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from proxy.files import Extent, Outlet, Senders, send_now
from proxy.tls import Secured

TINY = 64 * 1024  # bytes up to which a stretch is read and written: sendfile(2) is no faster ...
SMALL = 256 * 1024  # ... and up to which one is that does not go out at once: a thread is no faster
SHORT = 2 * 1024 * 1024  # bytes up to which it may: others wait for that, a fifth of a millisecond

Piece = bytes | Extent


class Channel:
    """Where the pieces of one response go."""

    def __init__(
        self, request: web.BaseRequest, response: web.StreamResponse, senders: Senders, patience: float
    ) -> None:
        """`patience`: seconds for which a client may take nothing."""
        self._request = request
        self._response = response
        self._senders = senders
        self._patience = patience
        self._outlet: Outlet | None = None
        self._written = 0

    @property
    def sent(self) -> int:
        """How many bytes were handed to the connection, or to the kernel for it."""
        return self._written + (0 if self._outlet is None else self._outlet.sent)

    async def put(self, piece: Piece) -> None:
        """Send a piece. Raises ConnectionError where the client is gone or takes nothing, OSError of a file."""
        if isinstance(piece, bytes):
            await self._write(piece)
            return
        if TINY < piece.count <= SHORT and not (piece.grows or self._response.chunked):
            piece = await self._send_now(piece)
        if piece.count > SMALL and not self._response.chunked:
            await self._send(piece)
        elif piece.count:
            await self._copy(piece)

    def close(self) -> None:
        """Let go of the connection: until then nothing that closes it is noticed by the client."""
        if self._outlet is not None:
            self._outlet.close()

    async def _copy(self, extent: Extent) -> None:
        """Read it and write it, a chunk at a time."""
        handle = extent.handle
        for offset in range(extent.offset, extent.end, SMALL):
            count = min(SMALL, extent.end - offset)
            await self._senders.portions.turn(count)
            await self._write(handle.at_hand(offset, count) or await handle.read_all(offset, count))

    async def _write(self, data: bytes | bytearray) -> None:
        async with taking(self._request, self._patience):
            await self._response.write(data)
        self._written += len(data)

    async def _send_now(self, extent: Extent) -> Extent:
        """Send what can go out at once; returns what is left. Over TLS nothing can: it takes too long to encrypt."""
        if isinstance(self._transport(), Secured):
            return extent
        await asyncio.sleep(0)  # uvloop writes at the end of a round
        await self._senders.portions.turn(extent.count)
        transport = self._transport()
        if transport.get_write_buffer_size():
            return extent
        sent = send_now(transport.get_extra_info("socket").fileno(), extent)
        self._written += sent
        return extent.behind(sent)

    async def _send(self, extent: Extent) -> None:
        outlet = self._outlet or self._opened()
        await asyncio.sleep(0)  # uvloop writes at the end of a round
        while self._is_buffered():  # what was written before, the head at least, goes first
            async with taking(self._request, self._patience):
                await outlet.writable()
        try:
            with outlet.lent():
                await self._senders.send(outlet, extent, self._patience)
        except TimeoutError:
            raise lost(self._request) from None

    def _opened(self) -> Outlet:
        transport = self._transport()
        if isinstance(transport, Secured):
            self._outlet = transport.outlet()
        else:
            self._outlet = Outlet(transport.get_extra_info("socket").fileno())
        return self._outlet

    def _is_buffered(self) -> bool:
        return bool(self._transport().get_write_buffer_size())

    def _transport(self) -> asyncio.Transport:
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client left")
        return transport


async def caught_up(request: web.BaseRequest, patience: float) -> None:
    """Wait until a client that has asked for more has taken what it was sent before. Raises ConnectionError."""
    if request.protocol.writing_paused:
        async with taking(request, patience):
            await request.writer.drain()


@contextlib.asynccontextmanager
async def taking(request: web.BaseRequest, patience: float) -> AsyncIterator[None]:
    """Around waiting for the client to take something: it has not for ever."""
    try:
        async with asyncio.timeout(patience):
            yield
    except TimeoutError:
        raise lost(request) from None


def lost(request: web.BaseRequest) -> ConnectionResetError:
    """Let a client go that takes nothing."""
    if request.transport is not None:
        request.transport.abort()  # it reads nothing: a FIN would wait behind what it does not read
    return ConnectionResetError("the client took no byte for too long")
