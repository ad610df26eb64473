"""The proxy under test: whole, in this process or in its own, on a free port, with a store of its own."""

import asyncio
import contextlib
import io
import json
import os
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from proxy.app import App, build
from proxy.config import Config, load
from proxy.serving import Listener, bind, listening
from proxy.telemetry import Metrics, make_logger
from proxy.values import Listen

from .raw_client import RawAnswer, ask, connect

DEADLINE = 25.0  # seconds until a condition that should come true is given up


async def until(condition: Callable[[], bool], what: str = "the condition") -> None:
    """Wait until something is so: looked at often, and given up with a word."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DEADLINE):
            while not condition():  # noqa: ASYNC110  many things are waited for, few have an event
                await asyncio.sleep(0.005)
    assert condition(), what


class Clock:
    """The monotonic clock of one module, a breaker's: it hardly moves until told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
        self.now = 1000.0
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=self.monotonic, time=time.time))

    def monotonic(self) -> float:
        """A moment later than the last time."""
        self.now += 1e-6
        return self.now


def blob_path(store: Path, digest: str) -> Path:
    """Where a store has a blob."""
    algorithm, _, encoded = digest.partition(":")
    return store / "blobs" / algorithm / encoded[:2] / encoded


def open_blobs(pid: int) -> list[str]:
    """What a process has open of blobs, stored or on their way in."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            links.append(os.readlink(entry))
    return [link for link in links if "/spool/" in link or "/blobs/" in link]


def toml(upstream: str, *, more: str = "", server: str = "", store: str = "", registry: str = "docker.io") -> str:
    """A configuration with one upstream, the default; `more` goes into its table, or starts tables of its own."""
    return "\n".join(
        [
            "[server]",
            'lb_delay = "0s"',
            server,
            "[store]",
            store,
            "[[upstream]]",
            f'registry = "{registry}"',
            f'url = "{upstream}"',
            "default = true",
            more,
        ]
    )


@dataclass
class Proxy:
    """A running proxy: where it is, what it holds, what it has logged."""

    host: str
    app: App
    config: Config
    store: Path
    metrics: Metrics
    log_stream: io.StringIO = field(repr=False)
    listener: Listener = field(repr=False)

    async def ask(self, method: str, target: str, headers: dict[str, str] | None = None) -> RawAnswer:
        """One request on a connection of its own, logged and counted when it returns; what came of a blob is published.

        The other end closes the connection once it has no more to do for it: the last byte may leave before that.
        """
        async with connect(self.host) as client:
            answer = await client.ask(method, target, {"Host": self.host, "Connection": "close", **(headers or {})})
            with contextlib.suppress(ConnectionResetError):
                await client.reader.read()
        await until(lambda: not any(fill.spool.is_right for fill in self.app.blobs._fills.values()), "publication")
        return answer

    async def get(self, target: str, headers: dict[str, str] | None = None) -> RawAnswer:
        """GET."""
        return await self.ask("GET", target, headers)

    async def head(self, target: str, headers: dict[str, str] | None = None) -> RawAnswer:
        """HEAD."""
        return await self.ask("HEAD", target, headers)

    @property
    def log(self) -> list[dict[str, Any]]:
        """The records logged so far."""
        return [json.loads(line) for line in self.log_stream.getvalue().splitlines()]

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The access log."""
        return [record for record in self.log if record["event"] == "request"]

    def blobs(self) -> list[str]:
        """The digests that are stored."""
        return sorted(f"{p.parent.parent.name}:{p.name}" for p in (self.store / "blobs").glob("*/*/*"))

    def spools(self) -> list[Path]:
        """The downloads that are going on, or were left."""
        return sorted((self.store / "spool").iterdir())

    def blob_path(self, digest: str) -> Path:
        """Where a blob is stored."""
        return blob_path(self.store, digest)

    async def settled(self) -> None:
        """Wait until no fill and no request is going on."""
        async with asyncio.timeout(DEADLINE):
            await self.app.blobs.idle()
            await self.app.handlers.idle()


@contextlib.asynccontextmanager
async def running(
    text: str,
    store: Path,
    *,
    tls: ssl.SSLContext | None = None,
    alone: bool = True,
    environ: dict[str, str] | None = None,
) -> AsyncIterator[Proxy]:
    """A whole proxy in this process; checks on leaving that it has left nothing behind.

    With another one on the same store the check is the outer one's business: `alone=False` for the inner one.
    """
    path = store.parent / f"{store.name}.toml"
    path.write_text(text)
    config = await asyncio.to_thread(load, path, {"ENTREPOT_STORE_PATH": str(store), **(environ or {})})
    stream = io.StringIO()
    metrics = Metrics(CollectorRegistry())
    sock = bind(Listen(host="127.0.0.1", port=0), "server.listen")
    with contextlib.closing(sock):
        async with (
            build(config, make_logger("json", "debug", stream), metrics) as app,
            listening(app.handlers, sock, config.server.client_stall_timeout, tls) as listener,
        ):
            app.handlers.is_ready = True
            host = f"127.0.0.1:{sock.getsockname()[1]}"
            yield Proxy(host, app, config, store, metrics, stream, listener)
    assert "a defect" not in stream.getvalue(), stream.getvalue()
    if alone:
        await until(lambda: not _tasks_of_ours(), "tasks are left")
        await until(lambda: not _open_below(store), f"descriptors are left: {_open_below(store)}")
        assert not list((store / "tmp").glob("*")), "temporary files are left"


def _tasks_of_ours() -> list[str]:
    """The tasks that run the product's code, or aiohttp's for it; the fake upstream and the test have their own."""
    codes = [getattr(task.get_coro(), "cr_code", None) for task in asyncio.all_tasks()]
    names = [code.co_filename for code in codes if code is not None]
    return [name for name in names if "/proxy/" in name or "/aiohttp/" in name]


def _open_below(store: Path) -> list[str]:
    """The files of a store that this process has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [path for path in found if path.startswith(str(store))]


@dataclass
class Process:
    """A proxy in a process of its own."""

    process: asyncio.subprocess.Process
    host: str
    admin: str
    store: Path
    lines: list[dict[str, Any]] = field(repr=False)
    noise: list[str] = field(repr=False)  # what it says that is no record of its log

    async def get(self, target: str, headers: dict[str, str] | None = None) -> RawAnswer:
        """GET on a connection of its own."""
        return await ask(self.host, "GET", target, {"Host": self.host, "Connection": "close", **(headers or {})})

    async def published(self, *digests: str) -> None:
        """Wait until blobs are stored: who asks for them has them before."""
        await until(lambda: all(blob_path(self.store, digest).exists() for digest in digests), "they are published")

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and wait for the end."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(DEADLINE):
            return await self.process.wait()

    async def metrics(self) -> str:
        """What Prometheus would read."""
        async with aiohttp.ClientSession() as session, session.get(f"http://{self.admin}/metrics") as response:
            return await response.text()


@contextlib.asynccontextmanager
async def serving(text: str, store: Path, *, environ: dict[str, str] | None = None) -> AsyncIterator[Process]:
    """`entrepot serve` in a process of its own, killed on leaving if it still runs."""
    path = store.parent / f"{store.name}.toml"
    path.write_text(text)
    environment = {
        **os.environ,
        "ENTREPOT_STORE_PATH": str(store),
        "ENTREPOT_SERVER_LISTEN": "127.0.0.1:0",
        "ENTREPOT_ADMIN_LISTEN": "127.0.0.1:0",
        "ENTREPOT_LOG_FORMAT": "json",
        **(environ or {}),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", "serve", "--config", str(path), stderr=asyncio.subprocess.PIPE, env=environment
    )
    lines: list[dict[str, Any]] = []
    noise: list[str] = []
    reading = asyncio.create_task(_read_log(process, lines, noise))
    try:
        await until(lambda: process.returncode is not None or any(line["event"] == "serving" for line in lines))
        served = next((line for line in lines if line["event"] == "serving"), {"listen": "", "admin": ""})
        yield Process(process, served["listen"], served["admin"], store, lines, noise)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


async def _read_log(process: asyncio.subprocess.Process, lines: list[dict[str, Any]], noise: list[str]) -> None:
    assert process.stderr is not None
    while line := await process.stderr.readline():
        try:
            lines.append(json.loads(line))
        except ValueError:
            noise.append(line.decode())
