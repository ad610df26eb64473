"""One client connection: bytes out, a FIN, a reset, and the news that the client left."""

import array
import asyncio
import fcntl
import socket
import ssl
import struct
import termios
from contextlib import suppress

from .gates import PeerLeftError
from .wire import MAX_HEAD

HANDSHAKE_SECONDS = 5.0
SHUTDOWN_SECONDS = 1.0


class _Protocol(asyncio.StreamReaderProtocol):
    """A stream that says when the client has left and when the socket is closed."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        super().__init__(reader)
        self.gone = asyncio.Event()
        self.closed = asyncio.Event()

    def eof_received(self) -> bool | None:
        self.gone.set()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.gone.set()
        self.closed.set()


class Peer:
    """The client at the other end of one connection."""

    def __init__(self, number: int, sock: socket.socket, reader: asyncio.StreamReader, protocol: _Protocol) -> None:
        self.number = number
        self.reader = reader
        self.gone = protocol.gone
        self._closed = protocol.closed
        self._sock = sock
        self._protocol = protocol
        self._writer: asyncio.StreamWriter

    @classmethod
    async def accept(cls, number: int, sock: socket.socket, tls: ssl.SSLContext | None) -> "Peer":
        """Take over an accepted socket; OSError when the TLS handshake fails."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=MAX_HEAD)
        protocol = _Protocol(reader)
        peer = cls(number, sock, reader, protocol)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            sock,
            ssl=tls,
            ssl_handshake_timeout=HANDSHAKE_SECONDS if tls else None,
            ssl_shutdown_timeout=SHUTDOWN_SECONDS if tls else None,
        )
        # So that a drained byte is with the kernel; TLS transports take 0 for "always full".
        transport.set_write_buffer_limits(high=1 if tls else 0, low=0)
        peer._writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        return peer

    async def send(self, data: bytes | memoryview) -> None:
        """Send, and return once the kernel has it."""
        if self._closed.is_set():
            raise PeerLeftError
        self._writer.write(data)
        await self._writer.drain()

    async def finish(self) -> None:
        """Close with FIN, after everything sent."""
        self._writer.close()
        await self._closed.wait()

    async def reset(self) -> None:
        """Close with RST, once the client's kernel has everything sent."""
        while not self.gone.is_set() and self._unacknowledged():  # noqa: ASYNC110 - the kernel has no event for it
            await asyncio.sleep(0.001)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.drop()

    async def drop(self) -> None:
        """Close at once, whatever is unsent."""
        self._writer.transport.abort()
        await self._closed.wait()
        with suppress(OSError):
            await self._writer.wait_closed()

    def _unacknowledged(self) -> int:
        waiting = array.array("i", [0])
        fcntl.ioctl(self._sock.fileno(), termios.TIOCOUTQ, waiting)
        return waiting[0]
