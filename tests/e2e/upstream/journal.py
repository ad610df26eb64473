"""What arrived and what was sent, and a way to wait until it has."""

import asyncio
from collections import Counter
from collections.abc import Callable

from .wire import Request

WITHIN = 25.0  # seconds until what should arrive is given up


class Changes:
    """Lets a test wait until something on a server holds."""

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    def story(self) -> str:
        """What has happened so far, for the test that waited in vain."""
        return "nothing"

    async def until(self, holds: Callable[[], object], *, within: float = WITHIN) -> None:
        """Wait until something holds, looking again whenever anything happens on the server."""
        try:
            async with asyncio.timeout(within):
                while not holds():
                    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._waiters.append(waiter)
                    await waiter
        except TimeoutError:
            raise AssertionError(f"not within {within} s; what arrived:\n{self.story()}") from None

    def changed(self) -> None:
        """Let everyone who waits look again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class Journal(Changes):
    """The record a test asserts on."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []
        """Every request, in order of arrival."""
        self.body_bytes_by_path: Counter[str] = Counter()
        """Body bytes handed to the kernel, by path without query."""
        self.in_flight = 0
        """Requests whose answer has not been sent to its end."""

    @property
    def body_bytes_sent(self) -> int:
        """Body bytes handed to the kernel, for all paths."""
        return self.body_bytes_by_path.total()

    def body_bytes_sent_for(self, path_contains: str) -> int:
        """Body bytes handed to the kernel, for the paths that contain a string."""
        return sum(sent for path, sent in self.body_bytes_by_path.items() if path_contains in path)

    def matching(self, method: str | None = None, path_contains: str | None = None) -> list[Request]:
        """The requests of a method whose path contains a string."""
        return [
            request
            for request in self.requests
            if method in (None, request.method) and (path_contains is None or path_contains in request.path)
        ]

    def count(self, method: str | None = None, path_contains: str | None = None) -> int:
        """How many such requests have arrived."""
        return len(self.matching(method, path_contains))

    async def seen(
        self, n: int = 1, *, method: str | None = None, path_contains: str | None = None, within: float = WITHIN
    ) -> list[Request]:
        """Wait until n such requests have arrived; AssertionError when they do not come."""
        await self.until(lambda: self.count(method, path_contains) >= n, within=within)
        return self.matching(method, path_contains)

    def story(self) -> str:
        """The requests so far, a line each."""
        return "\n".join(f"  {request.method} {request.target}" for request in self.requests)

    def _record(self, request: Request) -> None:
        self.requests.append(request)
        self.changed()

    def _sent(self, path: str, size: int) -> None:
        self.body_bytes_by_path[path] += size
        self.changed()
