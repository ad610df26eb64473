"""Blobs: serve what is stored, join what is coming, start what is missing."""

import asyncio
import contextlib
import errno
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from functools import partial
from typing import Protocol

from proxy import files
from proxy.blob_stream import BlobStream, Interrupted
from proxy.download import Source
from proxy.files import Handle
from proxy.fill import Fill, Means, Result
from proxy.oci.byterange import Span
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError, Problem
from proxy.oci.reference import Repository
from proxy.permissions import Permissions
from proxy.spool import End, Spool
from proxy.stores.base import Link
from proxy.telemetry import Metrics, Outcome
from proxy.upstream import Upstream

CHUNK = 256 * 1024  # bytes read and sent at a time
NEAR = 8 * 1024 * 1024  # bytes ahead of the watermark that are worth waiting for
TRIES = 3  # of a direct stream that breaks off without a byte in between
MAX_FILLS = 128  # downloads at once from one upstream ...
MAX_WAITING = 4096  # ... and with those that wait for their turn


class Blob(Protocol):
    """A blob that may be sent: its size in bytes, if known, and its bytes."""

    @property
    def size(self) -> int | None: ...
    @property
    def outcome(self) -> Outcome: ...
    def read(self, span: Span | None) -> AsyncGenerator[bytes]:
        """The bytes of `span`, or all; raises OciError, OSError where the honest thing is to stop short."""

    def arriving(self) -> AsyncGenerator[int]:
        """How many of its bytes the cache has, as they come, until it has them all. Raises OciError if it will not."""

    def close(self) -> None: ...


class StoredBlob:
    """A blob from the store."""

    outcome = Outcome.HIT

    def __init__(self, handle: Handle, discard: Callable[[], Awaitable[None]]) -> None:
        self._handle = handle
        self._discard = discard
        self.size = handle.size

    async def read(self, span: Span | None) -> AsyncGenerator[bytes]:
        offset, stop = (0, self.size) if span is None else (span.start, span.stop)
        while offset < stop:
            try:
                data = await self._handle.read(offset, min(CHUNK, stop - offset))
            except OSError as error:
                if error.errno == errno.EIO:
                    await self._discard()  # a bad sector stays bad: the next client gets the blob from upstream
                raise
            if not data:
                raise OciError(Problem.OVERLOADED, "the file has become shorter than it was")
            offset += len(data)
            yield data

    async def arriving(self) -> AsyncGenerator[int]:
        yield self.size

    def close(self) -> None:
        self._handle.close()


class ComingBlob:
    """A blob on its way in: from the spool as it grows, and from upstream where the spool will not get in time."""

    def __init__(self, source: Source, spool: Spool, size: int | None, outcome: Outcome) -> None:
        self._source = source
        self._spool = spool
        self.size = size
        self.outcome = outcome

    async def read(self, span: Span | None) -> AsyncGenerator[bytes]:
        if span is not None and span.length == self.size:
            span = None  # all of it, by another name: the digest can vouch for that
        offset, stop = (0, self.size) if span is None else (span.start, span.stop)
        if span is not None and span.start > self._spool.watermark + NEAR:
            async with contextlib.aclosing(self._directly(span)) as part:
                async for data in part:
                    offset += len(data)
                    yield data
        async with contextlib.aclosing(self._followed(offset, stop)) as part:
            async for data in part:
                offset += len(data)
                yield data
        if self._spool.end is End.UNCACHED and (stop is None or offset < stop):
            rest = self._verified() if span is None else self._directly(Span(offset, span.stop))
            async with contextlib.aclosing(rest) as part:
                async for data in part:
                    offset += len(data)
                    yield data
        if stop is not None and offset < stop:
            raise self._spool.error or OciError(Problem.UPSTREAM_UNREACHABLE, "the blob broke off")

    async def arriving(self) -> AsyncGenerator[int]:
        there = 0
        while (readable := await self._spool.beyond(there)) > there:
            there = readable
            yield there
        if self._spool.end is End.UNCACHED:
            raise OciError(Problem.OVERLOADED, "the cache has no room for it, or its disk takes no more")
        if self._spool.end is not End.VERIFIED:
            raise self._spool.error or OciError(Problem.UPSTREAM_UNREACHABLE, "the blob broke off")

    def close(self) -> None:
        self._spool.leave()

    async def _followed(self, offset: int, stop: int | None) -> AsyncGenerator[bytes]:
        """What the spool has and gets, from `offset`; ends early where the spool does."""
        while stop is None or offset < stop:
            readable = await self._spool.beyond(offset)
            if readable <= offset:
                break
            until = readable if stop is None else min(readable, stop)
            data = await self._spool.read(offset, min(CHUNK, until - offset))
            if not data:
                raise OciError(Problem.OVERLOADED, "the file has become shorter than it was")
            offset += len(data)
            yield data
        if self._spool.end is End.FAILED and (stop is None or offset < stop):
            raise self._spool.error or OciError(Problem.UPSTREAM_UNREACHABLE, "the blob broke off")

    async def _directly(self, span: Span) -> AsyncGenerator[bytes]:
        """A span from upstream on its own; ends early where upstream does, or will not send a part.

        No digest vouches for a part: it is the client that holds the whole against it.
        """
        offset, failures = span.start, 0
        while offset < span.stop and failures < TRIES:
            failures += 1
            try:
                async with self._stream(offset, span.stop) as stream:
                    if stream.start != offset and self._spool.end is not End.UNCACHED:
                        return  # upstream sends the whole: the spool will be there no later
                    async for data in self._until_caught_up(stream, offset, span.stop):
                        offset += len(data)
                        failures = 0
                        yield data
                    if self._spool.readable > offset:
                        return
            except Interrupted:
                continue
            except OciError as error:
                if not error.problem.is_outage:
                    raise
                return

    async def _until_caught_up(self, stream: BlobStream, offset: int, stop: int) -> AsyncGenerator[bytes]:
        """The bytes from `offset` to `stop`, until the fill is ahead: from then on they are cheaper from there."""
        skip = offset - stream.start
        while self._spool.readable <= offset < stop and (data := await stream.read()):
            data, skip = data[skip:][: stop - offset], max(0, skip - len(data))
            if data:
                offset += len(data)
                with stream.resting():
                    yield data

    async def _verified(self) -> AsyncGenerator[bytes]:
        """Everything after what the readers of the spool have been given, with the last byte withheld till the end."""
        offset = self._spool.watermark if self._spool.is_open else 0
        digest = self._source.digest
        hasher = self._spool.hasher.copy() if self._spool.hasher is not None else digest.hasher()
        held = await self._spool.read(offset - 1, 1) if offset else b""
        failures = 0
        while failures < TRIES and offset != self.size and not (offset and digest.matches(hasher)):
            failures += 1
            with contextlib.suppress(Interrupted):
                async with self._stream(offset, None) as stream:
                    skip = offset - stream.start
                    while data := await stream.read():
                        data, skip = data[skip:], max(0, skip - len(data))
                        if self.size is not None and offset + len(data) > self.size:
                            raise OciError(Problem.UPSTREAM_INVALID, "more comes of the blob than there is")
                        if data:
                            hasher.update(data)
                            offset += len(data)
                            failures = 0
                            with stream.resting():
                                yield held + data[:-1]
                            held = data[-1:]
                if self.size is None:
                    break
        if not digest.matches(hasher) or self.size not in {None, offset}:
            raise OciError(Problem.UPSTREAM_INVALID, f"{self._source.upstream.registry} sent a blob with wrong bytes")
        yield held

    def _stream(self, start: int, stop: int | None) -> contextlib.AbstractAsyncContextManager[BlobStream]:
        return self._source.upstream.blob(self._source.repository, self._source.digest, start=start, stop=stop)


class Blobs:
    """The use case: a blob of a repository, from wherever it is."""

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        means: Means,
        permissions: Permissions,
        metrics: Metrics,
    ) -> None:
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
            handle = await self._stored(repository, digest, link)
            if handle is not None:
                handle.close()
                return handle.size
        return (await self._permissions.asked(repository, digest)).size

    async def open(self, repository: Repository, digest: Digest) -> Blob:
        """The blob, as soon as its size is known and upstream has said that the repository has it.

        Raises OciError, OSError.
        """
        link = await self._permissions.known(repository, digest)
        if (
            link is None
            and (repository.registry, digest) not in self._fills
            and await self._is_stored(repository, digest)
        ):
            link = await self._permissions.granted(repository, digest)
        handle = None if link is None else await self._stored(repository, digest, link)
        if handle is not None:
            return StoredBlob(handle, partial(self._means.blobs.remove, digest))
        return await self._coming(repository, digest, link)

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

    async def _stored(self, repository: Repository, digest: Digest, link: Link) -> Handle | None:
        """The stored blob; None if it is not there, or was damaged, in which case it is removed to be fetched again.

        A link whose size is not the file's, or that knows none, is told the right one: the next look is cheap.
        """
        handle = await self._found(repository, digest)
        if handle is None:
            return None
        if link.size != handle.size:
            if not await _holds(digest, handle):
                self._means.log.warning(
                    "blob damaged", digest=str(digest), size=handle.size, expected=link.size, remedy="fetched again"
                )
                handle.close()
                await self._means.blobs.remove(digest)
                return None
            await self._permissions.confirmed(repository, digest, handle.size)
        self._means.blobs.used(digest)
        return handle

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
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _check_emptiness(repository: Repository, digest: Digest, size: int | None) -> None:
    """An empty body has no last byte to withhold: that it is wrong must be said before the headers. Raises OciError."""
    if size == 0 and not digest.matches(digest.hasher()):
        raise OciError(Problem.UPSTREAM_INVALID, f"{repository.registry} has nothing where a blob belongs")


async def _holds(digest: Digest, handle: Handle) -> bool:
    """Whether a file is right, whatever upstream says of its size."""
    hasher = digest.hasher()
    await files.rehash(handle, hasher)
    return digest.matches(hasher)
