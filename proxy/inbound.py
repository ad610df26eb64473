"""All that is in a bucket, into the directory: each object is held against its digest as it comes.

Nothing in the directory makes room for it: what does not fit is said before anything comes.
"""

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace
from functools import partial

from proxy.blob_stream import BlobStream, Interrupted
from proxy.eviction import Bounds, NoSpace, Space
from proxy.files import Tree, hop
from proxy.fill import Means
from proxy.housekeeping import drop_lost, sweep
from proxy.intake import Intake, WrongBytes
from proxy.inventory import size as said
from proxy.migrating import (
    KINDS,
    Bring,
    Crossing,
    Fate,
    Item,
    Kind,
    Left,
    MigrationFailed,
    Pauses,
    is_of,
    supersedes,
)
from proxy.oci.reference import Tag
from proxy.stores.disk import DiskBlobs, DiskRepositories
from proxy.stores.keys import blob_digest, parse_key, spool_key
from proxy.stores.ledger import rounded
from proxy.stores.records import is_known_record, limit, parse_record, parse_tag
from proxy.stores.s3 import Stored
from proxy.stores.s3_errors import BucketError
from proxy.telemetry import quiet

AT_ONCE = 1000  # keys that are looked for in the directory at a time


class _Blobs(frozenset[str]):
    """Every blob there is, or will be: none of them is to go."""

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.startswith("blobs/")


@contextlib.asynccontextmanager
async def means(tree: Tree, bounds: Bounds) -> AsyncIterator[Means]:
    """The directory, to put blobs into, as long as they fit. Raises OSError."""
    blobs = DiskBlobs(tree)
    space = Space(tree, bounds, record_uses=blobs.record_uses, kept=_Blobs, evicted=lambda _: None)
    await drop_lost(tree)
    await hop(sweep, tree)
    await hop(space.open)
    try:
        yield Means(tree, blobs, space, quiet(), spool_key)
    finally:
        await space.aclose()


class Inbound:
    """Brings a bucket into a directory."""

    def __init__(self, means: Means, crossing: Crossing) -> None:
        self._tree = means.tree
        self._space = means.space
        self._intake = Intake(means)
        self._repositories = DiskRepositories(means.tree)
        self._crossing = crossing

    async def wanted(self) -> int:
        """The bytes of all blobs that the directory does not have.

        Raises MigrationFailed if there is no room for them, BucketError, OSError.
        """
        size = taken = 0
        async for item in self._items("blob"):
            if not item.is_there:
                size, taken = size + item.size, taken + rounded(item.size)
        room = await self._space.room()
        if taken > room:
            raise MigrationFailed(
                f"{said(taken)} are to come, and there is room for {said(int(room))}, unless something goes: raise "
                "store.max_size, or see to a larger disk (store.min_free of it stays free)"
            )
        return size

    async def run(self) -> None:
        """Bring everything over. Raises BucketError, MigrationFailed, OSError."""
        for kind in KINDS:
            await self._crossing.each(kind, self._items(kind), self._bring(kind))

    def _bring(self, kind: Kind) -> Bring:
        return self._blob if kind == "blob" else partial(self._record, kind)

    async def _items(self, kind: Kind) -> AsyncGenerator[Item]:
        """What is in the bucket, a page of it at a time, each beside what the directory has of it."""
        root = "blobs/" if kind == "blob" else "repositories/"
        async with contextlib.aclosing(_pages(self._crossing.listed(root))) as pages:
            async for page in pages:
                found = [one for one in page if is_of(kind, one.key)]
                for one, size in zip(found, await hop(self._sizes, found), strict=True):
                    is_there = size == one.size if kind == "blob" else kind == "link" and bool(size)
                    yield Item(one.key, one.size, is_there)

    def _sizes(self, found: Sequence[Stored]) -> list[int | None]:
        return [self._tree.size(one.key) for one in found]

    # One thing

    async def _blob(self, item: Item) -> Fate:
        digest = blob_digest(item.key)
        if digest is None or self._crossing.is_dry:
            return Fate.MOVED
        source = _Source(self._crossing, item)
        try:
            await self._intake.take(digest, item.size, source.read)
        except WrongBytes:
            raise Left("it is damaged: its bytes are not those of its digest") from None
        except _Gone:
            return Fate.GONE
        except NoSpace:
            raise MigrationFailed(
                "there is no room for the rest, since something else has come meanwhile: raise store.max_size"
            ) from None
        finally:
            await source.aclose()
        return Fate.MOVED

    async def _record(self, kind: Kind, item: Item) -> Fate:
        if self._crossing.is_dry and kind == "link":
            return Fate.MOVED
        theirs = await self._crossing.ask(lambda: self._crossing.bucket.read(item.key, limit(kind)))
        if theirs is None and item.size <= limit(kind):
            return Fate.GONE
        if theirs is None or not is_known_record(item.key, theirs):
            raise Left("it is damaged: it cannot be read as what its key says it is")
        mine = await self._tree.read(item.key, limit(kind))
        if kind != "link" and mine is not None and not supersedes(kind, theirs, mine, time.time()):
            return Fate.THERE
        if self._crossing.is_dry:
            return Fate.MOVED
        if kind == "tag":
            return await self._tag(item.key, theirs)
        await self._tree.write(item.key, theirs)
        return Fate.MOVED

    async def _tag(self, key: str, body: bytes) -> Fate:
        """Record what a tag stands for, unless it is frozen here; that it is frozen elsewhere says nothing of here."""
        record, tag = parse_key(key), parse_tag(parse_record(body) or {})
        if record is None or tag is None or not isinstance(record.name, Tag):
            raise Left("it is no tag")
        thawed = replace(tag, is_frozen=False)
        is_recorded = await self._repositories.put_tag(record.repository, record.name, thawed)
        return Fate.MOVED if is_recorded else Fate.THERE


class _Gone(Exception):
    """The object is there no more."""


class _Source:
    """The bytes of an object, in pieces, gone on with where the bucket breaks off."""

    def __init__(self, crossing: Crossing, item: Item) -> None:
        self._crossing = crossing
        self._item = item
        self._stack = contextlib.AsyncExitStack()
        self._stream: BlobStream | None = None
        self._pauses = Pauses()
        self._done = 0

    async def read(self, count: int) -> bytes:
        """About so many bytes, none at the end. Raises WrongBytes, _Gone, BucketError, MigrationFailed."""
        piece = bytearray()
        while len(piece) < count and (data := await self._some()):
            piece += data
        await self._crossing.throttle.spend(len(piece))
        return bytes(piece)

    async def _some(self) -> bytes:
        while self._done < self._item.size:
            try:
                data = await (self._stream or await self._open()).read()
            except (BucketError, Interrupted) as error:
                await self.aclose()
                passing = BucketError("what it sends breaks off", passes=True)
                await self._pauses.after(error if isinstance(error, BucketError) else passing)
                continue
            if not data:
                raise WrongBytes
            self._pauses = Pauses()
            self._done += len(data)
            self._crossing.arrived(len(data))
            return data
        return b""

    async def _open(self) -> BlobStream:
        stream = await self._stack.enter_async_context(self._crossing.bucket.open(self._item.key, self._done))
        if stream is None:
            raise _Gone
        if stream.start != self._done or stream.total != self._item.size:
            raise WrongBytes
        self._stream = stream
        return stream

    async def aclose(self) -> None:
        """Let go of what is open."""
        self._stream = None
        await self._stack.aclose()


async def _pages(listed: AsyncGenerator[Stored]) -> AsyncGenerator[list[Stored]]:
    page = list[Stored]()
    async with contextlib.aclosing(listed):
        async for one in listed:
            page.append(one)
            if len(page) == AT_ONCE:
                yield page
                page = []
    yield page
