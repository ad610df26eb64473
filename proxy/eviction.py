"""How much space the cache takes, and what to drop when more is wanted.

Space is reserved before it is written, under one lock for all processes. The ledger directory holds the sum of what is
stored (rebuilt by every scan, so that no crash falsifies it for long) and one file a process with what it has reserved,
locked as long as the process lives: what a dead process had reserved counts no more.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from proxy.files import Entry, Tree, hop, read_number, write_number

STEP = 64 * 1024 * 1024  # bytes reserved at a time for a blob of unknown size
SMALL = 64 * 1024  # bytes; manifests and configs are dropped after everything else: they free nothing and name the rest
DEAR = 8 * 1024 * 1024  # bytes; to fetch fewer again takes hardly less time: what is smaller stays for longer
SHARE = 100  # one in so many files goes at least, when one must: a scan is dear where there are many
LARGEST_FLOOR = 20  # min_free is never more than this part of the disk: a small one would keep nothing at all
_ROUND = 4096  # bytes: files take whole blocks
_LEDGER = "ledger"


class NoSpace(Exception):
    """The cache may not grow by as much as was asked for."""


@dataclass(frozen=True, slots=True)
class Evicted:
    """What had to go: how many blobs, of how many bytes."""

    blobs: int
    size: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much the cache may take (bytes; 0: no limit), and how much of the disk is to stay free."""

    max_size: int = 0
    min_free: int = 0


class Space:
    """The bytes the cache may take, shared by all processes on one directory.

    `kept` says which blobs must not go, whatever is wanted; it is asked in a thread, and may block.
    """

    def __init__(
        self,
        tree: Tree,
        bounds: Bounds,
        *,
        record_uses: Callable[[], Awaitable[None]],
        kept: Callable[[], frozenset[str]],
        evicted: Callable[[Evicted], None],
    ) -> None:
        self._tree = tree
        self._max_size = bounds.max_size
        self._min_free = bounds.min_free
        self._kept = kept
        self._record_uses = record_uses
        self._evicted = evicted
        self._own = f"{_LEDGER}/{secrets.token_hex(8)}"
        self._own_lock: contextlib.ExitStack = contextlib.ExitStack()
        self._own_fd = -1
        self._one_at_a_time = asyncio.Lock()  # a scan must hold one thread only

    def open(self) -> None:
        """Count what is there, and drop what is over the limit; blocking, for start-up."""
        with self._ledger() as ledger, contextlib.suppress(NoSpace):  # others fill what there is: so be it
            # Within the ledger's lock: nobody takes the new file for a dead process's before it is locked.
            self._own_fd = self._own_lock.enter_context(self._tree.locked(self._own))
            self._make_room(ledger, 0)

    async def aclose(self) -> None:
        """Give back every reservation of this process."""
        await hop(self._close)

    def _close(self) -> None:
        self._own_lock.close()
        self._tree.evict(self._own)

    async def refresh(self) -> int:
        """The bytes that are stored, other processes' work included."""
        return await hop(self._refresh)

    def _refresh(self) -> int:
        with self._ledger() as ledger:
            return read_number(ledger)

    def check(self, size: int) -> None:
        """Raise NoSpace for what could not fit into the cache if there was nothing else in it."""
        if self._max_size and size > self._max_size:
            raise NoSpace

    async def change(self, reserved: int, stored: int) -> None:
        """Add to (or take from) what this process has reserved, and what is stored. Raises NoSpace, OSError."""
        async with self._one_at_a_time:
            if reserved > 0:
                await self._record_uses()
            evicted = await hop(self._change, reserved, stored)
        if evicted.blobs:
            self._evicted(evicted)

    def _change(self, reserved: int, stored: int) -> Evicted:
        with self._ledger() as ledger:
            total = read_number(ledger) + stored
            write_number(ledger, total)
            evicted = Evicted(0, 0)
            if reserved > 0 and self._is_too_much(total, reserved):
                evicted = self._make_room(ledger, reserved)
            write_number(self._own_fd, max(0, read_number(self._own_fd) + reserved))
        return evicted

    @contextlib.contextmanager
    def _ledger(self) -> Iterator[int]:
        with self._tree.locked(f"{_LEDGER}/stored") as fd:
            yield fd

    def _reserved(self) -> int:
        """What all living processes have reserved; the files of the dead are removed on the way."""
        total = 0
        for entry in self._tree.scan(_LEDGER):
            if entry.key == f"{_LEDGER}/stored" or self._tree.evict(entry.key):
                continue
            total += self._tree.peek(entry.key, read_number)
        return total

    def _is_too_much(self, total: int, wanted: int) -> bool:
        if not self._max_size and not self._min_free:
            return False
        reserved = self._reserved()
        is_over_quota = bool(self._max_size) and total + reserved + wanted > self._max_size
        return is_over_quota or self._lacking(reserved, wanted) > 0

    def _lacking(self, reserved: int, wanted: int) -> int:
        """The bytes that are too few on the disk, once what is reserved has been written as well."""
        if not self._min_free:
            return 0
        disk = self._tree.disk()
        if disk.free - reserved - wanted >= self._min_free:
            return 0  # however much of what is reserved has been written by now
        written = sum(_taken(one) for one in self._tree.scan("spool") if not self._tree.is_free(one.key))
        floor = min(self._min_free, disk.size // LARGEST_FLOOR)
        return floor - (disk.free - max(0, reserved - written) - wanted)

    def _make_room(self, ledger: int, wanted: int) -> Evicted:
        """Count anew, and drop until `wanted` more bytes fit. Raises NoSpace if they cannot."""
        entries = self._tree.scan("blobs") + [one for one in self._tree.scan("spool") if self._tree.is_free(one.key)]
        total = sum(map(_taken, entries))
        limit = self._limit(total, wanted)
        kept = self._kept() if total > limit else frozenset()
        fixed = (_taken(one) for one in entries if one.key in kept or not self._tree.is_free(one.key))
        if total > limit and sum(fixed) > limit:
            write_number(ledger, total)
            raise NoSpace  # before anything has gone for nothing
        gone, freed, now = 0, 0, time.time()
        for entry in sorted(entries, key=lambda one: _order(one, now)) if total > limit else ():
            if total - freed <= limit and gone >= len(entries) // SHARE:
                break
            if entry.key not in kept and self._tree.evict(entry.key):
                gone, freed = gone + 1, freed + _taken(entry)
        write_number(ledger, total - freed)
        if total - freed > limit:
            raise NoSpace
        return Evicted(gone, freed)

    def _limit(self, total: int, wanted: int) -> int:
        """How many bytes may be stored if `wanted` more are to fit."""
        reserved = self._reserved()
        by_quota = self._max_size - reserved - wanted if self._max_size else total
        return min(by_quota, total - max(0, self._lacking(reserved, wanted)))


class Reservation:
    """Bytes set aside for one fill; what of them is not settled is given back on leaving."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._settled = False
        self.size = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._settled:
            await asyncio.shield(self.settle(0))

    async def found(self, size: int) -> None:
        """There are `size` bytes of an earlier download already: they counted as stored, and are ours now.

        Whoever counts anew passes over a spool that is being written to. Raises NoSpace, OSError.
        """
        await self._space.change(_rounded(size), -_rounded(size))
        self.size += _rounded(size)

    def check(self, size: int) -> None:
        """Raise NoSpace for what would not fit if there was nothing else; nothing is set aside, and nothing dropped."""
        self._space.check(size)

    async def grow(self, size: int) -> None:
        """Make sure that at least `size` bytes in all are set aside. Raises NoSpace, OSError."""
        more = _rounded(size) - self.size
        if more > 0:
            await self._space.change(more, 0)
            self.size += more

    async def settle(self, size: int) -> None:
        """It is over, and `size` bytes stay on the disk."""
        reserved, self.size, self._settled = self.size, 0, True
        if reserved or size:
            await self._space.change(-reserved, _rounded(size))


def _rounded(size: int) -> int:
    return -(-size // _ROUND) * _ROUND


def _taken(entry: Entry) -> int:
    return _rounded(entry.size)


def _order(entry: Entry, now: float) -> tuple[int, float, float]:
    """First what a broken-off download left behind, then blobs by last use, then what is too small to matter.

    Seconds without use count for less the smaller a blob is: it frees little, and to get it back takes a request all
    the same.
    """
    if entry.key.startswith("spool/"):
        return 0, entry.used, 0.0
    weight = entry.size / (entry.size + DEAR)
    return 2 if entry.size <= SMALL else 1, -max(0.0, now - entry.used) * weight, entry.used
