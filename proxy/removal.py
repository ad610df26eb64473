"""Taking an image out of the cache: its tag, its links, and the bytes that no other image needs.

Blocking, as the catalog is. A blob that is being sent stays; it goes by eviction, as all that nobody needs.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from proxy.catalog import Catalog, Image
from proxy.files import Tree
from proxy.oci.digest import Digest
from proxy.oci.reference import Repository, Tag
from proxy.stores import ledger
from proxy.stores.keys import blob_key, link_key, pin_key, tag_key


@dataclass(frozen=True, slots=True)
class Removal:
    """What goes with an image: tags, links of its repository, and blobs with their sizes in bytes."""

    image: Image
    tags: Sequence[Tag]
    links: Sequence[Digest]
    blobs: dict[Digest, int]

    @property
    def is_whole(self) -> bool:
        """Whether the image goes, and not only one of its tags."""
        return bool(self.links)

    @property
    def size(self) -> int:
        """Bytes that are free afterwards."""
        return sum(self.blobs.values())


def plan(catalog: Catalog, image: Image, tag: Tag | None) -> Removal:
    """What goes if `tag` does; without one, all of the image. Under other tags it stays."""
    tags = [one for one in image.tags if tag in {None, one}]
    if len(tags) < len(image.tags):
        return Removal(image, tags, [], {})
    others = [one for one in catalog.images() if (one.repository, one.digest) != (image.repository, image.digest)]
    here = {digest for one in others if one.repository == image.repository for digest in one.needed}
    anywhere = {digest for one in others for digest in one.stored}
    links = [digest for digest in image.needed if digest not in here]
    return Removal(image, tags, links, {one: size for one, size in image.stored.items() if one not in anywhere})


class Needs:
    """What images need, while one after the other goes: a look at the catalog for each would take hours for many."""

    def __init__(self, images: Iterable[Image], going: Sequence[Image]) -> None:
        """Of all images, those in `going` may be told to go."""
        digests = {digest for image in going for digest in image.needed}
        repositories = {image.repository for image in going}
        self._stored: Counter[Digest] = Counter()
        self._linked: Counter[tuple[Repository, Digest]] = Counter()
        for image in images:
            self._stored.update(digests.intersection(image.stored))
            if image.repository in repositories:
                self._linked.update((image.repository, digest) for digest in digests.intersection(image.needed))

    def without(self, image: Image) -> Removal:
        """What goes with one of them; from now on it needs nothing."""
        needed = dict.fromkeys(image.needed)
        self._linked.subtract((image.repository, digest) for digest in needed)
        self._stored.subtract(image.stored.keys())
        links = [digest for digest in needed if not self._linked[image.repository, digest]]
        blobs = {digest: size for digest, size in image.stored.items() if not self._stored[digest]}
        return Removal(image, list(image.tags), links, blobs)


def carry_out(tree: Tree, removal: Removal, since: float = math.inf) -> int:
    """Do it: names first, so that nothing is promised that is gone. Returns the bytes that are free now.

    `since`: when the catalog was read, in seconds since the epoch. A blob that was used after that stays: what has come
    meanwhile may need it.
    """
    repository = removal.image.repository
    for tag in removal.tags:
        tree.evict(tag_key(repository, tag))
    for digest in removal.links:
        tree.evict(link_key(repository, digest))
    for name in removal.image.pins if removal.is_whole else ():
        tree.evict(pin_key(repository, name))
    with ledger.taking_out(tree) as gone:
        gone += [size for digest, size in removal.blobs.items() if tree.evict(blob_key(digest), since)]
    return sum(gone)
