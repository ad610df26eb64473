"""One blob by several connections: parts fetched ahead into bounded memory, and handed on in order as one body."""

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from proxy.blob_stream import BlobStream, Interrupted, Rest
from proxy.oci.errors import OciError
from proxy.oci.retry import pause
from proxy.pace import Pace

SECONDS = 4.0  # that one connection is busy with a part ...
SMALLEST, LARGEST = 1024 * 1024, 8 * 1024 * 1024  # ... within these bounds, in bytes
AHEAD = 0.5  # seconds before the last part ends at which the one connection that goes on after it is made
TRIES = 2  # of a part


class Memory:
    """The bytes that parts may take up while they wait for their turn to be written; one for the whole process."""

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, size: int) -> bool:
        """Set so many bytes aside, if there are."""
        if size > self._left:
            return False
        self._left -= size
        return True

    def give_back(self, size: int) -> None:
        """They are free again."""
        self._left += size


@dataclass(frozen=True, slots=True)
class PartMeans:
    """What a blob's parts are fetched with."""

    pace: Pace
    memory: Memory
    fetch: Callable[[int, int | None], AbstractAsyncContextManager[BlobStream]]  # from an offset, to another or the end
    spare: Callable[[], contextlib.ExitStack | None]  # a turn that nobody waits for, to be closed


class _Unfit(Exception):
    """What came in answer is not the part."""


class _Part:
    """The bytes from `start` to `stop` (exclusive), as they come."""

    def __init__(self, start: int, stop: int, total: int, means: PartMeans) -> None:
        self.start = start
        self.stop = stop
        self.is_answered = False
        self.error: str | None = None
        self._total = total
        self._means = means
        self._fetched = start  # the offset up to which bytes have come
        self._chunks: deque[bytes] = deque()
        self._skip = 0
        self._changed = asyncio.Event()

    @property
    def left(self) -> int:
        """Bytes that have yet to come."""
        return 0 if self.error else self.stop - self._fetched

    async def run(self) -> None:
        """Fetch it; never raises but for cancellation."""
        try:
            await self._fetch()
        except OciError as error:
            self._means.pace.refused(time.monotonic())
            self.error = error.message
        except _Unfit as error:
            self._means.pace.retire(time.monotonic())
            self.error = str(error)
        except Interrupted as error:
            self.error = str(error)
        finally:
            self._changed.set()

    async def _fetch(self) -> None:
        for number in range(1, TRIES + 1):
            try:
                await self._transfer()
            except Interrupted:
                if not self.left:
                    return  # every byte has come, whatever is wrong with how the body ended
                if number == TRIES:
                    raise
                await asyncio.sleep(pause(number, secrets.SystemRandom().random()))
            else:
                return

    async def _transfer(self) -> None:
        async with self._means.fetch(self._fetched, self.stop) as stream:
            if stream.start != self._fetched or stream.total != self._total:
                raise _Unfit("upstream sent something else than the part of a blob")
            self.is_answered = True
            with _measured(self._means.pace):
                while data := await stream.read():
                    self._means.pace.received(len(data), time.monotonic())
                    self._came(data)
        if self.left:
            raise Interrupted("the part ended early")

    def _came(self, data: bytes) -> None:
        if len(data) > self.left:
            raise _Unfit("upstream sent more than the part of a blob")
        self._fetched += len(data)
        self._chunks.append(data)
        self._changed.set()

    def skip(self, count: int) -> None:
        """The first so many bytes have come by another way."""
        self._skip = count

    async def take(self) -> bytes:
        """What has come since; empty at the end. Raises Interrupted."""
        while True:
            while self._chunks:
                data = self._chunks.popleft()
                data, self._skip = data[self._skip :], max(0, self._skip - len(data))
                if data:
                    return data
            if self.error is not None:
                raise Interrupted(self.error)
            if not self.left:
                return b""
            self._changed.clear()
            await self._changed.wait()


@dataclass(frozen=True, slots=True)
class Lead:
    """A connection that brings all the rest of a blob, unless it is cut short."""

    stream: BlobStream
    connection: contextlib.AsyncExitStack

    @classmethod
    async def open(cls, fetch: AbstractAsyncContextManager[BlobStream]) -> "Lead":
        """Raises OciError."""
        async with contextlib.AsyncExitStack() as stack:
            stream = await stack.enter_async_context(fetch)
            return cls(stream, stack.pop_all())


class PartedStream:
    """The body of a big blob, by as many connections as are worth it: to its reader, a BlobStream.

    The lead is all there is where one connection is enough. Where more are worth it, parts are fetched beyond it. It is
    cut short at the first of them, but no sooner than that one has been answered: until then, whatever becomes of a
    part costs the blob nothing. Once one connection is enough again, a new lead is opened as the last part ends.
    """

    def __init__(self, lead: Lead, total: int, means: PartMeans) -> None:
        self.start = lead.stream.start
        self.total = total
        self._means = means
        self._position = self.start
        self._lead: Lead | None = None
        self._next: asyncio.Task[Lead] | None = None
        self._parts: deque[_Part] = deque()
        self._tasks: dict[_Part, asyncio.Task[None]] = {}
        self._take_over(lead)

    def _take_over(self, lead: Lead) -> None:
        lead.connection.enter_context(_measured(self._means.pace))
        self._lead = lead

    async def aclose(self) -> None:
        """Give up whatever is on its way."""
        pending: list[asyncio.Task[None] | asyncio.Task[Lead]] = list(self._tasks.values())
        while self._parts:
            self._drop(self._parts.pop())
        if self._next is not None:
            self._next.cancel()
            pending.append(self._next)
        async with contextlib.AsyncExitStack() as last:  # even if whoever waits for the rest is cancelled
            if self._lead is not None:
                last.push_async_callback(self._lead.connection.aclose)
            await asyncio.gather(*pending, return_exceptions=True)
            if self._next is not None and not self._next.cancelled() and self._next.exception() is None:
                await self._next.result().connection.aclose()

    async def read(self) -> bytes:
        """Whatever has come since, at least a byte; empty at the end. Raises Interrupted, OciError."""
        while True:
            self._arrange()
            if self._lead is not None:
                data = await self._from_lead(self._lead)
            elif self._parts:
                data = await self._parts[0].take()
                if not data:
                    self._drop(self._parts.popleft())
            elif self._position >= self.total:
                return b""
            else:
                await self._go_on()
                continue
            self._position += len(data)
            if data or (self._lead is not None and not self._parts):
                return data

    def rest(self) -> Rest | None:
        """As BlobStream.rest(), while there is nothing but the lead: what comes that fast is not worth parts."""
        if self._lead is None or self._parts or self._next is not None:
            return None
        return self._lead.stream.rest(lambda count: self._means.pace.received(count, time.monotonic()))

    async def _from_lead(self, lead: Lead) -> bytes:
        if self._is_at_a_part(self._position):
            return await self._hand_over(lead, b"")
        data = await lead.stream.read()
        self._means.pace.received(len(data), time.monotonic())
        if not data and self._position < self.total:
            raise Interrupted("the body ended early")
        if self._is_at_a_part(self._position + len(data)):
            return await self._hand_over(lead, data)
        return data

    def _is_at_a_part(self, offset: int) -> bool:
        """Whether the first part goes on from there: it has been answered, and has not failed meanwhile."""
        first = self._parts[0] if self._parts else None
        return first is not None and first.is_answered and first.error is None and first.start <= offset

    async def _hand_over(self, lead: Lead, data: bytes) -> bytes:
        """What of `data` comes before the first part. What is cut off cannot be had of the lead again: it ends here."""
        first = self._parts[0]
        first.skip(max(0, self._position - first.start))
        self._lead = None
        await lead.connection.aclose()
        return data[: max(0, first.start - self._position)]

    # What is on its way

    def _arrange(self) -> None:
        """Start the parts that there is room for; drop those that are of no use any more."""
        if self._means.pace.level == 1 and not self._parts:
            return
        self._prune()
        while self._has_room() and self._start():
            pass
        if self._is_to_go_on():
            self._next = asyncio.create_task(Lead.open(self._means.fetch(self._parts[-1].stop, None)))

    def _prune(self) -> None:
        while self._lead is not None and self._parts and self._parts[0].stop <= self._position:
            self._drop(self._parts.popleft())
        failed = next((number for number, part in enumerate(self._parts) if part.error is not None), None)
        if failed is None or self._next is not None or (failed == 0 and self._lead is None):
            return
        while len(self._parts) > failed:
            self._drop(self._parts.pop())

    @property
    def _open(self) -> int:
        return (self._lead is not None) + sum(part.left > 0 for part in self._parts)

    def _has_room(self) -> bool:
        level = self._means.pace.level
        return level > 1 and self._next is None and self._open < level and len(self._parts) < 2 * level

    def _start(self) -> bool:
        """Fetch the part after all that is on its way; False if there is none, or no memory or turn for it."""
        size = int(min(max(SECONDS * self._means.pace.share, SMALLEST), LARGEST))
        start = self._parts[-1].stop if self._parts else self._position + (size if self._lead is not None else 0)
        stop = self.total if self.total - start - size < SMALLEST else start + size
        if stop - start < SMALLEST or not self._means.memory.take(stop - start):
            return False
        turn = self._means.spare()
        if turn is None:
            self._means.memory.give_back(stop - start)
            return False
        part = _Part(start, stop, self.total, self._means)
        task = asyncio.create_task(part.run())
        task.add_done_callback(lambda _: turn.close())  # runs even if the task never did
        task.add_done_callback(lambda _: self._tasks.pop(part))
        self._parts.append(part)
        self._tasks[part] = task
        return True

    def _is_to_go_on(self) -> bool:
        """Whether it is time to open the connection that goes on after the last part."""
        pace = self._means.pace
        if pace.level > 1 or self._next is not None or not self._parts or self._parts[-1].stop >= self.total:
            return False
        if not self._parts[0].is_answered or self._open >= pace.most:
            return False
        left = sum(part.left for part in self._parts)
        if self._lead is not None:
            left += max(0, self._parts[0].start - self._position)
        return left <= AHEAD * pace.rate

    async def _go_on(self) -> None:
        """With one connection, from where the parts have ended. Raises Interrupted, OciError."""
        if self._next is None:
            self._next = asyncio.create_task(Lead.open(self._means.fetch(self._position, None)))
        lead = await self._next
        self._next = None
        self._take_over(lead)
        if lead.stream.start != self._position or lead.stream.total != self.total:
            self._means.pace.retire(time.monotonic())
            raise Interrupted("upstream sent something else than the rest of a blob")

    def _drop(self, part: _Part) -> None:
        self._means.memory.give_back(part.stop - part.start)
        if part in self._tasks:
            self._tasks[part].cancel()


@contextlib.contextmanager
def _measured(pace: Pace) -> Iterator[None]:
    pace.opened(time.monotonic())
    try:
        yield
    finally:
        pace.closed(time.monotonic())
