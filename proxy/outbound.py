"""All that is in the directory, into the bucket: what is damaged is said, and stays behind.

A server may run beside it, and other replicas may write to the bucket: what they have recorded later stays.
"""

import contextlib
import time
from collections.abc import AsyncGenerator, Iterator
from functools import partial

from proxy import files
from proxy.files import PIECE, Entry, Handle, Tree, hop
from proxy.migrating import KINDS, Bring, Crossing, Fate, Item, Kind, Left, is_of, supersedes
from proxy.stores.keys import blob_digest, is_directory_of_ours
from proxy.stores.payloads import Whole
from proxy.stores.records import is_known_record, limit
from proxy.stores.s3 import Stored
from proxy.stores.s3_errors import Taken, Unconditional

_FOLDERS = {"link": "_links", "tag": "_tags", "history": "_history"}
_SHARD_DEPTH = 2  # slashes in the key of a directory that has blobs


class Outbound:
    """Brings a directory into a bucket."""

    def __init__(self, tree: Tree, crossing: Crossing) -> None:
        self._tree = tree
        self._crossing = crossing

    async def wanted(self) -> int:
        """The bytes of all blobs that the bucket does not have. Raises BucketError, MigrationFailed, OSError."""
        return sum([item.size async for item in self._items("blob") if not item.is_there])

    async def run(self) -> None:
        """Bring everything over. Raises BucketError, MigrationFailed, OSError."""
        for kind in KINDS:
            await self._crossing.each(kind, self._items(kind), self._bring(kind))

    def _bring(self, kind: Kind) -> Bring:
        if kind == "blob":
            return self._blob
        return self._link if kind == "link" else partial(self._record, kind)

    # What there is

    async def _items(self, kind: Kind) -> AsyncGenerator[Item]:
        """What is in the directory, a folder of it at a time, each beside what the bucket has of it."""
        folders = ["blobs" if kind == "blob" else "repositories"]
        while folders:
            folder = folders.pop()
            if not _is_for_files(kind, folder):
                folders += await hop(self._inner, kind, folder)
                continue
            there = {one.key: one async for one in self._crossing.listed(f"{folder}/")}
            for entry in await hop(self._tree.scan, folder, strict=True):
                if is_of(kind, entry.key):
                    yield Item(entry.key, entry.size, _is_sure(kind, entry, there.get(entry.key)))

    def _inner(self, kind: Kind, folder: str) -> list[str]:
        """The directories of a directory that may have files of a kind, or lead to some; blocking."""
        inner = [f"{folder}/{name}" for name, is_directory in self._tree.entries(folder) if is_directory]
        return [
            key
            for key in inner
            if is_directory_of_ours(key) and (_is_for_files(kind, key) or not _name(key).startswith("_"))
        ]

    # One thing

    async def _blob(self, item: Item) -> Fate:
        if self._crossing.is_dry:
            return Fate.MOVED
        with _readable():
            handle = await self._tree.open(item.key)
        if handle is None:
            return Fate.GONE
        try:
            await self._check(item.key, handle)
            await self._crossing.ask(lambda: self._upload(item.key, handle))
        finally:
            handle.close()
        return Fate.MOVED

    async def _check(self, key: str, handle: Handle) -> None:
        """Hold a blob against its digest. Raises Left."""
        digest = blob_digest(key)
        if digest is None:
            raise Left("it has no place in a cache")
        hasher, offset = digest.hasher(), 0
        while offset < handle.size:
            with _readable():
                data = await files.read_hashed(handle, offset, PIECE, hasher)
            if not data:
                break
            offset += len(data)
            await self._crossing.throttle.spend(len(data))
        if not digest.matches(hasher):
            raise Left("it is damaged: entrepot scrub takes it out, and fetches it again")

    async def _upload(self, key: str, handle: Handle) -> None:
        done = 0

        def sent(count: int) -> None:
            nonlocal done
            done += count
            self._crossing.arrived(count)

        try:
            await self._crossing.bucket.upload(key, Whole(handle), sent)
        except BaseException:
            self._crossing.arrived(-done)
            raise

    async def _link(self, item: Item) -> Fate:
        body = await self._read("link", item.key)
        if body is None:
            return Fate.GONE
        try:
            await self._write(item.key, body, is_new=True)
        except Taken:
            return Fate.THERE
        return Fate.MOVED

    async def _record(self, kind: Kind, item: Item) -> Fate:
        """What a tag stands for, or has stood for: until what the bucket has is no older than what is here."""
        was_taken = False
        while (mine := await self._read(kind, item.key)) is not None:
            theirs = await self._crossing.ask(lambda: self._crossing.bucket.read(item.key, limit(kind)))
            if theirs is not None and not supersedes(kind, mine, theirs, time.time()):
                return Fate.THERE
            try:
                await self._write(item.key, mine, is_new=theirs is None and not was_taken)
            except Taken:  # just now, by a replica; or what is there is no record at all
                was_taken = True
                continue
            if self._crossing.is_dry or await self._read(kind, item.key) == mine:
                return Fate.MOVED  # else a server has recorded something later, and may have sent it before this
        return Fate.GONE

    async def _read(self, kind: Kind, key: str) -> bytes | None:
        with _readable():
            body = await self._tree.read(key, limit(kind))
        if body is not None and not is_known_record(key, body):
            raise Left("it is damaged: entrepot scrub takes it out, and the next pull records it anew")
        return body

    async def _write(self, key: str, body: bytes, *, is_new: bool) -> None:
        """Raises Taken, BucketError, MigrationFailed."""
        if self._crossing.is_dry:
            return
        bucket = self._crossing.bucket
        try:
            await self._crossing.ask(lambda: bucket.write(key, body, is_new=is_new))
        except Unconditional:
            await self._crossing.ask(lambda: bucket.write(key, body))


def _is_for_files(kind: Kind, folder: str) -> bool:
    return folder.count("/") == _SHARD_DEPTH if kind == "blob" else _name(folder) == _FOLDERS[kind]


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def _is_sure(kind: Kind, entry: Entry, there: Stored | None) -> bool:
    """Whether what the bucket has needs no second look."""
    return there is not None and (kind == "link" or (kind == "blob" and there.size == entry.size))


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Around what the disk is to read: what it cannot stays where it is. Raises Left, and OSError for exhaustion."""
    try:
        yield
    except OSError as error:
        if files.is_exhausted(error):
            raise
        raise Left(f"the disk cannot read it ({error.strerror})") from None
