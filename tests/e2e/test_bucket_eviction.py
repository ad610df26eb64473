"""The bucket's own eviction: by what all replicas used, by one of them a day, and never at a pull's cost."""

import asyncio
import contextlib
import io
import json
import os
import pickle
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proxy.files import hop
from proxy.stores import leases, uploads
from proxy.stores.s3 import Bucket
from proxy.stores.s3_errors import BucketError
from proxy.tidying import Tidying, work
from tests.buckets import TestBucket

from .harness import DEADLINE, Proxy
from .test_inventory import entrepot
from .test_s3 import LAYER, REPO, cached, configured, key_of, pending, pull, uploaded
from .upstream import FakeRegistry, Image, digest_of

pytestmark = pytest.mark.slow

KEEP = 'keep_unused = "30d"\n'
DAY = 86400.0


def limited(upstream: str, bucket: TestBucket, limits: str = KEEP, **more: str) -> str:
    """A proxy with a bucket that is to keep so much."""
    return configured(upstream, bucket, **more).replace("[[upstream]]", f"{limits}[[upstream]]")


def due(proxy: Proxy, name: str) -> Any:
    """The work of one of the server's jobs."""
    return next(job.work for job in proxy.app.jobs._jobs if job.name == name)


async def age_all(bucket: TestBucket, *proxies: Proxy) -> None:
    """Have everything be written and used a hundred days ago, in the bucket and in the directories, and be told."""
    for proxy in proxies:
        await proxy.app.housekeeping.record_uses()
    await hop(_age_all, bucket, *proxies)


def _age_all(bucket: TestBucket, *proxies: Proxy, days: float = 100) -> None:
    bucket["cache/uses/2020-01-01/first"] = b""
    for key in lasting(bucket):
        bucket.age(key, days)
    for proxy in proxies:
        for name in ("blobs", "repositories"):
            for path in (proxy.store / name).rglob("*"):
                os.utime(path, (time.time() - days * DAY,) * 2)
        (proxy.store / "jobs/uses-told").write_text(f"{time.time() - 60:020.0f}")


def lasting(bucket: TestBucket) -> list[str]:
    """The keys of all but leases, which go by themselves."""
    keys = bucket.keys()
    return [key for key in keys if "/leases/" not in key]


def has(bucket: TestBucket, image: Image) -> set[bool]:
    """Whether the bucket has the blobs of an image: all, none, or some of them."""
    keys = bucket.keys()
    return {key_of(digest) in keys for digest in (image.digest, *image.blob_digests)}


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at every few seconds is looked at often."""
    monkeypatch.setattr(leases, "LOOK", 0.02)
    monkeypatch.setattr(leases, "GRACE", 0.05)
    monkeypatch.setattr(uploads, "LEAVE", 0.02)


@contextlib.asynccontextmanager
async def two(text: str, directory: Path) -> AsyncIterator[tuple[Proxy, Proxy]]:
    """Two replicas on one bucket."""
    async with cached(text, directory / "one") as one, cached(text, directory / "two", alone=False) as other:
        yield one, other


async def test_what_one_replica_uses_stays_whoever_evicts_and_what_none_does_goes_and_is_served_all_the_same(
    upstream: FakeRegistry, bucket: TestBucket, tmp_path: Path
) -> None:
    used = upstream.add_image(REPO, "used", [LAYER + b"used"])
    unused = upstream.add_image(REPO, "unused", [LAYER + b"unused"])
    async with two(limited(upstream.url, bucket), tmp_path) as (one, other):
        for tag, image in (("used", used), ("unused", unused)):
            await pull(one, image, tag)
            await pull(other, image, tag)
        await uploaded(one.store)
        await uploaded(other.store)
        await age_all(bucket, one, other)
        await pull(other, used, "used")
        await due(other, "uses")()
        await due(one, "uses")()
        await due(one, "tidy")()
        assert (await hop(has, bucket, used), await hop(has, bucket, unused)) == ({True}, {False})
        (said,) = (line for line in one.log if line["event"] == "bucket evicted")
        assert (said["blobs"], said["failed"]) == (1 + len(unused.blob_digests), 0)
        assert said["bytes"] == one.metrics.registry.get_sample_value("entrepot_bucket_evicted_bytes_total")
        await due(other, "tidy")()  # it is not its turn today
        assert "bucket evicted" not in [line["event"] for line in other.log]
        await pull(one, unused, "unused")  # the directory has it
        async with cached(limited(upstream.url, bucket), tmp_path / "three", alone=False) as three:
            await pull(three, unused, "unused")  # upstream has it, and so has the bucket then
            await uploaded(three.store)
        assert await hop(has, bucket, unused) == {True}


async def test_what_is_pinned_on_one_replica_and_what_upstream_has_deleted_stay_in_the_bucket(
    upstream: FakeRegistry, bucket: TestBucket, store: Path
) -> None:
    images = {tag: upstream.add_image(REPO, tag, [LAYER + tag.encode()]) for tag in ("pinned", "deleted", "v1")}
    async with cached(limited(upstream.url, bucket, more='tag_ttl = "0s"'), store) as proxy:
        for tag, image in images.items():
            await pull(proxy, image, tag)
        await uploaded(store)
        await entrepot(store, "pin", "app:pinned")
        upstream.untag(REPO, "deleted")
        assert (await proxy.get(f"/v2/{REPO}/manifests/deleted")).status == 404
        await age_all(bucket, proxy)
        await due(proxy, "uses")()
        await entrepot(store, "bucket", "evict")
        found = {tag: await hop(has, bucket, image) for tag, image in images.items()}
        assert found == {"pinned": {True}, "deleted": {True}, "v1": {False}}


async def test_of_many_replicas_one_evicts_in_a_day(
    upstream: FakeRegistry, bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_it = 0

    async def attend(_self: Tidying, orders: asyncio.StreamWriter, answers: asyncio.StreamReader) -> None:
        nonlocal at_it
        at_it += 1
        orders.close()
        raise RuntimeError("it dies")

    monkeypatch.setattr(Tidying, "_attend", attend)
    async with two(limited(upstream.url, bucket), tmp_path) as (one, other):
        works = [due(proxy, "tidy") for proxy in (one, other)] * 3
        outcomes = await asyncio.gather(*(work() for work in works), return_exceptions=True)
        assert sorted(map(str, filter(None, outcomes))) == ["it dies"]
        assert at_it == 1
        turns = [key for key in await hop(bucket.keys) if "/leases/evict-" in key]
        assert len(turns) == 1
        await hop(bucket.__delitem__, turns[0])  # as if it was tomorrow
        with pytest.raises(RuntimeError):
            await due(other, "tidy")()
    assert at_it == 2


async def test_a_server_that_ends_ends_its_eviction_and_the_next_goes_on_where_it_was(
    upstream: FakeRegistry, bucket: TestBucket, store: Path
) -> None:
    image = upstream.add_image(REPO, "v1", [LAYER])
    async with cached(limited(upstream.url, bucket), store) as proxy:
        await pull(proxy, image)
        await uploaded(store)
        await age_all(bucket, proxy)
        task = asyncio.create_task(due(proxy, "tidy")())
        async with asyncio.timeout(DEADLINE):
            while not [key for key in await hop(bucket.keys) if "/evict-" in key]:  # noqa: ASYNC110  nobody tells of it
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (turn,) = [key for key in await hop(bucket.keys) if "/evict-" in key]
        await hop(bucket.__delitem__, turn)
        await due(proxy, "tidy")()
        assert await hop(has, bucket, image) == {False}


async def test_the_process_for_it_removes_nothing_once_the_server_is_gone(
    upstream: FakeRegistry, bucket: TestBucket, store: Path
) -> None:
    image = upstream.add_image(REPO, "v1", [LAYER])
    async with cached(limited(upstream.url, bucket), store) as proxy:
        await pull(proxy, image)
        await uploaded(store)
        await age_all(bucket, proxy)
        answers = io.StringIO()
        await work(io.BytesIO(pickle.dumps(proxy.config.store.s3)), answers)  # and nothing after it
        asked, told = map(json.loads, answers.getvalue().splitlines())
        assert (asked, told["tally"]["gone"], told["ended_by"]) == ({}, 0, None)
        assert await hop(has, bucket, image) == {True}


async def test_a_bucket_that_lets_nothing_be_removed_costs_a_line_and_no_pull(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = upstream.add_image(REPO, "v1", [LAYER])
    async with cached(limited(upstream.url, bucket), store) as proxy:
        await pull(proxy, image)
        await uploaded(store)
        await age_all(bucket, proxy)
        await hop(deny_removal, bucket)
        await due(proxy, "tidy")()
        (said,) = (line for line in proxy.log if line["event"] == "bucket eviction broke off")
        assert "do not allow it" in said["reason"]
        result = await entrepot(store, "bucket", "evict", code=1)
        assert f"store.s3: {bucket.name}: the credentials of this machine do not allow it" in result.stderr
        assert "0 blobs went" in result.stdout
        assert await hop(has, bucket, image) == {True}
        await pull(proxy, image)


def deny_removal(bucket: TestBucket) -> None:
    """Have the store refuse that anything goes, as a policy would."""
    statement = {
        "Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject", "Resource": f"arn:aws:s3:::{bucket.name}/*"
    }  # fmt: skip
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    bucket.client.put_bucket_policy(Bucket=bucket.name, Policy=policy)  # type: ignore[attr-defined]


async def test_a_store_without_conditional_writes_is_evicted_from_by_hand_only(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ignorant(_bucket: object, _key: str) -> bool:
        return False

    monkeypatch.setattr("proxy.stores.s3_trial.prove", ignorant)
    image = upstream.add_image(REPO, "v1", [LAYER])
    async with cached(limited(upstream.url, bucket), store) as proxy:
        await pull(proxy, image)
        await uploaded(store)
        await age_all(bucket, proxy)
        await due(proxy, "tidy")()
        assert await hop(has, bucket, image) == {True}
        (said,) = (line for line in proxy.log if line["event"] == "bucket without conditional writes")
        assert "none evicts from the bucket" in said["meanwhile"]
        await entrepot(store, "bucket", "evict")
        assert await hop(has, bucket, image) == {False}


async def test_a_writer_whose_upload_is_evicted_in_the_same_moment_is_served_from(
    upstream: FakeRegistry, bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = upstream.add_blob(REPO, LAYER)
    text = limited(upstream.url, bucket)
    async with two(text, tmp_path) as (one, other):
        await one.get(f"/v2/{REPO}/blobs/{digest}")
        await uploaded(one.store)
        await age_all(bucket, one)
        real, wrote = Bucket.remove, False

        async def remove(self: Bucket, key: str) -> None:
            nonlocal wrote
            if "blobs/" in key:
                assert (await other.get(f"/v2/{REPO}/blobs/{digest}")).body == LAYER
                while await hop(pending, other.store):  # noqa: ASYNC110  until it has found it there, and looks no more
                    await asyncio.sleep(0.005)
                await hop(bucket.__setitem__, f"cache/{key}", LAYER)
                wrote = True
            await real(self, key)

        monkeypatch.setattr(Bucket, "remove", remove)
        await entrepot(one.store, "bucket", "evict")
        monkeypatch.setattr(Bucket, "remove", real)
        assert wrote
        assert key_of(digest) not in await hop(bucket.keys)
        for proxy in (one, other):
            assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body == LAYER
        async with cached(text, tmp_path / "three", alone=False) as three:
            assert digest_of((await three.get(f"/v2/{REPO}/blobs/{digest}")).body) == digest


async def test_an_operator_sees_what_would_go_and_why_and_a_dry_run_changes_nothing(
    upstream: FakeRegistry, bucket: TestBucket, store: Path
) -> None:
    image = upstream.add_image(REPO, "v1", [LAYER])
    count = 1 + len(image.blob_digests)
    async with cached(configured(upstream.url, bucket), store) as proxy:
        await pull(proxy, image)
        await uploaded(store)
        await age_all(bucket, proxy)
        assert "tidy" not in [job.name for job in proxy.app.jobs._jobs]
        before = await hop(lasting, bucket)
        said = (await entrepot(store, "bucket", "evict", "--dry-run", code=2)).stderr
        assert said.startswith("entrepot: nothing limits the bucket: set store.s3.keep_unused or store.s3.max_size")
        said = (await entrepot(store, "bucket", "evict", "--keep-unused", "1d", code=2)).stderr
        assert said.startswith("entrepot: --keep-unused: must be at least 2d")
        said = (await entrepot(store, "bucket", "evict", "--dry-run", "--keep-unused", "30d")).stdout
        assert said.count("not used for 100 d") == count
        assert f"{count} would go, and " in said
        said = (await entrepot(store, "bucket", "evict", "--dry-run", "--max-size", "1kB")).stdout
        assert "there is no room, and it was used 100 d ago" in said
        said = (await entrepot(store, "bucket", "evict", "--dry-run", "--keep-unused", "30d", "--json")).stdout
        told = json.loads(said)
        assert {one["digest"] for one in told["going"]} == {image.digest, *image.blob_digests}
        assert (told["dry_run"], told["blobs"], told["freed"], told["ended_by"]) == (True, count, told["size"], None)
        assert told["going"][0]["used"] == told["going"][0]["written"]
        assert await hop(lasting, bucket) == before
        said = (await entrepot(store, "bucket", "evict", "--keep-unused", "200d")).stdout
        assert said == "0 blobs went, and 0 B with them.\n"
        said = (await entrepot(store, "bucket", "evict", "--keep-unused", "30d", "--json")).stdout
        assert (json.loads(said)["gone"], json.loads(said)["failed"]) == (count, 0)
        assert await hop(has, bucket, image) == {False}


async def test_without_a_bucket_there_is_nothing_to_evict_from(upstream: FakeRegistry, store: Path) -> None:
    (store.parent / f"{store.name}.toml").write_text("")
    said = (await entrepot(store, "bucket", "evict", code=2)).stderr
    assert said == "entrepot: store.s3: there is no bucket in the configuration: set store.s3.bucket\n"


async def test_what_replicas_that_died_left_in_the_bucket_goes_in_time_and_nothing_else(
    upstream: FakeRegistry, bucket: TestBucket, store: Path
) -> None:
    left = ["leases/sha256-a", "leases/evict-1", "trial/a", "uses/2020-01-01/a"]
    stays = ["leases/sha256-b", "uses/2020-01-01/b", "uses/2021-01-01/a", "blobs/a", "repositories/a"]
    for number, key in enumerate((*left, *stays)):
        await hop(bucket.__setitem__, f"cache/{key}", b"x")
        days = {"leases/sha256-b": 6.0, "uses/2020-01-01/b": 399.0}.get(key, 401.0 if number < 4 else 100.0)
        await hop(bucket.age, f"cache/{key}", days)
    async with cached(configured(upstream.url, bucket), store) as proxy:
        await due(proxy, "abandon")()
        assert {f"cache/{key}" for key in stays} == set(await hop(bucket.keys))
        (said,) = (line for line in proxy.log if "outlived" in line["event"])
        assert said["count"] == len(left)


async def test_an_eviction_that_the_bucket_breaks_off_is_said(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cached(limited(upstream.url, bucket), store):

        async def keys(*_: object) -> AsyncIterator[object]:
            raise BucketError("it wants fewer requests for a while")
            yield

        monkeypatch.setattr(Bucket, "keys", keys)
        said = (await entrepot(store, "bucket", "evict", "--dry-run", code=1)).stderr
        assert said == f"entrepot: store.s3: {bucket.name}: it wants fewer requests for a while\n"
