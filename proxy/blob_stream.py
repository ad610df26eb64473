"""The body of a blob on its way in, wherever from, and the watchdog that breaks off what does not get on."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial

import aiohttp

from proxy.files import Handle, Inlet, hop_to
from proxy.oci.byterange import parse_content_range
from proxy.turns import Turn

HELD_BACK = 1024 * 1024  # bytes, more than aiohttp may have read of a connection and not handed on yet
LOW_SPEED = 1024  # bytes a second that a body must bring, over one stall time-out


class Interrupted(Exception):
    """A body broke off: closed, reset, stalled, or too slow. What came before it is good to resume from."""


class Watch:
    """Looks out for a drip of bytes, which satisfies every per-read time-out; it must not hold a fill for ever.

    Only time spent waiting for them counts, so that a slow disk or client is not taken for a slow origin.
    """

    def __init__(self, stall_timeout: float) -> None:
        self._stall_timeout = stall_timeout
        self._waited = 0.0  # seconds ...
        self._count = 0  # ... for so many bytes

    async def waiting(self, something: Awaitable[None], since: float) -> float:
        """Wait for something to come; returns for how many seconds.

        Raises Interrupted if nothing has for one stall time-out since a time of the monotonic clock.
        """
        began = time.monotonic()
        try:
            async with asyncio.timeout(since + self._stall_timeout - began):
                await something
        except TimeoutError:
            raise Interrupted(f"no byte for {self._stall_timeout:g} s") from None
        return time.monotonic() - began

    def saw(self, count: int, waited: float) -> None:
        """So many bytes came after so many seconds. Raises Interrupted if that is too slow by now."""
        self._waited += waited
        self._count += count
        if self._waited >= self._stall_timeout and count:
            if self._count < LOW_SPEED * self._stall_timeout:
                raise Interrupted(f"below {LOW_SPEED} bytes a second for {self._stall_timeout:g} s")
            self._waited, self._count = 0.0, 0


class Rest:
    """What is left of a body, in bytes, on its way from its connection straight into a file; to be closed."""

    def __init__(self, inlet: Inlet, left: int, watch: Watch, received: Callable[[int], None]) -> None:
        self.left = left
        self._inlet = inlet
        self._watch = watch
        self._received = received

    async def pour(
        self, thread: Executor | None, handle: Handle, offset: int, most: int, wrote: Callable[[int], None]
    ) -> None:
        """Write at most so many bytes from an offset on: whatever has come since, at least one.

        `wrote` is told in the thread (None: one of those for all) where what is written ends, also of what came before
        a break. Raises Interrupted, OSError of the file.
        """
        end, waited, began = offset, 0.0, time.monotonic()

        def told(now: int) -> None:
            nonlocal end
            end = now
            wrote(now)

        try:
            while end == offset:
                draw = partial(self._inlet.draw, handle.fd, offset, min(most, self.left), told)
                waited += await hop_to(thread, draw)
                if end == offset and self._inlet.is_over:
                    raise Interrupted("the body ended early")
                if end == offset:
                    waited += await self._watch.waiting(self._inlet.readable(), began)
        except ConnectionError as error:
            raise Interrupted(type(error).__name__) from None
        finally:
            self.left -= end - offset
            self._received(end - offset)
        self._watch.saw(end - offset, waited)

    def close(self) -> None:
        """Let go of the connection."""
        self._inlet.close()


class BlobStream:
    """The body of a blob as it comes: `start` is the offset of its first byte, `total` the blob's size if known."""

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        stall_timeout: float,
        received: Callable[[int], None],
        turn: Turn | None = None,
    ) -> None:
        """`turn`: what is held for it, if that may be lost to others while a client does not read."""
        self.start = 0
        self.total = response.content_length
        if response.status == 206:
            span, self.total = parse_content_range(response.headers.get("Content-Range", ""))
            self.start = span.start
        self.place = response.url  # where it came from in the end, redirects followed; it may be signed: not to be told
        self._response = response
        self._stall_timeout = stall_timeout
        self._received = received
        self._turn = turn
        self._broken: Interrupted | None = None
        self._watch = Watch(stall_timeout)
        self._count = 0  # bytes that were read

    async def read(self) -> bytes:
        """Whatever has come since, at least a byte; empty at the end. Raises Interrupted."""
        if self._broken is not None:
            raise self._broken
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._stall_timeout):
                data = await self._next()
        except TimeoutError:
            raise Interrupted(f"no byte for {self._stall_timeout:g} s") from None
        except (aiohttp.ClientError, OSError, RuntimeError) as error:  # aiohttp: "Connection closed." is a RuntimeError
            self._broken = Interrupted(type(error).__name__)
            # What came before the break is still in aiohttp's buffer, and it has no public way to get at it.
            data = self._response.content._read_nowait(-1)  # noqa: SLF001
            if not data:
                raise self._broken from None
        self._received(len(data))
        self._count += len(data)
        self._watch.saw(len(data), time.monotonic() - began)
        return data

    def rest(self, also: Callable[[int], None] = lambda _: None) -> Rest | None:
        """All that is left, past aiohttp: read() has no part in it any more. `also` is told how many bytes come.

        None where that cannot be: the length is not known, the connection is not plain, or is broken already. What is
        not None costs the connection, since aiohttp does not know where the body ends by then.
        """
        connection, content = self._response.connection, self._response.content
        transport = None if connection is None else connection.transport
        if transport is None or transport.is_closing() or transport.get_extra_info("sslcontext") is not None:
            return None
        if self._has_unknown_end() or self._broken is not None or content.exception() is not None:
            return None
        length = self._response.content_length or 0
        if length - content.total_bytes < HELD_BACK:  # it may be over for aiohttp, and the connection another's
            return None

        def received(count: int) -> None:
            self._received(count)
            also(count)

        with contextlib.ExitStack() as stack:
            try:
                inlet = Inlet(transport.get_extra_info("socket").fileno())
            except OSError:  # there are no descriptors left, or no pipes
                return None
            stack.callback(inlet.close)
            inlet.begin(b"".join(iter(content.read_nowait, b"")))
            transport.pause_reading()  # no sooner: what is read above has aiohttp go on with it
            stack.pop_all()
        return Rest(inlet, length - self._count, self._watch, received)

    def _has_unknown_end(self) -> bool:
        return self._response.content_length is None or "Transfer-Encoding" in self._response.headers

    async def _next(self) -> bytes:
        """What came, as it came: joined only where it comes in chunks, which may be small."""
        if self._has_unknown_end():
            return await self._response.content.readany()
        return (await self._response.content.readchunk())[0]

    def resting(self) -> contextlib.AbstractContextManager[None]:
        """Around waiting for a client: should that take long, others may have the turn, and read() is Interrupted."""
        return contextlib.nullcontext() if self._turn is None else self._turn.rest(self._give_up)

    def keep_turn(self) -> None:
        """Its turn is not to be lost: upstream sends the whole each time, so that going on would begin anew."""
        self._turn = None

    def _give_up(self) -> None:
        self._broken = Interrupted("the client does not read, and others wait")
        self._response.close()
