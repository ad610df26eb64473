"""Which addresses are public: the guard that every redirect and token realm must pass."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.address import is_permitted, is_public

PUBLIC = [
    "1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1", "192.167.0.1",
    "198.17.255.255", "198.20.0.0", "168.63.129.15", "192.88.98.1", "2606:4700:4700::1111", "2001:4860:4860::8888",
    "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1",
]  # fmt: skip

NOT_PUBLIC = [
    # this host, and this network
    "0.0.0.0",  # noqa: S104
    "0.1.2.3", "127.0.0.1", "127.255.255.255", "::", "::1", "::127.0.0.1",
    # private networks
    "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "fc00::1", "fdff::1", "fec0::1",
    # link-local, with the metadata services of the clouds
    "169.254.0.1", "169.254.169.254", "169.254.170.2", "fe80::1", "fd00:ec2::254", "100.100.100.200", "168.63.129.16",
    # shared, for protocols, benchmarks and documentation
    "100.64.0.1", "100.127.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.19.255.255",
    "198.51.100.1", "203.0.113.1", "2001:db8::1", "192.88.99.1",
    # multicast, reserved, broadcast
    "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "ff02::1", "ff0e::1",
    # any of these inside an IPv6 address: mapped, NAT64, 6to4, Teredo
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:100.64.0.1", "::ffff:0.0.0.0",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::a00:1", "64:ff9b:1::7f00:1", "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2002:c0a8:1::1", "2001:0:7f00:1::", "2001:0:808:808:0:0:80ff:fffe",
]  # fmt: skip


@pytest.mark.parametrize("text", PUBLIC)
def test_an_address_of_the_public_internet_is_permitted(text: str) -> None:
    address = ipaddress.ip_address(text)
    assert is_public(address)
    assert is_permitted(address, ())


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_an_address_that_is_not_public_is_not(text: str) -> None:
    address = ipaddress.ip_address(text)
    assert not is_public(address)
    assert not is_permitted(address, ())


@pytest.mark.parametrize(
    ("text", "network", "permitted"),
    [
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.3/32", True),
        ("10.1.2.3", "10.1.2.4/32", False),
        ("192.168.0.1", "10.0.0.0/8", False),
        ("::ffff:10.1.2.3", "10.0.0.0/8", True),
        ("::ffff:127.0.0.1", "10.0.0.0/8", False),
        ("fd00::1", "fd00::/8", True),
        ("fd00::1", "10.0.0.0/8", False),
        ("::1", "127.0.0.0/8", False),
        ("169.254.169.254", "10.0.0.0/8", False),
        ("8.8.8.8", "10.0.0.0/8", True),
    ],
)
def test_a_network_that_is_listed_is_permitted_and_no_other(text: str, network: str, permitted: bool) -> None:
    assert is_permitted(ipaddress.ip_address(text), [ipaddress.ip_network(network)]) is permitted


@given(st.ip_addresses(v=4))
def test_wrapping_an_address_changes_nothing(address: ipaddress.IPv4Address) -> None:
    public = is_public(address)
    assert is_public(ipaddress.ip_address(f"::ffff:{address}")) is public
    assert is_public(ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b::")) | int(address))) is public
    assert is_public(ipaddress.IPv6Address((0x2002 << 112) | (int(address) << 80))) is public


@given(st.ip_addresses())
def test_what_is_private_by_the_standard_library_is_never_public(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if address.is_private or address.is_loopback or address.is_link_local or address.is_multicast:
        assert not is_public(address) or (
            isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None
        )


def test_an_address_in_the_local_nat64_prefix_is_not_public_by_its_last_bits() -> None:
    """RFC 8215 leaves the length of the prefix to the network: with RFC 6052's /48 this one is 169.254.169.254."""
    assert not is_public(ipaddress.ip_address("64:ff9b:1:a9fe:a9:fe00:808:808"))
