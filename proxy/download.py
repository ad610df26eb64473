"""The transfer of one blob into its spool: resumed where upstream breaks off, each byte hashed as it is written."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable

from proxy.blob_stream import Interrupted, Rest
from proxy.eviction import STEP
from proxy.oci.errors import OciError, Problem
from proxy.oci.retry import pause
from proxy.origin import Incoming, Origin
from proxy.reservation import Reservation
from proxy.siphon import Siphon
from proxy.tee import Growth, Tee
from proxy.telemetry import Logger

ATTEMPTS = 5  # in a row that bring no byte, before giving up ...
PERSEVERANCE = 60.0  # ... or seconds without one
FAST = 100e6  # bytes a second, from which on a new connection for what comes next costs less than reading this one
GAUGED = 1024 * 1024  # bytes whose time is taken
WORTHWHILE = 8 * 1024 * 1024  # bytes that have to be left


class Gauge:
    """Whether bytes come fast: by the time that the last few of them took, which may have waited for us, and all."""

    def __init__(self) -> None:
        self._count = self._sum = 0
        self._since = self._began = time.monotonic()

    def is_fast(self, count: int) -> bool:
        """So many have come. True at the end of a stretch that was fast."""
        self._count += count
        if self._count < GAUGED:
            return False
        now = time.monotonic()
        self._sum += self._count
        rates = self._count / max(now - self._since, 1e-9), self._sum / max(now - self._began, 1e-9)
        self._count, self._since = 0, now
        return min(rates) >= FAST


class Download:
    """Brings a growth to its full size. `begin` is told the size, if known, before the first byte is announced."""

    def __init__(  # noqa: PLR0913  each of them by its name
        self,
        origin: Origin,
        growth: Growth,
        reservation: Reservation,
        *,
        expected: int | None,
        begin: Callable[[int | None], Awaitable[None]],
        announce: Callable[[int], None],
        log: Logger,
    ) -> None:
        self._origin = origin
        self._growth = growth
        self._reservation = reservation
        self._expected = expected
        self._begin = begin
        self._announce = announce
        self._log = log
        self._total: int | None = None  # bytes, once upstream has answered
        self._has_begun = False
        self._failures = 0
        self._since = time.monotonic()

    async def run(self) -> None:
        """Transfer, as often as it takes. Raises OciError, NoSpace, OSError."""
        self._reservation.check(self._expected or 0)
        while True:
            before = self._growth.done
            interruption = await self._transfer()
            if interruption is None:
                return
            await self._recover(interruption, self._growth.done > before)

    async def _transfer(self) -> str | None:
        """One request. Returns why there must be another; None when all has come."""
        digest = self._origin.digest
        try:
            async with self._origin.open(self._growth.done) as stream:
                await self._answered(stream)
                await self._pour(stream)
        except Interrupted as interruption:
            # aiohttp may complain though every byte has come: what the digest vouches for is whole.
            whole = self._total == self._growth.done or digest.matches(self._growth.hasher)
            return None if whole else str(interruption)
        except OciError as error:
            if not self._has_begun or is_invalid(error):
                raise
            self._failures -= error.problem is Problem.UPSTREAM_PAUSED  # it was not even asked
            return error.message
        return None if self._total in {None, self._growth.done} else "the body ended early"

    async def _recover(self, reason: str, has_progressed: bool) -> None:
        """Wait a little before the next request, or give up. Raises OciError."""
        if has_progressed:
            self._failures, self._since = 0, time.monotonic()
        elif self._total is not None and self._growth.done == self._total - 1:
            # As a cache does that has found the bytes to be wrong: they are not to be built upon.
            raise self._invalid("withholds the last byte of a blob")
        self._failures += 1
        registry = self._origin.name
        if self._failures >= ATTEMPTS or time.monotonic() - self._since > PERSEVERANCE:
            raise OciError(Problem.UPSTREAM_UNREACHABLE, f"{registry} broke off: {reason}")
        self._log.info("resuming", reason=reason, at=self._growth.done, size=self._total)
        await asyncio.sleep(pause(self._failures, secrets.SystemRandom().random()))

    async def _answered(self, stream: Incoming) -> None:
        """Upstream has answered: hold it to what is known, and let the readers in."""
        if self._total is None:
            self._total = stream.total if stream.total is not None else self._expected
        elif stream.total not in {None, self._total}:
            raise self._invalid("changed the size of a blob midway")
        if self._total is not None and self._growth.done > self._total:
            raise self._invalid("has less of a blob than has come of it")
        if not self._has_begun:
            await self._reserve(self._growth.done)
            await self._begin(self._total)
            self._has_begun = True
        self._announce(self._growth.done)

    async def _pour(self, stream: Incoming) -> None:
        """Take all that comes, hashed, written and announced. What came before a break is kept."""
        with contextlib.ExitStack() as stack:
            rest = await self._read(stream, stack)
            if rest is not None:
                await Siphon(self._growth, self._announce).run(rest, self._room)

    async def _read(self, stream: Incoming, stack: contextlib.ExitStack) -> Rest | None:
        """Take what comes, until it comes fast and may go straight into the file, which `stack` is to close then."""
        skip = self._growth.done - stream.start  # upstream may have answered a resume with the whole
        tee, gauge = Tee(self._growth, self._announce), Gauge()
        try:
            while data := memoryview(await stream.read()):
                skip, data = max(0, skip - len(data)), data[skip:]
                end = tee.end + len(data)
                if self._total is not None and end > self._total:
                    raise self._invalid("sent more of a blob than there is")
                if end > self._reservation.size:
                    await self._reserve(self._growth.done)
                await tee.put(data)
                is_worth_it = gauge.is_fast(len(data)) and not skip and self._left(tee.end) >= WORTHWHILE
                if is_worth_it and (rest := stream.rest()) is not None:
                    return stack.enter_context(contextlib.closing(rest))
        finally:
            await tee.flush()
        return None

    def _left(self, end: int) -> int:
        return 0 if self._total is None else self._total - end

    async def _room(self, offset: int) -> int:
        """How many bytes from an offset on are set aside, at least one. Raises OciError, NoSpace, OSError."""
        if self._left(offset) <= 0:
            raise self._invalid("sent more of a blob than there is")
        if offset >= self._reservation.size:
            await self._reserve(offset)
        return min(self._reservation.size - offset, self._left(offset))

    async def _reserve(self, offset: int) -> None:
        """Set space aside for what comes next, and no more: others' blobs go only for bytes that do come."""
        ahead = offset + STEP
        self._reservation.check(self._total or 0)
        await self._reservation.grow(ahead if self._total is None else min(ahead, self._total))

    def _invalid(self, what: str) -> OciError:
        return OciError(Problem.UPSTREAM_INVALID, f"{self._origin.name} {what}")


def is_invalid(error: BaseException) -> bool:
    """Whether what has come so far must not be built upon: upstream's bytes were wrong, or it denies having them."""
    if not isinstance(error, OciError) or error.problem is Problem.OVERLOADED:
        return False
    return error.problem is Problem.UPSTREAM_INVALID or not error.problem.is_outage
