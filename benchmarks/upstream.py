"""A registry of our own, which counts what it sends and can keep to a rate: for what nginx cannot do as an upstream.

nginx's limit_rate lets the bytes of a whole second go at once, and is for each connection; a link is neither.
"""

import asyncio
import contextlib
import json
import mmap
import re
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from benchmarks.contents import MANIFEST, Image
from benchmarks.link import Bucket
from benchmarks.servers import Place, free_port, process

READ = 1024 * 1024  # bytes
PIECE = 64 * 1024  # bytes that are sent at a time where there is a rate
RANGE = re.compile(rb"\r\nrange: bytes=(\d+)-(\d*)\r\n", re.IGNORECASE)

Bodies = Callable[[str], "bytes | mmap.mmap"]


class Upstream:
    """A registry. `bodies`: what is at a path, or KeyError; `rate`: bytes a second for all together, None: no limit."""

    def __init__(self, bodies: Bodies, rate: float | None = None, log: Path | None = None) -> None:
        self._bodies = bodies
        self._rate = None if rate is None else Bucket(rate)
        self._log = log
        self.sent = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await self._answer(await reader.readuntil(b"\r\n\r\n"), writer)
        writer.close()

    async def _answer(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        method, path, _ = request.split(b"\r\n", 1)[0].decode().split(" ")
        try:
            body = memoryview(self._bodies(path))
        except KeyError:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        kind = MANIFEST if "/manifests/" in path else "application/octet-stream"
        head, start, stop = f"200 OK\r\nContent-Type: {kind}\r\nAccept-Ranges: bytes", 0, len(body)
        if (span := RANGE.search(request)) is not None:
            start, stop = int(span[1]), min(int(span[2] or len(body)) + 1, len(body))
            head = f"206 Partial Content\r\nContent-Type: {kind}\r\nContent-Range: bytes {start}-{stop - 1}/{len(body)}"
        writer.write(f"HTTP/1.1 {head}\r\nContent-Length: {stop - start}\r\n\r\n".encode())
        if method == "GET":
            await self._send(path, body[start:stop], writer)

    async def _send(self, path: str, body: memoryview, writer: asyncio.StreamWriter) -> None:
        step, done = READ if self._rate is None else PIECE, 0
        try:
            for offset in range(0, len(body), step):
                piece = body[offset : offset + step]
                if self._rate is not None:
                    await self._rate.pass_through(len(piece))
                writer.write(piece)
                await writer.drain()
                done += len(piece)
        finally:
            self.sent += done
            if self._log is not None:
                with self._log.open("a") as log:
                    log.write(json.dumps({"method": "GET", "path": path, "sent": done}) + "\n")


@contextlib.asynccontextmanager
async def own(image: Image, log: Path, rate: float | None = None) -> AsyncIterator[Place]:
    """An image's registry in a process of its own, which sends no more than so many bytes a second, all told."""
    port = free_port()
    log.touch()
    command = [sys.executable, "-m", "benchmarks.upstream", str(image.root), str(port), str(log)]
    async with process([*command, *([] if rate is None else [str(rate)])], port) as place:
        yield place


async def main(root: Path, port: int, log: Path, rate: float | None) -> None:
    """Serve until the process is ended."""

    def body(path: str) -> bytes | mmap.mmap:
        file = root / path.removeprefix("/")
        if path == "/v2/":
            return b"{}"
        if not file.is_file():
            raise KeyError(path)
        with file.open("rb") as opened:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)

    server = await asyncio.start_server(Upstream(body, rate, log), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    root, port, log, *rate = sys.argv[1:]
    asyncio.run(main(Path(root), int(port), Path(log), float(rate[0]) if rate else None))
