"""A client that reports what came over the wire, with no manners of its own."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from .upstream.wire import Header


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """An answer as far as it came."""

    status: int
    headers: tuple[Header, ...]
    body: bytes = field(repr=False)
    ended: str
    """complete, short (FIN before the announced end) or reset."""

    def header(self, name: str) -> str | None:
        """All lines of a header joined, or None."""
        lines = [value for key, value in self.headers if key.lower() == name.lower()]
        return ", ".join(lines) if lines else None


class RawClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        """Send a request."""
        sent = {"Host": "fake", **(headers or {})}
        lines = [f"{method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in sent.items())]
        self.writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        await self.writer.drain()

    async def head(self) -> tuple[int, tuple[Header, ...]]:
        """The status and the headers of the next answer."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        pairs = (line.partition(": ") for line in lines[1:])
        return int(lines[0].split(" ")[1]), tuple((name, value) for name, _, value in pairs)

    async def ask(self, method: str, target: str, headers: dict[str, str] | None = None) -> RawAnswer:
        """Send a request and read its answer, however it ends."""
        await self.send(method, target, headers)
        return await self.answer(method)

    async def answer(self, method: str = "GET") -> RawAnswer:
        """Read an answer, however it ends."""
        status, headers = await self.head()
        answer = RawAnswer(status, headers, b"", "complete")
        if method == "HEAD" or status == 304:
            return answer
        body = bytearray()
        try:
            ended = await self._read(answer, body)
        except asyncio.IncompleteReadError as error:
            body += error.partial
            ended = "short"
        except ConnectionResetError:
            ended = "reset"
        return RawAnswer(status, headers, bytes(body), ended)

    async def _read(self, answer: RawAnswer, body: bytearray) -> str:
        if answer.header("Transfer-Encoding") == "chunked":
            return await self._chunks(body)
        declared = answer.header("Content-Length")
        want = 1 << 62 if declared is None else int(declared)
        while len(body) < want and (data := await self.reader.read(min(want - len(body), 65536))):
            body += data
        return "complete" if declared is None or len(body) == want else "short"

    async def _chunks(self, body: bytearray) -> str:
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            while size and (data := await self.reader.read(size)):
                body += data
                size -= len(data)
            if size:
                return "short"
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)
        return "complete"


@asynccontextmanager
async def connect(host: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawClient]:
    """One connection to host:port, closed at the end."""
    name, _, port = host.rpartition(":")
    reader, writer = await asyncio.open_connection(name, int(port), ssl=tls)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def ask(host: str, method: str, target: str, headers: dict[str, str] | None = None) -> RawAnswer:
    """One request on a connection of its own."""
    async with connect(host) as client:
        return await client.ask(method, target, headers)
