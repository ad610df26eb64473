"""The logins that Docker keeps: in its config.json, or in the keychains behind its helpers."""

from pathlib import Path

from proxy.credentials import helper
from proxy.credentials.base import CredentialError, Issued
from proxy.credentials.docker_config import Login, find, read
from proxy.credentials.watched import Watched


class DockerLogin:
    """What `docker login` would use for one registry, which goes by several names."""

    def __init__(self, file: Path, names: tuple[str, ...]) -> None:
        self._path = file
        self._names = names
        self._file = Watched(file, read)

    async def fetch(self) -> Issued:
        """The login of now: the file is read again when it has changed, helpers are asked. Raises CredentialError."""
        login = await self._login()
        if login.helper is not None:
            for server in login.helper.servers:
                credential = await helper.ask(login.helper.name, server)
                if credential is not None:
                    return Issued(credential, helper.LIFE)
        if login.credential is None:
            raise CredentialError(f"{self._path} has no login for {self._names[0]}: docker login {self._names[0]}")
        return Issued(login.credential, None if login.helper is None else helper.LIFE)

    async def _login(self) -> Login:
        config = await self._file.look()
        try:
            return find(config, self._names)
        except CredentialError as error:
            raise CredentialError(f"{self._path}: {error}") from None
