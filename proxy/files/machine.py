"""What the machine says of itself, and how not to take all of it."""

import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from proxy.files.calls import hop

T = TypeVar("T")

BREATH = 256  # items between pauses where there may be a million


def raise_descriptor_limit() -> tuple[int, int]:
    """Raise the soft limit of open files to the hard one. Returns (what it was, what it is)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft, hard


def processors() -> int:
    """How many of them this process may run on."""
    return len(os.sched_getaffinity(0))


def boot() -> bytes:
    """What tells this boot of this machine from every other; blocking. Raises OSError."""
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return file.read().strip()


async def count_descriptors() -> int:
    """How many descriptors this process has open."""
    return await hop(lambda: len(os.listdir("/proc/self/fd")))


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


def unhurried(items: Iterable[T], idle: Callable[[], float]) -> Iterator[T]:
    """Hand on many items, and rest in short pauses `idle()` times as long as that took: others want the machine too."""
    began = time.monotonic()
    for number, item in enumerate(items):
        if number % BREATH == 0:
            time.sleep(idle() * (time.monotonic() - began))
            began = time.monotonic()
        yield item
