"""Tar archives on a stream, front to back: what a bundle is made of, and read from."""

from collections.abc import AsyncGenerator

from proxy.files import Stream
from proxy.oci import tar
from proxy.oci.digest import Hasher
from proxy.oci.tar import BLOCK, Member, TarInvalid

MOST_MEMBERS = 250_000  # of an archive that is read: their names are remembered, so that none comes twice
_PACKED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\x28\xb5": "zstd", b"\xfd7": "xz"}


class Writer:
    """Writes an archive. Raises Unusable."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._left = 0

    async def begin(self, path: str, size: int) -> None:
        """The next file, all of whose bytes come by write()."""
        self._left = size
        await self._stream.write(tar.header(path, size))

    async def write(self, data: bytes, hasher: Hasher | None = None) -> None:
        """Some of its bytes, hashed on the way."""
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("more bytes than the header says")
        await self._stream.write(data, hasher)

    async def finish(self, size: int) -> None:
        """It was that long: fill its last block."""
        if self._left:
            raise ValueError("fewer bytes than the header says")
        await self._stream.write(bytes(tar.padding(size)))

    async def add(self, path: str, body: bytes) -> None:
        """A small file."""
        await self.begin(path, len(body))
        await self.write(body)
        await self.finish(len(body))

    async def end(self) -> None:
        """No more files."""
        await self._stream.write(tar.END)


class Reader:
    """Reads an archive that somebody made: each file once, and none of them twice. Raises Unusable, TarInvalid."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._left = 0
        self.done = 0  # bytes of the stream that have been read

    async def members(self) -> AsyncGenerator[Member]:
        """The files, in the order in which they come; what is not read() of one is passed over."""
        seen: set[str] = set()
        while (found := await self._next()) is not None:
            if not found.is_file:
                continue
            if found.path in seen:
                raise TarInvalid(f"{found.path!a} is in it twice")
            if len(seen) == MOST_MEMBERS:
                raise TarInvalid(f"it has more than {MOST_MEMBERS} files")
            seen.add(found.path)
            self._left = found.size
            yield found
            await self._pass(self._left + tar.padding(found.size))

    async def read(self, count: int) -> bytes:
        """Up to `count` bytes of the file that members() is at; fewer only at its end."""
        data = await self._take(min(count, self._left))
        self._left -= len(data)
        return data

    async def _take(self, count: int) -> bytes:
        data = await self._stream.read(count) if count else b""
        self.done += len(data)
        if len(data) < count:
            raise TarInvalid("it is cut off")
        return data

    async def _pass(self, count: int) -> None:
        skipped = await self._stream.skip(count)
        self.done += skipped
        if skipped < count:
            raise TarInvalid("it is cut off")

    async def _next(self) -> Member | None:
        said: dict[str, str] = {}
        for _ in range(tar.MOST_EXTENDED + 1):
            block = await self._take(BLOCK)
            if self.done == BLOCK and block[:2] in _PACKED:
                raise TarInvalid(f"it is packed by {_PACKED[block[:2]]}: unpack it on the way, and import from -")
            head = tar.parse(block)
            if head is None:
                return None
            if not head.extends:
                return tar.member(head, said)
            said |= tar.extended(head, await self._take(head.size))
            await self._pass(tar.padding(head.size))
        raise TarInvalid("it has a file with too many extended headers")
