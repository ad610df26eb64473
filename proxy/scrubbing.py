"""Passes over the store in search of damage, at a pace that disturbs nobody; what is found is healed, and told.

A pass knows its place and writes it down, so that it goes on there after a restart.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from proxy.files import Tree, hop, write_number
from proxy.healing import Damage, Fate, Finding, Healing, Kind
from proxy.inspection import Inspection, Place
from proxy.oci.history import END
from proxy.oci.ratelimit import as_utc
from proxy.stores import quarantine
from proxy.telemetry import Logger, Metrics

SEEK = 64 * 1024  # bytes that a file counts for besides its own: to open one is work for a disk as well
SETTLE = 10.0  # seconds after which what was found is healed, and the place written down, ...
MOST_UNSETTLED = 64  # ... or so many findings
GIVE_WAY = 1.0  # seconds between looks whether an operator's scrub is over
TRIES = 5  # to begin a pass by hand: the server's holds the lock for an instant to see whether it is free ...
PAUSE = 0.02  # ... and seconds between them
GOING_ON = "jobs/scrub-pass"  # how far the server's pass is
DONE_LAST = "jobs/scrub-last"  # how the last whole pass ended, whoever made it
BY_HAND = "jobs/scrub-now"  # locked by an operator's scrub, for which the server's waits
TIME = "jobs/scrub"  # the file of the server's job
STATE_LIMIT = 64 * 1024  # bytes


class Busy(Exception):
    """Another operator's scrub is at it."""


class Throttle:
    """Spends bytes at a rate (bytes a second; 0: as fast as it goes). What was not spent in time is not made up for."""

    def __init__(
        self,
        rate: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._free = clock()

    async def spend(self, count: int) -> None:
        """Wait for as long as `count` bytes may take."""
        if self._rate:
            now = self._clock()
            self._free = max(self._free, now) + count / self._rate
            await self._sleep(self._free - now)


@dataclass(slots=True)
class Tally:
    """How far a pass has come, and what it has found. Times are unix seconds, `size` is the bytes that were read."""

    began: Annotated[float, Field(ge=0, lt=END)]
    ended: Annotated[float, Field(ge=0, lt=END)] | None = None
    place: Place = field(default_factory=Place)
    blobs: int = 0
    records: int = 0
    size: int = 0
    findings: dict[Kind, int] = field(default_factory=dict)
    fates: dict[Fate, int] = field(default_factory=dict)

    def count(self, finding: Finding) -> None:
        """One finding more."""
        self.findings[finding.kind] = self.findings.get(finding.kind, 0) + 1
        self.fates[finding.fate] = self.fates.get(finding.fate, 0) + 1

    @property
    def is_well(self) -> bool:
        """Whether nothing is damaged still."""
        return not self.fates.get(Fate.MISSING) and not self.fates.get(Fate.LEFT)

    def told(self) -> dict[str, Any]:
        """For programs; sizes in bytes, times in UTC."""
        return {
            "began": as_utc(self.began),
            "ended": None if self.ended is None else as_utc(self.ended),
            "place": self.place.key if self.place.directory else None,
            "blobs": self.blobs,
            "records": self.records,
            "bytes": self.size,
            "findings": self.findings,
            "fates": self.fates,
        }


def read_tally(body: bytes | None) -> Tally | None:
    """A tally as it is written; None for what is none."""
    try:
        return None if body is None else TypeAdapter(Tally).validate_json(body)
    except ValidationError:
        return None


@dataclass(frozen=True, slots=True)
class Order:
    """How a pass is to be made: how fast, with what is damaged fetched again or not, and whom to tell.

    `found` is told of each finding, `read` of bytes as they are read. `is_patrol`: it waits while an operator's goes
    on.
    """

    throttle: Throttle
    fetch: bool = True
    found: Callable[[Finding], None] = lambda _: None
    read: Callable[[int], None] = lambda _: None
    is_patrol: bool = False


class Pass:
    """One pass over the store, from its tally's place on. `keep` is told from time to time how far it has come."""

    def __init__(self, scrubber: "Scrubber", tally: Tally, order: Order, keep: Callable[[], Awaitable[None]]) -> None:
        self._means = scrubber
        self._tally = tally
        self._order = order
        self._keep = keep
        self._unsettled: list[Damage] = []
        self._settled = time.monotonic()

    async def run(self) -> None:
        """Look at everything. Raises OSError where that cannot be gone on with."""
        inspection = Inspection(self._means.tree, self._read)
        try:
            async with contextlib.aclosing(inspection.walk(self._tally.place)) as places:
                async for place, damage in places:
                    await self._means.give_way(self._order)
                    self._note(place, damage or await inspection.look(place.key))
                    await self._order.throttle.spend(SEEK)
                    await self._settle_if_due()
            await self._settle()
        except BaseException:
            for damage in self._unsettled:
                if damage.moved is not None:  # no pass will see it again
                    fate = Fate.MOVED if damage.digest is None else Fate.MISSING
                    self._tell(Finding(damage, damage.kind, fate, "the scrub was broken off"))
            raise

    def _note(self, place: Place, damage: Damage | None) -> None:
        if damage is not None:
            self._unsettled.append(damage)
        if damage is None or damage.kind is not Kind.STRANGER:
            self._count(place)
        self._tally.place = place

    def _count(self, place: Place) -> None:
        if place.directory.startswith("blobs"):
            self._tally.blobs += 1
            self._means.metrics.scrubbed_blobs.inc()
        else:
            self._tally.records += 1

    async def _read(self, count: int) -> None:
        self._tally.size += count
        self._means.metrics.scrubbed_bytes.inc(count)
        self._order.read(count)
        await self._order.throttle.spend(count)
        await self._settle_if_due()

    async def _settle_if_due(self) -> None:
        if len(self._unsettled) >= MOST_UNSETTLED or time.monotonic() - self._settled >= SETTLE:
            await self._settle()

    async def _settle(self) -> None:
        """Have what was found healed, and say what became of it; then the place may be written down."""
        if self._unsettled:
            for finding in await self._means.healing.heal(self._unsettled, fetch=self._order.fetch):
                self._tell(finding)
            self._unsettled.clear()
            await hop(quarantine.sweep, self._means.tree, time.time())
        await self._keep()
        self._settled = time.monotonic()

    def _tell(self, finding: Finding) -> None:
        self._tally.count(finding)
        self._means.metrics.findings.labels(finding.kind, finding.fate).inc()
        damage = finding.damage
        self._means.log.warning(
            "scrub found", kind=finding.kind, what=str(damage.digest or damage.key), bytes=damage.size,
            moved=damage.moved, fate=finding.fate, reason=finding.reason or None,
            repositories=[str(repository) for repository in finding.repositories],
        )  # fmt: skip
        self._order.found(finding)


class Scrubber:
    """Makes passes: the server's own, at its `rate` (bytes a second), and those that an operator wants now."""

    def __init__(self, tree: Tree, healing: Healing, metrics: Metrics, log: Logger, rate: int) -> None:
        self.tree = tree
        self.healing = healing
        self.metrics = metrics
        self.log = log
        self._rate = rate

    async def patrol(self) -> None:
        """Make a pass, or go on with the one that a restart broke off. Raises OSError."""
        tally = read_tally(await self.tree.read(GOING_ON, STATE_LIMIT)) or Tally(time.time())
        order = Order(Throttle(self._rate), is_patrol=True)
        await Pass(self, tally, order, lambda: self._write(GOING_ON, tally)).run()
        await self._done(tally)
        await self.tree.remove(GOING_ON)

    async def now(self, order: Order) -> Tally:
        """Make a whole pass; the server's own waits meanwhile, and need not begin soon. Raises Busy, OSError."""
        with contextlib.ExitStack() as stack:
            for _ in range(TRIES):
                if await hop(stack.enter_context, self.tree.claimed(BY_HAND)) is not None:
                    break
                await asyncio.sleep(PAUSE)
            else:
                raise Busy
            tally = Tally(time.time())
            await Pass(self, tally, order, _nothing).run()
            await self._done(tally)
            await hop(self._put_off)
        return tally

    def _put_off(self) -> None:
        with self.tree.claimed(TIME) as fd:
            if fd is not None:  # no server is at it
                write_number(fd, int(time.time()))
                self.tree.evict(GOING_ON)

    async def give_way(self, order: Order) -> None:
        """Have the server's pass wait while an operator's goes on."""
        while order.is_patrol and await hop(self._is_by_hand):  # noqa: ASYNC110  a lock of another process has no event
            await asyncio.sleep(GIVE_WAY)

    def _is_by_hand(self) -> bool:
        with self.tree.claimed(BY_HAND) as fd:
            return fd is None

    async def _done(self, tally: Tally) -> None:
        tally.ended, tally.place = time.time(), Place()
        await self._write(DONE_LAST, tally)
        self.log.info(
            "scrub done", blobs=tally.blobs, records=tally.records, bytes=tally.size,
            seconds=round(tally.ended - tally.began, 1), findings=sum(tally.findings.values()), **tally.fates,
        )  # fmt: skip

    async def _write(self, key: str, tally: Tally) -> None:
        """Write down how far a pass has come; a disk that is full is no reason not to look at it."""
        try:
            await self.tree.write(key, json.dumps(asdict(tally)).encode())
        except OSError as error:
            self.log.warning("scrub's place not recorded", reason=error.strerror)


async def _nothing() -> None:
    """An operator's pass is not gone on with."""


def going_on(tree: Tree) -> Tally | None:
    """The server's pass that is going on, or was broken off; blocking."""
    return read_tally(tree.read_now(GOING_ON, STATE_LIMIT))


def done_last(tree: Tree) -> Tally | None:
    """The last pass that came to its end; blocking."""
    return read_tally(tree.read_now(DONE_LAST, STATE_LIMIT))
