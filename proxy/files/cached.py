"""A file opened without a thread, where the kernel has the way to it in memory: openat2(2) with RESOLVE_CACHED.

Waking a thread costs a hundred times what opening takes. Python has no such call, so it is made by its number, which is
the same everywhere but on MIPS and Alpha. A kernel or a container that does not know it refuses, and threads do it as
ever.
"""

import ctypes
import errno
import os

NUMBER = 437  # of openat2, since Linux 5.6
NO_XDEV, NO_SYMLINKS, BENEATH, CACHED = 0x01, 0x04, 0x08, 0x20  # RESOLVE_*, the last since Linux 5.12


class How(ctypes.Structure):
    """The kernel's struct open_how."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


# What is mounted further down may be a file system of another kind, of which `tells` has said nothing.
TO_READ = How(os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0, NO_XDEV | NO_SYMLINKS | BENEATH | CACHED)
_syscall = ctypes.PyDLL(None).syscall  # which keeps the interpreter's lock: it is not gone for long
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)


def open_below(root: int, key: str) -> int | None:
    """A descriptor to read what is at a key below an open directory, by no link; None for whatever reason not now."""
    fd: int = _syscall(NUMBER, root, os.fsencode(key), ctypes.addressof(TO_READ), ctypes.sizeof(TO_READ))
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
