"""Who is sent to the bucket for a blob: clients of listed networks that are known to follow, and nobody else."""

import ipaddress
from dataclasses import replace

import pytest
from multidict import CIMultiDict

from proxy.redirects import Client, Rules

NAMED = "https://images.s3.eu-central-1.amazonaws.com"
CONTAINERD = Client("10.1.2.3", (1, 1), is_secure=False, headers=CIMultiDict({"User-Agent": "containerd/1.7.2"}))


def rules(*networks: str, endpoint: str = NAMED) -> Rules:
    """What a configuration of these networks comes to."""
    return Rules.leading_to(endpoint, tuple(ipaddress.ip_network(network) for network in networks))


def client(**headers: str) -> Client:
    """A client from the right network, with these headers in addition to containerd's."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return replace(CONTAINERD, headers=CIMultiDict({**CONTAINERD.headers, **named}))


@pytest.mark.parametrize(
    ("address", "is_near"),
    [
        ("10.0.0.0", True), ("10.255.255.255", True), ("11.0.0.0", False), ("9.255.255.255", False),
        ("::ffff:10.1.2.3", True), ("::ffff:11.1.2.3", False), ("2001:db8::1", True), ("2001:db9::1", False),
        ("192.0.2.7", True), ("192.0.2.8", False), ("fe80::1%eth0", True), ("::1", False), ("::10.1.2.3", False),
        ("", False), (None, False), ("unix", False), ("10.1.2.3:80", False),
    ],
)  # fmt: skip
def test_only_clients_of_listed_networks_are_redirected(address: str | None, is_near: bool) -> None:
    some = rules("10.0.0.0/8", "2001:db8::/32", "192.0.2.7/32", "fe80::/10")
    assert some.admit(replace(CONTAINERD, address=address)) is is_near


def test_where_no_network_is_listed_nobody_is() -> None:
    assert not rules().admit(CONTAINERD)
    assert rules("0.0.0.0/0").admit(CONTAINERD)
    assert not rules("::/0").admit(CONTAINERD)


@pytest.mark.parametrize(
    ("agent", "follows"),
    [
        ("docker/20.10.24+dfsg1 go/go1.19.8 kernel/6.1 os/linux arch/amd64 UpstreamClient(Docker-Client/28.2.2)", True),
        ("containerd/v1.7.11-k3s2", True),
        ("buildkit/v0.12", True),
        ("containers/5.23.1 (github.com/containers/image)", True),
        ("skopeo/1.9.3", True),
        ("Buildah/1.28.2", True),
        ("cri-o/1.30.0 go/go1.22 os/linux arch/amd64", True),
        ("crane/0.20.2 go-containerregistry/v0.20.2", True),
        ("go-containerregistry/v0.20.2", True),
        ("oras/1.2.0+Homebrew", True),
        ("oras-go", True),
        ("Helm/3.14.0", True),
        ("curl/8.5.0", False),
        ("Go-http-client/1.1", False),
        ("Mozilla/5.0 docker/20.10", False),
        ("dockerish/1.0", False),
        ("entrepot/1.0", False),
        ("", False),
    ],
)
def test_only_clients_that_are_known_to_follow_are(agent: str, follows: bool) -> None:
    assert rules("10.0.0.0/8").admit(client(User_Agent=agent)) is follows


def test_a_client_that_does_not_say_what_it_is_gets_bytes() -> None:
    assert not rules("10.0.0.0/8").admit(replace(CONTAINERD, headers={}))


@pytest.mark.parametrize("endpoint", ["http://10.0.0.9:7480", "https://192.0.2.1", "https://[2001:db8::1]:7480"])
@pytest.mark.parametrize("agent", ["crane/0.20.2 go-containerregistry/v0.20.2", "ko/1 go-containerregistry"])
def test_a_client_that_follows_to_names_only_is_not_sent_to_an_address(endpoint: str, agent: str) -> None:
    assert not rules("10.0.0.0/8", endpoint=endpoint).admit(client(User_Agent=agent))
    assert rules("10.0.0.0/8", endpoint=endpoint).admit(CONTAINERD)


@pytest.mark.parametrize("version", [(0, 9), (1, 0)])
def test_a_client_of_old_http_gets_bytes(version: tuple[int, int]) -> None:
    assert not rules("10.0.0.0/8").admit(replace(CONTAINERD, version=version))


@pytest.mark.parametrize("from_secure", [True, False])
@pytest.mark.parametrize("to_secure", [True, False])
def test_nobody_who_came_by_tls_is_sent_to_where_there_is_none(from_secure: bool, to_secure: bool) -> None:
    some = rules("10.0.0.0/8", endpoint="https://ceph.example" if to_secure else "http://ceph.example")
    assert some.admit(replace(CONTAINERD, is_secure=from_secure)) is (to_secure or not from_secure)


@pytest.mark.parametrize(
    "name", ["range", "If_Range", "if_none_match", "Authorization", "Forwarded", "x_forwarded_for", "Via"]
)
def test_what_the_bucket_would_not_answer_as_we_do_is_answered_here(name: str) -> None:
    assert not rules("10.0.0.0/8").admit(client(**{name: "x"}))
    assert rules("10.0.0.0/8").admit(client(Accept_Encoding="zstd"))
