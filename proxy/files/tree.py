"""The store's directory: files read, written whole, looked over and evicted."""

import asyncio
import contextlib
import errno
import fcntl
import math
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass

import aiofiles

from proxy.files.calls import COMMITTED, GROWING, Handle, as_handle, close_fd, closed_on_error, hop, outlast, try_lock
from proxy.files.rooted import ABSENT, DIRECTORY, FILE, is_ours, raise_if_exhausted
from proxy.files.spools import Spools


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


class Tree(Spools):
    """The store's directory: small files and committed ones, what is looked for damage, what may go."""

    # Opening and reading

    async def open(self, key: str) -> Handle | None:
        """Open a committed file; None if there is none, or what is there is not ours to trust.

        A shared lock keeps it from being evicted while the handle is open. Raises OSError for trouble such as EMFILE
        and EIO, which must not look like absence.
        """
        fd = self._open_at_once(key)
        return await hop(self._open_committed, key) if fd is None else _committed(fd)

    def _open_committed(self, key: str) -> Handle | None:
        fd = self._open(key, os.O_RDONLY)
        return None if fd is None else _committed(fd)

    async def read(self, key: str, limit: int) -> bytes | None:
        """A whole small file; None if there is none, it is not ours, or it is longer than `limit` bytes."""
        reading = asyncio.create_task(self._read(key, limit))
        await outlast(reading)  # a file that is opened for somebody who has been cancelled would be closed by nobody
        return reading.result()

    async def _read(self, key: str, limit: int) -> bytes | None:
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
            if error.errno in ABSENT:
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
            if error.errno in ABSENT:
                return None
            raise
        fd = None
        with contextlib.suppress(PermissionError):  # a file of ours that is not even for us to read
            fd = self._open(key, os.O_RDONLY) if is_ours(status) else None
        if fd is None:
            return status, None
        with closed_on_error(fd):
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

    def write_now(self, key: str, body: bytes) -> None:
        """As write(), but blocking: for whoever does more within one hop."""
        self._write(key, body, GROWING)

    def _write(self, key: str, body: bytes, mode: int) -> None:
        temporary = f"tmp/{secrets.token_hex(16)}"
        with self._parent(temporary, create=True) as (source, name), self._parent(key, create=True) as (target, final):

            def create(name: str, _flags: int) -> int:
                return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | FILE, GROWING, dir_fd=source)

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
        with open(key, "wb", opener=lambda _key, _flags: fd) as file:  # which closes it, should it fail
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

    # Housekeeping

    def scan(self, directory: str, *, strict: bool = False) -> list[Entry]:
        """Every regular file below a directory; blocking: call it within one hop.

        What the disk cannot read is passed over; `strict`: raise OSError instead.
        """
        return list(self.walk(directory, strict=True) if strict else self.walk(directory))

    def walk(self, directory: str, *, strict: bool = False) -> Generator[Entry, None, None]:
        """As scan(), one after the other, where there may be too many for a list.

        Raises OSError once the tree is closed: to go through a million files takes minutes, and the process is to end.
        """
        with contextlib.suppress(FileNotFoundError), self._directory(directory) as fd:
            for entry in _walk(fd, directory, strict):
                if self._fd < 0:
                    raise OSError(errno.EBADF, "the store has been closed", directory)
                yield entry

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
            close_fd(fd)
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
            close_fd(fd)


def _committed(fd: int) -> Handle:
    with contextlib.suppress(OSError):  # somebody is at it this instant, or there are no locks: the bytes stay ours
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return as_handle(fd)


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
                raise_if_exhausted(error)
                continue
            if stat.S_ISREG(status.st_mode):
                yield Entry(f"{prefix}/{entry.name}", status.st_size, status.st_mtime)


def _walk_into(fd: int, name: str, prefix: str, strict: bool) -> Iterator[Entry]:
    inner = os.open(name, DIRECTORY, dir_fd=fd)
    try:
        yield from _walk(inner, prefix, strict)
    finally:
        close_fd(inner)


def _is_idle(fd: int, unused_since: float) -> bool:
    """Whether nobody has an open file locked, or has used it after then."""
    return try_lock(fd) and os.fstat(fd).st_mtime <= unused_since
