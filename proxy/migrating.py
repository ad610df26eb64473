"""A cache on its way between its directory and a bucket: what both directions have in common.

Nothing is removed where it comes from, and what is there already is passed over, so that it can be run again.
"""

import asyncio
import contextlib
import enum
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from proxy.oci.digest import Digest
from proxy.scrubbing import Throttle
from proxy.stores.keys import blob_digest, blob_key, history_key, link_key, parse_key, tag_key
from proxy.stores.records import parse_history, parse_record, parse_tag
from proxy.stores.s3 import Bucket, Stored
from proxy.stores.s3_errors import BucketError

T = TypeVar("T")
Bring = Callable[["Item"], Awaitable["Fate"]]
Kind = Literal["blob", "link", "tag", "history"]

KINDS: tuple[Kind, ...] = (
    "blob",
    "link",
    "tag",
    "history",
)  # in this order: what promises comes last
AT_ONCE = 16
LONGEST = 300.0  # seconds for which one question is asked again while the bucket fails
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds, doubling
MOST_REFUSED = 20  # things in a row that the bucket refuses for good: it will refuse the rest as well
MOST_TOLD = 10_000  # failures that are told one by one; the rest is counted


class MigrationFailed(Exception):
    """It cannot go on; the message says why. What has been brought over stays."""


class Left(Exception):
    """One thing that is left where it is; the message says why."""


class Fate(enum.Enum):
    """What became of one thing."""

    MOVED = enum.auto()
    THERE = enum.auto()  # the same, or something newer
    GONE = enum.auto()  # meanwhile, from where it was


@dataclass(frozen=True, slots=True)
class Item:
    """Something that may have to be brought over: its key, its size in bytes, whether it is sure to be there."""

    key: str
    size: int
    is_there: bool


@dataclass(slots=True)
class Count:
    """What became of all things of one kind; `size` is the bytes of those that were brought over."""

    moved: int = 0
    size: int = 0
    there: int = 0
    failed: int = 0


@dataclass(slots=True)
class Tally:
    """What there is to say of a migration: counts by kind, and why what failed did, by key."""

    counts: Mapping[Kind, Count] = field(default_factory=lambda: {kind: Count() for kind in KINDS})
    failures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """How many things could not be brought over."""
        return sum(count.failed for count in self.counts.values())

    def fail(self, kind: Kind, key: str, reason: str) -> None:
        """One thing more that could not."""
        self.counts[kind].failed += 1
        if len(self.failures) < MOST_TOLD:
            self.failures.append((key, reason))


class Pauses:
    """What goes by between asking a bucket that fails, and asking it again."""

    def __init__(self) -> None:
        self._until: float | None = None
        self._next = FIRST_PAUSE

    async def after(self, error: BucketError) -> None:
        """Wait for a while. Raises the error if that will not help, and MigrationFailed once it has not."""
        if not error.passes:
            raise error
        now = time.monotonic()
        self._until = self._until or now + LONGEST
        if now + self._next > self._until:
            raise MigrationFailed(f"the bucket has failed for {LONGEST:g} s: {error.reason}")
        await asyncio.sleep(self._next)
        self._next = min(LONGEST_PAUSE, 2 * self._next)


class Crossing:
    """One migration: asks the bucket with patience, brings things over side by side, and counts what became of them.

    `arrived` is told of bytes as they come; fewer than none, where some have to come again.
    """

    def __init__(
        self,
        bucket: Bucket,
        *,
        throttle: Throttle,
        arrived: Callable[[int], None] = lambda _: None,
        is_dry: bool = False,
    ) -> None:
        self.bucket = bucket
        self.throttle = throttle
        self.arrived = arrived
        self.is_dry = is_dry
        self.tally = Tally()
        self._refused = 0  # in a row

    async def ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """What the bucket answers, asked again while it fails. Raises BucketError, MigrationFailed."""
        pauses = Pauses()
        while True:
            try:
                return await question()
            except BucketError as error:
                await pauses.after(error)

    async def listed(self, prefix: str) -> AsyncGenerator[Stored]:
        """As Bucket.keys(), gone on with behind the last one if it fails. Raises BucketError, MigrationFailed."""
        pauses, after = Pauses(), ""
        while True:
            try:
                async with contextlib.aclosing(self.bucket.keys(prefix, after)) as found:
                    async for one in found:
                        pauses, after = Pauses(), one.key
                        yield one
            except BucketError as error:
                await pauses.after(error)
            else:
                return

    async def each(self, kind: Kind, items: AsyncGenerator[Item], bring: Bring) -> None:
        """Bring over all that is not there. Raises BucketError, MigrationFailed, OSError."""
        turns = asyncio.Semaphore(AT_ONCE)

        async def one(item: Item) -> None:
            try:
                await self._one(kind, item, bring)
            finally:
                turns.release()

        with _first_alone():
            async with contextlib.aclosing(items), asyncio.TaskGroup() as group:
                async for item in items:
                    if item.is_there:
                        self.tally.counts[kind].there += 1
                        continue
                    await turns.acquire()
                    group.create_task(one(item))

    async def _one(self, kind: Kind, item: Item, bring: Bring) -> None:
        count = self.tally.counts[kind]
        try:
            fate = await bring(item)
        except Left as error:
            self.tally.fail(kind, item.key, str(error))
            return
        except BucketError as error:
            self.tally.fail(kind, item.key, f"the bucket refuses: {error.reason}")
            self._refused += 1
            if self._refused >= MOST_REFUSED:
                raise MigrationFailed(f"the bucket refuses one thing after the other: {error.reason}") from None
            return
        self._refused = 0
        if fate is Fate.MOVED:
            count.moved += 1
            count.size += item.size
        elif fate is Fate.THERE:
            count.there += 1


@contextlib.contextmanager
def _first_alone() -> Iterator[None]:
    """Around tasks: the first thing that went wrong, and not a group of them."""
    failure: BaseException | None = None
    try:
        yield
    except* (BucketError, MigrationFailed, OSError) as group:
        failure = group
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    if failure is not None:
        raise failure from None


def is_of(kind: Kind, key: str) -> bool:
    """Whether a key is that of a blob, a link, a tag or a history, and written as the cache writes it."""
    if kind == "blob":
        digest = blob_digest(key)
        return digest is not None and blob_key(digest) == key
    record = parse_key(key)
    if record is None or record.kind != kind:
        return False
    if isinstance(record.name, Digest):
        return link_key(record.repository, record.name) == key
    return key == (tag_key if kind == "tag" else history_key)(record.repository, record.name)


def supersedes(kind: Kind, new: bytes, old: bytes, now: float) -> bool:
    """Whether one record of a tag, or of its history, says more than another: it is of later, but not of the future.

    A clock that is ahead is believed nowhere, and what cannot be read says nothing.
    """
    later, earlier = _moment(kind, new), _moment(kind, old)
    return later is not None and later <= now and (earlier is None or not later <= earlier <= now)


def _moment(kind: Kind, body: bytes) -> float | None:
    record = parse_record(body)
    if record is None:
        return None
    if kind == "history":
        moves = parse_history(record)
        return moves[-1].at if moves else None
    tag = parse_tag(record)
    return None if tag is None else tag.checked
