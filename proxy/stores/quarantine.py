"""What was taken out of the store because something is wrong with it: kept for a while to be looked at, never served.

Each has a name of its own below quarantine/, which begins with when it was put there. All of it blocks.
"""

import os
import secrets
import time
from collections import Counter

from proxy.files import Tree
from proxy.stores import ledger
from proxy.stores.keys import blob_digest

DIRECTORY = "quarantine"
LIFE = 7 * 86400.0  # seconds that something is kept ...
LARGEST = 1024**3  # ... and bytes of all; the oldest go first
_LONGEST = 160  # bytes of a name that are kept of it


def set_aside(tree: Tree, key: str, status: os.stat_result) -> str | None:
    """Move what is at a key, without following or opening it. Returns where to; None if it is there no more.

    Whoever has it open reads on. What was a blob is stored no more, and leaves room to fetch it again. Raises OSError.
    """
    if blob_digest(key) is None:
        return _moved(tree, key, status)
    with ledger.taking_out(tree) as gone:
        moved = _moved(tree, key, status)
        if moved is not None:
            gone.append(status.st_size)
    return moved


def _moved(tree: Tree, key: str, status: os.stat_result) -> str | None:
    name = os.fsdecode(os.fsencode(key.rpartition("/")[2])[:_LONGEST])
    target = f"{DIRECTORY}/{int(time.time())}-{secrets.token_hex(4)}-{name}"
    return target if tree.set_aside(key, status, target) else None


def sweep(tree: Tree, now: float) -> None:
    """Drop what has been there for long enough, and what is too much. Raises OSError."""
    sizes = Counter[str]()
    for entry in tree.scan(DIRECTORY):
        sizes[entry.key.split("/")[1]] += entry.size
    total = 0
    for name, _ in reversed(tree.entries(DIRECTORY)):  # the newest first
        since = name.partition("-")[0]
        age = now - int(since) if since.isascii() and since.isdigit() else LIFE
        if abs(age) >= LIFE or total + sizes[name] > LARGEST:  # far ahead of now: the clock was wrong
            tree.clear(f"{DIRECTORY}/{name}")
        else:
            total += sizes[name]


def size(tree: Tree) -> int:
    """The bytes of all that is there."""
    return sum(entry.size for entry in tree.scan(DIRECTORY))
