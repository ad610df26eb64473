"""A full cache of a million blobs: what a look for what may go takes, and what pulls notice of it, in one run."""

import argparse
import asyncio
import contextlib
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from benchmarks import stock
from proxy.app import build
from proxy.candidates import IDLE
from proxy.config import Config
from proxy.demo import REPOSITORY, Plan, Registry, generate
from proxy.files import hop
from proxy.sections.server import Server
from proxy.sections.store import Store
from proxy.sections.upstream import Upstream
from proxy.serving import bind, listening
from proxy.telemetry import Metrics, quiet
from proxy.values import Listen

BLOBS = 1_000_000
LAYER = 16 * 1024 * 1024  # bytes of the blob that is pulled
SECONDS = 8.0  # of pulls, quiet and while looks go on, in turns
ROUNDS = 3
STALL = 120.0  # seconds for which a client may take nothing
WORK = Path(".work")


async def serve(folder: Path, url: str) -> None:
    """The cache, in a process of its own; looks again and again from the line "look" on standard input to "rest"."""
    config = Config(
        server=Server(listen=Listen(host="127.0.0.1", port=0)),
        store=Store(path=folder, max_size=2**50, min_free=0),
        upstream=(Upstream(registry="demo.example", url=url, default=True),),
    )
    sock = bind(config.server.listen, "bench")
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with build(config, quiet(), Metrics(CollectorRegistry())) as app, listening(app.handlers, sock, STALL):
        say({"port": sock.getsockname()[1], "memory": peak()})
        while await lines.readline():
            took = []
            rest = asyncio.create_task(lines.readline())
            while not rest.done():
                began = time.perf_counter()
                await hop(app.means.space.look, lambda: IDLE)
                took.append(time.perf_counter() - began)
            say({"looks": len(took), "seconds": statistics.mean(took), "memory": peak()})


def say(what: dict[str, float]) -> None:
    """One line to whoever started this process."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.asynccontextmanager
async def started(folder: Path, url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The cache's process."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.full", "--serve", str(folder), "--url", url, stdin=pipe, stdout=pipe
    )
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


async def heard(process: asyncio.subprocess.Process) -> dict[str, float]:
    """The next line that it says."""
    assert process.stdout is not None  # noqa: S101
    line: dict[str, float] = json.loads(await process.stdout.readline())
    return line


async def pulls(session: aiohttp.ClientSession, url: str, seconds: float) -> list[float]:
    """Seconds that each of many requests took, one after the other."""
    took, until = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        async with session.get(url, raise_for_status=True) as response:
            await response.read()
        took.append(time.perf_counter() - began)
    return took


async def measure(folder: Path, console: Console) -> None:
    """Pull by tag and by digest, quietly and during looks, in turns; print both, and their ratio."""
    registry = Registry()
    generate(registry, Plan(1, 1, LAYER))
    layer = next(path for path, (_, body) in registry.contents.items() if len(body) == LAYER)
    upstream = bind(Listen(host="127.0.0.1", port=0), "bench")
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(listening(registry, upstream, STALL))
        began = time.perf_counter()
        process = await stack.enter_async_context(started(folder, f"http://127.0.0.1:{upstream.getsockname()[1]}"))
        first = await heard(process)
        console.print(f"start, which counts nothing: {time.perf_counter() - began:.1f} s")
        session = await stack.enter_async_context(aiohttp.ClientSession())
        base = f"http://127.0.0.1:{first['port']:.0f}"
        urls = {"manifest by tag": f"{base}/v2/{REPOSITORY}/manifests/latest", "16 MiB blob": f"{base}{layer}"}
        for url in urls.values():
            await pulls(session, url, 0.1)
        took: dict[tuple[str, bool], list[float]] = {
            (name, is_looking): [] for name in urls for is_looking in (False, True)
        }
        looks: list[dict[str, float]] = []
        assert process.stdin is not None  # noqa: S101
        for _ in range(ROUNDS):
            for is_looking in (False, True):
                if is_looking:
                    process.stdin.write(b"look\n")
                for name, url in urls.items():
                    took[name, is_looking] += await pulls(session, url, SECONDS)
                if is_looking:
                    process.stdin.write(b"rest\n")
                    looks.append(await heard(process))
    report(console, took, looks, first["memory"])


def report(
    console: Console, took: dict[tuple[str, bool], list[float]], looks: list[dict[str, float]], before: float
) -> None:
    """The table, and what a look takes."""
    table = Table("warm pulls, one after the other", "quiet p50, ms", "during looks", "ratio", "quiet p99, ms", "looks")
    for name in dict.fromkeys(name for name, _ in took):
        quiet_, looking = (sorted(took[name, is_looking]) for is_looking in (False, True))
        middle = [statistics.median(one) * 1000 for one in (quiet_, looking)]
        worst = [one[len(one) * 99 // 100] * 1000 for one in (quiet_, looking)]
        table.add_row(
            name, f"{middle[0]:.2f}", f"{middle[1]:.2f}", f"{middle[1] / middle[0]:.2f}", f"{worst[0]:.2f}",
            f"{worst[1]:.2f}",
        )  # fmt: skip
    console.print(table)
    seconds = statistics.mean(look["seconds"] for look in looks)
    console.print(f"a look: {seconds:.1f} s; memory at most {looks[-1]['memory'] / 2**20:.0f} MiB, of all looks")
    console.print(f"memory after the start {before / 2**20:.0f} MiB")


def main() -> None:
    """Make the store, measure, and remove it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blobs", type=int, default=BLOBS)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve, options.url))
        return
    console = Console()
    WORK.mkdir(exist_ok=True)  # not where others keep what is temporary: that may be in memory
    with tempfile.TemporaryDirectory(prefix="full-", dir=WORK) as folder:
        began = time.perf_counter()
        stock.blobs(Path(folder) / "cache", options.blobs)
        console.print(f"{options.blobs:,} blobs in {time.perf_counter() - began:.0f} s")
        asyncio.run(measure(Path(folder) / "cache", console))


if __name__ == "__main__":
    main()
