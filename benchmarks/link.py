"""A WAN between two ports of one machine: a relay with a round trip, a rate for all, and a cap for each connection.

What it stands for, and where that ends, is in README.md. Its one argument is a Link as JSON. On standard output it
says, a JSON line each: that it listens, every request that sets out and, once standard input ends, what it brought.
"""

import asyncio
import contextlib
import itertools
import json
import re
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

import uvloop

ONE_WAY = 0.040  # seconds
RATE = 50e6 / 8  # bytes a second, down, for all connections together
BURST = 0.02  # seconds by which a bucket may catch up: timers are late, and a busy machine later
QUANTUM = 8 * 1024  # bytes that are sent at a time; connections take turns
FIRST_WINDOW = 10 * 1448  # bytes in flight of a new connection (RFC 6928), doubled in each round trip ...
WINDOW = 1024 * 1024  # ... up to twice what the link holds
BUFFER = 64 * 1024  # bytes that each of the relay's sockets may hold

REQUEST = re.compile(rb"((?:GET|HEAD) \S+) HTTP/1\.1\r\n(?:.*?\r\nRange: ([^\r]+))?", re.DOTALL)


@dataclass(frozen=True)
class Link:
    """A link to a port of 127.0.0.1; `cap` is in bytes a second, for each connection, 0 for none."""

    target: int
    cap: float = 0.0

    def command(self) -> list[str]:
        """How it is run in a process of its own."""
        return [sys.executable, __file__, json.dumps(asdict(self))]


class Bucket:
    """So many bytes a second. Those who wait take turns."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._turn = asyncio.Lock()
        self._free_at = 0.0
        self.passed = 0  # bytes

    async def pass_through(self, size: int) -> None:
        """Wait for as long as it takes to send so much, after all who came before."""
        async with self._turn:
            self._free_at = max(self._free_at, _now() - BURST) + size / self._rate
            await _until(self._free_at)
            self.passed += size


class Window:
    """How much of a connection may be in flight: it grows with what is acknowledged, as in slow start."""

    def __init__(self) -> None:
        self._size = FIRST_WINDOW
        self._used = 0
        self._opened = asyncio.Event()

    async def take(self, size: int) -> None:
        """Wait until so much may be sent."""
        while self._used and self._used + size > self._size:
            self._opened.clear()
            await self._opened.wait()
        self._used += size

    def acknowledge(self, size: int) -> None:
        """So much has arrived, and the word of it has come back."""
        self._used -= size
        self._size = min(WINDOW, self._size + size)
        self._opened.set()


@dataclass(frozen=True)
class Stream:
    """Both ends of a socket."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Connection:
    """One connection over the link: to the client on one side, to the server on the other."""

    def __init__(self, number: int, shared: Bucket, cap: float) -> None:
        self._number = number
        self._opened = _now()
        self._shared = shared
        self._own = Bucket(cap) if cap else None
        self._window = Window()

    async def run(self, client: Stream, server: Stream) -> None:
        """Relay until both sides are done, or one is gone."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_direction(client, server, self._sent_up, lambda _: None))
                group.create_task(_direction(server, client, self._sent_down, self._arrived_down))
        except* OSError:
            pass

    async def _sent_up(self, data: bytes) -> None:
        """A client's socket is connected at once here, while over a link its first bytes wait for a round trip."""
        await _until(self._opened + 2 * ONE_WAY)
        for request, part in REQUEST.findall(data):
            what = f"{request.decode()[:100]} {part.decode()}".rstrip()
            _say({"event": "request", "connection": self._number, "at": _now(), "what": what})

    async def _sent_down(self, data: bytes) -> None:
        await self._window.take(len(data))
        if self._own is not None:
            await self._own.pass_through(len(data))
        await self._shared.pass_through(len(data))

    def _arrived_down(self, size: int) -> None:
        asyncio.get_running_loop().call_later(ONE_WAY, self._window.acknowledge, size)


async def _direction(
    source: Stream, sink: Stream, send: Callable[[bytes], Awaitable[None]], arrived: Callable[[int], None]
) -> None:
    """Read, send, and let it arrive a while later; the end of the stream takes as long as its bytes."""
    way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
    async with asyncio.TaskGroup() as group:
        group.create_task(_arrive(way, sink, arrived))
        while data := await source.reader.read(QUANTUM):
            await send(data)
            way.put_nowait((_now() + ONE_WAY, data))
        way.put_nowait((_now() + ONE_WAY, b""))


async def _arrive(way: asyncio.Queue[tuple[float, bytes]], sink: Stream, arrived: Callable[[int], None]) -> None:
    """Hand over what is on its way when it is due; what is not taken is not acknowledged."""
    while True:
        due, data = await way.get()
        await _until(due)
        if not data:
            sink.writer.write_eof()
            return
        sink.writer.write(data)
        await sink.writer.drain()
        arrived(len(data))


async def _until(moment: float) -> None:
    if (wait := moment - _now()) > 0:
        await asyncio.sleep(wait)


def _now() -> float:
    return asyncio.get_running_loop().time()


class Relay:
    """All connections to one port."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._shared = Bucket(RATE)
        self._numbers = itertools.count()

    async def run(self) -> None:
        """Relay until standard input ends."""
        sock = _small(socket.create_server(("127.0.0.1", 0), backlog=100))
        server = await asyncio.start_server(self._connected, sock=sock, limit=BUFFER // 2)
        _say({"event": "listening", "port": sock.getsockname()[1], "at": _now()})
        await asyncio.to_thread(sys.stdin.read)
        server.close()
        _say({"event": "brought", "bytes": self._shared.passed, "at": _now()})

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(next(self._numbers), self._shared, self._link.cap)
        sock = _small(socket.socket())
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._link.target))
        server = Stream(*await asyncio.open_connection(sock=sock, limit=BUFFER // 2))
        for side in (writer, server.writer):
            side.transport.set_write_buffer_limits(0)
        with contextlib.suppress(asyncio.CancelledError):  # the link is taken down
            await connection.run(Stream(reader, writer), server)
        writer.close()
        server.writer.close()


def _small(sock: socket.socket) -> socket.socket:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    return sock


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(f"{json.dumps(line)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(Relay(Link(**json.loads(sys.argv[1]))).run())
