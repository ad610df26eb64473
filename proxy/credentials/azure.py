"""Azure's container registries: what Entra gives this machine is exchanged for a refresh token for three hours."""

import json
import os
import time
from collections.abc import Iterable
from typing import Any

from yarl import URL

from proxy.credentials.apart import Apart
from proxy.credentials.base import Credential, CredentialError, Issued

USERNAME = "00000000-0000-0000-0000-000000000000"
SCOPE = "https://containerregistry.azure.net/.default"
LIFE = 3600.0  # seconds, of a token that does not say when it ends; they are good for three hours
MAX_ANSWER = 256 * 1024
MAX_TOKEN = 16 * 1024
_TIMEOUTS = (2, 4)  # seconds to connect, and for the answer

# Who knows the identities of registries under these names, where that is not the worldwide service.
_AUTHORITIES = {"azurecr.cn": "login.chinacloudapi.cn", "azurecr.us": "login.microsoftonline.us"}


class Acr:
    """The login of one registry of Azure's."""

    def __init__(self, base: URL, tenant: str | None) -> None:
        """`base`: the registry's URL; `tenant`: the one that the registry belongs to, where there are several."""
        self._base = base
        self._tenant = tenant
        self._apart = Apart("Azure")

    async def fetch(self) -> Issued:
        """A refresh token. Raises CredentialError."""
        return await self._apart.ask(self._ask)

    def _ask(self) -> Issued:
        token = _read(self._exchanged(self._identity()))
        return Issued(Credential(USERNAME, token, is_refresh_token=True), _life(token))

    def _identity(self) -> str:
        """An access token of Entra's, for whom this machine is to it."""
        # Slow to import, and wanted only by those who have such an account.
        from azure.core.exceptions import AzureError  # noqa: PLC0415
        from azure.identity import DefaultAzureCredential  # noqa: PLC0415

        usual = _AUTHORITIES.get((self._base.host or "").partition(".")[2])
        try:
            with DefaultAzureCredential(
                # Azure's own variable, as its library would read it had it nothing else to go by.
                authority=os.environ.get("AZURE_AUTHORITY_HOST") or usual,
                exclude_shared_token_cache_credential=True,
                exclude_visual_studio_code_credential=True,
                exclude_powershell_credential=True,
                exclude_developer_cli_credential=True,
                exclude_broker_credential=True,
            ) as credential:
                return credential.get_token(SCOPE).token
        except (AzureError, ValueError):
            raise CredentialError(
                "Azure gives this machine no token, for the reasons that azure.identity logs: give it a managed or a "
                "workload identity, set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, or az login"
            ) from None

    def _exchanged(self, token: str) -> bytes:
        import requests  # noqa: PLC0415

        form = {"grant_type": "access_token", "service": self._base.authority, "access_token": token}
        if self._tenant is not None:
            form["tenant"] = self._tenant
        try:
            with (
                requests.Session() as session,
                session.post(
                    str(self._base / "oauth2/exchange"),
                    data=form,
                    timeout=_TIMEOUTS,
                    stream=True,
                    allow_redirects=False,  # the token is for this registry
                    auth=_as_it_is,
                ) as answer,
            ):
                self._check(answer.status_code)
                return _limited(answer.iter_content(16 * 1024))
        except requests.RequestException as error:
            kind = type(error).__name__
            raise CredentialError(f"Azure: {self._base.authority} could not be reached ({kind})") from None

    def _check(self, status: int) -> None:
        where = f"{self._base.authority}/oauth2/exchange"
        if status in {401, 403}:
            raise CredentialError(
                f"Azure: {where} refuses this machine's identity ({status}): give it the role AcrPull, and check tenant"
            )
        if status != 200:
            raise CredentialError(f"Azure: {where} answered {status}: is it a registry of Azure's?")


def _as_it_is(request: Any) -> Any:
    """In place of a user and a password, which requests would else look for in ~/.netrc."""
    return request


def _limited(pieces: Iterable[bytes]) -> bytes:
    body = b""
    for piece in pieces:
        body += piece
        if len(body) > MAX_ANSWER:
            raise CredentialError("Azure: the registry's answer is too long to hold a token")
    return body


def _read(body: bytes) -> str:
    try:
        token = json.loads(body)["refresh_token"]
    except (ValueError, TypeError, LookupError, RecursionError):
        token = None
    if not isinstance(token, str) or not 0 < len(token) <= MAX_TOKEN or not (token.isascii() and token.isprintable()):
        raise CredentialError("Azure: the registry answered with no refresh token: is it a registry of Azure's?")
    return token


def _life(token: str) -> float:
    """Seconds until a token ends by its own word. It is for the registry alone, which verifies it; we only read."""
    import jwt  # noqa: PLC0415

    try:
        end = jwt.decode(token, options={"verify_signature": False})["exp"]
        return float(end) - time.time()
    except (jwt.InvalidTokenError, KeyError, TypeError, ValueError, OverflowError):
        return LIFE
