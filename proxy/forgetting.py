"""Small files that have nothing to say any more: links and tags of what went long ago, pins that ran out long ago.

A link without its blob still spares a question to upstream, and a tag without its manifest says when upstream was
asked: worth keeping for a while, and not for years. What a tag has stood for (its history) is kept. Blocking.
"""

import time
from collections.abc import Iterator
from itertools import chain

from proxy.files import Entry, Tree, unhurried
from proxy.oci.digest import Digest
from proxy.oci.reference import Tag
from proxy.stores.keys import blob_key, parse_key
from proxy.stores.records import read_pin, read_tag

LIFE = 30 * 86400.0  # seconds; more than any clock is wrong by
IDLE = 4.0  # times as long as it works it rests, for those who pull


def forget(tree: Tree) -> int:
    """Remove them; returns how many there were. Raises OSError."""
    found = unhurried(tree.walk("repositories"), lambda: IDLE)
    return sum(tree.evict(entry.key, entry.used) for entry in chain(_useless(tree, found), _run_out(tree)))


def _useless(tree: Tree, entries: Iterator[Entry]) -> Iterator[Entry]:
    """Links and tags, unused for long, whose blobs are not there."""
    old = time.time() - LIFE
    for entry in entries:
        record = parse_key(entry.key) if entry.used < old else None
        if record is None:
            continue
        digest: Digest | None = None
        if record.kind == "link" and isinstance(record.name, Digest):
            digest = record.name
        elif record.kind == "tag" and isinstance(record.name, Tag):
            tag = read_tag(tree, record.repository, record.name)
            digest = None if tag is None or tag.is_frozen else tag.digest
        if digest is not None and not tree.has(blob_key(digest)):
            yield entry


def _run_out(tree: Tree) -> Iterator[Entry]:
    for entry in tree.scan("pins"):
        pin = read_pin(tree, entry.key)
        if pin is not None and not pin.holds(time.time() - LIFE):
            yield entry
