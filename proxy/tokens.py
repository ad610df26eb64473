"""Credentials and bearer tokens of one upstream: asked for once, renewed before they expire, sent where allowed."""

import asyncio
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from cachetools import LRUCache, TTLCache
from yarl import URL

from proxy.credentials.base import Credential, CredentialError
from proxy.credentials.refreshing import Refreshing
from proxy.egress import Egress, read_limited
from proxy.oci.challenge import Challenge, basic
from proxy.oci.errors import OciError, Problem
from proxy.oci.reference import Repository
from proxy.oci.retry import retry_after
from proxy.single_flight import SingleFlight

MAX_ANSWER = 256 * 1024  # bytes of a token endpoint's answer
MAX_TOKEN = 16 * 1024
MAX_TOKENS = 4096  # tokens, and repositories' challenges, remembered per upstream
DEFAULT_LIFE = 60.0  # seconds, when the endpoint does not say (the token specification's default)
LONGEST_LIFE = 3600.0
_REFUSED = frozenset({400, 401, 403})  # a 404 says that it is no token service
REFUSAL_LIFE = 5.0  # seconds that a refusal stands, as a 404 does
MARGIN = 0.1  # of its life, before the end of which a token is no longer used


@dataclass(frozen=True, slots=True)
class Key:
    """What a token was issued for, and to whom it goes; the credential is a keyed fingerprint, never itself."""

    upstream: str
    asking: str  # the origin that wants the token: what one was given for is nothing for another
    credential: str
    realm: str
    service: str
    scope: str


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token, and until when (monotonic seconds) it may be used."""

    value: str
    until: float


class Tokens:
    """The Authorization header for each request of one account to one upstream. `credential`: None for anonymous."""

    def __init__(
        self, registry: str, realm_hosts: Sequence[str], egress: Egress, credential: Refreshing | None, label: str
    ) -> None:
        self._registry = registry
        self._egress = egress
        self._realm_hosts = realm_hosts
        self._credential = credential
        self._label = label
        self._secret = secrets.token_bytes(32)
        self._tokens: LRUCache[Key, Token] = LRUCache(MAX_TOKENS)
        self._refusals: TTLCache[Key, str] = TTLCache(MAX_TOKENS, REFUSAL_LIFE)
        self._challenges: LRUCache[Repository, Challenge] = LRUCache(MAX_TOKENS)
        self._usual: Challenge | None = None
        self._flights: SingleFlight[Key, str] = SingleFlight()

    async def aclose(self) -> None:
        """Give up the requests in flight."""
        await self._flights.aclose()
        if self._credential is not None:
            await self._credential.aclose()

    def known(self, repository: Repository) -> Challenge | None:
        """The challenge that has led to something before."""
        return self._challenges.get(repository, self._usual)

    async def authorization(self, repository: Repository) -> str | None:
        """What to send with the first try, going by what this upstream has asked for before. Raises OciError."""
        challenge = self.known(repository)
        if challenge is None:
            return None
        try:
            return await self._answer(repository, challenge)
        except OciError as error:
            if error.problem not in {Problem.DENIED, Problem.UPSTREAM_INVALID}:
                raise
            # What worked once does so no more: without it, the registry will say what it wants now.
            self._challenges.pop(repository, None)
            self._usual = None
            return None

    async def renewed(
        self, repository: Repository, challenges: Sequence[Challenge], rejected: str | None
    ) -> str | None:
        """What to send after a 401 that came with `challenges`; None if that would be no different. Raises OciError."""
        challenge = next((one for one in challenges if one.scheme == "bearer" and one.realm), None)
        if challenge is None and self._credential is not None:
            challenge = next((one for one in challenges if one.scheme == "basic"), None)
        if challenge is None:
            return None
        if challenge.scheme == "basic" and rejected is not None and rejected.startswith("Basic "):
            return await self._other_basic(rejected)
        answer = await self._answer(repository, challenge, rejected)
        self._challenges[repository] = self._usual = challenge  # now that it has led to something
        return None if answer == rejected else answer

    async def login(self, challenges: Sequence[Challenge]) -> str | None:
        """What shows who we are, for no repository at all; None if upstream asks for nothing that we have.

        Raises OciError.
        """
        challenge = next((one for one in challenges if one.scheme == "bearer" and one.realm), None)
        credential = await self._current()
        if challenge is None:
            is_basic = any(one.scheme == "basic" for one in challenges)
            return _basic(credential) if is_basic and credential is not None else None
        origin = self._egress.origin
        return await self._token(self._key(origin, credential, challenge, ""), origin)

    async def introduction(
        self, repository: Repository, challenge: Challenge, origin: URL, rejected: str | None
    ) -> str:
        """A token for a host that upstream redirects to: anonymous, from that host itself. Raises OciError."""
        scope = challenge.scope or _scope(repository)
        return await self._token(self._key(origin, None, challenge, scope), origin, rejected)

    async def _answer(self, repository: Repository, challenge: Challenge, rejected: str | None = None) -> str | None:
        credential = await self._current()
        if challenge.scheme == "basic":
            return None if credential is None else _basic(credential)
        origin = self._egress.origin
        return await self._token(self._key(origin, credential, challenge, _scope(repository)), origin, rejected)

    def _key(self, origin: URL, credential: Credential | None, challenge: Challenge, scope: str) -> Key:
        fingerprint = self._fingerprint(credential)
        return Key(self._registry, str(origin), fingerprint, challenge.realm or "", challenge.service or "", scope)

    async def _token(self, key: Key, origin: URL, rejected: str | None = None) -> str:
        """The token at hand, unless it is the one that was rejected: one that was renewed in the meantime is good.

        Raises OciError DENIED, without asking, for what was refused a moment ago: a request comes here more than once.
        """
        token = self._tokens.get(key)
        if token is not None and time.monotonic() < token.until and rejected != f"Bearer {token.value}":
            return f"Bearer {token.value}"
        refusal = self._refusals.get(key)
        if refusal is not None:
            raise OciError(Problem.DENIED, refusal)
        return f"Bearer {await self._flights.run(key, lambda: self._fetch(key, origin))}"

    async def _current(self) -> Credential | None:
        if self._credential is None:
            return None
        try:
            return await self._credential.current()
        except CredentialError as error:
            raise OciError(
                Problem.CREDENTIALS_MISSING, f"no credential for {self._registry} as {self._label}: {error}"
            ) from None

    async def _other_basic(self, rejected: str) -> str:
        """What to send instead of credentials that the registry itself refused. Raises OciError."""
        other = await self._replaced(rejected)
        if other is None or _basic(other) == rejected:
            raise self.refused(self._registry)
        return _basic(other)

    async def _replaced(self, rejected: str) -> Credential | None:
        """The credential of now: looked up anew if it is still the one that was refused."""
        credential = await self._current()
        if self._credential is None or credential is None or _basic(credential) != rejected:
            return credential
        self._credential.rejected(credential)
        return await self._current()

    def refused(self, who: str) -> OciError:
        """What to say when `who` will not have our credentials."""
        return OciError(
            Problem.CREDENTIALS_REFUSED,
            f"{who} refuses the credentials of {self._registry} as {self._label}: renew them, or see entrepot check",
        )

    def _fingerprint(self, credential: Credential | None) -> str:
        text = "" if credential is None else f"{credential.username}\0{credential.secret}"
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()

    async def _fetch(self, key: Key, origin: URL) -> str:
        realm = self._allowed(key.realm, origin)
        credential = await self._current() if origin == self._egress.origin else None
        received = time.monotonic()
        async with asyncio.timeout(20):
            status, pause, body = await self._ask(realm, key, credential)
            if status == 401 and credential is not None:
                other = await self._replaced(_basic(credential))
                if other is None or other == credential:
                    raise self.refused(f"the token service {realm.host}")
                credential = other
                status, pause, body = await self._ask(realm, key, credential)
        if status != 200:
            refusal = self._refusal(status, realm, pause)
            if refusal.problem is Problem.DENIED:
                if credential is not None and not await self._is_good(realm, key, credential):
                    raise self.refused(f"the token service {realm.host}")
                self._refusals[key] = refusal.message
            raise refusal
        token, life = _read_token(body, realm)
        self._tokens[key] = Token(token, received + life * (1 - MARGIN))
        return token

    async def _is_good(self, realm: URL, key: Key, credential: Credential) -> bool:
        """Whether it is this repository that is refused, and not us: some say 400 or 403 for either."""
        status, _, _ = await self._ask(realm, replace(key, scope=""), credential)
        return status not in _REFUSED

    async def _ask(self, realm: URL, key: Key, credential: Credential | None) -> tuple[int, float | None, bytes]:
        """Ask for a token: the status, the Retry-After in seconds, the body."""
        asked = [(name, value) for name, value in (("service", key.service), ("scope", key.scope)) if value]
        if credential is not None and credential.is_refresh_token:
            form = dict([*asked, ("grant_type", "refresh_token"), ("client_id", "entrepot")])
            form["refresh_token"] = credential.secret
            response = await self._egress.ask_realm(realm, None, form)
        else:
            url = URL(f"{realm}{'&' if realm.query_string else '?'}{urlencode(asked)}", encoded=True)
            response = await self._egress.ask_realm(url, None if credential is None else _basic(credential))
        pause = retry_after(response.headers.get("Retry-After"), time.time())
        return response.status, pause, await read_limited(response, MAX_ANSWER)

    def _allowed(self, text: str, asking: URL) -> URL:
        """The realm as a URL, if it is one that the origin which named it may send credentials and questions to."""
        try:
            realm = URL(text, encoded=True)
            origin = realm.origin()
            plain = realm.user is None and realm.password is None and not realm.fragment and text.isascii()
        except ValueError:
            raise OciError(Problem.UPSTREAM_INVALID, f"{self._registry} names a token realm that is no URL") from None
        schemes = {"https", self._egress.origin.scheme}
        # What is listed is for upstream's own use: by certificate or address, a realm may know us.
        hosts = set(self._realm_hosts) if asking == self._egress.origin else set()
        listed = {realm.host, f"{realm.host}:{realm.port}"} & hosts
        if not plain or realm.scheme not in schemes or not (origin == asking or listed):
            raise OciError(
                Problem.UPSTREAM_INVALID,
                f"{self._registry} sends us to {realm.host}:{realm.port} ({realm.scheme}) for a token, which is not in "
                "this upstream's realm_hosts",
            )
        return realm

    def _refusal(self, status: int, realm: URL, pause: float | None) -> OciError:
        who = f"the token service {realm.host} of {self._registry}"
        if status == 429:
            return OciError(Problem.TOO_MANY_REQUESTS, f"{who} limits our rate", retry_after=pause)
        if status in _REFUSED:
            return OciError(Problem.DENIED, f"{who} refuses access ({status})")
        if status >= 500:
            return OciError(Problem.UPSTREAM_ERROR, f"{who} answered {status}")
        return OciError(Problem.UPSTREAM_INVALID, f"{who} answered {status} instead of a token")


def _scope(repository: Repository) -> str:
    return f"repository:{repository.name}:pull"


def _basic(credential: Credential) -> str:
    return basic(credential.username, credential.secret)


def _read_token(body: bytes, realm: URL) -> tuple[str, float]:
    """The token and its life in seconds, counted from receipt."""
    try:
        answer: Any = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, Mapping):
        raise OciError(Problem.UPSTREAM_INVALID, f"the token service {realm.host} answered what is no JSON object")
    token = answer.get("token") or answer.get("access_token")
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not 0 < len(token) <= MAX_TOKEN:
        raise OciError(Problem.UPSTREAM_INVALID, f"the token service {realm.host} answered without a usable token")
    life = answer.get("expires_in")
    if isinstance(life, bool) or not isinstance(life, int | float) or not life > 0:  # NaN is neither
        life = DEFAULT_LIFE
    return token, float(min(life, LONGEST_LIFE))
