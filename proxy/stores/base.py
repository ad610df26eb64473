"""What the cache needs of a store; tests/unit/test_store_conformance.py is run for every one there is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from proxy.files import Handle
from proxy.oci.digest import Digest
from proxy.oci.history import Move
from proxy.oci.ratelimit import State
from proxy.oci.reference import Repository, Tag


@dataclass(frozen=True, slots=True)
class Link:
    """The record that a repository contains a digest: its size in bytes and, for a manifest, its media type.

    `cached`: when it was first recorded, in seconds since the epoch; the store sees to that.
    """

    size: int | None = None
    media_type: str | None = None
    cached: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class TagRecord:
    """What a tag stood for when upstream was last asked (`checked`, seconds since the epoch).

    `is_frozen`: an operator wants it to stand for that, whatever upstream says.
    """

    digest: Digest
    checked: float
    is_frozen: bool = False


@dataclass(frozen=True, slots=True)
class Pin:
    """The record that a tag, whatever it stands for, or a manifest is not to go: `until` then, or until unpinned.

    `is_deleted`: nobody asked for it, but upstream has deleted what the cache has.
    """

    since: float  # seconds since the epoch, as `until`
    until: float | None = None
    is_deleted: bool = False

    def holds(self, now: float) -> bool:
        """Whether it has not run out."""
        return self.until is None or now < self.until


class BlobStore(Protocol):
    """Verified bytes by digest, shared by all repositories: permission is the links' business."""

    async def open(self, digest: Digest) -> Handle | None:
        """The whole blob, to read; None if it is not there. Raises OSError for trouble other than absence."""

    async def put(self, digest: Digest, body: bytes) -> None:
        """Keep a small verified blob (a manifest). Raises OSError."""

    async def adopt(self, digest: Digest, spool: Handle, key: str | None = None) -> None:
        """Take over a locked and verified spool: that of `digest`, or another with that key. Raises OSError."""

    async def fetch(self, digest: Digest, limit: int) -> bytes | None:
        """A manifest that is not here, from where else the store may have it, verified; None if it is not there."""

    async def remove(self, digest: Digest, damaged: Handle) -> None:
        """Take out a blob that turned out to be damaged, unless another is there by now; readers keep their bytes."""

    def is_known(self, digest: Digest) -> bool:
        """Whether it was there when last looked for, not long ago: memory alone is asked."""

    def used(self, digest: Digest) -> None:
        """Take note that a blob was asked for, for the eviction order."""


class RepositoryStore(Protocol):
    """What is known of each repository: which digests it contains, what its tags stand for."""

    async def link(self, repository: Repository, digest: Digest) -> Link | None:
        """The link of a digest, if the repository is known to contain it."""

    def is_known(self, repository: Repository, digest: Digest) -> bool:
        """Whether there is a link, as far as memory alone can say."""

    async def put_link(self, repository: Repository, digest: Digest, link: Link) -> None:
        """Record that upstream confirmed a digest to be in a repository."""

    async def tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """What a tag stood for when last asked."""

    async def put_tag(self, repository: Repository, tag: Tag, record: TagRecord, *, thaws: bool = False) -> bool:
        """Record what a tag stands for. Raises OSError.

        A frozen tag stays as it is, unless `record` is frozen as well, or `thaws` it; returns whether it is recorded.
        """

    async def drop_tag(self, repository: Repository, tag: Tag) -> None:
        """Forget a tag: upstream says it is gone, or not for us."""

    async def history(self, repository: Repository, tag: Tag) -> Sequence[Move]:
        """What a tag has stood for, the oldest first."""

    async def put_history(self, repository: Repository, tag: Tag, history: Sequence[Move]) -> None:
        """Record that. Raises OSError."""

    async def put_pin(self, repository: Repository, name: Tag | Digest, pin: Pin) -> None:
        """Keep a tag's image, or a manifest, from going. Raises OSError."""

    def pulled(self, repository: Repository, digest: Digest) -> None:
        """Take note that a client asked for a manifest of this repository."""


class LimitStore(Protocol):
    """What upstreams allow each account: shared by all processes, and not forgotten in a restart."""

    async def load(self, registry: str, account: str) -> State | None:
        """What is known of an account's budget."""

    async def save(self, registry: str, account: str, state: State) -> None:
        """Record what is known now. Raises OSError."""

    async def all(self) -> Sequence[tuple[str, str, State]]:
        """Registry, account and state of every budget there is."""
