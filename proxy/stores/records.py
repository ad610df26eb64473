"""The small files of a repository, its links, tags, histories and pins: what is written in them, and read.

Whatever a file holds, what is read of it is a right value or none: anybody may write into a bucket, and disks fail.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from proxy.files import Tree
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError
from proxy.oci.history import END, Move
from proxy.oci.reference import Repository, Tag
from proxy.stores.base import Link, Pin, TagRecord
from proxy.stores.keys import history_key, is_directory_of_ours, link_key, parse_key, tag_key

RECORD_LIMIT = 4096  # bytes of a link's or a tag's file
HISTORY_LIMIT = 256 * 1024  # bytes of a tag's history
_LARGEST = 2**63  # bytes that no blob has


def link_body(link: Link) -> bytes:
    """How a link is written."""
    return _as_json({"size": link.size, "mediaType": link.media_type, "cached": link.cached})


def tag_body(record: TagRecord) -> bytes:
    """How it is written what a tag stands for."""
    frozen = {"frozen": True} if record.is_frozen else {}
    return _as_json({"digest": str(record.digest), "checked": record.checked, **frozen})


def history_body(history: Sequence[Move]) -> bytes:
    """How it is written what a tag has stood for."""
    return _as_json({"moves": [[round(move.at, 3), str(move.digest)] for move in history]})


def pin_body(pin: Pin) -> bytes:
    """How a pin is written."""
    return _as_json({"since": pin.since, "until": pin.until, "deleted": pin.is_deleted})


def _as_json(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()


def parse_record(body: bytes) -> Mapping[str, Any] | None:
    """The JSON object of a small file; None where a power cut left no more than its name."""
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, Mapping) else None


def parse_link(record: Mapping[str, Any]) -> Link | None:
    """A link as it is written; None for what is none."""
    size, media_type, cached = record.get("size"), record.get("mediaType"), record.get("cached")
    if _is_size(size) and isinstance(media_type, str | None):
        return Link(size, media_type, float(cached) if _is_moment(cached) else None)
    return None


def parse_tag(record: Mapping[str, Any]) -> TagRecord | None:
    """What a tag stands for, as it is written; None for what is nothing of the kind."""
    digest, checked = record.get("digest"), record.get("checked")
    if not isinstance(digest, str) or not _is_moment(checked):
        return None
    try:
        return TagRecord(Digest.parse(digest), float(checked), record.get("frozen") is True)
    except OciError:
        return None


def parse_history(record: Mapping[str, Any]) -> tuple[Move, ...]:
    """A history as it is written; what of it is no move is passed over."""
    listed = record.get("moves")
    moves = []
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, list) and len(entry) == 2 and _is_moment(entry[0]) and isinstance(entry[1], str):
            try:
                moves.append(Move(float(entry[0]), Digest.parse(entry[1])))
            except OciError:
                continue
    return tuple(moves)


def parse_pin(record: Mapping[str, Any]) -> Pin | None:
    """A pin as it is written; None for what is none."""
    since, until = record.get("since"), record.get("until")
    if not _is_moment(since) or not (until is None or _is_moment(until)):
        return None
    return Pin(float(since), None if until is None else float(until), record.get("deleted") is True)


def _is_size(value: object) -> TypeGuard[int | None]:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST)


def _is_moment(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < END


def limit(kind: str) -> int:
    """The bytes that a record of a kind may have."""
    return HISTORY_LIMIT if kind == "history" else RECORD_LIMIT


def is_known_record(key: str, body: bytes) -> bool:
    """Whether a record can be read as what the file of a key below repositories/ or pins/ should be."""
    record, parsed = parse_key(key), parse_record(body)
    if record is None or parsed is None:
        return False
    return len(body) <= limit(record.kind) and bool(_READ[record.kind](parsed))


def read_link(tree: Tree, repository: Repository, digest: Digest) -> Link | None:
    """The link of a digest; blocking."""
    record = _read_now(tree, link_key(repository, digest))
    return None if record is None else parse_link(record)


def read_tag(tree: Tree, repository: Repository, tag: Tag) -> TagRecord | None:
    """What a tag stands for; blocking."""
    record = _read_now(tree, tag_key(repository, tag))
    return None if record is None else parse_tag(record)


def read_history(tree: Tree, repository: Repository, tag: Tag) -> tuple[Move, ...]:
    """What a tag has stood for; blocking."""
    body = tree.read_now(history_key(repository, tag), HISTORY_LIMIT)
    record = None if body is None else parse_record(body)
    return () if record is None else parse_history(record)


def read_pin(tree: Tree, key: str) -> Pin | None:
    """The pin of a key; blocking."""
    record = _read_now(tree, key)
    return None if record is None else parse_pin(record)


def _read_now(tree: Tree, key: str) -> Mapping[str, Any] | None:
    body = tree.read_now(key, RECORD_LIMIT)
    return None if body is None else parse_record(body)


def holders(tree: Tree, digests: Collection[Digest]) -> Iterator[tuple[Digest, Repository, Link]]:
    """Which repositories have links for some digests, looked for by name in every one of them; blocking."""
    folders = ["repositories"] if digests else []
    while folders:
        folder = folders.pop()
        for name, is_directory in tree.entries(folder):
            if name == "_links":
                yield from _linked(tree, folder.removeprefix("repositories/"), digests)
            elif is_directory and not name.startswith("_") and is_directory_of_ours(f"{folder}/{name}"):
                folders.append(f"{folder}/{name}")


def _linked(tree: Tree, path: str, digests: Collection[Digest]) -> Iterator[tuple[Digest, Repository, Link]]:
    registry, _, name = path.partition("/")
    try:
        repository = Repository(registry, name)
    except OciError:
        return
    for digest in digests:
        link = read_link(tree, repository, digest)
        if link is not None:
            yield digest, repository, link


_READ: Mapping[str, Callable[[Mapping[str, Any]], object]] = {
    "tag": parse_tag, "link": parse_link, "pin": parse_pin, "history": parse_history,
}  # fmt: skip
