"""Images out of the cache, into a bundle: an OCI image layout in a tar, for where there is no network.

The same images make the same bytes. The index comes last, so that what was broken off is nobody's image.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from proxy.archive import Reader, Writer
from proxy.catalog import read_manifest
from proxy.files import PIECE, Stream, Tree
from proxy.inventory import size
from proxy.oci import layout, manifest
from proxy.oci.digest import Digest
from proxy.oci.layout import Entry, Layout, Loadable
from proxy.oci.manifest import INDEXES, MOST_NESTED, Descriptor, Manifest
from proxy.oci.platform import Platform, is_wanted, of_index
from proxy.oci.reference import Reference, Repository, Tag
from proxy.stores.keys import blob_key
from proxy.stores.records import read_link, read_tag
from proxy.warming import Parts


class ExportFailed(Exception):
    """There will be no bundle; the message says why."""


@dataclass(frozen=True, slots=True)
class Exported:
    """An image with all that goes into the bundle of it: its own digest, and the sizes of what it needs in bytes."""

    entry: Entry
    loadable: Loadable | None
    blobs: Mapping[Digest, int]


@dataclass(slots=True)
class _Found:
    """What there is of an image: its manifests, with their platforms, and what they name."""

    parts: list[tuple[Platform | None, Manifest]] = field(default_factory=list)
    inner: list[Digest] = field(default_factory=list)
    blobs: dict[Digest, int] = field(default_factory=dict)
    missing: dict[Digest, int] = field(default_factory=dict)


class Exporting:
    """Gathers images from a store. `platforms`: which of an index, all of them if there are none; blocking."""

    def __init__(self, tree: Tree, platforms: Sequence[Platform], here: Platform) -> None:
        self._tree = tree
        self._platforms = platforms
        self._here = here

    def meant(self, repository: Repository, reference: Reference) -> Digest | None:
        """What a reference stands for, as far as the cache knows."""
        if isinstance(reference, Digest):
            return reference
        record = read_tag(self._tree, repository, reference)
        return None if record is None else record.digest

    def image(self, repository: Repository, reference: Reference, digest: Digest) -> Exported:
        """An image that is there as a whole. Raises ExportFailed, OSError."""
        top = self._manifest(repository, digest)
        if top is None:
            raise ExportFailed("nothing of it is cached")
        found = _Found()
        self._gather(repository, top, None, found, MOST_NESTED)
        if not found.parts and not found.missing:
            raise ExportFailed(f"it has nothing for {', '.join(map(str, self._platforms)) or 'any platform'}")
        if found.missing:
            raise ExportFailed(
                f"{len(found.missing)} of its blobs, {size(sum(found.missing.values()))}, are not cached"
            )
        name = f"{repository}:{reference}" if isinstance(reference, Tag) else f"{repository}@{reference}"
        parts = found.inner if top.media_type in INDEXES else None
        entry = Entry(name, Descriptor(top.media_type, digest, len(top.body)), parts)
        return Exported(entry, self._loadable(found), {**found.blobs, digest: len(top.body)})

    def exactly(self, repository: Repository, parts: Parts) -> list[Exported]:
        """What was recorded of a repository, by its tags and the manifests on top. Raises ExportFailed, OSError."""
        manifests = {digest: self._manifest(repository, digest) for digest in parts.manifests}
        absent = [digest for digest, one in manifests.items() if one is None]
        absent += [digest for digest in parts.blobs if self._tree.size(blob_key(digest)) is None]
        if absent:
            raise ExportFailed(f"{len(absent)} of what was recorded of it are not cached")
        known = {digest: one for digest, one in manifests.items() if one is not None}
        inner = {named.digest for one in known.values() if one.media_type in INDEXES for named in one.descriptors}
        named = {one.digest for top in known.values() for one in top.descriptors}
        if stray := [digest for digest in parts.blobs if digest not in named]:
            raise ExportFailed(f"{stray[0]} was recorded without a manifest that names it")
        tops: list[tuple[str, Digest]] = [(f"{repository}:{tag}", digest) for tag, digest in parts.tags.items()]
        below = inner | set(parts.tags.values())
        tops += [(f"{repository}@{digest}", digest) for digest in known if digest not in below]
        return [self._recorded(name, known[digest], known, parts) for name, digest in tops]

    def _recorded(self, name: str, top: Manifest, known: Mapping[Digest, Manifest], parts: Parts) -> Exported:
        is_index = top.media_type in INDEXES
        inner = [known[one.digest] for one in top.descriptors if is_index and one.digest in known]
        leaves = inner if is_index else [top]
        needed = {one.digest: one.size for part in leaves for one in part.descriptors if not one.is_elsewhere}
        blobs = {digest: size for digest, size in needed.items() if digest in parts.blobs}
        is_partial = len(blobs) < len(needed) or not leaves
        meant = sorted(blobs, key=str) if is_partial else None
        blobs |= {part.digest: len(part.body) for part in (top, *inner)}
        digests = [part.digest for part in inner] if is_index else None
        entry = Entry(name, Descriptor(top.media_type, top.digest, len(top.body)), digests, meant)
        loadable = None if is_partial else next(filter(None, map(layout.loadable, leaves)), None)
        return Exported(entry, loadable, blobs)

    def _gather(
        self, repository: Repository, top: Manifest, platform: Platform | None, found: _Found, depth: int
    ) -> None:
        if top.media_type not in INDEXES or not depth:
            found.parts.append((platform, top))
            for one in top.descriptors:
                if not one.is_elsewhere:
                    there = self._tree.size(blob_key(one.digest)) == one.size
                    (found.blobs if there else found.missing)[one.digest] = one.size
            return
        sizes = {one.digest: one.size for one in top.descriptors}
        for digest, what in of_index(top.body):
            if digest in found.blobs or not is_wanted(what, self._platforms):
                continue
            inner = self._manifest(repository, digest)
            if inner is None:
                found.missing[digest] = sizes.get(digest, 0)
                continue
            found.inner.append(digest)
            found.blobs[digest] = len(inner.body)
            self._gather(repository, inner, what, found, depth - 1)

    def _manifest(self, repository: Repository, digest: Digest) -> Manifest | None:
        link = read_link(self._tree, repository, digest)
        return None if link is None or link.media_type is None else read_manifest(self._tree, digest, link.media_type)

    def _loadable(self, found: _Found) -> Loadable | None:
        """What `docker load` gets: this machine's platform, or else the first."""
        images = [(platform, one) for platform, part in found.parts if (one := layout.loadable(part)) is not None]
        mine = [one for platform, one in images if platform is not None and self._here.covers(platform)]
        return next(iter([*mine, *(one for _, one in images)]), None)


@dataclass(frozen=True, slots=True)
class Earlier:
    """Bundles that whoever gets this one has already: their names, and the blobs that are in them."""

    names: Sequence[str] = ()
    blobs: Set[Digest] = frozenset()


async def contents(stream: Stream) -> set[Digest]:
    """The blobs of a bundle, by their names alone. Raises Unusable, TarInvalid, OciError."""
    found = {layout.blob_digest(member.path) async for member in Reader(stream).members()}
    return {digest for digest in found if digest is not None}


def included(images: Sequence[Exported], earlier: Earlier) -> dict[Digest, int]:
    """The blobs that a bundle will have, and their sizes in bytes."""
    blobs = {digest: count for image in images for digest, count in image.blobs.items()}
    return {digest: blobs[digest] for digest in sorted(blobs, key=str) if digest not in earlier.blobs}


async def write(
    tree: Tree, images: Sequence[Exported], earlier: Earlier, stream: Stream, arrived: Callable[[int], None]
) -> None:
    """Write a bundle; `arrived` is told of each piece, in bytes. Raises ExportFailed, Unusable, OSError."""
    blobs = included(images, earlier)
    since = ", ".join(earlier.names) or None
    index = layout.index(Layout(list({image.entry.name: image.entry for image in images}.values()), since))
    if len(index) > manifest.MAX_BYTES:
        raise ExportFailed(f"{len(images)} images are too many for one bundle: export them in several")
    writer = Writer(stream)
    for digest in blobs:
        await _blob(tree, digest, writer, arrived)
    await writer.add(layout.INDEX_PATH, index)
    if loadable := _loadable(images, blobs):
        await writer.add(layout.DOCKER_PATH, layout.docker_manifest(loadable))
    await writer.add(layout.LAYOUT_PATH, layout.LAYOUT)
    await writer.end()


def _loadable(images: Sequence[Exported], blobs: Mapping[Digest, int]) -> Mapping[Loadable, Sequence[str]]:
    """What `docker load` can use: it finds layers that it has already, but never a config."""
    found: defaultdict[Loadable, dict[str, None]] = defaultdict(dict)
    for image in images:
        if image.loadable is not None and image.loadable.config in blobs:
            name = image.entry.name or ""
            found[image.loadable] |= {} if "@" in name else {name: None}
    return {one: list(names) for one, names in found.items()}


async def _blob(tree: Tree, digest: Digest, writer: Writer, arrived: Callable[[int], None]) -> None:
    """One blob, hashed as it is written."""
    handle = await tree.open(blob_key(digest))
    if handle is None:
        raise ExportFailed(f"{digest} has gone from the cache meanwhile: pin what is to be exported")
    hasher, done = digest.hasher(), 0
    try:
        await writer.begin(layout.blob_path(digest), handle.size)
        while done < handle.size and (data := await handle.read(done, PIECE)):
            await writer.write(data[: handle.size - done], hasher)
            done += len(data)
            arrived(len(data))
    finally:
        handle.close()
    if not digest.matches(hasher):
        raise ExportFailed(f"{digest} is damaged in the cache: entrepot rm its image, and bring it in again")
    await writer.finish(handle.size)
