"""Whether an upstream answers at all: its circuit breaker, and the question of our own that opens and closes it."""

import asyncio
import time

from proxy.egress import Egress
from proxy.oci.errors import OciError, Problem
from proxy.oci.retry import Breaker

PROBE_BUDGET = 2.5  # seconds to find out whether it was one question that failed, or upstream does not answer at all


class Outage:
    """Spares an upstream that is down, and its clients the waiting."""

    def __init__(self, registry: str, egress: Egress) -> None:
        self._registry = registry
        self._egress = egress
        self._breaker = Breaker(first=1.0, longest=8.0)
        self._probe: asyncio.Task[None] | None = None

    async def aclose(self) -> None:
        """Give up the question in flight."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait({self._probe})

    async def admit(self, *, is_patient: bool) -> None:
        """Let a request pass, unless upstream is known not to answer; who is not patient waits for no probe.

        Raises OciError UPSTREAM_PAUSED.
        """
        if not self._breaker.is_open:
            return
        probe = self._probe
        if probe is None and self._breaker.admit(time.monotonic()):
            probe = self._start_probe()
        if probe is not None and is_patient:
            await asyncio.wait({probe})
        if self._breaker.is_open:
            is_looking = probe is not None and not probe.done()  # and will soon know better
            wait = PROBE_BUDGET if is_looking else self._breaker.reopens_in(time.monotonic())
            raise OciError(Problem.UPSTREAM_PAUSED, f"{self._registry} does not answer", retry_after=wait)

    def answered(self) -> None:
        """Upstream has answered, whatever it said."""
        self._breaker.succeeded()

    async def failed(self) -> None:
        """One question failed: see whether upstream answers any, before others are kept from asking theirs."""
        if not self._breaker.is_open:
            await asyncio.wait({self._probe or self._start_probe()})

    def _start_probe(self) -> asyncio.Task[None]:
        self._probe = asyncio.create_task(self._look())
        return self._probe

    async def _look(self) -> None:
        """Ask for /v2/, a question of our own that no client can make hang; any answer at all will do."""
        try:
            async with asyncio.timeout(PROBE_BUDGET):
                (await self._egress.ping()).close()
        except (OciError, TimeoutError) as error:
            if not isinstance(error, OciError) or error.problem is not Problem.OVERLOADED:
                self._breaker.failed(time.monotonic())
        else:
            self._breaker.succeeded()
        finally:
            self._probe = None
