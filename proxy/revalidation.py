"""What only upstream can say of a manifest: what a tag stands for now, and what is not here; stale where it fails."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cachetools import LRUCache, TTLCache

from proxy.manifest_cache import ManifestCache
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError, Problem
from proxy.oci.manifest import Manifest
from proxy.oci.reference import Reference, Repository, Tag
from proxy.stores.base import Pin, RepositoryStore, TagRecord
from proxy.tags import Tags
from proxy.telemetry import Logger, Outcome
from proxy.upstream import Upstream

NEGATIVE_TTL = 5.0  # seconds that a 404 is remembered: a build polls for what it is about to push
NEGATIVES = 10_000
POSTPONED = 10_000
POSTPONEMENT = 1.0  # seconds before a tag is revalidated again after upstream failed to answer
SLOW_POSTPONEMENT = 6.0  # seconds, where the failure was silence: each pull that finds out anew waits seconds for it
LONGEST_POSTPONEMENT = 60.0


@dataclass(frozen=True, slots=True)
class Served:
    """A manifest to answer with, where it came from, and what a client should be warned of."""

    manifest: Manifest
    outcome: Outcome
    warning: str | None = None


class Revalidation:
    """The questions to upstream, and what becomes of its answers. Every method raises OciError, OSError."""

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        cache: ManifestCache,
        tags: Tags,
        pins: RepositoryStore | None,
        log: Logger,
    ) -> None:
        """`pins`: where what upstream has deleted is pinned, since nobody could bring it back; None: it is not.

        `came` is set later, by whoever wants to know of each manifest that comes from upstream.
        """
        self._upstreams = upstreams
        self._cache = cache
        self._tags = tags
        self._pins = pins
        self._log = log
        self.came: Callable[[Repository, Manifest], None] = lambda _repository, _manifest: None
        self._missing: TTLCache[tuple[Repository, Reference], OciError] = TTLCache(NEGATIVES, NEGATIVE_TTL)
        self._postponed: LRUCache[tuple[Repository, Tag], tuple[float, OciError]] = LRUCache(POSTPONED)

    def forget(self) -> None:
        """Ask upstream anew, whatever it said."""
        self._missing.clear()
        self._postponed.clear()

    def check(self, repository: Repository, reference: Reference) -> None:
        """Raise the OciError of an upstream that has just said that there is no such manifest."""
        missing = self._missing.get((repository, reference))
        if missing is not None:
            raise OciError(missing.problem, missing.message)

    async def resolve(self, repository: Repository, tag: Tag) -> Served:
        """Find out what a tag stands for now."""
        record = await self._tags.recorded(repository, tag)
        cached = None if record is None else await self._cache.get(repository, record.digest)
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
                await self._keep(repository, tag, record.digest)
                return Served(cached, Outcome.REVALIDATED)
            if head.digest is None:
                return await self._settle(repository, tag, record, fallback=True)
            changed = await self._moved_to(repository, head.digest)
        except OciError as error:
            await self._refused(repository, tag, record, error)
            raise
        await self._keep(repository, tag, changed.digest)
        return Served(changed, Outcome.FILL)

    async def _moved_to(self, repository: Repository, digest: Digest) -> Manifest:
        """What a tag stands for by upstream's word of a moment ago; that there is no such manifest is no answer."""
        known = await self._cache.get(repository, digest)
        if known is not None:
            return known
        try:
            return await self.fetch(repository, digest, fallback=True)
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
            found = await self.fetch(repository, tag, fallback=fallback)
        except OciError as error:
            if record is not None:
                await self._refused(repository, tag, record, error)
            raise
        await self._keep(repository, tag, found.digest)
        return Served(found, Outcome.FILL)

    async def fetch(self, repository: Repository, reference: Reference, *, fallback: bool) -> Manifest:
        """Fetch, verify, and keep. `fallback`: there is something to serve should upstream fail."""
        try:
            found = await self._upstreams[repository.registry].manifest(repository, reference, fallback=fallback)
        except OciError as error:
            if error.problem is Problem.MANIFEST_UNKNOWN:
                self._missing[repository, reference] = error
            raise
        await self._cache.add(repository, found)
        self.came(repository, found)
        return found

    async def _keep(self, repository: Repository, tag: Tag, digest: Digest) -> None:
        self._postponed.pop((repository, tag), None)
        await self._tags.keep(repository, tag, digest)

    def _stale(self, repository: Repository, cached: Manifest, record: TagRecord, error: OciError) -> Served:
        what = "limits our rate" if error.problem is Problem.TOO_MANY_REQUESTS else "does not answer"
        why = error.problem.name.lower()
        warning = f"{repository.registry} {what} ({why}); this is what it said {self._tags.age(record)} s ago"
        return Served(cached, Outcome.STALE, warning)

    # Where upstream has it no more

    async def _refused(self, repository: Repository, tag: Tag, record: TagRecord, error: OciError) -> None:
        """Upstream's word that a tag is gone, or not for us, ends what was known of it."""
        if self._upstreams[repository.registry].is_sealed:
            return  # it was not asked
        if error.problem is Problem.MANIFEST_UNKNOWN:
            self._missing[repository, tag] = error
            await self._pin(repository, tag, record.digest)
        if error.problem in {Problem.MANIFEST_UNKNOWN, Problem.DENIED}:
            await self._tags.drop(repository, tag)

    async def _pin(self, repository: Repository, tag: Tag, digest: Digest) -> None:
        """What upstream had under a tag, and has no more, stays here: this may be the last copy."""
        if self._pins is None or await self._cache.get(repository, digest) is None:
            return
        try:
            await self._pins.put_pin(repository, digest, Pin(time.time(), is_deleted=True))
        except OSError as error:
            self._log.error("not pinned", repository=str(repository), digest=str(digest), reason=error.strerror)
            return
        self._log.warning("deleted upstream", repository=str(repository), tag=str(tag), digest=str(digest), kept=True)


def _postponement(error: OciError) -> float:
    """Seconds until upstream is asked again for a tag."""
    if error.retry_after is not None:
        return min(error.retry_after, LONGEST_POSTPONEMENT)
    return SLOW_POSTPONEMENT if error.problem is Problem.UPSTREAM_TIMEOUT else POSTPONEMENT
