"""What has yet to get into the bucket: an empty file for each key, so that nothing is forgotten, whoever dies.

Pulls neither wait for an upload nor fail with one. While the bucket does not take what it is given, the files stay, and
so does what they stand for: it is not evicted.
"""

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice

from proxy.files import Tree, hop
from proxy.oci.digest import Digest
from proxy.stores.durable import Durable
from proxy.stores.keys import UPLOADS, blob_digest, upload_key
from proxy.stores.payloads import Payload, Vanished, Whole
from proxy.telemetry import Logger, Metrics

AT_ONCE = 4  # of one process
EARLY = 8  # of blobs that are still on their way in: each holds its file open
MOST = 4096  # keys that a process remembers: what is more waits on disk alone
LOOK = 30.0  # seconds between looks for what a process that died has left, or what was too much to remember
LEAVE, LEAVES = 5.0, 120  # seconds after which it is looked whether another replica has uploaded a blob, and how often
PUT_OFF = 10.0  # seconds after which a file that could not be read is tried again
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds after a failure


def wanted(tree: Tree) -> Iterator[str]:
    """The keys that have yet to be uploaded; blocking."""
    return (entry.key.removeprefix(f"{UPLOADS}/") for entry in tree.walk(UPLOADS))


class Uploads:
    """Brings what the store has into the bucket, a few files at a time."""

    def __init__(
        self,
        tree: Tree,
        durable: Durable,
        is_anothers: Callable[[Digest, int], Awaitable[bool]],
        metrics: Metrics,
        log: Logger,
    ) -> None:
        """`is_anothers`: whether another replica has a blob of so many bytes, and is to upload it."""
        self._tree = tree
        self._durable = durable
        self._is_anothers = is_anothers
        self._metrics = metrics
        self._log = log
        self._known: set[str] = set()  # keys to upload that this process knows of, and is not at
        # To other replicas, or until the disk is well: when to look again, how often yet.
        self._left: dict[str, tuple[float, int]] = {}
        self._going: dict[str, asyncio.Task[None]] = {}  # keys that are being uploaded
        self._is_running = False
        self._early: dict[str, asyncio.Task[bool]] = {}  # of what is still on its way in
        self._changed = asyncio.Event()
        self._failures = 0  # rounds in a row
        self._looked = -math.inf  # of the monotonic clock

    async def want(self, key: str) -> None:
        """Have a file of the store uploaded: said before it is there, so that a crash in between forgets nothing.

        Raises OSError.
        """
        await self._tree.write(upload_key(key), b"")

    def ready(self, key: str) -> None:
        """It is there now."""
        if len(self._known) < MOST:
            self._known.add(key)
        self._changed.set()

    async def run(self) -> None:
        """Upload until cancelled; what fails is said by the bucket, and tried again."""
        self._is_running = True
        async with asyncio.TaskGroup() as group:
            while True:
                await self._durable.prove()  # here, since no start is to wait for a bucket
                try:
                    await self._look()
                except OSError as error:
                    self._log.warning("uploads put off", reason=error.strerror)
                    self._failures += 1
                for key in self._chosen():
                    self._going[key] = group.create_task(self._go(key))
                self._metrics.uploads_pending.set(len({*self._known, *self._going, *self._left}))
                await self._pause()

    async def _look(self) -> None:
        """Find what there is to upload that this process does not know of. Raises OSError."""
        now = time.monotonic()
        if now - self._looked > LOOK:
            found = await hop(lambda: set(islice(wanted(self._tree), MOST)))
            self._known |= found - self._left.keys() - self._going.keys()
            self._looked = now
        self._known |= {key for key, (when, _) in self._left.items() if when <= now}

    def _chosen(self) -> list[str]:
        """What to begin with now: one slot is kept for what is small, so that no tag waits for somebody's layers."""
        waiting = self._known - self._going.keys()
        if self._failures:  # one at a time, and not always the same
            return [secrets.choice(tuple(waiting))] if waiting and not self._going else []
        blobs = sorted(key for key in waiting if _is_blob(key))
        small = sorted(waiting.difference(blobs))
        free = AT_ONCE - len(self._going)
        for_blobs = min(free - len(small), AT_ONCE - 1 - sum(map(_is_blob, self._going)))
        return small[:free] + blobs[: max(0, for_blobs)]

    async def _go(self, key: str) -> None:
        self._known.discard(key)
        try:
            is_done = await self._one(key)
        except Exception:
            self._log.exception("a defect: please report it", key=key)
            is_done = False
        del self._going[key]
        if is_done:
            self._failures = 0
        else:
            self._known.add(key)
            self._failures += not self._going or not self._failures
        self._changed.set()

    async def _pause(self) -> None:
        """Wait for a change, or, after failures, for a while."""
        seconds = LEAVE if self._left else LOOK
        if self._failures and not self._going:
            await asyncio.sleep(min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(self._failures - 1, 10)))
            return
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    async def _one(self, key: str) -> bool:
        """Upload one file; whether nothing is left to be done for it by this process."""
        try:
            with contextlib.ExitStack() as stack:
                marker = upload_key(key)
                fd = await hop(stack.enter_context, self._tree.claimed(marker))
                if fd is None or await self._is_left_to_another(key):
                    return True  # another process or replica is at it; should it die, a later look finds what is left
                if not await self._upload(key):
                    return False
                if await hop(self._tree.is_named, marker, fd):  # else it is wanted anew: the file has changed meanwhile
                    await self._tree.remove(marker)
                    return True
                return False
        except OSError as error:  # of the disk: that is no reason to put off others
            self._log.warning("upload put off", key=key, reason=error.strerror)
            self._left[key] = time.monotonic() + PUT_OFF, LEAVES
            return True

    async def _is_left_to_another(self, key: str) -> bool:
        """Whether it is for the replica that brought a blob in to upload it: while that answers, and not for ever."""
        digest, (_, looks) = blob_digest(key), self._left.pop(key, (0.0, LEAVES))
        if digest is None or not looks or len(self._left) >= MOST:
            return False
        size = await hop(self._tree.size, key)
        if size is None or not await self._is_anothers(digest, size):
            return False
        self._left[key] = time.monotonic() + LEAVE, looks - 1
        return True

    async def _upload(self, key: str) -> bool:
        early = self._early.get(key)
        if early is not None and await asyncio.shield(early):
            return True
        handle = await self._tree.open(key)
        if handle is None:
            return True  # it never came to be, or was found to be damaged
        try:
            return await self._durable.upload(key, Whole(handle))
        finally:
            handle.close()

    # What is uploaded while it comes

    def follow(self, key: str, payload: Payload, ended: Callable[[], None]) -> None:
        """Have a blob uploaded while it is still on its way in, where a server uploads, and not many are already.

        Else, and should it fail, it is uploaded once it is there. `ended` is called when it is read no more.
        """
        if not self._is_running or len(self._early) >= EARLY:
            ended()
            return
        task = asyncio.create_task(self._followed(payload, key))
        self._early[key] = task

        def over(done: asyncio.Task[bool]) -> None:
            if self._early.get(key) is done:
                del self._early[key]
            ended()

        task.add_done_callback(over)

    async def _followed(self, payload: Payload, key: str) -> bool:
        try:
            return await self._durable.upload(key, payload)
        except (OSError, Vanished):  # whoever brings it in has said why
            return False

    async def aclose(self) -> None:
        """Break off what has begun; what is there is uploaded by the next process."""
        tasks = list(self._early.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _is_blob(key: str) -> bool:
    """Whether it may be large; a link, a tag or a history is not."""
    return key.startswith("blobs/")
