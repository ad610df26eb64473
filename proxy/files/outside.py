"""Files that an operator names, outside of the store: read or written once, front to back."""

import asyncio
import contextlib
import errno
import os
import secrets
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from proxy.files.calls import PIECE, closed_on_error, hop
from proxy.oci.digest import Hasher


class Unusable(Exception):
    """A file that an operator named cannot be read or written; the message says which, and why."""


class Stream:
    """A file or a pipe that an operator names, outside of the tree: read or written once, front to back.

    `size` is how many bytes there are to read, where that can be known. Everything raises Unusable. Who is cancelled
    waits for no other program where `is_standard`: nobody closes that under the thread.
    """

    def __init__(self, fd: int, name: str, size: int | None = None, *, is_standard: bool = False) -> None:
        self._fd = fd
        self.name = name
        self.size = size
        self._hop = asyncio.to_thread if is_standard else hop

    async def read(self, count: int) -> bytes:
        """The next `count` bytes; fewer only at the end."""
        return await self._hop(self._read, count)

    def _read(self, count: int) -> bytes:
        found = bytearray()
        with _told(self.name, "read"):
            while len(found) < count and (data := os.read(self._fd, min(PIECE, count - len(found)))):
                found += data
        return bytes(found)

    async def skip(self, count: int) -> int:
        """Pass over `count` bytes, which costs nothing in a file; returns how many there were."""
        return await self._hop(self._skip, count) if count else 0

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
        await self._hop(self._write, memoryview(data), hasher)

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
        yield Stream(sys.stdin.fileno(), "standard input", is_standard=True)
        return
    with _told(str(path), "read"):
        fd, size = await hop(_open_outside, path)
    try:
        yield Stream(fd, str(path), size)
    finally:
        await hop(os.close, fd)


def _open_outside(path: Path) -> tuple[int, int | None]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with closed_on_error(fd):
        status = os.fstat(fd)
    return fd, status.st_size if stat.S_ISREG(status.st_mode) else None


@contextlib.asynccontextmanager
async def replacing(path: Path | None) -> AsyncIterator[Stream]:
    """A file that an operator names, which is there as a whole or not at all, or standard output. Raises Unusable."""
    if path is None:
        if sys.stdout.isatty():
            raise Unusable("standard output is a terminal: name a file, or give it to another program")
        yield Stream(sys.stdout.fileno(), "standard output", is_standard=True)
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
