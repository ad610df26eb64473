"""The operator's commands: what is cached, what it takes, what goes, and what stays."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from proxy.__main__ import main

from .harness import Proxy, running, toml
from .upstream import FakeRegistry, Image

REPO, OTHER = "library/app", "acme/tool"
CONFIG = b'{"os":"linux","architecture":"arm64","variant":"v8"}'


async def entrepot(store: Path, *arguments: str, code: int = 0) -> Result:
    """Run a command over a store, as an operator would beside the server."""
    environ = {"ENTREPOT_STORE_PATH": str(store), "COLUMNS": "160"}
    path = store.parent / f"{store.name}.toml"
    command = [*arguments, "--config", str(path)]
    result = await asyncio.to_thread(CliRunner(env=environ).invoke, main, command, prog_name="entrepot")
    assert result.exit_code == code, (result.output, result.exception)
    return result


async def listed(store: Path, *arguments: str) -> list[dict[str, Any]]:
    """What `entrepot ls --json` says."""
    found: list[dict[str, Any]] = json.loads((await entrepot(store, "ls", "--json", *arguments)).stdout)
    return found


async def pull(proxy: Proxy, image: Image, *, blobs: int = 99) -> None:
    """Pull an image as a client does, or only so many of its blobs."""
    assert (await proxy.get(f"/v2/{image.repo}/manifests/{image.tag}")).status == 200
    for digest in image.blob_digests[:blobs]:
        assert (await proxy.get(f"/v2/{image.repo}/blobs/{digest}")).status == 200
    await proxy.settled()
    await proxy.app.housekeeping._round(None)


async def test_an_empty_cache_says_so(upstream: FakeRegistry, store: Path) -> None:
    async with running(toml(upstream.url), store):
        assert (await entrepot(store, "ls")).stdout == "Nothing is cached yet.\n"
        assert await listed(store) == []
        assert "0 B  in all" in (await entrepot(store, "du")).stdout


async def test_an_image_is_listed_with_its_tags_its_size_and_what_it_shares(
    upstream: FakeRegistry, store: Path
) -> None:
    one = upstream.add_image(REPO, "v1", [b"shared" * 100, b"own"])
    two = upstream.add_image(OTHER, "v2", [b"shared" * 100, b"another one"])
    upstream.tag(REPO, "latest", one.digest)
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, one)
        assert (await proxy.get(f"/v2/{REPO}/manifests/latest")).status == 200
        await pull(proxy, two)
        first, second = await listed(store)
        assert [tag["tag"] for tag in second["tags"]] == ["latest", "v1"]
        assert second["tags"][0]["state"] == "fresh"
        assert second["size"] == len(one.body) + sum(one.sizes[digest] for digest in one.blob_digests)
        assert first["shared"] == second["shared"] >= 600
        assert (first["missing"], second["missing"], second["pinned"]) == (0, 0, None)
        assert [image["repository"] for image in await listed(store, "docker.io/acme/*")] == [f"docker.io/{OTHER}"]
        table = (await entrepot(store, "ls")).stdout
        assert "docker.io/library/app:latest, v1" in table
        assert one.digest[7:19] in table


async def test_in_a_pipe_a_line_stays_a_line_and_on_a_narrow_terminal_nothing_is_cut_off(
    upstream: FakeRegistry, store: Path
) -> None:
    name = f"docker.io/{'a' * 30}/{'b' * 30}/{'c' * 30}"
    image = upstream.add_image(name.partition("/")[2], "v1", [b"layer"])
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, image)
    for columns in (None, "60"):
        runner = CliRunner(env={"ENTREPOT_STORE_PATH": str(store), "COLUMNS": columns})
        for command in ("ls", "du", "moves"):
            said = (await asyncio.to_thread(runner.invoke, main, [command])).stdout
            assert (name in said) is (columns is None)
            assert "…" not in said


async def test_what_is_missing_of_an_image_is_said_in_bytes(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1", [b"x" * 1000, b"y" * 2000])
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, image, blobs=1)
        (found,) = await listed(store)
        assert found["missing"] == 3000
        assert "3.0 kB missing" in (await entrepot(store, "ls")).stdout
        assert "2 of 3 blobs missing, 3.0 kB" in (await entrepot(store, "show", "app:v1")).stdout


async def test_an_index_is_one_image_with_the_platforms_that_are_cached(upstream: FakeRegistry, store: Path) -> None:
    images = [upstream.add_image(REPO, f"p{number}", [b"%d" % number]) for number in range(2)]
    index = upstream.add_index(REPO, "v1", images)
    async with running(toml(upstream.url), store) as proxy:
        await proxy.get(f"/v2/{REPO}/manifests/v1")
        await proxy.get(f"/v2/{REPO}/manifests/{images[0].digest}")
        for digest in images[0].blob_digests:
            await proxy.get(f"/v2/{REPO}/blobs/{digest}")
        await proxy.settled()
        (found,) = await listed(store)
        assert found["digest"] == index.digest
        assert [one["digest"] for one in found["platforms"]] == [images[0].digest]
        assert len(found["absent"]) == 1
        assert "not cached" in (await entrepot(store, "show", "app:v1")).stdout


async def test_show_says_why_a_tag_is_stale_from_where_it_is_and_what_a_pull_would_cost(
    upstream: FakeRegistry, store: Path
) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    upstream.on(path_contains="/manifests/").extra_headers(
        ("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "87;w=21600")
    )
    async with running(toml(upstream.url, more='tag_ttl = "0s"'), store) as proxy:
        await pull(proxy, image)
        said = (await entrepot(store, "show", "app:v1")).stdout
        assert "stale, upstream was asked" in said
        assert f"docker.io at {upstream.url}" in said
        assert "one HEAD for the tag, which no registry counts as a pull, no bytes" in said
        assert "anonymous, 87 of 100 pulls left" in said


async def test_what_is_not_cached_is_not_shown(upstream: FakeRegistry, store: Path) -> None:
    async with running(toml(upstream.url), store):
        said = await entrepot(store, "show", "nginx:1.27", code=1)
        assert (
            said.stderr == "entrepot: nginx:1.27: nothing of it is cached (see entrepot ls docker.io/library/nginx)\n"
        )
        assert "invalid" in (await entrepot(store, "show", "NGINX:1.27", code=2)).stderr


async def test_rm_frees_what_no_other_image_needs_and_the_next_pull_asks_upstream(
    upstream: FakeRegistry, store: Path
) -> None:
    one = upstream.add_image(REPO, "v1", [b"shared", b"own"])
    two = upstream.add_image(OTHER, "v2", [b"shared", b"another"])
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, one)
        await pull(proxy, two)
        before, taken = proxy.blobs(), await proxy.app.means.space.refresh()
        assert "would free" in (await entrepot(store, "rm", "--dry-run", "app:v1")).stdout
        assert proxy.blobs() == before
        await entrepot(store, "rm", "app:v1")
        assert one.layer_digests[0] in proxy.blobs()
        assert one.layer_digests[1] not in proxy.blobs()
        gone = set(before) - set(proxy.blobs())
        assert await proxy.app.means.space.refresh() == taken - len(gone) * 4096  # there is room for others at once
        assert [image["repository"] for image in await listed(store)] == [f"docker.io/{OTHER}"]
        await proxy.app.housekeeping._round(None)
        asked = upstream.count("GET", path_contains="/manifests/")
        await pull(proxy, one)
        assert upstream.count("GET", path_contains="/manifests/") == asked + 1


async def test_rm_of_one_tag_leaves_the_image_under_its_other_one(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    upstream.tag(REPO, "v2", image.digest)
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, image)
        await proxy.get(f"/v2/{REPO}/manifests/v2")
        before = proxy.blobs()
        assert "it stays under its other tags" in (await entrepot(store, "rm", "app:v1")).stdout
        assert proxy.blobs() == before
        (found,) = await listed(store)
        assert [tag["tag"] for tag in found["tags"]] == ["v2"]
        await entrepot(store, "pin", f"app@{image.digest}")
        await entrepot(store, "rm", f"app@{image.digest}")
        assert proxy.blobs() == []
        assert not [path for path in (store / "pins").rglob("*") if path.is_file()]


async def test_of_several_images_none_goes_if_one_is_not_there_and_what_they_share_goes_with_the_last(
    upstream: FakeRegistry, store: Path
) -> None:
    images = [upstream.add_image(name, "v1", [b"shared", name.encode()]) for name in (REPO, OTHER)]
    async with running(toml(upstream.url), store) as proxy:
        for image in images:
            await pull(proxy, image)
        before = proxy.blobs()
        await entrepot(store, "rm", "app:v1", "none:v1", code=1)
        assert proxy.blobs() == before
        said = await entrepot(store, "rm", "app:v1", f"{OTHER}:v1", "app:v1")
        assert said.stdout.count("freed") == 2
        assert proxy.blobs() == []


async def test_a_pin_is_seen_until_it_is_taken_away_or_has_run_out(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, image)
        assert (await entrepot(store, "pin", "app:v1")).stdout == "app:v1: pinned\n"
        assert (await listed(store))[0]["pinned"] == {"until": None, "deleted": False}
        assert (await entrepot(store, "pin", "--for", "30d", f"app@{image.digest}")).stdout.endswith(
            "pinned for 30 d\n"
        )
        await entrepot(store, "unpin", "app:v1")
        assert (await listed(store))[0]["pinned"]["until"] is not None
        await entrepot(store, "pin", "--for", "0s", f"app@{image.digest}")
        assert (await listed(store))[0]["pinned"] is None
        for span in ("soon", "99999999999999999999d"):
            assert "--for" in (await entrepot(store, "pin", "--for", span, "app:v1", code=2)).stderr


async def test_a_damaged_record_hides_nothing_but_itself(upstream: FakeRegistry, store: Path) -> None:
    images = [upstream.add_image(REPO, f"v{number}", [b"%d" % number]) for number in range(2)]
    async with running(toml(upstream.url), store) as proxy:
        for image in images:
            await pull(proxy, image)
        (store / "repositories/docker.io" / REPO / "_tags/v0").write_bytes(b"{")
        proxy.blob_path(images[0].digest).chmod(0o600)
        found = await listed(store)
        assert sorted([tag["tag"] for tag in image["tags"]] for image in found) == [[], ["v1"]]


async def test_times_that_nobody_meant_keep_nothing_from_being_told(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, image)
        repository = store / "repositories/docker.io" / REPO
        link = repository / "_links" / image.digest.replace(":", "/")
        link.write_text(link.read_text().replace('"cached":', '"cached":1e300,"was":'))
        os.utime(link, (2**40, 2**40))
        pin = store / "pins/docker.io" / REPO / "_tags/v1"
        pin.parent.mkdir(parents=True, mode=0o700)
        for text in ('{"since": 0, "until": 1e300}', '{"since": NaN, "until": null}', '{"since": true, "until": 1}'):
            pin.write_text(text)
            (found,) = await listed(store)
            assert (found["cached"], found["pinned"]) == (None, None)
            for command in (["ls"], ["show", "app:v1"], ["moves"]):
                await entrepot(store, *command)


async def test_pulls_are_recorded_for_each_image_and_outlive_a_restart(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, image)
        cached = (await listed(store))[0]["cached"]
        monkeypatch.setattr("proxy.stores.disk.time.time", lambda: 2_000_000_000.0)
        await proxy.get(f"/v2/{REPO}/manifests/{image.digest}")
    monkeypatch.undo()
    async with running(toml(upstream.url), store):
        (found,) = await listed(store)
        assert (found["pulled"], found["cached"]) == ("2033-05-18T03:33:20+00:00", cached)


# What stays


def small(blobs: int) -> str:
    """A cache for so many layers of 100 kB, and the small files that go with them."""
    return f'max_size = "{blobs * 104 + 60} kB"\nmin_free = 0'


LAYER = 100 * 1024


def layer(number: int) -> bytes:
    """Bytes of a layer, more than what counts as small."""
    return number.to_bytes(4, "big") * (LAYER // 4)


async def test_a_pinned_image_outlives_whatever_is_pulled_after_it(upstream: FakeRegistry, store: Path) -> None:
    pinned = upstream.add_image(REPO, "v1", [layer(0)])
    others = [upstream.add_image(OTHER, f"v{number}", [layer(number)]) for number in range(1, 6)]
    async with running(toml(upstream.url, store=small(3)), store) as proxy:
        await entrepot(store, "pin", "app:v1")  # before it is cached
        await pull(proxy, pinned)
        for image in others:
            await pull(proxy, image)
        assert pinned.layer_digests[0] in proxy.blobs()
        assert sum(image.layer_digests[0] in proxy.blobs() for image in others) == 2
        await entrepot(store, "unpin", "app:v1")
        for image in others:
            await pull(proxy, image)
        assert pinned.layer_digests[0] not in proxy.blobs()


async def test_a_pinned_index_keeps_the_layers_of_its_platforms(upstream: FakeRegistry, store: Path) -> None:
    part = upstream.add_image(REPO, "part", [layer(0)])
    upstream.add_index(REPO, "v1", [part])
    others = [upstream.add_image(OTHER, f"v{number}", [layer(number)]) for number in range(1, 6)]
    async with running(toml(upstream.url, store=small(3)), store) as proxy:
        await proxy.get(f"/v2/{REPO}/manifests/v1")
        await pull(proxy, part)
        await entrepot(store, "pin", "app:v1")
        for image in others:
            await pull(proxy, image)
        assert part.layer_digests[0] in proxy.blobs()


async def test_what_upstream_has_deleted_stays_unless_told_otherwise(upstream: FakeRegistry, tmp_path: Path) -> None:
    image = upstream.add_image(REPO, "v1", [layer(0)])
    others = [upstream.add_image(OTHER, f"v{number}", [layer(number)]) for number in range(1, 6)]
    for more, stays in (("", True), ("\nkeep_deleted = false", False)):
        upstream.tag(REPO, "v1", image.digest)
        store = tmp_path / f"cache-{stays}"
        text = toml(upstream.url, more='tag_ttl = "0s"', store=small(3) + more)
        async with running(text, store) as proxy:
            await pull(proxy, image)
            upstream.untag(REPO, "v1")
            assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).status == 404
            for other in others:
                await pull(proxy, other)
            assert (image.layer_digests[0] in proxy.blobs()) is stays
            if stays:
                (found,) = await listed(store, f"docker.io/{REPO}")
                assert found["pinned"] == {"until": None, "deleted": True}
                assert "deleted upstream" in (await entrepot(store, "show", f"app@{image.digest}")).stdout
                assert (await proxy.get(f"/v2/{REPO}/manifests/{image.digest}")).body == image.body


async def test_a_layer_that_clients_have_is_used_with_each_pull_of_its_image(
    upstream: FakeRegistry, store: Path
) -> None:
    kept = upstream.add_image(REPO, "v1", [layer(0)])
    others = [upstream.add_image(OTHER, f"v{number}", [layer(number)]) for number in range(1, 8)]
    async with running(toml(upstream.url, store=small(3)), store) as proxy:
        await pull(proxy, kept)
        for image in others:
            await pull(proxy, kept, blobs=0)
            await pull(proxy, image)
        assert kept.layer_digests[0] in proxy.blobs()
