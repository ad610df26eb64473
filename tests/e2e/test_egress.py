"""Where the proxy goes: redirects followed by hand, each hop looked at, and nothing carried along."""

import json
import re
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from proxy.egress import Egress, read_limited
from proxy.oci.errors import OciError
from proxy.sections.upstream import Upstream

from .harness import Proxy, running, serving, toml
from .raw_client import RawAnswer
from .upstream import OCI_MANIFEST, Canary, FakeRegistry, Storage, digest_of

REPO = "library/app"
TAG = f"/v2/{REPO}/manifests/v1"
DATA = bytes(range(256)) * 1024
LOOPBACK = 'private_networks = ["127.0.0.0/8", "::1"]'
USERS = {"ann": "pw"}


@pytest.fixture
async def storage() -> AsyncIterator[Storage]:
    """Another host, where the blobs are."""
    async with Storage() as one:
        yield one


@pytest.fixture
async def lenient(upstream: FakeRegistry, store: Path) -> AsyncIterator[Proxy]:
    """A proxy whose upstream may redirect to this machine."""
    async with running(toml(upstream.url, more=LOOPBACK), store) as proxy:
        yield proxy


def problem(answer: RawAnswer) -> tuple[int, str]:
    """The status and the code of an error."""
    return answer.status, str(json.loads(answer.body)["errors"][0]["code"])


def as_ann(store: Path) -> str:
    """What an [[upstream]] needs to say to log in."""
    secret = store.parent / "secret"
    secret.write_text("pw")
    return f'username = "ann"\npassword_file = "{secret}"\n{LOOPBACK}'


# Redirects that are followed


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_blobs_are_fetched_from_where_upstream_says(
    upstream: FakeRegistry, storage: Storage, lenient: Proxy, status: int
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.redirect_blobs_to(storage, status=status)
    for _ in range(2):
        got = await lenient.get(f"/v2/{REPO}/blobs/{digest}")
        assert (got.status, digest_of(got.body), got.header("Location")) == (200, digest, None)
        await lenient.settled()
    assert (upstream.count(), storage.count()) == (1, 1)


@pytest.mark.parametrize("login", ["bearer", "basic"])
async def test_storage_is_sent_no_authorization(
    upstream: FakeRegistry, storage: Storage, store: Path, login: str
) -> None:
    image = upstream.add_image(REPO, "v1", [DATA])
    upstream.redirect_blobs_to(storage)
    if login == "bearer":
        upstream.require_bearer(users=USERS, anonymous=False)
    else:
        upstream.require_basic(USERS)
    async with running(toml(upstream.url, more=as_ann(store)), store) as proxy:
        assert (await proxy.get(TAG)).status == 200
        for digest in image.blob_digests:
            assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).status == 200
    assert storage.count() == 2
    for request in storage.requests:
        names = {name.lower() for name, _ in request.headers}
        assert names <= {"host", "user-agent", "accept-encoding", "connection"}
        assert request.header("Accept-Encoding") == "identity"


async def test_a_redirect_on_upstreams_own_host_keeps_the_authorization(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1")
    upstream.require_basic(USERS)
    upstream.on("GET", manifest="v1").redirect(f"/v2/{REPO}/manifests/{image.digest}")
    async with running(toml(upstream.url, more=as_ann(store)), store) as proxy:
        assert (await proxy.get(TAG)).body == image.body
    assert [request.header("Authorization") is None for request in upstream.requests] == [True, False, False]


SIGNED = [
    "/bucket/plain",
    "/bucket/a%2Fb/../%7Ec",
    "/bucket/%2e%2e/x",
    "/bucket/./y//z",
    "/bucket/a+b%20c%2B",
    "/bucket/~tilde%7etilde",
    "/bucket/sha256%3Aabc:def@x",
    "/bucket/%E2%98%83%25",
    "/bucket/a;b=c,d!$&'()*",
    "/bucket/a%5Cb%22",
    "/a/../../b/%2E",
]


@pytest.mark.parametrize("path", SIGNED)
async def test_a_signed_url_is_requested_byte_for_byte(
    upstream: FakeRegistry, storage: Storage, lenient: Proxy, path: str
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    url = storage.put(path, DATA) + "&x=a%2Fb+c%20d&y=%7E~&z="
    signed = storage.put(path, DATA)
    rule = upstream.on("GET", blob=digest).redirect(signed)
    got = await lenient.get(f"/v2/{REPO}/blobs/{digest}")
    assert digest_of(got.body) == digest
    assert storage.targets == [signed.removeprefix(storage.url)]
    rule.stop()
    other = upstream.add_blob(REPO, b"x")
    upstream.on("GET", blob=other).redirect(url)
    await lenient.get(f"/v2/{REPO}/blobs/{other}")
    assert storage.targets[1] == url.removeprefix(storage.url)


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/storage/a%2Fb/../x?y=%7E", "/storage/a%2Fb/../x?y=%7E"),
        ("//{host}/storage/a%2Fb?u=http://x/", "/storage/a%2Fb?u=http://x/"),
        ("{url}/storage/x#fragment", "/storage/x"),
        ("../storage?x=http://evil/", "/v2/library/app/storage?x=http://evil/"),
        ("storage", "/v2/library/app/blobs/storage"),
        ("?x=1", "/v2/library/app/blobs/{digest}?x=1"),
        ("HTTP://{host}/storage", "/storage"),
    ],
)
async def test_a_location_may_be_relative(upstream: FakeRegistry, proxy: Proxy, location: str, target: str) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, times=1).redirect(location.format(host=upstream.host, url=upstream.url))
    wanted = target.format(digest=digest)
    upstream.on("GET", where=lambda request: request.target == wanted).status(200, (), DATA)
    assert digest_of((await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body) == digest
    assert upstream.requests[-1].target == wanted


async def test_manifests_and_tags_may_be_elsewhere_too(upstream: FakeRegistry, lenient: Proxy) -> None:
    async with FakeRegistry() as regional:
        image = regional.add_image("mirror/app", "v1")
        upstream.on(path_contains="/manifests/").redirect(
            lambda request: f"{regional.url}/v2/mirror/app/manifests/{request.path.rpartition('/')[2]}"
        )
        upstream.on(path_contains="/tags/").redirect(f"{regional.url}/v2/mirror/app/tags/list")
        for reference in ("v1", image.digest):
            got = await lenient.get(f"/v2/{REPO}/manifests/{reference}")
            assert (got.body, got.header("Content-Type")) == (image.body, OCI_MANIFEST)
        assert json.loads((await lenient.get(f"/v2/{REPO}/tags/list")).body)["tags"] == ["v1"]
        assert (await lenient.get(f"/v2/{REPO}/manifests/none")).status == 404
        assert OCI_MANIFEST in (regional.requests[0].header("Accept") or "")


async def test_five_hops_are_followed_and_six_are_not(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on(path="/hop/0").status(200, (), DATA)
    for number in range(1, 7):
        upstream.on(path=f"/hop/{number}").redirect(f"/hop/{number - 1}")
    upstream.on("GET", blob=digest, times=1).redirect("/hop/5")
    assert problem(await proxy.get(f"/v2/{REPO}/blobs/{digest}")) == (502, "UNAVAILABLE")
    assert upstream.count(path_contains="/hop/") == 5
    upstream.on("GET", blob=digest, times=1).redirect("/hop/4")
    assert digest_of((await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body) == digest


async def test_a_redirect_that_goes_round_is_given_up(upstream: FakeRegistry, proxy: Proxy) -> None:
    upstream.on().redirect("/round")
    assert problem(await proxy.get(TAG)) == (502, "UNAVAILABLE")
    assert upstream.count() == 6


async def test_a_resume_begins_at_the_registry_and_keeps_its_range(
    upstream: FakeRegistry, storage: Storage, lenient: Proxy
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.redirect_blobs_to(storage)
    storage.on("GET", times=1).truncate(after=100_000)
    assert digest_of((await lenient.get(f"/v2/{REPO}/blobs/{digest}")).body) == digest
    assert [request.header("Range") for request in storage.requests] == [None, "bytes=100000-"]
    assert [request.header("Range") for request in upstream.requests] == [None, "bytes=100000-"]
    assert storage.targets[0] != storage.targets[1]  # signed anew


@pytest.mark.parametrize("after", [None, 100_000])
async def test_for_a_signature_that_expired_the_registry_is_asked_again(
    upstream: FakeRegistry, storage: Storage, lenient: Proxy, after: int | None
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.redirect_blobs_to(storage)
    if after is None:
        storage.on(times=1).status(403)
    else:
        storage.on(times=1).truncate(after)
        storage.on(times=1).status(403)
    got = await lenient.get(f"/v2/{REPO}/blobs/{digest}")
    assert (got.status, digest_of(got.body)) == (200, digest)
    assert len(set(storage.targets)) == len(storage.targets) == upstream.count()


async def test_a_signed_url_is_not_kept_for_a_later_request(
    upstream: FakeRegistry, storage: Storage, lenient: Proxy
) -> None:
    digests = [upstream.add_blob(REPO, bytes([number]) * 1000) for number in range(3)]
    upstream.redirect_blobs_to(storage)
    for digest in digests:
        assert (await lenient.get(f"/v2/{REPO}/blobs/{digest}")).status == 200
        storage.expire_all()
    assert upstream.count() == storage.count() == 3


async def test_what_storage_denies_is_no_denial_of_upstreams(
    upstream: FakeRegistry, storage: Storage, lenient: Proxy
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.redirect_blobs_to(storage)
    storage.on().status(403)
    assert problem(await lenient.get(f"/v2/{REPO}/blobs/{digest}")) == (502, "UNAVAILABLE")
    assert 2 <= upstream.count() <= 3


async def test_a_head_does_not_follow_to_storage(upstream: FakeRegistry, storage: Storage, lenient: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("HEAD").redirect(storage.url)
    upstream.redirect_blobs_to(storage)
    got = await lenient.head(f"/v2/{REPO}/blobs/{digest}")
    assert (got.status, got.header("Content-Length")) == (200, str(len(DATA)))
    assert [(request.method, request.header("Range")) for request in storage.requests] == [("GET", "bytes=0-0")]
    assert storage.body_bytes_sent <= 1


# Redirects that are not


FORBIDDEN = [
    "http://{canary}/x",
    "http://localhost:{port}/x",
    "http://LOCALHOST:{port}/x",
    "http://127.1:{port}/x",
    "http://127.0.0.1.:{port}/x",
    "http://2130706433:{port}/x",
    "http://0x7f000001:{port}/x",
    "http://017700000001:{port}/x",
    "http://0:{port}/x",
    "http://0.0.0.0:{port}/x",
    "http://[::]:{port}/x",
    "http://[::1]:{port}/x",
    "http://[::ffff:127.0.0.1]:{port}/x",
    "http://[::ffff:7f00:1]:{port}/x",
    "http://[64:ff9b::7f00:1]:{port}/x",
    "http://[::127.0.0.1]:{port}/x",
    "http://[fe80::1%25lo]:{port}/x",
    "http://\u2460\u2461\u2466.0.0.1:{port}/x",
    "http://127\u30020.0.1:{port}/x",
    "http://{own}@{canary}/x",
    "http://user:pass@{own}/x",
    "http://{canary}\\@{own}/x",
    "//{canary}/x",
    "///{canary}/x",
    "\\\\{canary}\\x",
    "/\\{canary}/x",
    "http:{canary}/x",
    "http:///{canary}/x",
    "ftp://{canary}/x",
    "gopher://{canary}/x",
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "unix:///var/run/docker.sock",
    "data:text/plain,x",
    "javascript:x",
    "http://",
    "http://[",
    "http://{canary}:99999/x",
    "http://127.0.0.1:99999/x",
    "http://127.0.0.1:-1/x",
    "http://127.0.0.1:0/x",
    "http://127.0.0.1:port/x",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/",
    "http://100.100.100.200/",
    "http://10.0.0.1/",
    "http://192.168.0.1/",
    "http://172.16.0.1/",
    "http://168.63.129.16/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://240.0.0.1/",
    "http://[::ffff:169.254.169.254]/",
    "http://[2002:7f00:1::]/",
]


@pytest.mark.parametrize("location", FORBIDDEN)
async def test_a_redirect_to_what_is_not_public_makes_no_connection(
    upstream: FakeRegistry, proxy: Proxy, location: str
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with Canary() as canary:
        where = location.format(canary=canary.host, port=canary.host.partition(":")[2], own=upstream.host)
        upstream.on("GET", blob=digest).redirect(where.encode().decode("latin-1"))
        for _ in range(2):
            got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
            assert got.status in {404, 502, 503}, got  # 404: it is a path on upstream itself
            assert b"passwd" not in got.body
        assert canary.connections == 0
    assert proxy.blobs() == []
    assert proxy.spools() == []
    assert upstream.count() <= 12


# Forms that lead to this machine, by one way or another; "{port}" goes behind each.
OURSELVES = [
    "127.0.0.1", "127.1", "127.0.0.1.", "2130706433", "0x7f000001", "017700000001", "0", "0.0.0.0",  # noqa: S104
    "localhost", "LOCALHOST", "localhost.", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
    "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[::127.0.0.1]", "\u2460\u2461\u2466.0.0.1", "127\u30020.0.1",
    "127.0.0.1:{port}@localhost", "169.254.169.254", "100.100.100.200", "168.63.129.16",
]  # fmt: skip


class Canary6(Canary):
    """A canary at ::1."""

    def __init__(self, port: int) -> None:
        super().__init__(name="[::1]")
        self._port = port

    def _bind(self) -> None:
        self._socket = socket.socket(socket.AF_INET6)
        self._socket.setblocking(False)
        self._socket.bind(("::1", self._port))


@pytest.fixture
async def canaries() -> AsyncIterator[tuple[Canary, Canary6]]:
    """A port that nobody may connect to, neither at 127.0.0.1 nor at ::1."""
    async with Canary() as canary, Canary6(int(canary.host.partition(":")[2])) as canary6:
        yield canary, canary6


@pytest.mark.parametrize("vector", ["manifest", "tag", "second hop", "head", "realm", "realm unlisted"])
async def test_by_no_way_is_a_connection_made_to_what_is_not_public(
    upstream: FakeRegistry, store: Path, canaries: tuple[Canary, Canary6], vector: str
) -> None:
    port = canaries[0].host.partition(":")[2]
    listed = [form.lower() for form in OURSELVES if form.isascii() and re.fullmatch(r"[\w.]*\w", form)]
    more = f"realm_hosts = {json.dumps(listed)}" if vector == "realm" else ""
    async with running(toml(upstream.url, more=f'{more}\ntag_ttl = "0s"'), store) as proxy:
        for number, form in enumerate(OURSELVES):
            upstream.forget_rules()
            where = f"http://{form.format(port=port)}:{port}/x".encode().decode("latin-1")
            if vector.startswith("realm"):
                upstream.on().status(401, [("WWW-Authenticate", f'Bearer realm="{where}"')])
            elif vector == "second hop":
                upstream.on(path="/hop").redirect(where)
                upstream.on().redirect("/hop")
            else:
                upstream.on().redirect(where)
            reference = f"v{number}" if vector == "tag" else digest_of(str(number).encode())
            ask = proxy.head if vector == "head" else proxy.get
            assert (await ask(f"/v2/{REPO}/manifests/{reference}")).status == 502, form
    assert [canary.connections for canary in canaries] == [0, 0]


@pytest.mark.parametrize("path", ["tags/list", f"referrers/{digest_of(b'subject')}"])
async def test_no_link_leads_the_proxy_anywhere(
    upstream: FakeRegistry, proxy: Proxy, canaries: tuple[Canary, Canary6], path: str
) -> None:
    upstream.add_image(REPO, "v1")
    port = canaries[0].host.partition(":")[2]
    for form in OURSELVES:
        upstream.forget_rules()
        where = f"http://{form.format(port=port)}:{port}/v2/{REPO}/{path}?last=a".encode().decode("latin-1")
        upstream.on("GET", path_contains=path.partition("/")[0]).extra_headers(("Link", f'<{where}>; rel="next"'))
        link = (await proxy.get(f"/v2/{REPO}/{path}")).header("Link") or ""
        assert not link or link.startswith("</v2/"), form
        if link:  # it leads to the proxy itself, and from there to upstream
            assert (await proxy.get(link.partition("<")[2].partition(">")[0])).status == 200
    assert [canary.connections for canary in canaries] == [0, 0]


async def test_no_ns_leads_anywhere(upstream: FakeRegistry, proxy: Proxy, canaries: tuple[Canary, Canary6]) -> None:
    port = canaries[0].host.partition(":")[2]
    for form in OURSELVES:
        place = quote(form.format(port=port).encode())
        for ns in (place, f"{place}:{port}", f"http://{place}:{port}"):
            assert (await proxy.get(f"{TAG}?ns={ns}")).status in {400, 404}, ns
    assert [canary.connections for canary in canaries] == [0, 0]
    assert upstream.connections == 0


class Answers(AbstractResolver):
    """Resolves every name to what is next, and to the last for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_INET) -> list[ResolveResult]:
        """The next answer."""
        self.asked += 1
        found = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [
            ResolveResult(
                hostname=host, host=one, port=port, proto=0, flags=0,
                family=socket.AF_INET6 if ":" in one else socket.AF_INET,
            )
            for one in found
        ]  # fmt: skip

    async def close(self) -> None:
        """Nothing is held."""


class Storage2(Storage):
    """A storage at 127.0.0.2, which the configuration permits."""

    def _bind(self) -> None:
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.bind(("127.0.0.2", self._port))


def settled_on(*networks: str) -> Upstream:
    """An upstream that may lead to these networks."""
    return Upstream.model_validate(
        {"registry": "own.example", "url": "https://own.example", "private_networks": list(networks)}
    )


async def test_a_name_that_resolves_to_this_machine_is_not_connected_to(canaries: tuple[Canary, Canary6]) -> None:
    port = canaries[0].host.partition(":")[2]
    for answer in (["127.0.0.1"], ["::1"], ["127.0.0.1", "::1"], ["::ffff:127.0.0.1"], ["0.0.0.0"], ["::"]):  # noqa: S104
        async with Egress(settled_on(), resolver=Answers(answer)) as egress:
            with pytest.raises(OciError, match="private_networks"):
                await egress.request("GET", URL(f"http://cdn.example:{port}/x"), {}, fresh=True)
    assert [canary.connections for canary in canaries] == [0, 0]


async def test_a_name_that_rebinds_is_looked_at_each_time(canaries: tuple[Canary, Canary6]) -> None:
    port = int(canaries[0].host.partition(":")[2])
    storage = Storage2(name="cdn.example")
    storage._port = port
    async with storage:
        url = URL(storage.put("/x", DATA), encoded=True)
        names = Answers(["127.0.0.2"], ["127.0.0.1"], ["127.0.0.1", "::1", "127.0.0.2"])
        async with Egress(settled_on("127.0.0.2"), resolver=names) as egress:
            assert await read_limited(await egress.request("GET", url, {}, fresh=False), 1 << 20) == DATA
            with pytest.raises(OciError, match="private_networks"):
                await egress.request("GET", url, {}, fresh=True)
        async with Egress(settled_on("127.0.0.2"), resolver=names) as egress:
            # Of several addresses the forbidden ones are passed over.
            assert await read_limited(await egress.request("GET", url, {}, fresh=True), 1 << 20) == DATA
    assert names.asked == 3
    assert [canary.connections for canary in canaries] == [0, 0]


async def test_a_redirect_to_nowhere_at_all_is_upstreams_failure(upstream: FakeRegistry, proxy: Proxy) -> None:
    upstream.on().status(307)
    assert (await proxy.get(TAG)).status in {404, 502}


async def test_only_the_networks_that_are_listed_are_reached(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with Canary() as canary:
        upstream.on("GET", blob=digest).redirect(f"{canary.url}/x")
        more = 'private_networks = ["127.0.0.2/32", "10.0.0.0/8", "::1"]'
        async with running(toml(upstream.url, more=more), store) as proxy:
            assert problem(await proxy.get(f"/v2/{REPO}/blobs/{digest}")) == (502, "UNAVAILABLE")
            assert b"private_networks" in (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body
        assert canary.connections == 0


async def test_the_networks_of_one_upstream_are_not_anothers(upstream: FakeRegistry, store: Path) -> None:
    async with FakeRegistry() as other, Storage() as storage:
        digest = upstream.add_blob(REPO, DATA)
        other.add_blob(REPO, DATA)
        upstream.redirect_blobs_to(storage)
        other.redirect_blobs_to(storage)
        more = f'{LOOPBACK}\n[[upstream]]\nregistry = "other.example"\nurl = "{other.url}"'
        async with running(toml(upstream.url, more=more), store) as proxy:
            blob = f"/v2/{REPO}/blobs/{digest}"
            assert problem(await proxy.get(f"{blob}?ns=other.example")) == (502, "UNAVAILABLE")
            assert storage.connections == 0
            assert (await proxy.get(blob)).status == 200


async def test_https_does_not_lead_to_http(store: Path) -> None:
    ca = trustme.CA()
    bundle = store.parent / "ca.pem"
    ca.cert_pem.write_to_path(str(bundle))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(tls)
    async with FakeRegistry(tls=tls, name="localhost") as upstream, Storage() as plain:
        digest, second = upstream.add_blob(REPO, DATA), upstream.add_blob(REPO, b"second")
        async with Storage(tls=tls, name="localhost") as storage:
            environ = {"SSL_CERT_FILE": str(bundle)}
            async with serving(toml(upstream.url, more=LOOPBACK), store, environ=environ) as proxy:
                upstream.redirect_blobs_to(plain)
                assert problem(await proxy.get(f"/v2/{REPO}/blobs/{digest}")) == (502, "UNAVAILABLE")
                assert plain.connections == 0
                upstream.redirect_blobs_to(storage)
                assert (await proxy.get(f"/v2/{REPO}/blobs/{second}")).body == b"second"


async def test_a_certificate_that_nobody_vouches_for_is_refused(store: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(tls)
    async with FakeRegistry(tls=tls, name="localhost") as upstream:
        async with running(toml(upstream.url), store) as proxy:
            got = await proxy.get(TAG)
            assert problem(got) == (502, "UNAVAILABLE")
            assert b"ca_file" in got.body
        assert upstream.requests == []


# What comes back


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "br", "deflate", "gzip, identity", "x"])
async def test_an_encoded_answer_is_refused(upstream: FakeRegistry, proxy: Proxy, encoding: str) -> None:
    image = upstream.add_image(REPO, "v1")
    upstream.on().set_header("Content-Encoding", encoding)
    for target in (f"blobs/{image.config_digest}", "manifests/v1", f"manifests/{image.digest}", "tags/list"):
        assert problem(await proxy.get(f"/v2/{REPO}/{target}")) == (502, "UNAVAILABLE"), target
    assert proxy.blobs() == []


async def test_a_body_that_is_really_gzipped_is_refused_too(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1")
    upstream.on().content_encoding_gzip()
    for target in (f"blobs/{image.config_digest}", "manifests/v1"):
        assert problem(await proxy.get(f"/v2/{REPO}/{target}")) == (502, "UNAVAILABLE")


async def test_hostile_headers_break_nothing(upstream: FakeRegistry, storage: Storage, lenient: Proxy) -> None:
    image = upstream.add_image(REPO, "v1", [DATA])
    headers = (
        ("X-A", "\x01\x02"), ("X-B", "\xff\xfe"), ("X-C", "a" * 20_000), ("X-D", ""), ("Set-Cookie", "a=b"),
        ("Content-Range", "bytes 0-1/2"), ("Retry-After", "\x01"), ("Link", "\x01"), ("Date", "never"),
    )  # fmt: skip
    upstream.redirect_blobs_to(storage)
    upstream.on().extra_headers(*headers)
    storage.on().extra_headers(*headers)
    assert (await lenient.get(TAG)).body == image.body
    got = await lenient.get(f"/v2/{REPO}/blobs/{image.layer_digests[0]}")
    assert digest_of(got.body) == image.layer_digests[0]
    assert not {"x-a", "x-b", "x-c", "x-d", "set-cookie", "link", "content-range"} & {
        name.lower() for name, _ in got.headers
    }


@pytest.mark.parametrize(
    "raw",
    [b"", b"\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", b"HTTP/1.1 999 X\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
     b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 40_000,
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"\x00" * 100,
     b"HTTP/9.9 200 OK\r\n\r\n"],
)  # fmt: skip
async def test_an_answer_that_is_no_http_is_upstreams_failure(upstream: FakeRegistry, proxy: Proxy, raw: bytes) -> None:
    upstream.on().raw(raw).truncate(0)
    assert problem(await proxy.get(TAG)) == (502, "UNAVAILABLE")
