"""The connections of one upstream: sessions that do only what they are told, and the guard over their sockets."""

import ipaddress
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

from proxy.names import Names
from proxy.oci.address import Network, is_permitted
from proxy.proxies import Proxy
from proxy.trust import Context

CONNECT_TIMEOUT = 10.0  # seconds for name, connection, proxy and TLS; the caller's deadline covers the rest
_KEEPALIVE = 30.0  # seconds that a connection waits for the next request
_MAX_FIELD = 32 * 1024  # bytes: presigned URLs with session tokens are long


class ForbiddenAddress(OSError):
    """A redirect or a token realm led to an address that is neither public nor configured."""


@dataclass(frozen=True, slots=True)
class Sending:
    """One request as it is to go out."""

    method: str
    url: URL
    headers: Mapping[str, str]
    guarded: bool
    fresh: bool
    form: Mapping[str, str] | None = None


class _Connector(aiohttp.TCPConnector):
    """A connection on which something has come that nobody asked for is not used again: aiohttp would take it for the
    next answer, or wait for ever on a connection that it no longer reads.
    """

    async def _get(self, key: ConnectionKey, traces: list[Trace]) -> Connection | None:
        while (found := await super()._get(key, traces)) is not None:
            if found.protocol is not None and not found.protocol.should_close:
                return found
            found.close()
        return None


class _ByProxy(_Connector):
    """What aiohttp would do with one TLS context is done with two: the proxy is not who is asked through it.

    Else the proxy would be shown the client certificate, and not be verified where the upstream is insecure.
    """

    def __init__(
        self, context: Callable[[], ssl.SSLContext | None], resolver: AbstractResolver, *, force_close: bool
    ) -> None:
        keepalive = None if force_close else _KEEPALIVE
        super().__init__(limit=0, force_close=force_close, keepalive_timeout=keepalive, resolver=resolver)
        self._context_of_proxy = context

    def _get_ssl_context(self, req: aiohttp.ClientRequest) -> ssl.SSLContext | None:
        own = self._context_of_proxy() if req.proxy is None and req.is_ssl() else None
        return super()._get_ssl_context(req) if own is None else own


class Sessions:
    """Sessions by whether their sockets are guarded, whether answers get a connection of their own, and by proxy.

    TLS contexts come with each request and are a part of the pool's keys: what was connected with another one is not
    used again, and goes on with what it is doing.
    """

    def __init__(
        self,
        private_networks: tuple[Network, ...],
        context_of_proxy: Callable[[], ssl.SSLContext | None],
        resolver: AbstractResolver | None,
    ) -> None:
        self._private_networks = private_networks
        self._context_of_proxy = context_of_proxy
        # Apart, so that hosts which upstream leads to cannot keep its own name waiting.
        self._own_names, self._foreign_names = resolver or Names(), resolver or Names()
        self._sessions: dict[tuple[bool, bool, bool], aiohttp.ClientSession] = {}

    async def aclose(self) -> None:
        """Close every connection."""
        for session in self._sessions.values():
            await session.close()
        for names in (self._own_names, self._foreign_names):
            await names.close()

    async def send(self, sending: Sending, context: Context, proxy: Proxy | None) -> aiohttp.ClientResponse:
        """Send it, and return the head of the answer. Raises what aiohttp raises."""
        session = self._session(sending.guarded, sending.fresh, proxy is not None)
        headers, to_proxy = dict(sending.headers), None
        if proxy is not None:
            own = {} if proxy.authorization is None else {"Proxy-Authorization": proxy.authorization.get_secret_value()}
            # Of https it sees a CONNECT, which has headers of its own; http it reads.
            if sending.url.scheme == "https":
                to_proxy = {"User-Agent": headers["User-Agent"], **own}
            else:
                headers |= own
        return await session.request(
            sending.method, sending.url, headers=headers, data=sending.form, allow_redirects=False, ssl=context,
            proxy=None if proxy is None else proxy.url, proxy_headers=to_proxy,
        )  # fmt: skip

    def _session(self, guarded: bool, fresh: bool, by_proxy: bool) -> aiohttp.ClientSession:
        key = (guarded and not by_proxy, fresh, by_proxy)
        if key not in self._sessions:
            self._sessions[key] = aiohttp.ClientSession(
                connector=self._connector(*key),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT, sock_connect=CONNECT_TIMEOUT),
                auto_decompress=False,
                skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
                max_field_size=_MAX_FIELD,
                trust_env=False,
            )
        return self._sessions[key]

    def _connector(self, guarded: bool, fresh: bool, by_proxy: bool) -> aiohttp.TCPConnector:
        if by_proxy:
            return _ByProxy(self._context_of_proxy, self._own_names, force_close=fresh)
        return _Connector(
            limit=0,
            force_close=fresh,
            keepalive_timeout=None if fresh else _KEEPALIVE,
            resolver=self._foreign_names if guarded else self._own_names,
            socket_factory=self._guarded_socket if guarded else None,
        )

    def _guarded_socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, place = info
        text = str(place[0]).partition("%")[0]
        if not is_permitted(ipaddress.ip_address(text), self._private_networks):
            raise ForbiddenAddress(f"forbidden address {text}")
        return socket.socket(family=family, type=kind, proto=protocol)
