"""Where other replicas on the same bucket reach this server: as configured, or as this machine can tell."""

import contextlib
import ipaddress
import socket

from proxy.sections.server import Server
from proxy.values import Listen

# Addresses that are nobody's (RFC 5737, RFC 3849): no packet is sent, only the way to them is looked up.
_ELSEWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


def advertised(server: Server, sock: socket.socket) -> str | None:
    """The base URL of a server that listens on this socket; None if it has no address that others could reach."""
    if server.advertise is not None:
        return server.advertise
    host, port = sock.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = _own_address()
    scheme = "http" if server.tls_certificate is None else "https"
    return None if host is None else f"{scheme}://{Listen(host=host, port=port)}"


def _own_address() -> str | None:
    """The address that this machine has on its way to others."""
    for family, elsewhere in _ELSEWHERE:
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((elsewhere, 9))
            return str(sock.getsockname()[0])
    return None
