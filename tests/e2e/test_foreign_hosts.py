"""What a host that upstream redirects to may not do, and what a refused credential does not take away."""

import base64
import json
from pathlib import Path

import pytest

from .harness import running, toml
from .upstream import FakeRegistry, Storage

REPO = "library/app"
TAG = f"/v2/{REPO}/manifests/v1"
LOOPBACK = 'private_networks = ["127.0.0.0/8", "::1"]\ntag_ttl = "0s"'


async def test_a_redirect_target_gets_no_token_of_a_listed_realm(upstream: FakeRegistry, store: Path) -> None:
    """The realm is listed for the upstream's own use (by mTLS or by address it may know us); the host is not."""
    image = upstream.add_image(REPO, "v1", [b"layer"])
    async with FakeRegistry() as realm, FakeRegistry() as elsewhere:
        realm.require_bearer(realm=f"{realm.url}/token")
        elsewhere.on(unauthorized=True).status(
            401,
            [("WWW-Authenticate", f'Bearer realm="{realm.url}/token",service="s",scope="repository:secret/app:pull"')],
        )
        upstream.on("GET", blob=image.layer_digests[0]).redirect(f"{elsewhere.url}/x")
        more = f'{LOOPBACK}\nrealm_hosts = ["{realm.host}"]'
        async with running(toml(upstream.url, more=more), store) as proxy:
            await proxy.get(f"/v2/{REPO}/blobs/{image.layer_digests[0]}")
        assert [r.scopes for r in realm.token_requests] == []
        assert [r.header("Authorization") for r in elsewhere.requests if r.header("Authorization")] == []


async def test_a_redirect_target_gets_no_token_that_upstreams_own_realm_gave(
    upstream: FakeRegistry, store: Path
) -> None:
    """Not even asked for: the key of an anonymous token says nothing of whom it is for."""
    image = upstream.add_image(REPO, "v1", [b"layer"])
    upstream.require_bearer(service="fake")
    async with FakeRegistry() as elsewhere:
        elsewhere.on(unauthorized=True).status(
            401,
            [("WWW-Authenticate",
              f'Bearer realm="{upstream.url}/token",service="fake",scope="repository:{REPO}:pull"')],
        )  # fmt: skip
        upstream.on("GET", blob=image.layer_digests[0]).redirect(f"{elsewhere.url}/x")
        async with running(toml(upstream.url, more=LOOPBACK), store) as proxy:
            assert (await proxy.get(TAG)).status == 200
            await proxy.get(f"/v2/{REPO}/blobs/{image.layer_digests[0]}")
        assert [r.header("Authorization") for r in elsewhere.requests if r.header("Authorization")] == []


@pytest.mark.parametrize("status", [400, 401, 403, 404])
async def test_a_redirect_targets_token_service_has_no_say_on_cached_tags(
    upstream: FakeRegistry, store: Path, status: int
) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    async with FakeRegistry() as elsewhere, running(toml(upstream.url, more=LOOPBACK), store) as proxy:
        assert (await proxy.get(TAG)).status == 200
        elsewhere.on(path_contains="/token", unauthorized=True).status(status)
        elsewhere.on(unauthorized=True).status(
            401, [("WWW-Authenticate", f'Bearer realm="{elsewhere.url}/token",service="x"')]
        )
        upstream.on(manifest="v1").redirect(f"{elsewhere.url}/x")
        got = await proxy.get(TAG)
        assert (got.status, got.body) == (200, image.body), got


@pytest.mark.parametrize("status", [400, 401, 403, 404])
@pytest.mark.parametrize("kind", ["identitytoken", "password"])
async def test_cached_images_go_on_when_the_token_service_refuses_our_credential(
    upstream: FakeRegistry, store: Path, tmp_path: Path, status: int, kind: str
) -> None:
    """OAuth2 says of an expired refresh token 400 invalid_grant; GitLab and JFrog say 403 of a revoked password."""
    image = upstream.add_image(REPO, "v1", [b"layer"])
    upstream.require_bearer(users={"ann": "pw"}, post=True, expires_in=300)
    entry = {"auth": base64.b64encode(b"ann:pw").decode()}
    if kind == "identitytoken":
        entry["identitytoken"] = "expired"
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"auths": {"docker.io": entry, "https://index.docker.io/v1/": entry}}))
    more = f'{LOOPBACK}\n[[upstream.account]]\ndocker_config = "{config}"'
    async with running(toml(upstream.url, more=more), store) as proxy:
        rule = upstream.on(path="/token", times=1)
        rule.body(b'{"token": "t", "expires_in": 300}')  # good while it lasted
        first = await proxy.get(TAG)
        if first.status != 200:  # the fake knows no such token: let everybody in for the first pull
            upstream.require_nothing()
            assert (await proxy.get(TAG)).status == 200
            upstream.require_bearer(users={"ann": "pw"}, post=True, expires_in=300)
        body = b'{"error": "invalid_grant"}'
        upstream.on(path="/token", unauthorized=True).status(status, [], body)
        for _ in range(2):
            got = await proxy.get(TAG)
            assert (got.status, got.body) == (200, image.body), (got.status, got.body)


async def test_a_redirect_target_cannot_send_us_back_with_our_credentials(upstream: FakeRegistry, store: Path) -> None:
    upstream.add_image(REPO, "v1", [b"layer"])
    secret = upstream.add_image("private/app", "v1", [b"secret"])
    upstream.require_basic({"ann": "pw"})
    password = store.parent / "pw"
    password.write_text("pw")
    async with FakeRegistry() as elsewhere:
        elsewhere.on().redirect(f"{upstream.url}/v2/private/app/manifests/v1")
        upstream.on("GET", manifest="v1", repo=REPO).redirect(f"{elsewhere.url}/x")
        more = f'{LOOPBACK}\nusername = "ann"\npassword_file = "{password}"'
        async with running(toml(upstream.url, more=more), store) as proxy:
            got = await proxy.get(TAG)
            assert got.body != secret.body, (got.status, got.body)
        assert all(r.header("Authorization") is None for r in upstream.requests if "private" in r.path)


async def test_a_secret_that_is_no_utf8_is_no_defect(upstream: FakeRegistry, store: Path) -> None:
    upstream.add_image(REPO, "v1", [b"layer"])
    upstream.require_basic({"ann": "pw"})
    more = 'username = "ann"\npassword_env = "PW"'
    async with running(toml(upstream.url, more=more), store, environ={"PW": "\udcff"}) as proxy:
        got = await proxy.get(TAG)
        assert b"of the cache's own" not in got.body


async def test_a_redirect_target_cannot_pause_the_accounts_of_the_upstream(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    async with FakeRegistry() as elsewhere:
        elsewhere.on(path_contains="/token", unauthorized=True).status(429, [("Retry-After", "3600")])
        elsewhere.on(unauthorized=True).status(
            401, [("WWW-Authenticate", f'Bearer realm="{elsewhere.url}/token",service="x"')]
        )
        upstream.on("GET", blob=image.layer_digests[0]).redirect(f"{elsewhere.url}/x")
        async with running(toml(upstream.url, more=LOOPBACK), store) as proxy:
            await proxy.get(f"/v2/{REPO}/blobs/{image.layer_digests[0]}")
            got = await proxy.get(f"/v2/{REPO}/manifests/v1")
            assert got.status == 200, (got.status, got.header("Retry-After"), got.body)


async def test_a_head_of_an_empty_blob_in_storage_is_answered(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, b"")
    async with Storage() as storage:
        url = storage.put("/empty", b"")
        upstream.on(blob=digest).redirect(url)
        async with running(toml(upstream.url, more=LOOPBACK), store) as proxy:
            got = await proxy.head(f"/v2/{REPO}/blobs/{digest}")
            assert (got.status, got.header("Content-Length")) == (200, "0")
            got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
            assert got.status == 200
