"""A cold pull over a WAN, with Entrepot in between and without, in one run: see README.md.

What it alone asks: what it costs that blobs are redirected to another host behind the link; what a whole image, three
blobs at a time, gains where each connection is capped (cases/capped.py has one layer); and, by --trace, when each
request set out. It takes neither root nor containerd, as cases/image.py does.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

import aiohttp
from aiohttp import web
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from yarl import URL

from benchmarks.link import Link
from benchmarks.servers import free_port, process
from benchmarks.wire import Wire, child, linked, told

MIB = 1024 * 1024
CHUNK = 64 * 1024  # bytes
CAP = 6e6 / 8  # bytes a second of one connection, where there is a cap: eight fill the link
REPOSITORY = "library/bench"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
AT_ONCE = 3  # downloads, as Docker has it
MOST = 1.03  # times as long as directly, where a connection may take all of the link
LEAST = 3.0  # times as fast as directly, where it may not, and eight are allowed
WASTE = 1.02  # times an image's bytes, headers included


@dataclass(frozen=True)
class Content:
    """A blob or a manifest."""

    kind: str
    body: bytes
    digest: str

    @classmethod
    def of(cls, kind: str, body: bytes) -> "Content":
        """Bytes of a media type."""
        return cls(kind, body, f"sha256:{hashlib.sha256(body).hexdigest()}")

    @property
    def descriptor(self) -> dict[str, object]:
        """How a manifest names it."""
        return {"mediaType": self.kind, "digest": self.digest, "size": len(self.body)}


@dataclass(frozen=True)
class Image:
    """An image of random bytes: its contents by their paths."""

    contents: dict[str, Content]
    size: int

    @classmethod
    def of(cls, *layers: int) -> "Image":
        """One with layers of so many bytes."""
        config = Content.of("application/vnd.oci.image.config.v1+json", b'{"architecture":"amd64","os":"linux"}')
        blobs = [config, *(Content.of("application/vnd.oci.image.layer.v1.tar", os.urandom(size)) for size in layers)]
        named = {"config": config.descriptor, "layers": [blob.descriptor for blob in blobs[1:]]}
        manifest = Content.of(MANIFEST, json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, **named}).encode())
        contents = {f"blobs/{blob.digest}": blob for blob in blobs}
        contents |= {f"manifests/{name}": manifest for name in ("latest", manifest.digest)}
        return cls(contents, sum(len(content.body) for content in (*blobs, manifest)))


@dataclass(frozen=True)
class Way:
    """Directly, or through Entrepot, with so many connections allowed for a blob (None: its default)."""

    name: str
    is_direct: bool = False
    connections: int | None = None


DIRECT = Way("directly", is_direct=True)
THROUGH = Way("entrepot")
ONE, EIGHT = Way("entrepot, 1 connection", connections=1), Way("entrepot, 8 connections", connections=8)


@dataclass(frozen=True)
class Case:
    """What is pulled over which link, in which ways, and how often."""

    name: str
    image: Image
    ways: tuple[Way, ...]
    repeats: int
    cap: float = 0.0
    redirects: bool = False


@dataclass(frozen=True)
class Result:
    """What one pull took, and what was brought for it over the link as a multiple of the image."""

    seconds: float
    brought: float


# Upstreams


@contextlib.asynccontextmanager
async def _docker_registry(image: Image, folder: Path) -> AsyncIterator[int]:
    """Debian's docker-registry with the image in it."""
    port = free_port()
    config = folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {folder / 'content'} }} }}\n"
        f"http: {{ addr: '127.0.0.1:{port}', secret: made-up }}\n"
    )
    async with process(["docker-registry", "serve", str(config)], port), aiohttp.ClientSession() as session:
        for path, content in image.contents.items():
            await _push(session, f"http://127.0.0.1:{port}/v2/{REPOSITORY}/", path, content)
        yield port


async def _push(session: aiohttp.ClientSession, base: str, path: str, content: Content) -> None:
    place, query = urljoin(base, path), {}
    if path.startswith("blobs/"):
        async with session.post(urljoin(base, "blobs/uploads/"), raise_for_status=True) as response:
            place, query = response.headers["Location"], {"digest": content.digest}
    target = URL(place).update_query(query)
    async with session.put(target, data=content.body, headers={"Content-Type": content.kind}, raise_for_status=True):
        pass


async def _send(request: web.Request, content: Content) -> web.StreamResponse:
    """A document, or the part of it that is asked for."""
    body = content.body
    start, stop, _ = request.http_range.indices(len(body))
    headers = {"Content-Type": content.kind, "Docker-Content-Digest": content.digest}
    headers["Content-Length"] = str(stop - start)
    if is_part := "Range" in request.headers:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
    response = web.StreamResponse(status=206 if is_part else 200, headers=headers)
    await response.prepare(request)
    if request.method == "GET":
        with contextlib.suppress(ConnectionError):  # who has enough of it by this connection asks by others
            for offset in range(start, stop, CHUNK):
                await response.write(body[offset : min(stop, offset + CHUNK)])
    return response


@contextlib.asynccontextmanager
async def _memory(image: Image, *, redirects: bool) -> AsyncIterator[int]:
    """A registry in memory; with redirects, its blobs are at another host, behind the same link."""

    async def answer(request: web.Request) -> web.StreamResponse:
        path = "/".join(request.path.rsplit("/", 2)[-2:])
        if path not in image.contents:
            return web.Response(status=404)
        if redirects and path.startswith("blobs/") and request.path.startswith("/v2/"):
            elsewhere = f"http://localhost:{request.host.rpartition(':')[2]}/storage/{path}?signature=made-up"
            return web.Response(status=307, headers={"Location": elsewhere})
        return await _send(request, image.contents[path])

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def _upstream(case: Case, folder: Path) -> AbstractAsyncContextManager[int]:
    if case.redirects or not shutil.which("docker-registry"):
        return _memory(case.image, redirects=case.redirects)
    return _docker_registry(case.image, folder)


# What is in between


@contextlib.asynccontextmanager
async def _entrepot(upstream: int, way: Way, folder: Path) -> AsyncIterator[int]:
    """Entrepot with an empty cache."""
    config = folder / "proxy.toml"
    allowed = f"connections_per_blob = {way.connections}\n" if way.connections is not None else ""
    config.write_text(
        'server = { listen = "127.0.0.1:0", lb_delay = "0s" }\nadmin.listen = "127.0.0.1:0"\nlog.format = "json"\n'
        f'store.path = "{folder / "cache"}"\n'
        f'[[upstream]]\nregistry = "docker.io"\nurl = "http://127.0.0.1:{upstream}"\n'
        f'private_networks = ["127.0.0.0/8"]\n{allowed}'
    )
    async with child([sys.executable, "-m", "proxy", "serve", "--config", str(config)]) as process:
        serving = await told(process, "serving")
        yield int(serving["listen"].rpartition(":")[2])


# The pull


async def _pull(port: int, image: Image) -> float:
    """Pull as containerd does: HEAD the tag, GET the manifest, then all that it names, over connections that are kept.

    Returns seconds.
    """
    base = f"http://127.0.0.1:{port}/v2/{REPOSITORY}/"
    began = time.perf_counter()
    places = asyncio.Semaphore(AT_ONCE)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None), raise_for_status=True) as session:
        async with session.head(f"{base}manifests/latest", headers={"Accept": MANIFEST}) as response:
            digest = response.headers["Docker-Content-Digest"]
        async with session.get(f"{base}manifests/{digest}", headers={"Accept": MANIFEST}) as response:
            manifest = json.loads(await response.read())
        blobs = [manifest["config"], *manifest["layers"]]
        sizes = await asyncio.gather(*(_fetch(session, base, blob["digest"], blob["size"], places) for blob in blobs))
    taken = time.perf_counter() - began
    expected = sum(len(content.body) for path, content in image.contents.items() if path.startswith("blobs/"))
    if sum(sizes) != expected:
        raise RuntimeError(f"{sum(sizes)} bytes of {expected} arrived")
    return taken


async def _fetch(session: aiohttp.ClientSession, base: str, digest: str, size: int, places: asyncio.Semaphore) -> int:
    """Fetch a blob, from where it broke off if it does, and hold it against its digest."""
    hasher, done = hashlib.sha256(), 0
    async with places:
        while done < size:
            headers = {"Range": f"bytes={done}-"} if done else {}
            with contextlib.suppress(aiohttp.ClientPayloadError):
                async with session.get(f"{base}blobs/{digest}", headers=headers) as response:
                    while chunk := await response.content.readany():
                        hasher.update(chunk)
                        done += len(chunk)
    if f"sha256:{hasher.hexdigest()}" != digest:
        raise RuntimeError(f"{digest} arrived with other bytes")
    return done


# The cases


def _cases() -> list[Case]:
    large, small = Image.of(40 * MIB, MIB, MIB // 4), Image.of(24 * MIB, MIB, MIB // 4)
    return [
        Case("no cap", large, (DIRECT, THROUGH), 3),
        Case("no cap, redirected to storage", large, (DIRECT, THROUGH), 2, redirects=True),
        Case("6 Mbit/s a connection", small, (DIRECT, EIGHT), 2, cap=CAP),
        Case("the same, one connection", small, (ONE,), 1, cap=CAP),
    ]


async def _once(case: Case, way: Way, upstream: int, trace: Console | None) -> Result:
    """One cold pull over a link of its own."""
    async with linked(Link(upstream, case.cap)) as wire:
        if way.is_direct:
            began, seconds = time.monotonic(), await _pull(wire.port, case.image)
        else:
            with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                async with _entrepot(wire.port, way, Path(folder)) as port:
                    began, seconds = time.monotonic(), await _pull(port, case.image)
        brought = await wire.take_down()
    if trace is not None:
        trace.print(
            _timeline(f"{case.name}, {way.name}: {seconds:.3f} s", wire, began), soft_wrap=True, highlight=False
        )
    return Result(seconds, brought / case.image.size)


async def _runs(case: Case, progress: Progress, trace: Console | None) -> dict[Way, list[Result]]:
    """The ways of a case, in turns."""
    runs: dict[Way, list[Result]] = {way: [] for way in case.ways}
    step = progress.add_task(case.name, total=case.repeats * len(runs))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        async with _upstream(case, Path(folder)) as upstream:
            for _ in range(case.repeats):
                for way, results in runs.items():
                    results.append(await _once(case, way, upstream, trace))
                    progress.advance(step)
    return runs


def _timeline(title: str, wire: Wire, began: float) -> str:
    """When each request set out, in milliseconds after the pull began."""
    lines = [
        f"{1000 * (line['at'] - began):7.0f} ms  connection {line['connection']:<3} {line['what']}"
        for line in wire.said
        if line["event"] == "request"
    ]
    return "\n".join([title, *lines])


def _median(results: list[Result]) -> Result:
    return Result(
        statistics.median(result.seconds for result in results), statistics.median(result.brought for result in results)
    )


def _missed(medians: dict[str, dict[Way, Result]]) -> list[str]:
    """The goals that were not reached."""
    free, capped = medians["no cap"], medians["6 Mbit/s a connection"]
    slower, faster = free[THROUGH].seconds / free[DIRECT].seconds, capped[DIRECT].seconds / capped[EIGHT].seconds
    most = max(result.brought for ways in medians.values() for result in ways.values())
    return [
        what
        for is_missed, what in (
            (slower > MOST, f"without a cap it took {slower:.3f} times as long as directly, and may take {MOST}"),
            (faster < LEAST, f"with eight connections it was {faster:.2f} times as fast, and has to be {LEAST}"),
            (most > WASTE, f"{most:.2f} times an image's bytes came over the link, and {WASTE} may"),
        )
        if is_missed
    ]


def _table(medians: dict[str, dict[Way, Result]]) -> Table:
    table = Table("link", "pulled", "seconds", "x direct", "x from upstream")
    direct = 0.0
    for case, ways in medians.items():
        direct = ways[DIRECT].seconds if DIRECT in ways else direct
        for way, result in ways.items():
            ratio = f"{result.seconds / direct:.3f}" if direct else "-"  # only this case was asked for
            table.add_row(case, way.name, f"{result.seconds:.2f}", ratio, f"{result.brought:.3f}")
        table.add_section()
    return table


async def main() -> int:
    """Run every case, print the table, and say which goals were missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="end with status 1 if a goal is missed")
    parser.add_argument("--trace", action="store_true", help="print when each request set out over the link")
    parser.add_argument("--case", default="", help="only the cases whose name contains this; nothing is checked then")
    given = parser.parse_args()
    console, medians = Console(), {}
    with Progress(console=console) as progress:
        for case in _cases():
            if given.case in case.name:
                runs = await _runs(case, progress, console if given.trace else None)
                medians[case.name] = {way: _median(results) for way, results in runs.items()}
    console.print(_table(medians))
    missed = [] if given.case else _missed(medians)
    for what in missed:
        console.print(f"goal missed: {what}")
    return 1 if missed and given.check else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
