"""Credentials and bearer tokens of one upstream: asked for once, renewed before they expire, sent where allowed."""

import asyncio
import hashlib
import hmac
import json
import secrets
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from cachetools import LRUCache
from yarl import URL

from proxy.egress import Egress, read_limited
from proxy.oci.challenge import Challenge
from proxy.oci.errors import OciError, Problem
from proxy.oci.reference import Repository
from proxy.oci.retry import retry_after
from proxy.sections import Upstream
from proxy.single_flight import SingleFlight

MAX_ANSWER = 256 * 1024  # bytes of a token endpoint's answer
MAX_TOKEN = 16 * 1024
MAX_TOKENS = 4096  # tokens, and repositories' challenges, remembered per upstream
DEFAULT_LIFE = 60.0  # seconds, when the endpoint does not say (the token specification's default)
LONGEST_LIFE = 3600.0
MARGIN = 0.1  # of its life, before the end of which a token is no longer used


@dataclass(frozen=True, slots=True)
class Key:
    """What a token was issued for; the credential goes in as a keyed fingerprint, never as itself."""

    upstream: str
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
    """The Authorization header for each request to one upstream."""

    def __init__(self, upstream: Upstream, egress: Egress) -> None:
        self._registry = upstream.registry
        self._egress = egress
        self._realm_hosts = upstream.realm_hosts
        self._basic = _basic(upstream)
        secret = secrets.token_bytes(32)
        self._credential = hmac.new(secret, (self._basic or "").encode(), hashlib.sha256).hexdigest()
        self._tokens: LRUCache[Key, Token] = LRUCache(MAX_TOKENS)
        self._challenges: LRUCache[Repository, Challenge] = LRUCache(MAX_TOKENS)
        self._usual: Challenge | None = None
        self._flights: SingleFlight[Key, str] = SingleFlight()

    async def aclose(self) -> None:
        """Give up the requests in flight."""
        await self._flights.aclose()

    async def authorization(self, repository: Repository) -> str | None:
        """What to send with the first try, going by what this upstream has asked for before. Raises OciError."""
        challenge = self._challenges.get(repository, self._usual)
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
        if challenge is None and self._basic is not None:
            challenge = next((one for one in challenges if one.scheme == "basic"), None)
        if challenge is None:
            return None
        self._forget(repository, challenge, rejected)
        answer = await self._answer(repository, challenge)
        self._challenges[repository] = self._usual = challenge  # now that it has led to something
        return None if answer == rejected else answer

    def _forget(self, repository: Repository, challenge: Challenge, rejected: str | None) -> None:
        """Drop a token that upstream no longer takes; one that was renewed in the meantime stays."""
        key = self._key(repository, challenge)
        token = self._tokens.get(key)
        if token is not None and rejected == f"Bearer {token.value}":
            del self._tokens[key]

    def _key(self, repository: Repository, challenge: Challenge) -> Key:
        return Key(
            self._registry,
            self._credential,
            challenge.realm or "",
            challenge.service or "",
            f"repository:{repository.name}:pull",
        )

    async def _answer(self, repository: Repository, challenge: Challenge) -> str | None:
        if challenge.scheme == "basic":
            return self._basic
        key = self._key(repository, challenge)
        token = self._tokens.get(key)
        if token is not None and time.monotonic() < token.until:
            return f"Bearer {token.value}"
        return f"Bearer {await self._flights.run(key, lambda: self._fetch(key))}"

    async def _fetch(self, key: Key) -> str:
        realm = self._allowed(key.realm)
        asked = [("service", key.service)] if key.service else []
        query = urlencode([*asked, ("scope", key.scope)])
        url = URL(f"{realm}{'&' if realm.query_string else '?'}{query}", encoded=True)
        received = time.monotonic()
        async with asyncio.timeout(20):
            response = await self._egress.ask_realm(url, self._basic)
            status = response.status
            pause = retry_after(response.headers.get("Retry-After"), time.time())
            body = await read_limited(response, MAX_ANSWER)
        if status != 200:
            raise self._refusal(status, realm, pause)
        token, life = _read_token(body, realm)
        self._tokens[key] = Token(token, received + life * (1 - MARGIN))
        return token

    def _allowed(self, text: str) -> URL:
        """The realm as a URL, if it is one that this upstream may send credentials and questions to."""
        try:
            realm = URL(text, encoded=True)
            origin = realm.origin()
            plain = realm.user is None and realm.password is None and not realm.fragment and text.isascii()
        except ValueError:
            raise OciError(Problem.UPSTREAM_INVALID, f"{self._registry} names a token realm that is no URL") from None
        schemes = {"https", self._egress.origin.scheme}
        listed = {realm.host, f"{realm.host}:{realm.port}"} & set(self._realm_hosts)
        if not plain or realm.scheme not in schemes or not (origin == self._egress.origin or listed):
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
        if status in {400, 401, 403, 404}:
            return OciError(Problem.DENIED, f"{who} refuses access ({status})")
        if status >= 500:
            return OciError(Problem.UPSTREAM_ERROR, f"{who} answered {status}")
        return OciError(Problem.UPSTREAM_INVALID, f"{who} answered {status} instead of a token")


def _basic(upstream: Upstream) -> str | None:
    if upstream.username is None or upstream.password is None:
        return None
    pair = f"{upstream.username}:{upstream.password.get_secret_value()}"
    return f"Basic {b64encode(pair.encode()).decode()}"


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
