"""Which blobs go from the bucket, and how they go: what no replica has used for long, and what is too much.

Nothing is locked, and replicas go on reading and writing meanwhile. So each blob is looked at once more when its turn
comes: what has been written or used since the listing stays. What is used in the moment it goes is not there any more
for whoever asks next, who fetches it from upstream.
"""

import asyncio
import contextlib
import heapq
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from proxy.candidates import SMALL
from proxy.sections.store import S3
from proxy.stores.keys import blob_digest
from proxy.stores.s3 import Bucket
from proxy.stores.s3_errors import BucketError
from proxy.uses import SLACK, short, told

MOST = 100_000  # blobs that a plan names: some 30 MB; what is more goes by the next
RECENT = 2 * 3600.0  # seconds: what was used within them may not have been told yet, and stays
BATCH = 512  # blobs that go before it is asked again what has been used
AT_ONCE = 32  # blobs that are looked at and removed side by side
MOST_TOLD = 100  # failures that are told one by one


@dataclass(frozen=True, slots=True)
class Limits:
    """What a bucket is to keep: blobs that were used within so many seconds (None: all), so many bytes (0: any)."""

    keep_unused: float | None
    max_size: int

    @classmethod
    def of(cls, settings: S3) -> "Limits":
        """Those of a configuration."""
        return cls(settings.keep_unused, settings.max_size)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return self.keep_unused is not None or bool(self.max_size)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A blob in the bucket: its size in bytes, when it was written and last used, in seconds since the epoch.

    `is_unused`: for longer than it is to be kept. Else it goes only if there is no room for it.
    """

    key: str
    size: int
    modified: float
    used: float
    is_unused: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What is in the bucket at a moment of its own clock (seconds since the epoch), and what of it is to go.

    `told`: since when replicas tell of their uses; nothing is known to be unused for longer.
    """

    now: float
    told: float
    blobs: int
    size: int  # bytes of all blobs
    going: Sequence[Candidate]
    is_all: bool  # or more would go than is named here

    @property
    def freed(self) -> int:
        """Bytes of what goes."""
        return sum(one.size for one in self.going)


@dataclass(slots=True)
class Tally:
    """What became of what was to go; `failures`: some of the keys that could not be removed, and why."""

    gone: int = 0
    freed: int = 0  # bytes
    stayed: int = 0  # written or used meanwhile
    failed: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)

    def add_failure(self, key: str, reason: str) -> None:
        """One that could not be removed."""
        self.failed += 1
        if len(self.failures) < MOST_TOLD:
            self.failures.append((key, reason))


@dataclass(slots=True)
class _Heap:
    """The first of all blobs that may go, in the order in which they do."""

    found: list[Candidate] = field(default_factory=list)
    is_all: bool = True

    def add(self, one: Candidate) -> None:
        self.found.append(one)
        if len(self.found) >= 2 * MOST:
            self.cut()

    def cut(self) -> Sequence[Candidate]:
        self.is_all = self.is_all and len(self.found) <= MOST
        self.found = heapq.nsmallest(MOST, self.found, key=_order)
        return self.found


def _order(one: Candidate) -> tuple[bool, bool, float, float]:
    """What goes anyway, then the rest by last use; in each what is small (manifests, configs) last: it names others."""
    return not one.is_unused, one.size <= SMALL, one.used, one.modified


async def plan(bucket: Bucket, limits: Limits) -> Plan:
    """Look through the bucket for what is to go. Nothing is changed. Raises BucketError."""
    now = await bucket.now()
    since = 0.0 if limits.max_size or limits.keep_unused is None else now - limits.keep_unused
    uses = await told(bucket, since)
    heap, blobs, size, unused = _Heap(), 0, 0, 0
    async with contextlib.aclosing(bucket.keys("blobs/")) as keys:
        async for one in keys:
            digest = blob_digest(one.key)
            if digest is None:
                continue  # a stranger's: it is left to whoever put it there
            blobs, size = blobs + 1, size + one.size
            used = max(one.modified, uses.last.get(short(digest), 0.0), min(uses.since, now))
            is_unused = limits.keep_unused is not None and now - used >= limits.keep_unused
            if now - used >= RECENT:
                heap.add(Candidate(one.key, one.size, one.modified, used, is_unused))
                unused += one.size if is_unused else 0
    excess = size - unused - limits.max_size if limits.max_size else 0
    found = heap.cut()
    going = list(_chosen(found, excess))
    return Plan(now, min(uses.since, now), blobs, size, going, heap.is_all or len(going) < len(found))


def _chosen(found: Iterable[Candidate], excess: int) -> Iterator[Candidate]:
    """What of the candidates goes, where so many bytes too many are in use."""
    for one in found:
        if one.is_unused:
            yield one
        elif excess > 0:
            yield one
            excess -= one.size


async def clear(bucket: Bucket, plan: Plan, tally: Tally, goes_on: Callable[[], Awaitable[bool]]) -> None:
    """Have go what a plan says, as long as `goes_on`. Raises BucketError if the store takes nothing of it."""
    for start in range(0, len(plan.going), BATCH):
        if not await goes_on():
            return
        recent = (await told(bucket, plan.now - SLACK, plan.now)).last
        gate, failed, gone = asyncio.Semaphore(AT_ONCE), tally.failed, tally.gone
        batch = plan.going[start : start + BATCH]
        await asyncio.gather(*(_take(bucket, one, recent, tally, gate) for one in batch))
        if tally.failed > failed and tally.gone == gone:
            raise BucketError(tally.failures[-1][1])  # nothing else will go either


async def _take(
    bucket: Bucket, one: Candidate, recent: Mapping[bytes, float], tally: Tally, gate: asyncio.Semaphore
) -> None:
    digest = blob_digest(one.key)
    if digest is None or short(digest) in recent:
        tally.stayed += 1
        return
    async with gate:
        try:
            written = await bucket.written(one.key)
            if written is None or written > one.modified:
                tally.stayed += 1
                return
            await bucket.remove(one.key)
        except BucketError as error:
            tally.add_failure(one.key, error.reason)
            return
    tally.gone += 1
    tally.freed += one.size


async def clear_all(bucket: Bucket, limits: Limits, tally: Tally, goes_on: Callable[[], Awaitable[bool]]) -> None:
    """Have go what is to go, by as many plans as it takes. Raises BucketError."""
    is_all = False
    while not is_all:
        made, gone = await plan(bucket, limits), tally.gone
        await clear(bucket, made, tally, goes_on)
        is_all = made.is_all or tally.gone == gone
