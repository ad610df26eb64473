"""How much space the cache takes, and may take.

Space is reserved before it is written, under one lock for all processes, which nobody holds for long. The ledger
directory holds the sum of what is stored (counted anew by every look for what may go, so that no crash falsifies it for
long) and one file a process with what it has reserved, locked as long as the process lives: what a dead process had
reserved counts no more. Broken-off downloads are counted where they are.
"""

import asyncio
import contextlib
import math
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from proxy.candidates import IDLE, Candidates, taken
from proxy.files import Entry, Tree, hop, read_number, write_number
from proxy.stores import ledger
from proxy.stores.ledger import Ledger

STEP = 64 * 1024 * 1024  # bytes reserved at a time for a blob of unknown size
AHEAD = 1024**3  # bytes of candidates that are looked for before room is wanted ...
PAUSE = 60.0  # ... but not again before so many seconds
LARGEST_FLOOR = 20  # min_free is never more than this part of the disk: a small one would keep nothing at all
REST = 5.0  # times as long as a look took that found too little, there is no other: nor for each that wants room ...
BRIEF = 0.1  # ... but where a look takes no more than so many seconds


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
        self._candidates = Candidates(tree, kept)
        self._record_uses = record_uses
        self._evicted = evicted
        self._own = f"{ledger.DIRECTORY}/{secrets.token_hex(8)}"
        self._own_lock: contextlib.ExitStack = contextlib.ExitStack()
        self._own_fd = -1
        self._one_thread = threading.Lock()  # where the ledger is removed, its old and its new file are locked at once
        self._reserved_here = 0  # bytes, as the file of our own has it unless the disk would not take it
        self._owed: list[tuple[int, int]] = []  # reserved, stored: what is over, and not in the ledger yet
        self._making_room = asyncio.Lock()  # one look at a time
        self._waiters = 0  # how many want room that there is not yet
        self._is_doubtful = False  # the ledger: a process died that had a part in it
        self._looked = -math.inf  # when the last look ended, by the monotonic clock
        self._look_took = 0.0  # seconds
        self._rest_until = 0.0  # by the monotonic clock

    @property
    def _is_limited(self) -> bool:
        return bool(self._max_size or self._min_free)

    def open(self) -> None:
        """Join the ledger, and drop what is over the limit; blocking, for start-up.

        Where the ledger is lost, what is stored is counted as soon as somebody wants to know.
        """
        with self._ledger() as book:
            self._join()
            self._is_doubtful = not book.is_known
            is_full = book.is_known and self._lacking(book, 0) > 0
        if is_full:
            with contextlib.suppress(NoSpace):  # others fill what there is: so be it
                self._make_room(0, [])

    def _join(self) -> None:
        """Have a file of our own, again if somebody has removed it.

        Within the ledger's lock: nobody takes the new file for a dead process's before it is locked.
        """
        if self._own_fd < 0 or not self._tree.is_named(self._own, self._own_fd):
            self._own_fd = -1
            self._own_lock.close()
            self._own_fd = self._own_lock.enter_context(self._tree.locked(self._own))

    async def aclose(self) -> None:
        """Give back every reservation of this process."""
        await hop(self._close)

    def _close(self) -> None:
        with contextlib.suppress(OSError):  # whoever counts next finds it, and that there may be something to count
            if self._owed:
                self._settle()
            self._own_lock.close()
            self._tree.evict(self._own)
        self._own_lock.close()

    async def refresh(self) -> int:
        """The bytes that are stored, other processes' work included."""
        return await hop(self._stored)

    def _stored(self) -> int:
        while True:
            with self._ledger() as book:
                self._pay(book)
                if book.is_known:
                    return book.stored + self._spools()[1]
            self.look()

    async def room(self) -> float:
        """The bytes that fit without anything going; infinite where there is no bound. Raises OSError."""
        await self.refresh()  # which counts, where the ledger is lost
        return await hop(self._room)

    def _room(self) -> float:
        if not self._is_limited:
            return math.inf
        with self._ledger() as book:
            return max(0, -self._lacking(book, 0))

    def check(self, size: int) -> None:
        """Raise NoSpace for what could not fit into the cache if there was nothing else in it."""
        if self._max_size and size > self._max_size:
            raise NoSpace

    async def change(self, reserved: int, stored: int) -> None:
        """Add to (or take from) what this process has reserved, and what is stored. Raises NoSpace, OSError.

        What is given back is so at once: where the disk will not note it, that is done with the next change.
        """
        if reserved <= 0:
            self._owed.append((reserved, stored))
            with contextlib.suppress(OSError):
                await hop(self._settle)
            return
        if await hop(self._has_room, reserved):
            return
        await self._record_uses()
        gone = list[Entry]()
        try:
            if not await hop(self._drop, reserved, gone):
                with self._waiting():
                    async with self._making_room:
                        await hop(self._make_room, reserved, gone)
        finally:
            if gone:
                self._evicted(Evicted(len(gone), sum(map(taken, gone))))

    async def take_over(self, size: int) -> None:
        """Reserve what is on the disk already, and locked by this process: it needs no room. Raises OSError."""
        await hop(self._take_over, size)

    def _take_over(self, size: int) -> None:
        with self._ledger() as book:
            self._pay(book)
            self._reserve(size)

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """No look rests meanwhile, whether it is going on or about to begin."""
        self._waiters += 1
        try:
            yield
        finally:
            self._waiters -= 1

    def _has_room(self, wanted: int) -> bool:
        """Reserve `wanted` bytes if there is room without dropping anything."""
        with self._ledger() as book:
            self._pay(book)
            fits = not self._is_limited or (book.is_known and self._lacking(book, wanted) <= 0)
            if fits:
                self._reserve(wanted)
        return fits

    def _reserve(self, size: int) -> None:
        write_number(self._own_fd, self._reserved_here + size)
        self._reserved_here += size

    def _settle(self) -> None:
        with self._ledger() as book:
            self._pay(book)

    def _pay(self, book: Ledger) -> None:
        """Note what is owed. Raises OSError: it stays owed then."""
        self._join()
        owed = len(self._owed)  # others may add to it meanwhile
        book.change(sum(stored for _, stored in self._owed[:owed]))
        self._reserved_here += sum(reserved for reserved, _ in self._owed[:owed])
        del self._owed[:owed]
        write_number(self._own_fd, self._reserved_here)

    @contextlib.contextmanager
    def _ledger(self) -> Iterator[Ledger]:
        with self._one_thread, ledger.opened(self._tree) as book:
            yield book

    # What there is

    def _reserved(self, book: Ledger) -> int:
        """What all living processes have reserved; the files of the dead are removed on the way.

        What a dead one had reserved it may have stored, and had no time to count: it counts until the next look.
        """
        total = 0
        for entry in self._tree.scan(ledger.DIRECTORY):
            if entry.key == ledger.KEY:
                continue
            reserved = self._tree.peek(entry.key, read_number)
            if self._tree.evict(entry.key):
                self._is_doubtful = True
                book.change(reserved)
            else:
                total += reserved
        return total

    def _spools(self) -> tuple[int, int]:
        """Bytes of the downloads that are going on, and of those that are broken off."""
        sizes = {True: 0, False: 0}
        for entry in self._tree.scan("spool"):
            sizes[self._tree.is_free(entry.key)] += taken(entry)
        return sizes[False], sizes[True]

    def _lacking(self, book: Ledger, wanted: int) -> int:
        """The bytes that are too many if `wanted` more are to be reserved; not above 0 if there is room."""
        if not self._is_limited:
            return 0
        reserved, (going_on, broken_off) = self._reserved(book), self._spools()
        # A download that is gone on with is locked a moment before its bytes are reserved.
        stored = book.stored + broken_off + max(reserved, going_on)
        lacking = []
        if self._max_size:
            lacking.append(stored + wanted - self._max_size)
        if self._min_free:
            lacking.append(self._too_little_free(max(0, reserved - going_on), wanted))
        return max(lacking)

    def _too_little_free(self, unwritten: int, wanted: int) -> int:
        """The bytes that are too few on the disk, once what is reserved has been written as well."""
        disk = self._tree.disk()
        return min(self._min_free, disk.size // LARGEST_FLOOR) - (disk.free - unwritten - wanted)

    # Making room

    def _make_room(self, wanted: int, gone: list[Entry]) -> None:
        """Drop until `wanted` bytes fit, and reserve them; raises NoSpace.

        Nothing goes for nothing, unless there is more that may go than is remembered, and not enough of it.
        A look is made for what may go, as often as it takes.
        """
        while not self._drop(wanted, gone):
            if time.monotonic() < self._rest_until:
                raise NoSpace
            self.look()
            before = len(gone)
            if self._drop(wanted, gone, even_if_too_few=not self._candidates.found.are_all):
                return
            if len(gone) == before:
                self._rest_until = self._looked + (REST * self._look_took if self._look_took > BRIEF else 0.0)
                raise NoSpace

    def _drop(self, wanted: int, gone: list[Entry], *, even_if_too_few: bool = False) -> bool:
        """Reserve `wanted` bytes if there is room, or what is known to be free to go makes it; what went is added."""
        kept = self._candidates.kept()
        with self._ledger() as book:
            if not book.is_known:
                return False
            lacking = self._lacking(book, wanted)
            chosen = self._candidates.choose(lacking, kept)
            if sum(map(taken, chosen)) < lacking and not even_if_too_few:
                return False
            went = self._candidates.drop(chosen)
            gone += went
            if self._freed(book, went) < lacking:
                return False
            self._reserve(wanted)
        return True

    def _freed(self, book: Ledger, gone: Sequence[Entry]) -> int:
        """Take what is gone off the ledger; returns how many bytes that is, those of downloads included."""
        book.change(-sum(taken(entry) for entry in gone if entry.key.startswith("blobs/")))
        return sum(map(taken, gone))

    def look(self, idle: Callable[[], float] = lambda: 0.0) -> None:
        """Look at everything, without the lock, and correct the ledger by what was found; blocking."""
        began, self._is_doubtful = time.monotonic(), False
        with self._ledger() as book:
            before = book.came
        found = self._candidates.look(idle)
        with self._ledger() as book:
            self._candidates.found = found
            # What has come meanwhile may have been seen as well, and what has gone too: rather too much than too
            # little, until the next look.
            book.correct(found.total + max(0, book.came - before))
        self._look_took = time.monotonic() - began
        self._looked = time.monotonic()

    async def prepare(self) -> None:
        """Look for what may go before room is wanted, if that will be soon: no download is to wait for a look.

        Also where a process has died: what it stored last may not have been counted.
        """
        if await hop(self._wants_a_look):
            async with self._making_room:
                await hop(self.look, lambda: 0.0 if self._waiters else IDLE)

    def _wants_a_look(self) -> bool:
        is_recent = time.monotonic() - self._looked < max(PAUSE, REST * self._look_took)
        if is_recent or not self._is_limited:
            return False
        with self._ledger() as book:
            is_nearly_full = self._lacking(book, AHEAD) > 0
        return self._is_doubtful or (is_nearly_full and self._candidates.size < AHEAD)
