"""The store on local disk: the directory is the database.

blobs/<algorithm>/<two digits>/<hex>          verified bytes, 0400, never opened for writing again
repositories/<registry>/<name>/_tags/<tag>    what a tag stood for, and when upstream was asked
repositories/<registry>/<name>/_history/<tag> each digest that a tag has stood for, and since when
repositories/<registry>/<name>/_links/<algorithm>/<hex>   last modified when a manifest was last asked for
pins/<registry>/<name>/_tags/<tag>, .../_links/<algorithm>/<hex>   what is not to go, and until when
spool/<algorithm>-<hex>, spool/taken-<random> blobs on their way in, from upstream or from a bundle
limits/<registry>/<hex>                       what an upstream allows an account, and until when it is not to be asked
replica                                       32 random bytes: what other replicas on a bucket know this directory by
boot                                          the boot of the machine that last wrote here
changes                                       another content each time that an operator changes something
jobs/<name>                                   when some work was last done, locked by the process that is at it
quarantine/<seconds>-<random>-<name>          what was damaged, or has no place here: never served, dropped in time
recordings/                                   what clients ask for, while somebody records (proxy/recorder.py)
uploads/<key>                                 what has yet to get into the bucket (proxy/uploads.py)
tmp/, ledger/                                 small files on their way in; how much space is taken
"""

import errno
import json
import os
import re
import secrets
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

from cachetools import LRUCache

from proxy.files import Handle, Tree, hop
from proxy.later import Later
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError
from proxy.oci.history import END, Move
from proxy.oci.reference import Repository, Tag
from proxy.stores import ledger, quarantine
from proxy.stores.base import Link, Pin, TagRecord

UPLOADS = "uploads"
DIRECTORIES = (
    "blobs", "repositories", "pins", "spool", "tmp", ledger.DIRECTORY, "limits", "jobs", quarantine.DIRECTORY,
    "recordings", UPLOADS,
)  # fmt: skip
BOOT = "boot"  # the file that says which boot of which machine the downloads in spool/ are from
BOOT_LIMIT = 64  # bytes
CHANGES = "changes"  # the file that says, by being another, that an operator has changed what workers remember
CHANGES_LIMIT = 64  # bytes
RECORD_LIMIT = 4096  # bytes of a link's or a tag's file
HISTORY_LIMIT = 256 * 1024  # bytes of a tag's history
TAG_LOCKS = 16  # files, one of which is locked while a tag is recorded
LINKS_IN_MEMORY = 65536
USES_IN_MEMORY = 65536
BLOBS_IN_MEMORY = 65536  # digests, not bytes
_SHARD = re.compile(r"blobs(/sha(256|512)(/[0-9a-f]{2})?)?", re.ASCII)
_LARGEST = 2**63  # bytes that no blob has
_LONGEST_DIRECTORY = 1024  # characters; a repository's name has 255 at most


def open_tree(path: Path) -> Tree:
    """Open the cache directory, making what is missing; blocking. Raises UnsafeDirectory or OSError."""
    tree = Tree(path)
    try:
        tree.open_root(DIRECTORIES)
    except BaseException:
        tree.close()
        raise
    return tree


async def announce_change(tree: Tree) -> None:
    """Have every process read anew what it remembers, within a few seconds. Raises OSError."""
    await tree.write(CHANGES, secrets.token_hex(16).encode())


def blob_key(digest: Digest) -> str:
    """Where a blob is kept."""
    return f"blobs/{digest.algorithm}/{digest.encoded[:2]}/{digest.encoded}"


def upload_key(key: str) -> str:
    """The file that says that another one has yet to get into the bucket."""
    return f"{UPLOADS}/{key}"


def spool_key(digest: Digest) -> str:
    """Where a blob grows: the meeting point of all processes that want it."""
    return f"spool/{digest.algorithm}-{digest.encoded}"


def set_aside(tree: Tree, key: str, status: os.stat_result) -> str | None:
    """As quarantine.set_aside(): what was a blob is stored no more, and leaves room to fetch it again."""
    if blob_digest(key) is None:
        return quarantine.set_aside(tree, key, status)
    with ledger.taking_out(tree) as gone:
        moved = quarantine.set_aside(tree, key, status)
        if moved is not None:
            gone.append(status.st_size)
    return moved


class DiskBlobs:
    """Blobs as files named by their digest; the time of last modification is the time of last use."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._uses: LRUCache[Digest, float] = LRUCache(USES_IN_MEMORY)
        self._known: LRUCache[Digest, bool] = LRUCache(BLOBS_IN_MEMORY)  # that were there, and are not known to be gone

    async def open(self, digest: Digest) -> Handle | None:
        handle = await self.tree.open(blob_key(digest))
        if handle is None:
            self._known.pop(digest, None)
        else:
            self._known[digest] = True
        return handle

    def is_known(self, digest: Digest) -> bool:
        return digest in self._known

    async def put(self, digest: Digest, body: bytes) -> None:
        await self.tree.write(blob_key(digest), body, committed=True)

    async def adopt(self, digest: Digest, spool: Handle, key: str | None = None) -> None:
        await self.tree.commit_spool(key or spool_key(digest), spool, blob_key(digest))

    async def fetch(self, digest: Digest, limit: int) -> bytes | None:
        return None

    async def remove(self, digest: Digest, damaged: Handle) -> None:
        self._known.pop(digest, None)
        await hop(lambda: set_aside(self.tree, blob_key(digest), os.fstat(damaged.fd)))

    def used(self, digest: Digest) -> None:
        self._uses[digest] = time.time()

    async def record_uses(self) -> None:
        """Write down the uses since the last time: once in a while, not once a request. What is gone is known then."""
        uses = {blob_key(digest): (digest, when) for digest, when in self._uses.items()}
        self._uses.clear()
        if uses:
            for key in await self.tree.touch((key, when) for key, (_, when) in uses.items()):
                self._known.pop(uses[key][0], None)


class DiskRepositories:
    """Links and tags as small JSON files, written whole and renamed into place."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._links: LRUCache[tuple[Repository, Digest], Link] = LRUCache(LINKS_IN_MEMORY)
        self._pulls: LRUCache[tuple[Repository, Digest], float] = LRUCache(USES_IN_MEMORY)
        self._unwritten: Later[tuple[Repository, Digest]] = Later(LINKS_IN_MEMORY)  # that the disk would not take

    async def link(self, repository: Repository, digest: Digest) -> Link | None:
        return await self._link_here(repository, digest)

    def is_known(self, repository: Repository, digest: Digest) -> bool:
        return (repository, digest) in self._links

    async def _link_here(self, repository: Repository, digest: Digest) -> Link | None:
        known = self._links.get((repository, digest))
        if known is not None:
            return known
        record = await self._read(link_key(repository, digest))
        link = None if record is None else parse_link(record)
        if link is not None:
            self._links[repository, digest] = link
        return link

    async def put_link(self, repository: Repository, digest: Digest, link: Link) -> None:
        try:
            known = await self._link_here(repository, digest)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            known = None  # it cannot be read: the new one takes its name
        if known == link and (repository, digest) not in self._unwritten:
            return
        cached = time.time() if known is None or known.cached is None else known.cached
        self._links[repository, digest] = replace(link, cached=cached)  # true whether or not the disk has room for it
        self._unwritten.add((repository, digest))
        record = {"size": link.size, "mediaType": link.media_type, "cached": cached}
        await self._write(link_key(repository, digest), record)
        self._unwritten.discard((repository, digest))

    async def write_again(self) -> None:
        """Write the links that the disk would not take before. Raises OSError."""

        async def write(image: tuple[Repository, Digest]) -> None:
            link = self._links.get(image)
            if link is not None:
                self._unwritten.add(image)
                await self.put_link(*image, link)

        await self._unwritten.again(write)

    async def tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        record = await self._read(tag_key(repository, tag))
        return None if record is None else parse_tag(record)

    async def put_tag(self, repository: Repository, tag: Tag, record: TagRecord, *, thaws: bool = False) -> bool:
        return await hop(self._put_tag, repository, tag, record, thaws)

    def _put_tag(self, repository: Repository, tag: Tag, record: TagRecord, thaws: bool) -> bool:
        """Look and write under one lock: whoever freezes a tag while another one notes it must not lose."""
        key = tag_key(repository, tag)
        with self._tree.locked(f"jobs/tags-{zlib.crc32(key.encode()) % TAG_LOCKS}"):
            known = read_tag(self._tree, repository, tag)
            if known is not None and known.is_frozen and not (record.is_frozen or thaws):
                return False
            frozen = {"frozen": True} if record.is_frozen else {}
            body = {"digest": str(record.digest), "checked": record.checked, **frozen}
            self._tree.write_now(key, _as_json(body))
        return True

    async def drop_tag(self, repository: Repository, tag: Tag) -> None:
        await self._tree.remove(tag_key(repository, tag))

    async def history(self, repository: Repository, tag: Tag) -> Sequence[Move]:
        record = await self._read(history_key(repository, tag), HISTORY_LIMIT)
        return () if record is None else parse_history(record)

    async def put_history(self, repository: Repository, tag: Tag, history: Sequence[Move]) -> None:
        moves = [[round(move.at, 3), str(move.digest)] for move in history]
        await self._write(history_key(repository, tag), {"moves": moves})

    def pulled(self, repository: Repository, digest: Digest) -> None:
        self._pulls[repository, digest] = time.time()

    async def record_pulls(self) -> None:
        """Write down the pulls since the last time: once in a while, not once a request."""
        images = {link_key(*image): image for image in self._pulls}
        pulls = [(link_key(*image), when) for image, when in self._pulls.items()]
        self._pulls.clear()
        if pulls:
            # Memory knows the link; the next process will not, unless it is written again.
            for key in await self._tree.touch(pulls):
                self._unwritten.add(images[key])

    async def put_pin(self, repository: Repository, name: Tag | Digest, pin: Pin) -> None:
        """Keep a tag's image, or a manifest, from going."""
        await self._write(
            pin_key(repository, name), {"since": pin.since, "until": pin.until, "deleted": pin.is_deleted}
        )

    async def drop_pin(self, repository: Repository, name: Tag | Digest) -> None:
        """Let it go again."""
        await self._tree.remove(pin_key(repository, name))

    def forget(self) -> None:
        """Read everything anew: somebody else has changed it."""
        self._links.clear()

    async def _read(self, key: str, limit: int = RECORD_LIMIT) -> Mapping[str, Any] | None:
        """A record; None if there is none, or a power cut left no more than its name."""
        body = await self._tree.read(key, limit)
        return None if body is None else parse_record(body)

    async def _write(self, key: str, record: Mapping[str, Any]) -> None:
        await self._tree.write(key, _as_json(record))


def _as_json(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Record:
    """A small file of a repository: what kind it is of, and of which tag or digest it speaks."""

    kind: Literal["tag", "link", "pin", "history"]
    repository: Repository
    name: Tag | Digest


def parse_key(key: str) -> Record | None:
    """What the file of a key below repositories/ or pins/ is; None for a stranger."""
    root, _, rest = key.partition("/")
    for marker, kind, read in _RECORDS:
        path, found, name = rest.partition(marker)
        registry, slash, repository = path.partition("/")
        if found and slash and registry:
            try:
                return Record("pin" if root == "pins" else kind, Repository(registry, repository), read(name))
            except OciError:
                return None
    return None


def blob_digest(key: str) -> Digest | None:
    """The digest that a key below blobs/ is for; None for a stranger."""
    algorithm, _, rest = key.removeprefix("blobs/").partition("/")
    shard, _, encoded = rest.partition("/")
    try:
        return Digest(algorithm, encoded) if encoded.startswith(shard) else None
    except OciError:
        return None


def is_directory_of_ours(key: str) -> bool:
    """Whether a directory may be at a key below blobs/, repositories/ or pins/."""
    root, *parts = key.split("/")
    if root == "blobs":
        return _SHARD.fullmatch(key) is not None
    marker = next((number for number, part in enumerate(parts) if part.startswith("_")), len(parts))
    inner = parts[marker + 1 :]
    return len(key) < _LONGEST_DIRECTORY and (not inner or (parts[marker] == "_links" and len(inner) == 1))


def is_another_versions(key: str) -> bool:
    """Whether a directory below repositories/ or pins/ has a mark that is none of ours: a newer version's, perhaps."""
    root, *above, name = key.split("/")
    if root == "blobs" or any(part.startswith("_") for part in above):
        return False
    return name.startswith("_") and not any(marker == f"/{name}/" for marker, _, _ in _RECORDS)


def is_known_record(key: str, body: bytes) -> bool:
    """Whether a record can be read as what the file of a key below repositories/ or pins/ should be."""
    record, parsed = parse_key(key), parse_record(body)
    if record is None or parsed is None:
        return False
    if len(body) > (HISTORY_LIMIT if record.kind == "history" else RECORD_LIMIT):
        return False
    return bool(_READ[record.kind](parsed))


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


def _digest_of_path(path: str) -> Digest:
    return Digest.parse(path.replace("/", ":", 1))


_RECORDS: tuple[tuple[str, Literal["tag", "link", "history"], Callable[[str], Tag | Digest]], ...] = (
    ("/_tags/", "tag", Tag),
    ("/_links/", "link", _digest_of_path),
    ("/_history/", "history", Tag),
)


def link_key(repository: Repository, digest: Digest) -> str:
    """Where the link of a digest is kept."""
    return f"repositories/{repository}/_links/{digest.algorithm}/{digest.encoded}"


def tag_key(repository: Repository, tag: Tag) -> str:
    """Where it is kept what a tag stands for."""
    return f"repositories/{repository}/_tags/{tag}"


def history_key(repository: Repository, tag: Tag) -> str:
    """Where it is kept what a tag has stood for."""
    return f"repositories/{repository}/_history/{tag}"


def pin_key(repository: Repository, name: Tag | Digest) -> str:
    """Where a pin is kept."""
    key = tag_key(repository, name) if isinstance(name, Tag) else link_key(repository, name)
    return key.replace("repositories/", "pins/", 1)


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


def parse_pin(record: Mapping[str, Any]) -> Pin | None:
    """A pin as it is written; None for what is none."""
    since, until = record.get("since"), record.get("until")
    if not _is_moment(since) or not (until is None or _is_moment(until)):
        return None
    return Pin(float(since), None if until is None else float(until), record.get("deleted") is True)


def read_tag(tree: Tree, repository: Repository, tag: Tag) -> TagRecord | None:
    """What a tag stands for; blocking."""
    record = _read_now(tree, tag_key(repository, tag))
    return None if record is None else parse_tag(record)


def read_history(tree: Tree, repository: Repository, tag: Tag) -> tuple[Move, ...]:
    """What a tag has stood for; blocking."""
    body = tree.read_now(history_key(repository, tag), HISTORY_LIMIT)
    record = None if body is None else parse_record(body)
    return () if record is None else parse_history(record)


def read_link(tree: Tree, repository: Repository, digest: Digest) -> Link | None:
    """The link of a digest; blocking."""
    record = _read_now(tree, link_key(repository, digest))
    return None if record is None else parse_link(record)


def read_pin(tree: Tree, key: str) -> Pin | None:
    """The pin of a key; blocking."""
    record = _read_now(tree, key)
    return None if record is None else parse_pin(record)


def _read_now(tree: Tree, key: str) -> Mapping[str, Any] | None:
    body = tree.read_now(key, RECORD_LIMIT)
    return None if body is None else parse_record(body)


def _is_size(value: object) -> TypeGuard[int | None]:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST)


def _is_moment(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < END


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


_READ: Mapping[str, Callable[[Mapping[str, Any]], object]] = {
    "tag": parse_tag, "link": parse_link, "pin": parse_pin, "history": parse_history,
}  # fmt: skip
