"""Through a forward proxy: which one, what it is told, what its failures are called, and what it is not asked for."""

import json
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from proxy import sessions

from .forward import ForwardProxy
from .harness import Clock, running, until
from .networks import LOOPBACK, REPO, TAG, at, server_tls, write_ca, write_pair
from .raw_client import RawAnswer
from .upstream import Canary, FakeRegistry, Storage, digest_of

DATA = bytes(range(256)) * 1024
NAMES = ("registry.test", "cdn.test", "auth.test", "regional.test")
USERS = {"gate": "opens: sesame"}
OPENS = f"Basic {b64encode(b'gate:opens: sesame').decode()}"


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    """An authority that only ca_file makes known."""
    return trustme.CA()


@pytest.fixture
def trusting(ca: trustme.CA, tmp_path: Path) -> str:
    """The key that makes it known."""
    return f'ca_file = "{write_ca(tmp_path / "ca.pem", ca)}"'


@pytest.fixture
async def registry(ca: trustme.CA) -> AsyncIterator[FakeRegistry]:
    """A registry by TLS at a name that only the forward proxy can resolve."""
    async with FakeRegistry(tls=server_tls(ca, "registry.test"), name="registry.test") as one:
        yield one


@pytest.fixture
async def forward() -> AsyncIterator[ForwardProxy]:
    """A forward proxy that knows the names of these tests."""
    async with ForwardProxy(known=NAMES) as one:
        yield one


def through(forward: ForwardProxy) -> str:
    """The key that names it."""
    return f'proxy = "{forward.url}"'


def as_gate(directory: Path) -> str:
    """The keys that log in to it."""
    (directory / "gate").write_text(USERS["gate"])
    return f'proxy_username = "gate"\nproxy_password_file = "{directory}/gate"'


def said(answer: RawAnswer) -> str:
    """The sentence of an error."""
    return str(json.loads(answer.body)["errors"][0]["message"])


# What goes through it


async def test_registry_token_service_and_storage_are_all_reached_through_the_proxy(
    ca: trustme.CA, trusting: str, registry: FakeRegistry, forward: ForwardProxy, store: Path
) -> None:
    async with (
        Storage(tls=server_tls(ca, "cdn.test"), name="cdn.test") as storage,
        FakeRegistry(tls=server_tls(ca, "auth.test"), name="auth.test") as issuer,
    ):
        issuer.on(path="/token").status(200, (), b'{"token":"good"}')
        image = registry.add_image(REPO, "v1", [DATA])
        challenge = f'Bearer realm="{issuer.url}/token",service="fake"'
        registry.on(where=lambda request: request.header("Authorization") is None).status(
            401, [("WWW-Authenticate", challenge)]
        )
        registry.redirect_blobs_to(storage)
        text = at(registry, trusting, through(forward), f'realm_hosts = ["{issuer.host}"]')
        async with running(text, store) as proxy:
            assert (await proxy.get(TAG)).body == image.body
            for digest in image.blob_digests:
                assert digest_of((await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body) == digest
        assert forward.hosts == {registry.host, storage.host, issuer.host}
        assert {request.method for request in forward.asked} == {"CONNECT"}
        assert forward.connections == registry.connections + storage.connections + issuer.connections
        assert forward.authorizations() == [None] * len(forward.asked)
        # A tunnel is kept as a connection is: the two blobs share one to the registry.
        assert storage.connections == 1


async def test_a_proxy_that_is_reached_by_tls_itself_is_gone_through_as_well(
    ca: trustme.CA, trusting: str, registry: FakeRegistry, store: Path
) -> None:
    image = registry.add_image(REPO, "v1", [DATA])
    async with ForwardProxy(known=NAMES, tls=server_tls(ca, "localhost"), name="localhost", users=USERS) as forward:
        text = at(registry, trusting, through(forward), as_gate(store.parent))
        async with running(text, store) as proxy:
            assert (await proxy.get(TAG)).body == image.body
            got = await proxy.get(f"/v2/{REPO}/blobs/{image.layer_digests[0]}")
            assert got.body == DATA
        assert set(forward.authorizations()) == {OPENS}


async def test_plain_http_is_asked_for_by_its_whole_url(
    upstream: FakeRegistry, forward: ForwardProxy, store: Path
) -> None:
    image = upstream.add_image(REPO, "v1", [DATA])
    async with Storage() as storage:
        upstream.redirect_blobs_to(storage)
        async with running(at(upstream, through(forward), LOOPBACK), store) as proxy:
            assert (await proxy.get(TAG)).body == image.body
            assert (await proxy.get(f"/v2/{REPO}/blobs/{image.layer_digests[0]}")).body == DATA
        assert forward.targets[0] == f"{upstream.url}/v2/{REPO}/manifests/v1"
        assert forward.targets[-1] == f"{storage.url}{storage.targets[-1]}"  # byte for byte, signature and all
        assert "CONNECT" not in {request.method for request in forward.asked}


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_the_proxys_password_is_told_to_the_proxy_and_to_nobody_else(
    trusting: str, registry: FakeRegistry, upstream: FakeRegistry, store: Path, scheme: str
) -> None:
    target = registry if scheme == "https" else upstream
    target.add_image(REPO, "v1", [DATA])
    async with ForwardProxy(known=NAMES, users=USERS) as forward:
        text = at(target, trusting, through(forward), as_gate(store.parent))
        async with running(text, store) as proxy:
            assert (await proxy.get(TAG)).status == 200
            assert "sesame" not in repr(proxy.config)
            assert "sesame" not in proxy.log_stream.getvalue()
        assert set(forward.authorizations()) == {OPENS}
    for request in target.requests:
        assert not [name for name, _ in request.headers if name.lower().startswith("proxy-")]


# Which one


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
async def test_without_a_key_it_is_the_environments_proxy(
    trusting: str, registry: FakeRegistry, store: Path, variable: str
) -> None:
    image = registry.add_image(REPO, "v1")
    async with ForwardProxy(known=NAMES, users=USERS) as forward:
        environ = {variable: f"http://gate:opens%3A%20sesame@{forward.host}", "NO_PROXY": "other.test"}
        async with running(at(registry, trusting), store, environ=environ) as proxy:
            assert (await proxy.get(TAG)).body == image.body
            assert "sesame" not in repr(proxy.config)
            assert "sesame" not in proxy.log_stream.getvalue()
        assert set(forward.authorizations()) == {OPENS}


async def test_the_key_wins_over_the_environment(
    trusting: str, registry: FakeRegistry, forward: ForwardProxy, store: Path
) -> None:
    image = registry.add_image(REPO, "v1")
    async with Canary() as canary:
        environ = {"HTTPS_PROXY": canary.url, "NO_PROXY": "*"}
        async with running(at(registry, trusting, through(forward)), store, environ=environ) as proxy:
            assert (await proxy.get(TAG)).body == image.body
        assert canary.connections == 0


@pytest.mark.parametrize("key", ['proxy = "none"', ""])
async def test_none_is_direct_and_so_is_this_machine_whatever_the_environment_says(
    upstream: FakeRegistry, store: Path, key: str
) -> None:
    image = upstream.add_image(REPO, "v1")
    async with Canary() as canary:
        environ = {"HTTP_PROXY": canary.url, "ALL_PROXY": canary.url}
        async with running(at(upstream, key), store, environ=environ) as proxy:
            assert (await proxy.get(TAG)).body == image.body
        assert canary.connections == 0


async def test_each_upstream_has_the_proxy_of_its_own(
    trusting: str, registry: FakeRegistry, upstream: FakeRegistry, forward: ForwardProxy, store: Path
) -> None:
    registry.add_image(REPO, "v1")
    upstream.add_image(REPO, "v1")
    more = f'[[upstream]]\nregistry = "own.example"\nurl = "{upstream.url}"'
    async with running(at(registry, trusting, through(forward), more), store) as proxy:
        assert (await proxy.get(f"{TAG}?ns=own.example")).status == 200
        assert forward.connections == 0
        assert (await proxy.get(TAG)).status == 200


# What its failures are called


async def fails(text: str, store: Path, *words: str) -> None:
    """What is not cached fails in one sentence that holds these words."""
    async with running(text, store) as proxy:
        answer = await proxy.get(f"/v2/{REPO}/manifests/other")
        assert answer.status in {502, 503, 504}
        for word in words:
            assert word in said(answer)
        assert "sesame" not in proxy.log_stream.getvalue() + said(answer)


async def warm(text: str, store: Path, image_digests: list[str]) -> None:
    """Bring an image into the cache."""
    async with running(text, store) as proxy:
        assert (await proxy.get(TAG)).status == 200
        for digest in image_digests:
            assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).status == 200


async def still_served(text: str, store: Path, image_digests: list[str]) -> None:
    """What is cached is served all the same."""
    async with running(text, store) as proxy:
        assert (await proxy.get(TAG)).status == 200
        for digest in image_digests:
            assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).status == 200


async def test_a_proxy_that_is_down_is_named_and_cached_images_go_on(
    trusting: str, registry: FakeRegistry, forward: ForwardProxy, store: Path
) -> None:
    image = registry.add_image(REPO, "v1", [DATA])
    text = at(registry, trusting, through(forward))
    await warm(text, store, list(image.blob_digests))
    await forward.go_down()
    await fails(text, store, f"cannot connect to the proxy {forward.host}")
    await still_served(text, store, list(image.blob_digests))


async def test_a_proxy_whose_name_does_not_resolve_is_named(trusting: str, registry: FakeRegistry, store: Path) -> None:
    text = at(registry, trusting, 'proxy = "http://proxy.invalid:3128"')
    await fails(text, store, "the name of the proxy proxy.invalid:3128 does not resolve")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (403, ("will not connect us to registry.test:", "allow it there")),
        (401, ("refuses the user or the password that it is given", "proxy_username")),  # tinyproxy's 407
        (502, ("cannot reach registry.test (it answered 502)",)),
        (503, ("cannot reach registry.test (it answered 503)",)),
        (504, ("cannot reach registry.test (it answered 504)",)),
        (302, ("answered 302 where a connection to registry.test was asked for",)),
    ],
)
async def test_what_the_proxy_answers_in_place_of_a_connection_is_said_to_be_its_own(
    trusting: str, registry: FakeRegistry, forward: ForwardProxy, store: Path, status: int, words: tuple[str, ...]
) -> None:
    image = registry.add_image(REPO, "v1", [DATA])
    text = at(registry, trusting, through(forward), as_gate(store.parent))
    await warm(text, store, list(image.blob_digests))
    forward.answer = status
    await fails(text, store, f"the proxy {forward.host}", *words)
    await still_served(text, store, list(image.blob_digests))


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_wants_a_password_says_which_key_is_missing_or_wrong(
    trusting: str, registry: FakeRegistry, upstream: FakeRegistry, store: Path, scheme: str
) -> None:
    target = registry if scheme == "https" else upstream
    async with ForwardProxy(known=NAMES, users={"gate": "another"}) as forward:
        text = at(target, trusting, through(forward))
        await fails(text, store, f"the proxy {forward.host} wants a user", "set proxy_username")
        wrong = at(target, trusting, through(forward), as_gate(store.parent))
        await fails(wrong, store, f"the proxy {forward.host} refuses the user or the password", "proxy_username")
        assert target.connections == 0


@pytest.mark.parametrize(
    "mark",
    ["X-Squid-Error: ERR_ACCESS_DENIED 0", "Proxy-Status: gate; error=http_request_denied", "Server: tinyproxy/1.11.1"],
)
async def test_a_proxys_own_403_to_plain_http_is_no_denial_of_upstreams(
    upstream: FakeRegistry, forward: ForwardProxy, store: Path, mark: str
) -> None:
    image = upstream.add_image(REPO, "v1", [DATA])
    text = at(upstream, through(forward))
    await warm(text, store, list(image.blob_digests))
    forward.answer, forward.marks = 403, (mark,)
    await fails(text, store, "will not connect us to 127.0.0.1:")
    await still_served(text, store, list(image.blob_digests))


async def test_a_proxy_that_hangs_up_is_named(
    trusting: str, registry: FakeRegistry, forward: ForwardProxy, store: Path
) -> None:
    forward.fate = "die"
    await fails(
        at(registry, trusting, through(forward)), store, f"registry.test through the proxy {forward.host} broke"
    )


async def test_a_proxy_that_says_nothing_is_given_up(
    trusting: str, registry: FakeRegistry, forward: ForwardProxy, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "CONNECT_TIMEOUT", 0.3)
    forward.fate = "hang"
    words = f"registry.test through the proxy {forward.host} did not answer in time"
    await fails(at(registry, trusting, through(forward)), store, words)


async def test_a_proxy_whose_certificate_nobody_knows_is_told_no_password(
    trusting: str, registry: FakeRegistry, store: Path
) -> None:
    async with ForwardProxy(
        known=NAMES, tls=server_tls(trustme.CA(), "localhost"), name="localhost", users=USERS
    ) as forward:
        for more in ("", "insecure = true"):  # insecure is about the upstream, not about the way to it
            text = at(registry, trusting, through(forward), as_gate(store.parent), more)
            await fails(
                text, store, f"the certificate of the proxy {forward.host} is signed by nobody known", "ca_file"
            )
        assert forward.asked == []


async def test_a_proxy_is_not_shown_the_client_certificate(ca: trustme.CA, trusting: str, store: Path) -> None:
    pair = write_pair(ca, store.parent)
    async with FakeRegistry(tls=server_tls(ca, "registry.test", clients=ca), name="registry.test") as registry:
        registry.add_image(REPO, "v1")
        async with (
            ForwardProxy(known=NAMES, tls=server_tls(ca, "localhost"), name="localhost") as forward,
            running(at(registry, trusting, through(forward), pair), store) as proxy,
        ):
            assert (await proxy.get(TAG)).status == 200
        # One that demands a certificate gets none, and lets nobody pass.
        tls = server_tls(ca, "localhost", clients=ca)
        async with ForwardProxy(known=NAMES, tls=tls, name="localhost") as curious:
            await fails(at(registry, trusting, through(curious), pair), store)
            assert curious.asked == []


# What it is not asked for

FORMS = [
    "127.0.0.1", "127.1", "127.0.0.1.", "0x7f000001", "0x7F.1", "2130706433", "017700000001", "0", "0.0.0.0",  # noqa: S104
    "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fe80::1%25lo]",
    "169.254.169.254", "100.100.100.200", "168.63.129.16", "10.0.0.1", "[fd00:ec2::254]",
    "localhost", "LOCALHOST", "localhost.", "x.localhost", "printer.local", "db.internal", "metadata.google.internal",
    "metadata.tencentyun.com", "kubernetes.default.svc", "intranet", "router.lan", "127%2e0%2e0%2e1", "a_b",
    "\u2460\u2461\u2466.0.0.1", "127\u30020.0.1",
]  # fmt: skip


def latin(text: str) -> str:
    """As it goes over the wire."""
    return text.encode().decode("latin-1")


@pytest.mark.parametrize("vector", ["blob", "manifest", "second hop", "realm"])
async def test_the_proxy_is_asked_for_no_host_that_is_not_public(
    upstream: FakeRegistry, forward: ForwardProxy, store: Path, vector: str
) -> None:
    async with Canary() as canary:
        port = canary.host.partition(":")[2]
        forward.known |= {form.strip("[]") for form in FORMS} | set(FORMS)  # it would do it
        async with running(at(upstream, through(forward)), store) as proxy:
            for number, form in enumerate(FORMS):
                upstream.forget_rules()
                where = latin(f"http://{form}:{port}/x")
                if vector == "realm":
                    upstream.on().status(401, [("WWW-Authenticate", f'Bearer realm="{where}"')])
                elif vector == "second hop":
                    upstream.on(path="/hop").redirect(where)
                    upstream.on().redirect("/hop")
                else:
                    upstream.on().redirect(where)
                digest = digest_of(str(number).encode())
                kind = "blobs" if vector == "blob" else "manifests"
                assert (await proxy.get(f"/v2/{REPO}/{kind}/{digest}")).status == 502, form
        assert canary.connections == 0
    assert forward.hosts == {upstream.host}


async def test_a_realm_that_is_listed_by_its_name_is_asked_for_though_it_is_inside(
    ca: trustme.CA, trusting: str, registry: FakeRegistry, forward: ForwardProxy, store: Path
) -> None:
    forward.known.add("auth.internal")
    async with FakeRegistry(tls=server_tls(ca, "auth.internal"), name="auth.internal") as issuer:
        issuer.on(path="/token").status(200, (), b'{"token":"good"}')
        registry.add_image(REPO, "v1")
        registry.on(where=lambda request: request.header("Authorization") is None).status(
            401, [("WWW-Authenticate", f'Bearer realm="{issuer.url}/token"')]
        )
        text = at(registry, trusting, through(forward), 'realm_hosts = ["auth.internal"]')
        async with running(text, store) as proxy:
            assert (await proxy.get(TAG)).status == 200


async def test_an_environment_that_exempts_a_host_does_not_exempt_it_from_the_guard(
    trusting: str, registry: FakeRegistry, store: Path
) -> None:
    async with ForwardProxy(known=NAMES) as forward, Canary() as canary:
        registry.on().redirect(canary.url.replace("http:", "https:"))
        environ = {"HTTPS_PROXY": forward.url, "NO_PROXY": "127.0.0.0/8"}
        async with running(at(registry, trusting), store, environ=environ) as proxy:
            assert "private_networks" in said(await proxy.get(TAG))
        assert canary.connections == 0
        assert forward.hosts == {registry.host}


# Storage that is down


async def test_storage_that_is_down_is_left_alone_for_a_while_and_the_registry_is_not(
    upstream: FakeRegistry, store: Path, pauses_clock: Clock
) -> None:
    image = upstream.add_image(REPO, "v1")
    digests = [upstream.add_blob(REPO, bytes([number]) * 1000) for number in range(3)]
    async with Storage() as storage:
        upstream.redirect_blobs_to(storage)
        await storage.go_down()
        async with running(at(upstream, LOOPBACK), store) as proxy:
            first = await proxy.get(f"/v2/{REPO}/blobs/{digests[0]}")
            assert "cannot connect to 127.0.0.1" in said(first)
            second = await proxy.get(f"/v2/{REPO}/blobs/{digests[1]}")
            assert (second.status, second.header("Retry-After") is None) == (503, False)
            assert "3 times in a row" in said(second)
            assert (await proxy.get(TAG)).body == image.body  # nothing of it counts against the registry
            storage.come_back()
            assert (await proxy.get(f"/v2/{REPO}/blobs/{digests[2]}")).status == 503
            pauses_clock.now += 9  # once the pause is over, the next request is the one that finds out
            assert digest_of((await proxy.get(f"/v2/{REPO}/blobs/{digests[2]}")).body) == digests[2]
            assert (await proxy.get(f"/v2/{REPO}/blobs/{digests[0]}")).status == 200
            await until(lambda: storage.count() == 2)


@pytest.mark.usefixtures("pauses_clock")
async def test_a_token_service_that_is_down_is_left_alone_for_a_while(upstream: FakeRegistry, store: Path) -> None:
    upstream.add_image(REPO, "v1")
    async with FakeRegistry() as issuer:
        await issuer.go_down()
        upstream.require_bearer(realm=f"{issuer.url}/token", anonymous=False)
        async with running(at(upstream, LOOPBACK, f'realm_hosts = ["{issuer.host}"]'), store) as proxy:
            assert (await proxy.get(TAG)).status == 502
            answer = await proxy.get(TAG)
            assert (answer.status, "left alone" in said(answer)) == (503, True)


@pytest.mark.usefixtures("pauses_clock")
async def test_storage_that_the_proxy_cannot_reach_is_left_alone_and_a_refusing_proxy_is_not_the_hosts_fault(
    upstream: FakeRegistry, trusting: str, registry: FakeRegistry, forward: ForwardProxy, store: Path
) -> None:
    digests = [registry.add_blob(REPO, bytes([number]) * 1000) for number in range(3)]
    registry.on("GET", path_contains="/blobs/").redirect("https://unknown.test/x")
    async with running(at(registry, trusting, through(forward)), store) as proxy:
        first = await proxy.get(f"/v2/{REPO}/blobs/{digests[0]}")
        assert "cannot reach unknown.test (it answered 502)" in said(first)
        assert "left alone" in said(await proxy.get(f"/v2/{REPO}/blobs/{digests[1]}"))
    async with running(at(registry, trusting, through(forward)), store) as proxy:
        for _ in range(5):
            forward.answer = None
            assert (await proxy.get(f"/v2/{REPO}/manifests/{digests[2]}")).status == 404
            forward.answer = 403
            assert "will not connect us" in said(await proxy.get(f"/v2/{REPO}/blobs/{digests[2]}"))
