"""What a plain connection brings, on its way into a file without a copy through this process (splice(2))."""

import asyncio
import contextlib
import errno
import fcntl
import os
import select
import socket
import time
from collections.abc import Callable, Iterator

from proxy.files.calls import PIECE, close_fd, closed_on_error, write_some

TURN = 0.25  # seconds that draw() takes at most: it is known after that whether what comes is too slow ...
BRIEF = 2  # ... and milliseconds for which it waits in it for more to come, where much comes in that time
WORTH_WAKING = 1024 * 1024  # bytes for which it is woken: a piece of the network's at a time costs more than they do
PIPE = 1024 * 1024  # bytes on their way from the connection into the file
MUCH = PIPE // 4  # bytes that come at once where it is worth a thread's while to wait for more
LULL = 0.005  # seconds in which what comes slowly gathers, without a thread that waits for it
# It is no file or socket for that, or a sandbox forbids it.
_UNABLE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP})
_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Inlet:
    """A second descriptor of a connection's socket, which nothing else may read from, and a pipe from it into files."""

    def __init__(self, descriptor: int) -> None:
        """Raises OSError, also where this user has so many pipes that another one would be too small."""
        with contextlib.ExitStack() as stack:
            self._out, self._in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            stack.enter_context(closed_on_error(self._out))
            stack.enter_context(closed_on_error(self._in))
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, PIPE)
            # The event loop waits for none that it has a transport for. Of which family it is does not matter.
            copy = os.dup(descriptor)
            stack.enter_context(closed_on_error(copy))
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=copy)
        self._poll = select.poll()
        self._poll.register(self._socket.fileno(), select.POLLIN)
        self._splices = True
        self._comes_fast = True
        self._is_there = False  # something, as the kernel said, that has not been taken
        self._piped = 0  # bytes in the pipe
        self._read = memoryview(b"")  # what came by no pipe, and is in no file yet
        self._waited = 0.0  # seconds, of a thread that draws
        self.is_over = False  # the other end has closed it, and all that came before is in a file

    def begin(self, data: bytes) -> None:
        """What had been read of the connection before."""
        self._read = memoryview(data)

    def draw(self, fd: int, offset: int, most: int, wrote: Callable[[int], None]) -> float:
        """Move at most so many bytes into an open file from an offset on: what has come, and comes soon; blocking.

        Returns for how many seconds it waited for them. `wrote` is told where what is written ends, after each piece.
        Raises ConnectionError of the connection, OSError of the file.
        """
        until, stop = time.monotonic() + TURN, offset + most
        self._waited = 0.0
        with self._woken_for(min(WORTH_WAKING, most)):
            while offset < stop and time.monotonic() < until and self._has_more(stop - offset):
                offset += self._write(fd, offset, stop - offset)
                wrote(offset)
        return self._waited

    @contextlib.contextmanager
    def _woken_for(self, count: int) -> Iterator[None]:
        """While poll() says that something has come only once it is so much, or the end."""
        with contextlib.suppress(OSError):  # without it it is woken more often
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def _has_more(self, most: int) -> bool:
        """Whether there is something to be written. Where little comes at a time no thread waits for more of it."""
        if self._read or self._piped or self._take(most):
            return True
        if self.is_over or not self._comes_fast:
            return False
        began = time.monotonic()
        self._comes_fast = self._is_there = bool(self._poll.poll(BRIEF))
        self._waited += time.monotonic() - began
        return self._take(most)

    def _take(self, most: int) -> bool:
        """Take what has come, if anything has. Raises ConnectionError."""
        try:
            count = self._splice(most) if self._splices else self._receive(most)
        except OSError as error:
            has_nothing = isinstance(error, BlockingIOError)
            if self._splices and (self._is_there if has_nothing else error.errno in _UNABLE):
                self._splices = False  # nor can what stands behind an urgent byte be spliced, though it is there
                return self._take(most)
            if has_nothing:
                return False
            raise ConnectionResetError(error.errno, error.strerror) from None
        self._is_there = False
        self._comes_fast = self._comes_fast or count >= MUCH
        self.is_over = not count
        return bool(count)

    def _splice(self, most: int) -> int:
        self._piped = os.splice(self._socket.fileno(), self._in, min(most, PIPE), flags=_FLAGS)
        return self._piped

    def _receive(self, most: int) -> int:
        self._read = memoryview(self._socket.recv(min(most, PIECE)))
        return len(self._read)

    def _write(self, fd: int, offset: int, most: int) -> int:
        """Write some of what was taken; returns how many bytes. Raises OSError."""
        if self._read:
            count = write_some(fd, self._read[:most], offset)
            self._read = self._read[count:]
            return count
        try:
            count = os.splice(self._out, fd, self._piped, offset_dst=offset, flags=_FLAGS)
        except OSError as error:
            if error.errno not in _UNABLE:
                raise
            self._splices = False  # it is no file for that
            self._read, self._piped = memoryview(os.read(self._out, self._piped)), 0
            return 0
        if not count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._piped -= count
        return count

    async def readable(self) -> None:
        """Wait until something has come, or the end; a little longer, where little comes at a time."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._socket.fileno(), ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._socket.fileno())
        self._is_there = True
        if not self._comes_fast:
            await asyncio.sleep(LULL)

    def close(self) -> None:
        """Close what is its own; the connection stays."""
        if (copy := self._socket.detach()) >= 0:
            for fd in (copy, self._out, self._in):
                close_fd(fd)
