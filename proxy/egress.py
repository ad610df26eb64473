"""Where connections may go: one upstream's requests, their proxy and TLS, redirects followed by hand."""

import contextlib
from collections.abc import Mapping
from types import TracebackType
from typing import Self
from urllib.parse import urljoin

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from proxy import __version__, failures
from proxy.oci import challenge
from proxy.oci.challenge import Challenge
from proxy.oci.errors import OciError, Problem
from proxy.oci.hostname import may_be_asked_for
from proxy.pauses import Pauses
from proxy.sections.upstream import Upstream
from proxy.sessions import Sending, Sessions
from proxy.telemetry import Logger
from proxy.trust import Context, Trust

USER_AGENT = f"entrepot/{__version__}"
MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Egress:
    """The connections of one upstream.

    Its own origin (scheme, host and port of the configured URL) may be anywhere; every other origin is reached through
    a guard that looks at the address itself when the socket is made, so that names, literals and rebinding are alike.
    Where a proxy makes the connection, it is the name that is looked at.
    Requests whose answer no digest can vouch for (tags, tokens) get a connection of their own: an answer that somebody
    left on a pooled connection must not become theirs.
    """

    def __init__(self, settings: Upstream, *, resolver: AbstractResolver | None = None) -> None:
        """`resolver`: who looks up the names of direct connections, if not the system."""
        self.base = settings.base
        self.origin = settings.base.origin()
        self._realm_hosts = settings.realm_hosts
        self._private_networks = settings.private_networks
        self._proxies = settings.proxies
        self._trust = Trust(settings)
        self._pauses = Pauses()
        self._sessions = Sessions(settings.private_networks, lambda: self._trust.contexts.proxy, resolver)

    async def __aenter__(self) -> Self:
        """Read the TLS files. Raises ConfigError."""
        await self._trust.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._sessions.aclose()

    async def refresh(self, log: Logger) -> None:
        """Take over TLS files that have changed: new connections are made with them, old ones end what they are at."""
        if await self._trust.refresh(log):
            self._pauses.forget()

    async def request(
        self, method: str, url: URL, headers: Mapping[str, str], authorization: str | None = None, *, fresh: bool
    ) -> aiohttp.ClientResponse:
        """Send one request and return the answer, redirect or not, its body unread.

        `authorization` is left out unless the URL is of the upstream's own origin. Raises OciError.
        """
        guarded = url.origin() != self.origin
        sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
        if authorization is not None and not guarded:
            sent["Authorization"] = authorization
        context = self._trust.contexts.foreign if guarded else self._trust.contexts.own
        return await self._exchange(Sending(method, url, sent, guarded, fresh), context)

    async def ping(self, authorization: str | None = None) -> aiohttp.ClientResponse:
        """Ask for /v2/: whether upstream is there, and what it asks of us. Raises OciError."""
        return await self.request("GET", URL(f"{self.base}/v2/", encoded=True), {}, authorization, fresh=True)

    async def ask_realm(
        self, url: URL, authorization: str | None, form: Mapping[str, str] | None = None
    ) -> aiohttp.ClientResponse:
        """Ask a token realm that the caller has found to be allowed, with a form by POST. Raises OciError.

        Redirects are not followed.
        """
        sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", "Accept": "application/json"}
        if authorization is not None:
            sent["Authorization"] = authorization
        method, guarded = "GET" if form is None else "POST", url.origin() != self.origin
        contexts, is_listed = self._trust.contexts, self._is_listed(url)
        context = contexts.own if not guarded else contexts.realm if is_listed else contexts.foreign
        return await self._exchange(
            Sending(method, url, sent, guarded, fresh=True, form=form), context, is_listed=is_listed
        )

    async def follow(
        self, method: str, response: aiohttp.ClientResponse, headers: Mapping[str, str], authorization: str | None,
        *, fresh: bool,
    ) -> aiohttp.ClientResponse:  # fmt: skip
        """Follow redirects from `response` on, each hop with the same minimal headers. Raises OciError."""
        for _ in range(MAX_REDIRECTS):
            if response.status not in _REDIRECTS:
                return response
            target, has_left = self._target(response), response.url.origin() != self.origin
            response.close()
            if has_left and target.origin() == self.origin:
                # The path would be another's choice, and the credentials, the certificate or the address ours.
                raise OciError(Problem.UPSTREAM_INVALID, f"{response.url.host} redirects back to {self.origin.host}")
            response = await self.request(method, target, headers, authorization, fresh=fresh)
        if response.status in _REDIRECTS:
            response.close()
            raise OciError(Problem.UPSTREAM_INVALID, f"{self.origin.host} redirects more than {MAX_REDIRECTS} times")
        return response

    def _target(self, response: aiohttp.ClientResponse) -> URL:
        """Where a redirect leads, its path and query as they were sent: signatures cover every byte."""
        location = response.headers.get("Location", "").partition("#")[0]
        if location.startswith("/") and not location.startswith("//"):
            location = f"{response.url.origin()}{location}"
        url = _plain_url(location, response.url)
        if url is None or url.scheme not in {"https", self.origin.scheme}:
            response.close()
            raise OciError(
                Problem.UPSTREAM_INVALID,
                f"{response.url.host} redirects to a place that is no {self.origin.scheme} URL",
            )
        return url

    async def _exchange(self, sending: Sending, context: Context, *, is_listed: bool = False) -> aiohttp.ClientResponse:
        proxy, origin = self._proxies.through(sending.url), sending.url.origin()
        if sending.guarded:
            if proxy is not None:
                self._check_name(sending.url, is_listed)
            self._pauses.admit(origin)
        try:
            response = await self._sessions.send(sending, context, proxy)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self._note(origin, failures.has_reached(error, proxy))
            raise failures.explain(error, sending.url, proxy) from None
        refusal = failures.refusal(response, proxy)
        self._note(origin, None if refusal else True)
        if refusal is not None:
            response.close()
            raise refusal
        return response

    def _note(self, origin: URL, has_answered: bool | None) -> None:
        """What is now known of an origin; the upstream's own has a breaker of its own."""
        if origin == self.origin or has_answered is None:
            return
        (self._pauses.succeeded if has_answered else self._pauses.failed)(origin)

    def _check_name(self, url: URL, is_listed: bool) -> None:
        """The proxy looks up the name: no address will be seen here. Raises OciError."""
        if not may_be_asked_for(url.raw_host or "", self._private_networks, is_listed=is_listed):
            raise OciError(
                Problem.UPSTREAM_INVALID,
                f"{url.host} is not public, by its name or address, and no proxy is asked for it: if it is right, "
                "reach it without the proxy, and list its address in private_networks",
            )

    def _is_listed(self, url: URL) -> bool:
        return bool({url.host, f"{url.host}:{url.port}"} & set(self._realm_hosts))


def _plain_url(text: str, base: URL) -> URL | None:
    """An absolute URL exactly as it is written, or joined to `base`; None if it is none, or holds a user."""
    try:
        if "://" not in text.partition("?")[0]:
            text = urljoin(str(base), text)
        url = URL(text, encoded=True)
        url.origin()  # raises where there is no host
        # Here and not below, since yarl looks at the port no sooner than it is asked for a part of the authority.
        plain = url.user is None and url.password is None and url.port is not None
    except ValueError:
        return None
    return url if plain and text.isascii() and text.isprintable() else None


def asked_for(response: aiohttp.ClientResponse) -> tuple[Challenge, ...]:
    """What an answer wants to see first."""
    return challenge.parse(response.headers.getall("WWW-Authenticate", ()))


async def read_limited(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """A whole body of at most `limit` bytes; closes the answer. Raises OciError."""
    host = response.url.host
    body = bytearray()
    try:
        with contextlib.closing(response):
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise OciError(Problem.UPSTREAM_INVALID, f"{host} sent an encoded body, though asked for identity")
            while chunk := await response.content.readany():
                body += chunk
                if len(body) > limit:
                    raise OciError(Problem.UPSTREAM_INVALID, f"{host} sent more than {limit} bytes where few belong")
    except (aiohttp.ClientError, OSError, RuntimeError) as error:  # aiohttp: "Connection closed." is a RuntimeError
        raise failures.explain(error, response.url) from None
    return bytes(body)
