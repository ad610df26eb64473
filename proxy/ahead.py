"""A blob that is uploaded while it is on its way in: what of it has come, and the end once its digest holds."""

from proxy.spool import Spool
from proxy.stores.payloads import Vanished


class Ahead:
    """A spool as an upload sees it: one reader more, who is not given the last byte before it is right either."""

    def __init__(self, spool: Spool, size: int) -> None:
        self._spool = spool
        self.size = size
        spool.join()

    async def there(self, count: int) -> None:
        """Wait until so many bytes have come. Raises Vanished where they will not."""
        if await self._spool.beyond(count - 1) < count:
            raise Vanished

    async def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes at `offset`, which have come. Raises OSError."""
        return await self._spool.read(offset, count)

    def close(self) -> None:
        """It is read no more."""
        self._spool.leave()
