"""Which hosts a proxy is asked for, where all that is known is what somebody else wrote."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.address import is_permitted
from proxy.oci.hostname import may_be_asked_for

PUBLIC = [
    "registry-1.docker.io", "production.cloudflare.docker.com", "CDN.Example.Com.", "a_b.example", "xn--bcher-kva.test",
    "8.8.8.8", "8.8.8.8.", "2606:4700::1111", "local.example", "internal.example", "1.example", "0x7f.example",
    "my-metadata.example", "svc.example", "prefix-localhost.example", "s3.dualstack.us-east-1.amazonaws.com",
]  # fmt: skip

INSIDE = [
    "localhost", "LOCALHOST", "localhost.", "a.localhost", "localhost.localdomain", "printer.local", "db.internal",
    "metadata.google.internal", "metadata.google.internal.", "metadata.goog", "metadata", "instance-data",
    "instance-data.ec2.internal", "metadata.tencentyun.com", "metadata.platformequinix.com", "intranet", "a.intranet",
    "a.corp", "a.home", "a.home.arpa", "a.lan", "a.private", "kubernetes.default.svc", "x.default.svc.cluster.local",
    # addresses, as resolvers read them
    "127.0.0.1", "127.0.0.1.", "127.1", "127.0.1", "2130706433", "0x7f000001", "0X7F000001", "0x7f.1", "017700000001",
    "0177.0.0.1", "0", "0x", "0.0.0.0", "00000127.0.0.1", "example.1", "example.0x1", "1.2.3.4.5",  # noqa: S104
    "::1", "::", "::ffff:127.0.0.1", "::ffff:7f00:1", "64:ff9b::7f00:1", "2002:7f00:1::", "fe80::1%25lo", "fe80::1%lo",
    "169.254.169.254", "100.100.100.200", "168.63.129.16", "10.0.0.1", "fd00:ec2::254",
    # what is no name
    "", ".", "..", "a..b", ".example.com", "127%2e0%2e0%2e1", "a b.example", "a@b.example", "\u2460\u2461\u2466.0.0.1",
    "127\u30020.0.1", "example.com\n", "example.com\x00", "[::1]", "a/b.example", "\u0661.example",
]  # fmt: skip


@pytest.mark.parametrize("host", PUBLIC)
def test_a_public_name_or_address_may_be_asked_for(host: str) -> None:
    assert may_be_asked_for(host, ())


@pytest.mark.parametrize("host", INSIDE)
def test_a_name_that_is_plainly_inside_or_no_name_may_not(host: str) -> None:
    assert not may_be_asked_for(host, ())


@pytest.mark.parametrize(
    ("host", "is_listed", "may"),
    [
        ("auth.internal", True, True), ("auth", True, True), ("localhost", True, True),
        ("127.0.0.1", True, False), ("127.1", True, False), ("::1", True, False),
    ],
)  # fmt: skip
def test_a_name_that_is_listed_may_and_an_address_still_may_not(host: str, is_listed: bool, may: bool) -> None:
    assert may_be_asked_for(host, (), is_listed=is_listed) is may


def test_an_address_of_a_network_that_is_listed_may() -> None:
    networks = [ipaddress.ip_network("10.0.0.0/8")]
    assert may_be_asked_for("10.1.2.3", networks)
    assert may_be_asked_for("::ffff:10.1.2.3", networks)
    assert not may_be_asked_for("10.1", networks)  # written so, it is nobody's habit
    assert not may_be_asked_for("192.168.0.1", networks)


@given(st.ip_addresses())
def test_an_address_may_exactly_if_it_is_permitted(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert may_be_asked_for(str(address), ()) is is_permitted(address, ())


@given(st.integers(0, 2**32 - 1))
def test_an_address_as_one_number_never_may(number: int) -> None:
    for text in (str(number), hex(number), f"0{number:o}"):
        assert not may_be_asked_for(text, ())
        assert not may_be_asked_for(text, (), is_listed=True)


@given(st.text())
def test_there_is_always_an_answer(text: str) -> None:
    assert may_be_asked_for(text, ()) in {True, False}
