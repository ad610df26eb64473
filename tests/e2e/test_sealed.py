"""A sealed upstream: what is cached is served as it is, nothing is asked, and each miss is reported."""

from pathlib import Path

import pytest

from .harness import running, toml
from .test_inventory import entrepot, pull
from .upstream import FakeRegistry

REPO = "library/app"
TAG = f"/v2/{REPO}/manifests/v1"


async def test_what_is_cached_is_served_and_nothing_is_asked(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, image)
    before = upstream.connections
    text = toml(upstream.url, more='tag_ttl = "0s"\nprefetch = "on"', server="sealed = true")
    async with running(text, store) as proxy:
        for headers in ({}, {"Cache-Control": "no-cache"}):
            got = await proxy.get(TAG, headers)
            assert (got.status, got.body, got.header("Warning")) == (200, image.body, None)
        for digest in image.blob_digests:
            assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).status == 200
            assert (await proxy.head(f"/v2/{REPO}/blobs/{digest}")).status == 200
        await proxy.app.housekeeping._round(None)
    assert upstream.connections == before


@pytest.mark.parametrize("more", ["sealed = true", 'freeze = ["library/*"]'])
async def test_an_operator_is_told_that_the_next_pull_asks_nobody(
    upstream: FakeRegistry, store: Path, more: str
) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    async with running(toml(upstream.url, more='tag_ttl = "0s"'), store) as proxy:
        await pull(proxy, image, blobs=1)
    text = toml(upstream.url, more=f'tag_ttl = "0s"\n{more}', server='listen = "127.0.0.1:1"')
    (store.parent / f"{store.name}.toml").write_text(text)
    before = upstream.connections
    said = (await entrepot(store, "show", "app:v1")).stdout
    assert ("v1: stays what it is" in said, "the next pull asks again" in said) == (True, False)
    cost = "no question, 5 B of blobs" if "freeze" in more else "cannot be whole: 5 B of blobs are missing"
    assert cost in said
    said = (await entrepot(store, "refresh", "app:v1")).stdout
    assert said == f"app:v1: not asked, for it is frozen or sealed: {image.digest}\n"
    assert upstream.connections == before


async def test_no_clock_and_no_eviction_makes_a_sealed_cache_forget_a_tag(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, image)
    async with running(toml(upstream.url, more="sealed = true"), store) as proxy:
        monkeypatch.setattr("proxy.tags.time.time", lambda: 1.0)
        assert (await proxy.get(TAG)).body == image.body
        proxy.app.manifests.forget()
        kept = proxy.blob_path(image.digest).rename(store / "kept")
        assert (await proxy.get(TAG)).status == 404
        kept.rename(proxy.blob_path(image.digest))
        proxy.app.manifests.forget()
        assert (await proxy.get(TAG)).body == image.body


async def test_what_is_not_cached_is_404_and_reported(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    layer = image.layer_digests[0]
    targets = {
        TAG: "manifests/v1",
        f"/v2/{REPO}/manifests/{image.digest}": f"manifests/{image.digest}",
        f"/v2/{REPO}/blobs/{layer}": f"blobs/{layer}",
        f"/v2/{REPO}/tags/list": "tags/list",
        f"/v2/{REPO}/referrers/{image.digest}": f"referrers/{image.digest}",
    }
    async with running(toml(upstream.url, more="sealed = true"), store) as proxy:
        for target, missed in targets.items():
            got = await proxy.get(target)
            assert (got.status, b"is sealed" in got.body) == (404, True), target
            (line,) = [line for line in proxy.log if line["event"] == "sealed" and line["missed"] == missed][:1]
            assert (line["upstream"], line["repository"]) == ("docker.io", REPO)
        assert (await proxy.head(f"/v2/{REPO}/blobs/{layer}")).status == 404
        misses = proxy.metrics.registry.get_sample_value("entrepot_sealed_misses_total", {"upstream": "docker.io"})
        assert (misses or 0) >= len(targets)
    assert upstream.connections == 0


async def test_bytes_that_another_repository_has_are_not_given_without_upstreams_word(
    upstream: FakeRegistry, store: Path
) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, image)
    async with running(toml(upstream.url, more="sealed = true"), store) as proxy:
        assert (await proxy.get(f"/v2/library/other/blobs/{image.layer_digests[0]}")).status == 404
