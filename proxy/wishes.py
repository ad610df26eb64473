"""What is wanted by name: images as a whole, and parts that were recorded."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from proxy.oci.digest import Digest
from proxy.oci.errors import OciError
from proxy.oci.history import Move
from proxy.oci.imagelist import Wish, split
from proxy.oci.reference import Reference, Repository, Tag
from proxy.routing import Routes
from proxy.routing import image as resolve
from proxy.stores.base import RepositoryStore, TagRecord
from proxy.tags import note_move
from proxy.warming import Parts


@dataclass(slots=True)
class Wanted:
    """Images, each with the name that somebody called it by, and parts of repositories."""

    images: list[tuple[str, Repository, Reference]] = field(default_factory=list)
    parts: dict[Repository, Parts] = field(default_factory=dict)


def resolved(routes: Routes, wishes: Sequence[Wish]) -> Wanted:
    """What names mean, each once. Raises OciError, naming the one that means nothing."""
    wanted = Wanted()
    for wish in dict.fromkeys(wishes):
        try:
            repository, reference = resolve(routes, wish.name)
            if wish.part is None or not isinstance(reference, Digest):
                wanted.images.append((wish.name, repository, reference))
            else:
                _add(wanted.parts.setdefault(repository, Parts()), wish, reference)
        except OciError as error:
            raise OciError(error.problem, f"{wish.name}: {error.message}") from None
    return wanted


def _add(parts: Parts, wish: Wish, digest: Digest) -> None:
    _, tag, _ = split(wish.name)
    if wish.part == "blob":
        parts.blobs[digest] = None
        return
    parts.manifests[digest] = None
    if tag is not None:
        parts.tags[Tag.parse(tag)] = digest


async def put_tags(repositories: RepositoryStore, repository: Repository, parts: Parts) -> None:
    """Have tags stand for what they were recorded to, where the cache knows nothing of them. Raises OSError."""
    for tag, digest in parts.tags.items():
        link = await repositories.link(repository, digest)
        if link is not None and await repositories.tag(repository, tag) is None:
            await repositories.put_tag(repository, tag, TagRecord(digest, time.time()))
            await note_move(repositories, repository, tag, Move(time.time(), digest))
