"""Which hosts are reached without the proxy: NO_PROXY as curl and Go read it, where they agree, and Go's loopback."""

import ipaddress
import re
from dataclasses import dataclass

from proxy.oci.address import Address, Network

_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_SEPARATOR = re.compile(r"[,\s]+")


@dataclass(frozen=True, slots=True)
class NoProxy:
    """Domains and networks, each with the one port that it is about, or None for all."""

    everything: bool = False
    domains: tuple[tuple[str, int | None], ...] = ()
    networks: tuple[tuple[Network, int | None], ...] = ()

    def covers(self, host: str, port: int) -> bool:
        """Whether a host (a name, or an address without brackets) is reached directly; this machine always is."""
        address = _address(host)
        if self.everything or (address is not None and address.is_loopback):
            return True
        if address is not None:
            return any(
                network.version == address.version and address in network and only in {None, port}
                for network, only in self.networks
            )
        name = host.lower().rstrip(".")
        return name == "localhost" or any(
            (name == domain or name.endswith(f".{domain}")) and only in {None, port} for domain, only in self.domains
        )


def parse(text: str) -> NoProxy:
    """Read the variable: names (with all below them), addresses, networks, each with a port or without, and "*".

    What cannot be read is left out, as everybody does.
    """
    domains: list[tuple[str, int | None]] = []
    networks: list[tuple[Network, int | None]] = []
    entries = [entry for entry in _SEPARATOR.split(text.lower()) if entry]
    for entry in entries:
        place, port = _split(entry)
        network = _network(place)
        name = place.removeprefix("*").strip(".")
        if network is not None:
            networks.append((network, port))
        elif name and "/" not in name:
            domains.append((name, port))
    return NoProxy("*" in entries, tuple(domains), tuple(networks))


def _split(entry: str) -> tuple[str, int | None]:
    """A place and its port; an IPv6 address has a port only behind brackets."""
    place, colon, port = entry.rpartition(":")
    is_bare = ":" in place and not place.endswith("]")
    if colon and not is_bare and _PORT.fullmatch(port):
        return place.removeprefix("[").removesuffix("]"), int(port)
    return entry.removeprefix("[").removesuffix("]"), None


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _address(host: str) -> Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
