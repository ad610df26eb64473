"""One blob, cold and warm, by one client and by many: Entrepot beside its peers, in one run."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from contenders import Place, Upstream, docker_registry, entrepot, pull
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

REPEATS = 3
SIZE = 256 * 1024 * 1024  # bytes of the blob
GIGABIT = 125e6  # bytes a second
MANY = 16


@dataclass(frozen=True)
class Contender:
    """Something to pull through, started in front of an upstream with an empty cache in a folder."""

    name: str
    start: Callable[[str, Path], AbstractAsyncContextManager[Place]]


@dataclass(frozen=True)
class Result:
    """What one case took."""

    seconds: float
    first_byte: float
    upstream: float


@contextlib.asynccontextmanager
async def _direct(upstream: str, _folder: Path) -> AsyncIterator[Place]:
    yield Place(upstream)


async def _case(host: str, digest: str, clients: int, registry: Upstream) -> Result:
    registry.sent = 0
    began = time.perf_counter()
    firsts = [first for first, _ in await asyncio.gather(*(pull(host, digest, SIZE) for _ in range(clients)))]
    return Result(time.perf_counter() - began, max(firsts), registry.sent / SIZE)


async def _round(contender: Contender, upstream: str, digest: str, registry: Upstream) -> dict[str, Result]:
    results = {}
    for clients in (1, MANY):
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            async with contender.start(upstream, Path(folder)) as place:
                results[f"cold, {clients}"] = await _case(place.host, digest, clients, registry)
                results[f"warm, {clients}"] = await _case(place.host, digest, clients, registry)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        async with contender.start(upstream, Path(folder)) as place:
            registry.pace = GIGABIT
            results["cold at 1 Gbit/s, 1"] = await _case(place.host, digest, 1, registry)
            registry.pace = None
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
    contenders = [Contender("direct", _direct), Contender("entrepot", entrepot)]
    if shutil.which("docker-registry"):
        contenders.append(Contender("docker-registry", docker_registry))
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
