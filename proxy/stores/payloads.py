"""What is uploaded to a bucket: files, and what is still on its way into one."""

from dataclasses import dataclass
from typing import Protocol

from proxy.files import Handle


class Vanished(Exception):
    """What was being uploaded while it came will not come to its end."""


class Payload(Protocol):
    """What is to be uploaded: so many bytes, all of which are there, or come."""

    @property
    def size(self) -> int: ...
    async def there(self, count: int) -> None:
        """Wait until the first `count` bytes are there, and if that is all of them, right. Raises Vanished."""

    async def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes at `offset`. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A file that is there."""

    handle: Handle

    @property
    def size(self) -> int:
        return self.handle.size

    async def there(self, count: int) -> None:
        """It is."""

    async def read(self, offset: int, count: int) -> bytes:
        return await self.handle.read(offset, count)
