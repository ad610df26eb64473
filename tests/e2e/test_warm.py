"""Images brought in before anybody asks for them: whole, resumable, within what upstream allows."""

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from proxy import warming

from .harness import Proxy, running, toml, until
from .test_inventory import entrepot, listed
from .upstream import FakeRegistry

REPO = "library/app"
BIG = bytes(3_000_000)


async def warmed(store: Path, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    """What `entrepot warm --json` says."""
    said = await entrepot(store, "warm", "--json", *arguments, code=code)
    found: list[dict[str, Any]] = json.loads(said.stdout)
    return found


def configured(upstream: FakeRegistry, store: Path, more: str = "", store_keys: str = "") -> None:
    """Write the configuration, with no server that reads it."""
    text = toml(upstream.url, more=more, store=store_keys)
    (store.parent / f"{store.name}.toml").write_text(text)


async def served_without_upstream(upstream: FakeRegistry, proxy: Proxy, targets: list[str]) -> bool:
    """Whether all of that is there with upstream gone."""
    await upstream.go_down()
    return [(await proxy.get(target)).status for target in targets] == [200] * len(targets)


async def test_a_warmed_image_is_served_whole_with_upstream_gone(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1", [BIG, b"two"])
    configured(upstream, store)
    (said,) = await warmed(store, "app:v1")
    assert (said["digest"], said["blobs"], said["failures"]) == (image.digest, 3, [])
    assert said["size"] == sum(image.sizes[digest] for digest in image.blob_digests)
    async with running(toml(upstream.url), store) as proxy:
        blobs = [f"/v2/{REPO}/blobs/{digest}" for digest in image.blob_digests]
        assert await served_without_upstream(upstream, proxy, [f"/v2/{REPO}/manifests/v1", *blobs])


async def test_beside_a_running_server_it_is_served_at_once_and_nothing_comes_twice(
    upstream: FakeRegistry, store: Path
) -> None:
    image = upstream.add_image(REPO, "v1", [BIG])
    async with running(toml(upstream.url), store) as proxy:
        await warmed(store, "app:v1")
        await warmed(store, "app:v1")
        for digest in image.blob_digests:
            assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).status == 200
        assert upstream.count("GET", path_contains="/blobs/") == len(image.blob_digests)


async def test_of_an_index_the_platforms_that_are_named_come_and_no_others(upstream: FakeRegistry, store: Path) -> None:
    images = [upstream.add_image(REPO, f"p{number}", [b"%d" % number]) for number in range(2)]
    index = upstream.add_index(REPO, "v1", images)
    entries = json.loads(index.body)["manifests"]
    names = [f"{one['platform']['os']}/{one['platform']['architecture']}" for one in entries]
    configured(upstream, store)
    (said,) = await warmed(store, "--platform", "plan9/mips", "app:v1", code=1)
    assert said["failures"] == ["it has nothing for plan9/mips"]
    await warmed(store, "--platform", names[0], "app:v1")
    (found,) = await listed(store)
    wanted = [image.digest for image, name in zip(images, names, strict=True) if name == names[0]]
    assert [one["digest"] for one in found["platforms"]] == wanted
    await warmed(store, "--platform", "all", "app:v1")
    (found,) = await listed(store)
    assert [one["missing"] for one in found["platforms"]] == [0, 0]


async def test_without_a_platform_it_is_this_machines(upstream: FakeRegistry, store: Path) -> None:
    upstream.add_index(REPO, "v1", [upstream.add_image(REPO, "p", [b"p"])])
    configured(upstream, store)
    (said,) = await warmed(store, "app:v1", code=0 if str(warming.here()) == "linux/amd64" else 1)
    assert said["image"] == "app:v1"


async def test_what_was_killed_goes_on_where_it_was(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1", [BIG])
    configured(upstream, store)
    gate = upstream.on("GET", blob=image.layer_digests[0], times=1).gate(after=1_000_000)
    command = [sys.executable, "-m", "proxy", "warm", "--config", str(store.parent / f"{store.name}.toml"), "app:v1"]
    process = await asyncio.create_subprocess_exec(*command, env={**os.environ, "ENTREPOT_STORE_PATH": str(store)})
    spool = store / "spool" / image.layer_digests[0].replace(":", "-")
    await until(lambda: spool.exists() and spool.stat().st_size >= 500_000)
    process.kill()
    await process.wait()
    gate.open()
    (said,) = await warmed(store, "app:v1")
    assert said["failures"] == []
    again = upstream.matching("GET", path_contains=image.layer_digests[0])[-1]
    assert int((again.header("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-")) >= 500_000


async def test_a_list_of_images_is_read_and_each_failure_is_told(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1", [b"one"])
    configured(upstream, store)
    names = store.parent / "images"
    names.write_text("# what the cluster needs\napp:v1  # the app\n\napp:none\napp:v1\n")
    one, none = await warmed(store, "-f", str(names), code=1)
    assert (one["digest"], one["failures"]) == (image.digest, [])
    assert (none["digest"], len(none["failures"])) == (None, 1)
    said = await entrepot(store, "warm", "-f", str(names), code=1)
    assert "app:v1: 2 blobs" in said.stdout
    assert "app:none: 0 blobs, 0 B\n  docker.io has no such thing" in said.stdout


async def test_what_is_kept_is_pinned_for_so_long(upstream: FakeRegistry, store: Path) -> None:
    upstream.add_image(REPO, "v1", [b"one"])
    configured(upstream, store)
    await warmed(store, "--keep", "30d", "app:v1")
    assert (await listed(store))[0]["pinned"]["until"]


async def test_what_the_cache_has_no_room_for_is_a_failure(upstream: FakeRegistry, store: Path) -> None:
    upstream.add_image(REPO, "v1", [BIG])
    configured(upstream, store, store_keys='max_size = "1 MB"')
    (said,) = await warmed(store, "app:v1", code=1)
    assert any("no room" in failure for failure in said["failures"])
    assert (said["blobs"], said["size"] < 1_000_000) == (1, True)  # what is not here is not counted


async def test_upstream_that_is_away_is_said_and_what_is_cached_stays(
    upstream: FakeRegistry, store: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(warming, "FIRST_WAIT", 0.01)
    upstream.add_image(REPO, "v1", [b"one"])
    configured(upstream, store, more='tag_ttl = "0s"')
    await warmed(store, "app:v1")
    await upstream.go_down()
    (said,) = await warmed(store, "app:v1", code=1)
    assert "does not answer" in said["failures"][0]
    assert (await listed(store))[0]["missing"] == 0


async def test_a_limit_that_is_soon_over_is_waited_out(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1", [b"one"])
    configured(upstream, store)
    upstream.on("GET", path_contains="/manifests/", times=1).status(429, [("Retry-After", "1")])
    (said,) = await warmed(store, "app:v1")
    assert (said["digest"], said["failures"]) == (image.digest, [])


@pytest.mark.parametrize(("turns", "most"), [(4, 3), (64, warming.AT_ONCE)])
async def test_blobs_come_side_by_side_within_the_turns_that_upstream_gives(
    upstream: FakeRegistry, store: Path, turns: int, most: int
) -> None:
    upstream.add_image(REPO, "v1", [b"%d" % number for number in range(8)])
    configured(upstream, store, more=f"max_requests = {turns}")
    gate = upstream.on("GET", path_contains="/blobs/").hang()
    task = asyncio.create_task(warmed(store, "app:v1"))
    await until(lambda: gate.arrivals == most)
    assert upstream.count("GET", path_contains="/blobs/") == most
    gate.open()
    (said,) = await task
    assert (said["failures"], gate.arrivals) == ([], 9)


def shown_on(terminal: int) -> bytes:
    """All that is drawn until nobody has the screen any more, which is EIO."""
    shown = b""
    with contextlib.suppress(OSError):
        while data := os.read(terminal, 65536):
            shown += data
    return shown


async def test_a_terminal_is_shown_how_far_it_is(upstream: FakeRegistry, store: Path) -> None:
    upstream.add_image(REPO, "v1", [BIG])
    configured(upstream, store)
    command = [sys.executable, "-m", "proxy", "warm", "--config", str(store.parent / f"{store.name}.toml"), "app:v1"]
    terminal, screen = os.openpty()
    environ = {**os.environ, "ENTREPOT_STORE_PATH": str(store), "COLUMNS": "100", "TERM": "xterm"}
    process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=asyncio.subprocess.PIPE, stderr=screen)
    os.close(screen)
    showing = asyncio.create_task(asyncio.to_thread(shown_on, terminal))  # it does not hold all that may be drawn
    said, _ = await process.communicate()
    shown = await showing
    os.close(terminal)
    assert (process.returncode, said) == (0, b"app:v1: 2 blobs, 3.0 MB\n")
    assert b"3.0/3.0 MB" in shown


async def test_bad_options_are_refused_with_an_example(upstream: FakeRegistry, store: Path) -> None:
    configured(upstream, store)
    for arguments, word in (
        ([], "Name images"),
        (["--platform", "linux", "app"], "linux/amd64"),
        (["--keep", "long", "app"], "30d"),
        (["A B"], "invalid"),
    ):
        assert word in (await entrepot(store, "warm", *arguments, code=2)).stderr
