"""The one tee: what comes of a blob is hashed and written in a thread, while the next of it comes."""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from proxy import files
from proxy.files import Handle
from proxy.oci.digest import Hasher

BATCH = 2 * 1024 * 1024  # bytes that may wait for the disk before nothing more is read
STRIDE = 1024 * 1024  # bytes after which it is told that more is written, where more is waiting
SYNCED = 1.0  # seconds after which the disk is to have what came: little is left for the end, and less held up by it


class Growth:
    """What is on disk of a blob (`done` bytes) and the hash of just that: they never part."""

    def __init__(self, writer: Handle, hasher: Hasher) -> None:
        self.writer = writer
        self.hasher = hasher
        self.done = 0
        self.syncing: list[asyncio.Task[None]] = []  # the last, if there was one
        self._synced = time.monotonic()

    async def resume(self, handle: Handle) -> None:
        """Take over what an earlier process wrote."""
        self.done = await files.rehash(handle, self.hasher)

    async def append(self, data: memoryview) -> None:
        """Write, hash and count. Raises OSError, having counted what the disk still took."""
        await self.pour(deque([data]), lambda: None)

    async def pour(self, pieces: deque[memoryview], told: Callable[[], None]) -> None:
        """As append(), pieces, and those that are put there meanwhile, for a while; `told` after each, in a thread."""

        def wrote(done: int) -> None:
            self.done = done
            told()

        await files.pour(self.writer, self.done, self.hasher, pieces, wrote)

    def catch_up(self, written: Callable[[], int]) -> None:
        """Hash what others have written, as far as `written` says at the time, for a while; blocking.

        Raises OSError.
        """

        def hashed(done: int) -> None:
            self.done = done

        files.catch_up(self.writer.fd, self.done, self.hasher, written, hashed)

    def keep_synced(self) -> None:
        """Have what was written on disk once in a while, beside what else is done: `syncing` is what comes of it.

        Raises OSError of the last time: it says so once, and never again.
        """
        if time.monotonic() - self._synced >= SYNCED and all(work.done() for work in self.syncing):
            for work in self.syncing:
                work.result()
            self._synced = time.monotonic()
            self.syncing = [asyncio.create_task(files.sync(self.writer))]


class Tee:
    """Bytes on their way into a growth: `end` is where they end, written or not. Each is written as soon as can be."""

    def __init__(self, growth: Growth, announce: Callable[[int], None]) -> None:
        """`announce` is told how far the growth has got, whenever it has."""
        self._growth = growth
        self._announce = announce
        self._loop = asyncio.get_running_loop()
        self._pieces: deque[memoryview] = deque()
        self._told = growth.done - STRIDE  # of the first piece at once: somebody waits for it
        self._moved = asyncio.Event()  # set when there is room for more, or never will be
        self._writing: asyncio.Task[None] | None = None
        self.end = growth.done

    async def put(self, data: memoryview) -> None:
        """Take bytes, and return when more may come. Raises OSError of those before."""
        self._check()
        self._pieces.append(data)
        self.end += len(data)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        self._growth.keep_synced()
        while self.end - self._growth.done >= BATCH and not self._writing.done():
            self._moved.clear()
            await self._moved.wait()

    async def flush(self) -> None:
        """Wait until all that has come is written. Raises OSError."""
        # Whoever is cancelled closes the file next: nothing is to be at it by then.
        await files.outlast(*self._work())
        self._check()

    def _check(self) -> None:
        """What follows an error is worth nothing."""
        for work in self._work():
            if work.done():
                work.result()

    def _work(self) -> list[asyncio.Task[None]]:
        return self._growth.syncing if self._writing is None else [self._writing, *self._growth.syncing]

    async def _write(self) -> None:
        try:
            while self._pieces:
                await self._growth.pour(self._pieces, self._wrote)
                self._progressed()
        finally:
            self._moved.set()

    def _wrote(self) -> None:
        """In the thread that writes: have the loop know, but not of each piece."""
        if self._growth.done - self._told >= STRIDE:
            self._told = self._growth.done
            self._loop.call_soon_threadsafe(self._progressed)

    def _progressed(self) -> None:
        self._moved.set()
        self._announce(self._growth.done)
