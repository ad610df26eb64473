"""Where a blob on its way in comes from: upstream; with a bucket that first, then the replica that brings it in."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from proxy.blob_stream import Rest
from proxy.oci.digest import Digest
from proxy.oci.reference import Repository
from proxy.peers import Peers
from proxy.stores.base import Link
from proxy.stores.durable import Durable
from proxy.stores.keys import blob_key
from proxy.stores.leases import Lease, Leases
from proxy.upstream import Upstream

HOLDERS = 3  # of one lease that may turn out to be dead, one after the other, before a pull waits for none any more


class Incoming(Protocol):
    """Bytes of a blob as they come: `start` is the offset of the first, `total` the blob's size, if known."""

    @property
    def start(self) -> int: ...
    @property
    def total(self) -> int | None: ...
    async def read(self) -> bytes:
        """Whatever has come since, at least a byte; empty at the end. Raises Interrupted."""

    def rest(self) -> Rest | None:
        """All that is left, to go from its connection straight into a file; None if it has to be read."""


class Origin(Protocol):
    """One blob's place outside of this cache."""

    @property
    def name(self) -> str:
        """What to call it in messages."""

    @property
    def digest(self) -> Digest: ...
    @property
    def is_upstream(self) -> bool:
        """Whether it was upstream that was opened last."""

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

    @property
    def is_upstream(self) -> bool:
        return True

    def open(self, start: int) -> contextlib.AbstractAsyncContextManager[Incoming]:
        return self.upstream.download(self.repository, self.digest, start=start)

    async def refute(self) -> None:
        self.upstream.distrust_parts()


@dataclass(frozen=True, slots=True)
class Replicas:
    """What all replicas on a bucket have in common: it, whose turn it is to bring in a blob, and how to reach that."""

    durable: Durable
    leases: Leases
    peers: Peers

    async def have(self, digest: Digest, size: int) -> bool:
        """Whether one of the others has a blob of so many bytes by a lease, and answers."""
        for lease in reversed(await self.leases.others(digest)):
            async with self.peers.open(lease, digest, size) as stream:
                if stream is not None:
                    return True
        return False


class FromReplicas:
    """A blob that may be in the bucket, or on its way in to another replica; else it is for this one to bring it in.

    The bucket is asked once, and anew after each holder of the lease that was followed: from where one breaks off, the
    next goes on. `permitted` raises OciError unless the repository may have the blob; `expected`: its size in bytes, if
    known.
    """

    def __init__(
        self, source: Source, replicas: Replicas, permitted: Callable[[], Awaitable[Link]], expected: int | None
    ) -> None:
        self._source = source
        self._durable, self._leases, self._peers = replicas.durable, replicas.leases, replicas.peers
        self._permitted = permitted
        self._expected = expected
        self.is_upstream = False
        self._is_asked = False
        self._brought: list[int] = []  # from which bytes on the bucket sent some of it
        self._lent: dict[str, int] = {}  # the same of holders, by the nonces of their leases
        self._dead: set[str] = set()  # nonces of those that nobody answers for, or who answered and sent nothing

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
            stream = stream or await self._from_holder(stack, start)
            self.is_upstream = stream is None
            if stream is None:
                stream = await stack.enter_async_context(self._source.open(start))
            yield stream

    async def _from_bucket(self, stack: contextlib.AsyncExitStack, start: int) -> Incoming | None:
        self._is_asked = True
        stream = await stack.enter_async_context(self._durable.open(blob_key(self.digest), start))
        if stream is None:
            return None
        if stream.total == 0 and not self.digest.matches(self.digest.hasher()):
            await stack.aclose()
            await self._durable.disown(blob_key(self.digest), "there is nothing in it")
            return None
        if self._expected not in {None, stream.total}:
            # It is wrong, or the manifest is, which anybody may have written: what upstream sends replaces it if it is.
            await stack.aclose()
            return None
        await self._permitted()
        self._brought.append(start)
        return stream

    async def _from_holder(self, stack: contextlib.AsyncExitStack, start: int) -> Incoming | None:
        """What another replica lends; None if it is for this one to ask upstream."""
        self._dead |= {nonce for nonce, begun in self._lent.items() if begun == start}
        while len(self._dead) < HOLDERS and not self._source.upstream.is_sealed:
            lease = await self._leases.claim(self.digest, self._dead)
            if lease is None or self._leases.is_ours(lease):
                # Who died, or gave it up meanwhile, may have brought it in.
                return await self._from_bucket(stack, start) if self._dead else None
            stream = await self._lender(stack, lease, start)
            if stream is not None:
                self._lent[lease.nonce] = start
                self._is_asked = False
                return stream
            self._dead.add(lease.nonce)
        return None

    async def _lender(self, stack: contextlib.AsyncExitStack, lease: Lease, start: int) -> Incoming | None:
        link = await self._permitted()
        stream = await stack.enter_async_context(self._peers.open(lease, self.digest, start))
        size = link.size if self._expected is None else self._expected
        if stream is not None and stream.total is not None and size not in {None, stream.total}:
            await stack.aclose()
            return None
        if stream is not None and stream.total is None:
            stream.total = size
        return stream

    async def refute(self) -> None:
        if self._brought[:1] == [0] and not self._lent and not self.is_upstream:  # nobody else had a part in it
            await self._durable.disown(blob_key(self.digest), "its bytes are not the blob's")
        for nonce in self._lent:
            await self._leases.disown(self.digest, nonce)
        if self.is_upstream and not self._brought and not self._lent:
            await self._source.refute()
