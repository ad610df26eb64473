"""What a failure to get an answer means, in one sentence that says who is to do what.

The words hold no path, query or header of a request, and nothing that the other side has said: those may be secrets.
"""

import ssl

import aiohttp
from yarl import URL

from proxy import files
from proxy.oci.errors import OciError, Problem
from proxy.proxies import Proxy

# What OpenSSL finds wrong with a certificate (its X509_V_ERR_* numbers).
_CERTIFICATES = {
    9: "the certificate of {who} is not valid yet: see whether the clocks are right",
    10: "the certificate of {who} has expired: it has to be renewed there",
    18: "the certificate of {who} is signed by itself: if that is right, put it into ca_file",
    62: "the certificate of {who} is made out to other names: ask by one of those, or have it made out anew",
    64: "the certificate of {who} is not made out to this address: ask by name, or have it made out anew",
} | dict.fromkeys((19, 20, 21), "the certificate of {who} is signed by nobody known here: put its CA into ca_file")
# What the other side, or OpenSSL, says as it breaks off a handshake; the first that is contained counts.
_ALERTS = (
    ("CERTIFICATE_REQUIRED", "{who} demands a client certificate: set client_certificate and client_key"),
    (
        "HANDSHAKE_FAILURE",
        "{who} broke off the TLS handshake: it may demand a client certificate (client_certificate and client_key)",
    ),
    *(
        (alert, "{who} does not accept our client certificate, or wants one: see client_certificate and client_key")
        for alert in ("ALERT_UNKNOWN_CA", "ALERT_BAD_CERTIFICATE", "ALERT_CERTIFICATE", "ALERT_UNSUPPORTED_CERTIFICATE",
                      "ALERT_ACCESS_DENIED", "ALERT_DECRYPT_ERROR")
    ),
    ("PROTOCOL_VERSION", "{who} offers no TLS 1.2 or newer, and nothing older is used"),
    ("UNSUPPORTED_PROTOCOL", "{who} offers no TLS 1.2 or newer, and nothing older is used"),
    ("WRONG_VERSION_NUMBER", "{who} does not speak TLS on this port: see whether the port, or https, is right"),
)  # fmt: skip
# What else, by its type, the special before the general.
_MEANINGS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], Problem, str], ...] = (
    (TimeoutError, Problem.UPSTREAM_TIMEOUT, "{who} did not answer in time"),
    (aiohttp.ClientConnectorDNSError, Problem.UPSTREAM_UNREACHABLE, "the name of {who} does not resolve"),
    (aiohttp.ClientConnectorError, Problem.UPSTREAM_UNREACHABLE, "cannot connect to {who}: {reason}"),
    (aiohttp.InvalidURL, Problem.UPSTREAM_INVALID, "{who} is written as no address is"),
    ((aiohttp.ClientResponseError, ValueError), Problem.UPSTREAM_INVALID, "{who} answered what is no HTTP"),
    (Exception, Problem.UPSTREAM_UNREACHABLE, "the connection to {who} broke ({kind})"),
)


def explain(error: Exception, url: URL, proxy: Proxy | None = None) -> OciError:
    """Put a failure to get an answer into words."""
    cause = _cause(error)
    if files.is_exhausted(cause):
        return OciError(Problem.OVERLOADED, "out of file descriptors", retry_after=2)
    if "forbidden address" in str(cause):
        return OciError(
            Problem.UPSTREAM_INVALID,
            f"{url.host} is at an address that is not public: if that is right, list it in private_networks",
        )
    if proxy is not None and isinstance(error, aiohttp.ClientHttpProxyError):
        return _refused(error.status, url, proxy)
    who = _who(error, url, proxy)
    if isinstance(cause, ssl.SSLError):
        return OciError(Problem.UPSTREAM_INVALID, _of_tls(cause).format(who=who))
    problem, text = next((problem, text) for kinds, problem, text in _MEANINGS if isinstance(error, kinds))
    reason = getattr(cause, "strerror", None) or type(cause).__name__
    return OciError(problem, text.format(who=who, reason=reason, kind=type(error).__name__))


def refusal(response: aiohttp.ClientResponse, proxy: Proxy | None) -> OciError | None:
    """What an answer means that is the proxy's own, in place of that of a host asked by plain HTTP."""
    if proxy is None or response.url.scheme != "http" or response.status < 400:
        return None
    headers = response.headers
    # Everybody says so by 407, RFC 9209 and Squid by a header, and tinyproxy by who it is.
    is_own = response.status == 407 or "error=" in headers.get("Proxy-Status", "") or "X-Squid-Error" in headers
    if is_own or headers.get("Server", "").startswith("tinyproxy"):
        return _refused(response.status, response.url, proxy)
    return None


def has_reached(error: Exception, proxy: Proxy | None) -> bool | None:
    """Whether a connection to the host came about before this; None where that cannot be told, or was our doing."""
    if files.is_exhausted(_cause(error)) or "forbidden address" in str(_cause(error)):
        return None
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return False if error.status >= 500 else None
    if _is_proxys(error, proxy) or (proxy is not None and isinstance(error, TimeoutError)):
        return None
    return not isinstance(
        error,
        aiohttp.ClientConnectorError | aiohttp.ClientSSLError | aiohttp.ConnectionTimeoutError | aiohttp.InvalidURL,
    )


def _refused(status: int, url: URL, proxy: Proxy) -> OciError:
    who = f"the proxy {proxy.place}"
    if status in {401, 407} and proxy.authorization is None:  # 401 is tinyproxy's
        text = f"{who} wants a user and a password: set proxy_username with proxy_password_env or proxy_password_file"
    elif status in {401, 407}:
        text = f"{who} refuses the user or the password that it is given: see proxy_username and its password"
    elif status >= 500:
        return OciError(Problem.UPSTREAM_UNREACHABLE, f"{who} cannot reach {url.host} (it answered {status})")
    elif status >= 400:
        text = f"{who} will not connect us to {url.host}:{url.port} ({status}): allow it there"
    else:
        text = f"{who} answered {status} where a connection to {url.host} was asked for: see whether it is a proxy"
    return OciError(Problem.UPSTREAM_INVALID, text)


def _of_tls(error: ssl.SSLError) -> str:
    """A sentence about {who}."""
    code = getattr(error, "verify_code", None)
    if code in _CERTIFICATES:
        return _CERTIFICATES[code]
    if code:
        return f"the certificate of {{who}} is not accepted (OpenSSL calls it error {code})"
    said = error.reason or str(error)
    reason = "".join(letter for letter in error.reason or "" if letter.isalnum() or letter == "_") or "no reason given"
    return next((text for alert, text in _ALERTS if alert in said), f"TLS with {{who}} failed ({reason})")


def _cause(error: BaseException) -> BaseException:
    """What aiohttp has wrapped; a failure of TLS after the handshake is only the cause of another."""
    for attribute in ("certificate_error", "os_error", "__cause__"):
        inner = getattr(error, attribute, None)
        if isinstance(inner, ssl.SSLError) or (attribute == "os_error" and isinstance(inner, OSError)):
            return inner
    return error


def _who(error: Exception, url: URL, proxy: Proxy | None) -> str:
    if proxy is None:
        return str(url.host)
    return f"the proxy {proxy.place}" if _is_proxys(error, proxy) else f"{url.host} through the proxy {proxy.place}"


def _is_proxys(error: Exception, proxy: Proxy | None) -> bool:
    """Whether the connection to the proxy itself failed."""
    if proxy is None:
        return False
    place = (getattr(error, "host", None), getattr(error, "port", None))
    return isinstance(error, aiohttp.ClientProxyConnectionError) or place == (proxy.url.raw_host, proxy.url.port)
