"""What is not to go: the manifests and blobs of pinned images, and of those that upstream has deleted.

Blocking, as the eviction is that asks for it; it costs a few reads for each pin, however large the store is.
"""

import time
from collections.abc import Iterator

from proxy.files import Tree
from proxy.oci import manifest
from proxy.oci.digest import Digest
from proxy.oci.manifest import INDEXES, Manifest, ManifestInvalid
from proxy.oci.reference import Repository, Tag
from proxy.stores.keys import blob_key, parse_key
from proxy.stores.records import read_link, read_pin, read_tag

DEEPEST = 4  # indexes within indexes


def kept(tree: Tree) -> frozenset[str]:
    """The keys of all blobs that a pin holds now. Raises OSError."""
    now, found = time.time(), set[str]()
    for entry in tree.scan("pins", strict=True):  # what cannot be read may be a pin: better drop nothing
        record, pin = parse_key(entry.key), read_pin(tree, entry.key)
        if record is None or pin is None or not pin.holds(now):
            continue
        digest = record.name if isinstance(record.name, Digest) else _meant(tree, record.repository, record.name)
        if digest is not None:
            found.update(map(blob_key, closure(tree, record.repository, digest)))
    return frozenset(found)


def linked(tree: Tree) -> frozenset[str]:
    """The keys of all blobs that some repository is known to contain: for where nobody could bring them back."""
    records = (parse_key(entry.key) for entry in tree.walk("repositories"))
    return frozenset(blob_key(one.name) for one in records if one is not None and isinstance(one.name, Digest))


def _meant(tree: Tree, repository: Repository, tag: Tag) -> Digest | None:
    record = read_tag(tree, repository, tag)
    return None if record is None else record.digest


def closure(tree: Tree, repository: Repository, digest: Digest, depth: int = DEEPEST) -> Iterator[Digest]:
    """A manifest, and everything that it names of which the cache knows; blocking."""
    yield digest
    found = _manifest(tree, repository, digest)
    for descriptor in () if found is None else found.descriptors:
        if found is not None and found.media_type in INDEXES and depth:
            yield from closure(tree, repository, descriptor.digest, depth - 1)
        else:
            yield descriptor.digest


def _manifest(tree: Tree, repository: Repository, digest: Digest) -> Manifest | None:
    link = read_link(tree, repository, digest)
    body = None
    if link is not None and link.media_type is not None:
        body = tree.read_now(blob_key(digest), manifest.MAX_BYTES)
    try:
        return None if link is None or body is None else manifest.parse(body, link.media_type or "", digest.algorithm)
    except ManifestInvalid:
        return None
