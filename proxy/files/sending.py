"""Stretches of files on their way to sockets, without a copy through this process (sendfile(2))."""

import asyncio
import errno
import os
import select
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from proxy.files.calls import Handle, close_fd, hop_to, too_short

BURST = 16 * 1024 * 1024  # bytes that a thread sends of one file before others have their turn
_OF_THE_NETWORK = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.ENOTCONN})
LINGER = 5  # milliseconds that it waits for a client to take more: one that is quick costs no way back to the loop


@dataclass(frozen=True, slots=True)
class Extent:
    """A stretch of an open file: `count` bytes from `offset` on, all of which are there."""

    handle: Handle
    offset: int
    count: int

    @property
    def end(self) -> int:
        """The offset behind its last byte."""
        return self.offset + self.count


class Senders:
    """The threads that send. Slow clients hold none of them, and they hold up no other file calls."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="send")

    async def run(self, send: Callable[[], int]) -> int:
        """Have one of them send."""
        return await hop_to(self._threads, send)

    def close(self) -> None:
        """Let go of the threads; who has one send waits for it."""
        self._threads.shutdown(wait=False)


class Outlet:
    """A second descriptor of a connection's socket, for as long as a body is sent by it.

    `sent` counts the bytes that went out by it, also while nobody waits for them any more.
    """

    def __init__(self, socket: int) -> None:
        self._fd = os.dup(socket)  # the event loop lets nobody wait for one that it has a transport for
        self.sent = 0

    async def send(self, senders: Senders, extent: Extent) -> int:
        """Send some of it, as much as the client takes just now. Returns how many bytes. Raises OSError."""
        return await senders.run(lambda: self._send(extent))

    def _send(self, extent: Extent) -> int:
        done, most = 0, min(extent.count, BURST)
        while done < most:
            try:
                sent = os.sendfile(self._fd, extent.handle.fd, extent.offset + done, most - done)
            except BlockingIOError:
                if not self._takes_more():
                    break
                continue
            except OSError as error:
                if error.errno in _OF_THE_NETWORK:
                    raise ConnectionResetError(error.errno, error.strerror) from None
                raise
            if not sent:
                raise too_short()
            done += sent
            self.sent += sent
        return done

    def _takes_more(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(LINGER))

    async def writable(self) -> None:
        """Wait until the client has taken some of what it was sent, or is gone."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_writer(self._fd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(self._fd)

    def close(self) -> None:
        """Close the descriptor; the connection stays."""
        close_fd(self._fd)
