"""A whole cache into a bucket, and out of it: whatever ends it, nothing is lost, and the next run goes on."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proxy.files import hop
from tests.buckets import TestBucket

from .harness import running, serving, toml
from .test_inventory import entrepot, pull
from .test_s3 import configured, pending, uploaded
from .upstream import FakeRegistry, Image, digest_of

pytestmark = pytest.mark.slow

REPO, OTHER = "library/app", "acme/tool"
LAYER = b"layer" * 100_000
TAG = f"repositories/docker.io/{REPO}/_tags/v1"
KINDS = ("blobs", "links", "tags", "histories")


def written(store: Path, text: str) -> Path:
    """A configuration for commands over a store, and the store."""
    (store.parent / f"{store.name}.toml").write_text(text)
    return store


async def migrated(store: Path, way: str, *arguments: str, code: int = 0) -> dict[str, Any]:
    """What `entrepot migrate --json` says."""
    found: dict[str, Any] = json.loads((await entrepot(store, "migrate", way, "--json", *arguments, code=code)).stdout)
    return found


def moved(told: dict[str, Any]) -> list[int]:
    """How many blobs, links, tags and histories were brought over."""
    return [told[kind]["moved"] for kind in KINDS]


def published(store: Path) -> dict[str, bytes]:
    """What a store has of blobs, links, tags and histories."""
    files = [path for kind in ("blobs", "repositories") for path in (store / kind).rglob("*") if path.is_file()]
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


def objects(bucket: TestBucket) -> dict[str, bytes]:
    """What a bucket has of blobs, links, tags and histories."""
    keys = [key for key in bucket.keys() if key.startswith(("cache/blobs/", "cache/repositories/"))]  # noqa: SIM118
    return {key.removeprefix("cache/"): bucket[key] for key in keys}


@pytest.fixture
async def images(upstream: FakeRegistry, store: Path) -> list[Image]:
    """Two images that were pulled before there was a bucket; upstream is away from then on."""
    images = [upstream.add_image(REPO, "v1", [LAYER, b"small"]), upstream.add_image(OTHER, "v2", [LAYER, b"other"])]
    await pulled(upstream, store, images)
    return images


async def pulled(upstream: FakeRegistry, store: Path, images: list[Image]) -> None:
    """Have them cached where there is no bucket, and upstream go away."""
    async with running(toml(upstream.url), store) as proxy:
        for image in images:
            await pull(proxy, image)
    await upstream.go_down()


async def serves(store: Path, text: str, images: list[Image]) -> None:
    """Every byte of the images is served, with nobody to ask."""
    async with running(text, store) as proxy:
        for image in images:
            assert (await proxy.get(f"/v2/{image.repo}/manifests/{image.tag}")).body == image.body
            for digest in image.blob_digests:
                answer = await proxy.get(f"/v2/{image.repo}/blobs/{digest}")
                assert (answer.status, digest_of(answer.body)) == (200, digest)


async def test_what_went_into_a_bucket_and_came_back_serves_every_image_with_nobody_to_ask(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, tmp_path: Path, images: list[Image]
) -> None:
    text = configured(upstream.url, bucket)
    before, back = published(store), written(tmp_path / "back", text)
    told = await migrated(written(store, text), "to-bucket")
    assert moved(told) == [7, 8, 2, 2]
    assert (told["failures"], told["ended_by"]) == ([], None)
    assert await hop(objects, bucket) == before == published(store)
    assert pending(store) == []
    assert moved(await migrated(back, "to-disk")) == [7, 8, 2, 2]
    assert published(back) == before
    assert await hop(objects, bucket) == before
    for way, where in (("to-bucket", store), ("to-disk", back)):
        again = await migrated(where, way)
        assert moved(again) == [0, 0, 0, 0]
        assert [again[kind]["there"] for kind in KINDS] == [7, 8, 2, 2]
    await hop(shutil.rmtree, store)
    await serves(back, toml(upstream.url, more="sealed = true"), images)


@contextlib.asynccontextmanager
async def commanded(store: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`entrepot migrate` in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", "migrate", *arguments, "--config", str(store.parent / f"{store.name}.toml"),
        env={**os.environ, "ENTREPOT_STORE_PATH": str(store)}, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize(
    ("way", "number"),
    [("to-bucket", signal.SIGKILL), ("to-disk", signal.SIGKILL), ("to-bucket", signal.SIGINT)],
)
async def test_what_is_ended_in_the_middle_leaves_nothing_wrong_and_goes_on_when_run_again(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, tmp_path: Path, way: str, number: signal.Signals
) -> None:
    layers = [bytes([digit]) * 50_000 for digit in range(8)]
    await pulled(upstream, store, [upstream.add_image(REPO, "v1", layers)])
    text = configured(upstream.url, bucket)
    where, whole = written(store, text), published(store)
    if way == "to-disk":
        await migrated(store, "to-bucket")
        where = written(tmp_path / "back", text)
    async with commanded(where, way, "--rate", "200kB") as process:
        there = (lambda: objects(bucket)) if way == "to-bucket" else (lambda: published(where))
        while not any(key.startswith("blobs/") for key in await hop(there)):
            assert process.returncode is None
        process.send_signal(number)
        out, err = await process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    if number == signal.SIGINT:
        assert b"blobs" in out
        assert err == b"entrepot: it was interrupted; what has been brought over stays: run it again\n"
    so_far = await hop(there)
    assert so_far.items() < whole.items()
    assert not any(key.startswith("repositories/") for key in so_far)  # what promises blobs comes after them
    told = await migrated(where, way)
    assert told["blobs"]["there"] == len(so_far)
    assert await hop(there) == whole


async def test_beside_a_server_that_fills_both_bring_everything_into_the_bucket(
    upstream: FakeRegistry, bucket: TestBucket, store: Path
) -> None:
    first = upstream.add_image(REPO, "v1", [LAYER, b"small"])
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, first)
    text = configured(upstream.url, bucket, more='tag_ttl = "0s"')
    new = [upstream.add_image(OTHER, f"v{number}", [LAYER + bytes([number])]) for number in range(4)]
    async with serving(text, store) as process, commanded(store, "to-bucket", "--rate", "2MB", "--json") as command:
        newest = upstream.add_image(REPO, "v1", [b"newest"])
        for image in (*new, newest):
            assert (await process.get(f"/v2/{image.repo}/manifests/{image.tag}")).body == image.body
            for digest in image.blob_digests:
                assert digest_of((await process.get(f"/v2/{image.repo}/blobs/{digest}")).body) == digest
        out, _ = await command.communicate()
        assert (command.returncode, json.loads(out)["failures"]) == (0, [])
        await uploaded(store)
        assert await process.stop() == 0
    assert {key: body for key, body in published(store).items() if "/_tags/" not in key} == {
        key: body for key, body in (await hop(objects, bucket)).items() if "/_tags/" not in key
    }
    assert json.loads(await hop(bucket.__getitem__, f"cache/{TAG}"))["digest"] == newest.digest


async def test_a_running_server_serves_what_has_come_out_of_the_bucket(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, tmp_path: Path, images: list[Image]
) -> None:
    text = configured(upstream.url, bucket)
    await migrated(written(store, text), "to-bucket")
    back = tmp_path / "back"
    async with running(toml(upstream.url), back) as proxy:
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).status >= 500
        await migrated(written(back, text), "to-disk")
        await proxy.app.housekeeping._round(None)
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).body == images[0].body
        for digest in images[0].blob_digests:
            assert digest_of((await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body) == digest


async def test_a_dry_run_says_how_much_would_move(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, images: list[Image]
) -> None:
    said = await entrepot(written(store, configured(upstream.url, bucket)), "migrate", "to-bucket", "--dry-run")
    lines = [line.split() for line in said.stdout.splitlines()]
    assert lines[0] == ["TO", "MOVE", "SIZE", "THERE", "ALREADY", "FAILED"]
    assert [line[:2] for line in lines[1:]] == [["blobs", "7"], ["links", "8"], ["tags", "2"], ["histories", "2"]]
    assert await hop(bucket.keys) == []


@pytest.mark.parametrize("way", ["to-bucket", "to-disk"])
async def test_without_a_bucket_in_the_configuration_it_names_the_key(
    upstream: FakeRegistry, store: Path, way: str
) -> None:
    said = await entrepot(written(store, toml(upstream.url)), "migrate", way, code=2)
    assert said.stderr == "entrepot: store.s3: there is no bucket in the configuration: set store.s3.bucket\n"


@pytest.mark.parametrize(
    ("way", "changes", "reason"),
    [
        ("to-bucket", ('bucket = "', 'bucket = "no-'), "there is no such bucket: create it, or check store.s3.bucket"),
        ("to-disk", ('bucket = "', 'bucket = "no-'), "there is no such bucket: create it, or check store.s3.bucket"),
        ("to-disk", ("endpoint_url", 'profile = "none"\nendpoint_url'), "there is no such profile in the AWS"),
    ],
)
async def test_a_bucket_that_cannot_be_had_is_told_at_once_with_the_key_that_mends_it(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, way: str, changes: tuple[str, str], reason: str
) -> None:
    text = configured(upstream.url, bucket).replace(*changes)
    said = await entrepot(written(store, text), "migrate", way, code=1)
    assert said.stderr.startswith("entrepot: store.s3: ")
    assert reason in said.stderr
