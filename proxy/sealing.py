"""Stretches of files on their way to clients over TLS, encrypted by the thread that sends them.

Who has the session lends it for that time. Encrypted is a piece at a time, and sent before the next one.
"""

import contextlib
import os
import ssl
from collections.abc import Iterator, Sequence
from typing import Protocol

from proxy.files import Outlet

RECORD = 16 * 1024  # bytes of plaintext that one record has at most (RFC 8446, 5.1)
SLICE = 8 * RECORD  # bytes encrypted at a time: OpenSSL's buffer stays as big as it once was, as long as the connection


class Lender(Protocol):
    """Who has a session."""

    def lend(self) -> None:
        """Let a thread use it, and nobody else."""

    def take_back(self, left: bytes) -> None:
        """Use it again. What the thread has encrypted and the client not taken comes first."""


class Sealed(Outlet):
    """Sends stretches of files encrypted. Not more than one piece is encrypted before the client has taken it."""

    def __init__(self, descriptor: int, session: ssl.SSLObject, sealed: ssl.MemoryBIO, lender: Lender) -> None:
        super().__init__(descriptor)
        self._lender = lender
        self._session = session
        self._sealed = sealed
        self._left: list[memoryview] = []

    def push(self, source: int, offset: int, count: int, room: memoryview) -> int:
        """Encrypt and send what comes next; returns how many bytes of the file it was.

        Raises BlockingIOError where the client takes nothing, ConnectionError, OSError of the file.
        """
        self._flush()
        done = 0
        while done < count and not self._left:
            if not (sealed := self._seal(source, offset + done, min(len(room), count - done), room[:SLICE])):
                break
            done += sealed
            with contextlib.suppress(BlockingIOError):
                self._flush()
        return done

    def _seal(self, source: int, offset: int, count: int, room: memoryview) -> int:
        """Read a slice and encrypt it before the next is read: it is in the processor's cache still."""
        done = 0
        while done < count and (read := os.preadv(source, [room[: count - done]], offset + done)):
            try:
                self._session.write(room[:read])
            except ssl.SSLError as error:  # which is an OSError, but none of the disk
                raise ConnectionResetError(f"TLS failed: {error.reason}") from None
            # Kept at once: whatever happens to the next one, the client has to get what is encrypted.
            self._left.append(memoryview(self._sealed.read()))
            self.sent += read
            done += read
        return done

    def _flush(self) -> None:
        while self._left:
            taken = self.write(self._left)
            self.taken += taken
            self._left = _behind(self._left, taken)

    @property
    def is_empty(self) -> bool:
        """Whether the kernel has all that was encrypted."""
        return not self._left

    def hold_back(self, *, holds: bool) -> None:
        """Nothing: records do not end where segments do, and what is held back waits for a timer."""

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """While a thread may send by it: nobody else encrypts meanwhile."""
        self._lender.lend()
        try:
            yield
        finally:
            left, self._left = b"".join(self._left), []
            self._lender.take_back(left)


def _behind(pieces: Sequence[memoryview], count: int) -> list[memoryview]:
    """What is left of them behind so many bytes."""
    for number, piece in enumerate(pieces):
        if count < len(piece):
            return [piece[count:], *pieces[number + 1 :]]
        count -= len(piece)
    return []
