"""Where connections may go: one upstream's sessions, the address guard, redirects followed by hand."""

import contextlib
import ipaddress
import socket
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from proxy import __version__, files
from proxy.oci.address import Network, is_permitted
from proxy.oci.errors import OciError, Problem

USER_AGENT = f"entrepot/{__version__}"
MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CONNECT_TIMEOUT = 10.0  # seconds; the caller's deadline covers the rest
_MAX_FIELD = 32 * 1024  # bytes: presigned URLs with session tokens are long


class ForbiddenAddress(OSError):
    """A redirect or a token realm led to an address that is neither public nor configured."""


class Egress:
    """The connections of one upstream.

    Its own origin (scheme, host and port of the configured URL) may be anywhere; every other origin is reached through
    a guard that looks at the address itself when the socket is made, so that names, literals and rebinding are alike.
    Requests whose answer no digest can vouch for (tags, tokens) get a connection of their own: an answer that somebody
    left on a pooled connection must not become theirs.
    """

    def __init__(self, base: URL, private_networks: Iterable[Network] = ()) -> None:
        self.base = base
        self.origin = base.origin()
        self._private_networks = tuple(private_networks)
        self._sessions: dict[tuple[bool, bool], aiohttp.ClientSession] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for session in self._sessions.values():
            await session.close()

    async def request(
        self, method: str, url: URL, headers: Mapping[str, str], authorization: str | None = None, *, fresh: bool
    ) -> aiohttp.ClientResponse:
        """Send one request and return the answer, redirect or not, its body unread.

        `authorization` is left out unless the URL is of the upstream's own origin. Raises OciError.
        """
        trusted = url.origin() == self.origin
        sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
        if authorization is not None and trusted:
            sent["Authorization"] = authorization
        return await self._exchange(method, url, sent, trusted, fresh)

    async def ask_realm(self, url: URL, authorization: str | None) -> aiohttp.ClientResponse:
        """Ask a token realm that the caller has found to be allowed. Redirects are not followed. Raises OciError."""
        sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", "Accept": "application/json"}
        if authorization is not None:
            sent["Authorization"] = authorization
        return await self._exchange("GET", url, sent, url.origin() == self.origin, fresh=True)

    async def follow(
        self, method: str, response: aiohttp.ClientResponse, headers: Mapping[str, str], authorization: str | None,
        *, fresh: bool,
    ) -> aiohttp.ClientResponse:  # fmt: skip
        """Follow redirects from `response` on, each hop with the same minimal headers. Raises OciError."""
        for _ in range(MAX_REDIRECTS):
            if response.status not in _REDIRECTS:
                return response
            target = self._target(response)
            response.close()
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

    async def _exchange(
        self, method: str, url: URL, headers: Mapping[str, str], trusted: bool, fresh: bool
    ) -> aiohttp.ClientResponse:
        try:
            return await self._session(trusted, fresh).request(method, url, headers=headers, allow_redirects=False)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _explain(error, url) from None

    def _session(self, trusted: bool, fresh: bool) -> aiohttp.ClientSession:
        session = self._sessions.get((trusted, fresh))
        if session is None:
            factory = None if trusted else self._guarded_socket
            connector = (
                aiohttp.TCPConnector(limit=0, force_close=True, socket_factory=factory)
                if fresh
                else aiohttp.TCPConnector(limit=0, keepalive_timeout=30, socket_factory=factory)
            )
            session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT),
                auto_decompress=False,
                skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
                max_field_size=_MAX_FIELD,
                trust_env=False,
            )
            self._sessions[trusted, fresh] = session
        return session

    def _guarded_socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, place = info
        text = str(place[0]).partition("%")[0]
        if not is_permitted(ipaddress.ip_address(text), self._private_networks):
            raise ForbiddenAddress(f"forbidden address {text}")
        return socket.socket(family=family, type=kind, proto=protocol)


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


# What a failure means, by its type, the special before the general. The words hold no path, query or header of a
# request: those may be secrets.
_MEANINGS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], Problem, str], ...] = (
    (
        (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError),
        Problem.UPSTREAM_INVALID,
        "TLS with {host} failed: {reason}",
    ),
    (TimeoutError, Problem.UPSTREAM_TIMEOUT, "{host} did not answer in time"),
    (aiohttp.ClientConnectorDNSError, Problem.UPSTREAM_UNREACHABLE, "the name {host} does not resolve"),
    (aiohttp.ClientConnectorError, Problem.UPSTREAM_UNREACHABLE, "cannot connect to {host}: {reason}"),
    ((aiohttp.ClientResponseError, ValueError), Problem.UPSTREAM_INVALID, "{host} answered what is no HTTP"),
    (Exception, Problem.UPSTREAM_UNREACHABLE, "the connection to {host} broke ({kind})"),
)


def _explain(error: Exception, url: URL) -> OciError:
    """Put a failure to get an answer into words."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if files.is_exhausted(cause):
        return OciError(Problem.OVERLOADED, "out of file descriptors", retry_after=2)
    if "forbidden address" in str(cause):
        return OciError(
            Problem.UPSTREAM_INVALID,
            f"{url.host} is at an address that is not public: if that is right, list it in private_networks",
        )
    reason = getattr(cause, "strerror", None) or type(cause).__name__
    problem, text = next((problem, text) for kinds, problem, text in _MEANINGS if isinstance(error, kinds))
    return OciError(problem, text.format(host=url.host, reason=reason, kind=type(error).__name__))


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
        raise _explain(error, response.url) from None
    return bytes(body)
