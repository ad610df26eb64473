"""Parts of the directory are deleted, beside a running server or before it starts: what is gone is fetched anew."""

import asyncio
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from proxy import forgetting

from .harness import Proxy, running, toml, until
from .test_kill_loop import audit
from .upstream import FakeRegistry, Image, digest_of

REPO = "library/app"
DATA = bytes(range(256)) * 1200  # 300 KiB
SEED = int(os.environ.get("ENTREPOT_SEED", time.time_ns() % 10**6))
ROUNDS = 12
DIRECTORIES = ("blobs", "repositories", "pins", "spool", "tmp", "ledger", "limits", "jobs")
PARTS = [*DIRECTORIES, "ledger/stored", "ledger/*", "repositories/*/*/*/_links", "repositories/*/*/*/_tags", "blobs/*"]
PARTS += ["changes", "boot", "jobs/*", "blobs/*/*", "repositories/*/*"]


async def pull(proxy: Proxy, image: Image, tag: str) -> None:
    """An image, which must be right, whatever has been deleted."""
    got = await proxy.get(f"/v2/{REPO}/manifests/{tag}")
    assert (got.status, got.body) == (200, image.body)
    answers = await asyncio.gather(*(proxy.get(f"/v2/{REPO}/blobs/{digest}") for digest in image.blob_digests))
    for digest, answer in zip(image.blob_digests, answers, strict=True):
        assert (answer.status, answer.ended, digest_of(answer.body)) == (200, "complete", digest)


def delete(store: Path, part: str) -> None:
    """Delete what a pattern names, while files come and go."""
    for path in list(store.glob(part)):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


async def is_well(proxy: Proxy, image: Image) -> None:
    """After a round of housekeeping and a pull, all is as if nothing had been."""
    await proxy.app.housekeeping._round(None)
    await pull(proxy, image, "v1")
    await proxy.settled()
    await proxy.app.housekeeping._round(None)
    await proxy.app.housekeeping._look_for_room()
    assert {image.digest, *image.blob_digests} <= set(proxy.blobs())
    encoded = image.digest.partition(":")[2]
    assert [path for path in (proxy.store / "repositories").rglob(encoded) if "_links" in path.parts]
    said = {line["event"] for line in proxy.log if line["level"] in {"error", "warning"}}
    assert said <= {"file descriptors are scarce"}  # which no limit was looked up for
    taken = sum(-(-path.stat().st_size // 4096) * 4096 for path in (proxy.store / "blobs").glob("*/*/*"))
    assert int((proxy.store / "ledger" / "stored").read_bytes()[:20]) >= taken
    await asyncio.to_thread(proxy.app.means.space.look)
    assert int((proxy.store / "ledger" / "stored").read_bytes()[:20]) == taken


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("restarts", [False, True], ids=["beside a server", "before a start"])
async def test_whatever_is_deleted_is_fetched_anew_and_made_again(
    upstream: FakeRegistry, store: Path, part: str, restarts: bool
) -> None:
    image = upstream.add_image(REPO, "v1", [DATA])
    text = toml(upstream.url, store='max_size = "2 MB"')
    async with running(text, store) as proxy:
        await pull(proxy, image, "v1")
        await proxy.settled()
        await proxy.app.housekeeping._round(None)
        if not restarts:
            await asyncio.to_thread(delete, store, part)
            await pull(proxy, image, "v1")
            await is_well(proxy, image)
    if restarts:
        await asyncio.to_thread(delete, store, part)
        async with running(text, store) as proxy:
            await pull(proxy, image, "v1")
            await is_well(proxy, image)


@pytest.mark.parametrize("part", ["spool", "spool/*", "blobs", "tmp", "ledger", "repositories"])
async def test_a_download_goes_on_whatever_is_deleted_under_it(upstream: FakeRegistry, store: Path, part: str) -> None:
    image = upstream.add_image(REPO, "v1", [DATA])
    gate = upstream.on("GET", blob=image.layer_digests[0], times=1).gate(after=100_000)
    async with running(toml(upstream.url), store) as proxy:
        pulling = asyncio.create_task(pull(proxy, image, "v1"))
        await gate.reached.wait()
        await asyncio.to_thread(delete, store, part)
        gate.open()
        await pulling
        await proxy.settled()
        await pull(proxy, image, "v1")
        await proxy.settled()
        assert image.layer_digests[0] in proxy.blobs()


async def test_a_link_that_was_forgotten_is_written_anew_when_its_blob_comes_again(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "IDLE", 0.0)
    image = upstream.add_image(REPO, "v1", [DATA])
    digest = image.layer_digests[0]
    link = store / "repositories/docker.io" / REPO / "_links" / digest.replace(":", "/")
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, image, "v1")
        await proxy.settled()
        proxy.blob_path(digest).unlink()  # as eviction does
        os.utime(link, (1, 1))
        await next(job for job in proxy.app.jobs._jobs if job.name == "forget").work()
        assert not link.exists()
        await proxy.app.housekeeping._round(None)
        await pull(proxy, image, "v1")
        await proxy.settled()
        assert link.exists()


async def test_parts_are_deleted_at_random_under_load_by_two_processes(upstream: FakeRegistry, store: Path) -> None:
    chance, stopped = random.Random(SEED), asyncio.Event()  # noqa: S311
    images = [upstream.add_image(REPO, f"v{number}", [DATA[number:]]) for number in range(6)]
    text, pulls = toml(upstream.url, store='max_size = "1500 KB"', more='tag_ttl = "0s"'), 0
    upstream.on("GET", path_contains="/blobs/").drip(bytes_per_step=50_000, every=0.001)

    async def client(proxy: Proxy) -> None:
        nonlocal pulls
        while not stopped.is_set():
            number = chance.randrange(len(images))
            await pull(proxy, images[number], f"v{number}")
            pulls += 1

    async with running(text, store) as one, running(text, store, alone=False) as other:
        async with asyncio.TaskGroup() as group:
            for proxy in (one, other) * 2:
                group.create_task(client(proxy))
            for _ in range(ROUNDS):
                before = pulls
                await until(lambda before=before: pulls > before)  # type: ignore[misc]
                await asyncio.to_thread(delete, store, chance.choice(PARTS))
                await one.app.housekeeping._round(None)
            stopped.set()
        for proxy in (one, other):
            await proxy.settled()
            await proxy.app.housekeeping._round(None)
        await asyncio.to_thread(audit, store)
