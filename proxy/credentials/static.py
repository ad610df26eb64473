"""A user name with its password, given by the environment or by a file."""

from pathlib import Path

from proxy.config import read_secret
from proxy.credentials.base import Credential, CredentialError, Issued
from proxy.credentials.watched import Watched


class Given:
    """A password that was there when the program began, and stays what it is."""

    def __init__(self, username: str, password: str) -> None:
        self._username = username
        self._password = password

    async def fetch(self) -> Issued:
        """The one there is. Raises CredentialError if it cannot be sent."""
        return Issued(Credential(self._username, self._password))


class InFile:
    """A password in a file, read again when the file changes."""

    def __init__(self, username: str, file: Path, first: str | None = None) -> None:
        """`first`: what was in the file when the program began, for when it is gone by the first question."""
        self._username = username
        self._first = first
        self._file = Watched(file, read_secret)

    async def fetch(self) -> Issued:
        """What the file holds now. Raises CredentialError if it holds nothing: what it held before stays good."""
        first, self._first = self._first, None
        try:
            password = await self._file.look()
        except CredentialError:
            if first is None:
                raise
            password = first  # the next look says what is wrong
        return Issued(Credential(self._username, password))
