"""Which stored files this process has read through, not long ago, and found right."""

from cachetools import TTLCache

from proxy import files
from proxy.files import Handle, hop
from proxy.oci.digest import Digest
from proxy.single_flight import SingleFlight

KNOWN = 65536  # files that are known to be right ...
LIFE = 3600.0  # ... for so many seconds: a disk changes bytes without changing anything else

# A file by its device and number, and its digest, since a number is used again. Times would tell no more: each use of a
# blob changes them.
Identity = tuple[Digest, int, int, int]


class Vouching:
    """Reads whole files, each once for all who ask at the same time."""

    def __init__(self) -> None:
        self._known: TTLCache[Identity, bool] = TTLCache(KNOWN, LIFE)
        self._flights: SingleFlight[Identity, bool] = SingleFlight()

    async def holds(self, digest: Digest, handle: Handle) -> bool:
        """Whether a file has the bytes of its digest. Goes on without its caller. Raises OSError."""
        identity = (digest, *await hop(files.identity, handle.fd))
        if identity in self._known:
            return True
        return await self._flights.run(identity, lambda: self._read(identity, handle.duplicate()))

    async def _read(self, identity: Identity, handle: Handle) -> bool:
        digest = identity[0]
        hasher, offset = digest.hasher(), 0
        try:
            while data := await files.read_hashed(handle, offset, files.PIECE, hasher):
                offset += len(data)
        finally:
            handle.close()
        if not digest.matches(hasher):
            return False
        self._known[identity] = True
        return True

    async def aclose(self) -> None:
        """Give up what is being read."""
        await self._flights.aclose()
