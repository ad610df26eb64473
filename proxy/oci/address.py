"""Which addresses are public: where a redirect or a token realm, named by somebody else, may lead."""

import ipaddress
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# What ipaddress calls global and is not: cloud metadata services, and addresses of shared or local use
# (the last is NAT64 too, but only the network knows which bits are the IPv4 address: RFC 8215).
_DENIED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "100.64.0.0/10",
        "168.63.129.16/32",
        "192.0.0.0/24",
        "192.88.99.0/24",
        "198.18.0.0/15",
        "fec0::/10",
        "64:ff9b:1::/48",
    )
)

# Services of clouds, at addresses that a machine of one's own might have otherwise.
_METADATA = tuple(
    ipaddress.ip_network(network) for network in ("168.63.129.16/32", "100.100.100.200/32", "fd00:ec2::254/128")
)


def is_public(address: Address) -> bool:
    """Whether an address, and every IPv4 address wrapped in it (mapped, NAT64, 6to4, Teredo), is public unicast."""
    inner = _wrapped(address)
    if inner:
        return all(is_public(one) for one in inner)
    if any(address in network for network in _DENIED if network.version == address.version):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def is_neighbour(address: Address) -> bool:
    """Whether another machine of one's own may have an address: public or private, and no cloud's own service."""
    inner = _wrapped(address)
    if inner:
        return all(is_neighbour(one) for one in inner)
    is_nobodys = address.is_link_local or address.is_multicast or address.is_unspecified or address.is_reserved
    return not is_nobodys and not any(address in one for one in _METADATA if one.version == address.version)


def is_permitted(address: Address, private_networks: Iterable[Network]) -> bool:
    """Whether an address is public, or in a network that the configuration lists."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    plain = mapped or address
    return is_public(address) or any(
        plain in network for network in private_networks if network.version == plain.version
    )


def _wrapped(address: Address) -> tuple[ipaddress.IPv4Address, ...]:
    if isinstance(address, ipaddress.IPv4Address):
        return ()
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address in _NAT64:
        return (ipaddress.IPv4Address(int(address) & 0xFFFFFFFF),)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    return address.teredo or ()
