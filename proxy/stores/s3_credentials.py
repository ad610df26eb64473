"""What this machine is known by to a bucket: its AWS credentials, found without holding up the event loop."""

import asyncio
import math
import time

from aiobotocore.credentials import AioCredentials
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import NoCredentialsError
from botocore.session import Session

from proxy import daemon
from proxy.single_flight import SingleFlight

KEYS_LIFE = 60.0  # seconds for which the machine's credentials are used before their source is asked again


class Keys(AioCredentials):  # type: ignore[misc]  # aiobotocore has no types
    """The machine's AWS credentials by the standard chain, which reads files and asks services: in a thread."""

    def __init__(self, session: Session) -> None:
        super().__init__("", "")
        self._session = session
        self._asked = -math.inf
        self._known: ReadOnlyCredentials | None = None
        self._flight: SingleFlight[str, ReadOnlyCredentials] = SingleFlight()

    async def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """Those of now. Raises NoCredentialsError."""
        if self._known is None or time.monotonic() - self._asked > KEYS_LIFE:
            self._known = await self._flight.run("keys", self._ask)
        return self._known

    async def _ask(self) -> ReadOnlyCredentials:
        known = await asyncio.wrap_future(daemon.start(self._chain, "ask AWS for credentials"))
        self._asked = time.monotonic()
        return known

    def _chain(self) -> ReadOnlyCredentials:
        found = self._session.get_credentials()  # it keeps them, and renews them when they are about to expire
        if found is None:
            raise NoCredentialsError
        return found.get_frozen_credentials()
