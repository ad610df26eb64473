"""Who may ask: bearer tokens bound to a scope, or plain Basic."""

import base64
import binascii
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from .distribution import address_of
from .reply import Reply, json_reply, oci_error
from .wire import Request

TOKEN_PATH = "/token"
PLACEHOLDER = "repository:user/image:pull"


class Guard(Protocol):
    """Decides who may ask."""

    def refusal(self, request: Request) -> Reply | None: ...


class Open:
    """Everyone may."""

    def refusal(self, request: Request) -> Reply | None:
        """Never refuses."""
        return None


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One request at the token endpoint."""

    request: Request
    service: str | None
    scopes: tuple[str, ...]
    authorization: str | None
    user: str | None
    status: int


@dataclass(frozen=True, slots=True)
class Token:
    """A token handed out."""

    user: str | None
    scopes: frozenset[str]
    until: float


@dataclass(frozen=True, slots=True)
class BearerTerms:
    """How require_bearer was asked to behave."""

    realm: str
    service: str | None
    scope_placeholder: bool
    users: Mapping[str, str]
    expires_in: int | None
    token_key: str
    anonymous: bool
    grants: Mapping[str | None, Collection[str]] | None
    post: bool


@dataclass(slots=True)
class Bearer:
    """A registry that takes tokens, and the endpoint that hands them out."""

    terms: BearerTerms
    clock: Callable[[], float]
    requests: list[TokenRequest] = field(default_factory=list)
    tokens: dict[str, Token] = field(default_factory=dict)

    def refusal(self, request: Request) -> Reply | None:
        """A 401 with a challenge, unless the request carries a live token for its repository."""
        needed = _scope(request)
        given = request.header("Authorization")
        if given is None:
            return self._challenge(needed)
        token = self.tokens.get(given.removeprefix("Bearer "))
        if token is None or token.until <= self.clock():
            return self._challenge(needed, "invalid_token")
        if needed is not None and needed not in token.scopes:
            return self._challenge(needed, "insufficient_scope")
        return None

    def token(self, request: Request) -> Reply:
        """The token endpoint: GET with a query, or POST with a form."""
        if request.method == "POST" and not self.terms.post:
            return oci_error(405, "UNSUPPORTED", "GET only")
        asked = request.form if request.method == "POST" else request.query
        scopes = tuple(one for key, value in asked if key == "scope" for one in value.split())
        fields = dict(asked)
        given = request.header("Authorization")
        user, password = (fields.get("username"), fields.get("password")) if given is None else _basic(given)
        allowed = self.terms.anonymous if user is None else _knows(self.terms.users, user, password)
        status = 200 if allowed else 401
        self.requests.append(TokenRequest(request, fields.get("service"), scopes, given, user, status))
        return self._issue(user, scopes) if allowed else oci_error(401, "UNAUTHORIZED", "incorrect credentials")

    def _issue(self, user: str | None, scopes: tuple[str, ...]) -> Reply:
        text = secrets.token_urlsafe(24)
        lifetime = self.terms.expires_in
        granted = frozenset(scope for scope in scopes if self._grants(user, scope))
        self.tokens[text] = Token(user, granted, self.clock() + (60 if lifetime is None else lifetime))
        expiry = {} if lifetime is None else {"expires_in": lifetime}
        return json_reply({self.terms.token_key: text} | expiry)

    def _grants(self, user: str | None, scope: str) -> bool:
        grants = self.terms.grants
        return grants is None or scope.removeprefix("repository:").removesuffix(":pull") in grants.get(user, ())

    def _challenge(self, needed: str | None, error: str | None = None) -> Reply:
        scope = PLACEHOLDER if self.terms.scope_placeholder else needed
        params = {"realm": self.terms.realm, "service": self.terms.service, "scope": scope, "error": error}
        listed = ",".join(f'{name}="{value}"' for name, value in params.items() if value is not None)
        return oci_error(401, "UNAUTHORIZED", "token please", ("WWW-Authenticate", f"Bearer {listed}"))


@dataclass(frozen=True, slots=True)
class Basic:
    """A registry that takes a user and a password with every request."""

    users: Mapping[str, str]
    realm: str = "fake"

    def refusal(self, request: Request) -> Reply | None:
        """A 401 with a challenge, unless the credentials are right."""
        user, password = _basic(request.header("Authorization") or "")
        if _knows(self.users, user, password):
            return None
        return oci_error(401, "UNAUTHORIZED", "password please", ("WWW-Authenticate", f'Basic realm="{self.realm}"'))


def _scope(request: Request) -> str | None:
    address = address_of(request.decoded_path)
    return None if address is None else f"repository:{address.repo}:pull"


def _knows(users: Mapping[str, str], user: str | None, password: str | None) -> bool:
    return user is not None and user in users and users[user] == password


def _basic(header: str) -> tuple[str | None, str | None]:
    """The user and the password of an Authorization header; an unreadable one names nobody's user."""
    try:
        user, _, password = base64.b64decode(header.removeprefix("Basic "), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", None
    return user, password
