"""What credentials are asked of, made small: services, sources, a clock."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

import structlog
from aiohttp import web
from yarl import URL

from proxy.credentials.base import Credential, Issued
from proxy.telemetry import Logger


@dataclass(frozen=True)
class Asked:
    """A request that a service got."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: str


class Service:
    """An HTTP service that answers what `answer` says, and keeps what it was asked."""

    def __init__(self, answer: Callable[[Asked], web.Response]) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.url = URL()

    async def handle(self, request: web.BaseRequest) -> web.Response:
        asked = Asked(request.method, request.path, request.query, request.headers, await request.text())
        self.asked.append(asked)
        return self.answer(asked)


@contextlib.asynccontextmanager
async def serving(answer: Callable[[Asked], web.Response]) -> AsyncIterator[Service]:
    """A service on a free port of this machine."""
    service = Service(answer)
    runner = web.ServerRunner(web.Server(service.handle), shutdown_timeout=0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        service.url = URL(f"http://{host}:{port}")
        yield service
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def closed_port() -> AsyncIterator[URL]:
    """The URL of a service that has gone."""
    async with serving(lambda _: web.Response()) as service:
        url = service.url
    yield url


class Clock:
    """Monotonic seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Script:
    """A source that gives, or raises, what it is told to; where it says nothing new, the last thing again."""

    def __init__(self, *outcomes: Issued | Exception) -> None:
        self.outcomes = list(outcomes)
        self.asked = 0

    async def fetch(self) -> Issued:
        self.asked += 1
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def issued(secret: str, life: float | None = None) -> Issued:
    """A credential with this secret."""
    return Issued(Credential("me", secret), life)


def recording() -> tuple[Logger, list[structlog.typing.EventDict]]:
    """A logger, and the lines that it got."""
    capture = structlog.testing.LogCapture()
    logger: Logger = structlog.wrap_logger(structlog.ReturnLogger(), processors=[capture])
    return logger, capture.entries
