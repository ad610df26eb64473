"""NO_PROXY: who is reached without the proxy."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.noproxy import NoProxy, parse

LABEL = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
NAME = st.lists(LABEL, min_size=2, max_size=4).map(".".join).filter(lambda name: not name.endswith("localhost"))
PORT = st.integers(1, 65535)


@pytest.mark.parametrize(
    ("text", "host", "port", "covered"),
    [
        ("example.com", "example.com", 443, True),
        ("example.com", "registry.example.com", 443, True),
        ("example.com", "notexample.com", 443, False),
        ("example.com", "example.com.evil.test", 443, False),
        ("example.com", "com", 443, False),
        (".example.com", "registry.example.com", 443, True),
        (".example.com", "example.com", 443, True),
        ("*.example.com", "registry.example.com", 443, True),
        ("EXAMPLE.com.", "Registry.Example.COM.", 443, True),
        ("example.com:5000", "example.com", 5000, True),
        ("example.com:5000", "example.com", 443, False),
        (".example.com:5000", "a.example.com", 5000, True),
        ("10.0.0.0/8", "10.1.2.3", 443, True),
        ("10.1.2.3/8", "10.255.0.1", 443, True),
        ("10.0.0.0/8", "11.0.0.1", 443, False),
        ("10.0.0.0/8", "10.example.com", 443, False),
        ("10.1.2.3", "10.1.2.3", 443, True),
        ("10.1.2.3", "10.1.2.30", 443, False),
        ("10.1.2.3:5000", "10.1.2.3", 5000, True),
        ("10.1.2.3:5000", "10.1.2.3", 443, False),
        ("10.0.0.0/8", "::ffff:10.0.0.1", 443, True),
        ("fd00::/8", "fd00::1", 443, True),
        ("fd00::1", "fd00::1", 443, True),
        ("fd00::1", "fd00::2", 443, False),
        ("[fd00::1]", "fd00::1", 443, True),
        ("[fd00::1]:5000", "fd00::1", 5000, True),
        ("[fd00::1]:5000", "fd00::1", 443, False),
        ("fe80::/10", "fe80::1%25eth0", 443, True),
        ("*", "anything.example", 443, True),
        ("a.test, *", "8.8.8.8", 443, True),
        ("a.test,b.test c.test\n\td.test", "d.test", 443, True),
        ("a.test,,b.test", "b.test", 443, True),
        ("", "example.com", 443, False),
        (",. ,*., :80, /8, []", "example.com", 443, False),
        ("", "localhost", 443, True),
        ("", "LOCALHOST.", 443, True),
        ("", "127.0.0.1", 443, True),
        ("", "127.9.9.9", 443, True),
        ("", "::1", 443, True),
        ("", "::ffff:127.0.0.1", 443, True),
        ("", "notlocalhost", 443, False),
    ],
)
def test_a_host_is_reached_directly_if_an_entry_names_it(text: str, host: str, port: int, covered: bool) -> None:
    assert parse(text).covers(host, port) is covered


@given(st.text(), st.text(), PORT)
def test_whatever_it_holds_there_is_an_answer(text: str, host: str, port: int) -> None:
    assert parse(text).covers(host, port) in {True, False}


@given(NAME, LABEL, PORT, st.lists(NAME))
def test_a_domain_covers_itself_and_all_below_and_no_name_that_only_ends_alike(
    domain: str, label: str, port: int, others: list[str]
) -> None:
    rules = parse(",".join([*others, domain]))
    assert rules.covers(domain, port)
    assert rules.covers(f"{label}.{domain}".upper(), port)
    assert not parse(domain).covers(f"{label}{domain}", port)


@given(NAME, PORT, PORT)
def test_a_port_is_held_to(domain: str, one: int, another: int) -> None:
    assert parse(f"{domain}:{one}").covers(domain, another) is (one == another)


@given(st.ip_addresses(v=4), st.integers(0, 32), st.ip_addresses(v=4), PORT)
def test_a_network_covers_what_is_in_it(
    base: ipaddress.IPv4Address, bits: int, host: ipaddress.IPv4Address, port: int
) -> None:
    network = ipaddress.ip_network(f"{base}/{bits}", strict=False)
    assert parse(str(network)).covers(str(host), port) is (host in network or host.is_loopback)


@given(st.ip_addresses(v=6), st.integers(0, 128), PORT)
def test_so_does_one_of_ipv6_with_brackets_or_without(base: ipaddress.IPv6Address, bits: int, port: int) -> None:
    assert parse(f"{base}/{bits}").covers(str(base), port) or base.ipv4_mapped is not None
    assert parse(f"[{base}]:{port}").covers(str(base), port) or base.ipv4_mapped is not None


def test_nothing_said_exempts_nothing_but_this_machine() -> None:
    assert not NoProxy().covers("example.com", 443)
    assert NoProxy().covers("127.0.0.1", 443)
