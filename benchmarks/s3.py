"""One blob with a bucket behind the cache: cold, from the local tier, from the bucket; beside what else can do that.

The bucket is versitygw's, by plain HTTP on this machine, built with Go; each contender has a prefix of its own there.
"""

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiobotocore.session import get_session
from botocore.config import Config
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.contenders import docker_registry, entrepot
from benchmarks.servers import free_port, process
from benchmarks.upstream import READ, Upstream
from tests.clients.buckets import BUCKET, PACKAGE, SECRET, USER, VERSION, what_is_missing
from tests.clients.processes import built

REPEATS = 5
SIZE = 256 * 1024 * 1024  # bytes of the blob
MANY = 16
KEYS = {"AWS_ACCESS_KEY_ID": USER, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
Case = tuple[str, int]
BASES = {"cold": "direct", "warm, local tier": "entrepot, no bucket", "warm, from S3": "get_object"}  # of the ratios


@dataclass(frozen=True)
class Scene:
    """What all contenders share: the registry, its one blob, the bucket's address."""

    registry: Upstream
    upstream: str
    digest: str
    bucket: str
    root: Path  # where the bucket's server keeps its objects


@dataclass
class Figures:
    """What was measured, by case and contender."""

    seconds: dict[Case, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    peaks: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    upstream: dict[tuple[Case, str], float] = field(default_factory=dict)

    async def take(self, scene: Scene, case: Case, name: str, one: Callable[[], Awaitable[object]]) -> None:
        """Have as many clients as the case says at it, at once."""
        scene.registry.sent = 0
        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(case[1])))
        self.seconds[case][name].append(time.perf_counter() - began)
        self.upstream[case, name] = scene.registry.sent / SIZE


def _table(scene: Scene, prefix: str) -> str:
    return (
        f'[store.s3]\nbucket = "{BUCKET}"\nprefix = "{prefix}"\nendpoint_url = "http://{scene.bucket}"\n'
        'region = "us-east-1"\naddressing = "path"\n'
    )


def _driver(scene: Scene, prefix: str) -> str:
    return (
        f"s3: {{accesskey: {USER}, secretkey: {SECRET}, region: us-east-1, bucket: {BUCKET}, secure: false, "
        f'encrypt: false, regionendpoint: "http://{scene.bucket}", rootdirectory: /{prefix}}}, '
        "redirect: {disable: true}"
    )


async def _pull(host: str, scene: Scene) -> None:
    """GET the blob, and count its bytes."""
    name, _, port = host.partition(":")
    reader, writer = await asyncio.open_connection(name, int(port), limit=READ)
    request = f"GET /v2/library/bench/blobs/{scene.digest} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    writer.write(request.encode())
    head = await reader.readuntil(b"\r\n\r\n")
    left = SIZE
    while left and (data := await reader.read(READ)):
        left -= len(data)
    writer.close()
    if left or b" 200 " not in head.split(b"\r\n")[0]:
        raise RuntimeError(f"{host} did not send the blob: {head[:80]!r}")


async def _introduced(host: str) -> None:
    """Have a server answer something before it is measured: it may listen before it is ready."""
    async with aiohttp.ClientSession(raise_for_status=True) as session, session.get(f"http://{host}/v2/"):
        pass


async def _disk_alone(scene: Scene, figures: Figures, clients: int, folder: Path) -> None:
    async with entrepot(scene.upstream, folder) as place:
        await _introduced(place.host)
        for case in ("cold", "warm, local tier"):
            await figures.take(scene, (case, clients), "entrepot, no bucket", lambda: _pull(place.host, scene))
        figures.peaks["entrepot, no bucket"].append(place.peak)


async def _with_a_bucket(scene: Scene, figures: Figures, clients: int, folder: Path) -> None:
    prefix = f"{secrets.token_hex(4)}/"
    table = _table(scene, prefix)
    async with entrepot(scene.upstream, folder, more=table) as place:
        await _introduced(place.host)
        await figures.take(scene, ("cold", clients), "entrepot", lambda: _pull(place.host, scene))
        await figures.take(scene, ("warm, local tier", clients), "entrepot", lambda: _pull(place.host, scene))
        while any(path.is_file() for path in (folder / "cache/uploads").rglob("*")):  # noqa: ASYNC110  another process
            await asyncio.sleep(0.05)
        figures.peaks["entrepot"].append(place.peak)
    other = folder / "other"
    other.mkdir()
    async with entrepot(scene.upstream, other, more=table) as place:
        await _introduced(place.host)
        await figures.take(scene, ("warm, from S3", clients), "entrepot", lambda: _pull(place.host, scene))
        figures.peaks["entrepot, from S3"].append(place.peak)
    encoded = scene.digest.partition(":")[2]
    await _get_objects(scene, figures, clients, f"{prefix}blobs/sha256/{encoded[:2]}/{encoded}")


async def _get_objects(scene: Scene, figures: Figures, clients: int, key: str) -> None:
    """What the library does by itself: no cache, nothing verified, the bytes thrown away."""
    settings = Config(s3={"addressing_style": "path"}, response_checksum_validation="when_required")
    session = get_session()
    async with session.create_client(
        "s3", region_name="us-east-1", endpoint_url=f"http://{scene.bucket}", aws_access_key_id=USER,
        aws_secret_access_key=SECRET, config=settings,
    ) as client:  # fmt: skip

        async def one() -> None:
            answer = await client.get_object(Bucket=BUCKET, Key=key)
            async with answer["Body"] as body:
                count = 0
                async for chunk in body.raw_stream.content.iter_any():
                    count += len(chunk)
            if count != SIZE:
                raise RuntimeError("the object is not whole")

        await figures.take(scene, ("warm, from S3", clients), "get_object", one)


async def _docker_registry(scene: Scene, figures: Figures, clients: int, folder: Path) -> None:
    prefix = secrets.token_hex(4)
    async with docker_registry(scene.upstream, folder, storage=_driver(scene, prefix)) as place:
        await _introduced(place.host)
        await figures.take(scene, ("cold", clients), "docker-registry", lambda: _pull(place.host, scene))
        if await _is_stored(scene, prefix):
            await figures.take(scene, ("warm, from S3", clients), "docker-registry", lambda: _pull(place.host, scene))
        figures.peaks["docker-registry"].append(place.peak)


async def _is_stored(scene: Scene, prefix: str) -> bool:
    """Wait until docker-registry has the blob in its bucket, where it commits by a copy; not for ever."""
    name = f"docker/registry/v2/blobs/sha256/*/{scene.digest.partition(':')[2]}/data"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(60):
            while not list(scene.root.glob(f"{prefix}/{name}")):  # noqa: ASYNC110  another process
                await asyncio.sleep(0.1)
        return True
    return False


async def _direct(scene: Scene, figures: Figures, clients: int, _folder: Path) -> None:
    await figures.take(scene, ("cold", clients), "direct", lambda: _pull(scene.upstream, scene))


def _tables(figures: Figures) -> list[Table]:
    table = Table("case", "clients", "contender", "seconds", "spread", "MiB/s", "ratio", "x from upstream")
    for case, contenders in figures.seconds.items():
        base = statistics.median(contenders[BASES[case[0]]])
        for name, seconds in contenders.items():
            middle = statistics.median(seconds)
            spread = f"{min(seconds):.2f}-{max(seconds):.2f}"
            speed = case[1] * SIZE / middle / 1024**2
            table.add_row(
                case[0], str(case[1]), name, f"{middle:.2f}", spread, f"{speed:.0f}", f"{middle / base:.2f}",
                f"{figures.upstream[case, name]:.2f}",
            )  # fmt: skip
        table.add_section()
    memory = Table("contender", "peak memory, MiB")
    for name, peaks in figures.peaks.items():
        memory.add_row(name, f"{max(peaks) / 1024**2:.0f}")
    return [table, memory]


@contextlib.asynccontextmanager
async def _bucket(folder: Path) -> AsyncIterator[str]:
    (folder / "buckets" / BUCKET).mkdir(parents=True)
    port = free_port()
    listen = ["--port", f"127.0.0.1:{port}", "--access", USER, "--secret", SECRET]
    async with process([str(built(PACKAGE, VERSION)), *listen, "posix", str(folder / "buckets")], port) as place:
        yield place.host


async def main() -> None:
    """Run every case against every contender, in turns, and print the tables."""
    console = Console()
    missing = what_is_missing()
    if missing is not None:
        console.print(f"{missing}: left out")
        return
    contenders = [_direct, _disk_alone, _with_a_bucket]
    if shutil.which("docker-registry"):
        contenders.append(_docker_registry)
    else:
        console.print("docker-registry is not installed (a Debian package of that name): left out")
    os.environ.update(KEYS)
    body, figures = os.urandom(SIZE), Figures()
    registry = Upstream(lambda path: body if "/blobs/" in path else b"{}")
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    server = await asyncio.start_server(registry, "127.0.0.1", 0)
    upstream = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with tempfile.TemporaryDirectory(prefix="bench-") as place, Progress(console=console) as progress:
        async with _bucket(Path(place)) as bucket:
            scene = Scene(registry, upstream, digest, bucket, Path(place) / "buckets" / BUCKET)
            step = progress.add_task("pulling", total=2 * REPEATS * len(contenders))
            for clients in (1, MANY):
                for _ in range(REPEATS):
                    for contender in contenders:
                        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                            await contender(scene, figures, clients, Path(folder))
                        progress.advance(step)
    server.close()
    for table in _tables(figures):
        console.print(table)


if __name__ == "__main__":
    asyncio.run(main())
