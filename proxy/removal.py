"""Taking an image out of the cache: its tag, its links, and the bytes that no other image needs.

Blocking, as the catalog is. A blob that is being sent stays; it goes by eviction, as all that nobody needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.catalog import Catalog, Image
from proxy.files import Tree
from proxy.oci.digest import Digest
from proxy.oci.reference import Tag
from proxy.stores import disk


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


def carry_out(tree: Tree, removal: Removal) -> int:
    """Do it: names first, so that nothing is promised that is gone. Returns the bytes that are free now."""
    repository = removal.image.repository
    for tag in removal.tags:
        tree.evict(disk.tag_key(repository, tag))
    for digest in removal.links:
        tree.evict(disk.link_key(repository, digest))
    for name in removal.image.pins if removal.is_whole else ():
        tree.evict(disk.pin_key(repository, name))
    return sum(size for digest, size in removal.blobs.items() if tree.evict(disk.blob_key(digest)))
