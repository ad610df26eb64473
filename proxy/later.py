"""What the disk would not take, to be tried again when it may."""

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from cachetools import FIFOCache

K = TypeVar("K", bound=Hashable)


class Later(Generic[K]):
    """The keys of what is to be written again, up to `most` of them: the oldest is forgotten first."""

    def __init__(self, most: int) -> None:
        self._keys: FIFOCache[K, None] = FIFOCache(most)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def add(self, key: K) -> None:
        """Have it written later."""
        self._keys[key] = None

    def discard(self, key: K) -> None:
        """It is written."""
        self._keys.pop(key, None)

    def clear(self) -> None:
        """Nothing of it is to be written any more."""
        self._keys.clear()

    async def again(self, write: Callable[[K], Awaitable[None]]) -> None:
        """Write each of them, until one fails: that comes last the next time. Raises OSError."""
        for _ in range(len(self._keys)):
            key = next(iter(self._keys), None)
            if key is None:
                return
            self.discard(key)
            try:
                await write(key)
            except OSError:
                self.add(key)
                raise
