"""What is read of another replica's lease, and where this one says that it answers."""

import ipaddress
import json
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.advertising import advertised
from proxy.oci.address import is_neighbour
from proxy.oci.digest import Digest
from proxy.sections.server import Server
from proxy.stores.leases import Identity, Lease

SOUND = {
    "holder": "a" * 64, "address": "http://10.0.0.5:5000", "token": "b" * 64, "nonce": "c" * 32, "certificate": None
}  # fmt: skip


def parsed(**changed: object) -> Lease | None:
    """What is made of a lease that says something else."""
    return Lease.parse(json.dumps({**SOUND, **changed}).encode())


@pytest.mark.parametrize(
    "address",
    ["http://10.0.0.5:5000", "https://[fd00::5]:443", "http://entrepot-0.entrepot:5000", "http://127.0.0.1:80"],
)
def test_a_replica_may_be_anywhere(address: str) -> None:
    lease = parsed(address=address, certificate="d" * 64)
    assert lease is not None
    assert (lease.address, lease.certificate) == (address, "d" * 64)


@pytest.mark.parametrize(
    "changed",
    [
        {"address": "http://10.0.0.5:5000/v2/"},
        {"address": "http://10.0.0.5:5000?x"},
        {"address": "http://user@10.0.0.5:5000"},
        {"address": "file:///etc/passwd"},
        {"address": "http://"},
        {"address": "http://10.0.0.5:99999"},
        {"address": 1},
        {"address": None},
        {"token": "b" * 64 + "\r\nX: y"},
        {"token": "B" * 64},
        {"nonce": "../../blobs"},
        {"nonce": ""},
        {"holder": 1},
        {"certificate": "nothing"},
        {"certificate": 1},
        {"more": 1},
    ],
    ids=str,
)
def test_what_could_lead_anywhere_else_is_no_lease(changed: dict[str, object]) -> None:
    assert parsed() is not None
    assert parsed(**changed) is None


@pytest.mark.parametrize(
    ("address", "may"),
    [
        ("10.0.0.5", True), ("127.0.0.1", True), ("8.8.8.8", True), ("100.64.0.1", True), ("fd00::5", True),
        ("::ffff:10.0.0.5", True), ("169.254.169.254", False), ("::ffff:169.254.169.254", False), ("fe80::1", False),
        ("0.0.0.0", False), ("::", False),  # noqa: S104  nobody binds to it
        ("224.0.0.1", False), ("168.63.129.16", False), ("100.100.100.200", False),
        ("fd00:ec2::254", False), ("64:ff9b::a9fe:a9fe", False), ("255.255.255.255", False),
    ],
)  # fmt: skip
def test_a_replica_is_at_no_address_of_a_clouds_own_services(address: str, may: bool) -> None:
    assert is_neighbour(ipaddress.ip_address(address)) is may


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(sorted(SOUND)) | st.text(), inner),
    max_leaves=8,
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_is_in_the_bucket_is_a_lease_or_none(body: bytes) -> None:
    assert Lease.parse(body) is None


@given(st.sampled_from(sorted(SOUND)), JSON)
def test_whatever_a_word_of_it_is_there_is_an_answer(key: str, value: object) -> None:
    lease = parsed(**{key: value})
    assert lease is None or getattr(lease, key) == value


def test_a_token_tells_nothing_and_is_good_for_one_blob_of_one_directory() -> None:
    one, other, identity = Digest.of(b"one"), Digest.of(b"other"), Identity(b"secret" * 5)
    words = [identity.token(one), identity.token(other), identity.holder, Identity(b"other").token(one)]
    assert len(set(words)) == 4
    assert "secret" not in repr(identity)
    assert "b" * 64 not in repr(parsed())


@pytest.mark.parametrize(
    ("host", "settings", "found"),
    [
        ("127.0.0.1", {}, "http://127.0.0.1:{port}"),
        ("::1", {}, "http://[::1]:{port}"),
        ("127.0.0.1", {"tls_certificate": "/a", "tls_key": "/b"}, "https://127.0.0.1:{port}"),
        ("127.0.0.1", {"advertise": "https://cache.example/"}, "https://cache.example"),
    ],
)
def test_it_answers_where_it_listens_unless_it_is_told_otherwise(
    host: str, settings: dict[str, str], found: str
) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as sock:
        server = Server.model_validate(settings)
        assert advertised(server, sock) == found.format(port=sock.getsockname()[1])


def test_on_every_address_it_answers_at_one_that_others_can_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    class Anywhere:
        def getsockname(self) -> tuple[str, int]:
            return "0.0.0.0", 5000  # noqa: S104  nothing listens there

    found = advertised(Server(), Anywhere())  # type: ignore[arg-type]  # all that is asked of a socket
    assert found is None or (found.endswith(":5000") and "0.0.0.0" not in found)  # noqa: S104
    monkeypatch.setattr(socket.socket, "connect", refused)
    assert advertised(Server(), Anywhere()) is None  # type: ignore[arg-type]


def refused(_sock: socket.socket, _address: object) -> None:
    """What a machine without a way to others says."""
    raise OSError(101, "Network is unreachable")
