"""Bytes that come from anywhere but upstream, into the store: spooled, held against their digest, published."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable

from proxy.eviction import STEP
from proxy.files import PIECE, Handle, SpoolState
from proxy.fill import Means
from proxy.oci.digest import Digest
from proxy.reservation import Reservation
from proxy.tee import Growth

Read = Callable[[int], Awaitable[bytes]]  # up to so many bytes; none at the end


class WrongBytes(Exception):
    """They are not those of their digest, and were not kept."""


class Intake:
    """Takes blobs into a store."""

    def __init__(self, means: Means) -> None:
        self._means = means

    async def take(self, digest: Digest, size: int, read: Read) -> bool:
        """Have the store hold a blob of `size` bytes; whether it did not before.

        The bytes are hashed whether or not they are needed. Raises WrongBytes, NoSpace, OSError, and what `read` does.
        """
        stored = await self._means.blobs.open(digest)
        if stored is not None:
            stored.close()
        if stored is None or stored.size != size:
            await self._fill(digest, size, read)
            return True
        hasher = digest.hasher()
        while data := await read(PIECE):
            await asyncio.to_thread(hasher.update, data)
        if not digest.matches(hasher):
            raise WrongBytes
        return False

    async def _fill(self, digest: Digest, size: int, read: Read) -> None:
        async with self._spool() as (key, handle, writer), Reservation(self._means.space) as reservation:
            reservation.check(size)
            growth = Growth(writer, digest.hasher())
            while data := memoryview(await read(PIECE)):
                if growth.done + len(data) > reservation.size:
                    await reservation.grow(min(size, growth.done + STEP))
                await growth.append(data)
            if not digest.matches(growth.hasher) or growth.done != size:
                raise WrongBytes
            await self._means.blobs.adopt(digest, handle, key)
            await reservation.settle(size)

    @contextlib.asynccontextmanager
    async def _spool(self) -> AsyncIterator[tuple[str, Handle, Handle]]:
        """A spool of its own with its lock, to read and to write; gone on leaving, unless it was adopted.

        Not the digest's: somebody may be downloading into that one, for however long, and a pipe cannot wait.
        """
        tree, key = self._means.tree, f"spool/taken-{secrets.token_hex(16)}"
        handle = await self._locked(key)
        try:
            writer = await tree.open_for_writing(key, handle)
            try:
                yield key, handle, writer
            finally:
                writer.close()
                await tree.discard_spool(key, handle)
        finally:
            handle.close()

    async def _locked(self, key: str) -> Handle:
        while True:
            handle = await self._means.tree.open_spool(key)
            state, _ = await self._means.tree.inspect_spool(key, handle)
            if state is SpoolState.OURS:
                return handle
            handle.close()  # somebody who wanted room has taken it for one that was left
