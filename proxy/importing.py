"""Bundles into the cache: every blob is held against its name, and an image is linked once all of it is there.

A bundle may come from anywhere: what it says of itself is believed in nothing but what the operator imports it for, the
names of its images.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence, Set
from dataclasses import dataclass, field

from proxy.archive import Reader
from proxy.eviction import NoSpace
from proxy.files import Handle, Stream
from proxy.fill import Means
from proxy.intake import Intake, WrongBytes
from proxy.oci import layout, manifest
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError
from proxy.oci.history import Move
from proxy.oci.layout import Entry, Layout
from proxy.oci.manifest import IMAGES, INDEXES, MOST_NESTED, Descriptor, Manifest, ManifestInvalid
from proxy.oci.reference import Reference, Repository, Tag
from proxy.oci.tar import Member, TarInvalid
from proxy.stores.base import Link, RepositoryStore, TagRecord
from proxy.tags import note_move

MOST_PARTS = 100_000  # blobs and manifests of one image, however often they are named
_LIMITS = {layout.INDEX_PATH: manifest.MAX_BYTES, layout.LAYOUT_PATH: layout.LAYOUT_LIMIT}  # bytes


class ImportFailed(Exception):
    """A bundle, or one of its images, will not be imported; the message says why."""


@dataclass(frozen=True, slots=True)
class Imported:
    """An image that is there now: its digest, and the sizes of all that belongs to it, in bytes."""

    digest: Digest
    blobs: dict[Digest, int]


@dataclass(slots=True)
class _Found:
    """What there is of an image, the manifests with the innermost first, and how many things are not there."""

    manifests: dict[Digest, Manifest] = field(default_factory=dict)
    blobs: dict[Digest, int] = field(default_factory=dict)
    missing: set[Digest] = field(default_factory=set)

    def add(self, other: "_Found") -> None:
        """All of that as well."""
        self.manifests |= other.manifests
        self.blobs |= other.blobs
        self.missing |= other.missing


class Importing:
    """Takes one bundle in: read() first, then image() for each of its images."""

    def __init__(self, means: Means, repositories: RepositoryStore) -> None:
        self._intake = Intake(means)
        self._blobs = means.blobs
        self._repositories = repositories
        self._taken: set[Digest] = set()
        self._since: str | None = None
        self._looks = 0
        self.new = 0  # bytes that the cache did not have

    async def read(self, stream: Stream, arrived: Callable[[int], None]) -> Layout:
        """Take the blobs in. `arrived` is told how far it is, in bytes. Raises ImportFailed, Unusable, OSError.

        What was right before something goes wrong stays in the cache, where it has no name, and goes as all such.
        """
        reader, said = Reader(stream), dict[str, bytes]()
        try:
            async for member in reader.members():
                if (digest := _digest(member.path)) is not None:
                    await self._blob(reader, member, digest, arrived)
                elif member.path in _LIMITS:
                    said[member.path] = await _small(reader, member, _LIMITS[member.path])
                arrived(reader.done)
        except TarInvalid as error:
            raise ImportFailed(str(error)) from None
        lacking = next((path for path in _LIMITS if path not in said), None)
        if lacking is not None:
            raise ImportFailed(f"it is no OCI image layout: it has no {lacking}")
        try:
            layout.check_layout(said[layout.LAYOUT_PATH])
            read = layout.parse_index(said[layout.INDEX_PATH])
        except ManifestInvalid as error:
            raise ImportFailed(f"its index.json or oci-layout is none: {error}") from None
        self._since = read.since
        return read

    async def _blob(self, reader: Reader, member: Member, digest: Digest, arrived: Callable[[int], None]) -> None:
        async def read(count: int) -> bytes:
            arrived(reader.done)
            return await reader.read(count)

        self._taken.add(digest)
        try:
            if await self._intake.take(digest, member.size, read):
                self.new += member.size
        except WrongBytes:
            raise ImportFailed(f"{member.path} has other bytes than its name says") from None
        except NoSpace:
            raise ImportFailed(f"{member.path}: the cache has no room for it") from None

    async def image(self, repository: Repository, reference: Reference, entry: Entry) -> Imported:
        """Link an image of the bundle, and have its tag stand for it. Raises ImportFailed, OSError."""
        top = entry.top
        if isinstance(reference, Digest) and reference != top.digest:
            raise ImportFailed(f"it is called by another digest than its own, {top.digest}")
        self._looks = 0
        found = await self._gathered(top, None if entry.parts is None else frozenset(entry.parts), MOST_NESTED)
        if missing := _meant(entry, found.missing):
            raise ImportFailed(self._lacking(missing))
        for digest, size in found.blobs.items():
            await self._repositories.put_link(repository, digest, Link(size))
            self._blobs.used(digest)
        for digest, one in found.manifests.items():
            await self._repositories.put_link(repository, digest, Link(len(one.body), one.media_type))
            self._blobs.used(digest)
        if isinstance(reference, Tag):
            await self._name(repository, reference, top.digest)
        return Imported(top.digest, found.blobs | {digest: len(one.body) for digest, one in found.manifests.items()})

    async def _name(self, repository: Repository, tag: Tag, digest: Digest) -> None:
        """Have a tag stand for an image, as a pull would."""
        known = await self._repositories.tag(repository, tag)
        if known is not None and known.is_frozen and known.digest != digest:
            raise ImportFailed(f"its tag is frozen at {known.digest}: it is there by its digest alone, {digest}")
        if known is None or not known.is_frozen:
            await self._repositories.put_tag(repository, tag, TagRecord(digest, time.time()))
            await note_move(self._repositories, repository, tag, Move(time.time(), digest))

    def _lacking(self, missing: Collection[Digest]) -> str:
        if any(digest in self._taken for digest in missing):
            return "the cache has no room for all of it: some of its blobs have gone again"
        first = "" if self._since is None else f"; this bundle leaves out what {self._since!a} has: import that first"
        return f"{len(missing)} of its blobs are neither in the bundle nor in the cache{first}"

    async def _gathered(self, one: Descriptor, parts: Set[Digest] | None, depth: int) -> _Found:
        """What a manifest needs, itself as the last. Raises ImportFailed, OSError."""
        found = _Found()
        top = await self._manifest(one)
        if top is None:
            found.missing.add(one.digest)
        elif top.media_type in INDEXES and depth:
            await self._platforms(top, parts, depth, found)
        else:
            for named in top.descriptors:
                if not named.is_elsewhere:
                    await self._look(named, found)
        if top is not None:
            found.manifests[one.digest] = top
        return found

    async def _platforms(self, top: Manifest, parts: Set[Digest] | None, depth: int, found: _Found) -> None:
        """The manifests of an index that its maker took; if he does not say, those that are in the bundle or whole."""
        for named in {named.digest: named for named in top.descriptors}.values():
            if parts is not None and named.digest not in parts:
                continue
            inner = await self._gathered(named, parts, depth - 1)
            if not inner.missing or parts is not None or named.digest in self._taken:
                found.add(inner)
        if parts is None and not found.manifests:
            raise ImportFailed("none of its platforms is in the bundle")

    async def _look(self, one: Descriptor, found: _Found) -> None:
        handle = await self._opened(one)
        if handle is None:
            found.missing.add(one.digest)
            return
        handle.close()
        if handle.size != one.size:
            raise ImportFailed(f"{one.digest} has {handle.size} bytes, and its manifest says {one.size}")
        found.blobs[one.digest] = one.size

    async def _opened(self, one: Descriptor) -> Handle | None:
        self._looks += 1
        if self._looks > MOST_PARTS:
            raise ImportFailed(f"it has more than {MOST_PARTS} parts")
        return await self._blobs.open(one.digest)

    async def _manifest(self, one: Descriptor) -> Manifest | None:
        """A manifest that is in the store; None if it is not. Raises ImportFailed for what is none, OSError."""
        handle = await self._opened(one)
        if handle is None:
            return None
        try:
            body = await handle.read(0, manifest.MAX_BYTES + 1)
        finally:
            handle.close()
        if Digest.of(body, one.digest.algorithm) != one.digest or len(body) != one.size:
            raise ImportFailed(f"{one.digest} has other bytes than is said of it")
        try:
            found = await asyncio.to_thread(manifest.parse, body, one.media_type, one.digest.algorithm)
        except ManifestInvalid as error:
            raise ImportFailed(f"{one.digest} is no manifest: {error}") from None
        if found.media_type not in IMAGES:
            raise ImportFailed(f"{one.digest} is no manifest: it is of type {found.media_type}")
        return found


def named(read: Layout, given: Sequence[str]) -> list[tuple[str, Entry]]:
    """What each image of a bundle is called: as it says, or as is `given` for those that have no full name, in order.

    What is given for a bundle of one image is its name in any case. Raises ImportFailed.
    """
    if len(read.entries) == 1 and len(given) == 1:
        return [(given[0], read.entries[0])]
    nameless = [one for one in read.entries if one.name is None]
    if len(nameless) != len(given):
        raise ImportFailed(
            f"{len(nameless)} of its {len(read.entries)} images have no full name, and --as gives {len(given)}: "
            "say --as docker.io/library/app:1 for each of them"
        )
    names = iter(given)
    return [(next(names) if one.name is None else one.name, one) for one in read.entries]


def _meant(entry: Entry, missing: Set[Digest]) -> Set[Digest]:
    """Those that ought to be there: all of an image, unless some of it was recorded only."""
    return missing if entry.blobs is None else missing & {entry.top.digest, *(entry.parts or ()), *entry.blobs}


def _digest(path: str) -> Digest | None:
    try:
        return layout.blob_digest(path)
    except OciError as error:
        raise ImportFailed(f"{path!a}: {error.message}") from None


async def _small(reader: Reader, member: Member, limit: int) -> bytes:
    if member.size > limit:
        raise ImportFailed(f"{member.path} has {member.size} bytes")
    return await reader.read(limit)
