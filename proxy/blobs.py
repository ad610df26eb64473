"""Blobs: serve what is stored, join what is coming, start what is missing."""

import asyncio
import contextlib
import errno
from collections import Counter
from collections.abc import Mapping
from functools import partial

from proxy import files
from proxy.files import Handle
from proxy.fill import Fill, Means, Result
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError, Problem
from proxy.oci.reference import Repository
from proxy.origin import Source
from proxy.permissions import Permissions
from proxy.reading import SMALL, Blob, ComingBlob, SmallBlob, StoredBlob
from proxy.spool import End
from proxy.stores.base import Link
from proxy.stores.keys import blob_key
from proxy.telemetry import Metrics, Outcome
from proxy.upstream import Upstream
from proxy.vouching import Vouching

MAX_FILLS = 128  # downloads at once from one upstream ...
MAX_WAITING = 4096  # ... and with those that wait for their turn


class Blobs:
    """The use case: a blob of a repository, from wherever it is."""

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        means: Means,
        permissions: Permissions,
        metrics: Metrics,
        *,
        verifies: bool = False,
    ) -> None:
        """`verifies`: what is stored is held against its digest whenever it is read."""
        self._verifies = verifies
        self._vouching = Vouching()
        self._upstreams = upstreams
        self._means = means
        self._permissions = permissions
        self._metrics = metrics
        self._fills: dict[tuple[str, Digest], Fill] = {}  # one upstream's trouble is not to be another's
        self._slots: Mapping[str, asyncio.Semaphore] = {
            registry: asyncio.Semaphore(MAX_FILLS) for registry in upstreams
        }
        self._waiting: Counter[str] = Counter()  # of each upstream, with those that have their turn
        self._tasks: set[asyncio.Task[None]] = set()

    async def head(self, repository: Repository, digest: Digest) -> int | None:
        """The size of a blob, without downloading it. Raises OciError, OSError."""
        link = await self._permissions.known(repository, digest)
        if link is not None:
            handle = await self._stored(repository, digest, link, first=self._verifies)
            if handle is not None:
                handle.close()
                return handle.size
            if self._means.shared is not None and link.size is not None:
                size = await self._means.shared.replicas.durable.size(blob_key(digest))
                if size == link.size:
                    return size
        return (await self._permissions.asked(repository, digest)).size

    def is_coming(self, repository: Repository, digest: Digest) -> bool:
        """Whether a blob is on its way in for this upstream, in this process."""
        return (repository.registry, digest) in self._fills

    async def open(self, repository: Repository, digest: Digest, *, in_part: bool = False) -> Blob:
        """The blob, as soon as its size is known and upstream has said that the repository has it.

        `in_part`: not all of it will be read, so that its end cannot be withheld. Raises OciError, OSError.
        """
        link = await self._permissions.known(repository, digest)
        if link is None and not self.is_coming(repository, digest) and await self._is_stored(repository, digest):
            link = await self._permissions.granted(repository, digest)
        first = self._verifies and in_part
        handle = None if link is None else await self._stored(repository, digest, link, first=first)
        if handle is None:
            return await self._coming(repository, digest, link)
        if handle.size > SMALL:
            return StoredBlob(handle, partial(self._take_out, digest, handle), digest if self._verifies else None)
        with contextlib.closing(handle):
            body = await self._read(digest, handle)
        return await self._coming(repository, digest, link) if body is None else SmallBlob(body)

    def is_at_hand(self, repository: Repository, digest: Digest) -> bool:
        """Whether `open` would find the blob in the store, as far as memory alone can say, which counts as a use."""
        is_known = self._permissions.is_known(repository, digest) and self._means.blobs.is_known(digest)
        if is_known:
            self._means.blobs.used(digest)
        return is_known

    async def _coming(self, repository: Repository, digest: Digest, link: Link | None) -> Blob:
        upstream = self._upstreams[repository.registry]
        while True:
            fill, outcome = self._join_or_start(upstream, repository, digest)
            fill.spool.join()
            try:
                if link is None and fill.repository != repository:
                    link = await self._permissions.granted(
                        repository, digest
                    )  # its bytes are on their way for somebody else
                await fill.spool.opened()
                size = fill.spool.size
                if not fill.spool.is_open:  # the cache will not take it
                    outcome = Outcome.DIRECT
                    size = await self._size(repository, digest, link)
                _check_emptiness(repository, digest, size)
            except BaseException as error:
                fill.spool.leave()
                if isinstance(error, OciError) and error is fill.spool.error and fill.repository != repository:
                    continue  # it was another repository that could not have it: that is no word on this one
                raise
            return ComingBlob(Source(upstream, repository, digest), fill.spool, size, outcome)

    def _join_or_start(self, upstream: Upstream, repository: Repository, digest: Digest) -> tuple[Fill, Outcome]:
        """One step without an await between look-up and insert: no two fills of a blob from one upstream.

        From several upstreams there may be: they meet at the spool file, where one writes and the others follow.
        """
        fill = self._fills.get((upstream.registry, digest))
        if fill is not None:
            return fill, Outcome.JOIN
        if self._waiting[upstream.registry] >= MAX_WAITING:
            raise OciError(Problem.OVERLOADED, "too many downloads at once", retry_after=5)
        fill = Fill(
            repository,
            digest,
            upstream,
            self._means,
            self._permissions,
        )
        self._fills[upstream.registry, digest] = fill
        self._waiting[upstream.registry] += 1
        task = asyncio.create_task(self._run(fill))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return fill, Outcome.FILL

    async def _run(self, fill: Fill) -> None:
        """See a fill through: it leaves the table first, then its readers are told."""
        result = Result(End.FAILED, OciError(Problem.OVERLOADED, "the cache is shutting down", retry_after=1))
        fill.spool.join()  # whoever comes before it has left the table finds the file open
        try:
            async with self._slots[fill.repository.registry]:
                with self._metrics.fills_active.track_inprogress():
                    result = await fill.run()
        finally:
            self._metrics.fills.labels(fill.repository.registry, result.end.name.lower()).inc()
            del self._fills[fill.repository.registry, fill.digest]
            self._waiting[fill.repository.registry] -= 1
            if result.end is End.VERIFIED:
                self._means.blobs.used(fill.digest)
            fill.spool.finish(result.end, result.error, result.hasher)
            fill.spool.leave()

    # What is stored, and who may have it

    async def _is_stored(self, repository: Repository, digest: Digest) -> bool:
        handle = await self._found(repository, digest)
        if handle is None:
            return False
        handle.close()
        return True

    async def _found(self, repository: Repository, digest: Digest) -> Handle | None:
        """The file; None as well where the disk cannot read it, and upstream can be asked for it."""
        try:
            return await self._means.blobs.open(digest)
        except OSError as error:
            if error.errno != errno.EIO or self._upstreams[repository.registry].is_sealed:
                raise
            self._means.log.warning("blob unreadable", digest=str(digest), remedy="fetched again")
            return None

    async def _stored(self, repository: Repository, digest: Digest, link: Link, *, first: bool) -> Handle | None:
        """The stored blob; None if it is not there, or was damaged, in which case it is removed to be fetched again.

        `first`: it is to be read through before any of it is used; as is one whose size is not its link's. A link that
        was wrong, or knew no size, is told the right one: the next look is cheap.
        """
        handle = await self._found(repository, digest)
        if handle is None:
            return None
        try:
            doubtful = first or link.size != handle.size or not handle.size  # of nothing, no end can be withheld
            is_right = not doubtful or await self._vouching.holds(digest, handle)
            if not is_right:
                await self._take_out(digest, handle, "rot", expected=link.size)
            elif link.size != handle.size:
                await self._permissions.confirmed(repository, digest, handle.size)
        except BaseException:
            handle.close()
            raise
        if not is_right:
            handle.close()
            return None
        self._means.blobs.used(digest)
        return handle

    async def _read(self, digest: Digest, handle: Handle) -> bytes | None:
        """All of a small blob; None if it was damaged, and is removed to be fetched again. Raises OSError."""
        try:
            body = bytes(handle.at_hand(0, handle.size) or await handle.read_all(0, handle.size))
        except OSError as error:
            if not files.is_damage(error):
                raise
            await self._take_out(digest, handle, "unreadable")
            return None
        if Digest.of(body, digest.algorithm) == digest:
            return body
        await self._take_out(digest, handle, "rot")
        return None

    async def _take_out(self, digest: Digest, handle: Handle, kind: str, expected: int | None = None) -> None:
        """A stored blob is damaged: the next who wants it gets it from upstream."""
        self._metrics.findings.labels(kind, "moved").inc()
        self._means.log.warning(
            "blob damaged", digest=str(digest), kind=kind, size=handle.size, expected=expected, remedy="fetched again"
        )
        try:
            await self._means.blobs.remove(digest, handle)
        except OSError as error:  # it will be found to be damaged again
            self._means.log.warning("blob not removed", digest=str(digest), reason=error.strerror)

    async def _size(self, repository: Repository, digest: Digest, link: Link | None) -> int | None:
        """The size of a blob that only passes through: as a manifest says, else as upstream says now, not once."""
        promised = self._permissions.promised(repository, digest)
        if link is None or promised is None:
            link = await self._permissions.asked(repository, digest)
        return link.size if promised is None else promised

    # The end

    async def idle(self) -> None:
        """Wait until no fill is going on."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def aclose(self) -> None:
        """Stop every fill; what has come stays on disk, for the next process to resume."""
        await self._vouching.aclose()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _check_emptiness(repository: Repository, digest: Digest, size: int | None) -> None:
    """An empty body has no last byte to withhold: that it is wrong must be said before the headers. Raises OciError."""
    if size == 0 and not digest.matches(digest.hasher()):
        raise OciError(Problem.UPSTREAM_INVALID, f"{repository.registry} has nothing where a blob belongs")
