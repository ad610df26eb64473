"""Google's Artifact Registry: an access token for an hour, by a service account's key or as whoever this machine is."""

import functools
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from proxy.credentials.apart import Apart
from proxy.credentials.base import Credential, CredentialError, Issued

USERNAME = "oauth2accesstoken"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
LIFE = 1800.0  # seconds, of a token that does not say when it ends; Google's are good for an hour
_TIMEOUT = 4.0  # seconds for each request

# By the names of google-auth's exceptions and of their bases; its own texts may repeat what a server said.
_TROUBLES: Mapping[str, str] = {
    "DefaultCredentialsError": "Google: this machine has no credentials: give it a service account, or set key_file",
    "TransportError": "Google: its token service could not be reached: check the network",
    "RefreshError": "Google refuses a token: {subject} was deleted or disabled, or the clock of this machine is wrong",
}


class Google:
    """An access token in place of a password."""

    def __init__(self, key_file: Path | None) -> None:
        """`key_file`: a service account's key, as JSON; without one, Application Default Credentials are found."""
        self._key_file = key_file
        self._apart = Apart("Google")

    async def fetch(self) -> Issued:
        """A new token. Raises CredentialError."""
        return await self._apart.ask(self._ask)

    def _ask(self) -> Issued:
        # Slow to import, and wanted only by those who have such an account.
        import requests  # noqa: PLC0415
        from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415
        from google.auth.transport.requests import Request  # noqa: PLC0415

        try:
            with requests.Session() as session:
                request = functools.partial(Request(session), timeout=_TIMEOUT)
                credentials = self._credentials(request)
                credentials.refresh(request)
        except GoogleAuthError as error:
            raise CredentialError(self._trouble(error)) from None
        return _read(credentials.token, credentials.expiry)

    def _credentials(self, request: Any) -> Any:
        import google.auth  # noqa: PLC0415
        from google.oauth2.service_account import Credentials  # noqa: PLC0415

        if self._key_file is None:
            return google.auth.default(scopes=[SCOPE], request=request)[0]
        try:
            return Credentials.from_service_account_file(str(self._key_file), scopes=[SCOPE])
        except OSError as error:
            raise CredentialError(f"{self._key_file} cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CredentialError(f"{self._key_file} is no key of a service account, as JSON") from None

    def _trouble(self, error: Exception) -> str:
        chain = error.__cause__, error
        kinds = [kind.__name__ for one in chain for kind in type(one).__mro__]
        sentence = next((_TROUBLES[name] for name in kinds if name in _TROUBLES), None)
        subject = "the service account of this machine" if self._key_file is None else f"the key in {self._key_file}"
        return (sentence or f"Google: the question for a token failed ({kinds[0]})").format(subject=subject)


def _read(token: object, expiry: datetime | None) -> Issued:
    if not isinstance(token, str) or not token:
        raise CredentialError("Google answered with no token")
    if expiry is None:
        return Issued(Credential(USERNAME, token), LIFE)
    # google-auth writes the time in UTC, and leaves out that it does.
    return Issued(Credential(USERNAME, token), (expiry.replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds())
