"""How many bytes all blobs take: a small file for all processes, told by whoever adds to them or takes some out.

Everything blocks, and raises OSError.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from proxy.files import Tree, is_number, read_number, write_number

DIRECTORY = "ledger"
KEY = f"{DIRECTORY}/stored"
_STORED, _CAME = 0, 1  # which number in the file is which
_ROUND = 4096  # bytes: files take whole blocks


@dataclass(frozen=True, slots=True)
class Ledger:
    """The file, while its lock is held."""

    fd: int

    @property
    def is_known(self) -> bool:
        """Whether there is a sum, or it is lost."""
        return is_number(self.fd)

    @property
    def stored(self) -> int:
        """The sum, in bytes."""
        return read_number(self.fd, _STORED)

    @property
    def came(self) -> int:
        """Bytes that were ever added: between two moments this tells what has come, whatever else has gone."""
        return read_number(self.fd, _CAME)

    def change(self, size: int) -> None:
        """So many bytes have come, or gone. Where the sum is lost, they are counted with all the rest."""
        if size > 0:
            write_number(self.fd, self.came + size, _CAME)
        if size and self.is_known:
            self.correct(self.stored + size)

    def correct(self, total: int) -> None:
        """All blobs take so many bytes, whatever it said."""
        write_number(self.fd, total, _STORED)


@contextlib.contextmanager
def opened(tree: Tree) -> Iterator[Ledger]:
    """The ledger, locked against everybody else: nobody holds it for long."""
    with tree.locked(KEY) as fd:
        yield Ledger(fd)


@contextlib.contextmanager
def taking_out(tree: Tree) -> Iterator[list[int]]:
    """Takes the sizes (bytes) of the blobs that go within the block: they are stored no more.

    The lock is held meanwhile: a look that ended between a blob and its note would have it taken off twice. Where it
    cannot be noted, the blobs go all the same, and the sum is too large until the next look.
    """
    gone: list[int] = []
    with contextlib.ExitStack() as stack:
        ledger: Ledger | None = None
        with contextlib.suppress(OSError):
            ledger = stack.enter_context(opened(tree))
        yield gone
        with contextlib.suppress(OSError):
            if ledger is not None:
                ledger.change(-sum(map(rounded, gone)))


def rounded(size: int) -> int:
    """The bytes that a file of this size takes on the disk, as they are counted."""
    return -(-size // _ROUND) * _ROUND
