"""One blob, cold and warm, by one client and by many: Entrepot beside its peers, in one run."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

REPEATS = 3
SIZE = 64 * 1024 * 1024  # bytes of the blob
MANY = 16
READ = 1024 * 1024


class Upstream:
    """A registry with one blob, at memory speed: every GET is answered with all of it, and its bytes are counted."""

    def __init__(self, body: bytes) -> None:
        self._body = memoryview(body)
        self.sent = 0

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
            for offset in range(0, len(body), READ):
                writer.write(body[offset : offset + READ])
                await writer.drain()


@dataclass(frozen=True)
class Contender:
    """Something to pull through, started in front of an upstream with an empty cache in a folder."""

    name: str
    start: Callable[[str, Path], AbstractAsyncContextManager[str]]


@dataclass(frozen=True)
class Result:
    """What one case took."""

    seconds: float
    first_byte: float
    upstream: float


@contextlib.asynccontextmanager
async def _direct(upstream: str, _folder: Path) -> AsyncIterator[str]:
    yield upstream


@contextlib.asynccontextmanager
async def _entrepot(upstream: str, folder: Path) -> AsyncIterator[str]:
    port, admin = _free_port(), _free_port()
    config = folder / "proxy.toml"
    config.write_text(
        f'server = {{ listen = "127.0.0.1:{port}", lb_delay = "0s" }}\nadmin.listen = "127.0.0.1:{admin}"\n'
        f'store.path = "{folder / "cache"}"\nlog.level = "error"\n'
        f'[[upstream]]\nregistry = "docker.io"\nurl = "http://{upstream}"\n'
    )
    async with _process([sys.executable, "-m", "proxy", "serve", "--config", str(config)], port):
        yield f"127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def _docker_registry(upstream: str, folder: Path) -> AsyncIterator[str]:
    port = _free_port()
    config = folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {folder / 'cache'} }} }}\n"
        f"http: {{ addr: '127.0.0.1:{port}' }}\nproxy: {{ remoteurl: 'http://{upstream}' }}\n"
    )
    async with _process(["docker-registry", "serve", str(config)], port):
        yield f"127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def _process(command: list[str], port: int) -> AsyncIterator[None]:
    """A server in a process of its own, once it listens."""
    null = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdout=null, stderr=null)
    try:
        async with asyncio.timeout(20):
            while not await _answers(port):  # noqa: ASYNC110  another process: there is no event to wait for
                await asyncio.sleep(0.02)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


async def _pull(host: str, digest: str) -> tuple[float, float]:
    """GET the blob and count it. Returns seconds to the first byte of the body, and to the last."""
    name, _, port = host.partition(":")
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(name, int(port), limit=READ)
    request = f"GET /v2/library/bench/blobs/{digest} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    writer.write(request.encode())
    head = await reader.readuntil(b"\r\n\r\n")
    left, first = SIZE, 0.0
    while left and (data := await reader.read(READ)):
        first = first or time.perf_counter() - began
        left -= len(data)
    writer.close()
    if left or b" 200 " not in head.split(b"\r\n")[0]:
        raise RuntimeError(f"{host} did not send the blob: {head[:80]!r}")
    return first, time.perf_counter() - began


async def _case(host: str, digest: str, clients: int, registry: Upstream) -> Result:
    registry.sent = 0
    began = time.perf_counter()
    firsts = [first for first, _ in await asyncio.gather(*(_pull(host, digest) for _ in range(clients)))]
    return Result(time.perf_counter() - began, max(firsts), registry.sent / SIZE)


async def _round(contender: Contender, upstream: str, digest: str, registry: Upstream) -> dict[str, Result]:
    results = {}
    for clients in (1, MANY):
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            async with contender.start(upstream, Path(folder)) as host:
                results[f"cold, {clients}"] = await _case(host, digest, clients, registry)
                results[f"warm, {clients}"] = await _case(host, digest, clients, registry)
    return results


def _table(names: list[str], runs: dict[str, list[dict[str, Result]]]) -> Table:
    table = Table("case, clients", "contender", "seconds", "x direct", "slowest first byte, ms", "x from upstream")
    for case in runs[names[0]][0]:
        direct = statistics.median(run[case].seconds for run in runs["direct"])
        for name in names:
            seconds = statistics.median(run[case].seconds for run in runs[name])
            first = statistics.median(run[case].first_byte for run in runs[name])
            upstream = statistics.median(run[case].upstream for run in runs[name])
            table.add_row(
                case, name, f"{seconds:.2f}", f"{seconds / direct:.2f}", f"{first * 1000:.0f}", f"{upstream:.0f}"
            )
        table.add_section()
    return table


async def main() -> None:
    """Run every case against every contender, interleaved, and print the table."""
    console = Console()
    contenders = [Contender("direct", _direct), Contender("entrepot", _entrepot)]
    if shutil.which("docker-registry"):
        contenders.append(Contender("docker-registry", _docker_registry))
    else:
        console.print("docker-registry is not installed (a Debian package of that name): left out")
    body = os.urandom(SIZE)
    registry = Upstream(body)
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    server = await asyncio.start_server(registry, "127.0.0.1", 0)
    upstream = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    runs: dict[str, list[dict[str, Result]]] = {contender.name: [] for contender in contenders}
    with Progress(console=console) as progress:
        step = progress.add_task("pulling", total=REPEATS * len(contenders))
        for _ in range(REPEATS):
            for contender in contenders:
                runs[contender.name].append(await _round(contender, upstream, digest, registry))
                progress.advance(step)
    server.close()
    console.print(_table([contender.name for contender in contenders], runs))


if __name__ == "__main__":
    asyncio.run(main())
