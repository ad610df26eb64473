"""Which hosts a proxy may be asked for, on behalf of somebody else: it looks up names in our stead.

A name can lead anywhere, so this is less than a look at the address; the proxy's own rules have to be the rest.
"""

import ipaddress
import re
from collections.abc import Iterable

from proxy.oci.address import Network, is_permitted

_NAME = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})+", re.ASCII)
# What resolvers read as an IPv4 address, however it is written: 127.1, 0x7f000001, 017700000001, 2130706433.
_NUMERIC = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)", re.ASCII)
# Names of one machine or network (RFC 6761, 6762 appendix G, 8375), ICANN's .internal and Kubernetes' Services.
_LOCAL = (
    "localhost", "localdomain", "local", "internal", "intranet", "private", "corp", "home", "lan", "home.arpa", "svc",
)  # fmt: skip
_METADATA = frozenset({"metadata", "instance-data"})  # ... .google.internal, .tencentyun.com, .platformequinix.com


def may_be_asked_for(host: str, private_networks: Iterable[Network], *, is_listed: bool = False) -> bool:
    """Whether a host is a permitted address, or a name that is not plainly one inside a network, or is listed."""
    name = host.lower().rstrip(".")
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return not _NUMERIC.fullmatch(name) and (is_listed or _is_public(name))
    return is_permitted(address, private_networks)


def _is_public(name: str) -> bool:
    is_local = name.endswith(tuple(f".{local}" for local in _LOCAL))
    return _NAME.fullmatch(name) is not None and not is_local and name.partition(".")[0] not in _METADATA
