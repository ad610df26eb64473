"""The only module with blocking file calls; each public coroutine is one hop to a thread.

Everything happens below one root directory, reached component by component from its descriptor with O_NOFOLLOW: no link
in the tree is ever followed, whoever put it there. What a path names is used only if it is a regular file of ours.
"""

import asyncio
import contextlib
import enum
import errno
import fcntl
import math
import os
import resource
import secrets
import shutil
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import aiofiles

from proxy.oci.digest import Hasher

P = ParamSpec("P")
T = TypeVar("T")

PIECE = 1024 * 1024  # bytes hashed or copied at a time off the loop
COMMITTED = 0o400  # the mode of a file that is verified, on disk, and never written again
GROWING = 0o600
_DIGITS = 20  # of a number in a file: always as many, so that a shorter one leaves nothing of a longer one
BREATH = 256  # items between pauses where there may be a million
_REFUSALS = frozenset({errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM})  # of a disk, to be written
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # O_NONBLOCK: a planted FIFO must not hold the thread
_ABSENT = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR})  # nothing of ours is there, on the way to it neither


class UnsafeDirectory(Exception):
    """Others may write to a directory of the store, or own it; the message says which and what to do."""


def check_root(root: Path, status: os.stat_result) -> None:
    """Raise UnsafeDirectory if others could put their files in place of ours."""
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise UnsafeDirectory(f"{root} may be written by everybody: chmod o-w it, or choose another store.path")


class Unusable(Exception):
    """A file that an operator named cannot be read or written; the message says which, and why."""


class SpoolState(enum.Enum):
    """What a follower sees of a spool file that somebody may be writing."""

    OURS = enum.auto()  # nobody was writing: this process holds the lock now
    GROWING = enum.auto()
    COMMITTED = enum.auto()
    GONE = enum.auto()  # discarded, or replaced: its bytes are worth nothing


@dataclass(frozen=True, slots=True)
class Entry:
    """A file found by a scan: key, size in bytes, last use in seconds since the epoch."""

    key: str
    size: int
    used: float


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system of a tree, in bytes: how large it is, and what of it may still be written."""

    size: int
    free: int


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

    async def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes at `offset`; fewer only at the end of the file."""
        return await hop(_read, self.fd, count, offset)

    def close(self) -> None:
        """Close without waiting: the last close of an unlinked file frees its blocks, which takes a while."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                _ = asyncio.get_running_loop().run_in_executor(None, _close, fd)
            except RuntimeError:  # no loop, or its threads are gone: the process is about to end
                _close(fd)

    def __del__(self) -> None:
        """Close what was opened for a caller that had been cancelled by then: it never saw this handle."""
        if self._fd >= 0:
            _close(self._fd)


class Stream:
    """A file or a pipe that an operator names, outside of the tree: read or written once, front to back.

    `size` is how many bytes there are to read, where that can be known. Everything raises Unusable.
    """

    def __init__(self, fd: int, name: str, size: int | None = None) -> None:
        self._fd = fd
        self.name = name
        self.size = size

    async def read(self, count: int) -> bytes:
        """The next `count` bytes; fewer only at the end."""
        return await hop(self._read, count)

    def _read(self, count: int) -> bytes:
        found = bytearray()
        with _told(self.name, "read"):
            while len(found) < count and (data := os.read(self._fd, min(PIECE, count - len(found)))):
                found += data
        return bytes(found)

    async def skip(self, count: int) -> int:
        """Pass over `count` bytes, which costs nothing in a file; returns how many there were."""
        return await hop(self._skip, count) if count else 0

    def _skip(self, count: int) -> int:
        left = count
        if self.size is not None:
            with _told(self.name, "read"):
                here = os.lseek(self._fd, 0, os.SEEK_CUR)
                left -= os.lseek(self._fd, min(here + count, self.size), os.SEEK_SET) - here
            return count - left
        while left and (data := self._read(min(PIECE, left))):
            left -= len(data)
        return count - left

    async def write(self, data: bytes, hasher: Hasher | None = None) -> None:
        """Write all of that, and hash it."""
        await hop(self._write, memoryview(data), hasher)

    def _write(self, data: memoryview, hasher: Hasher | None) -> None:
        if hasher is not None:
            hasher.update(data)
        with _told(self.name, "written"):
            while data:
                data = data[os.write(self._fd, data) :]


@contextlib.asynccontextmanager
async def reading(path: Path | None) -> AsyncIterator[Stream]:
    """A file that an operator names, or standard input. Raises Unusable."""
    if path is None:
        yield Stream(sys.stdin.fileno(), "standard input")
        return
    with _told(str(path), "read"):
        fd, size = await hop(_open_outside, path)
    try:
        yield Stream(fd, str(path), size)
    finally:
        await hop(os.close, fd)


def _open_outside(path: Path) -> tuple[int, int | None]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    status = os.fstat(fd)
    return fd, status.st_size if stat.S_ISREG(status.st_mode) else None


@contextlib.asynccontextmanager
async def replacing(path: Path | None) -> AsyncIterator[Stream]:
    """A file that an operator names, which is there as a whole or not at all, or standard output. Raises Unusable."""
    if path is None:
        if sys.stdout.isatty():
            raise Unusable("standard output is a terminal: name a file, or give it to another program")
        yield Stream(sys.stdout.fileno(), "standard output")
        return
    with _told(str(path), "written"):
        fd, temporary, target = await hop(_open_beside, path)
    is_whole = False
    try:
        yield Stream(fd, str(path))
        is_whole = True
    finally:
        with _told(str(path), "written"):
            await hop(_put_in_place, fd, temporary, target if is_whole else None)


def _open_beside(path: Path) -> tuple[int, Path, Path]:
    target = path.resolve()
    if target.exists() and not target.is_file():
        raise OSError(errno.EISDIR, "it is no file: name one, or - for standard output")
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(8)}")
    return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), temporary, target


def _put_in_place(fd: int, temporary: Path, target: Path | None) -> None:
    try:
        if target is not None:
            os.fsync(fd)
            os.rename(temporary, target)
    finally:
        os.close(fd)
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _told(name: str, verb: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unusable(f"{name}: cannot be {verb} ({error.strerror})") from None


def stamp(*paths: Path) -> tuple[int, ...]:
    """What changes when one of these files is replaced or written; blocking. Raises OSError if one is gone."""
    return tuple(
        number
        for status in map(os.stat, paths)
        for number in (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
    )


def identity(fd: int) -> tuple[int, int, int]:
    """Which file is open: its device, its number there, its size in bytes; blocking."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino, status.st_size


async def hop(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run one blocking call in a thread.

    Who is cancelled meanwhile waits for it all the same: a thread cannot be stopped, and what it works on must not be
    closed, unlocked or handed on under it.
    """
    work = asyncio.get_running_loop().run_in_executor(None, lambda: call(*args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise


async def append(handle: Handle, offset: int, hasher: Hasher, data: memoryview) -> int:
    """Write at `offset` and hash what was written: both release the interpreter's lock, so they share a hop.

    Returns how many bytes that were: fewer than given when the disk would take no more. Raises OSError if it took none,
    so that the hash always stands for what is in the file.
    """
    return await hop(_append, handle.fd, offset, hasher, data)


def _append(fd: int, offset: int, hasher: Hasher, data: memoryview) -> int:
    done = 0
    while done < len(data):
        try:
            written = _write_some(fd, data[done:], offset + done)
        except OSError:
            if done:
                break
            raise
        hasher.update(data[done : done + written])
        done += written
    return done


async def rehash(handle: Handle, hasher: Hasher) -> int:
    """Feed a file's bytes to `hasher`; returns how many there were."""
    return await hop(_rehash, handle.fd, hasher)


def _rehash(fd: int, hasher: Hasher) -> int:
    offset = 0
    while piece := os.pread(fd, PIECE, offset):
        hasher.update(piece)
        offset += len(piece)
    return offset


def unhurried(items: Iterable[T], idle: Callable[[], float]) -> Iterator[T]:
    """Hand on many items, and rest in short pauses `idle()` times as long as that took: others want the machine too."""
    began = time.monotonic()
    for number, item in enumerate(items):
        if number % BREATH == 0:
            time.sleep(idle() * (time.monotonic() - began))
            began = time.monotonic()
        yield item


async def read_hashed(handle: Handle, offset: int, count: int, hasher: Hasher) -> bytes:
    """As Handle.read(), and feed what was read to `hasher`, in the same hop."""
    return await hop(_read_hashed, handle.fd, offset, count, hasher)


def _read_hashed(fd: int, offset: int, count: int, hasher: Hasher) -> bytes:
    data = _read(fd, count, offset)
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


class Tree:
    """One directory tree of ours. Keys are relative paths with forward slashes, made of validated values only."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._fd = -1
        self._is_shared = False  # others may put a directory of theirs where one of ours is missing

    def open_root(self, directories: Iterable[str]) -> None:
        """Create what is missing; blocking, for start-up. Raises UnsafeDirectory or OSError.

        What the disk will not take now is made when it is needed, if it can be by then.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            check_root(self.root, os.fstat(self._fd))
        except UnsafeDirectory:
            self.close()
            raise
        for key in directories:
            try:
                with self._directory(key, create=True) as fd:
                    self._check_ours(fd, key)
            except OSError as error:
                if error.errno in {errno.ELOOP, errno.ENOTDIR}:
                    raise UnsafeDirectory(f"{self.root / key} is no directory: move it away") from None
                if error.errno not in _REFUSALS or self._has(key):
                    raise
        self._is_shared = bool(os.fstat(self._fd).st_mode & 0o022)

    def _has(self, key: str) -> bool:
        try:
            os.stat(key, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _check_ours(self, fd: int, key: str) -> None:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            raise UnsafeDirectory(
                f"{self.root / key} belongs to user {status.st_uid}, not to {os.geteuid()}: chown it, or move it away"
            )
        if status.st_mode & 0o022:
            raise UnsafeDirectory(f"{self.root / key} may be written by others: chmod 0700 it")

    def close(self) -> None:
        """Let go of the root."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            _close(fd)

    # Opening and reading

    async def open(self, key: str) -> Handle | None:
        """Open a committed file; None if there is none, or what is there is not ours to trust.

        A shared lock keeps it from being evicted while the handle is open. Raises OSError for trouble such as EMFILE
        and EIO, which must not look like absence.
        """
        return await hop(self._open_committed, key)

    def _open_committed(self, key: str) -> Handle | None:
        fd = self._open(key, os.O_RDONLY)
        if fd is None:
            return None
        with contextlib.suppress(OSError):  # somebody is at it this instant, or there are no locks: the bytes stay ours
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return _handle(fd)

    async def read(self, key: str, limit: int) -> bytes | None:
        """A whole small file; None if there is none, it is not ours, or it is longer than `limit` bytes."""
        try:
            async with aiofiles.open(key, "rb", opener=self._opener) as file:
                body = await file.read(limit + 1)
        except FileNotFoundError:
            return None
        return body if len(body) <= limit else None

    def read_now(self, key: str, limit: int) -> bytes | None:
        """As read(), but blocking: for whoever reads many files within one hop."""
        try:
            with open(key, "rb", opener=self._opener) as file:
                body = file.read(limit + 1)
        except FileNotFoundError:
            return None
        return body if len(body) <= limit else None

    def _opener(self, key: str, _flags: int) -> int:
        fd = self._open(key, os.O_RDONLY)
        if fd is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), key)
        return fd

    # Looking for damage

    def entries(self, directory: str) -> list[tuple[str, bool]]:
        """What is in a directory, by name, and whether it is a directory itself; nothing, if there is none.

        Blocking: call it within a hop, as the next three.
        """
        try:
            with self._directory(directory) as fd, os.scandir(fd) as found:
                return sorted((one.name, one.is_dir(follow_symlinks=False)) for one in found)
        except OSError as error:
            if error.errno in _ABSENT:
                return []
            raise

    def examine(self, key: str) -> tuple[os.stat_result, Handle | None] | None:
        """What is at a key, with a handle if it can be read and is a regular file of ours; None if nothing is there.

        No lock is taken: it may be evicted meanwhile.
        """
        try:
            with self._parent(key) as (directory, name):
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise
        fd = None
        with contextlib.suppress(PermissionError):  # a file of ours that is not even for us to read
            fd = self._open(key, os.O_RDONLY) if is_ours(status) else None
        if fd is None:
            return status, None
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead: see hash_piece()
        opened = os.fstat(fd)
        return opened, Handle(fd, opened.st_size)

    def set_aside(self, key: str, status: os.stat_result, target: str) -> bool:
        """Give what is at a key another one; False if by now it is gone, or something else is there."""
        if not self._names(key, status):
            return False
        with self._parent(key) as (source, name), self._parent(target, create=True) as (folder, final):
            try:
                os.rename(name, final, src_dir_fd=source, dst_dir_fd=folder)
            except FileNotFoundError:
                return False
            if self._names(target, status):
                return True
            os.rename(final, name, src_dir_fd=folder, dst_dir_fd=source)  # it was replaced in between
            return False

    def clear(self, key: str) -> None:
        """Remove what is at a key, whatever it is, with all that is in it."""
        with self._parent(key) as (directory, name), contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                shutil.rmtree(name, ignore_errors=True, dir_fd=directory)  # what is not for us to remove stays
            else:
                os.unlink(name, dir_fd=directory)

    # Small files

    async def write(self, key: str, body: bytes, *, committed: bool = False) -> None:
        """Put a whole small file in place at once, on disk before it has its name; `committed`: never to be changed."""
        await hop(self._write, key, body, COMMITTED if committed else GROWING)

    def _write(self, key: str, body: bytes, mode: int) -> None:
        temporary = f"tmp/{secrets.token_hex(16)}"
        with self._parent(temporary, create=True) as (source, name), self._parent(key, create=True) as (target, final):

            def create(name: str, _flags: int) -> int:
                return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, GROWING, dir_fd=source)

            try:
                with open(name, "wb", opener=create) as file:
                    file.write(body)
                    file.flush()
                    os.fsync(file.fileno())
                    os.fchmod(file.fileno(), mode)
                os.rename(name, final, src_dir_fd=source, dst_dir_fd=target)
            except BaseException:
                with contextlib.suppress(OSError):  # it has not come to be, or the disk will not let it go: swept later
                    os.unlink(name, dir_fd=source)
                raise

    async def append(self, key: str, data: bytes) -> None:
        """Add to the end of a small file of this process's own, which is made if it is not there. Raises OSError."""
        await hop(self._append, key, data)

    def _append(self, key: str, data: bytes) -> None:
        fd = self._open(key, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if fd is None:
            raise OSError(errno.EEXIST, "it is not a file of ours", key)
        with open(fd, "wb") as file:
            file.write(data)

    async def touch(self, keys: Iterable[tuple[str, float]]) -> Collection[str]:
        """Set the time of last use (seconds since the epoch) of files. Returns the keys of those that are gone.

        A later use that somebody else has noted stays, unless it is in the future: a clock was ahead. A disk that will
        not note it is no trouble: it is for the order of eviction only.
        """
        return await hop(self._touch, list(keys))

    def _touch(self, keys: list[tuple[str, float]]) -> Collection[str]:
        gone = set()
        for key, when in keys:
            try:
                with self._parent(key) as (directory, name):
                    noted = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime
                    if not when < noted <= time.time():
                        os.utime(name, (when, when), dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                gone.add(key)
            except OSError:
                continue
        return gone

    async def remove(self, key: str) -> None:
        """Remove a file, if it is there."""
        await hop(self._remove, key)

    def _remove(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), self._parent(key) as (directory, name):
            os.unlink(name, dir_fd=directory)

    # Spools: a file that grows, and the lock that says somebody is at it

    async def open_spool(self, key: str) -> Handle:
        """Open, or create, a spool file to read and to lock."""
        return await hop(self._open_spool, key)

    def _open_spool(self, key: str) -> Handle:
        for _ in range(2):
            fd = self._open(key, os.O_RDONLY | os.O_CREAT)
            if fd is not None:
                return _handle(fd)
            self._remove(key)  # planted: whatever it is, it is in the way
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), key)

    async def inspect_spool(self, key: str, handle: Handle) -> tuple[SpoolState, int]:
        """Look at a spool, and take its lock if it is free. Returns the state, and the size in bytes."""
        return await hop(self._inspect_spool, key, handle.fd)

    def _inspect_spool(self, key: str, fd: int) -> tuple[SpoolState, int]:
        locked = _try_lock(fd)
        status = os.fstat(fd)
        if stat.S_IMODE(status.st_mode) == COMMITTED and not (locked and self._names(key, status)):
            state = SpoolState.COMMITTED
        elif not locked:
            state = SpoolState.GROWING
        elif self._names(key, status):
            return SpoolState.OURS, status.st_size
        else:
            state = SpoolState.GONE
        if locked:
            fcntl.flock(fd, fcntl.LOCK_UN)
        return state, status.st_size

    async def open_for_writing(self, key: str, handle: Handle) -> Handle:
        """A second handle of a spool that this process has locked, to write with."""
        return await hop(self._open_for_writing, key, handle.fd)

    def _open_for_writing(self, key: str, locked: int) -> Handle:
        os.fchmod(locked, GROWING)  # committed but never renamed: a crash came in between
        fd = self._open(key, os.O_WRONLY)
        if fd is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), key)
        return _handle(fd)

    async def commit_spool(self, key: str, handle: Handle, target: str) -> None:
        """Publish a verified spool under its final key: durable first, named last. The lock becomes a shared one.

        Raises OSError; a failed fsync means the file must be discarded, never synced again.
        """
        await hop(self._commit_spool, key, handle.fd, target)

    def _commit_spool(self, key: str, fd: int, target: str) -> None:
        os.fsync(fd)
        os.fchmod(fd, COMMITTED)
        with self._parent(key) as (source, name), self._parent(target, create=True) as (destination, final):
            os.rename(name, final, src_dir_fd=source, dst_dir_fd=destination)
            try:
                os.fsync(destination)
            except OSError:
                with contextlib.suppress(OSError):  # its bytes are right: it may keep a name that cannot be taken back
                    os.unlink(final, dir_fd=destination)
                raise
        with contextlib.suppress(OSError):  # an exclusive lock guards it as well
            fcntl.flock(fd, fcntl.LOCK_SH)

    async def discard_spool(self, key: str, handle: Handle) -> None:
        """Drop a locked spool: its bytes are wrong, or in the way."""
        await hop(self._discard_spool, key, handle.fd)

    def _discard_spool(self, key: str, fd: int) -> None:
        try:
            if self._names(key, os.fstat(fd)):
                self._remove(key)
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)

    async def leave_spool(self, handle: Handle) -> None:
        """Unlock a spool for whoever resumes it: readers may still hold duplicates of the descriptor."""
        await hop(fcntl.flock, handle.fd, fcntl.LOCK_UN)

    # Housekeeping

    def scan(self, directory: str, *, strict: bool = False) -> list[Entry]:
        """Every regular file below a directory; blocking: call it within one hop.

        What the disk cannot read is passed over; `strict`: raise OSError instead.
        """
        return list(self.walk(directory, strict=True) if strict else self.walk(directory))

    def walk(self, directory: str, *, strict: bool = False) -> Iterator[Entry]:
        """As scan(), one after the other, where there may be too many for a list."""
        with contextlib.suppress(FileNotFoundError), self._directory(directory) as fd:
            yield from _walk(fd, directory, strict)

    def disk(self) -> Disk:
        """The file system that all this is on; blocking, if only for microseconds."""
        status = os.fstatvfs(self._fd)
        return Disk(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)

    def evict(self, key: str, unused_since: float = math.inf) -> bool:
        """Remove a file that nobody has open for sending or filling, nor used after then (seconds since the epoch).

        Blocking: call it within one hop.
        """
        fd = self._open_if_readable(key)
        if fd is None:
            return False
        try:
            if not _is_idle(fd, unused_since) or not self._names(key, os.fstat(fd)):
                return False  # in use, or in the meantime another file has the name
            self._remove(key)
        finally:
            _close(fd)
        return True

    def is_named(self, key: str, fd: int) -> bool:
        """Whether an open file still has its name; blocking: call it within one hop."""
        return self._names(key, os.fstat(fd))

    def used(self, key: str) -> float:
        """When a file was last used, in seconds since the epoch; 0 if it is gone. Blocking: call it within one hop."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), self._parent(key) as (directory, name):
            return os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime
        return 0.0

    def size(self, key: str) -> int | None:
        """How many bytes a file has; None if it is not there. Blocking: call it within one hop."""
        size = self.peek(key, lambda fd: os.fstat(fd).st_size + 1)
        return size - 1 if size else None

    def is_free(self, key: str, unused_since: float = math.inf) -> bool:
        """Whether a file is there and might be evicted; blocking: call it within one hop."""
        return bool(self.peek(key, lambda fd: _is_idle(fd, unused_since)))

    def has(self, key: str) -> bool:
        """Whether there is a file that open() would open; blocking: call it within one hop."""
        return bool(self.peek(key, lambda _fd: True))

    def peek(self, key: str, look: Callable[[int], int]) -> int:
        """What `look` makes of an open file; 0 if it is gone, or cannot be opened. Blocking: call it within one hop."""
        fd = self._open_if_readable(key)
        if fd is None:
            return 0
        try:
            return look(fd)
        finally:
            _close(fd)

    def _open_if_readable(self, key: str) -> int | None:
        """As _open(): one bad inode must not keep the others from being counted, or from making room."""
        try:
            return self._open(key, os.O_RDONLY)
        except OSError as error:
            _raise_if_exhausted(error)
            return None

    @contextlib.contextmanager
    def locked(self, key: str) -> Iterator[int]:
        """An exclusive lock across processes, on a file of its own that it opens; blocking."""
        with self._kept_open(key) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd

    @contextlib.contextmanager
    def claimed(self, key: str) -> Iterator[int | None]:
        """As locked(), but without waiting: None if another process, or another claim of this one, has the lock."""
        with self._kept_open(key) as fd:
            yield fd if _try_lock(fd) else None

    @contextlib.contextmanager
    def _kept_open(self, key: str) -> Iterator[int]:
        fd = self._open(key, os.O_RDWR | os.O_CREAT)
        if fd is None:
            raise OSError(errno.EEXIST, f"{self.root / key} is not a file of ours: move it away")
        try:
            yield fd
        finally:
            _close(fd)

    # From the root down, one component at a time

    @contextlib.contextmanager
    def _directory(self, key: str, create: bool = False) -> Iterator[int]:
        fd = os.dup(self._fd)
        try:
            for depth, name in enumerate(filter(None, key.split("/"))):
                fd = _step(fd, name, create)
                if self._is_shared and not depth and not _is_private(os.fstat(fd)):
                    raise NotADirectoryError(errno.ENOTDIR, "others may write to it", name)
            yield fd
        finally:
            _close(fd)

    @contextlib.contextmanager
    def _parent(self, key: str, create: bool = False) -> Iterator[tuple[int, str]]:
        folder, _, name = key.rpartition("/")
        with self._directory(folder, create) as fd:
            yield fd, name

    def _open(self, key: str, flags: int) -> int | None:
        """Open a regular file that belongs to us; None if nothing such is there."""
        try:
            with self._parent(key, create=bool(flags & os.O_CREAT)) as (directory, name):
                fd = os.open(name, flags | _FILE, GROWING, dir_fd=directory)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO}:
                return None
            raise
        with _closed_on_error(fd):
            is_safe = is_ours(os.fstat(fd))
        if not is_safe:
            _close(fd)
            return None
        return fd

    def _names(self, key: str, status: os.stat_result) -> bool:
        try:
            with self._parent(key) as (directory, name):
                return os.path.samestat(os.stat(name, dir_fd=directory, follow_symlinks=False), status)
        except (FileNotFoundError, NotADirectoryError):
            return False


def _walk(fd: int, prefix: str, strict: bool) -> Iterator[Entry]:
    """Every regular file below an open directory.

    What went away, or cannot be read, is passed over; what cannot be opened just now would be taken for empty.
    """
    with os.scandir(fd) as found:
        for entry in found:
            try:
                if entry.is_dir(follow_symlinks=False):
                    yield from _walk_into(fd, entry.name, f"{prefix}/{entry.name}", strict)
                    continue
                status = entry.stat(follow_symlinks=False)
            except OSError as error:
                if strict and not isinstance(error, FileNotFoundError):
                    raise
                _raise_if_exhausted(error)
                continue
            if stat.S_ISREG(status.st_mode):
                yield Entry(f"{prefix}/{entry.name}", status.st_size, status.st_mtime)


def _walk_into(fd: int, name: str, prefix: str, strict: bool) -> Iterator[Entry]:
    inner = os.open(name, _DIRECTORY, dir_fd=fd)
    try:
        yield from _walk(inner, prefix, strict)
    finally:
        _close(inner)


def _is_idle(fd: int, unused_since: float) -> bool:
    """Whether nobody has an open file locked, or has used it after then."""
    return _try_lock(fd) and os.fstat(fd).st_mtime <= unused_since


def _raise_if_exhausted(error: OSError) -> None:
    """What cannot be opened just now must not be taken for absent."""
    if is_exhausted(error):
        raise error


def _step(fd: int, name: str, create: bool) -> int:
    """Open a directory inside `fd`, closing `fd` on success; the caller closes it on failure."""
    try:
        inner = os.open(name, _DIRECTORY, dir_fd=fd)
    except FileNotFoundError:
        if not create:
            raise
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=fd)
        inner = os.open(name, _DIRECTORY, dir_fd=fd)
    _close(fd)
    return inner


def _is_private(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _close(fd: int) -> None:
    """A close that fails has closed all the same: what has to be on disk was synced before, and would have said so."""
    with contextlib.suppress(OSError):
        os.close(fd)


@contextlib.contextmanager
def _closed_on_error(fd: int) -> Iterator[None]:
    """A descriptor that nobody has taken over yet must not be lost."""
    try:
        yield
    except BaseException:
        _close(fd)
        raise


def _handle(fd: int) -> Handle:
    with _closed_on_error(fd):
        return Handle(fd, os.fstat(fd).st_size)


def _read(fd: int, count: int, offset: int) -> bytes:
    """As os.pread(), but short only at the end of the file: a short read may mean a bad block behind it."""
    data = os.pread(fd, count, offset)
    while len(data) < count and (more := os.pread(fd, count - len(data), offset + len(data))):
        data += more
    return data


def _write_some(fd: int, data: bytes | memoryview, offset: int) -> int:
    """As os.pwrite(), but of a disk that takes nothing and says nothing it is said that it is full."""
    written = os.pwrite(fd, data, offset)
    if not written:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return written


def is_ours(status: os.stat_result) -> bool:
    """Whether this is a regular file that nobody else can have written to."""
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_uid == os.geteuid()
        and not status.st_mode & 0o022
        and status.st_nlink <= 1  # a second name means a second way to write to it
    )


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def raise_descriptor_limit() -> tuple[int, int]:
    """Raise the soft limit of open files to the hard one. Returns (what it was, what it is)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft, hard


def boot() -> bytes:
    """What tells this boot of this machine from every other; blocking. Raises OSError."""
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return file.read().strip()


async def count_descriptors() -> int:
    """How many descriptors this process has open."""
    return await hop(lambda: len(os.listdir("/proc/self/fd")))


def read_number(fd: int) -> int:
    """The number that write_number() left in a small open file, 0 if there is none; blocking."""
    text = _read(fd, _DIGITS, 0)
    return int(text) if text.isdigit() else 0


def is_number(fd: int) -> bool:
    """Whether there is one; blocking."""
    return _read(fd, _DIGITS, 0).isdigit()


def write_number(fd: int, value: int) -> None:
    """Keep a number, not below 0, in a small open file; blocking. Raises OSError."""
    digits, done = str(max(0, value)).zfill(_DIGITS).encode(), 0
    while done < len(digits):
        done += _write_some(fd, digits[done:], done)


def is_exhausted(error: BaseException | None) -> bool:
    """Whether an error says that this process or machine has no descriptors (or memory) left."""
    return isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


def is_damage(error: OSError) -> bool:
    """Whether an error says that the disk, or what the file system knows of it, is no good there."""
    return error.errno in {errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ENODATA}
