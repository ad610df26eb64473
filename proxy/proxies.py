"""Which proxy a request goes through: the one that the configuration names, or what the environment says."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import SecretStr
from yarl import URL

from proxy.oci.challenge import basic
from proxy.oci.noproxy import NoProxy, parse


@dataclass(frozen=True, slots=True)
class Proxy:
    """A forward proxy: its URL without a user, and the value of Proxy-Authorization."""

    url: URL
    authorization: SecretStr | None = None

    @property
    def place(self) -> str:
        """Where it is, as errors and logs say it."""
        return f"{self.url.host_subcomponent}:{self.url.port}"


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxy for each scheme, and who is reached without one."""

    http: Proxy | None = None
    https: Proxy | None = None
    exceptions: NoProxy | None = None

    def through(self, url: URL) -> Proxy | None:
        """What a request to this URL goes through; None for a direct connection."""
        proxy = self.https if url.scheme == "https" else self.http
        if proxy is None or self.exceptions is None:
            return proxy
        return None if self.exceptions.covers(url.raw_host or "", url.port or 0) else proxy

    @property
    def any_by_tls(self) -> bool:
        """Whether one of them is itself reached by https."""
        return any(proxy is not None and proxy.url.scheme == "https" for proxy in (self.http, self.https))


def everywhere(url: str, username: str | None, password: SecretStr | None) -> Proxies:
    """One proxy for every request, loopback included."""
    secret = None if password is None else password.get_secret_value()
    proxy = Proxy(URL(url), _basic(username, secret))
    return Proxies(proxy, proxy)


def from_environment(environ: Mapping[str, str]) -> Proxies:
    """HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, or the same in lower case, which win.

    Raises ValueError, which names the variable and does not repeat what it holds: that may be a password.
    """
    # A CGI script's HTTP_PROXY is a header of its client's (httpoxy).
    names = ("http_proxy",) if "REQUEST_METHOD" in environ else ("http_proxy", "HTTP_PROXY")
    everyone = ("all_proxy", "ALL_PROXY")
    return Proxies(
        _first(environ, (*names, *everyone)),
        _first(environ, ("https_proxy", "HTTPS_PROXY", *everyone)),
        parse(environ.get("no_proxy") or environ.get("NO_PROXY") or ""),
    )


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> Proxy | None:
    variable = next((name for name in names if environ.get(name, "").strip()), None)
    if variable is None:
        return None
    url = _url(environ[variable].strip())
    if url is None:
        raise ValueError(
            f'{variable}: must look like "http://proxy.example:3128" (https:// is known too, SOCKS is not): '
            'change it, or set proxy = "none" for the upstreams that need none'
        )
    return Proxy(url.origin(), _basic(url.user, url.password))


def _url(text: str) -> URL | None:
    try:
        url = URL(text if "://" in text else f"http://{text}")
        valid = url.scheme in {"http", "https"} and url.host and url.port and url.path in {"", "/"}
    except ValueError:
        return None
    return url if valid else None


def _basic(username: str | None, password: str | None) -> SecretStr | None:
    if username is None and password is None:
        return None
    return SecretStr(basic(username or "", password or ""))
