"""The manifests that the cache has: in memory, on disk, or elsewhere in the store; each held to its digest."""

import asyncio
import contextlib
import errno
from collections.abc import Mapping

from cachetools import LRUCache

from proxy.eviction import NoSpace, Space
from proxy.files import Handle
from proxy.later import Later
from proxy.oci import manifest
from proxy.oci.digest import Digest
from proxy.oci.manifest import Manifest
from proxy.oci.reference import Repository
from proxy.permissions import Sizes
from proxy.reservation import Reservation
from proxy.stores.base import BlobStore, Link, RepositoryStore
from proxy.telemetry import Logger
from proxy.upstream import Upstream

MEMORY = 64 * 1024 * 1024  # bytes of manifests kept in memory
UNSTORED = 10_000


class ManifestCache:
    """Manifests by repository and digest: memory in front of the store. Using one counts as a use of its blob."""

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        blobs: BlobStore,
        repositories: RepositoryStore,
        space: Space,
        sizes: Sizes,
        log: Logger,
    ) -> None:
        self._upstreams = upstreams
        self._blobs = blobs
        self._repositories = repositories
        self._space = space
        self._sizes = sizes
        self._log = log
        self._memory: LRUCache[tuple[Repository, Digest], Manifest] = LRUCache(
            MEMORY, getsizeof=lambda kept: len(kept.body) + 1024
        )
        self._unstored: Later[tuple[Repository, Digest]] = Later(UNSTORED)  # that the disk would not take

    def forget(self) -> None:
        """Read everything anew from the store: an operator has changed it."""
        self._memory.clear()

    def remembered(self, repository: Repository, digest: Digest) -> Manifest | None:
        """A manifest, if memory has it."""
        kept = self._memory.get((repository, digest))
        if kept is not None:
            self._blobs.used(digest)
        return kept

    async def get(self, repository: Repository, digest: Digest) -> Manifest | None:
        """A manifest that this repository is known to contain; what comes from disk is hashed. Raises OSError."""
        kept = self.remembered(repository, digest)
        if kept is not None:
            return kept
        try:
            found = await self._read(repository, digest)
        except OSError as error:
            if error.errno != errno.EIO or self._upstreams[repository.registry].is_sealed:
                raise
            self._log.warning("manifest unreadable", digest=str(digest), remedy="fetched again")
            return None
        if found is not None:
            self._remember(repository, found)
        return found

    async def add(self, repository: Repository, found: Manifest) -> None:
        """Keep a manifest that has just come, on disk if that takes it."""
        await self._keep(repository, found)
        self._remember(repository, found)

    def _remember(self, repository: Repository, found: Manifest) -> None:
        """Keep a manifest in memory, and the sizes it promises of what it names: upstream will be held to them."""
        self._memory[repository, found.digest] = found
        self._blobs.used(found.digest)
        for descriptor in found.descriptors:
            self._sizes[repository, descriptor.digest] = descriptor.size

    # On disk

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
        await self._keep(repository, found)
        return found

    async def _remove(self, digest: Digest, damaged: Handle) -> None:
        try:
            await self._blobs.remove(digest, damaged)
        except OSError as error:  # it will be found to be damaged again
            self._log.warning("manifest not removed", digest=str(digest), reason=error.strerror)

    async def _keep(self, repository: Repository, found: Manifest) -> None:
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

    async def rewrite(self, repository: Repository, digest: Digest) -> bool:
        """Write a manifest that is damaged on disk down again, if memory has it; whether it does."""
        kept = self._memory.get((repository, digest))
        if kept is not None:
            await self._keep(repository, kept)
        return kept is not None

    async def rescue(self, repository: Repository, digest: Digest) -> None:
        """Have a manifest that only memory has, since somebody has deleted it, written again. Raises OSError."""
        if (repository, digest) in self._memory and not await self._is_stored(digest):
            self._unstored.add((repository, digest))

    async def store_again(self) -> None:
        """Put on the disk what it would not take before: only this process's memory has it. Raises OSError."""

        async def store(image: tuple[Repository, Digest]) -> None:
            found = self._memory.get(image)
            if found is not None:
                with contextlib.suppress(NoSpace):
                    await self._store(image[0], found)

        await self._unstored.again(store)
