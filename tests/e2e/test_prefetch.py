"""Prefetch: what a manifest names is on its way before it is asked for, where that is wanted, and only there."""

from pathlib import Path

import pytest

from proxy import exchange

from .harness import running, toml, until
from .upstream import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, FakeRegistry, descriptor, digest_of

REPO, OTHER = "library/app", "library/other"
TAG = f"/v2/{REPO}/manifests/v1"


@pytest.mark.parametrize("setting", ['"on"', '["library/*"]', "true"])
async def test_the_blobs_of_a_manifest_are_brought_before_they_are_asked_for(
    upstream: FakeRegistry, store: Path, setting: str
) -> None:
    image = upstream.add_image(REPO, "v1", [b"one", b"two"])
    async with running(toml(upstream.url, more=f"prefetch = {setting}"), store) as proxy:
        assert (await proxy.get(TAG)).status == 200
        await until(lambda: set(image.blob_digests) <= set(proxy.blobs()))
        await proxy.settled()
        before = upstream.count()
        for digest in image.blob_digests:
            assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).status == 200
        assert upstream.count() == before
        assert upstream.count("GET", path_contains="/blobs/") == len(image.blob_digests)


@pytest.mark.parametrize("setting", ["", 'prefetch = "off"', 'prefetch = ["acme/*"]', "prefetch = []"])
async def test_nothing_is_brought_where_it_is_not_wanted(upstream: FakeRegistry, store: Path, setting: str) -> None:
    upstream.add_image(REPO, "v1", [b"one"])
    async with running(toml(upstream.url, more=setting), store) as proxy:
        assert (await proxy.get(TAG)).status == 200
        await proxy.settled()
    assert upstream.count(path_contains="/blobs/") == 0


async def test_an_index_brings_no_platform_until_one_is_asked_for(upstream: FakeRegistry, store: Path) -> None:
    images = [upstream.add_image(REPO, f"p{number}", [f"{number}".encode()]) for number in range(2)]
    upstream.add_index(REPO, "v1", images)
    async with running(toml(upstream.url, more='prefetch = "on"'), store) as proxy:
        assert (await proxy.get(TAG)).status == 200
        await proxy.settled()
        assert upstream.count(path_contains="/blobs/") == 0
        assert (await proxy.get(f"/v2/{REPO}/manifests/{images[1].digest}")).status == 200
        await until(lambda: set(images[1].blob_digests) <= set(proxy.blobs()))
        await proxy.settled()
    assert upstream.count("GET", path_contains="/blobs/") == len(images[1].blob_digests)


async def test_layers_that_are_elsewhere_and_blobs_that_cannot_be_had_do_no_harm(
    upstream: FakeRegistry, store: Path
) -> None:
    here, gone, elsewhere = (descriptor(OCI_LAYER, digest_of(body), len(body)) for body in (b"here", b"gone", b"else"))
    foreign = {**elsewhere, "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}
    upstream.add_blob(REPO, b"here")
    config = descriptor(OCI_CONFIG, upstream.add_blob(REPO, b"{}"), 2)
    body = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [here, gone, foreign]}
    upstream.add_manifest(REPO, body, OCI_MANIFEST, tags=["v1"])
    async with running(toml(upstream.url, more='prefetch = "on"'), store) as proxy:
        assert (await proxy.get(TAG)).status == 200
        await upstream.seen(3, method="GET", path_contains="/blobs/")
        await until(lambda: here["digest"] in proxy.blobs())
        await proxy.settled()
        assert upstream.count(path_contains=str(foreign["digest"])) == 0


async def test_one_manifest_starts_no_storm_of_prefetching(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "BUDGET", 2.0)  # what is not answered is given up by then, and what is is in time
    config = descriptor(OCI_CONFIG, upstream.add_blob(REPO, b"{}"), 2)
    layers = [descriptor(OCI_LAYER, digest_of(str(number).encode()), 10) for number in range(5000)]
    body = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}
    upstream.add_manifest(REPO, body, OCI_MANIFEST, tags=["v1"])
    wanted = upstream.add_blob(OTHER, b"wanted")
    gate = upstream.on("GET", repo=REPO, path_contains="/blobs/").hang()
    async with running(toml(upstream.url, more='prefetch = "on"'), store) as proxy:
        assert (await proxy.get(TAG)).status == 200
        await gate.reached.wait()
        got = await proxy.get(f"/v2/{OTHER}/blobs/{wanted}")
        waiting = proxy.app.blobs._waiting["docker.io"]
        upstream.forget_rules()
        gate.open()
        assert (got.status, got.body) == (200, b"wanted"), (got.status, got.body, waiting)
        await proxy.settled()
        assert upstream.count("GET", path_contains=f"/{REPO}/blobs/") <= 128
