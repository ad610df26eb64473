"""Blocking calls on open files, one hop to a thread each, and what their errors mean."""

import asyncio
import contextlib
import errno
import fcntl
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import Any, ParamSpec, TypeVar

from proxy.oci.digest import Hasher

P = ParamSpec("P")
T = TypeVar("T")

PIECE = 1024 * 1024  # bytes hashed or copied at a time off the loop
EDGE = 128 * 1024  # bytes at a multiple of which a write ends: the system keeps the file in larger pages, at less cost
GATHERED = 64  # pieces in one write, at most
TURN = 0.02  # seconds for which pour() keeps a thread that others may be waiting for ...
LONG_TURN = 0.25  # ... and catch_up() one that nobody else has
COMMITTED = 0o400  # the mode of a file that is verified, on disk, and never written again
GROWING = 0o600
_DIGITS = 20  # of a number in a file: always as many, so that a shorter one leaves nothing of a longer one


async def hop(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run one blocking call in a thread.

    Who is cancelled meanwhile waits for it all the same: a thread cannot be stopped, and what it works on must not be
    closed, unlocked or handed on under it.
    """
    return await hop_to(None, lambda: call(*args, **kwargs))


async def hop_to(threads: Executor | None, call: Callable[[], T]) -> T:
    """As hop(), to threads that are kept for something (None: those for all)."""
    work = asyncio.get_running_loop().run_in_executor(threads, call)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        work.add_done_callback(_dispose)
        await outlast(work)
        raise


async def outlast(*work: "asyncio.Future[Any]") -> None:
    """Wait until all of it is done, however often one is cancelled meanwhile: aiohttp cancels twice where it ends.

    Raises CancelledError then, and what the work raised is for nobody any more; else it is for whoever asks it.
    """
    cancelled: asyncio.CancelledError | None = None
    while waiting := {one for one in work if not one.done()}:
        try:
            await asyncio.wait(waiting)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        for one in work:
            if not one.cancelled():
                one.exception()  # is known: else it would be logged as nobody's
        raise cancelled


def _dispose(work: "asyncio.Future[Any]") -> None:
    """Nobody will see what came of it: take note of an error, and close what was opened, collected or not."""
    if not work.cancelled() and work.exception() is None and isinstance(opened := work.result(), Handle):
        opened.close()


class Handle:
    """An open file: its descriptor, its size when opened (bytes). Closing it twice is harmless."""

    __slots__ = ("_fd", "size")

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self.size = size

    @property
    def fd(self) -> int:
        """The descriptor; raises ValueError after close."""
        if self._fd < 0:
            raise ValueError("the file is closed")
        return self._fd

    def duplicate(self) -> "Handle":
        """Another handle of the same open file, with a life of its own."""
        return Handle(os.dup(self.fd), self.size)

    def at_hand(self, offset: int, count: int) -> bytearray | None:
        """So many bytes at `offset`, if the system has all of them in memory; None if that would take a thread.

        Not blocking: to copy 256 KiB takes 30 microseconds, and a hop to a thread and back 200.
        """
        data = bytearray(count)
        try:
            return data if os.preadv(self.fd, [data], offset, os.RWF_NOWAIT) == count else None
        except OSError:  # they have to be read first, the file system cannot tell, or the disk has lost them
            return None

    async def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes at `offset`; fewer only at the end of the file."""
        return await hop(read_fully, self.fd, count, offset)

    async def read_all(self, offset: int, count: int) -> bytes:
        """So many bytes at `offset`, all of which were there. Raises OSError, also if they are no more."""
        data = await self.read(offset, count)
        if len(data) < count:
            raise too_short()
        return data

    def close(self) -> None:
        """Close without waiting: the last close of an unlinked file frees its blocks, which takes a while.

        That of a file that has a name frees nothing, and is cheaper done than handed to a thread.
        """
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                loop = None if os.fstat(fd).st_nlink else asyncio.get_running_loop()
            except (OSError, RuntimeError):  # no loop: the process is about to end
                loop = None
            if loop is not None:
                with contextlib.suppress(RuntimeError):  # its threads are gone, as above
                    _ = loop.run_in_executor(None, close_fd, fd)
                    return
            close_fd(fd)

    def __del__(self) -> None:
        """Close what was opened for a caller that had been cancelled by then: it never saw this handle."""
        if self._fd >= 0:
            close_fd(self._fd)


async def pour(
    handle: Handle, offset: int, hasher: Hasher, pieces: deque[memoryview], wrote: Callable[[int], None]
) -> None:
    """Write `pieces` from `offset` on, and those that are put there meanwhile, and hash what was written.

    Both release the interpreter's lock, so they share a hop, one as long as there are any. After a while it leaves
    them, for a disk that is slower than upstream would never see the end of them, and the files of all others would
    wait. `wrote` is told in the thread where what is written and hashed ends, after each. Raises OSError; the hash is
    still of what is in the file.
    """
    await hop(_pour, handle.fd, offset, hasher, pieces, wrote)


def _pour(fd: int, offset: int, hasher: Hasher, pieces: deque[memoryview], wrote: Callable[[int], None]) -> None:
    until = time.monotonic() + TURN
    while pieces:
        batch = _up_to_an_edge(pieces, offset)
        while any(batch):
            offset += (written := _some(os.pwritev(fd, batch, offset)))
            batch = _hashed(hasher, batch, written)
            wrote(offset)
        if time.monotonic() >= until:
            return


def _up_to_an_edge(pieces: deque[memoryview], offset: int) -> list[memoryview]:
    """Take what is to be written next. Where more is waiting it ends at an edge, and what is behind that stays."""
    batch = [pieces.popleft()]
    end = offset + len(batch[0])
    while pieces and end % EDGE >= end - offset and len(batch) < GATHERED:  # no edge yet
        batch.append(pieces.popleft())
        end += len(batch[-1])
    if pieces and 0 < (behind := end % EDGE) < len(batch[-1]):
        pieces.appendleft(batch[-1][-behind:])
        batch[-1] = batch[-1][:-behind]
    return batch


def _hashed(hasher: Hasher, batch: Iterable[memoryview], written: int) -> list[memoryview]:
    """Hash so many bytes of a batch; returns what is left of it."""
    left = []
    for piece in batch:
        hasher.update(piece[:written])
        if written < len(piece):
            left.append(piece[written:])
        written = max(0, written - len(piece))
    return left


def catch_up(fd: int, offset: int, hasher: Hasher, written: Callable[[], int], hashed: Callable[[int], None]) -> None:
    """Hash what is written of a file behind an offset, as far as `written` says at the time, for a while; blocking.

    `hashed` is told where that ends, after each piece. Raises OSError.
    """
    until, room = time.monotonic() + LONG_TURN, memoryview(bytearray(PIECE))
    while offset < (stop := written()):
        count = os.preadv(fd, [room[: stop - offset]], offset)
        if not count:
            raise too_short()
        hasher.update(room[:count])
        offset += count
        hashed(offset)
        if time.monotonic() >= until:
            return


async def sync(handle: Handle) -> None:
    """Have what was written on disk. Raises OSError: then the file is worth nothing, and never to be synced again."""
    await hop(os.fdatasync, handle.fd)


async def rehash(handle: Handle, hasher: Hasher) -> int:
    """Feed a file's bytes to `hasher`; returns how many there were."""
    return await hop(_rehash, handle.fd, hasher)


def _rehash(fd: int, hasher: Hasher) -> int:
    offset = 0
    while piece := os.pread(fd, PIECE, offset):
        hasher.update(piece)
        offset += len(piece)
    return offset


async def read_hashed(handle: Handle, offset: int, count: int, hasher: Hasher) -> bytes:
    """As Handle.read(), and feed what was read to `hasher`, in the same hop."""
    return await hop(_read_hashed, handle.fd, offset, count, hasher)


def _read_hashed(fd: int, offset: int, count: int, hasher: Hasher) -> bytes:
    data = read_fully(fd, count, offset)
    hasher.update(data)
    return data


def hash_piece(fd: int, offset: int, hasher: Hasher) -> int:
    """Feed up to PIECE bytes at `offset` to `hasher`, and leave the system's memory as it was; blocking.

    Returns how many there were, 0 at the end. What others read is not put out of memory for what nobody asked for.
    """
    buffer = memoryview(bytearray(PIECE))
    try:
        resident = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        resident = 0
    except OSError:  # a file system that cannot tell, or a bad sector, which the next line will say again
        resident = -1
    count = max(0, resident)
    while count < PIECE and (more := os.preadv(fd, [buffer[count:]], offset + count)):
        count += more
    if 0 <= resident < count:
        os.posix_fadvise(fd, offset + resident, count - resident, os.POSIX_FADV_DONTNEED)
    hasher.update(buffer[:count])
    return count


def close_fd(fd: int) -> None:
    """A close that fails has closed all the same: what has to be on disk was synced before, and would have said so."""
    with contextlib.suppress(OSError):
        os.close(fd)


@contextlib.contextmanager
def closed_on_error(fd: int) -> Iterator[None]:
    """A descriptor that nobody has taken over yet must not be lost."""
    try:
        yield
    except BaseException:
        close_fd(fd)
        raise


def as_handle(fd: int) -> Handle:
    with closed_on_error(fd):
        return Handle(fd, os.fstat(fd).st_size)


def read_fully(fd: int, count: int, offset: int) -> bytes:
    """As os.pread(), but short only at the end of the file: a short read may mean a bad block behind it."""
    data = os.pread(fd, count, offset)
    while len(data) < count and (more := os.pread(fd, count - len(data), offset + len(data))):
        data += more
    return data


def write_some(fd: int, data: bytes | memoryview, offset: int) -> int:
    """As os.pwrite(), but of a disk that takes nothing and says nothing it is said that it is full."""
    return _some(os.pwrite(fd, data, offset))


def _some(written: int) -> int:
    if not written:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return written


def try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_number(fd: int, place: int = 0) -> int:
    """The number that write_number() left in a small open file, 0 if there is none; blocking."""
    text = read_fully(fd, _DIGITS, place * _DIGITS)
    return int(text) if text.isdigit() else 0


def is_number(fd: int) -> bool:
    """Whether there is one; blocking."""
    return read_fully(fd, _DIGITS, 0).isdigit()


def write_number(fd: int, value: int, place: int = 0) -> None:
    """Keep a number, not below 0, in a small open file, the first or a later one; blocking. Raises OSError."""
    digits, done = str(max(0, value)).zfill(_DIGITS).encode(), 0
    while done < len(digits):
        done += write_some(fd, digits[done:], place * _DIGITS + done)


def too_short() -> OSError:
    """What there is to raise where a file has less than it had: it counts as damage."""
    return OSError(errno.ENODATA, "the file has become shorter than it was")


def is_exhausted(error: BaseException | None) -> bool:
    """Whether an error says that this process or machine has no descriptors (or memory) left."""
    return isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


def is_damage(error: OSError) -> bool:
    """Whether an error says that the disk, or what the file system knows of it, is no good there."""
    return error.errno in {errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ENODATA}
