"""Stretches of files on their way to sockets, without a copy through this process (sendfile(2)), or encrypted.

What is short and in memory the event loop sends at once: that takes it no longer than to have a thread know of it. A
few threads do all the other sending, one for each processor. Each has connections of its own, sends to one that takes
more, and then to the next, so that neither many clients nor slow ones cost a thread, or a way back to the loop.
"""

import asyncio
import contextlib
import errno
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from proxy.files.cached import is_in_memory
from proxy.files.calls import Handle, close_fd, hop, outlast, too_short
from proxy.files.portions import Portions

LONGEST = 16 * 1024 * 1024  # bytes that a thread sends of one file before others have their turn ...
SHORTEST = 2 * 1024 * 1024  # ... and where it has more transfers than
FEW = 8  # so many
READERS = 8  # threads that bring what is not in the system's memory there
PIECE = 256 * 1024  # bytes of it at a time
ROOM = 384 * 1024  # bytes that a thread encrypts at a time ...
LEAST = 64 * 1024  # ... or as few as these, once it has so many transfers that clients who take nothing could have
POOL = 8 * 1024 * 1024  # ... more than so many wait
_OF_THE_NETWORK = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.ENOTCONN})


@dataclass(frozen=True, slots=True)
class Extent:
    """A stretch of an open file: `count` bytes from `offset` on, all of which are there.

    `grows`: more is being written to the file, and on some file systems (XFS) whoever reads it waits for that.
    """

    handle: Handle
    offset: int
    count: int
    grows: bool = False

    @property
    def end(self) -> int:
        """The offset behind its last byte."""
        return self.offset + self.count

    def behind(self, count: int) -> "Extent":
        """What is left of it behind so many bytes."""
        return Extent(self.handle, self.offset + count, self.count - count, self.grows)


def send_now(descriptor: int, extent: Extent) -> int:
    """Send as much as the client at a socket takes at this moment of a stretch that is in memory; not blocking.

    Returns how many bytes that were; none where some of it is not in memory, or nobody can tell. Raises
    ConnectionError, OSError of the file.
    """
    if not is_in_memory(extent.handle.fd, extent.offset, extent.count):
        return 0
    try:
        return os.sendfile(descriptor, extent.handle.fd, extent.offset, extent.count)
    except BlockingIOError:
        return 0
    except OSError as error:
        raise _explained(error) from None


class Outlet:
    """A second descriptor of a connection's socket, for as long as a body is sent by it.

    `sent` counts the bytes of files that went out by it, also while nobody waits for them any more, and `taken` what
    the client took of them.
    """

    def __init__(self, descriptor: int) -> None:
        # The event loop lets nobody wait for one that it has a transport for. Of which family it is does not matter.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=os.dup(descriptor))
        self.sent = 0
        self.taken = 0

    def push(self, source: int, offset: int, count: int, room: memoryview) -> int:
        """Send at most so many bytes of a file from an offset on; returns how many it were, none at the file's end.

        `room` is for what cannot be sent as it lies there. Raises BlockingIOError where the client takes nothing,
        OSError.
        """
        sent = os.sendfile(self.fd, source, offset, count)
        self.sent += sent
        self.taken += sent
        return sent

    @property
    def is_empty(self) -> bool:
        """Whether the kernel has all that was pushed."""
        return True

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """While a thread may push."""
        yield

    def write(self, pieces: Sequence[memoryview]) -> int:
        """Send some of them; returns how many bytes. Raises BlockingIOError where the client takes nothing, OSError."""
        return self._socket.sendmsg(pieces)

    @property
    def fd(self) -> int:
        """The descriptor."""
        return self._socket.fileno()

    def hold_back(self, *, holds: bool) -> None:
        """Have the kernel send full segments only, or all there is: a client wakes up less often for as many bytes."""
        with contextlib.suppress(OSError):  # it is no TCP socket, or its client has gone
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, holds)

    async def writable(self) -> None:
        """Wait until the client has taken some of what it was sent, or is gone."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_writer(self.fd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(self.fd)

    def close(self) -> None:
        """Close the descriptor; the connection stays."""
        close_fd(self._socket.detach())


class _Transfer:
    """An extent on its way to a client. All but its beginning and its end is for the one thread that has it."""

    def __init__(self, outlet: Outlet, extent: Extent) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.fd = outlet.fd
        self.is_waiting = False  # for the client
        self.is_read = False  # from the disk, at this moment
        self.is_given_up = False
        self.is_settled = False
        self._outlet = outlet
        self._extent = extent
        self._offset = extent.offset
        self._read_until = 0  # the offset up to which it was brought into memory

    def is_in_memory(self) -> bool:
        """Whether what comes next can be sent without waiting for the disk, as far as its first byte tells."""
        if self._offset == self._extent.end:  # what is left has been read, and encrypted
            return True
        if self._read_until:  # some of it was not: of what follows the system has read a little ahead, and no more
            return self._offset < self._read_until
        try:
            os.preadv(self._extent.handle.fd, [bytearray(1)], self._offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError:  # a file system that cannot tell, or a bad sector, which sending will say again
            return True
        return True

    def read(self) -> None:
        """Bring what comes next into the system's memory."""
        until = min(self._offset + SHORTEST, self._extent.end)
        for offset in range(self._offset, until, PIECE):
            with contextlib.suppress(OSError):  # sending will say so
                os.pread(self._extent.handle.fd, PIECE, offset)
        self._read_until = until

    def advance(self, others: int, room: memoryview) -> bool:
        """Send what comes next, beside so many others; returns whether that was the last.

        Raises BlockingIOError where the client takes no more, OSError.
        """
        if not others and self._offset == self._extent.offset:
            self._outlet.hold_back(holds=True)
        most = SHORTEST if others >= FEW else LONGEST
        stop = min(self._read_until or self._extent.end, self._offset + most)
        sent = self._outlet.push(self._extent.handle.fd, self._offset, stop - self._offset, room[: share(others)])
        if not sent and self._offset < stop:
            raise too_short()
        self._offset += sent
        return self._offset == self._extent.end and self._outlet.is_empty

    def settle(self, error: Exception | None) -> None:
        """It is over: say so to whoever waits for that."""
        self.is_settled = True
        self._outlet.hold_back(holds=False)
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits
            self.over.get_loop().call_soon_threadsafe(self._end, error)

    def _end(self, error: Exception | None) -> None:
        if error is None:
            self.over.set_result(None)
        else:
            self.over.set_exception(error)
            self.over.exception()  # who gave it up does not ask


class _Sender:
    """One thread, and the transfers that it has."""

    def __init__(self, readers: ThreadPoolExecutor) -> None:
        self.busy = 0  # transfers
        self._readers = readers
        self._room = memoryview(bytearray(ROOM))
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._bell, select.EPOLLIN)
        self._told: deque[_Transfer] = deque()  # by other threads
        self._ready: deque[_Transfer] = deque()  # to go on with
        self._registered: dict[int, _Transfer] = {}  # whose clients once took no more, by descriptor
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="send", daemon=True)
        self._thread.start()

    def tell(self, transfer: _Transfer) -> None:
        """Have it look at a transfer, which is new, or has been read, or given up."""
        self._told.append(transfer)
        os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Wait until it has ended; blocking. No transfer may be going on."""
        self._is_closing = True
        os.eventfd_write(self._bell, 1)
        self._thread.join()
        self._epoll.close()
        close_fd(self._bell)

    def _run(self) -> None:
        while not self._is_closing:
            for descriptor, _ in self._epoll.poll(0 if self._ready else None):
                if descriptor == self._bell:
                    os.eventfd_read(self._bell)
                elif (transfer := self._registered[descriptor]).is_waiting:
                    transfer.is_waiting = False
                    self._ready.append(transfer)
            while self._told:
                self._ready.append(self._told.popleft())
            if self._ready:
                self._turn(self._ready.popleft())

    def _turn(self, transfer: _Transfer) -> None:
        if transfer.is_settled or transfer.is_read:
            return  # it was told of twice, or its reader will tell of it
        try:
            if transfer.is_given_up:
                self._end(transfer, ConnectionResetError("nobody waits for it any more"))
            elif not transfer.is_in_memory():
                transfer.is_read = True
                self._readers.submit(self._read, transfer)
            else:
                self._advance(transfer)
        except Exception as error:  # it is raised where the transfer is waited for
            self._end(transfer, _explained(error))

    def _advance(self, transfer: _Transfer) -> None:
        try:
            is_over = transfer.advance(self.busy - 1, self._room)
        except BlockingIOError:
            self._wait(transfer)
            return
        if is_over:
            self._end(transfer, None)
        else:
            self._ready.append(transfer)

    def _wait(self, transfer: _Transfer) -> None:
        """For the client: edge-triggered, since it is sent to until it takes no more each time."""
        transfer.is_waiting = True
        if transfer.fd not in self._registered:
            self._epoll.register(transfer.fd, select.EPOLLOUT | select.EPOLLET)
            self._registered[transfer.fd] = transfer

    def _end(self, transfer: _Transfer, error: Exception | None) -> None:
        if self._registered.pop(transfer.fd, None) is not None:
            self._epoll.unregister(transfer.fd)  # before the descriptor may become another one
        transfer.settle(error)

    def _read(self, transfer: _Transfer) -> None:
        """In another thread."""
        try:
            transfer.read()
        finally:  # else it would be waited for for ever
            transfer.is_read = False
            self.tell(transfer)


class Senders:
    """The threads that send, and those that read what they would have to wait for.

    `portions` are the event loop's own, for what it sends without them.
    """

    def __init__(self, threads: int) -> None:
        self.portions = Portions()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="read")
        self._senders = [_Sender(self._readers) for _ in range(threads)]

    async def send(self, outlet: Outlet, extent: Extent, patience: float) -> None:
        """Send all of an extent. Raises ConnectionError, OSError of the file.

        TimeoutError, once the client has taken nothing for `patience` seconds, or up to twice that.
        """
        transfer, sender = _Transfer(outlet, extent), min(self._senders, key=lambda one: one.busy)
        sender.busy += 1
        sender.tell(transfer)
        try:
            await _watch(transfer, outlet, patience)
        finally:
            if not transfer.over.done():
                transfer.is_given_up = True
                sender.tell(transfer)
                await outlast(transfer.over)
            sender.busy -= 1
        transfer.over.result()

    async def aclose(self) -> None:
        """Let go of the threads. No transfer may be going on."""
        await hop(self._close)

    def _close(self) -> None:
        self._readers.shutdown()
        for sender in self._senders:
            sender.close()


async def _watch(transfer: _Transfer, outlet: Outlet, patience: float) -> None:
    """Wait until it is over. Raises TimeoutError where it is the client that keeps it from that."""
    while not transfer.over.done():
        before = outlet.taken
        await asyncio.wait((transfer.over,), timeout=patience)
        if transfer.is_waiting and outlet.taken == before and not transfer.over.done():
            raise TimeoutError


def share(others: int) -> int:
    """How many bytes a transfer may have encrypted at a time, beside so many others of its thread."""
    return max(LEAST, min(ROOM, POOL // (others + 1)))


def _explained(error: Exception) -> Exception:
    """An error of the network is none of the disk, whatever its number."""
    if isinstance(error, OSError) and error.errno in _OF_THE_NETWORK:
        return ConnectionResetError(error.errno, error.strerror)
    return error
