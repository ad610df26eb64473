"""What every source of credentials gives, and what it may raise."""

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name and its secret; with `is_refresh_token` the secret is an OAuth2 refresh token and no password."""

    username: str
    secret: str = field(repr=False)
    is_refresh_token: bool = False

    def __post_init__(self) -> None:
        """Raises CredentialError."""
        try:
            f"{self.username}{self.secret}".encode()
        except UnicodeEncodeError:
            raise CredentialError("the user name or the password is not UTF-8: see how it was written") from None


@dataclass(frozen=True, slots=True)
class Issued:
    """A credential as its source gives it, and for how long it is good from now (seconds; None: until it changes)."""

    credential: Credential
    life: float | None = None


class CredentialError(Exception):
    """A source has no credential to give: one sentence that says what is wrong and what would help, no secret in it."""


class Source(Protocol):
    """Where the credential of one account comes from."""

    async def fetch(self) -> Issued:
        """Ask for the credential. Nothing of it may block the event loop. Raises CredentialError."""
