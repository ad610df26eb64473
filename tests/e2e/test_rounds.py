"""[[warm]]: images that the server brings in by itself, every so often, and says what came."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from .harness import Proxy, running, serving, toml, until
from .test_inventory import listed
from .upstream import FakeRegistry

REPO = "library/app"


def entry(**keys: str) -> str:
    """A [[warm]] table."""
    return "\n".join(["[[warm]]", *(f"{key} = {value}" for key, value in keys.items())])


@contextlib.asynccontextmanager
async def warming(upstream: FakeRegistry, store: Path, table: str) -> AsyncIterator[Proxy]:
    """A proxy that is at its jobs."""
    async with running(toml(upstream.url, more=table), store) as proxy:
        work = asyncio.create_task(proxy.app.jobs.run())
        try:
            yield proxy
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)


def rounds(proxy: Proxy) -> list[dict[str, Any]]:
    """What was said of each round."""
    return [line for line in proxy.log if line["event"] == "warmed"]


async def test_what_is_configured_is_warm_before_anybody_asks_and_each_round_is_told(
    upstream: FakeRegistry, store: Path
) -> None:
    image = upstream.add_image(REPO, "v1", [b"one", b"two"])
    async with warming(upstream, store, entry(images='["app:v1", "app:none"]', every='"6h"', keep='"7d"')) as proxy:
        await until(lambda: bool(rounds(proxy)))
        (said,) = rounds(proxy)
        assert (said["images"], said["failed"]) == (1, 1)
        assert said["bytes"] == sum(image.sizes[digest] for digest in image.blob_digests)
        (missed,) = [line for line in proxy.log if line["event"] == "not warmed"]
        assert (missed["image"], "no such" in missed["reason"]) == ("app:none", True)
        for outcome in ("whole", "failed"):
            assert proxy.metrics.registry.get_sample_value("entrepot_warmed_images_total", {"outcome": outcome}) == 1
        await upstream.go_down()
        for target in ("manifests/v1", *(f"blobs/{digest}" for digest in image.blob_digests)):
            assert (await proxy.get(f"/v2/{REPO}/{target}")).status == 200
    (found,) = await listed(store)
    assert found["pinned"]["until"]


async def test_after_a_restart_a_round_that_is_not_due_is_not_gone_and_another_entrys_is(
    upstream: FakeRegistry, store: Path
) -> None:
    upstream.add_image(REPO, "v1", [b"one"])
    upstream.add_image(REPO, "v2", [b"two"])
    table = entry(images='["app:v1"]')
    async with warming(upstream, store, table) as proxy:
        await until(lambda: bool(rounds(proxy)))
    before = upstream.connections
    async with running(toml(upstream.url, more=table), store) as proxy:
        for job in proxy.app.jobs._jobs:
            assert await proxy.app.jobs.turn(job) > 0
    assert upstream.connections == before
    async with warming(upstream, store, entry(images='["app:v1", "app:v2"]')) as proxy:
        await until(lambda: bool(rounds(proxy)))
        assert rounds(proxy)[0]["images"] == 2


async def test_a_file_is_read_in_each_round_and_one_that_is_not_there_is_said(
    upstream: FakeRegistry, store: Path, tmp_path: Path
) -> None:
    upstream.add_image(REPO, "v1", [b"one"])
    path = tmp_path / "images.txt"
    async with warming(upstream, store, entry(file=f'"{path}"')) as proxy:
        await until(lambda: any(line["event"].startswith("job failed") for line in proxy.log))
        (said,) = [line for line in proxy.log if line["event"].startswith("job failed")]
        assert said["reason"] == f"warm.file: {path}: cannot be read (No such file or directory)"
    path.write_text("app:v1  # the app\nNo-Name\n")
    async with warming(upstream, store, entry(file=f'"{path}"')) as proxy:
        await until(lambda: bool(rounds(proxy)))
        assert (rounds(proxy)[0]["images"], rounds(proxy)[0]["failed"]) == (1, 1)


async def test_of_several_workers_one_goes_round(upstream: FakeRegistry, store: Path) -> None:
    upstream.add_image(REPO, "v1", [b"one"])
    text = toml(upstream.url, more=entry(images='["app:v1"]'), server="workers = 2")
    async with serving(text, store) as process:
        await until(lambda: any(line["event"] == "warmed" for line in process.lines))
        await until(lambda: sum(line["event"] == "serving" for line in process.lines) == 2)
        await process.stop()
    assert sum(line["event"] == "warmed" for line in process.lines) == 1
    assert upstream.count("GET", path_contains="/manifests/") == 1
