"""Spools: files that grow, their one writer, and whoever follows."""

import contextlib
import enum
import errno
import fcntl
import os
import stat

from proxy.files.calls import COMMITTED, GROWING, Handle, as_handle, hop, try_lock
from proxy.files.rooted import Rooted


class SpoolState(enum.Enum):
    """What a follower sees of a spool file that somebody may be writing."""

    OURS = enum.auto()  # nobody was writing: this process holds the lock now
    GROWING = enum.auto()
    COMMITTED = enum.auto()
    GONE = enum.auto()  # discarded, or replaced: its bytes are worth nothing


class Spools(Rooted):
    """Files that grow, each with a lock that says somebody is at it; whoever follows one reads it as it grows."""

    async def open_spool(self, key: str) -> Handle:
        """Open, or create, a spool file to read and to lock."""
        return await hop(self._open_spool, key)

    def _open_spool(self, key: str) -> Handle:
        for _ in range(2):
            fd = self._open(key, os.O_RDONLY | os.O_CREAT)
            if fd is not None:
                return as_handle(fd)
            self._remove(key)  # planted: whatever it is, it is in the way
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), key)

    async def find_spool(self, key: str) -> Handle | None:
        """Open a spool file that is there, to read it as it grows; None if there is none."""
        return await hop(self._find_spool, key)

    def _find_spool(self, key: str) -> Handle | None:
        fd = self._open(key, os.O_RDONLY)
        return None if fd is None else as_handle(fd)

    async def inspect_spool(self, key: str, handle: Handle) -> tuple[SpoolState, int]:
        """Look at a spool, and take its lock if it is free. Returns the state, and the size in bytes."""
        return await hop(self._inspect_spool, key, handle.fd)

    def _inspect_spool(self, key: str, fd: int) -> tuple[SpoolState, int]:
        locked = try_lock(fd)
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
        fd = self._open(key, os.O_RDWR)  # what is written past this process is read back, to be hashed
        if fd is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), key)
        return as_handle(fd)

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
