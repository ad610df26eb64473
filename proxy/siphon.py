"""The rest of a blob that comes fast by a plain connection: from there into its file, and hashed behind that."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

from proxy import files
from proxy.blob_stream import Rest
from proxy.spool import PAUSE, STRETCH
from proxy.tee import Growth

LAG = 64 * 1024 * 1024  # bytes that may be written and not hashed: memory of the system's, and none of this process


class Siphon:
    """As a Tee, but nothing passes through this process: what is hashed is read back from the file.

    It has two threads of its own, one that writes and one that hashes: at memory speed hashing takes as long as all the
    rest. Where no more can be started, those for all do it. What is announced is written; what a growth has `done` is
    hashed as well, and the same once this is over.
    """

    def __init__(self, growth: Growth, announce: Callable[[int], None]) -> None:
        """`announce` is told how far the file has got, whenever it has."""
        self._growth = growth
        self._announce = announce
        self._loop = asyncio.get_running_loop()
        self._written = self._told = growth.done
        self._told_at = time.monotonic()
        self._is_over = self._is_cancelled = False
        self._moved = asyncio.Event()  # set when something was written or hashed, or never will be again

    async def run(self, rest: Rest, room: Callable[[int], Awaitable[int]]) -> None:
        """Take all that is left. `room` says how many bytes may be written from an offset on.

        Raises Interrupted, what `room` raises, OSError (in place of CancelledError too: the file is worth nothing).
        """
        with _thread() as writer, _thread() as hasher:
            await self._take(rest, room, writer, asyncio.create_task(self._hash(hasher)))

    async def _take(
        self,
        rest: Rest,
        room: Callable[[int], Awaitable[int]],
        writer: Executor | None,
        hashing: "asyncio.Task[None]",
    ) -> None:
        try:
            while rest.left and not hashing.done():
                most = LAG - (self._written - self._growth.done)
                if most <= 0:
                    await self._move()
                    continue
                self._growth.keep_synced()
                most = min(most, await room(self._written))
                await rest.pour(writer, self._growth.writer, self._written, most, self._wrote)
                self._progressed()
        except asyncio.CancelledError:
            self._is_cancelled = hashing.cancel()  # whoever goes on with the file hashes it anew
            raise
        finally:
            self._is_over = True
            self._moved.set()
            try:  # whoever is cancelled closes the file next: nothing is to be at it by then
                await files.outlast(hashing, *self._growth.syncing)
            finally:
                self._raise_from(hashing)

    def _raise_from(self, hashing: "asyncio.Task[None]") -> None:
        """What the disk would not give back, or take, is worth nothing, whatever else has happened. Raises OSError."""
        for work in (hashing, *self._growth.syncing):
            if not work.cancelled() and (error := work.exception()) is not None:
                raise error

    async def _hash(self, thread: Executor | None) -> None:
        try:
            while self._growth.done < self._written or not self._is_over:
                if self._growth.done == self._written:
                    await self._move()
                else:
                    await files.hop_to(thread, lambda: self._growth.catch_up(self._hashable))
                    self._moved.set()
        finally:
            self._moved.set()

    async def _move(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    def _hashable(self) -> int:
        """In the thread that hashes: where what is worth it ends."""
        return 0 if self._is_cancelled else self._written

    def _wrote(self, end: int) -> None:
        """In the thread that writes: have the loop know, which has to be woken for it, as often as readers do."""
        self._written, now = end, time.monotonic()
        if end - self._told >= STRETCH or now - self._told_at >= PAUSE:
            self._told, self._told_at = end, now
            self._loop.call_soon_threadsafe(self._progressed)

    def _progressed(self) -> None:
        self._moved.set()
        self._announce(self._written)


@contextlib.contextmanager
def _thread() -> Iterator[Executor | None]:
    """A thread of its own, begun while nothing hangs on it; None where no more can be started."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="siphon")
    try:
        thread.submit(int)
    except RuntimeError:  # a limit of processes, or memory
        is_there = False
    else:
        is_there = True
    try:
        yield thread if is_there else None
    finally:
        thread.shutdown(wait=False)
