"""A small registry with a generated image, a cache in front of it, and the pulls that show what the cache does."""

import asyncio
import contextlib
import hashlib
import json
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from proxy.app import build
from proxy.config import Config
from proxy.oci.digest import Digest
from proxy.oci.manifest import OCI_MANIFEST
from proxy.sections.server import Server
from proxy.sections.store import Store
from proxy.sections.upstream import Upstream
from proxy.serving import bind, listening
from proxy.telemetry import Metrics, quiet
from proxy.values import Listen

REPOSITORY = "demo/image"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to pull: clients at once, layers, bytes a layer."""

    clients: int
    layers: int
    layer_size: int


@dataclass(slots=True)
class Registry:
    """An upstream that serves one image and counts what it is asked for."""

    contents: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    requests: int = 0
    sent: int = 0

    def add(self, kind: str, media_type: str, body: bytes) -> dict[str, object]:
        """Keep content, and describe it (image-spec, "Descriptors")."""
        digest = str(Digest.of(body))
        self.contents[f"/v2/{REPOSITORY}/{kind}/{digest}"] = (media_type, body)
        return {"mediaType": media_type, "digest": digest, "size": len(body)}

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        self.requests += 1
        media_type, body = self.contents.get(request.path, ("", b""))
        if not media_type:
            return web.Response(status=404)
        headers = {"Content-Type": media_type, "Docker-Content-Digest": str(Digest.of(body))}
        if request.method == "GET":
            self.sent += len(body)
        return web.Response(body=body, headers=headers)


@dataclass(frozen=True, slots=True)
class Pull:
    """What a pull, or several at once, took."""

    name: str
    clients: int
    seconds: float
    received: int
    requests: int
    upstream: int


async def run(plan: Plan, console: Console) -> None:
    """Do it all, and print a table."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="entrepot-demo-") as folder,
        Progress(*columns, console=console) as progress,
    ):
        step = progress.add_task("generating an image", total=None)

        def say(what: str) -> None:
            progress.update(step, description=what)

        pulls = await _pulls(plan, Path(folder), say)
        progress.update(step, description="done")
    console.print(_table(pulls))
    console.print(
        f"{plan.clients} clients at once took the image from upstream once. Every byte was held against its digest; "
        "the last pull was made with upstream stopped."
    )


async def _pulls(plan: Plan, folder: Path, say: Callable[[str], None]) -> list[Pull]:
    registry = Registry()
    await asyncio.to_thread(generate, registry, plan)
    async with contextlib.AsyncExitStack() as stack:
        upstream_stack = await stack.enter_async_context(contextlib.AsyncExitStack())
        upstream = bind(Listen(host="127.0.0.1", port=0), "demo")
        await upstream_stack.enter_async_context(listening(registry, upstream, Server().client_stall_timeout))
        url = f"http://127.0.0.1:{upstream.getsockname()[1]}"
        cold = await stack.enter_async_context(_cache(folder / "one", url))
        herd = await stack.enter_async_context(_cache(folder / "many", url))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)
        )
        done = []
        for name, base, clients in (
            ("without the cache", url, 1),
            ("cold", cold, 1),
            ("warm", cold, 1),
            ("cold, all at once", herd, plan.clients),
            ("warm, all at once", herd, plan.clients),
        ):
            say(name)
            done.append(await _timed(registry, name, clients, partial(_pull, session, base)))
        await upstream_stack.aclose()
        say("upstream stopped")
        done.append(await _timed(registry, "upstream stopped", 1, partial(_pull, session, herd)))
        return done


def generate(registry: Registry, plan: Plan) -> None:
    """Give a registry an image, under the tag "latest"."""
    layers = [registry.add("blobs", LAYER_TYPE, secrets.token_bytes(plan.layer_size)) for _ in range(plan.layers)]
    config = registry.add("blobs", CONFIG_TYPE, json.dumps({"architecture": "amd64", "os": "linux"}).encode())
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}
    body = json.dumps(manifest).encode()
    registry.add("manifests", OCI_MANIFEST, body)
    registry.contents[f"/v2/{REPOSITORY}/manifests/latest"] = (OCI_MANIFEST, body)


@contextlib.asynccontextmanager
async def _cache(folder: Path, url: str) -> AsyncIterator[str]:
    """A whole cache in this process; yields its URL. Tags are fresh for no time at all: each pull asks upstream."""
    config = Config(
        server=Server(listen=Listen(host="127.0.0.1", port=0)),
        store=Store(path=folder),
        upstream=(Upstream(registry="demo.example", url=url, default=True, tag_ttl=0),),
    )
    sock = bind(config.server.listen, "demo")
    stall = config.server.client_stall_timeout
    async with build(config, quiet(), Metrics(CollectorRegistry())) as app, listening(app.handlers, sock, stall):
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


async def _timed(registry: Registry, name: str, clients: int, pull: Callable[[], Awaitable[int]]) -> Pull:
    requests, sent, began = registry.requests, registry.sent, time.perf_counter()
    received = sum(await asyncio.gather(*(pull() for _ in range(clients))))
    seconds = time.perf_counter() - began
    return Pull(name, clients, seconds, received, registry.requests - requests, registry.sent - sent)


async def _pull(session: aiohttp.ClientSession, base: str) -> int:
    """Pull the image as a client does: the tag, then what it names, side by side. Returns bytes."""
    async with session.get(f"{base}/v2/{REPOSITORY}/manifests/latest", raise_for_status=True) as response:
        body = await response.read()
    manifest = json.loads(body)
    sizes = await asyncio.gather(
        *(_fetch(session, base, blob["digest"]) for blob in [manifest["config"], *manifest["layers"]])
    )
    return len(body) + sum(sizes)


async def _fetch(session: aiohttp.ClientSession, base: str, digest: str) -> int:
    hasher, size = hashlib.sha256(), 0
    async with session.get(f"{base}/v2/{REPOSITORY}/blobs/{digest}", raise_for_status=True) as response:
        while chunk := await response.content.readany():
            hasher.update(chunk)
            size += len(chunk)
    if f"sha256:{hasher.hexdigest()}" != digest:
        raise RuntimeError(f"{digest} arrived with other bytes")
    return size


def _table(pulls: list[Pull]) -> Table:
    table = Table("pull", "clients", "seconds", "MiB/s", "upstream requests", "MiB from upstream")
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for pull in pulls:
        table.add_row(
            pull.name,
            str(pull.clients),
            f"{pull.seconds:.3f}",
            f"{pull.received / MIB / pull.seconds:,.0f}",
            str(pull.requests),
            f"{pull.upstream / MIB:,.1f}",
        )
    return table
