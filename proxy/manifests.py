"""Manifests: a digest is immutable, a tag is revalidated; what is cached is served when upstream does not answer."""

from collections.abc import Callable, Mapping

from cachetools import LRUCache

from proxy.eviction import Space
from proxy.manifest_cache import ManifestCache
from proxy.oci.digest import Digest
from proxy.oci.manifest import INDEXES, MOST_NESTED, Manifest
from proxy.oci.reference import Reference, Repository, Tag
from proxy.permissions import Sizes
from proxy.revalidation import Revalidation, Served
from proxy.single_flight import SingleFlight
from proxy.stores.base import BlobStore, RepositoryStore, TagRecord
from proxy.tags import IN_MEMORY, Tags
from proxy.telemetry import Logger, Outcome
from proxy.upstream import Upstream

AT_ONCE = 8  # tags that are asked about ahead: those whose clients wait for upstream are not to be behind them all
MOST_PARTS = 256  # of a manifest that are counted as used with it; layers of a real image are half as many


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
        """`keep_deleted`: what upstream has deleted is pinned, since nobody could bring it back."""
        self._upstreams = upstreams
        self._blobs = blobs
        self._repositories = repositories
        self._cache = ManifestCache(upstreams, blobs, repositories, space, sizes, log)
        self._tags = Tags(upstreams, repositories, log)
        pins = repositories if keep_deleted else None
        self._revalidation = Revalidation(upstreams, self._cache, self._tags, pins, log)
        self._flights: SingleFlight[tuple[Repository, Reference], Served] = SingleFlight()
        self._ahead: SingleFlight[tuple[Repository, Tag], None] = SingleFlight()
        self._asked_ahead: LRUCache[tuple[Repository, Tag], TagRecord] = LRUCache(IN_MEMORY)  # what each was then
        self._pulled: set[tuple[Repository, Digest]] = set()  # since the last note_uses()

    def tell(self, came: Callable[[Repository, Manifest], None]) -> None:
        """Have somebody know of each manifest that comes from upstream."""
        self._revalidation.came = came

    async def aclose(self) -> None:
        """Give up what is in flight."""
        await self._ahead.aclose()
        await self._flights.aclose()

    def forget(self) -> None:
        """Read everything anew from the store: an operator has changed it."""
        self._cache.forget()
        self._tags.forget()
        self._revalidation.forget()

    async def get(
        self, repository: Repository, reference: Reference, *, anew: bool = False, as_of: float | None = None
    ) -> Served:
        """The manifest that a client asked for.

        `anew`: of a tag, what upstream says now and not a moment ago. `as_of`: what it stood for then, in seconds
        since the epoch; where the client does not say, the configuration may.
        """
        when = self._upstreams[repository.registry].as_of if as_of is None else as_of
        if isinstance(reference, Tag) and when is not None:
            reference = await self._tags.as_of(repository, reference, when)
        return self._pull(repository, await self._get(repository, reference, anew))

    def get_again(self, repository: Repository, reference: Reference) -> Served | None:
        """What `get` would answer, as far as memory alone can say."""
        warning = None
        if isinstance(reference, Tag):
            record = self._tags.remembered(repository, reference)
            if record is None or self._upstreams[repository.registry].as_of is not None:
                return None
            if self._tags.is_due(repository, record):
                self._refresh(repository, reference, record)
            reference, warning = record.digest, self._tags.stretched(repository, record)
        kept = self._cache.remembered(repository, reference)
        return None if kept is None else self._pull(repository, Served(kept, Outcome.HIT, warning))

    def _refresh(self, repository: Repository, tag: Tag, record: TagRecord) -> None:
        """Find out what a tag stands for while it is still believed: who asks for it often never waits for that.

        Once: should it fail, whoever asks when the tag is stale is told why.
        """
        if len(self._ahead) < AT_ONCE and self._asked_ahead.get((repository, tag)) != record:
            self._asked_ahead[repository, tag] = record
            _ = self._ahead.start((repository, tag), lambda: self._ask_ahead(repository, tag))

    async def _ask_ahead(self, repository: Repository, tag: Tag) -> None:
        """Who wants it anew may join the question to upstream, but not the look at what another process has found."""
        record = await self._tags.found_elsewhere(repository, tag)
        if record is None or await self._cache.get(repository, record.digest) is None:
            await self._flights.run((repository, tag), lambda: self._revalidation.resolve(repository, tag))

    def _pull(self, repository: Repository, served: Served) -> Served:
        """Take note of a pull."""
        self._repositories.pulled(repository, served.manifest.digest)
        self._pulled.add((repository, served.manifest.digest))
        return served

    async def _get(self, repository: Repository, reference: Reference, anew: bool) -> Served:
        known = await self._at_once(repository, reference, anew)
        if known is not None:
            return known
        self._revalidation.check(repository, reference)
        return await self._flights.run((repository, reference), lambda: self._ask(repository, reference, anew))

    async def _at_once(self, repository: Repository, reference: Reference, anew: bool) -> Served | None:
        """What can be answered without upstream: a digest that is cached, or a tag that is fresh."""
        warning = None
        if isinstance(reference, Tag):
            record = await self._tags.believed(repository, reference, anew)
            if record is None:
                return None
            reference, warning = record.digest, self._tags.stretched(repository, record)
        cached = await self._cache.get(repository, reference)
        return None if cached is None else Served(cached, Outcome.HIT, warning)

    async def _ask(self, repository: Repository, reference: Reference, anew: bool) -> Served:
        known = await self._at_once(repository, reference, anew)  # another flight may have landed since the look before
        if known is not None:
            return known
        if isinstance(reference, Tag):
            return await self._revalidation.resolve(repository, reference)
        return Served(await self._revalidation.fetch(repository, reference, fallback=False), Outcome.FILL)

    async def restore(self, repository: Repository, digest: Digest) -> None:
        """See to it that a manifest that was damaged on disk is there again: from memory, else from upstream.

        Nobody has pulled it. Raises OciError; a disk that does not take it is logged.
        """
        if not await self._cache.rewrite(repository, digest):
            await self._get(repository, digest, anew=False)

    async def note_uses(self) -> None:
        """Count each image that was pulled since the last time as a use of all that belongs to it.

        Clients that have a layer do not ask for it, and it would be dropped from under the image that they do ask for.
        """
        pulled, self._pulled = self._pulled, set()
        for repository, digest in pulled:
            await self._note_use(repository, digest, MOST_NESTED)
            await self._cache.rescue(repository, digest)

    async def _note_use(self, repository: Repository, digest: Digest, depth: int) -> None:
        found = await self._cache.get(repository, digest)
        for descriptor in () if found is None else found.descriptors[:MOST_PARTS]:
            self._blobs.used(descriptor.digest)
            if found is not None and found.media_type in INDEXES and depth:
                await self._note_use(repository, descriptor.digest, depth - 1)

    async def store_again(self) -> None:
        """Put on the disk what it would not take before: only this process's memory has it. Raises OSError."""
        await self._tags.record_again()
        await self._cache.store_again()
