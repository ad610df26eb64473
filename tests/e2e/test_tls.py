"""TLS towards upstream: who is believed, as whom we appear, what is said of a failure, and files that change."""

import asyncio
import datetime
import json
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trustme

from proxy.config import ConfigError
from proxy.egress import Egress
from proxy.sections.upstream import Upstream

from .harness import Proxy, running, toml
from .networks import LOOPBACK, REPO, TAG, at, egress_of, server_tls, write_ca, write_pair
from .raw_client import RawAnswer
from .upstream import FakeRegistry, Storage, digest_of

DATA = bytes(range(256)) * 4096


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    """An authority that only ca_file makes known."""
    return trustme.CA()


@pytest.fixture(scope="module")
def other() -> trustme.CA:
    """Another one."""
    return trustme.CA()


@pytest.fixture
def bundle(ca: trustme.CA, tmp_path: Path) -> Path:
    """The file that makes it known."""
    return write_ca(tmp_path / "ca.pem", ca)


@pytest.fixture
async def registry(ca: trustme.CA) -> AsyncIterator[FakeRegistry]:
    """A registry by TLS, with a certificate of the authority's."""
    async with FakeRegistry(tls=server_tls(ca, "localhost"), name="localhost") as one:
        yield one


def said(answer: RawAnswer) -> str:
    """The sentence of an error, which is upstream's failure."""
    assert answer.status == 502, answer
    return str(json.loads(answer.body)["errors"][0]["message"])


async def refresh(proxy: Proxy) -> None:
    """What housekeeping does every few seconds."""
    await egress_of(proxy).refresh(proxy.app.housekeeping._log)


# Who is believed


async def test_ca_file_vouches_for_the_registry_and_for_where_it_leads(
    ca: trustme.CA, registry: FakeRegistry, bundle: Path, store: Path
) -> None:
    image = registry.add_image(REPO, "v1", [DATA])
    async with Storage(tls=server_tls(ca, "localhost"), name="localhost") as storage:
        registry.redirect_blobs_to(storage)
        async with running(at(registry, f'ca_file = "{bundle}"', LOOPBACK), store) as proxy:
            assert (await proxy.get(TAG)).body == image.body
            assert (await proxy.get(f"/v2/{REPO}/blobs/{image.layer_digests[0]}")).body == DATA


async def test_the_ca_of_one_upstream_is_not_anothers(registry: FakeRegistry, bundle: Path, store: Path) -> None:
    registry.add_image(REPO, "v1")
    more = f'[[upstream]]\nregistry = "other.example"\nurl = "{registry.url}"'
    async with running(at(registry, f'ca_file = "{bundle}"', more), store) as proxy:
        assert (await proxy.get(TAG)).status == 200
        assert "ca_file" in said(await proxy.get(f"{TAG}?ns=other.example"))


async def test_cached_images_go_on_while_the_ca_is_wrong(
    other: trustme.CA, registry: FakeRegistry, bundle: Path, store: Path
) -> None:
    image = registry.add_image(REPO, "v1", [DATA])
    text = at(registry, f'ca_file = "{bundle}"')
    async with running(text, store) as proxy:
        for target in (TAG, f"/v2/{REPO}/blobs/{image.layer_digests[0]}"):
            assert (await proxy.get(target)).status == 200
    write_ca(bundle, other)
    async with running(text, store) as proxy:
        assert (await proxy.get(TAG)).body == image.body
        assert (await proxy.get(f"/v2/{REPO}/blobs/{image.layer_digests[0]}")).body == DATA
        assert "signed by nobody known here: put its CA into ca_file" in said(
            await proxy.get(f"/v2/{REPO}/manifests/other")
        )


async def test_a_certificate_for_other_names_is_refused(ca: trustme.CA, bundle: Path, store: Path) -> None:
    async with FakeRegistry(tls=server_tls(ca, "elsewhere.test"), name="localhost") as registry:
        async with running(at(registry, f'ca_file = "{bundle}"'), store) as proxy:
            assert "the certificate of localhost is made out to other names" in said(await proxy.get(TAG))
        assert registry.requests == []


async def test_a_certificate_for_another_address_is_refused(ca: trustme.CA, bundle: Path, store: Path) -> None:
    async with FakeRegistry(tls=server_tls(ca, "127.0.0.2")) as registry:
        async with running(at(registry, f'ca_file = "{bundle}"'), store) as proxy:
            assert "is not made out to this address" in said(await proxy.get(TAG))
        assert registry.requests == []


@pytest.mark.parametrize(("days", "words"), [(-1, "has expired"), (1, "is not valid yet")])
async def test_a_certificate_out_of_its_time_is_refused(
    ca: trustme.CA, bundle: Path, store: Path, days: int, words: str
) -> None:
    day = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pair = ca.issue_cert("localhost", not_after=day) if days < 0 else ca.issue_cert("localhost", not_before=day)
    pair.configure_cert(tls)
    async with FakeRegistry(tls=tls, name="localhost") as registry:
        async with running(at(registry, f'ca_file = "{bundle}"'), store) as proxy:
            assert words in said(await proxy.get(TAG))
        assert registry.requests == []


# What the other side says; a server with threads, since uvloop's own drops the alert


@pytest.fixture
def serving_tls() -> Iterator["Threaded"]:
    """A TLS server that tells its clients why it refuses them."""
    server = Threaded()
    yield server
    server.close()


class Threaded:
    """Accepts one connection after the other; with no context it answers what is no TLS."""

    def __init__(self) -> None:
        self.tls: ssl.SSLContext | None = None
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://localhost:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            with peer:
                try:
                    self._serve(peer)
                except OSError:
                    continue

    def _serve(self, peer: socket.socket) -> None:
        peer.settimeout(5)
        if self.tls is None:
            peer.recv(4096)
            peer.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        with self.tls.wrap_socket(peer, server_side=True) as wrapped:
            wrapped.recv(4096)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_server_that_wants_a_client_certificate_is_said_to_want_one(
    ca: trustme.CA, other: trustme.CA, bundle: Path, store: Path, serving_tls: Threaded, version: ssl.TLSVersion
) -> None:
    serving_tls.tls = server_tls(ca, "localhost", clients=ca)
    serving_tls.tls.maximum_version = version
    text = toml(serving_tls.url, more=f'ca_file = "{bundle}"')
    async with running(text, store) as proxy:
        words = said(await proxy.get(TAG))
        assert "demand" in words
        assert "client_certificate and client_key" in words
    async with running(f"{text}\n{write_pair(other, store.parent)}", store) as proxy:
        assert "does not accept our client certificate" in said(await proxy.get(TAG))


async def test_nothing_older_than_tls_1_2_is_spoken(
    ca: trustme.CA, bundle: Path, store: Path, serving_tls: Threaded
) -> None:
    tls = server_tls(ca, "localhost")
    tls.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        tls.minimum_version, tls.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    serving_tls.tls = tls
    async with running(toml(serving_tls.url, more=f'ca_file = "{bundle}"'), store) as proxy:
        assert "offers no TLS 1.2 or newer" in said(await proxy.get(TAG))


@pytest.mark.parametrize("insecure", ["false", "true"])
async def test_https_never_becomes_http(store: Path, serving_tls: Threaded, insecure: str) -> None:
    async with running(toml(serving_tls.url, more=f"insecure = {insecure}"), store) as proxy:
        assert "does not speak TLS on this port" in said(await proxy.get(TAG))


# As whom we appear


async def test_the_client_certificate_is_for_the_registry_and_its_token_service_and_not_for_storage(
    ca: trustme.CA, bundle: Path, store: Path
) -> None:
    demanding = server_tls(ca, "localhost", clients=ca)
    async with (
        FakeRegistry(tls=demanding, name="localhost") as registry,
        FakeRegistry(tls=demanding, name="localhost") as issuer,
        Storage(tls=server_tls(ca, "localhost"), name="localhost") as storage,
        Storage(tls=demanding, name="localhost") as curious,
    ):
        issuer.on(path="/token").status(200, (), b'{"token":"good"}')
        image = registry.add_image(REPO, "v1", [DATA])
        registry.on(where=lambda request: request.header("Authorization") is None).status(
            401, [("WWW-Authenticate", f'Bearer realm="{issuer.url}/token"')]
        )
        pair = write_pair(ca, store.parent)
        text = at(registry, f'ca_file = "{bundle}"', pair, f'realm_hosts = ["{issuer.host}"]', LOOPBACK)
        async with running(text, store) as proxy:
            assert (await proxy.get(TAG)).body == image.body
            registry.redirect_blobs_to(curious)
            assert (await proxy.get(f"/v2/{REPO}/blobs/{image.layer_digests[0]}")).status == 502
            registry.redirect_blobs_to(storage)
            got = await proxy.get(f"/v2/{REPO}/blobs/{image.config_digest}")
            assert digest_of(got.body) == image.config_digest
        assert curious.requests == []


# insecure


async def test_insecure_is_for_the_origin_of_its_own_upstream_alone(
    other: trustme.CA, registry: FakeRegistry, store: Path
) -> None:
    image = registry.add_image(REPO, "v1", [DATA])
    async with (
        Storage(tls=server_tls(other, "localhost"), name="localhost") as storage,
        FakeRegistry(tls=server_tls(other, "localhost"), name="localhost") as issuer,
    ):
        more = f'[[upstream]]\nregistry = "other.example"\nurl = "{registry.url}"'
        keys = ("insecure = true", f'realm_hosts = ["{issuer.host}"]', LOOPBACK)
        async with running(at(registry, *keys, more), store) as proxy:
            assert (await proxy.get(TAG)).body == image.body
            assert "ca_file" in said(await proxy.get(f"{TAG}?ns=other.example"))
            registry.redirect_blobs_to(storage)
            assert "ca_file" in said(await proxy.get(f"/v2/{REPO}/blobs/{image.layer_digests[0]}"))
            registry.on().status(401, [("WWW-Authenticate", f'Bearer realm="{issuer.url}/token"')])
            assert "ca_file" in said(await proxy.get(f"/v2/{REPO}/manifests/other"))
        assert storage.requests == []
        assert issuer.requests == []


async def test_insecure_takes_any_certificate_and_shows_its_own(ca: trustme.CA, store: Path) -> None:
    async with FakeRegistry(tls=server_tls(ca, "elsewhere.test", clients=ca), name="localhost") as registry:
        registry.add_image(REPO, "v1")
        async with running(at(registry, "insecure = true", write_pair(ca, store.parent)), store) as proxy:
            assert (await proxy.get(TAG)).status == 200


# Files that change


async def test_a_new_ca_is_taken_over_under_traffic(
    ca: trustme.CA, other: trustme.CA, bundle: Path, store: Path
) -> None:
    tls = server_tls(ca, "localhost")
    async with FakeRegistry(tls=tls, name="localhost") as registry:
        image = registry.add_image(REPO, "v1", [DATA])
        layer = image.layer_digests[0]
        gate = registry.on("GET", blob=layer).gate(after=100_000)
        async with running(at(registry, f'ca_file = "{bundle}"'), store) as proxy:
            pulling = asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{layer}"))
            await gate.reached.wait()
            other.issue_cert("localhost").configure_cert(tls)  # the registry's certificate is replaced ...
            assert "ca_file" in said(await proxy.get(f"/v2/{REPO}/manifests/other"))
            write_ca(bundle, other)  # ... and then the CA here
            await refresh(proxy)
            assert (await proxy.get(TAG)).body == image.body
            gate.open()
            assert (await pulling).body == DATA  # what was under way is not disturbed
        assert registry.count("GET", path_contains=layer) == 1
        assert [record["event"] for record in proxy.log if "TLS" in record["event"]] == ["upstream's TLS files renewed"]


@pytest.mark.usefixtures("pauses_clock")
async def test_a_ca_that_was_missing_for_storage_is_taken_over_at_once(
    ca: trustme.CA, other: trustme.CA, registry: FakeRegistry, bundle: Path, store: Path
) -> None:
    digests = [registry.add_blob(REPO, bytes([number]) * 100) for number in range(5)]
    async with Storage(tls=server_tls(other, "localhost"), name="localhost") as storage:
        registry.redirect_blobs_to(storage)
        async with running(at(registry, f'ca_file = "{bundle}"', LOOPBACK), store) as proxy:
            for digest in digests[:3]:
                assert "ca_file" in said(await proxy.get(f"/v2/{REPO}/blobs/{digest}"))
            assert (await proxy.get(f"/v2/{REPO}/blobs/{digests[3]}")).status == 503  # it is left alone by now
            write_ca(bundle, ca, other)
            await refresh(proxy)
            assert (await proxy.get(f"/v2/{REPO}/blobs/{digests[4]}")).status == 200


async def test_an_idle_connection_made_with_the_old_files_is_not_used_again(
    ca: trustme.CA, registry: FakeRegistry, bundle: Path, store: Path
) -> None:
    digests = [registry.add_blob(REPO, bytes([number]) * 100) for number in range(3)]
    async with running(at(registry, f'ca_file = "{bundle}"'), store) as proxy:
        for digest in digests[:2]:
            assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).status == 200
        assert registry.connections == 1
        write_ca(bundle, trustme.CA(), ca)
        await refresh(proxy)
        assert (await proxy.get(f"/v2/{REPO}/blobs/{digests[2]}")).status == 200
        assert registry.connections == 2


async def test_a_new_client_certificate_is_taken_over(
    ca: trustme.CA, other: trustme.CA, bundle: Path, store: Path
) -> None:
    async with FakeRegistry(tls=server_tls(ca, "localhost", clients=other), name="localhost") as registry:
        registry.add_image(REPO, "v1")
        text = at(registry, f'ca_file = "{bundle}"', write_pair(ca, store.parent))
        async with running(text, store) as proxy:
            assert (await proxy.get(TAG)).status == 502
            write_pair(other, store.parent)
            await refresh(proxy)
            # Whoever is hung up on may be down, and is left alone for a second.
            while (await proxy.get(TAG)).status != 200:
                pass


def harm(damage: str, bundle: Path, key: Path) -> None:
    """Leave the files as an unfinished renewal would."""
    if damage == "other key":
        key.write_bytes(trustme.CA().issue_cert("x.test").private_key_pem.bytes())
    elif damage == "gone":
        bundle.unlink()
    else:
        whole = bundle.read_bytes()
        bundle.write_bytes(whole[: len(whole) // 2] if damage == "half" else b"")


@pytest.mark.parametrize("damage", ["half", "empty", "gone", "other key"])
async def test_files_amid_a_renewal_leave_the_old_ones_in_place_with_one_warning(
    ca: trustme.CA, bundle: Path, store: Path, damage: str
) -> None:
    async with FakeRegistry(tls=server_tls(ca, "localhost", clients=ca), name="localhost") as registry:
        registry.add_image(REPO, "v1")
        pair = write_pair(ca, store.parent)
        async with running(at(registry, f'ca_file = "{bundle}"', pair), store) as proxy:
            harm(damage, bundle, store.parent / "client.key")
            for _ in range(3):
                await refresh(proxy)
            assert (await proxy.get(TAG)).status == 200
            write_ca(bundle, ca)
            write_pair(ca, store.parent)
            await refresh(proxy)
            assert (await proxy.get(TAG)).status == 200
        records = [(record["event"], record["level"]) for record in proxy.log if "TLS" in record["event"]]
        assert records == [
            ("upstream's TLS files not renewed, keeping the old ones", "warning"),
            ("upstream's TLS files renewed", "info"),
        ]
        assert "PRIVATE" not in proxy.log_stream.getvalue()


async def test_without_its_files_an_upstream_does_not_start(bundle: Path) -> None:
    settings = {"registry": "own.example", "url": "https://own.example", "ca_file": bundle}
    async with Egress(Upstream.model_validate(settings)):
        pass
    harm("gone", bundle, bundle)
    with pytest.raises(ConfigError, match=r"upstream own\.example: ca_file: .*/ca\.pem cannot be read \(No such file"):
        async with Egress(Upstream.model_validate(settings)):
            pass
