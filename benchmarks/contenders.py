"""What is compared, and what it is compared with: a registry in memory, servers in processes of their own, a client."""

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

READ = 1024 * 1024


class Upstream:
    """A registry with one blob: every GET is answered with all of it, and its bytes are counted.

    `pace`: bytes a second for each connection; None: as fast as the machine can.
    """

    def __init__(self, body: bytes) -> None:
        self._body = memoryview(body)
        self.sent = 0
        self.pace: float | None = None

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                await self._answer(request, writer)
        writer.close()

    async def _answer(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        body = self._body if b"/blobs/" in request.split(b"\r\n", 1)[0] else memoryview(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        if request.startswith(b"GET"):
            self.sent += len(body)
            began = time.perf_counter()
            for offset in range(0, len(body), READ):
                writer.write(body[offset : offset + READ])
                await writer.drain()
                if self.pace is not None:
                    await asyncio.sleep(began + (offset + READ) / self.pace - time.perf_counter())


@dataclass(frozen=True)
class Place:
    """Where a contender answers, and its process, if it has one of its own."""

    host: str
    pid: int | None = None

    @property
    def peak(self) -> int:
        """The most memory it has had so far, in bytes; 0 without a process."""
        if self.pid is None:
            return 0
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@contextlib.asynccontextmanager
async def entrepot(upstream: str, folder: Path, *, more: str = "") -> AsyncIterator[Place]:
    """Entrepot with an empty directory; `more` are tables of its configuration."""
    port, admin = free_port(), free_port()
    config = folder / "proxy.toml"
    config.write_text(
        f'server = {{ listen = "127.0.0.1:{port}", lb_delay = "0s" }}\nadmin.listen = "127.0.0.1:{admin}"\n'
        f'log.level = "error"\n[store]\npath = "{folder / "cache"}"\n{more}\n'
        f'[[upstream]]\nregistry = "docker.io"\nurl = "http://{upstream}"\n'
    )
    async with process([sys.executable, "-m", "proxy", "serve", "--config", str(config)], port) as place:
        yield place


@contextlib.asynccontextmanager
async def docker_registry(upstream: str, folder: Path, *, storage: str | None = None) -> AsyncIterator[Place]:
    """Debian's docker-registry in pull-through mode, with an empty directory or another `storage`."""
    port = free_port()
    config = folder / "registry.yml"
    storage = f"filesystem: {{ rootdirectory: {folder / 'cache'} }}" if storage is None else storage
    config.write_text(
        f"version: 0.1\nlog: {{ level: error }}\nstorage: {{ {storage} }}\n"
        f"http: {{ addr: '127.0.0.1:{port}' }}\nproxy: {{ remoteurl: 'http://{upstream}' }}\n"
    )
    # With a bundle of authorities in the environment its driver for S3 does not start.
    async with process(["docker-registry", "serve", str(config)], port, {"AWS_CA_BUNDLE": ""}) as place:
        yield place


@contextlib.asynccontextmanager
async def process(command: list[str], port: int, env: Mapping[str, str] | None = None) -> AsyncIterator[Place]:
    """A server in a process of its own, once it listens."""
    null = asyncio.subprocess.DEVNULL
    one = await asyncio.create_subprocess_exec(*command, stdout=null, stderr=null, env={**os.environ, **(env or {})})
    try:
        async with asyncio.timeout(20):
            while not await _answers(port):  # noqa: ASYNC110  another process: there is no event to wait for
                await asyncio.sleep(0.02)
        yield Place(f"127.0.0.1:{port}", one.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            one.kill()
        await one.wait()


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


async def pull(host: str, digest: str, size: int) -> tuple[float, float]:
    """GET the blob and count it. Returns seconds to the first byte of the body, and to the last."""
    name, _, port = host.partition(":")
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(name, int(port), limit=READ)
    request = f"GET /v2/library/bench/blobs/{digest} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    writer.write(request.encode())
    head = await reader.readuntil(b"\r\n\r\n")
    left, first = size, 0.0
    while left and (data := await reader.read(READ)):
        first = first or time.perf_counter() - began
        left -= len(data)
    writer.close()
    if left or b" 200 " not in head.split(b"\r\n")[0]:
        raise RuntimeError(f"{host} did not send the blob: {head[:80]!r}")
    return first, time.perf_counter() - began
