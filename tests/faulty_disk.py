"""A disk that fails: what `proxy.files` asks of it is counted, and one call of it, or all from one on, go wrong."""

import errno
import fcntl
import io
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import aiofiles.threadpool
import pytest

from proxy.files import cached, tree

SHORT = -1  # half of what was asked for
NOTHING = -2  # no byte, and no error
NAMES = {**errno.errorcode, SHORT: "short", NOTHING: "nothing"}

# What may befall each operation. `create` and `change` are opens that may make, or mean to write, a file.
FAULTS: Mapping[str, tuple[int, ...]] = {
    "open": (errno.EMFILE, errno.EIO),
    "create": (errno.EMFILE, errno.EIO, errno.ENOSPC, errno.EROFS, errno.EACCES),
    "change": (errno.EMFILE, errno.EIO, errno.EROFS),
    "wrap": (errno.EIO,),
    "dup": (errno.EMFILE,),
    "close": (errno.EIO,),
    "fstat": (errno.EIO,),
    "stat": (errno.EIO,),
    "fstatvfs": (errno.EIO,),
    "scandir": (errno.EMFILE, errno.EIO),
    "flock": (errno.ENOLCK, errno.EIO),
    "pread": (errno.EIO, SHORT),
    "read": (errno.EIO, SHORT),
    "sendfile": (errno.EIO, SHORT, NOTHING),
    "pwrite": (errno.ENOSPC, errno.EIO, SHORT, NOTHING),
    "write": (errno.ENOSPC, errno.EIO, SHORT),
    "splice": (errno.ENOSPC, errno.EIO, errno.EINVAL, SHORT, NOTHING),  # into a file
    "fsync": (errno.ENOSPC, errno.EIO),
    "fchmod": (errno.EIO, errno.EROFS),
    "mkdir": (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES),
    "rename": (errno.ENOSPC, errno.EIO, errno.EROFS),
    "unlink": (errno.EIO, errno.EROFS),
    "utime": (errno.EIO, errno.EROFS),
}

LASTING = (errno.EMFILE, errno.ENOSPC, errno.EROFS, errno.EIO)  # what a disk may be for good
STRIDE = 10  # calls between one beginning of that and the next


@dataclass(frozen=True, slots=True)
class Point:
    """Which call goes wrong, and how: the `number`-th of an operation, or all that can from the `number`-th of any on.

    Numbers begin with 1; `operation` is "any" for what lasts.
    """

    operation: str
    number: int
    fault: int

    def __str__(self) -> str:
        return f"{self.operation} {self.number} {NAMES[self.fault]}"

    def hits(self, operation: str, of_its_kind: int, of_all: int) -> bool:
        """Whether a call goes wrong."""
        if self.operation == "any":
            return of_all >= self.number and self.fault in FAULTS[operation]
        return self.operation == operation and self.number == of_its_kind


def points(made: Mapping[str, int]) -> list[Point]:
    """All that can go wrong with so many calls of each operation."""
    single = [
        Point(operation, number, fault)
        for operation, count in sorted(made.items())
        for number in range(1, count + 1)
        for fault in FAULTS[operation]
    ]
    all_calls = sum(made.values())
    return single + [Point("any", number, fault) for fault in LASTING for number in range(1, all_calls + 1, STRIDE)]


class FaultyDisk:
    """Counts the calls of `proxy.files`, in whatever thread; those that are no business of its are let alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: Counter[str] = Counter()
        self.hits = 0
        self._point: Point | None = None
        self._is_counting = False
        self._lock = threading.Lock()
        for name in ("dup", "fstat", "stat", "fstatvfs", "scandir", "listdir", "fsync", "fchmod", "mkdir", "rename"):
            monkeypatch.setattr(os, name, self._plain("scandir" if name == "listdir" else name, getattr(os, name)))
        monkeypatch.setattr(os, "fdatasync", self._plain("fsync", os.fdatasync))
        for name in ("unlink", "utime"):
            monkeypatch.setattr(os, name, self._plain(name, getattr(os, name)))
        monkeypatch.setattr(fcntl, "flock", self._plain("flock", fcntl.flock))
        monkeypatch.setattr(os, "open", self._opening(os.open))
        monkeypatch.setattr(os, "close", self._closing(os.close))
        monkeypatch.setattr(os, "pread", self._reading(os.pread))
        monkeypatch.setattr(os, "preadv", self._looking(os.preadv))
        monkeypatch.setattr(os, "sendfile", self._sending(os.sendfile))
        monkeypatch.setattr(os, "pwrite", self._writing(os.pwrite))
        monkeypatch.setattr(os, "pwritev", self._gathering(os.pwritev))
        monkeypatch.setattr(os, "splice", self._splicing(os.splice))
        monkeypatch.setattr(cached, "open_below", self._knowing(cached.open_below))
        monkeypatch.setattr(tree, "open", self._wrapped, raising=False)
        monkeypatch.setattr(aiofiles.threadpool, "sync_open", self._wrapped)

    def fail(self, point: Point | None) -> None:
        """Count from now on, and let that call fail."""
        self.made.clear()
        self.hits = 0
        self._point, self._is_counting = point, True

    def heal(self) -> None:
        """Fail no more, and count no more."""
        self._point, self._is_counting = None, False

    def fault(self, operation: str) -> int:
        """Count a call; returns what is to befall it, 0 for nothing."""
        with self._lock:
            if not self._is_counting:
                return 0
            self.made[operation] += 1
            point = self._point
            if point is None or not point.hits(operation, self.made[operation], self.made.total()):
                return 0
            self.hits += 1
            return point.fault

    def check(self, operation: str) -> int:
        """As fault(), but errors are raised."""
        fault = self.fault(operation)
        if fault > 0:
            raise OSError(fault, os.strerror(fault))
        return fault

    def _plain(self, operation: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: object, **kwargs: object) -> object:
            if _is_ours():
                self.check(operation)
            return real(*args, **kwargs)

        return call

    def _opening(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(path: str, flags: int, *args: object, **kwargs: object) -> int:
            if _is_ours():
                changes = "change" if flags & os.O_ACCMODE else "open"
                self.check("create" if flags & os.O_CREAT else changes)
            return real(path, flags, *args, **kwargs)

        return call

    def _closing(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def call(fd: int) -> None:
            is_ours = _is_ours()
            real(fd)  # the descriptor is gone, whatever is said of it
            if is_ours:
                self.check("close")

        return call

    def _reading(self, real: Callable[[int, int, int], bytes]) -> Callable[[int, int, int], bytes]:
        def call(fd: int, count: int, offset: int) -> bytes:
            fault = self.check("pread") if _is_ours() else 0
            return real(fd, max(1, count // 2) if fault == SHORT else count, offset)

        return call

    def _looking(self, real: Callable[..., int]) -> Callable[..., int]:
        """Nothing is in memory: all has to be read from the disk, which is what goes wrong."""

        def call(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
            if self._is_counting and flags & os.RWF_NOWAIT:
                raise BlockingIOError
            if _is_ours() and not flags and self.check("pread") == SHORT:
                buffers = [memoryview(buffers[0])[: max(1, len(buffers[0]) // 2)]]
            return real(fd, buffers, offset, flags)

        return call

    def _knowing(self, real: Callable[[int, str], int | None]) -> Callable[[int, str], int | None]:
        """Nor is the way to any file."""

        def call(root: int, key: str) -> int | None:
            return None if self._is_counting else real(root, key)

        return call

    def _sending(self, real: Callable[[int, int, int, int], int]) -> Callable[[int, int, int, int], int]:
        def call(to: int, source: int, offset: int, count: int) -> int:
            fault = self.check("sendfile") if _is_ours() else 0
            if fault == NOTHING:  # the file has become shorter
                return 0
            return real(to, source, offset, max(1, count // 2) if fault == SHORT else count)

        return call

    def _writing(self, real: Callable[[int, Any, int], int]) -> Callable[[int, Any, int], int]:
        def call(fd: int, data: bytes, offset: int) -> int:
            fault = self.check("pwrite") if _is_ours() else 0
            if fault == NOTHING:
                return 0
            return real(fd, data[: max(1, len(data) // 2)] if fault == SHORT else data, offset)

        return call

    def _gathering(self, real: Callable[[int, Any, int], int]) -> Callable[[int, Any, int], int]:
        write = self._writing(lambda fd, data, offset: real(fd, [data], offset))
        return lambda fd, pieces, offset: write(fd, b"".join(pieces), offset)

    def _splicing(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(source: int, to: int, count: int, **kwargs: int) -> int:
            fault = self.check("splice") if "offset_dst" in kwargs else 0
            if fault == NOTHING:
                return 0
            return real(source, to, max(1, count // 2) if fault == SHORT else count, **kwargs)

        return call

    def _wrapped(self, file: Any, mode: str = "r", *_: object, opener: Any = None, **__: object) -> io.BufferedIOBase:
        raw = _Raw(self, file, mode, opener)
        return io.BufferedReader(raw) if mode == "rb" else io.BufferedWriter(raw)


class _Raw(io.FileIO):
    """What open() reads and writes with."""

    def __init__(self, disk: FaultyDisk, file: Any, mode: str, opener: Any) -> None:
        self._disk = disk
        if isinstance(file, int):
            disk.check("wrap")  # as fstat() may fail in there: the descriptor stays the caller's then
        super().__init__(file, mode.replace("b", ""), opener=opener)

    def readinto(self, buffer: Any) -> int | None:
        if self._disk.check("read") == SHORT:
            return super().readinto(memoryview(buffer)[: max(1, len(buffer) // 2)])
        return super().readinto(buffer)

    def write(self, data: Any) -> int:
        if self._disk.check("write") == SHORT:
            return super().write(memoryview(data)[: max(1, len(data) // 2)])
        return super().write(data)

    def close(self) -> None:
        was_open = not self.closed
        super().close()
        if was_open:
            self._disk.check("close")


def _is_ours() -> bool:
    """Whether it is proxy.files that calls, itself or through the standard library."""
    return any("/proxy/files/" in frame.f_code.co_filename for frame in _callers(sys._getframe(2)))


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    for _ in range(6):
        if frame is None:
            return
        yield frame
        frame = frame.f_back
