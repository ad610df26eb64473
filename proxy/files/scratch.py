"""Directories that last as long as the processes that use them, however these end."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from proxy.files.calls import close_fd, closed_on_error, try_lock
from proxy.files.rooted import DIRECTORY


@dataclass(frozen=True, slots=True)
class Scratch:
    """Such a directory. Whatever process has inherited `lock`, a descriptor, keeps it from being swept."""

    path: Path
    lock: int


@contextlib.contextmanager
def scratch(prefix: str, parent: Path) -> Iterator[Scratch]:
    """A new one, named by the prefix and chance, and removed on leaving; blocking. Raises OSError.

    What killed processes have left of that name goes first. That they are gone is known by a lock, which the last of
    them lets go of by its end, and not by a process's number, which another may have by now.
    """
    with contextlib.suppress(OSError):  # where others' cannot be listed they stay
        sweep(prefix, parent)
    one = _made(prefix, parent)
    try:
        yield one
    finally:
        shutil.rmtree(one.path, ignore_errors=True)
        close_fd(one.lock)


def sweep(prefix: str, parent: Path) -> None:
    """Remove those that are ours and that no process uses any more; blocking. Raises OSError of the parent."""
    for entry in list(parent.iterdir()):
        if entry.name.startswith(prefix):
            with contextlib.suppress(OSError), _opened(entry) as fd:  # what cannot be opened or removed stays
                if os.fstat(fd).st_uid == os.geteuid() and try_lock(fd) and _is_named(entry, fd):
                    shutil.rmtree(entry)


def _made(prefix: str, parent: Path) -> Scratch:
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = _locked(path)
        if lock is not None:
            return Scratch(path, lock)


def _locked(path: Path) -> int | None:
    """Its lock; None if it was swept before it had one."""
    try:
        fd = os.open(path, DIRECTORY)
    except FileNotFoundError:
        return None
    with closed_on_error(fd):
        fcntl.flock(fd, fcntl.LOCK_EX)
        if _is_named(path, fd):
            return fd
    close_fd(fd)
    return None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, DIRECTORY)
    try:
        yield fd
    finally:
        close_fd(fd)


def _is_named(path: Path, fd: int) -> bool:
    """Whether that is still what has this name."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False
