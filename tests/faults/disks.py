"""File systems in loop images, which can be made read-only, filled, and cut off from power."""

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN: what is not on the disk by now never will be
NO_LOG_FLUSH = 2  # ... nor what is in the journal's memory
SIZE = 320 * 1024 * 1024  # bytes; XFS makes no smaller one
MAKE = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f")}


def what_is_missing() -> str | None:
    """Why loop images cannot be mounted here, if so."""
    if os.geteuid():
        return "only root can mount a loop image"
    missing = [command[0] for command in MAKE.values() if shutil.which(command[0]) is None]
    if missing:
        return f"{', '.join(missing)} not found: .ci/install-clients"
    return None if Path("/dev/loop-control").exists() else "no loop devices"


@dataclass(frozen=True, slots=True)
class LoopDisk:
    """One file system, mounted at `place`. Everything blocks."""

    image: Path
    place: Path

    @property
    def store(self) -> Path:
        """Where a cache may be kept on it."""
        return self.place / "cache"

    def mount(self) -> None:
        """As the machine does that comes up again: the journal is replayed."""
        _run("mount", "-o", "loop", str(self.image), str(self.place))

    def unmount(self) -> None:
        """Nobody may have a file open."""
        _run("umount", str(self.place))

    def remount(self, option: str) -> None:
        """`ro` or `rw`."""
        _run("mount", "-o", f"remount,{option}", str(self.place))

    def cut(self) -> None:
        """Let nothing more reach the disk, as when the power goes."""
        fd = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def filled(self) -> Iterator[None]:
        """To the last byte, by somebody else."""
        other = self.place / "other"
        with contextlib.suppress(OSError), other.open("wb", buffering=0) as file:
            while file.write(bytes(1024 * 1024)):
                pass
        try:
            yield
        finally:
            other.unlink()


@contextlib.contextmanager
def loop_disk(kind: str, folder: Path) -> Iterator[LoopDisk]:
    """A new file system, gone on leaving."""
    disk = LoopDisk(folder / "image", folder / "mounted")
    with disk.image.open("wb") as file:
        file.truncate(SIZE)
    _run(*MAKE[kind], str(disk.image))
    disk.place.mkdir()
    disk.mount()
    try:
        yield disk
    finally:
        if os.path.ismount(disk.place):
            _run("umount", "--lazy", str(disk.place))
        disk.image.unlink()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
