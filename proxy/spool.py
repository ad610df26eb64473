"""A blob on its way in: one writer, any readers, each with its own offset, none faster than the bytes are known."""

import asyncio
import enum

from proxy.files import Extent, Handle
from proxy.oci.digest import Digest, Hasher
from proxy.oci.errors import OciError, Problem

STRETCH = 4 * 1024 * 1024  # bytes more after which readers are told of them at once ...
PAUSE = 0.01  # ... or seconds after which they are told of fewer: each has to be woken, and to send what there is


class End(enum.Enum):
    """How a fill ended."""

    VERIFIED = enum.auto()  # the digest holds: every byte may be sent
    FAILED = enum.auto()  # the bytes, or upstream, are no good: close short
    UNCACHED = enum.auto()  # the disk would not take it: go on from upstream directly


class Spool:
    """What the readers of a fill see of it, whether this process writes the file or another one does.

    Its states, in order: *opening* (no size, no file), *open* (upstream has answered; bytes come), *right* (the digest
    holds; the disk may yet fail), *ended*.
    """

    def __init__(self, digest: Digest) -> None:
        self.digest = digest
        self.size: int | None = None  # bytes in all, if known
        self.watermark = 0  # bytes that are in the file
        self.is_right = False  # the digest holds: what is left is to make the disk keep it
        self.end: End | None = None
        self.error: OciError | None = None
        self.hasher: Hasher | None = None  # the state at the watermark, once UNCACHED
        self.is_trusted = True
        self._handle: Handle | None = None
        self._readers = 0
        self._told = 0  # bytes, of the watermark when the readers were last told
        self._telling: asyncio.TimerHandle | None = None  # that they will be
        self._opened = False
        self._changed = asyncio.Event()

    @property
    def readable(self) -> int:
        """How many bytes may be sent: the last one is withheld until the digest holds.

        That is the last one of what has come, and the last one of what readers were told there is, should they differ.
        """
        if self.end is End.VERIFIED or (self.is_right and self.end is None):
            return self.watermark
        return max(0, min(self.watermark, self.watermark if self.size is None else self.size) - 1)

    @property
    def is_over(self) -> bool:
        """Whether no byte more will come."""
        return self.is_right or self.end is not None

    @property
    def is_open(self) -> bool:
        """Whether upstream has said that there is such a blob."""
        return self._opened

    def open(self, handle: Handle, size: int | None, *, is_trusted: bool = True) -> None:
        """Upstream has answered: readers may start. `handle` is the growing file; the spool keeps one of its own.

        `is_trusted`: its bytes come from upstream, who may send parts that nobody can verify.
        """
        self._handle = handle.duplicate()
        self.is_trusted = is_trusted
        self.size = size
        self._opened = True
        self._announce()

    def advance(self, watermark: int) -> None:
        """The file has grown to `watermark` bytes. Readers hear of the first at once, then of a stretch, or in time."""
        self.watermark = watermark
        if not self._told or watermark - self._told >= STRETCH:
            self._announce()
        elif self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(PAUSE, self._announce)

    def vouch(self) -> None:
        """The digest holds: no reader waits for the disk. Not so if the readers were told of another size."""
        if self.end is None and self.size in {None, self.watermark}:
            self.size, self.is_right = self.watermark, True
            self._announce()

    def finish(self, end: End, error: OciError | None = None, hasher: Hasher | None = None) -> None:
        """Nothing more will come. The first word counts."""
        if self.end is not None:
            return
        if end is End.VERIFIED and self.size not in {None, self.watermark}:
            # Verified, but not what the readers were told: a body of that length must not look complete.
            end, error = End.FAILED, OciError(Problem.UPSTREAM_INVALID, "the blob has another size than was said")
        self.end, self.error, self.hasher = end, error, hasher
        if end is End.VERIFIED:
            self.size = self.watermark
        self._announce()
        self._close_if_done()

    def _announce(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        self._told = self.watermark
        self._changed.set()
        self._changed = asyncio.Event()

    def _close_if_done(self) -> None:
        if self._handle is not None and self.end is not None and not self._readers:
            self._handle.close()
            self._handle = None

    # For readers

    def join(self) -> None:
        """Keep the file open until leave(): before the first wait, so that it cannot go in between."""
        self._readers += 1

    def leave(self) -> None:
        """One reader less."""
        self._readers -= 1
        self._close_if_done()

    async def opened(self) -> None:
        """Wait until upstream has answered. Raises the OciError of a fill that failed before."""
        while not self._opened and self.end is None:
            await self._changed.wait()
        if not self._opened and self.error is not None:
            raise self.error

    async def ended(self) -> None:
        """Wait until it is known what becomes of it, on disk as well."""
        while self.end is None:
            await self._changed.wait()

    async def judged(self) -> None:
        """Wait until nothing more will come."""
        while not self.is_over:
            await self._changed.wait()

    async def beyond(self, offset: int) -> int:
        """Wait until there is a readable byte at `offset`, or no more to come; returns `readable`."""
        while self.readable <= offset and not self.is_over:
            await self._changed.wait()
        return self.readable

    def extent(self, offset: int, count: int) -> Extent:
        """`count` bytes at `offset`, all of them below `readable`."""
        if self._handle is None:
            raise ValueError("the spool has no file")
        return Extent(self._handle, offset, count, grows=self.end is None)

    async def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes at `offset`, which must be below `readable`."""
        if self._handle is None:
            raise ValueError("the spool has no file")
        return await self._handle.read(offset, count)
