"""Origins to which no connection comes about: left alone for a while, then tried by one request."""

import time

from cachetools import LRUCache
from yarl import URL

from proxy.oci.errors import OciError, Problem
from proxy.oci.retry import Breaker

FAILURES = 3  # in a row, before an origin is left alone
MOST = 1024  # origins remembered: upstream can name any number of them


class _Origin:
    def __init__(self) -> None:
        self.breaker = Breaker(first=1.0, longest=8.0)
        self.failures = 0


class Pauses:
    """A circuit breaker for each origin besides the upstream's own: storage and token services."""

    def __init__(self) -> None:
        self._origins: LRUCache[URL, _Origin] = LRUCache(MOST)

    def admit(self, origin: URL) -> None:
        """Let a request pass, or raise OciError UPSTREAM_PAUSED; the first one after a pause tries for all."""
        one = self._origins.get(origin)
        now = time.monotonic()
        if one is not None and not one.breaker.admit(now):
            raise OciError(
                Problem.UPSTREAM_PAUSED,
                f"{origin.host} could not be reached {one.failures} times in a row, and is left alone for now",
                retry_after=one.breaker.reopens_in(now),
            )

    def failed(self, origin: URL) -> None:
        """No connection came about."""
        one = self._origins.setdefault(origin, _Origin())
        one.failures += 1
        if one.failures >= FAILURES:
            one.breaker.failed(time.monotonic())

    def succeeded(self, origin: URL) -> None:
        """There was an answer, whatever it said."""
        self._origins.pop(origin, None)

    def forget(self) -> None:
        """Begin anew: what was in the way may be gone."""
        self._origins.clear()
