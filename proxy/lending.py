"""What another replica wants of a blob that this directory has, or is bringing in, for the lease it holds."""

import asyncio
import hmac
from collections.abc import AsyncGenerator

from proxy.files import Extent, Handle, SpoolState, Tree
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError, Problem
from proxy.stores.keys import blob_key, spool_key
from proxy.stores.leases import Identity

PREFIX = "/-/leases/"  # and the digest; the offset as `start` in the query, the token as a bearer's
HOLDER = "Entrepot-Holder"  # the header of an answer that says whose it is
POLL, LONGEST_POLL = 0.01, 0.1  # seconds between looks at a file that any process of this directory may be writing


class Loan:
    """The bytes of a blob from an offset on, as they are here or come: not verified, for that is its reader's business.

    `size`: of the whole blob in bytes, if it is all here.
    """

    def __init__(self, tree: Tree, key: str, handle: Handle, size: int | None, start: int) -> None:
        self._tree = tree
        self._key = key
        self._handle = handle
        self._start = start
        self.length = None if size is None else size - start

    async def read(self) -> AsyncGenerator[Extent]:
        """To the end. Raises OciError if whoever writes it stops, OSError."""
        offset, pause = self._start, POLL
        while True:
            state, size = await self._state()
            pause = min(LONGEST_POLL, 2 * pause)
            if offset < size:
                yield Extent(self._handle, offset, size - offset)
                offset, pause = size, POLL
            if state is SpoolState.COMMITTED:
                return
            if state is not SpoolState.GROWING:
                raise OciError(Problem.BLOB_UNKNOWN, "nobody here brings it in any more")
            await asyncio.sleep(pause)

    async def is_growing(self) -> bool:
        """Whether somebody is writing it now. Closed if that cannot be known: raises OSError."""
        try:
            state, _ = await self._state()
        except BaseException:
            self.close()
            raise
        return state is SpoolState.GROWING

    async def _state(self) -> tuple[SpoolState, int]:
        if self.length is not None:
            return SpoolState.COMMITTED, self._start + self.length
        state, size = await self._tree.inspect_spool(self._key, self._handle)
        if state is SpoolState.OURS:
            await self._tree.leave_spool(self._handle)  # its writer stopped; it is for whoever goes on
        return state, size

    def close(self) -> None:
        """Let go of the file."""
        self._handle.close()


class Lending:
    """Opens what other replicas ask for; the processes of one directory answer for each other."""

    def __init__(self, tree: Tree, identity: Identity) -> None:
        self._tree = tree
        self._identity = identity

    @property
    def holder(self) -> str:
        """Whose answers these are."""
        return self._identity.holder

    async def open(self, digest: Digest, start: int, authorization: str) -> Loan:
        """What is here of a blob. Raises OciError where the token is wrong, or nothing is; OSError."""
        if not hmac.compare_digest(
            authorization.encode(errors="surrogateescape"), f"Bearer {self._identity.token(digest)}".encode()
        ):
            raise OciError(Problem.DENIED, "this is no token for that blob")
        loan = await self._coming(spool_key(digest), start) or await self._stored(digest, start)
        if loan is None:
            raise OciError(Problem.BLOB_UNKNOWN, "there is no such blob here, and nobody brings it in")
        return loan

    async def _coming(self, key: str, start: int) -> Loan | None:
        handle = await self._tree.find_spool(key)
        if handle is None:
            return None
        loan = Loan(self._tree, key, handle, None, start)
        if await loan.is_growing():
            return loan
        loan.close()
        return None

    async def _stored(self, digest: Digest, start: int) -> Loan | None:
        handle = await self._tree.open(blob_key(digest))
        if handle is not None and start <= handle.size:
            return Loan(self._tree, blob_key(digest), handle, handle.size, start)
        if handle is not None:
            handle.close()
        return None
