"""The way of a body to one client: bytes, and stretches of files, at the pace at which it takes them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from proxy.files import Extent, Outlet, Senders
from proxy.tls import Secured

SMALL = 256 * 1024  # bytes up to which a stretch is read and written: a thread sends it no faster

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
        elif piece.count > SMALL and not self._response.chunked:
            await self._send(piece)
        else:
            await self._copy(piece)

    def close(self) -> None:
        """Let go of the connection: until then nothing that closes it is noticed by the client."""
        if self._outlet is not None:
            self._outlet.close()

    async def _copy(self, extent: Extent) -> None:
        """Read it and write it, a chunk at a time."""
        handle = extent.handle
        for offset in range(extent.offset, extent.end, SMALL):
            if offset > extent.offset:
                await asyncio.sleep(0)  # a client that takes all at once must not keep others waiting
            count = min(SMALL, extent.end - offset)
            await self._write(handle.at_hand(offset, count) or await handle.read_all(offset, count))

    async def _write(self, data: bytes | bytearray) -> None:
        async with taking(self._request, self._patience):
            await self._response.write(data)
        self._written += len(data)

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
