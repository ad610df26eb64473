"""What becomes of what a scrub has found damaged: where upstream still has it, it is fetched again."""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from proxy.blobs import Blobs
from proxy.files import Tree, hop
from proxy.manifests import Manifests
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError
from proxy.oci.reference import Repository
from proxy.stores.base import BlobStore, Link
from proxy.stores.directory import announce_change
from proxy.stores.keys import Record, blob_digest, parse_key
from proxy.stores.records import holders

AT_ONCE = 2  # blobs that are fetched again at a time: clients come first
MOST_NAMED = 5  # repositories that are named of all that have something

Links = Sequence[tuple[Repository, Link]]


class Kind(StrEnum):
    """What is wrong with something."""

    ROT = "rot"  # its bytes are not those of its digest
    TRUNCATED = "truncated"  # nor are there as many as a link says
    UNREADABLE = "unreadable"  # the disk said so, twice
    STRANGER = "stranger"  # it is no file of ours, or has no place here
    RECORD = "record"  # a link, tag, pin or history that means nothing


class Fate(StrEnum):
    """What became of it."""

    HEALED = "healed"  # it is there again, as it should be
    MOVED = "moved"  # it is out of the way, and nobody misses it
    MISSING = "missing"  # it is out of the way, and could not be had again
    LEFT = "left"  # it could not even be moved


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that a scrub has found: its key, its size in bytes, and where in the quarantine it is, if it is."""

    kind: Kind
    key: str
    size: int
    moved: str | None
    reason: str = ""

    @property
    def digest(self) -> Digest | None:
        """Of which blob it has the place."""
        return blob_digest(self.key) if self.key.startswith("blobs/") else None


@dataclass(frozen=True, slots=True)
class Finding:
    """What a scrub has found, what became of it, why it was not healed, and which repositories have it."""

    damage: Damage
    kind: Kind
    fate: Fate
    reason: str = ""
    repositories: Sequence[Repository] = ()


class Healing:
    """Fetches by the same use cases, and within the same bounds, as for clients. `upstreams`: those that are asked."""

    def __init__(
        self, tree: Tree, store: BlobStore, manifests: Manifests, blobs: Blobs, upstreams: Collection[str]
    ) -> None:
        self._tree = tree
        self._store = store
        self._manifests = manifests
        self._blobs = blobs
        self._upstreams = upstreams
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def heal(self, found: Sequence[Damage], *, fetch: bool = True) -> list[Finding]:
        """Have it all again, as far as that can be. Without `fetch` it is only said what is missing. Raises OSError."""
        if any(damage.kind is Kind.RECORD for damage in found):
            await announce_change(self._tree)  # what workers remember of it would keep it from being written anew
        digests = {damage.digest for damage in found if damage.digest is not None}
        linked = await hop(self._linked, digests)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._outcome(damage, linked, fetch)) for damage in found]
        return [task.result() for task in tasks]

    def _linked(self, digests: Collection[Digest]) -> Mapping[Digest, Links]:
        found: defaultdict[Digest, list[tuple[Repository, Link]]] = defaultdict(list)
        for digest, repository, link in holders(self._tree, digests):
            found[digest].append((repository, link))
        return found

    async def _outcome(self, damage: Damage, linked: Mapping[Digest, Links], fetch: bool) -> Finding:
        if damage.moved is None:
            return Finding(damage, damage.kind, Fate.LEFT, damage.reason)
        if damage.digest is None:
            return self._without_digest(damage)
        links = linked.get(damage.digest, ())
        if not links:
            return Finding(damage, damage.kind, Fate.MOVED, "no repository has it")
        kind = damage.kind
        if kind is Kind.ROT and any(link.size not in {None, damage.size} for _, link in links):
            kind = Kind.TRUNCATED
        async with self._turns:
            reason = await self._fetched(damage.digest, links) if fetch else "it was not to be fetched"
        named = [repository for repository, _ in links[:MOST_NAMED]]
        return Finding(damage, kind, Fate.MISSING if reason else Fate.HEALED, reason, named)

    def _without_digest(self, damage: Damage) -> Finding:
        """A stranger is missed by nobody. A link or tag is asked for anew; what only we knew is lost."""
        record = parse_key(damage.key)
        if record is None:
            return Finding(damage, damage.kind, Fate.MOVED)
        if record.kind == "pin":
            return Finding(damage, damage.kind, Fate.MISSING, f"what it pinned may go now: pin {_name(record)} again")
        if record.kind == "history":
            return Finding(damage, damage.kind, Fate.MISSING, "what the tag stood for is forgotten")
        if record.repository.registry not in self._upstreams:
            return Finding(damage, damage.kind, Fate.MISSING, "its upstream is sealed, or not configured")
        return Finding(damage, damage.kind, Fate.MOVED, "the next pull asks upstream")

    async def _fetched(self, digest: Digest, links: Links) -> str:
        """Have a blob or a manifest again, from whichever repository has it. Returns why not, or nothing."""
        reason = "its upstream is sealed, or not configured"
        for repository, link in links:
            if repository.registry not in self._upstreams:
                continue
            try:
                reason = await self._fetched_from(repository, digest, link)
            except OciError as error:
                reason = error.message
            except OSError as error:
                reason = f"the disk fails ({error.strerror})"
            if not reason:
                break
        return reason

    async def _fetched_from(self, repository: Repository, digest: Digest, link: Link) -> str:
        if link.media_type is not None:
            await self._manifests.restore(repository, digest)
        else:
            blob = await self._blobs.open(repository, digest)
            try:
                async for _ in blob.arriving():
                    pass
            finally:
                blob.close()
        handle = await self._store.open(digest)
        if handle is None:
            return "the cache has no room for it, or its disk takes no more"
        handle.close()
        return ""


def _name(record: Record) -> str:
    mark = "@" if isinstance(record.name, Digest) else ":"
    return f"{record.repository}{mark}{record.name}"
