"""One process's server: its sockets, its signals, and how it ends."""

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client import CollectorRegistry

from proxy import files, nearby, repeats, trust
from proxy.admin import Admin
from proxy.advertising import advertised
from proxy.app import App, build
from proxy.certificates import Certificate
from proxy.config import Config, ConfigError
from proxy.stores.directory import open_tree
from proxy.telemetry import Logger, Metrics
from proxy.tls import Session
from proxy.values import Listen

THREADS = 32  # for file calls; the network needs none
KEEPALIVE = 75.0  # seconds; aiohttp's own default here is an hour
MAX_LINE = 8190  # bytes of a request line or header
BACKLOG = 1024
FLUSH = 0.02  # seconds between looks at what connections have yet to send, at the end


def bind(listen: Listen, key: str) -> socket.socket:
    """Open a listening socket. Raises ConfigError, naming the key."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    try:
        sock = socket.create_server((listen.host, listen.port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]  # what follows repeats the address
        raise ConfigError([f"{key}: cannot listen on {listen} ({reason}); choose another address"]) from None
    sock.setblocking(False)
    return sock


def _let_go_of_idle(sock: socket.socket, stall: float) -> None:
    """Have the kernel drop the connections of a listening socket whose clients take nothing of what was sent.

    While a body is sent we see to that; a connection that was closed with bytes left to send is waited for by nobody.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(2**31 - 1, int(2 * stall * 1000)))


def _without_noise() -> logging.Logger:
    """aiohttp's logger, without a traceback for every client that does not speak HTTP: a 400 is all it gets."""
    logger = logging.getLogger("aiohttp.server").getChild("entrepot")
    logger.filters[:] = [lambda record: not isinstance((record.exc_info or (None, None))[1], HttpProcessingError)]
    return logger


@dataclass(frozen=True, slots=True)
class Listener:
    """A server on its socket."""

    site: web.SockSite
    server: web.Server

    async def flushed(self) -> None:
        """Wait until clients have been sent all that was handed to their connections: asyncio tells nobody of that."""
        while any(one.transport and one.transport.get_write_buffer_size() for one in self.server.connections):  # noqa: ASYNC110
            await asyncio.sleep(FLUSH)


class _Server(repeats.Server):
    """Speaks HTTP, over TLS if it has a context; `system`: the congestion control of clients that are elsewhere."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Any],
        context: ssl.SSLContext | None,
        system: bytes | None,
        **settings: Any,
    ) -> None:
        super().__init__(handler, **settings)
        self._context = context
        self._system = system

    def __call__(self) -> asyncio.Protocol:  # type: ignore[override]  # aiohttp hands it to the event loop, and no more
        protocol: asyncio.Protocol = super().__call__()
        if self._context is not None:
            protocol = Session(protocol, self._context)
        return protocol if self._system is None else nearby.Arrival(protocol, self._system)


@contextlib.asynccontextmanager
async def listening(
    handler: Callable[[web.BaseRequest], object],
    sock: socket.socket,
    stall: float,
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[Listener]:
    """Serve HTTP on a socket. Requests that are still going on at the end are cancelled.

    `stall`: seconds for which a client may take nothing; the kernel gives it twice that.
    """
    _let_go_of_idle(sock, stall)
    server = _Server(
        handler,
        context,
        nearby.begin_unpaced(sock),
        handler_cancellation=True,
        logger=_without_noise(),
        access_log=None,
        keepalive_timeout=KEEPALIVE,
        auto_decompress=False,
        max_line_size=MAX_LINE,
        max_field_size=MAX_LINE,
    )
    runner = web.ServerRunner(server, shutdown_timeout=0.5)
    await runner.setup()
    try:
        site = web.SockSite(runner, sock, backlog=BACKLOG)
        await site.start()
        yield Listener(site, server)
    finally:
        await runner.cleanup()


class Signals:
    """SIGTERM and SIGINT: the first asks to drain, the second to stop at once."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.now = asyncio.Event()
        self.is_impatient = False
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.received)
        loop.add_signal_handler(signal.SIGINT, self.received, True)

    def received(self, from_a_terminal: bool = False) -> None:
        """Note one signal more."""
        self.is_impatient = self.is_impatient or from_a_terminal
        (self.now if self.stop.is_set() else self.stop).set()


async def serve(
    config: Config, log: Logger, sock: socket.socket, admin: socket.socket | None, signals: Signals
) -> None:
    """Run one process until it is told to stop, then drain. Raises ConfigError, UnsafeDirectory, OSError."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="files"))
    registry = CollectorRegistry()
    certificate = _certificate(config)
    stall = config.server.client_stall_timeout
    async with contextlib.AsyncExitStack() as stack:
        app = await stack.enter_async_context(build(config, log, Metrics(registry)))
        if admin is not None:
            await stack.enter_async_context(
                listening(Admin(config.admin, registry, app.limits, app.desk), admin, stall)
            )
        context = None if certificate is None else certificate.context
        listener = await stack.enter_async_context(listening(app.handlers, sock, stall, context))
        works = [app.housekeeping.run(certificate), app.jobs.run(), app.recorder.run()]
        if app.shared is not None:
            leases = app.shared.replicas.leases
            leases.introduce(
                advertised(config.server, sock), lambda: None if certificate is None else certificate.fingerprint
            )
            works += [app.shared.uploads.run(), leases.run()]
        for work in works:
            stack.callback(asyncio.create_task(work).cancel)
        _announce(config, log, sock, admin)
        app.handlers.is_ready = True
        await signals.stop.wait()
        await _drain(config, log, app, listener, signals)


async def rehearse(config: Config) -> None:
    """Raise what `serve` would raise: a supervisor says it once, and not a worker a second for ever."""
    _certificate(config)
    if found := await files.hop(trust.problems, config):
        raise ConfigError(found)
    (await files.hop(open_tree, config.store.path)).close()


def _certificate(config: Config) -> Certificate | None:
    server = config.server
    if server.tls_certificate is None or server.tls_key is None:
        return None
    return Certificate(server.tls_certificate, server.tls_key)


def _announce(config: Config, log: Logger, sock: socket.socket, admin: socket.socket | None) -> None:
    for upstream in config.upstream:
        if upstream.url.startswith("http://"):
            log.warning("upstream without TLS", upstream=upstream.registry, url=upstream.url)
        if upstream.sealed:
            log.info("upstream sealed", upstream=upstream.registry)
        if upstream.insecure:
            log.warning(
                "upstream not verified", upstream=upstream.registry, url=upstream.url,
                remedy="set ca_file instead of insecure = true",
            )  # fmt: skip
    log.info(
        "serving",
        listen=address(sock),
        admin=None if admin is None else address(admin),
        tls=config.server.tls_certificate is not None,
        store=str(config.store.path),
        upstreams=[upstream.registry for upstream in config.upstream],
    )


def address(sock: socket.socket) -> str:
    """Where a socket listens."""
    host, port = sock.getsockname()[:2]
    return str(Listen(host=host, port=port))


async def _drain(config: Config, log: Logger, app: App, listener: Listener, signals: Signals) -> None:
    """Readiness first, then the listener, then what is being sent; a second signal cuts it short."""
    app.handlers.is_ready = False
    log.info("draining", requests=app.handlers.active)
    if not signals.is_impatient:
        await _unless(signals.now, config.server.lb_delay, signals.now.wait())
    await listener.site.stop()

    async def sent() -> None:
        await app.handlers.idle()
        await listener.flushed()

    await _unless(signals.now, config.server.drain_timeout, sent())
    log.info("stopping", requests=app.handlers.active)


async def _unless(now: asyncio.Event, seconds: float, wait: Coroutine[Any, Any, object]) -> None:
    """Wait for something, but not for longer than `seconds`, nor once it has to be now."""
    tasks = {asyncio.create_task(wait), asyncio.create_task(now.wait())}
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
