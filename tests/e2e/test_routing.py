"""Routing on the wire: two upstreams, and each is asked only for what is its own."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .harness import Proxy, running, toml
from .raw_client import connect
from .upstream import Canary, FakeRegistry, Image

HEX = "a" * 64
HUB, GHCR = "library/app", "owner/app"


@pytest.fixture
async def other() -> AsyncIterator[FakeRegistry]:
    """The second upstream."""
    async with FakeRegistry() as registry:
        yield registry


@pytest.fixture
async def both(upstream: FakeRegistry, other: FakeRegistry, store: Path) -> AsyncIterator[Proxy]:
    """docker.io, the default, and ghcr.io, which the Host header `mirror.example` leads to as well."""
    more = f"""
        aliases = ["index.docker.io"]
        [[upstream]]
        registry = "ghcr.io"
        url = "{other.url}"
        hosts = ["mirror.example"]
    """
    async with running(toml(upstream.url, more=more), store) as proxy:
        yield proxy


@pytest.fixture
def images(upstream: FakeRegistry, other: FakeRegistry) -> tuple[Image, Image]:
    """One image in each, under names that the other has not."""
    return upstream.add_image(HUB, "v1", [b"of the hub"]), other.add_image(GHCR, "v1", [b"of ghcr"])


@pytest.mark.parametrize(
    "target",
    ["/v2/app/{}", "/v2/library/app/{}", "/v2/library/app/{}?ns=docker.io", "/v2/app/{}?ns=DOCKER.IO",
     "/v2/docker.io/app/{}", "/docker.io/v2/library/app/{}", "/v2/index.docker.io/library/app/{}",
     "/docker.io/v2/app/{}?ns=docker.io"],
)  # fmt: skip
async def test_every_way_to_the_default_upstream_leads_there(
    upstream: FakeRegistry, other: FakeRegistry, both: Proxy, images: tuple[Image, Image], target: str
) -> None:
    hub, _ = images
    assert (await both.get(target.format("manifests/v1"))).body == hub.body
    assert (await both.get(target.format(f"blobs/{hub.layer_digests[0]}"))).body == b"of the hub"
    assert json.loads((await both.get(target.format("tags/list"))).body)["tags"] == ["v1"]
    assert {request.path.rpartition("/app/")[0] for request in upstream.requests} == {"/v2/library"}
    assert other.requests == []


@pytest.mark.parametrize(
    "target",
    ["/v2/owner/app/{}?ns=ghcr.io", "/v2/ghcr.io/owner/app/{}", "/ghcr.io/v2/owner/app/{}", "/v2/GHCR.IO/owner/app/{}",
     "/v2/ghcr.io/owner/app/{}?ns=ghcr.io", "/ghcr.io/v2/owner/app/{}?ns=ghcr.io", "/v2/owner/app/{}?x=1&ns=ghcr.io"],
)  # fmt: skip
async def test_every_way_to_the_other_upstream_leads_there(
    upstream: FakeRegistry, other: FakeRegistry, both: Proxy, images: tuple[Image, Image], target: str
) -> None:
    _, ghcr = images
    assert (await both.get(target.format("manifests/v1"))).body == ghcr.body
    assert (await both.get(target.format(f"blobs/{ghcr.layer_digests[0]}"))).body == b"of ghcr"
    assert upstream.requests == []
    assert {request.path.rpartition("/app/")[0] for request in other.requests} == {"/v2/owner"}
    assert all("ns=" not in request.target for request in other.requests)


async def test_the_host_header_leads_to_an_upstream_where_configured(
    upstream: FakeRegistry, both: Proxy, images: tuple[Image, Image]
) -> None:
    hub, ghcr = images
    for host in ("mirror.example", "MIRROR.example:5000"):
        assert (await both.get("/v2/owner/app/manifests/v1", {"Host": host})).body == ghcr.body
    assert upstream.requests == []
    for host in (
        "elsewhere.example",
        "ghcr.io",
        "mirror.example.evil",
        "x.mirror.example",
        "[::1]:5000",
        "mirror.example.",
    ):
        assert (await both.get("/v2/app/manifests/v1", {"Host": host})).body == hub.body, host
    async with connect(both.host) as client:
        client.writer.write(b"GET /v2/app/manifests/v1 HTTP/1.0\r\n\r\n")
        assert (await client.answer()).body == hub.body


async def test_the_namespace_that_was_used_is_echoed_and_no_other(
    upstream: FakeRegistry, both: Proxy, images: tuple[Image, Image]
) -> None:
    hub, ghcr = images
    for reference in ("manifests/v1", "manifests/none", f"blobs/{ghcr.layer_digests[0]}", f"blobs/sha256:{HEX}"):
        got = await both.get(f"/v2/owner/app/{reference}?ns=GHCR.io")
        assert got.header("OCI-Namespace") == "ghcr.io", reference
    for target in (f"/v2/app/manifests/{hub.digest}", "/v2/ghcr.io/owner/app/manifests/v1"):
        assert (await both.get(target)).header("OCI-Namespace") is None
    refused = await both.get("/v2/owner/app/manifests/v1?ns=evil.example")
    assert refused.header("OCI-Namespace") is None


async def test_no_ns_but_a_configured_one_causes_any_connection(
    upstream: FakeRegistry, other: FakeRegistry, both: Proxy
) -> None:
    async with Canary() as canary:
        port = canary.host.partition(":")[2]
        for ns in (
            canary.host, f"localhost:{port}", f"user@{canary.host}", f"docker.io@{canary.host}", f"{canary.host}/",
            f"docker.io%00.{canary.host}", f"docker.io%20{canary.host}", "docker.io.", "docker.io:443", "docker.io%0a",
            "%E2%91%A0%E2%91%A1%E2%91%A6.0.0.1", "d%C3%B6cker.io", "", "docker.io&ns=ghcr.io", "ghcr.io&ns=ghcr.io",
            "%64ocker.io&ns=", "docker.io%26ns=evil", "[::1]", f"2130706433:{port}", "*", "docker.io,ghcr.io",
            f"http://{canary.host}", f"0x7f000001:{port}", f"[::ffff:127.0.0.1]:{port}", f"127.1:{port}",
            "a" * 8000, "evil",
        ):  # fmt: skip
            for path in (
                f"/v2/app/manifests/v1?ns={ns}",
                f"/v2/app/blobs/sha256:{HEX}?ns={ns}",
                f"/v2/app/tags/list?ns={ns}",
            ):
                got = await both.get(path)
                assert got.status in {400, 404}, (ns, got)
        assert canary.connections == 0
    assert upstream.connections + other.connections == 0


async def test_an_ns_is_read_after_one_decoding_and_no_more(both: Proxy, images: tuple[Image, Image]) -> None:
    _, ghcr = images
    assert (await both.get("/v2/owner/app/manifests/v1?ns=%67hcr%2Eio")).body == ghcr.body
    assert (await both.get("/v2/owner/app/manifests/v1?ns=%2567hcr.io")).status == 400


async def test_a_repository_never_falls_through_to_another_upstream(
    upstream: FakeRegistry, other: FakeRegistry, both: Proxy
) -> None:
    there = other.add_image(GHCR, "v1", [b"only at ghcr"])
    layer = there.layer_digests[0]
    for target in ("manifests/v1", f"manifests/{there.digest}", f"blobs/{layer}", "tags/list"):
        assert (await both.get(f"/v2/{GHCR}/{target}")).status == 404
        assert (await both.get(f"/v2/{GHCR}/{target}?ns=docker.io")).status == 404
    assert other.requests == []
    assert (await both.get(f"/v2/{GHCR}/blobs/{layer}?ns=ghcr.io")).body == b"only at ghcr"
    assert (await both.get(f"/v2/{GHCR}/manifests/v1?ns=ghcr.io")).body == there.body
    await both.settled()
    for target in (f"manifests/{there.digest}", f"blobs/{layer}"):  # in the cache by now, and still not Docker Hub's
        assert (await both.get(f"/v2/{GHCR}/{target}")).status == 404


async def test_one_name_in_two_upstreams_is_two_repositories(
    upstream: FakeRegistry, other: FakeRegistry, both: Proxy
) -> None:
    here, there = upstream.add_image(GHCR, "v1", [b"hub"]), other.add_image(GHCR, "v1", [b"ghcr"])
    for _ in range(2):
        assert (await both.get(f"/v2/{GHCR}/manifests/v1")).body == here.body
        assert (await both.get(f"/v2/{GHCR}/manifests/v1?ns=ghcr.io")).body == there.body
    await upstream.go_down()
    upstream_gone = await both.get(f"/v2/{GHCR}/manifests/new")
    assert upstream_gone.status == 502
    assert other.count(path_contains="/manifests/new") == 0


@pytest.mark.parametrize(
    "target", ["/v2/quay.io/a/b/{}", "/quay.io/v2/a/b/{}", "/v2/localhost/b/{}", "/v2/10.0.0.1/b/{}"]
)
async def test_a_registry_that_is_not_configured_is_refused(
    upstream: FakeRegistry, other: FakeRegistry, both: Proxy, target: str
) -> None:
    for endpoint in ("manifests/v1", f"blobs/sha256:{HEX}", "tags/list", f"referrers/sha256:{HEX}"):
        got = await both.get(target.format(endpoint))
        assert (got.status, json.loads(got.body)["errors"][0]["code"]) == (404, "NAME_UNKNOWN")
    assert upstream.connections + other.connections == 0
