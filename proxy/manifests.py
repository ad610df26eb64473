"""Manifests: a digest is immutable, a tag is revalidated; what is cached is served when upstream does not answer."""

import asyncio
import contextlib
import errno
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cachetools import LRUCache, TTLCache

from proxy.eviction import NoSpace, Space
from proxy.files import Handle
from proxy.later import Later
from proxy.oci import history, manifest
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError, Problem
from proxy.oci.freshness import Verdict, verdict
from proxy.oci.history import Move
from proxy.oci.manifest import INDEXES, MOST_NESTED, Manifest
from proxy.oci.ratelimit import as_utc
from proxy.oci.reference import Reference, Repository, Tag
from proxy.permissions import Sizes
from proxy.reservation import Reservation
from proxy.single_flight import SingleFlight
from proxy.stores.base import BlobStore, Link, Pin, RepositoryStore, TagRecord
from proxy.telemetry import Logger, Outcome
from proxy.upstream import Upstream

MEMORY = 64 * 1024 * 1024  # bytes of manifests kept in memory
TAGS_IN_MEMORY = 16384
NEGATIVE_TTL = 5.0  # seconds that a 404 is remembered: a build polls for what it is about to push
NEGATIVES = 10_000
POSTPONEMENT = 1.0  # seconds before a tag is revalidated again after upstream failed to answer
SLOW_POSTPONEMENT = 6.0  # seconds, where the failure was silence: each pull that finds out anew waits seconds for it
LONGEST_POSTPONEMENT = 60.0
JUST_NOW = 1.0  # seconds for which upstream's word counts even for who wants it anew: nobody is to make a storm of that
MOST_PARTS = 256  # of a manifest that are counted as used with it; layers of a real image are half as many


@dataclass(frozen=True, slots=True)
class Served:
    """A manifest to answer with, where it came from, and what a client should be warned of."""

    manifest: Manifest
    outcome: Outcome
    warning: str | None = None


class Manifests:
    """The use case: a manifest of a repository, by digest or by tag. Raises OciError, OSError."""

    def __init__(  # noqa: PLR0913  the composition root hands over what a request may need
        self,
        upstreams: Mapping[str, Upstream],
        blobs: BlobStore,
        repositories: RepositoryStore,
        space: Space,
        sizes: Sizes,
        log: Logger,
        *,
        keep_deleted: bool = True,
    ) -> None:
        """`came` is set later, by whoever wants to know of each manifest that comes from upstream.

        `keep_deleted`: what upstream has deleted is pinned, since nobody could bring it back.
        """
        self._keep_deleted = keep_deleted
        self._upstreams = upstreams
        self._blobs = blobs
        self._space = space
        self._repositories = repositories
        self._sizes = sizes
        self._log = log
        self.came: Callable[[Repository, Manifest], None] = lambda _repository, _manifest: None
        self._memory: LRUCache[tuple[Repository, Digest], Manifest] = LRUCache(
            MEMORY, getsizeof=lambda kept: len(kept.body) + 1024
        )
        self._tags: LRUCache[tuple[Repository, Tag], TagRecord] = LRUCache(TAGS_IN_MEMORY)
        self._missing: TTLCache[tuple[Repository, Reference], OciError] = TTLCache(NEGATIVES, NEGATIVE_TTL)
        self._postponed: LRUCache[tuple[Repository, Tag], tuple[float, OciError]] = LRUCache(NEGATIVES)
        self._flights: SingleFlight[tuple[Repository, Reference], Served] = SingleFlight()
        self._pulled: set[tuple[Repository, Digest]] = set()  # since the last note_uses()
        # What the disk would not take: manifests, and what tags stand for.
        self._unstored: Later[tuple[Repository, Digest]] = Later(NEGATIVES)
        self._unrecorded: Later[tuple[Repository, Tag]] = Later(NEGATIVES)

    async def aclose(self) -> None:
        """Give up what is in flight."""
        await self._flights.aclose()

    def forget(self) -> None:
        """Read everything anew from the store: an operator has changed it."""
        for known in (self._memory, self._tags, self._missing, self._postponed):
            known.clear()

    async def get(
        self, repository: Repository, reference: Reference, *, anew: bool = False, as_of: float | None = None
    ) -> Served:
        """The manifest that a client asked for.

        `anew`: of a tag, what upstream says now and not a moment ago. `as_of`: what it stood for then, in seconds
        since the epoch; where the client does not say, the configuration may.
        """
        when = self._upstreams[repository.registry].as_of if as_of is None else as_of
        if isinstance(reference, Tag) and when is not None:
            reference = await self._then(repository, reference, when)
        return self._pull(repository, await self._get(repository, reference, anew))

    def get_again(self, repository: Repository, reference: Reference) -> Served | None:
        """What `get` would answer, as far as memory alone can say."""
        upstream = self._upstreams[repository.registry]
        if isinstance(reference, Digest):
            digest, warning = reference, None
        else:
            record = self._tags.get((repository, reference))
            if record is None or upstream.as_of is not None or not self._is_believed(repository, record, anew=False):
                return None
            digest, warning = record.digest, self._stretched(repository, record)
        kept = self._memory.get((repository, digest))
        if kept is None:
            return None
        self._blobs.used(digest)
        return self._pull(repository, Served(kept, Outcome.HIT, warning))

    def _pull(self, repository: Repository, served: Served) -> Served:
        """Take note of a pull."""
        self._repositories.pulled(repository, served.manifest.digest)
        self._pulled.add((repository, served.manifest.digest))
        return served

    async def restore(self, repository: Repository, digest: Digest) -> None:
        """See to it that a manifest that was damaged on disk is there again: from memory, else from upstream.

        Nobody has pulled it. Raises OciError; a disk that does not take it is logged.
        """
        kept = self._memory.get((repository, digest))
        if kept is None:
            await self._get(repository, digest, anew=False)
        else:
            await self._keep_content(repository, kept)

    async def _then(self, repository: Repository, tag: Tag, when: float) -> Digest:
        """What a tag stood for, as far as the cache has seen."""
        seen = await self._repositories.history(repository, tag)
        digest = history.as_of(seen, when)
        if digest is None:
            first = f"it was first seen at {as_utc(seen[0].at)}" if seen else "it was never pulled through here"
            raise OciError(
                Problem.MANIFEST_UNKNOWN, f"nobody knows what {repository}:{tag} was as of {as_utc(when)}: {first}"
            )
        return digest

    async def note_uses(self) -> None:
        """Count each image that was pulled since the last time as a use of all that belongs to it.

        Clients that have a layer do not ask for it, and it would be dropped from under the image that they do ask for.
        """
        pulled, self._pulled = self._pulled, set()
        for repository, digest in pulled:
            await self._note_use(repository, digest, MOST_NESTED)
            if (repository, digest) in self._memory and not await self._is_stored(digest):
                self._unstored.add((repository, digest))  # somebody has deleted it, and only memory has it

    async def _note_use(self, repository: Repository, digest: Digest, depth: int) -> None:
        found = await self._cached(repository, digest)
        for descriptor in () if found is None else found.descriptors[:MOST_PARTS]:
            self._blobs.used(descriptor.digest)
            if found is not None and found.media_type in INDEXES and depth:
                await self._note_use(repository, descriptor.digest, depth - 1)

    async def _get(self, repository: Repository, reference: Reference, anew: bool) -> Served:
        known = await self._at_once(repository, reference, anew)
        if known is not None:
            return known
        key = (repository, reference)
        missing = self._missing.get(key)
        if missing is not None:
            raise OciError(missing.problem, missing.message)
        if isinstance(reference, Digest):
            return await self._flights.run(key, lambda: self._fetch(repository, reference))
        tag = reference
        return await self._flights.run(key, lambda: self._resolve(repository, tag, anew))

    async def _at_once(self, repository: Repository, reference: Reference, anew: bool) -> Served | None:
        """What can be answered without upstream: a digest that is cached, or a tag that is fresh."""
        if isinstance(reference, Digest):
            cached = await self._cached(repository, reference)
            return None if cached is None else Served(cached, Outcome.HIT)
        record = self._tags.get((repository, reference))
        if record is None or not self._is_believed(repository, record, anew):
            record = await self._repositories.tag(repository, reference)  # another worker may know better
        if record is None or not self._is_believed(repository, record, anew):
            return None
        self._tags[repository, reference] = record
        cached = await self._cached(repository, record.digest)
        return None if cached is None else Served(cached, Outcome.HIT, self._stretched(repository, record))

    def _is_believed(self, repository: Repository, record: TagRecord, anew: bool) -> bool:
        """Whether a tag is answered without a question to upstream."""
        upstream = self._upstreams[repository.registry]
        now = time.time()
        if not anew and 0.0 <= now - record.checked < upstream.least_tag_ttl:
            return True
        ttl = upstream.tag_ttl(repository)
        if record.is_frozen or upstream.is_sealed or ttl == math.inf:
            return True  # whatever the clock says
        ttl = min(ttl, JUST_NOW) if anew else ttl
        return verdict(record.checked, now, ttl) is Verdict.FRESH

    def _stretched(self, repository: Repository, record: TagRecord) -> str | None:
        """What to say of an answer that is older than it would be if upstream allowed more."""
        age = time.time() - record.checked
        if record.is_frozen or not self._upstreams[repository.registry].is_stretched(repository, age):
            return None
        return f"{repository.registry} allows little more; this is what it said {int(age)} s ago"

    # By tag

    async def _resolve(self, repository: Repository, tag: Tag, anew: bool) -> Served:
        """Find out what a tag stands for now."""
        known = await self._at_once(repository, tag, anew)  # another flight may have landed since the look before
        if known is not None:
            return known
        record = await self._repositories.tag(repository, tag)
        cached = None if record is None else await self._cached(repository, record.digest)
        if record is None or cached is None:
            return await self._settle(repository, tag, record)
        postponed = self._postponed.get((repository, tag))
        if postponed is not None and time.monotonic() < postponed[0]:
            return self._stale(repository, cached, record, postponed[1])
        try:
            return await self._revalidate(repository, tag, record, cached)
        except OciError as error:
            if not error.problem.is_outage:
                raise
            self._postponed[repository, tag] = (time.monotonic() + _postponement(error), error)
            self._log.warning(
                "serving stale",
                repository=str(repository),
                tag=str(tag),
                reason=error.message,
                digest=str(record.digest),
            )
            return self._stale(repository, cached, record, error)

    async def _revalidate(self, repository: Repository, tag: Tag, record: TagRecord, cached: Manifest) -> Served:
        """Ask by HEAD, which costs no pull; fetch by digest what has changed, since the tag may move on meanwhile."""
        try:
            head = await self._upstreams[repository.registry].head_manifest(repository, tag)
            if head.digest == record.digest:
                await self._keep_tag(repository, tag, record.digest)
                return Served(cached, Outcome.REVALIDATED)
            if head.digest is None:
                return await self._settle(repository, tag, record, fallback=True)
            changed = await self._moved_to(repository, head.digest)
        except OciError as error:
            await self._refused(repository, tag, record, error)
            raise
        await self._keep_tag(repository, tag, changed.digest)
        return Served(changed, Outcome.FILL)

    async def _moved_to(self, repository: Repository, digest: Digest) -> Manifest:
        """What a tag stands for by upstream's word of a moment ago; that there is no such manifest is no answer."""
        known = await self._cached(repository, digest)
        if known is not None:
            return known
        try:
            return await self._fetched(repository, digest, fallback=True)
        except OciError as error:
            if error.problem is not Problem.MANIFEST_UNKNOWN:
                raise
            raise OciError(
                Problem.UPSTREAM_INVALID, f"{repository.registry} names a manifest that it does not have"
            ) from None

    async def _settle(
        self, repository: Repository, tag: Tag, record: TagRecord | None, *, fallback: bool = False
    ) -> Served:
        """Fetch by tag: nothing is known of it, or upstream would not say which digest it is."""
        try:
            found = await self._fetched(repository, tag, fallback=fallback)
        except OciError as error:
            if record is not None:
                await self._refused(repository, tag, record, error)
            raise
        await self._keep_tag(repository, tag, found.digest)
        return Served(found, Outcome.FILL)

    async def _refused(self, repository: Repository, tag: Tag, record: TagRecord, error: OciError) -> None:
        """Upstream's word that a tag is gone, or not for us, ends what was known of it."""
        if self._upstreams[repository.registry].is_sealed:
            return  # it was not asked
        if error.problem is Problem.MANIFEST_UNKNOWN:
            self._missing[repository, tag] = error
            await self._keep(repository, tag, record.digest)
        if error.problem in {Problem.MANIFEST_UNKNOWN, Problem.DENIED}:
            self._tags.pop((repository, tag), None)
            await self._repositories.drop_tag(repository, tag)

    async def _keep(self, repository: Repository, tag: Tag, digest: Digest) -> None:
        """What upstream had under a tag, and has no more, stays here: this may be the last copy."""
        if not self._keep_deleted or await self._cached(repository, digest) is None:
            return
        try:
            await self._repositories.put_pin(repository, digest, Pin(time.time(), is_deleted=True))
        except OSError as error:
            self._log.error("not pinned", repository=str(repository), digest=str(digest), reason=error.strerror)
            return
        self._log.warning("deleted upstream", repository=str(repository), tag=str(tag), digest=str(digest), kept=True)

    async def _keep_tag(self, repository: Repository, tag: Tag, digest: Digest) -> None:
        record = TagRecord(digest, time.time())
        self._postponed.pop((repository, tag), None)
        try:
            await self._record(repository, tag, record)
        except OSError as error:
            self._tags[repository, tag] = record
            self._unrecorded.add((repository, tag))
            self._log.error("tag not recorded", repository=str(repository), tag=str(tag), reason=error.strerror)

    async def _record(self, repository: Repository, tag: Tag, record: TagRecord) -> None:
        known = await self._repositories.tag(repository, tag)
        if not await self._repositories.put_tag(repository, tag, record):
            return  # it was frozen while upstream was being asked
        self._tags[repository, tag] = record
        if known is None or known.digest != record.digest:
            await note_move(self._repositories, repository, tag, Move(record.checked, record.digest))

    def _stale(self, repository: Repository, cached: Manifest, record: TagRecord, error: OciError) -> Served:
        age = max(0, int(time.time() - record.checked))
        self._blobs.used(cached.digest)
        what = "limits our rate" if error.problem is Problem.TOO_MANY_REQUESTS else "does not answer"
        return Served(
            cached,
            Outcome.STALE,
            f"{repository.registry} {what} ({error.problem.name.lower()}); this is what it said {age} s ago",
        )

    # By digest

    async def _fetch(self, repository: Repository, digest: Digest) -> Served:
        known = await self._cached(repository, digest)
        if known is not None:
            return Served(known, Outcome.HIT)
        return Served(await self._fetched(repository, digest, fallback=False), Outcome.FILL)

    async def _cached(self, repository: Repository, digest: Digest) -> Manifest | None:
        """A manifest that this repository is known to contain, from memory or from disk, hashed anew."""
        kept = self._memory.get((repository, digest))
        if kept is not None:
            self._blobs.used(digest)
            return kept
        try:
            found = await self._read(repository, digest)
        except OSError as error:
            if error.errno != errno.EIO or self._upstreams[repository.registry].is_sealed:
                raise
            self._log.warning("manifest unreadable", digest=str(digest), remedy="fetched again")
            return None
        return None if found is None else self._remember(repository, found)

    async def _read(self, repository: Repository, digest: Digest) -> Manifest | None:
        """A manifest that is on the disk, if it is what its digest says. Raises OSError."""
        link = await self._repositories.link(repository, digest)
        if link is None or link.media_type is None:
            return None
        handle = await self._blobs.open(digest)
        if handle is None:
            return await self._from_afar(repository, digest, link.media_type)
        try:
            body = await handle.read(0, manifest.MAX_BYTES + 1)
            if Digest.of(body, digest.algorithm) != digest:
                self._log.warning("manifest damaged", digest=str(digest), remedy="fetched again")
                await self._remove(digest, handle)
                return None
        finally:
            handle.close()
        return await asyncio.to_thread(manifest.parse, body, link.media_type, digest.algorithm)

    async def _from_afar(self, repository: Repository, digest: Digest, media_type: str) -> Manifest | None:
        """A manifest that the store has elsewhere; from now on it is here as well."""
        body = await self._blobs.fetch(digest, manifest.MAX_BYTES)
        if body is None:
            return None
        found = await asyncio.to_thread(manifest.parse, body, media_type, digest.algorithm)
        await self._keep_content(repository, found)
        return found

    async def _remove(self, digest: Digest, damaged: Handle) -> None:
        try:
            await self._blobs.remove(digest, damaged)
        except OSError as error:  # it will be found to be damaged again
            self._log.warning("manifest not removed", digest=str(digest), reason=error.strerror)

    async def _fetched(self, repository: Repository, reference: Reference, *, fallback: bool) -> Manifest:
        """Fetch, verify, and keep."""
        try:
            found = await self._upstreams[repository.registry].manifest(repository, reference, fallback=fallback)
        except OciError as error:
            if error.problem is Problem.MANIFEST_UNKNOWN:
                self._missing[repository, reference] = error
            raise
        await self._keep_content(repository, found)
        self._remember(repository, found)
        self.came(repository, found)
        return found

    async def _keep_content(self, repository: Repository, found: Manifest) -> None:
        """Write a manifest down, if the disk takes it: content first, then the link."""
        try:
            await self._store(repository, found)
        except NoSpace:
            self._log.warning("manifest not cached", digest=str(found.digest), reason="store.max_size leaves no room")
        except OSError as error:
            self._log.warning("manifest not cached", digest=str(found.digest), reason=error.strerror)
            self._unstored.add((repository, found.digest))

    async def _store(self, repository: Repository, found: Manifest) -> None:
        """Put a manifest and its link on the disk. Raises NoSpace, OSError."""
        is_new = not await self._is_stored(found.digest)
        async with Reservation(self._space) as reservation:
            await reservation.grow(len(found.body))
            await self._blobs.put(found.digest, found.body)
            await reservation.settle(len(found.body) if is_new else 0)
        await self._repositories.put_link(repository, found.digest, Link(len(found.body), found.media_type))

    async def _is_stored(self, digest: Digest) -> bool:
        try:
            handle = await self._blobs.open(digest)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        if handle is not None:
            handle.close()
        return handle is not None

    async def store_again(self) -> None:
        """Put on the disk what it would not take before: only this process's memory has it. Raises OSError."""

        async def record(named: tuple[Repository, Tag]) -> None:
            known, stored = self._tags.get(named), await self._repositories.tag(*named)
            is_older = known is not None and stored is not None and known.checked < stored.checked <= time.time()
            if known is not None and not is_older:  # another worker may have asked since
                await self._record(*named, known)

        async def store(image: tuple[Repository, Digest]) -> None:
            found = self._memory.get(image)
            if found is not None:
                with contextlib.suppress(NoSpace):
                    await self._store(image[0], found)

        await self._unrecorded.again(record)
        await self._unstored.again(store)

    def _remember(self, repository: Repository, found: Manifest) -> Manifest:
        """Keep a manifest in memory, and the sizes it promises of what it names: upstream will be held to them."""
        self._memory[repository, found.digest] = found
        self._blobs.used(found.digest)
        for descriptor in found.descriptors:
            self._sizes[repository, descriptor.digest] = descriptor.size
        return found


async def note_move(repositories: RepositoryStore, repository: Repository, tag: Tag, move: Move) -> None:
    """Add to what a tag has stood for, unless it is nothing new. Raises OSError."""
    seen = await repositories.history(repository, tag)
    now = history.moved(seen, move.digest, move.at)
    if len(now) != len(seen) or now[-1:] != tuple(seen[-1:]):
        await repositories.put_history(repository, tag, now)


def _postponement(error: OciError) -> float:
    """Seconds until upstream is asked again for a tag."""
    if error.retry_after is not None:
        return min(error.retry_after, LONGEST_POSTPONEMENT)
    return SLOW_POSTPONEMENT if error.problem is Problem.UPSTREAM_TIMEOUT else POSTPONEMENT
