"""The way from a root to a file: a component at a time, following no link, to what is ours alone."""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from proxy.files import cached
from proxy.files.calls import GROWING, close_fd, closed_on_error, hop, is_exhausted, try_lock

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # O_NONBLOCK: a planted FIFO must not hold the thread
ABSENT = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR})  # nothing of ours is there, on the way to it neither
_REFUSALS = frozenset({errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM})  # of a disk, to be written


class UnsafeDirectory(Exception):
    """Others may write to a directory of the store, or own it; the message says which and what to do."""


def check_root(root: Path, status: os.stat_result) -> None:
    """Raise UnsafeDirectory if others could put their files in place of ours."""
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise UnsafeDirectory(f"{root} may be written by everybody: chmod o-w it, or choose another store.path")


class Rooted:
    """One directory tree of ours. Keys are relative paths with forward slashes, made of validated values only."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._fd = -1
        self._tells = False  # by now it is known that the file system can tell what it has in memory
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
            close_fd(fd)

    # Locks, on files of their own

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
            yield fd if try_lock(fd) else None

    @contextlib.contextmanager
    def _kept_open(self, key: str) -> Iterator[int]:
        fd = self._open(key, os.O_RDWR | os.O_CREAT)
        if fd is None:
            raise OSError(errno.EEXIST, f"{self.root / key} is not a file of ours: move it away")
        try:
            yield fd
        finally:
            close_fd(fd)

    async def remove(self, key: str) -> None:
        """Remove a file, if it is there."""
        await hop(self._remove, key)

    def _remove(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), self._parent(key) as (directory, name):
            os.unlink(name, dir_fd=directory)

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
            close_fd(fd)

    @contextlib.contextmanager
    def _parent(self, key: str, create: bool = False) -> Iterator[tuple[int, str]]:
        folder, _, name = key.rpartition("/")
        with self._directory(folder, create) as fd:
            yield fd, name

    def _open(self, key: str, flags: int) -> int | None:
        """Open a regular file that belongs to us; None if nothing such is there."""
        try:
            with self._parent(key, create=bool(flags & os.O_CREAT)) as (directory, name):
                fd = os.open(name, flags | FILE, GROWING, dir_fd=directory)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO}:
                return None
            raise
        ours = _if_ours(fd)
        if ours is not None and not self._tells:
            self._tells = cached.tells(ours)
        return ours

    def _open_at_once(self, key: str) -> int | None:
        """As _open(), to read; None as well where that would not be possible without waiting. Not blocking."""
        if self._is_shared or not self._tells:
            return None
        fd = cached.open_below(self._fd, key)
        return None if fd is None else _if_ours(fd)

    def _names(self, key: str, status: os.stat_result) -> bool:
        try:
            with self._parent(key) as (directory, name):
                return os.path.samestat(os.stat(name, dir_fd=directory, follow_symlinks=False), status)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _open_if_readable(self, key: str) -> int | None:
        """As _open(): one bad inode must not keep the others from being counted, or from making room."""
        try:
            return self._open(key, os.O_RDONLY)
        except OSError as error:
            raise_if_exhausted(error)
            return None


def raise_if_exhausted(error: OSError) -> None:
    """What cannot be opened just now must not be taken for absent."""
    if is_exhausted(error):
        raise error


def _step(fd: int, name: str, create: bool) -> int:
    """Open a directory inside `fd`, closing `fd` on success; the caller closes it on failure."""
    try:
        inner = os.open(name, DIRECTORY, dir_fd=fd)
    except FileNotFoundError:
        if not create:
            raise
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=fd)
        inner = os.open(name, DIRECTORY, dir_fd=fd)
    close_fd(fd)
    return inner


def _if_ours(fd: int) -> int | None:
    """A descriptor that has just been opened; None, and it is closed, if what it is of is not for us to trust."""
    with closed_on_error(fd):
        is_safe = is_ours(os.fstat(fd))
    if is_safe:
        return fd
    close_fd(fd)
    return None


def _is_private(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def is_ours(status: os.stat_result) -> bool:
    """Whether this is a regular file that nobody else can have written to."""
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_uid == os.geteuid()
        and not status.st_mode & 0o022
        and status.st_nlink <= 1  # a second name means a second way to write to it
    )
