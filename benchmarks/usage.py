"""What processes use: of memory and of processors' time, by /proc."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds
PROC = Path("/proc")


def tree(pid: int) -> list[int]:
    """A process and all that came of it and still live."""
    found = [pid]
    for one in found:
        for children in (PROC / str(one) / "task").glob("*/children"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += [int(child) for child in children.read_text().split()]
    return found


def peak(pid: int) -> int:
    """The most memory that each process of a tree has had, added up, in bytes; what they share counts for each."""
    return sum(_read(one, "status", _high_water) for one in tree(pid))


def proportional(pid: int) -> int:
    """The memory that a tree has now, in bytes; of what several processes share, each has its share."""
    return sum(_read(one, "smaps_rollup", _share) for one in tree(pid))


def threads(pid: int) -> int:
    """How many threads a tree has now."""
    return sum(_read(one, "status", _threads) for one in tree(pid))


def cpu(pid: int) -> float:
    """Seconds of processors' time that a tree has used, all threads and what has ended of it included."""
    return sum(_read(one, "stat", _ticks) for one in tree(pid)) * TICK


def machine_cpu() -> float:
    """Seconds of processors' time that the whole machine has used since it started, the kernel's included."""
    user, nice, system, _idle, _iowait, irq, softirq = (PROC / "stat").read_text().split()[1:8]
    return sum(map(int, (user, nice, system, irq, softirq))) * TICK


class Usage:
    """What a place and the whole machine used in a block of code; seconds."""

    def __init__(self) -> None:
        self.cpu = 0.0
        self.machine = 0.0


@contextlib.contextmanager
def used(pid: int | None) -> Iterator[Usage]:
    """Measure a block; `cpu` stays 0 without a process."""
    usage = Usage()
    own, whole = 0.0 if pid is None else cpu(pid), machine_cpu()
    yield usage
    usage.machine = machine_cpu() - whole
    usage.cpu = 0.0 if pid is None else cpu(pid) - own


def _read(pid: int, name: str, parse: Callable[[str], int]) -> int:
    try:
        return parse((PROC / str(pid) / name).read_text())
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0


def _high_water(status: str) -> int:
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 if "VmHWM:" in status else 0  # a zombie has none


def _share(rollup: str) -> int:
    return int(rollup.partition("\nPss:")[2].split()[0]) * 1024 if "\nPss:" in rollup else 0


def _threads(status: str) -> int:
    return int(status.partition("\nThreads:")[2].split()[0])


def _ticks(stat: str) -> int:
    """User's and system's time, its own and that of the children that it has waited for."""
    return sum(map(int, stat.rpartition(")")[2].split()[11:15]))
