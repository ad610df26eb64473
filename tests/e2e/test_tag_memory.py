"""What tags have stood for: every move is kept, a date brings an old one back, and a frozen tag does not move."""

import asyncio
import json
from pathlib import Path

import pytest

from proxy.oci.ratelimit import as_utc

from .harness import Proxy, running, toml
from .test_admin_api import administered, ask, order
from .test_inventory import entrepot, pull
from .upstream import FakeRegistry, Image

REPO = "library/app"
TAG = f"/v2/{REPO}/manifests/v1"
NEVER_FRESH = 'tag_ttl = "0s"'


class Clock:
    """Unix seconds for what a tag's record says; nobody else looks at it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_700_000_000.0
        monkeypatch.setattr("proxy.tags.time.time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """See Clock."""
    return Clock(monkeypatch)


async def moved(upstream: FakeRegistry, proxy: Proxy, clock: Clock, count: int = 3) -> list[Image]:
    """Images that v1 has stood for, an hour each."""
    images = [upstream.add_image(REPO, f"build{number}", [b"%d" % number]) for number in range(count)]
    for image in images:
        upstream.tag(REPO, "v1", image.digest)
        assert (await proxy.get(TAG)).body == image.body
        clock.now += 3600
    return images


async def test_a_tag_is_what_it_was_at_a_time_by_header_or_query(
    upstream: FakeRegistry, store: Path, clock: Clock
) -> None:
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        began = clock.now
        images = await moved(upstream, proxy, clock)
        asked = upstream.count()
        for number, image in enumerate(images):
            then = as_utc(began + 3600 * number + 60)
            got = await proxy.get(TAG, {"Entrepot-As-Of": then})
            assert (got.body, got.header("Docker-Content-Digest")) == (image.body, image.digest)
            assert (await proxy.get(f"{TAG}?as-of={then.replace('+', '%2B')}")).body == image.body
        assert upstream.count() == asked
        early = await proxy.get(TAG, {"Entrepot-As-Of": as_utc(began - 60)})
        assert (early.status, b"first seen at 2023-11-14" in early.body) == (404, True)
        never = await proxy.get(f"/v2/{REPO}/manifests/v9", {"Entrepot-As-Of": "2026-01-01"})
        assert (never.status, b"never pulled" in never.body) == (404, True)
        for text in ("yesterday", "", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "1e9", "1969-12-31"):
            wrong = await proxy.get(TAG, {"Entrepot-As-Of": text})
            assert (wrong.status, b"2026-11-01" in wrong.body) == (400, True), text


async def test_what_a_tag_was_is_fetched_again_by_digest_if_it_has_gone(
    upstream: FakeRegistry, store: Path, clock: Clock
) -> None:
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        began = clock.now
        images = await moved(upstream, proxy, clock)
        await entrepot(store, "rm", f"app@{images[0].digest}")
        await proxy.app.housekeeping._round(None)
        assert (await proxy.get(TAG, {"Entrepot-As-Of": as_utc(began + 60)})).body == images[0].body


async def test_the_configuration_can_hold_an_upstream_at_a_date(
    upstream: FakeRegistry, store: Path, clock: Clock
) -> None:
    began = clock.now
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        images = await moved(upstream, proxy, clock)
    text = toml(upstream.url, more=f'{NEVER_FRESH}\nas_of = "{as_utc(began + 3700)}"')
    async with running(text, store) as proxy:
        assert (await proxy.get(TAG)).body == images[1].body
        assert (await proxy.get(TAG, {"Entrepot-As-Of": as_utc(began + 60)})).body == images[0].body


async def test_the_configuration_can_freeze_the_tags_of_repositories(
    upstream: FakeRegistry, store: Path, clock: Clock
) -> None:
    async with running(toml(upstream.url, more=f'{NEVER_FRESH}\nfreeze = ["library/*"]'), store) as proxy:
        image = upstream.add_image(REPO, "v1", [b"one"])
        assert (await proxy.get(TAG)).body == image.body
        upstream.add_image(REPO, "v1", [b"two"])
        clock.now += 365 * 86400
        assert (await proxy.get(TAG)).body == image.body
        other = upstream.add_image("acme/app", "v1", [b"one"])
        assert (await proxy.get("/v2/acme/app/manifests/v1")).body == other.body
        other = upstream.add_image("acme/app", "v1", [b"two"])
        assert (await proxy.get("/v2/acme/app/manifests/v1")).body == other.body


async def test_a_frozen_tag_stays_what_it_is_until_it_is_unfrozen(
    upstream: FakeRegistry, store: Path, clock: Clock
) -> None:
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        began = clock.now
        images = await moved(upstream, proxy, clock)
        said = await entrepot(store, "freeze", "--as-of", as_utc(began + 60), "app:v1")
        assert said.stdout == f"app:v1: frozen at {images[0].digest}\n"
        await proxy.app.housekeeping._round(None)
        for headers in ({}, {"Cache-Control": "no-cache"}):
            got = await proxy.get(TAG, headers)
            assert (got.body, got.header("Warning")) == (images[0].body, None)
        listed = json.loads((await entrepot(store, "ls", "--json")).stdout)
        assert [tag["state"] for one in listed for tag in one["tags"]] == ["frozen"]
        assert "will not be until it is unfrozen" in (await entrepot(store, "show", "app:v1")).stdout
        await entrepot(store, "unfreeze", "app:v1")
        await proxy.app.housekeeping._round(None)
        assert (await proxy.get(TAG)).body == images[-1].body


async def test_a_tag_that_is_frozen_while_upstream_is_asked_stays_frozen(
    upstream: FakeRegistry, store: Path, clock: Clock
) -> None:
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        (image,) = await moved(upstream, proxy, clock, 1)
        upstream.add_image(REPO, "v1", [b"new"])
        gate = upstream.on("HEAD", times=1).gate(after=0)
        pulled = asyncio.create_task(proxy.get(TAG))
        await upstream.seen(2)
        await entrepot(store, "freeze", "app:v1")
        gate.open()
        await pulled
        await proxy.app.housekeeping._round(None)
        assert (await proxy.get(TAG)).body == image.body


async def test_what_cannot_be_frozen_is_said(upstream: FakeRegistry, store: Path, clock: Clock) -> None:
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        (image,) = await moved(upstream, proxy, clock, 1)
        assert "name a tag" in (await entrepot(store, "freeze", f"app@{image.digest}", code=2)).stderr
        assert "nobody knows" in (await entrepot(store, "freeze", "app:v2", code=1)).stderr
        assert "as of 2001" in (await entrepot(store, "freeze", "--as-of", "2001-01-01", "app:v1", code=1)).stderr
        assert "no time" in (await entrepot(store, "freeze", "--as-of", "then", "app:v1", code=2)).stderr


async def test_the_moves_are_reported_in_order(upstream: FakeRegistry, store: Path, clock: Clock) -> None:
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        began = clock.now
        images = await moved(upstream, proxy, clock)
        told = json.loads((await entrepot(store, "moves", "--json")).stdout)
        digests = [image.digest for image in images]
        assert [(one["from"], one["to"]) for one in told] == list(zip([None, *digests], digests, strict=False))
        assert {one["image"] for one in told} == {f"docker.io/{REPO}:v1"}
        since = as_utc(began + 3700)
        assert len(json.loads((await entrepot(store, "moves", "--json", "--since", since)).stdout)) == 1
        assert images[2].digest[7:19] in (await entrepot(store, "moves")).stdout
        assert (await entrepot(store, "moves", "--since", "2100-01-01")).stdout == "No tag has moved.\n"
        assert "neither a time nor a span" in (await entrepot(store, "moves", "--since", "x", code=2)).stderr


async def test_a_history_outlives_a_restart_and_a_damaged_one_costs_no_pull(
    upstream: FakeRegistry, store: Path, clock: Clock
) -> None:
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        began = clock.now
        images = await moved(upstream, proxy, clock, 2)
    path = store / "repositories/docker.io" / REPO / "_history/v1"
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        before = path.read_bytes()
        assert (await proxy.get(TAG)).body == images[1].body
        assert path.read_bytes() == before
        path.write_bytes(b'{"moves": [[1], "x", [true, "sha256:1"], [1, "sha256:1"]]}')
        assert (await proxy.get(TAG, {"Entrepot-As-Of": as_utc(began + 60)})).status == 404
        new = upstream.add_image(REPO, "v1", [b"new"])
        assert (await proxy.get(TAG)).body == new.body
        assert (await proxy.get(TAG, {"Entrepot-As-Of": as_utc(clock.now)})).body == new.body


async def test_tags_are_frozen_and_moves_told_over_http(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    async with administered(upstream, store) as (proxy, host):
        await pull(proxy, image)
        assert (await order(host, "freeze", images=["app:v1"]))[1]["images"][0]["frozen"] == image.digest
        assert (await ask(host, "GET", "/api/image?name=app:v1"))[1]["tags"][0]["state"] == "frozen"
        assert (await order(host, "unfreeze", images=["app:v1"]))[0] == 200
        assert (await order(host, "freeze", images=["app:v1"], as_of="soon"))[0] == 400
        assert (await ask(host, "GET", "/api/moves"))[1]["moves"][0]["to"] == image.digest
        assert (await ask(host, "GET", "/api/moves?since=2100-01-01"))[1] == {"moves": []}
        assert "No tag has moved" not in (await entrepot(store, "moves", "--server", host)).stdout
        span = ["--since", "36500d"]  # longer than there has been unix time
        assert "No tag has moved" not in (await entrepot(store, "moves", *span, "--server", host)).stdout
