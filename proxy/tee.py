"""The one tee: what comes of a blob is hashed and written in a thread, while the next of it comes."""

import asyncio
from collections.abc import Callable

from proxy import files
from proxy.files import Handle
from proxy.oci.digest import Hasher

SYNCED = 32 * 1024 * 1024  # bytes after which the disk is to have them: at the end a client waits for all the rest
BATCH = 512 * 1024  # bytes that may wait for the disk before nothing more is read


class Growth:
    """What is on disk of a blob (`done` bytes) and the hash of just that: they never part."""

    def __init__(self, writer: Handle, hasher: Hasher) -> None:
        self._writer = writer
        self.hasher = hasher
        self.done = 0

    async def resume(self, handle: Handle) -> None:
        """Take over what an earlier process wrote."""
        self.done = await files.rehash(handle, self.hasher)

    async def sync(self) -> None:
        """Have what was written on disk. Raises OSError."""
        await files.sync(self._writer)

    async def append(self, data: memoryview) -> None:
        """Write, hash and count. Raises OSError, having counted what the disk still took."""
        while data:
            written = await files.append(self._writer, self.done, self.hasher, data)
            self.done += written
            data = data[written:]


class Tee:
    """Bytes on their way into a growth: `end` is where they end, written or not. Each is written as soon as can be."""

    def __init__(self, growth: Growth, announce: Callable[[int], None]) -> None:
        """`announce` is told how far the growth has got, whenever it has."""
        self._growth = growth
        self._announce = announce
        self._batch: list[memoryview] = []
        self._waiting = 0  # bytes of it
        self._moved = asyncio.Event()  # set when there is room for more, or never will be
        self._writing: asyncio.Task[None] | None = None
        self._syncing: asyncio.Task[None] | None = None
        self._synced = growth.done
        self._error: OSError | None = None
        self.end = growth.done

    async def put(self, data: memoryview) -> None:
        """Take bytes, and return when more may come. Raises OSError of those before."""
        self._batch.append(data)
        self._waiting += len(data)
        self.end += len(data)
        if self._writing is None or self._writing.done():
            self._check()
            self._writing = asyncio.create_task(self._write())
        elif self._waiting >= BATCH:
            self._moved.clear()
            await self._moved.wait()
            self._check()

    async def flush(self) -> None:
        """Wait until all that has come is written. Raises OSError."""
        # Whoever is cancelled closes the file next: nothing is to be at it by then. Writing may begin to sync.
        ending = asyncio.create_task(self._ended())
        await files.outlast(ending)
        ending.result()
        self._check()

    async def _ended(self) -> None:
        if self._writing is not None:
            await self._writing
        if self._syncing is not None:
            await self._syncing

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._writing is not None and self._writing.done():
            self._writing.result()  # a defect

    async def _write(self) -> None:
        try:
            while self._batch:
                batch, self._batch, self._waiting = self._batch, [], 0
                self._moved.set()
                await self._growth.append(batch[0] if len(batch) == 1 else memoryview(b"".join(batch)))
                self._announce(self._growth.done)
                if self._growth.done - self._synced >= SYNCED and (self._syncing is None or self._syncing.done()):
                    self._synced = self._growth.done
                    self._syncing = asyncio.create_task(self._sync())
        except OSError as error:
            self._error = error  # what follows is worth nothing
        finally:
            self._moved.set()

    async def _sync(self) -> None:
        try:
            await self._growth.sync()
        except OSError as error:
            self._error = error
