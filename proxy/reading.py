"""The bytes of a blob for one reader: from the store, or on their way in."""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Protocol

from proxy import files
from proxy.blob_stream import BlobStream, Interrupted
from proxy.files import Extent, Handle
from proxy.oci.byterange import Span
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError, Problem
from proxy.origin import Source
from proxy.spool import End, Spool
from proxy.telemetry import Outcome

SMALL = 64 * 1024  # bytes up to which a blob is read at once, and held against its digest as a manifest is
CHUNK = 256 * 1024  # bytes read and sent at a time
NEAR = 8 * 1024 * 1024  # bytes ahead of the watermark that are worth waiting for
TRIES = 3  # of a direct stream that breaks off without a byte in between


class Blob(Protocol):
    """A blob that may be sent: its size in bytes, if known, and its bytes; all of them in `body` if they are there."""

    @property
    def body(self) -> bytes | None: ...
    @property
    def size(self) -> int | None: ...
    @property
    def outcome(self) -> Outcome: ...
    def read(self, span: Span | None) -> AsyncGenerator[bytes | Extent]:
        """What is in `span`, or all; raises OciError, OSError where the honest thing is to stop short.

        An OSError of sending a stretch is to be thrown into it.
        """

    def arriving(self) -> AsyncGenerator[int]:
        """How many of its bytes the cache has, as they come, until it has them all. Raises OciError if it will not."""

    def close(self) -> None: ...


class SmallBlob:
    """A blob that has been read from the store, and is what its digest says."""

    outcome = Outcome.HIT

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.size = len(body)

    async def read(self, span: Span | None) -> AsyncGenerator[bytes | Extent]:
        yield self.body if span is None else self.body[span.start : span.stop]

    async def arriving(self) -> AsyncGenerator[int]:
        yield self.size

    def close(self) -> None:
        """There is nothing to let go of."""


class StoredBlob:
    """A blob from the store. With a `digest` it is hashed as it is read; if it is wrong, its last piece is withheld.

    `discard` takes it out of the store, saying why: the next client gets it from upstream.
    """

    body = None
    outcome = Outcome.HIT

    def __init__(self, handle: Handle, discard: Callable[[str], Awaitable[None]], digest: Digest | None = None) -> None:
        self._handle = handle
        self._discard = discard
        self._digest = digest
        self.size = handle.size

    async def read(self, span: Span | None) -> AsyncGenerator[bytes | Extent]:
        offset, stop = (0, self.size) if span is None else (span.start, span.stop)
        try:
            if self._digest is None or stop - offset != self.size:
                yield Extent(self._handle, offset, stop - offset)
                return
            async with contextlib.aclosing(self._verified(self._digest)) as pieces:
                async for data in pieces:
                    yield data
        except OSError as error:
            if files.is_damage(error):
                await self._discard("unreadable")  # a bad sector stays bad
            raise

    async def _verified(self, digest: Digest) -> AsyncGenerator[bytes]:
        """All of it, its last piece once the digest holds."""
        offset, hasher = 0, digest.hasher()
        while offset < self.size:
            data = await files.read_hashed(self._handle, offset, min(CHUNK, self.size - offset), hasher)
            if not data:
                raise OciError(Problem.OVERLOADED, "the file has become shorter than it was")
            offset += len(data)
            if offset == self.size and not digest.matches(hasher):
                await self._discard("rot")
                raise OciError(Problem.OVERLOADED, "the blob has been damaged on the disk")
            yield data

    async def arriving(self) -> AsyncGenerator[int]:
        yield self.size

    def close(self) -> None:
        self._handle.close()


class ComingBlob:
    """A blob on its way in: from the spool as it grows, and from upstream where the spool will not get in time."""

    body = None

    def __init__(self, source: Source, spool: Spool, size: int | None, outcome: Outcome) -> None:
        self._source = source
        self._spool = spool
        self.size = size
        self.outcome = outcome

    async def read(self, span: Span | None) -> AsyncGenerator[bytes | Extent]:
        if span is not None and span.length == self.size:
            span = None  # all of it, by another name: the digest can vouch for that
        offset, stop = (0, self.size) if span is None else (span.start, span.stop)
        if span is not None:
            async with contextlib.aclosing(self._beside(span)) as part:
                async for data in part:
                    offset += len(data)
                    yield data
        async with contextlib.aclosing(self._followed(offset, stop)) as part:
            async for extent in part:
                offset += extent.count
                yield extent
        if self._spool.end is End.UNCACHED and (stop is None or offset < stop):
            rest = self._verified() if span is None else self._directly(Span(offset, span.stop))
            async with contextlib.aclosing(rest) as part:
                async for data in part:
                    offset += len(data)
                    yield data
        if stop is not None and offset < stop:
            raise self._broken()

    def _broken(self) -> OciError:
        return self._spool.error or OciError(Problem.UPSTREAM_UNREACHABLE, "the blob broke off")

    async def arriving(self) -> AsyncGenerator[int]:
        there = 0
        while (readable := await self._spool.beyond(there)) > there:
            there = readable
            yield there
        await self._spool.ended()
        if self._spool.end is End.UNCACHED:
            raise OciError(Problem.OVERLOADED, "the cache has no room for it, or its disk takes no more")
        if self._spool.end is not End.VERIFIED:
            raise self._broken()

    def close(self) -> None:
        self._spool.leave()

    async def _beside(self, span: Span) -> AsyncGenerator[bytes]:
        """What of a part does not come by the spool: it is far ahead, or what the spool has will never be verified.

        Of a part no end can be withheld: unless its bytes are upstream's, it waits until the digest holds.
        """
        if not self._spool.is_trusted:
            await self._spool.judged()
            if self._spool.end is End.FAILED:
                raise self._broken()
            if self._spool.end is not End.UNCACHED:
                return
        elif span.start <= self._spool.watermark + NEAR:
            return
        async with contextlib.aclosing(self._directly(span)) as part:
            async for data in part:
                yield data

    async def _followed(self, offset: int, stop: int | None) -> AsyncGenerator[Extent]:
        """What the spool has and gets, from `offset`; ends early where the spool does."""
        while stop is None or offset < stop:
            readable = await self._spool.beyond(offset)
            if readable <= offset:
                break
            until = readable if stop is None else min(readable, stop)
            if self._spool.end is None and offset < until - 1 and until == self._spool.size:
                until -= 1  # the very last by itself: should the disk fail meanwhile, what was sent may be wrong
            yield self._spool.extent(offset, until - offset)
            offset = until
        if self._spool.end is End.FAILED and (stop is None or offset < stop):
            raise self._broken()

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
