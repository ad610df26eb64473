"""Every registry that the product knows by name, each as a small faithful fake: its tokens, redirects and refusals."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from pathlib import Path

import pytest

from .harness import DEADLINE, Proxy, running, toml
from .raw_client import RawAnswer
from .upstream import OCI_MANIFEST, Asked, FakeRegistry, Image, Reply, Storage, digest_of
from .upstream.server import FakeServer

PASSWORD = "our-own-password"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
LAYERS = {name: [name.encode() * 3000, name.encode() * 5] for name in ("v1", "v2", "v3")}
MORE = 'tag_ttl = "0s"\nprivate_networks = ["127.0.0.0/8"]'


@dataclass
class World:
    """One registry, the hosts behind it, and how it is configured. `foreign` hosts must learn no secret of ours."""

    registry: str
    upstream: FakeRegistry
    other: FakeRegistry  # the second host: an auth service, or a registry in a region
    storage: Storage
    repo: str = "acme/app"
    user: str | None = "ann"
    realm_hosts: list[str] = field(default_factory=list)
    holder: FakeRegistry | None = None  # who has the content, if it is not the registry itself
    held_as: str | None = None

    @property
    def foreign(self) -> list[FakeServer]:
        """The hosts that are no business of the credentials'."""
        return [self.storage] if self.other.host in self.realm_hosts else [self.storage, self.other]

    def image(self, tag: str) -> Image:
        """An image that is put where the content is."""
        return (self.holder or self.upstream).add_image(self.held_as or self.repo, tag, LAYERS[tag])

    def config(self, tmp_path: Path) -> str:
        """The configuration of a proxy of this registry, with credentials if it has users."""
        more = f"{MORE}\nrealm_hosts = {self.realm_hosts}".replace("'", '"')
        if self.user is not None:
            (tmp_path / "password").write_text(PASSWORD)
            more += f'\nusername = "{self.user}"\npassword_file = "{tmp_path}/password"'
        return toml(self.upstream.url, registry=self.registry, more=more)

    def tokens(self) -> int:
        """How many tokens were asked for, of whomever."""
        return len(self.upstream.token_requests) + len(self.other.token_requests)

    def assert_kept(self) -> None:
        """Nothing that shows who we are has reached a foreign host, and storage was sent no authorization at all."""
        assert all(request.header("Authorization") is None for request in self.storage.requests)
        own = {request.header("Authorization") for request in self.upstream.requests} - {None}
        for server in self.foreign:
            for request in server.requests:
                sent = request.header("Authorization")
                assert sent is None or (sent not in own and not sent.startswith("Basic "))
                assert PASSWORD not in f"{request.headers} {request.target} {request.body!r}"


Build = Callable[[World], None]


@contextlib.asynccontextmanager
async def world(registry: str, build: Build) -> AsyncIterator[World]:
    """A registry as `build` makes it."""
    async with FakeRegistry() as upstream, FakeRegistry() as other, Storage() as storage:
        one = World(registry, upstream, other, storage)
        build(one)
        yield one


def tokens_at(host: FakeRegistry, path: str, issuer: FakeRegistry) -> str:
    """Have `issuer`'s tokens issued at a path of `host`; the realm to name."""

    def issue(_reply: Reply, asked: Asked) -> Reply:
        return issuer.answer(replace(asked.request, target=f"/token?{asked.request.target.partition('?')[2]}"))

    host.on("GET", path=path, unauthorized=True).then(issue)
    return host.url + path


def without_challenge(reply: Reply, _asked: Asked) -> Reply:
    """A 401 that does not say what it wants."""
    return reply.dropping("WWW-Authenticate")


# The registries


def docker_hub(one: World) -> None:
    """Tokens from a listed host; the budget in every answer; blobs at a CDN; 401 for what does not exist."""
    one.repo = "library/app"
    realm = tokens_at(one.other, "/token", one.upstream)
    grants = {None: [one.repo], "ann": [one.repo]}
    one.upstream.require_bearer(
        realm=realm, service="registry.docker.io", users={"ann": PASSWORD}, grants=grants, expires_in=300
    )
    one.realm_hosts = [one.other.host]
    limits = (("ratelimit-limit", "200;w=21600"), ("ratelimit-remaining", "176;w=21600"))
    one.upstream.on(path_contains="/manifests/").extra_headers(*limits, ("docker-ratelimit-source", "192.0.2.1"))
    one.upstream.redirect_blobs_to(one.storage)


def github(one: World) -> None:
    """A placeholder for a scope; 404 unless Accept has the stored type; 403 from the token service if private."""
    one.upstream.require_bearer(service="ghcr.io", scope_placeholder=True, users={"ann": PASSWORD})
    one.upstream.require_accept()
    one.upstream.redirect_blobs_to(one.storage)
    one.upstream.on("GET", path="/token", where=lambda asked: "private" in asked.target, unauthorized=True).status(403)


def quay(one: World) -> None:
    """Tokens at /v2/auth; another manifest, with another digest, for who does not accept the stored type."""
    realm = tokens_at(one.upstream, "/v2/auth", one.upstream)
    grants: dict[str | None, list[str]] = {"ann": [one.repo]}
    one.upstream.require_bearer(realm=realm, service="quay.io", users={"ann": PASSWORD}, grants=grants, expires_in=3600)
    one.upstream.redirect_blobs_to(one.storage, status=302)

    def converted(reply: Reply, _asked: Asked) -> Reply:
        body = reply.body.replace(OCI_MANIFEST.encode(), DOCKER_MANIFEST.encode())
        other = replace(reply, body=body).setting("Content-Type", DOCKER_MANIFEST)
        return other.setting("Docker-Content-Digest", digest_of(body))

    one.upstream.on(
        path_contains="/manifests/v", where=lambda asked: OCI_MANIFEST not in (asked.header("Accept") or "")
    ).then(converted)


def google(one: World) -> None:
    """An empty service; a relative 302 for blobs; a challenge at /v2/ only."""
    one.user = "oauth2accesstoken"
    realm = tokens_at(one.upstream, "/v2/token", one.upstream)
    one.upstream.require_bearer(realm=realm, service="", users={one.user: PASSWORD})
    downloads = "/artifacts-downloads/namespaces/x"

    def download(_reply: Reply, asked: Asked) -> Reply:
        return asked.answer(replace(asked.request, target=asked.request.path.removeprefix(downloads)))

    one.upstream.on("GET", path_contains="/artifacts-downloads/").then(download)
    one.upstream.on("GET", path_contains="/blobs/").redirect(lambda asked: f"{downloads}{asked.path}?sig=%7Ex", 302)
    one.upstream.on(path_contains=f"/{one.repo}/", unauthorized=True).then(without_challenge)


def kubernetes(one: World) -> None:
    """Asks for nothing and has nothing: manifests and blobs are with a registry in a region that wants a token."""
    one.holder, one.held_as = one.other, "k8s-artifacts-prod/images/app"
    one.upstream.on(path_contains=f"/{one.repo}/").redirect(
        lambda asked: f"{one.other.url}{asked.target.replace(one.repo, str(one.held_as))}"
    )
    one.other.require_bearer(realm=tokens_at(one.other, "/v2/token", one.other), service="")
    one.other.redirect_blobs_to(one.storage, status=302)


def microsoft(one: World) -> None:
    """No authentication; the blobs are on another host."""
    one.user = None
    one.upstream.redirect_blobs_to(one.storage)


def public_ecr(one: World) -> None:
    """Tokens at /token/, for anyone."""
    one.user = None
    realm = tokens_at(one.upstream, "/token/", one.upstream)
    one.upstream.require_bearer(realm=realm, service="public.ecr.aws")
    one.upstream.redirect_blobs_to(one.storage)


def private_ecr(one: World) -> None:
    """AWS and a password with every request; blobs in S3, behind URLs that are good for GET."""
    one.user = "AWS"
    one.upstream.require_basic({"AWS": PASSWORD}, realm="https://123456789012.dkr.ecr.eu-west-1.amazonaws.com/")
    one.upstream.redirect_blobs_to(one.storage)


def azure(one: World) -> None:
    """Tokens called access_token, and nothing else; storage that refuses an Authorization."""
    one.user = "00000000-0000-0000-0000-000000000000"
    realm = tokens_at(one.upstream, "/oauth2/token", one.upstream)
    one.upstream.require_bearer(
        realm=realm, service="team.azurecr.io", users={one.user: PASSWORD}, token_key="access_token", anonymous=False
    )
    one.upstream.redirect_blobs_to(one.storage)


def gitlab(one: World) -> None:
    """Tokens from the host of GitLab itself, which is another one than the registry's."""
    realm = tokens_at(one.other, "/jwt/auth", one.upstream)
    one.upstream.require_bearer(
        realm=realm, service="container_registry", users={"ann": PASSWORD}, anonymous=False, expires_in=None
    )
    one.realm_hosts = [one.other.host]
    one.upstream.redirect_blobs_to(one.storage)


def nvidia(one: World) -> None:
    """A challenge with no service; to who brings a token that is over, another one that leads to nothing."""
    one.user = "$oauthtoken"
    realm = tokens_at(one.upstream, "/proxy_auth", one.upstream)
    one.upstream.require_bearer(realm=realm, service=None, users={one.user: PASSWORD})
    one.realm_hosts = [one.other.host]
    one.other.on(path="/token").status(401)
    useless = f'Bearer realm="{one.other.url}/token",error="invalid_token"'

    def misled(reply: Reply, asked: Asked) -> Reply:
        has_token = (asked.request.header("Authorization") or "").startswith("Bearer ")
        return reply.setting("WWW-Authenticate", useless) if reply.status == 401 and has_token else reply

    one.upstream.on(path_contains=f"/{one.repo}/", unauthorized=True).then(misled)
    one.upstream.redirect_blobs_to(one.storage)


REGISTRIES: dict[str, tuple[Build, int]] = {  # with how many tokens a pull asks for
    "docker.io": (docker_hub, 1),
    "ghcr.io": (github, 1),
    "quay.io": (quay, 1),
    "gcr.io": (google, 1),
    "europe-docker.pkg.dev": (google, 1),
    "registry.k8s.io": (kubernetes, 1),
    "mcr.microsoft.com": (microsoft, 0),
    "public.ecr.aws": (public_ecr, 1),
    "123456789012.dkr.ecr.eu-west-1.amazonaws.com": (private_ecr, 0),
    "team.azurecr.io": (azure, 1),
    "registry.gitlab.com": (gitlab, 1),
    "nvcr.io": (nvidia, 1),
}
EXPIRING = [name for name, (_, tokens) in REGISTRIES.items() if tokens]


def problem(answer: RawAnswer) -> int:
    """The status of a refusal, which must not make a client send its credentials anywhere."""
    assert answer.header("WWW-Authenticate") is None
    return answer.status


async def pull(proxy: Proxy, repo: str, image: Image) -> None:
    """A whole image by its tag, as containerd and dockerd pull it; every byte is looked at."""
    path = f"/v2/{repo}"
    head = await proxy.head(f"{path}/manifests/{image.tag}")
    assert (head.status, head.header("Docker-Content-Digest")) == (200, image.digest)
    for reference in (image.tag, image.digest):
        got = await proxy.get(f"{path}/manifests/{reference}")
        assert (got.status, got.body, got.header("Content-Type")) == (200, image.body, OCI_MANIFEST)
        assert got.header("Warning") is None
    for digest in image.blob_digests:
        known = await proxy.head(f"{path}/blobs/{digest}")
        assert (known.status, known.header("Content-Length")) == (200, str(image.sizes[digest]))
        got = await proxy.get(f"{path}/blobs/{digest}")
        assert (got.status, digest_of(got.body)) == (200, digest)


@pytest.mark.parametrize("name", REGISTRIES)
async def test_a_whole_image_is_pulled_cold_and_again(name: str, store: Path, tmp_path: Path) -> None:
    build, tokens = REGISTRIES[name]
    async with world(name, build) as one:
        image = one.image("v1")
        async with running(one.config(tmp_path), store) as proxy:
            await pull(proxy, one.repo, image)
            assert one.tokens() == tokens
            before = len(one.storage.requests)
            await pull(proxy, one.repo, image)
            assert one.tokens() == tokens
            assert len(one.storage.requests) == before
        one.assert_kept()
        assert PASSWORD not in proxy.log_stream.getvalue()


@pytest.mark.parametrize("name", EXPIRING)
async def test_an_image_is_pulled_after_the_tokens_are_revoked(name: str, store: Path, tmp_path: Path) -> None:
    build, tokens = REGISTRIES[name]
    async with world(name, build) as one:
        first = one.image("v1")
        async with running(one.config(tmp_path), store) as proxy:
            await pull(proxy, one.repo, first)
            one.upstream.revoke_all()
            one.other.revoke_all()
            one.storage.expire_all()
            await pull(proxy, one.repo, first)
            await pull(proxy, one.repo, one.image("v2"))
            assert one.tokens() == 2 * tokens
            one.upstream.revoke_all()
            one.other.revoke_all()
            await pull(proxy, one.repo, one.image("v3"))
            assert one.tokens() == 3 * tokens
        one.assert_kept()


@pytest.mark.parametrize("name", EXPIRING)
async def test_a_token_whose_time_is_over_is_not_sent_again(
    name: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, tokens = REGISTRIES[name]
    monkeypatch.setattr("proxy.tokens.LONGEST_LIFE", 0.0)  # each is over as soon as it has come
    async with world(name, build) as one:
        image = one.image("v1")
        async with running(one.config(tmp_path), store) as proxy:
            await pull(proxy, one.repo, image)
        assert one.tokens() > tokens
        one.assert_kept()
        asked = [*one.upstream.requests, *one.other.requests]
        sent = [request.header("Authorization") for request in asked if "artifacts-downloads" not in request.path]
        used = [value for value in sent if value is not None and value.startswith("Bearer ")]
        assert len(set(used)) == len(used) > 1


# What single registries do besides


@pytest.mark.parametrize(("name", "build"), [("docker.io", docker_hub), ("quay.io", quay)])
async def test_a_401_for_what_does_not_exist_is_no_challenge_to_the_client(
    name: str, build: Build, store: Path, tmp_path: Path
) -> None:
    async with world(name, build) as one:
        image = one.image("v1")
        async with running(one.config(tmp_path), store) as proxy:
            assert problem(await proxy.get("/v2/library/none/manifests/v1")) == 403
            assert one.tokens() == 1
            assert problem(await proxy.get(f"/v2/library/none/blobs/{image.config_digest}")) == 403
            assert problem(await proxy.get(f"/v2/{one.repo}/manifests/none")) == 404
            await pull(proxy, one.repo, image)
        one.assert_kept()


async def test_docker_hubs_official_images_are_below_library(store: Path, tmp_path: Path) -> None:
    async with world("docker.io", docker_hub) as one:
        image = one.image("v1")
        async with running(one.config(tmp_path), store) as proxy:
            await pull(proxy, "app", image)
        scopes = [request.scopes for request in one.upstream.token_requests]
        assert scopes == [("repository:library/app:pull",)]
        assert {request.service for request in one.upstream.token_requests} == {"registry.docker.io"}


async def test_the_placeholder_of_ghcr_is_no_scope_and_its_403_is_no_end(store: Path, tmp_path: Path) -> None:
    async with world("ghcr.io", github) as one:
        image = one.image("v1")
        async with running(one.config(tmp_path), store) as proxy:
            assert problem(await proxy.get("/v2/acme/private/manifests/v1")) == 403
            await pull(proxy, one.repo, image)
            assert problem(await proxy.get("/v2/acme/private/manifests/v1")) == 403
            await pull(proxy, one.repo, image)
        scopes = [request.scopes for request in one.upstream.token_requests]
        assert scopes.count((f"repository:{one.repo}:pull",)) == 1
        # The one without a scope tells whether it is the repository that is refused, or the credential.
        assert set(scopes) == {(f"repository:{one.repo}:pull",), ("repository:acme/private:pull",), ()}
        one.assert_kept()


def asked_for_private(one: World) -> int:
    """How many tokens were asked for in vain."""
    scopes = [request.scopes for request in one.upstream.token_requests]
    return scopes.count(("repository:acme/private:pull",))


async def test_one_token_request_is_enough_to_learn_that_a_repository_is_private(store: Path, tmp_path: Path) -> None:
    async with world("ghcr.io", github) as one:
        image = one.image("v1")
        async with running(one.config(tmp_path), store) as proxy:
            await pull(proxy, one.repo, image)
            for target in (f"/v2/acme/private/{what}" for what in ("manifests/v1", f"blobs/{image.config_digest}")):
                assert (await proxy.head(target)).status == 403
                assert problem(await proxy.get(target)) == 403
            await pull(proxy, one.repo, image)
        assert asked_for_private(one) == 1
        one.assert_kept()


async def test_a_token_is_asked_for_again_once_a_refusal_is_a_while_ago(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.tokens.REFUSAL_LIFE", 0.0)
    async with world("ghcr.io", github) as one, running(one.config(tmp_path), store) as proxy:
        for _ in range(2):
            assert problem(await proxy.get("/v2/acme/private/manifests/v1")) == 403
        assert asked_for_private(one) == 2


@pytest.mark.parametrize(("name", "build"), [("quay.io", quay), ("ghcr.io", github)])
async def test_a_client_that_accepts_little_gets_what_is_stored(
    name: str, build: Build, store: Path, tmp_path: Path
) -> None:
    async with world(name, build) as one:
        image = one.image("v1")
        async with running(one.config(tmp_path), store) as proxy:
            for accept in ({"Accept": DOCKER_MANIFEST}, {"Accept": "*/*"}, {}):
                for method in ("HEAD", "GET"):
                    got = await proxy.ask(method, f"/v2/{one.repo}/manifests/v1", accept)
                    assert (got.status, got.header("Docker-Content-Digest")) == (200, image.digest)


async def test_google_is_asked_at_v2_once_for_each_token(store: Path, tmp_path: Path) -> None:
    async with world("gcr.io", google) as one:
        async with running(one.config(tmp_path), store) as proxy:
            await pull(proxy, one.repo, one.image("v1"))
            assert len([request for request in one.upstream.requests if request.path == "/v2/"]) == 1
            one.upstream.revoke_all()
            await pull(proxy, one.repo, one.image("v2"))
        assert len([request for request in one.upstream.requests if request.path == "/v2/"]) == 2
        assert {request.service for request in one.upstream.token_requests} <= {None, ""}
        assert {request.user for request in one.upstream.token_requests} == {"oauth2accesstoken"}


async def test_the_region_of_kubernetes_is_asked_as_nobody_for_its_own_repository(store: Path, tmp_path: Path) -> None:
    async with world("registry.k8s.io", kubernetes) as one:
        async with running(one.config(tmp_path), store) as proxy:
            await pull(proxy, one.repo, one.image("v1"))
        asked = [(request.user, request.scopes) for request in one.other.token_requests]
        assert asked == [(None, (f"repository:{one.held_as}:pull",))]
        assert all(request.header("Authorization") is None for request in one.upstream.requests)


@pytest.mark.parametrize("status", [401, 403, 405])
async def test_a_registry_that_answers_no_head_is_asked_by_get(store: Path, tmp_path: Path, status: int) -> None:
    async with world("public.ecr.aws", public_ecr) as one:
        one.upstream.on("HEAD").status(status)
        image = one.image("v1")
        async with running(one.config(tmp_path), store) as proxy:
            await pull(proxy, one.repo, image)
            await pull(proxy, one.repo, image)
            await pull(proxy, one.repo, one.image("v2"))
        if status != 401:
            assert one.tokens() == 1
        one.assert_kept()


async def test_a_head_that_is_refused_whatever_the_token_costs_no_token_each_time(store: Path, tmp_path: Path) -> None:
    async with world("public.ecr.aws", public_ecr) as one:
        one.upstream.on("HEAD").status(401)
        image = one.image("v1")
        async with running(one.config(tmp_path), store) as proxy:
            for _ in range(6):
                await pull(proxy, one.repo, image)
        assert one.tokens() <= 3  # one, and one more for the first HEAD of a manifest and of a blob


@pytest.mark.parametrize("status", [401, 403, 405])
@pytest.mark.parametrize("is_remembered", [True, False])
async def test_a_registry_that_answers_no_head_is_sent_one_of_each_kind_an_hour(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, is_remembered: bool
) -> None:
    if not is_remembered:
        monkeypatch.setattr("proxy.upstream.NO_HEAD_LIFE", 0.0)  # each hour is over at once
    async with world("mcr.microsoft.com", microsoft) as one:
        one.upstream.on("HEAD").status(status)
        image = one.image("v1")
        async with running(one.config(tmp_path), store) as proxy:
            for _ in range(3):
                await pull(proxy, one.repo, image)
        assert (one.upstream.count("HEAD") == 2) == is_remembered  # of a manifest, and of a blob


async def test_a_repository_that_was_denied_for_a_while_is_asked_by_head_as_before(store: Path, tmp_path: Path) -> None:
    async with world("mcr.microsoft.com", microsoft) as one:
        target = f"/v2/{one.repo}/manifests/{one.image('v1').tag}"
        async with running(one.config(tmp_path), store) as proxy:
            assert (await proxy.get(target)).status == 200
            denial = one.upstream.on().status(401)
            assert problem(await proxy.get(target)) == 403
            denial.stop()
            before = one.upstream.count("HEAD")
            for _ in range(3):  # the first is cold
                assert (await proxy.get(target)).status == 200
            assert one.upstream.count("HEAD") == before + 2


@pytest.mark.parametrize("name", ["docker.io", "mcr.microsoft.com", "registry.k8s.io", "quay.io"])
async def test_a_signed_url_that_has_expired_is_signed_again(name: str, store: Path, tmp_path: Path) -> None:
    build, tokens = REGISTRIES[name]
    async with world(name, build) as one:
        image = one.image("v1")
        refused = one.storage.on("GET", times=1)
        refused.status(403, (), b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")
        async with running(one.config(tmp_path), store) as proxy:
            await pull(proxy, one.repo, image)
        assert refused.applied == 1
        assert len(set(one.storage.targets)) == len(one.storage.targets)
        assert one.tokens() == tokens
        one.assert_kept()


async def test_ecrs_storage_sees_nothing_but_gets_and_a_new_password_is_taken_over(store: Path, tmp_path: Path) -> None:
    name = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
    async with world(name, private_ecr) as one:
        async with running(one.config(tmp_path), store) as proxy:
            await pull(proxy, one.repo, one.image("v1"))
            one.upstream.require_basic({"AWS": "of-the-next-12-hours"})
            (tmp_path / "password").write_text("of-the-next-12-hours")
            second = one.image("v2")
            deadline = time.monotonic() + DEADLINE
            while (await proxy.get(f"/v2/{one.repo}/manifests/v2")).status != 200:
                assert time.monotonic() < deadline
            await pull(proxy, one.repo, second)
        assert {request.method for request in one.storage.requests} == {"GET"}
        one.assert_kept()


async def test_nvidias_second_challenge_is_never_followed(store: Path, tmp_path: Path) -> None:
    async with world("nvcr.io", nvidia) as one:
        async with running(one.config(tmp_path), store) as proxy:
            await pull(proxy, one.repo, one.image("v1"))
            one.upstream.revoke_all()
            await pull(proxy, one.repo, one.image("v2"))
        assert one.other.connections == 0
        assert {request.service for request in one.upstream.token_requests} == {None}


@pytest.mark.parametrize("name", REGISTRIES)
async def test_an_image_is_pulled_where_no_answer_names_its_digest(name: str, store: Path, tmp_path: Path) -> None:
    build, _ = REGISTRIES[name]
    async with world(name, build) as one:
        image = one.image("v1")
        for server in (one.upstream, one.other):
            for rule in server._rules:
                rule.behaviours.append(lambda reply, _asked: reply.dropping("Docker-Content-Digest"))
            server.on().no_digest()
        async with running(one.config(tmp_path), store) as proxy:
            await pull(proxy, one.repo, image)
            await pull(proxy, one.repo, image)
        one.assert_kept()


RETRY_AFTER: dict[str, tuple[Callable[[float], str], int, int]] = {  # what is said; what a client is told, in seconds
    "seconds": (lambda _now: "60", 50, 60),
    "a date": (lambda now: formatdate(now + 600, usegmt=True), 500, 601),
    "a unix time": (lambda now: str(int(now) + 600), 500, 601),
    "a time that is over": (lambda _now: "1000000000", 0, 3600),
    "days": (lambda _now: "864000", 3500, 3600),
    "a number beyond all": (lambda _now: "9" * 40, 1, 3600),
    "less than nothing": (lambda _now: "-5", 1, 3600),
    "a word": (lambda _now: "soon", 1, 3600),
    "nothing": (lambda _now: "", 1, 3600),
}


@pytest.mark.parametrize("what", RETRY_AFTER)
@pytest.mark.parametrize("at", ["the registry", "its token service"])
async def test_a_retry_after_is_understood_and_never_believed_for_long(
    what: str, at: str, store: Path, tmp_path: Path
) -> None:
    said, least, most = RETRY_AFTER[what]
    async with world("docker.io", docker_hub) as one:
        server = one.upstream if at == "the registry" else one.other
        server.forget_rules()
        limits = server.on(unauthorized=True)
        limits.status(429, [("Retry-After", said(time.time()))], b"Too Many Requests (HAP429)\n")
        async with running(one.config(tmp_path), store) as proxy:
            got = await proxy.get(f"/v2/{one.repo}/manifests/v1")
            assert got.status == 429
            assert least <= int(got.header("Retry-After") or -1) <= most
            assert limits.applied == 1
        one.assert_kept()


async def test_blobs_that_refuse_a_head_take_no_head_from_the_manifests(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image("library/app", "v1")
    upstream.on("HEAD", path_contains="/blobs/").status(405)
    async with running(toml(upstream.url, more='tag_ttl = "0s"'), store) as proxy:
        assert (await proxy.head(f"/v2/library/app/blobs/{image.config_digest}")).status == 200
        for _ in range(3):
            assert (await proxy.get("/v2/library/app/manifests/v1")).body == image.body
    assert upstream.count("GET", path_contains="/manifests/") == 1
