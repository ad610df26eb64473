"""The room that one fill has set aside: grown as bytes come, given back or settled at the end."""

import asyncio
from types import TracebackType
from typing import Self

from proxy.eviction import Space
from proxy.stores.ledger import rounded


class Reservation:
    """Bytes set aside for one fill; what of them is not settled is given back on leaving."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._settled = False
        self.size = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._settled:
            await asyncio.shield(self.settle(0))

    async def found(self, size: int) -> None:
        """There are `size` bytes of an earlier download already: what is locked counts no more by itself.

        Raises OSError.
        """
        await self._space.take_over(rounded(size))
        self.size += rounded(size)

    def check(self, size: int) -> None:
        """Raise NoSpace for what would not fit if there was nothing else; nothing is set aside, and nothing dropped."""
        self._space.check(size)

    async def grow(self, size: int) -> None:
        """Make sure that at least `size` bytes in all are set aside. Raises NoSpace, OSError."""
        more = rounded(size) - self.size
        if more > 0:
            await self._space.change(more, 0)
            self.size += more

    async def settle(self, size: int) -> None:
        """It is over, and `size` bytes of it are a blob now."""
        reserved, self.size, self._settled = self.size, 0, True
        if reserved or size:
            await self._space.change(-reserved, rounded(size))
