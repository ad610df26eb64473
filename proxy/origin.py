"""Where a blob on its way in comes from: its upstream, or the bucket first, and upstream for what is missing there."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from proxy.oci.digest import Digest
from proxy.oci.reference import Repository
from proxy.stores.disk import blob_key
from proxy.stores.durable import Durable
from proxy.upstream import Upstream


class Incoming(Protocol):
    """Bytes of a blob as they come: `start` is the offset of the first, `total` the blob's size, if known."""

    @property
    def start(self) -> int: ...
    @property
    def total(self) -> int | None: ...
    async def read(self) -> bytes:
        """Whatever has come since, at least a byte; empty at the end. Raises Interrupted."""


class Origin(Protocol):
    """One blob's place outside of this cache."""

    @property
    def name(self) -> str:
        """What to call it in messages."""

    @property
    def digest(self) -> Digest: ...
    def open(self, start: int) -> contextlib.AbstractAsyncContextManager[Incoming]:
        """Its bytes from an offset on; they may begin earlier. Raises OciError."""

    async def refute(self) -> None:
        """What it brought was wrong."""


@dataclass(frozen=True, slots=True)
class Source:
    """A blob of an upstream."""

    upstream: Upstream
    repository: Repository
    digest: Digest

    @property
    def name(self) -> str:
        return self.repository.registry

    def open(self, start: int) -> contextlib.AbstractAsyncContextManager[Incoming]:
        return self.upstream.download(self.repository, self.digest, start=start)

    async def refute(self) -> None:
        self.upstream.distrust_parts()


class BucketFirst:
    """A blob that may be in the bucket. It is asked once: from where that breaks off, upstream goes on.

    `permitted` raises OciError unless the repository may have the blob; `expected`: its size in bytes, if known.
    """

    def __init__(
        self, source: Source, durable: Durable, permitted: Callable[[], Awaitable[object]], expected: int | None
    ) -> None:
        self._source = source
        self._durable = durable
        self._permitted = permitted
        self._expected = expected
        self._is_asked = False
        self._has_brought = False  # some of it, or all

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def digest(self) -> Digest:
        return self._source.digest

    @contextlib.asynccontextmanager
    async def open(self, start: int) -> AsyncIterator[Incoming]:
        async with contextlib.AsyncExitStack() as stack:
            stream = None if self._is_asked else await self._from_bucket(stack, start)
            if stream is None:
                stream = await stack.enter_async_context(self._source.open(start))
            yield stream

    async def _from_bucket(self, stack: contextlib.AsyncExitStack, start: int) -> Incoming | None:
        self._is_asked = True
        stream = await stack.enter_async_context(self._durable.open(blob_key(self.digest), start))
        if stream is None:
            return None
        is_nothing = stream.total == 0 and not self.digest.matches(self.digest.hasher())
        if is_nothing or self._expected not in {None, stream.total}:
            await self._durable.disown(blob_key(self.digest), "its size is not the blob's")
            return None
        await self._permitted()
        self._has_brought = True
        return stream

    async def refute(self) -> None:
        if self._has_brought:
            await self._durable.disown(blob_key(self.digest), "its bytes are not the blob's")
        else:
            await self._source.refute()
