"""A small file that others replace: looked at often, read only when it has changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from proxy.credentials.base import CredentialError
from proxy.files import hop, stamp

T = TypeVar("T")


class Watched(Generic[T]):
    """What `parse` makes of a file. Links are followed each time: Kubernetes replaces a secret by moving one."""

    def __init__(self, path: Path, parse: Callable[[Path], T]) -> None:
        self._path = path
        self._parse = parse
        self._stamp: tuple[int, ...] | None = None
        self._value: T | None = None

    async def look(self) -> T:
        """What is in the file now. Raises CredentialError with what is wrong with it."""
        return await hop(self._look)

    def _look(self) -> T:
        try:
            # Taken before the content: a file that changes in between is read again at the next look.
            found = stamp(self._path)
            if self._value is None or found != self._stamp:
                self._value = self._parse(self._path)
                self._stamp = found
        except OSError as error:
            raise CredentialError(f"{self._path} cannot be read ({error.strerror})") from None
        except ValueError as error:
            raise CredentialError(str(error)) from None
        return self._value
