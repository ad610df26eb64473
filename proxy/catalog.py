"""What is in the cache: which images, by which tags, of what size, and what of them is missing.

Everything is read from the directory, so that it is the same beside a running server and without one. All of it blocks,
and may take seconds where there are many files: it belongs into a thread, or a process of its own.
"""

import errno
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from proxy.files import Tree
from proxy.oci import manifest
from proxy.oci.digest import Digest
from proxy.oci.history import END, Move
from proxy.oci.manifest import INDEXES, Manifest, ManifestInvalid
from proxy.oci.platform import Platform, of_config, of_index
from proxy.oci.reference import Repository, Tag
from proxy.stores.base import Link, Pin, TagRecord
from proxy.stores.keys import Record, blob_digest, blob_key, parse_key
from proxy.stores.records import (
    limit,
    parse_history,
    parse_link,
    parse_pin,
    parse_record,
    parse_tag,
)

CONFIG_LIMIT = 1024 * 1024  # bytes of a config that is read for its platform


@dataclass(slots=True)
class Contents:
    """What the cache knows of one repository."""

    tags: dict[Tag, TagRecord] = field(default_factory=dict)
    links: dict[Digest, Link] = field(default_factory=dict)
    pulled: dict[Digest, float] = field(default_factory=dict)
    pins: dict[Tag | Digest, Pin] = field(default_factory=dict)
    histories: dict[Tag, Sequence[Move]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Variant:
    """An image manifest, by itself or as one platform of an index: what it needs, in bytes by digest."""

    digest: Digest
    platform: Platform | None
    blobs: Mapping[Digest, int]
    missing: Mapping[Digest, int]

    @property
    def is_whole(self) -> bool:
        """Whether a pull of it needs nothing from upstream."""
        return not self.missing


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest or an index with all that is cached of it. Times are seconds since the epoch, sizes bytes."""

    repository: Repository
    digest: Digest
    media_type: str
    tags: Mapping[Tag, TagRecord]
    variants: Sequence[Variant]
    absent: Sequence[Platform]  # of the index, of which nothing is cached
    stored: Mapping[Digest, int]  # every blob of it that is there, its own manifests included
    shared: int  # bytes of those that other images need as well
    cached: float | None
    pulled: float
    pins: Mapping[Tag | Digest, Pin]

    @property
    def needed(self) -> Iterator[Digest]:
        """Every digest that belongs to it, its own first, there or not."""
        yield self.digest
        for variant in self.variants:
            yield variant.digest
            yield from variant.blobs

    def pin(self, now: float) -> Pin | None:
        """What keeps it: of several pins the one that holds the longest."""
        holding = [pin for pin in self.pins.values() if pin.holds(now)]
        return max(holding, key=lambda pin: float("inf") if pin.until is None else pin.until, default=None)

    @property
    def size(self) -> int:
        """Bytes that are there of it, each blob once."""
        return sum(self.stored.values())

    @property
    def missing(self) -> int:
        """Bytes that a pull of the platforms that are cached would have to fetch."""
        lacking = {digest: size for variant in self.variants for digest, size in variant.missing.items()}
        return sum(lacking.values())

    @property
    def is_whole(self) -> bool:
        """Whether a pull of what is cached of it needs no blob from upstream."""
        return bool(self.variants) and all(variant.is_whole for variant in self.variants)


class Catalog:
    """One look at a whole store; what changes afterwards is not in it. Raises OSError."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._manifests: dict[tuple[Digest, str], Manifest | None] = {}

    @cached_property
    def blobs(self) -> Mapping[Digest, int]:
        """The blobs that are there, and their sizes in bytes."""
        found = ((blob_digest(entry.key), entry.size) for entry in self._tree.scan("blobs"))
        return {digest: size for digest, size in found if digest is not None}

    @cached_property
    def repositories(self) -> Mapping[Repository, Contents]:
        """What is known of each repository; a record that cannot be read is passed over, as pulls do."""
        found: defaultdict[Repository, Contents] = defaultdict(Contents)
        for entry in (*self._tree.scan("repositories"), *self._tree.scan("pins")):
            record = parse_key(entry.key)
            body = None if record is None else _body(self._tree, entry.key, limit(record.kind))
            if record is not None and body is not None:
                _add(found[record.repository], record, body, entry.used)
        return found

    def images(self, wanted: Callable[[Repository], bool] = lambda _: True) -> list[Image]:
        """The images of the repositories that are wanted, by name; what is only a part of an index is none."""
        users = Counter(digest for image in self._all for digest in image.stored)
        found = [self._with_shared(image, users) for image in self._all if wanted(image.repository)]
        return sorted(found, key=lambda one: (str(one.repository), sorted(map(str, one.tags)), str(one.digest)))

    def find(self, repository: Repository, reference: Tag | Digest) -> Image | None:
        """The image that a reference means, though it be one platform of an index."""
        contents = self.repositories.get(repository)
        if contents is None:
            return None
        record = contents.tags.get(reference) if isinstance(reference, Tag) else None
        digest = reference if isinstance(reference, Digest) else None if record is None else record.digest
        image = None if digest is None else self._image(repository, contents, digest)
        if image is None:
            return None
        others = [other for other in self._all if (other.repository, other.digest) != (repository, image.digest)]
        return self._with_shared(image, Counter(one for other in (*others, image) for one in other.stored))

    @cached_property
    def _all(self) -> list[Image]:
        return [
            image
            for repository, contents in self.repositories.items()
            for digest in self._roots(contents)
            if (image := self._image(repository, contents, digest)) is not None
        ]

    def _roots(self, contents: Contents) -> Iterator[Digest]:
        """The manifests of a repository that are no part of an index there, or have a tag or a pin all the same."""
        manifests = [digest for digest, link in contents.links.items() if link.media_type is not None]
        parts: set[Digest] = set()
        for digest in manifests:
            found = self._manifest(digest, contents.links[digest])
            if found is not None and found.media_type in INDEXES:
                parts.update(child.digest for child in found.descriptors)
        named = {record.digest for record in contents.tags.values()} | contents.pins.keys()
        return (digest for digest in manifests if digest not in parts or digest in named)

    def _image(self, repository: Repository, contents: Contents, digest: Digest) -> Image | None:
        link = contents.links.get(digest)
        found = None if link is None else self._manifest(digest, link)
        if link is None or found is None:
            return None
        variants, absent = self._variants(contents, found)
        stored = {digest: len(found.body)}
        for variant in variants:
            stored |= {one: self.blobs[one] for one in (variant.digest, *variant.blobs) if one in self.blobs}
        tags = {tag: record for tag, record in contents.tags.items() if record.digest == digest}
        pins = {name: pin for name, pin in contents.pins.items() if name == digest or name in tags}
        return Image(
            repository, digest, found.media_type, tags, variants, absent, stored, 0, link.cached,
            contents.pulled[digest], pins,
        )  # fmt: skip

    def _variants(self, contents: Contents, found: Manifest) -> tuple[list[Variant], list[Platform]]:
        if found.media_type not in INDEXES:
            return [self._variant(found, self._platform(found))], []
        variants, absent = [], []
        for child, platform in of_index(found.body):
            link = contents.links.get(child)
            inner = None if link is None else self._manifest(child, link)
            if inner is not None:
                variants.append(self._variant(inner, platform))
            elif platform is not None:
                absent.append(platform)
        return variants, absent

    def _variant(self, found: Manifest, platform: Platform | None) -> Variant:
        blobs = {descriptor.digest: descriptor.size for descriptor in found.descriptors}
        missing = {digest: size for digest, size in blobs.items() if digest not in self.blobs}
        return Variant(found.digest, platform, blobs, missing)

    def _platform(self, found: Manifest) -> Platform | None:
        """As the config says, which comes first of what a manifest names."""
        first = next((one for one in found.descriptors if one.size <= CONFIG_LIMIT), None)
        body = None if first is None else _body(self._tree, blob_key(first.digest), CONFIG_LIMIT)
        return None if body is None else of_config(body)

    def _manifest(self, digest: Digest, link: Link) -> Manifest | None:
        """A manifest that is there; None if it is gone, or damaged."""
        key = (digest, link.media_type or "")
        if key not in self._manifests:
            self._manifests[key] = read_manifest(self._tree, *key)
        return self._manifests[key]

    def _with_shared(self, image: Image, users: Mapping[Digest, int]) -> Image:
        shared = sum(size for digest, size in image.stored.items() if users[digest] > 1)
        return replace(image, shared=shared)


def read_manifest(tree: Tree, digest: Digest, media_type: str) -> Manifest | None:
    """A manifest of that media type; None if it is not there, damaged, or none."""
    body = _body(tree, blob_key(digest), manifest.MAX_BYTES)
    if body is None or Digest.of(body, digest.algorithm) != digest:
        return None
    try:
        return manifest.parse(body, media_type, digest.algorithm)
    except ManifestInvalid:
        return None


def _body(tree: Tree, key: str, limit: int) -> bytes | None:
    """A small file; None as well where the disk cannot read it: one bad block must not hide all the rest."""
    try:
        return tree.read_now(key, limit)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return None


def _add(contents: Contents, record: Record, body: bytes, used: float) -> None:
    parsed = parse_record(body)
    if parsed is None:
        return
    name = record.name
    if record.kind == "tag" and isinstance(name, Tag) and (tag := parse_tag(parsed)) is not None:
        contents.tags[name] = tag
    elif record.kind == "link" and isinstance(name, Digest) and (link := parse_link(parsed)) is not None:
        contents.links[name], contents.pulled[name] = link, used if 0 <= used < END else 0.0
    elif record.kind == "history" and isinstance(name, Tag):
        contents.histories[name] = parse_history(parsed)
    elif record.kind == "pin" and (pin := parse_pin(parsed)) is not None:
        contents.pins[name] = pin
