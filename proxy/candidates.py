"""What may go when room is wanted, and in which order: found by a look at the whole store, used up little by little.

A look takes seconds where there are a million blobs. It needs no lock, and keeps the first few thousand in memory only;
what has been used since, or is gone, is passed over when its turn comes.
"""

import heapq
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from proxy.files import Entry, Tree, unhurried
from proxy.stores.ledger import rounded

MOST = 16384  # candidates that are kept of a look: a few megabytes
SMALL = 64 * 1024  # bytes; manifests and configs are dropped after everything else: they free nothing and name the rest
DEAR = 8 * 1024 * 1024  # bytes; to fetch fewer again takes hardly less time: what is smaller stays for longer
IDLE = 4.0  # times as long as it works, a look rests that is in no hurry
SELDOM = 20.0  # times as long as it took to find out what is kept, it is taken for true


@dataclass(frozen=True, slots=True)
class Found:
    """What a look has found: how many bytes all blobs take, and what may go, first things first."""

    total: int = 0
    candidates: Sequence[Entry] = ()
    are_all: bool = True  # or there are more than are remembered


class Candidates:
    """The blobs and broken-off downloads of one store that may go. Everything blocks.

    A look may go on beside everything else, and so may kept(); the rest is for one thread at a time, as whoever holds
    the ledger. `kept` says which keys must not go, whatever is wanted.
    """

    def __init__(self, tree: Tree, kept: Callable[[], frozenset[str]]) -> None:
        self._tree = tree
        self._ask = kept
        self._asking = threading.Lock()
        self._keys_kept: frozenset[str] = frozenset()
        self._kept_until = 0.0  # of the monotonic clock
        self.found = Found()

    @property
    def size(self) -> int:
        """Bytes of those that are known."""
        return sum(map(taken, self.found.candidates))

    def look(self, idle: Callable[[], float]) -> Found:
        """Look at every blob there is. Raises OSError.

        `idle`: how many times as long as it works it is to rest, in short pauses, for the sake of those who pull.
        """
        now, kept, total = time.time(), self.kept(), 0

        def candidates() -> Iterator[Entry]:
            nonlocal total
            for entry in unhurried(self._tree.walk("blobs"), idle):
                total += taken(entry)
                if entry.key not in kept:
                    yield entry

        first = heapq.nsmallest(MOST + 1, candidates(), key=lambda entry: _order(entry, now))
        return Found(total, first[:MOST], len(first) <= MOST)

    def kept(self) -> frozenset[str]:
        """What is kept; where that takes long to find out (thousands of pins), as it was a moment ago.

        Not for whoever holds the ledger: nobody could get on meanwhile. One thread finds out for all.
        """
        if time.monotonic() >= self._kept_until and self._asking.acquire(blocking=not self._kept_until):
            try:
                began = time.monotonic()
                if began >= self._kept_until:
                    self._keys_kept = self._ask()
                    self._kept_until = began + SELDOM * (time.monotonic() - began)
            finally:
                self._asking.release()
        return self._keys_kept

    def choose(self, wanted: int, kept: frozenset[str]) -> list[Entry]:
        """The first that may go now and free `wanted` bytes; fewer bytes if there are not as many."""
        if wanted <= 0:
            return []
        chosen, size = list[Entry](), 0
        spools = sorted(self._tree.walk("spool"), key=lambda entry: entry.used)
        for entry in (*spools, *self.found.candidates):
            if size >= wanted:
                break
            if entry.key not in kept and self._tree.is_free(entry.key, entry.used):
                chosen.append(entry)
                size += taken(entry)
        return chosen

    def drop(self, chosen: Iterable[Entry]) -> list[Entry]:
        """Remove them; returns those that went, and were not taken into use in the meantime."""
        gone = [entry for entry in chosen if self._tree.evict(entry.key, entry.used)]
        if gone:
            keys = {entry.key for entry in gone}
            left = [entry for entry in self.found.candidates if entry.key not in keys]
            self.found = replace(self.found, candidates=left)
        return gone


def taken(entry: Entry) -> int:
    """The bytes that a file takes on the disk."""
    return rounded(entry.size)


def _order(entry: Entry, now: float) -> tuple[bool, float, float]:
    """Blobs by last use, what is too small to matter after all others.

    Seconds without use count for less the smaller a blob is: it frees little, and to get it back takes a request all
    the same.
    """
    weight = entry.size / (entry.size + DEAR)
    return entry.size <= SMALL, -max(0.0, now - entry.used) * weight, entry.used
