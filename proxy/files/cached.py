"""What can be done of a file without a thread, since the kernel has in memory what it takes.

A file is opened where it has the way to it (openat2(2) with RESOLVE_CACHED), and is known to be in memory where it has
all of its pages (cachestat(2)). Waking a thread costs a hundred times what opening takes, and more than a MiB does to
send. Python has no such calls, so they are made by their numbers, which are the same everywhere but on MIPS and Alpha.
A kernel or a container that does not know them refuses, and threads do it as ever.
"""

import ctypes
import errno
import os

OPENAT2 = 437  # since Linux 5.6
CACHESTAT = 451  # since Linux 6.5
PAGE = os.sysconf("SC_PAGE_SIZE")
STEP = 64 * 1024  # bytes of a file of which one is looked at
NO_XDEV, NO_SYMLINKS, BENEATH, CACHED = 0x01, 0x04, 0x08, 0x20  # RESOLVE_*, the last since Linux 5.12


class How(ctypes.Structure):
    """The kernel's struct open_how."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


# What is mounted further down may be a file system of another kind, of which `tells` has said nothing.
TO_READ = How(os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0, NO_XDEV | NO_SYMLINKS | BENEATH | CACHED)
_syscall = ctypes.PyDLL(None).syscall  # which keeps the interpreter's lock: it is not gone for long
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class Range(ctypes.Structure):
    """The kernel's struct cachestat_range, in bytes."""

    _fields_ = (("offset", ctypes.c_uint64), ("count", ctypes.c_uint64))


class Found(ctypes.Structure):
    """The kernel's struct cachestat, in pages."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cached", "dirty", "written", "evicted", "recently_evicted"))


def open_below(root: int, key: str) -> int | None:
    """A descriptor to read what is at a key below an open directory, by no link; None for whatever reason not now."""
    fd: int = _syscall(OPENAT2, root, os.fsencode(key), ctypes.addressof(TO_READ), ctypes.sizeof(TO_READ))
    return None if fd < 0 else fd


def tells(fd: int) -> bool:
    """Whether the file system of an open file can tell what it has in memory; blocking.

    One that cannot, as over a network, may wait for others to open a file, though the way to it is known.
    """
    try:
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return True


def is_in_memory(fd: int, offset: int, count: int) -> bool:
    """Whether so many bytes of an open file are, so that to send them waits for no disk; False where nobody can tell.

    A page counts as soon as there is one, though it may be on its way from the disk, or lost by it: a byte of each
    `STEP`, and the last, tell. What is less than that between two that are there is not seen.
    """
    found = Found()
    if _syscall(CACHESTAT, fd, ctypes.byref(Range(offset, count)), ctypes.byref(found), 0) < 0:
        return False
    if found.cached <= (offset + count - 1) // PAGE - offset // PAGE:
        return False
    byte = [bytearray(1)]
    try:
        looks = (*range(offset, offset + count, STEP), offset + count - 1)
        return all(os.preadv(fd, byte, at, os.RWF_NOWAIT) == 1 for at in looks)
    except OSError:  # some is on its way, the file system cannot tell, or it cannot be read, which sending will say
        return False
