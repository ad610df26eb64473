"""Credentials: what each upstream is sent, how often tokens are asked for, and where no credential ever goes."""

import asyncio
import base64
import json
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import trustme

from .harness import Proxy, running, serving, toml, until
from .raw_client import RawAnswer
from .upstream import Asked, Canary, FakeRegistry, Image, Reply

REPO = "library/app"
TAG = f"/v2/{REPO}/manifests/v1"
PASSWORD = "pa:ss w\u00f6rd"
BASIC = "Basic " + base64.b64encode(f"ann:{PASSWORD}".encode()).decode()
USERS = {"ann": PASSWORD}
NEVER_FRESH = 'tag_ttl = "0s"'


def as_ann(store: Path) -> str:
    """What an [[upstream]] needs to say to log in."""
    secret = store.parent / "secret"
    secret.write_text(f"{PASSWORD}\n")
    return f'username = "ann"\npassword_file = "{secret}"\n{NEVER_FRESH}'


@pytest.fixture
async def known(upstream: FakeRegistry, store: Path) -> AsyncIterator[Proxy]:
    """A proxy that logs in as ann, and revalidates tags each time."""
    async with running(toml(upstream.url, more=as_ann(store)), store) as proxy:
        yield proxy


def problem(answer: RawAnswer) -> tuple[int, str]:
    """The status and the code of an error."""
    return answer.status, str(json.loads(answer.body)["errors"][0]["code"])


async def pull(proxy: Proxy, image: Image) -> None:
    """Every request of a pull."""
    assert (await proxy.get(f"/v2/{image.repo}/manifests/{image.tag}")).body == image.body
    for digest in image.blob_digests:
        assert (await proxy.get(f"/v2/{image.repo}/blobs/{digest}")).status == 200


def authorizations(upstream: FakeRegistry) -> list[str | None]:
    """What every request but those for tokens was sent with, by its scheme."""
    headers = [request.header("Authorization") for request in upstream.requests if request.path != "/token"]
    return [None if header is None else header.partition(" ")[0] for header in headers]


class Clock:
    """The monotonic clock, for what judges the age of tokens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        fake = SimpleNamespace(monotonic=lambda: time.monotonic() + self.ahead, time=time.time)
        monkeypatch.setattr("proxy.tokens.time", fake)


# Tokens


@pytest.mark.parametrize(
    ("placeholder", "service", "expires_in", "token_key"),
    [
        (False, "fake", 300, "token"),
        (True, "fake", 300, "token"),  # ghcr.io
        (False, None, 300, "token"),  # nvcr.io
        (False, "", 300, "token"),  # gcr.io
        (False, "fake", 300, "access_token"),  # Azure
        (False, "fake", None, "token"),
    ],
)
@pytest.mark.parametrize("login", [False, True])
async def test_two_pulls_cost_one_token_whatever_the_registrys_ways(
    upstream: FakeRegistry,
    store: Path,
    placeholder: bool,
    service: str | None,
    expires_in: int | None,
    token_key: str,
    login: bool,
) -> None:
    image = upstream.add_image(REPO, "v1", [b"one", b"two"])
    upstream.require_bearer(
        service=service,
        scope_placeholder=placeholder,
        users=USERS,
        expires_in=expires_in,
        token_key=token_key,
        anonymous=not login,
    )
    async with running(toml(upstream.url, more=as_ann(store) if login else NEVER_FRESH), store) as proxy:
        await pull(proxy, image)
        await pull(proxy, image)
    (asked,) = upstream.token_requests
    assert asked.scopes == (f"repository:{REPO}:pull",)
    assert asked.service == (service or None)
    assert asked.authorization == (BASIC if login else None)
    assert authorizations(upstream) == [None] + ["Bearer"] * (len(upstream.requests) - 2)


@pytest.mark.parametrize(
    "answer",
    [{"expires_in": 0}, {"expires_in": -5}, {"expires_in": "soon"}, {"expires_in": None}, {"expires_in": 10**400},
     {"expires_in": True}, {"expires_in": []}, {"issued_at": "1999-01-01T00:00:00Z"}, {"issued_at": 5},
     {"access_token": None}, {"refresh_token": "x"}],
    ids=str,
)  # fmt: skip
async def test_a_token_with_an_odd_life_is_used_all_the_same(
    upstream: FakeRegistry, proxy: Proxy, answer: dict[str, object]
) -> None:
    image = upstream.add_image(REPO, "v1", [b"one", b"two"])
    upstream.require_bearer(expires_in=None)

    def told(reply: Reply, _: Asked) -> Reply:
        return replace(reply, body=json.dumps(json.loads(reply.body) | answer).encode())

    upstream.on(path="/token").then(told)
    await pull(proxy, image)
    assert len(upstream.token_requests) == 1


async def test_tokens_are_asked_for_by_repository(upstream: FakeRegistry, proxy: Proxy) -> None:
    upstream.require_bearer()
    for name in ("library/a", "library/b"):
        await pull(proxy, upstream.add_image(name, "v1"))
    assert [asked.scopes for asked in upstream.token_requests] == [
        ("repository:library/a:pull",),
        ("repository:library/b:pull",),
    ]
    # What one repository was challenged with is known for the next: no request is wasted on a 401.
    assert authorizations(upstream).count(None) == 1


async def test_32_requests_at_once_share_one_token(upstream: FakeRegistry, proxy: Proxy) -> None:
    images = [upstream.add_image(REPO, f"v{number}", [b"%d" % number]) for number in range(32)]
    upstream.require_bearer()
    gate = upstream.on(path="/token").hang()
    pulls = [asyncio.create_task(proxy.get(f"/v2/{REPO}/manifests/{image.tag}")) for image in images]
    await gate.reached.wait()
    await until(lambda: proxy.app.handlers.active == 32)
    gate.open()
    assert {answer.body for answer in await asyncio.gather(*pulls)} == {image.body for image in images}
    assert len(upstream.token_requests) == 1


async def test_a_token_is_renewed_before_it_expires(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = upstream.add_image(REPO, "v1")
    upstream.require_bearer(expires_in=100)
    clock = Clock(monkeypatch)
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        for ahead, tokens in ((0, 1), (85, 1), (95, 2), (180, 2), (190, 3)):
            clock.ahead = ahead
            await pull(proxy, image)
            assert len(upstream.token_requests) == tokens, ahead
    assert authorizations(upstream).count(None) == 1


async def test_a_token_that_never_ends_is_asked_for_anew_within_hours(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = upstream.add_image(REPO, "v1")
    upstream.require_bearer(expires_in=10**9)
    clock = Clock(monkeypatch)
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        await pull(proxy, image)
        clock.ahead = 2 * 3600
        await pull(proxy, image)
    assert len(upstream.token_requests) == 2


async def test_a_revoked_token_is_replaced_by_exactly_one(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1")
    tags = [upstream.add_image(REPO, f"t{number}", [b"%d" % number]).tag for number in range(16)]
    upstream.require_bearer()
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        await pull(proxy, image)
        upstream.revoke_all()
        answers = await asyncio.gather(*(proxy.get(f"/v2/{REPO}/manifests/{tag}") for tag in tags))
        assert {answer.status for answer in answers} == {200}
        assert len(upstream.token_requests) == 2


async def test_a_late_401_for_the_old_token_does_not_cost_the_new_one(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1")
    late = upstream.add_image(REPO, "late", [b"late"])
    upstream.require_bearer()
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        await pull(proxy, image)
        upstream.revoke_all()
        gate = upstream.on(manifest="late", times=1, unauthorized=True).hang()
        pulled = asyncio.create_task(proxy.get(f"/v2/{REPO}/manifests/late"))
        await gate.reached.wait()
        await pull(proxy, image)
        gate.open()
        assert (await pulled).body == late.body
    assert len(upstream.token_requests) == 2


async def test_a_401_in_spite_of_a_fresh_token_is_a_denial_and_no_loop(upstream: FakeRegistry, proxy: Proxy) -> None:
    upstream.add_image(REPO, "v1")
    upstream.require_bearer(grants={None: []})
    for number in (1, 2):
        got = await proxy.get(TAG)
        assert problem(got) == (403, "DENIED")
        assert got.header("WWW-Authenticate") is None
        assert len(upstream.token_requests) <= number
        assert upstream.count(path_contains="/manifests/") <= 2 * number


async def test_a_wrong_password_is_a_denial_and_no_loop(upstream: FakeRegistry, known: Proxy) -> None:
    upstream.add_image(REPO, "v1")
    upstream.require_bearer(users={"ann": "other"}, anonymous=False)
    assert problem(await known.get(TAG)) == (403, "DENIED")
    assert len(upstream.token_requests) == 1
    assert upstream.count(path_contains="/manifests/") == 1


async def test_two_upstreams_on_one_registry_share_no_token(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1")
    upstream.require_bearer(users=USERS, grants={"ann": [REPO], None: []})
    more = f'{as_ann(store)}\n[[upstream]]\nregistry = "open.example"\nurl = "{upstream.url}"'
    async with running(toml(upstream.url, more=more), store) as proxy:
        assert (await proxy.get(TAG)).body == image.body
        assert problem(await proxy.get(f"{TAG}?ns=open.example")) == (403, "DENIED")
        digest = f"/v2/{REPO}/manifests/{image.digest}?ns=open.example"
        assert problem(await proxy.get(digest)) == (403, "DENIED")  # cached, and still ann's alone
        blob = f"/v2/{REPO}/blobs/{image.config_digest}"
        assert (await proxy.get(blob)).status == 200
        await proxy.settled()
        assert problem(await proxy.get(f"{blob}?ns=open.example")) == (403, "DENIED")
    assert {asked.user for asked in upstream.token_requests} == {"ann", None}


@pytest.mark.parametrize(
    "answer",
    [b"", b"token", b"[]", b"null", b'"token"', b"{}", b'{"token":null}', b'{"token":""}', b'{"token":5}', b"\xff\xfe",
     b'{"token":["a"]}', b'{"token":"a\\r\\nX-Evil: 1"}', b'{"token":"a\\u0000"}', '{"token":"t\u00f6ken"}'.encode(),
     b'{"token":"' + b"a" * 16385 + b'"}', b"[" * 100_000, b'{"token":"a","x":"' + b"a" * 300_000 + b'"}', b"9" * 5000,
     b'{"token":"a","expires_in":' + b"9" * 5000 + b"}"],
    ids=lambda answer: str(answer[:24]),
)  # fmt: skip
async def test_a_token_answer_that_is_none_is_upstreams_failure(
    upstream: FakeRegistry, proxy: Proxy, answer: bytes
) -> None:
    upstream.add_image(REPO, "v1")
    upstream.require_bearer()
    rule = upstream.on(path="/token").body(answer)
    assert problem(await proxy.get(TAG)) == (502, "UNAVAILABLE")
    assert upstream.count(path_contains="/manifests/") == 1
    rule.stop()
    assert (await proxy.get(TAG)).status == 200


@pytest.mark.parametrize(
    ("status", "ours"), [(400, 403), (401, 403), (403, 403), (429, 429), (500, 502), (503, 502), (302, 502), (204, 502)]
)
async def test_what_the_token_service_answers_is_told_from_what_it_fails_at(
    upstream: FakeRegistry, proxy: Proxy, status: int, ours: int
) -> None:
    upstream.add_image(REPO, "v1")
    upstream.require_bearer()
    upstream.on(path="/token").status(status, [("Retry-After", "77")])
    got = await proxy.get(TAG)
    assert got.status == ours
    assert (got.header("Retry-After") == "77") == (status == 429)


async def test_a_stale_tag_is_served_while_the_token_service_fails(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1")
    upstream.require_bearer(expires_in=100)
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        await pull(proxy, image)
        upstream.revoke_all()
        upstream.on(path="/token").status(503)
        got = await proxy.get(TAG)
        assert (got.body, got.header("Warning") is not None) == (image.body, True)


# Basic


async def test_basic_credentials_are_sent_once_they_have_been_asked_for(upstream: FakeRegistry, known: Proxy) -> None:
    image = upstream.add_image(REPO, "v1", [b"one", b"two"])
    upstream.require_basic(USERS)
    await pull(known, image)
    assert authorizations(upstream) == [None, "Basic", "Basic", "Basic", "Basic"]
    assert upstream.requests[-1].header("Authorization") == BASIC


async def test_basic_credentials_that_are_wrong_are_tried_once_a_request(upstream: FakeRegistry, known: Proxy) -> None:
    upstream.add_image(REPO, "v1")
    upstream.require_basic({"ann": "other"})
    for requests in (2, 3):
        assert problem(await known.get(TAG)) == (403, "DENIED")
        assert upstream.count() == requests


async def test_without_credentials_a_basic_challenge_is_a_denial(upstream: FakeRegistry, proxy: Proxy) -> None:
    upstream.add_image(REPO, "v1")
    upstream.require_basic(USERS)
    assert problem(await proxy.get(TAG)) == (403, "DENIED")
    assert authorizations(upstream) == [None]


async def test_of_several_challenges_the_bearer_is_answered(upstream: FakeRegistry, known: Proxy) -> None:
    image = upstream.add_image(REPO, "v1")
    upstream.require_bearer(users=USERS, anonymous=False)
    challenge = f'Basic realm="x", bearer service=fake , Realm={upstream.url}/token,scope="a:b:pull,push" , Digest x=y'
    upstream.on(unauthorized=True, where=lambda request: request.header("Authorization") is None).status(
        401, [("WWW-Authenticate", "Negotiate"), ("WWW-Authenticate", challenge)]
    )
    await pull(known, image)
    (asked,) = upstream.token_requests
    assert (asked.scopes, asked.authorization) == ((f"repository:{REPO}:pull",), BASIC)


@pytest.mark.parametrize(
    "challenge", ["", "Bearer", "Bearer realm", 'Bearer realm=""', "Negotiate", "\xff", '"' * 5000]
)
async def test_a_challenge_that_cannot_be_met_is_a_denial(upstream: FakeRegistry, known: Proxy, challenge: str) -> None:
    upstream.on().status(401, [("WWW-Authenticate", challenge)])
    assert problem(await known.get(TAG)) == (403, "DENIED")
    assert set(authorizations(upstream)) == {None}  # /v2/ may be asked too: it might say more


# Where credentials go


def demand(upstream: FakeRegistry, realm: str) -> None:
    """Send whoever has no token to this realm."""
    upstream.on(where=lambda request: request.header("Authorization") is None).status(
        401, [("WWW-Authenticate", f'Bearer realm="{realm}",service="fake",scope="repository:{REPO}:pull"')]
    )


REALMS = [
    "{canary}/token",
    "http://localhost:{port}/token",
    "http://{own}@{host}/token",
    "http://{host}\\\\@{own}/token",
    "http://{host}#@{own}/token",
    "http://{host}?@{own}/token",
    "http://ann:x@{own}/token",
    "http://{own}.evil.example/token",
    "http://evil.example/{own}/token",
    "http://127.0.0.1.:{port}/token",
    "http://127.0.0.1/token",
    "http://127.0.0.1:{port}/token",
    "http://[::ffff:127.0.0.1]:{port}/token",
    "http://[::1]:{port}/token",
    "http://2130706433:{port}/token",
    "http://0x7f000001:{port}/token",
    "http://127.1:{port}/token",
    "http://\u2460\u2461\u2466.0.0.1:{port}/token",
    "http://169.254.169.254/token",
    "https://{own}/token",
    "https://{host}/token",
    "//{host}/token",
    "/token",
    "token",
    "{own}/token",
    "http:/{host}/token",
    "http:///token",
    "http://",
    "http://:{port}/token",
    "http://{own}:80/token",
    "http://[/token",
    "file:///etc/passwd",
    "ftp://{host}/token",
    "gopher://{host}/token",
    "javascript:alert(1)",
    "http://{own}/token#fragment",
    "http://{host}%2f@{own}/token",
    "http://{own}\\\\.evil.example/token",
    " http://{host}/token",
]


@pytest.mark.parametrize("realm", REALMS)
async def test_no_credential_goes_to_a_realm_that_is_not_upstreams_own(
    upstream: FakeRegistry, known: Proxy, realm: str
) -> None:
    upstream.add_image(REPO, "v1")
    async with Canary() as canary:
        port = canary.host.partition(":")[2]
        demand(
            upstream,
            realm.format(canary=canary.url, host=canary.host, port=port, own=upstream.host).encode().decode("latin-1"),
        )
        got = await known.get(TAG)
        assert problem(got) == (502, "UNAVAILABLE")
        assert b"realm" in got.body
        assert canary.connections == 0
    assert authorizations(upstream) == [None]
    assert upstream.count(path_contains="token") == 0
    assert upstream.connections == 1


async def test_another_host_may_be_the_realm_if_it_is_listed(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1")
    async with FakeRegistry() as issuer:
        issuer.on(path="/auth/token").status(200, (), b'{"token":"good"}')
        demand(upstream, f"{issuer.url}/auth/token?tenant=a%2Fb")
        for number, listed in enumerate((issuer.host, "127.0.0.1")):
            more = f'{as_ann(store)}\nrealm_hosts = ["{listed}"]\nprivate_networks = ["127.0.0.0/8"]'
            async with running(toml(upstream.url, more=more), store.parent / str(number)) as proxy:
                await pull(proxy, image)
        assert {request.header("Authorization") for request in issuer.requests} == {BASIC}
        assert issuer.requests[0].target.startswith("/auth/token?tenant=a%2Fb&service=fake&scope=repository")
        assert issuer.count() == 2
    assert BASIC not in {request.header("Authorization") for request in upstream.requests}


async def test_a_listed_realm_at_an_address_that_is_not_public_is_not_reached(
    upstream: FakeRegistry, store: Path
) -> None:
    upstream.add_image(REPO, "v1")
    async with Canary() as canary:
        port = canary.host.partition(":")[2]
        for number, host in enumerate((canary.host, f"localhost:{port}", f"[::ffff:127.0.0.1]:{port}")):
            demand(upstream, f"http://{host}/token")
            more = f'{as_ann(store)}\nrealm_hosts = ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"]'
            async with running(toml(upstream.url, more=more), store.parent / str(number)) as proxy:
                assert problem(await proxy.get(TAG)) == (502, "UNAVAILABLE")
            upstream.forget_rules()
        assert canary.connections == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_realms_redirect_is_not_followed(upstream: FakeRegistry, known: Proxy, status: int) -> None:
    upstream.add_image(REPO, "v1")
    upstream.require_bearer(users=USERS, anonymous=False)
    async with Canary() as canary:
        for location in (canary.url, "/token2", "http://169.254.169.254/latest"):
            upstream.on(path="/token", times=1).redirect(location, status)
            assert problem(await known.get(TAG)) == (502, "UNAVAILABLE")
        assert canary.connections == 0
    assert upstream.count(path_contains="/token2") == 0


async def test_no_credential_falls_from_https_to_http(store: Path) -> None:
    ca = trustme.CA()
    bundle = store.parent / "ca.pem"
    ca.cert_pem.write_to_path(str(bundle))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(tls)
    async with FakeRegistry(tls=tls, name="localhost") as upstream, Canary() as canary:
        image = upstream.add_image(REPO, "v1")
        other = upstream.add_image("library/other", "v1", [b"other"])
        upstream.require_bearer(users=USERS, anonymous=False)
        more = f'{as_ann(store)}\nrealm_hosts = ["127.0.0.1", "localhost"]\nprivate_networks = ["127.0.0.0/8"]'
        async with serving(toml(upstream.url, more=more), store, environ={"SSL_CERT_FILE": str(bundle)}) as proxy:
            assert (await proxy.get(TAG)).body == image.body
            upstream.require_nothing()
            for number, url in enumerate((canary.url, f"http://{upstream.host}")):
                challenge = f'Bearer realm="{url}/token",service="fake"'
                upstream.on(path_contains="/manifests/").status(401, [("WWW-Authenticate", challenge)])
                got = await proxy.get(f"/v2/library/new{number}/manifests/v1")
                assert problem(got) == (502, "UNAVAILABLE")
                assert b"realm_hosts" in got.body
                upstream.forget_rules()
                upstream.on("GET", path_contains="/blobs/").redirect(f"{url}/x")
                assert problem(await proxy.get(f"/v2/library/other/blobs/{other.config_digest}")) == (
                    502,
                    "UNAVAILABLE",
                )
                upstream.forget_rules()
        assert canary.connections == 0


# What clients and upstreams bring along


async def test_a_clients_authorization_is_neither_forwarded_nor_logged(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1")
    secrets = ["Basic aHViOmh1YnBhc3N3b3Jk", "Bearer c2VjcmV0LXRva2Vu", "Basic Og=="]
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        for challenged in (False, True):
            if challenged:
                upstream.require_bearer()
            for secret in secrets:
                headers = {"Authorization": secret, "Proxy-Authorization": secret, "Cookie": f"s={secret}"}
                for target in (TAG, f"/v2/{REPO}/blobs/{image.config_digest}", f"/v2/{REPO}/tags/list", "/v2/"):
                    assert (await proxy.get(target, headers)).status == 200
        await proxy.settled()
        sent = repr([request.headers for request in upstream.requests])
        for secret in secrets:
            assert secret.partition(" ")[2] not in sent + proxy.log_stream.getvalue()
    names = {name.lower() for request in upstream.requests for name, _ in request.headers}
    assert names <= {"host", "user-agent", "accept", "accept-encoding", "authorization", "connection"}


async def test_a_clients_headers_do_not_reach_upstream(upstream: FakeRegistry, proxy: Proxy) -> None:
    upstream.add_image(REPO, "v1")
    headers = dict.fromkeys(
        (
            "User-Agent",
            "X-Forwarded-For",
            "Accept-Language",
            "X-HTTP-Method-Override",
            "If-None-Match",
            "Range",
            "Host",
        ),
        "evil",
    )
    assert (await proxy.get(TAG, headers)).status == 200
    sent = dict(upstream.requests[0].headers)
    assert "evil" not in repr(sent)
    assert set(sent) <= {"Host", "User-Agent", "Accept", "Accept-Encoding", "Connection"}
    assert sent["Host"] == upstream.host
    assert sent["User-Agent"].startswith("entrepot/")


async def test_cookies_are_never_returned(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1")
    upstream.require_bearer()
    upstream.on(unauthorized=True).set_cookie("session=secret; Path=/")
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        await pull(proxy, image)
        await pull(proxy, image)
        assert (await proxy.get(TAG)).header("Set-Cookie") is None
    assert upstream.count() > 5
    assert all(request.header("Cookie") is None for request in upstream.requests)


async def test_a_token_flight_outlives_the_request_that_started_it(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1")
    other = upstream.add_image(REPO, "v2", [b"2"])
    upstream.require_bearer()
    gate = upstream.on(path="/token").hang()
    first = asyncio.create_task(proxy.get(TAG))
    await gate.reached.wait()
    second = asyncio.create_task(proxy.get(f"/v2/{REPO}/manifests/v2"))
    await until(lambda: proxy.app.handlers.active == 2)
    first.cancel()
    await asyncio.wait([first])
    await until(lambda: proxy.app.handlers.active == 1)
    gate.open()
    assert (await second).body == other.body
    assert (await proxy.get(TAG)).body == image.body
    assert len(upstream.token_requests) == 1
