"""Registries that ask for tokens in ways of their own: Google's, Kubernetes', NVIDIA's."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .harness import Proxy, running, toml
from .upstream import FakeRegistry, Image

REPO = "library/app"
LOCAL = 'private_networks = ["127.0.0.0/8"]'
SECRET = "our-own-password"


async def pull(proxy: Proxy, image: Image) -> None:
    """A whole image, as containerd pulls it."""
    assert (await proxy.head(f"/v2/{REPO}/manifests/v1")).header("Docker-Content-Digest") == image.digest
    assert (await proxy.get(f"/v2/{REPO}/manifests/{image.digest}")).body == image.body
    for digest in image.blob_digests:
        got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
        assert (got.status, len(got.body)) == (200, image.sizes[digest])


@pytest.fixture
async def elsewhere() -> AsyncIterator[FakeRegistry]:
    """A registry that another one redirects to, as registry.k8s.io does to those of Google's regions."""
    async with FakeRegistry() as registry:
        yield registry


def redirect_all(upstream: FakeRegistry, elsewhere: FakeRegistry) -> None:
    """Send every request for content to the same path of the other host, below a name that is its own."""
    upstream.on(path_contains="/v2/library/").redirect(
        lambda request: f"{elsewhere.url}/v2/k8s-artifacts-prod/{request.target.removeprefix('/v2/library/')}", 307
    )


async def test_the_host_that_a_registry_redirects_to_gets_a_token_of_its_own(
    upstream: FakeRegistry, elsewhere: FakeRegistry, store: Path, tmp_path: Path
) -> None:
    image = elsewhere.add_image("k8s-artifacts-prod/app", "v1", [b"layer"])
    elsewhere.require_bearer()
    redirect_all(upstream, elsewhere)
    (tmp_path / "secret").write_text(SECRET)
    login = f'username = "ann"\npassword_file = "{tmp_path}/secret"'
    async with running(toml(upstream.url, more=f"{LOCAL}\n{login}"), store) as proxy:
        await pull(proxy, image)
    assert {request.authorization for request in elsewhere.token_requests} == {None}
    assert {request.scopes for request in elsewhere.token_requests} == {("repository:k8s-artifacts-prod/app:pull",)}
    assert len(elsewhere.token_requests) == 1
    sent = [request.header("Authorization") for request in elsewhere.requests if request.path != "/token"]
    assert {value for value in sent if value is not None and not value.startswith("Bearer ")} == set()


async def test_a_host_that_a_registry_redirects_to_may_name_no_realm_but_itself(
    upstream: FakeRegistry, elsewhere: FakeRegistry, store: Path
) -> None:
    async with FakeRegistry() as evil:
        elsewhere.add_image("k8s-artifacts-prod/app", "v1")
        elsewhere.require_bearer(realm=f"{evil.url}/token")
        redirect_all(upstream, elsewhere)
        async with running(toml(upstream.url, more=LOCAL), store) as proxy:
            assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).status == 502
        assert evil.connections == 0


async def test_a_registry_that_says_what_it_wants_at_v2_only_is_asked_there(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    upstream.require_bearer(service="")
    upstream.on(
        unauthorized=True, path_contains="/library/", where=lambda request: request.header("Authorization") is None
    ).status(401)
    await pull(proxy, image)
    assert len(upstream.token_requests) == 1
    assert len([request for request in upstream.requests if request.path == "/v2/"]) == 1


async def test_a_challenge_that_leads_elsewhere_once_a_token_has_expired_is_not_followed(
    upstream: FakeRegistry, elsewhere: FakeRegistry, store: Path
) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    upstream.require_bearer(service="")
    realm = f'Bearer realm="{elsewhere.url}/token",error="invalid_token"'
    more = f'{LOCAL}\ntag_ttl = "0s"\nrealm_hosts = ["{elsewhere.host}"]'
    async with running(toml(upstream.url, more=more), store) as proxy:
        await pull(proxy, image)
        upstream.revoke_all()
        old = {request.header("Authorization") for request in upstream.requests} - {None}
        upstream.on(unauthorized=True, where=lambda request: request.header("Authorization") in old).status(
            401, [("WWW-Authenticate", realm)]
        )
        got = await proxy.get(f"/v2/{REPO}/manifests/v1")
        assert (got.status, got.body, got.header("Warning")) == (200, image.body, None)
    assert len(upstream.token_requests) == 2
    assert elsewhere.count() == 0
