"""A directory into a bucket, and a bucket into a directory: whole, right, and nothing newer is written over."""

import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import Loader, create_loader

from proxy import migrating
from proxy.blob_stream import Interrupted
from proxy.eviction import Bounds, Space
from proxy.files import Tree, hop
from proxy.inbound import Inbound, means
from proxy.migrating import KINDS, Crossing, MigrationFailed, Tally
from proxy.oci.digest import Digest
from proxy.oci.history import Move
from proxy.oci.reference import Repository, Tag
from proxy.outbound import Outbound
from proxy.scrubbing import Throttle
from proxy.sections.store import S3
from proxy.stores import s3_clients
from proxy.stores.base import Link, TagRecord
from proxy.stores.directory import open_tree
from proxy.stores.disk import DiskBlobs, DiskRepositories
from proxy.stores.keys import blob_key, history_key, link_key, tag_key
from proxy.stores.records import HISTORY_LIMIT
from proxy.stores.s3 import Bucket
from proxy.stores.s3_errors import BucketError
from tests.buckets import REGION, TestBucket

REPO, TAG = Repository("docker.io", "library/app"), Tag("v1")
BODIES = [b"layer" * 100_000, b"config", b"manifest"]
DIGESTS = [Digest.of(body, "sha256") for body in BODIES]
BLOBS = [blob_key(digest) for digest in DIGESTS]
TAG_KEY, HISTORY_KEY = tag_key(REPO, TAG), history_key(REPO, TAG)
ALL = [3, 3, 1, 1]  # blobs, links, tags, histories
CHECKED = 1_700_000_000.0  # seconds since the epoch


@dataclass
class Places:
    """A cache with an image in it, a cache with nothing, and a bucket between them."""

    full: Tree
    empty: Tree
    bucket: Bucket
    outside: TestBucket

    async def out(self, *, is_dry: bool = False) -> Tally:
        """Bring the cache into the bucket."""
        crossing = Crossing(self.bucket, throttle=Throttle(0), is_dry=is_dry)
        await Outbound(self.full, crossing).run()
        return crossing.tally

    async def into(self, tree: Tree | None = None, *, is_dry: bool = False, max_size: int = 0) -> Tally:
        """Bring the bucket into the cache that has nothing, or another one."""
        crossing = Crossing(self.bucket, throttle=Throttle(0), is_dry=is_dry)
        async with means(tree or self.empty, Bounds(max_size)) as opened:
            inbound = Inbound(opened, crossing)
            await inbound.wanted()
            await inbound.run()
        return crossing.tally

    async def objects(self) -> dict[str, bytes]:
        """What the bucket has."""
        keys = await hop(self.outside.keys)
        return {key.removeprefix("cache/"): await hop(self.outside.__getitem__, key) for key in keys}

    async def put(self, key: str, body: bytes) -> None:
        """Put something into the bucket, past the product."""
        await hop(self.outside.__setitem__, f"cache/{key}", body)


def published(tree: Tree) -> dict[str, bytes]:
    """What a cache has of blobs, links, tags and histories."""
    files = [path for kind in ("blobs", "repositories") for path in (tree.root / kind).rglob("*") if path.is_file()]
    return {str(path.relative_to(tree.root)): path.read_bytes() for path in files}


def moved(tally: Tally) -> list[int]:
    """How many blobs, links, tags and histories were brought over."""
    return [tally.counts[kind].moved for kind in KINDS]


def record(checked: float, digest: Digest = DIGESTS[1], **more: object) -> bytes:
    """What a tag stands for, as another replica writes it."""
    return json.dumps({"digest": str(digest), "checked": checked, **more}).encode()


@pytest.fixture(scope="module")
def loader() -> Loader:
    """What botocore knows of S3, read once for all tests."""
    return create_loader()


@pytest.fixture
async def places(
    bucket: TestBucket, tmp_path: Path, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Places]:
    monkeypatch.setattr(s3_clients, "create_loader", lambda: loader)
    settings = {"bucket": bucket.name, "endpoint_url": bucket.url, "region": REGION, "prefix": "cache/"}
    full, empty = [await hop(open_tree, tmp_path / name) for name in ("full", "empty")]
    with contextlib.closing(full), contextlib.closing(empty):
        blobs, repositories = DiskBlobs(full), DiskRepositories(full)
        for digest, body in zip(DIGESTS, BODIES, strict=True):
            await blobs.put(digest, body)
            await repositories.put_link(REPO, digest, Link(len(body)))
        await repositories.put_tag(REPO, TAG, TagRecord(DIGESTS[2], CHECKED))
        await repositories.put_history(REPO, TAG, [Move(CHECKED, DIGESTS[2])])
        async with Bucket(S3.model_validate(settings)) as opened:
            yield Places(full, empty, opened, bucket)


async def test_everything_goes_there_and_comes_back_once(places: Places) -> None:
    before = published(places.full)
    assert moved(await places.out()) == ALL
    assert await places.objects() == before
    assert moved(await places.into()) == ALL
    assert published(places.empty) == before == published(places.full)
    for again in (await places.out(), await places.into()):
        assert moved(again) == [0, 0, 0, 0]
        assert [again.counts[kind].there for kind in KINDS] == ALL


async def test_a_dry_run_counts_and_moves_nothing(places: Places) -> None:
    assert moved(await places.out(is_dry=True)) == ALL
    assert await places.objects() == {}
    await places.out()
    tally = await places.into(is_dry=True)
    assert (moved(tally), tally.counts["blob"].size) == (ALL, sum(map(len, BODIES)))
    assert published(places.empty) == {}


async def test_a_rotten_blob_is_told_and_stays_behind_while_all_else_goes(places: Places) -> None:
    await places.full.write(BLOBS[0], BODIES[0][:-1] + b"!", committed=True)
    await places.full.write(TAG_KEY, b"no record")
    tally = await places.out()
    assert [(key, reason.partition(":")[0]) for key, reason in tally.failures] == [
        (BLOBS[0], "it is damaged"), (TAG_KEY, "it is damaged"),
    ]  # fmt: skip
    assert moved(tally) == [2, 3, 0, 1]
    assert not {BLOBS[0], TAG_KEY} & (await places.objects()).keys()
    assert {BLOBS[0], TAG_KEY} <= published(places.full).keys()


@pytest.mark.parametrize(
    "body", [BODIES[0][:-1] + b"!", BODIES[0][:-1], BODIES[0] + b"!", b""], ids=["wrong", "short", "long", "nothing"]
)
async def test_an_object_that_was_tampered_with_is_told_and_never_comes(places: Places, body: bytes) -> None:
    await places.out()
    await places.put(BLOBS[0], body)
    await places.put(TAG_KEY, b"no record")
    await places.put(HISTORY_KEY, b"x" * (HISTORY_LIMIT + 1))
    tally = await places.into()
    assert [key for key, _ in tally.failures] == [BLOBS[0], TAG_KEY, HISTORY_KEY]
    assert moved(tally) == [2, 3, 0, 0]
    assert not {BLOBS[0], TAG_KEY, HISTORY_KEY} & published(places.empty).keys()
    assert await hop(places.empty.scan, "spool") == []


async def test_an_object_that_was_cut_short_is_brought_anew(places: Places) -> None:
    await places.put(BLOBS[0], BODIES[0][:-1])
    assert moved(await places.out()) == ALL
    assert (await places.objects())[BLOBS[0]] == BODIES[0]


async def test_what_a_replica_has_recorded_of_a_tag_since_stays(places: Places) -> None:
    theirs, history = record(CHECKED + 1), json.dumps({"moves": [[CHECKED + 1, str(DIGESTS[1])]]}).encode()
    await places.put(TAG_KEY, theirs)
    await places.put(HISTORY_KEY, history)
    assert moved(await places.out()) == [3, 3, 0, 0]
    found = await places.objects()
    assert (found[TAG_KEY], found[HISTORY_KEY]) == (theirs, history)


@pytest.mark.parametrize(
    "theirs", [record(CHECKED - 1), record(4e9), b"no record"], ids=["older", "of a clock ahead", "garbage"]
)
async def test_what_says_less_of_a_tag_is_replaced(places: Places, theirs: bytes) -> None:
    await places.put(TAG_KEY, theirs)
    assert moved(await places.out()) == ALL
    assert await places.objects() == published(places.full)


async def test_a_record_that_comes_into_the_bucket_at_the_same_moment_stays_if_it_is_newer(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, theirs = Bucket.read, record(CHECKED + 1)

    async def late(bucket: Bucket, key: str, limit: int) -> bytes | None:
        found = await real(bucket, key, limit)
        if key == TAG_KEY and found is None:
            await places.put(TAG_KEY, theirs)
        return found

    monkeypatch.setattr(Bucket, "read", late)
    assert moved(await places.out()) == [3, 3, 0, 1]
    assert (await places.objects())[TAG_KEY] == theirs


async def test_what_a_server_records_while_the_older_is_sent_is_sent_after_it(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, newer = Bucket.write, record(CHECKED + 1)

    async def slow(bucket: Bucket, key: str, body: bytes, *, is_new: bool = False) -> None:
        if key == TAG_KEY and body != newer:
            await places.full.write(TAG_KEY, newer)
        await real(bucket, key, body, is_new=is_new)

    monkeypatch.setattr(Bucket, "write", slow)
    assert moved(await places.out()) == ALL
    assert (await places.objects())[TAG_KEY] == newer


async def test_a_tag_that_is_newer_here_or_frozen_stays_and_an_older_one_follows_the_bucket(places: Places) -> None:
    async def comes(body: bytes) -> TagRecord | None:
        await places.put(TAG_KEY, body)
        await places.into(places.full)
        return await DiskRepositories(places.full).tag(REPO, TAG)

    mine, newer = TagRecord(DIGESTS[2], CHECKED), TagRecord(DIGESTS[1], CHECKED + 1)
    assert await comes(record(CHECKED - 1)) == mine
    assert await comes(record(time.time() + 1000)) == mine
    assert await comes(record(CHECKED + 1, frozen=True)) == newer  # that it is frozen there says nothing of here
    frozen = TagRecord(DIGESTS[1], CHECKED + 1, is_frozen=True)
    await DiskRepositories(places.full).put_tag(REPO, TAG, frozen)
    assert await comes(record(CHECKED + 2, DIGESTS[0])) == frozen


async def test_what_does_not_fit_is_said_before_anything_comes_and_nothing_goes_for_it(places: Places) -> None:
    await places.out()
    await DiskBlobs(places.empty).put(Digest.of(b"mine", "sha256"), b"mine")
    before = published(places.empty)
    with pytest.raises(MigrationFailed, match=r"512\.0 kB are to come, and there is room for 505\.9 kB.*max_size"):
        await places.into(max_size=510_000)
    assert published(places.empty) == before
    assert moved(await places.into(max_size=520_000)) == ALL


async def test_what_has_come_from_elsewhere_meanwhile_ends_it_and_none_of_it_goes(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hopeful(_space: Space) -> float:
        return 1e12

    await places.out()
    mine = b"mine" * 25_000
    await DiskBlobs(places.empty).put(Digest.of(mine, "sha256"), mine)
    monkeypatch.setattr(Space, "room", hopeful)
    with pytest.raises(MigrationFailed, match="there is no room for the rest"):
        await places.into(max_size=560_000)
    assert blob_key(Digest.of(mine, "sha256")) in published(places.empty)
    assert await hop(places.empty.scan, "spool") == []


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BucketError]:
    """What the bucket is to fail with, once each, whatever it is asked."""
    failures: list[BucketError] = []
    monkeypatch.setattr(migrating, "FIRST_PAUSE", 0.001)

    for name in ("upload", "write", "read"):
        monkeypatch.setattr(Bucket, name, broken(getattr(Bucket, name), failures))
    monkeypatch.setattr(Bucket, "keys", cut(Bucket.keys, failures))
    return failures


def broken(real: Callable[..., Awaitable[Any]], failures: list[BucketError]) -> Callable[..., Awaitable[Any]]:
    """A question that fails as long as there are failures."""

    async def call(*arguments: Any, **named: Any) -> Any:
        if failures:
            raise failures.pop()
        return await real(*arguments, **named)

    return call


def cut(real: Callable[..., AsyncIterator[Any]], failures: list[BucketError]) -> Callable[..., AsyncIterator[Any]]:
    """A listing that fails behind each key, as long as there are failures."""

    async def keys(*arguments: Any) -> AsyncIterator[Any]:
        async for one in real(*arguments):
            yield one
            if failures:
                raise failures.pop()

    return keys


async def test_a_bucket_that_fails_for_a_while_is_asked_again_and_nothing_is_lost(
    places: Places, failing: list[BucketError]
) -> None:
    failing += [BucketError("it wants fewer requests for a while", passes=True) for _ in range(20)]
    assert moved(await places.out()) == ALL
    assert failing == []
    assert await places.objects() == published(places.full)
    failing += [BucketError("it does not answer", passes=True) for _ in range(3)]
    crossing = Crossing(places.bucket, throttle=Throttle(0))
    assert [one.key async for one in crossing.listed("blobs/")] == sorted(BLOBS)  # each of them once
    failing += [BucketError("it does not answer", passes=True) for _ in range(12)]
    assert moved(await places.into()) == ALL
    assert failing == []
    assert published(places.empty) == published(places.full)


async def test_a_bucket_that_does_not_come_back_ends_it_with_a_word_and_the_next_run_goes_on(
    places: Places, failing: list[BucketError], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing += [BucketError("it does not answer", passes=True) for _ in range(1000)]
    with monkeypatch.context() as patch:
        patch.setattr(migrating, "LONGEST", 0.02)
        with pytest.raises(MigrationFailed, match=r"the bucket has failed for 0\.02 s: it does not answer"):
            await places.out()
    failing.clear()
    assert moved(await places.out()) == ALL


async def test_a_refusal_is_of_one_thing_until_there_are_too_many_of_them(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [BucketError("it answered InvalidObjectState")] * 2
    monkeypatch.setattr(Bucket, "upload", broken(Bucket.upload, refusals))
    tally = await places.out()
    assert [reason for _, reason in tally.failures] == ["the bucket refuses: it answered InvalidObjectState"] * 2
    assert moved(tally) == [1, 3, 1, 1]
    monkeypatch.setattr(migrating, "MOST_REFUSED", 2)
    refusals += [BucketError("the credentials do not allow it")] * 2
    with pytest.raises(MigrationFailed, match="refuses one thing after the other: the credentials do not allow it"):
        await places.out()


async def test_a_stream_that_breaks_off_is_gone_on_with_where_it_was(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrating, "FIRST_PAUSE", 0.001)
    await places.out()
    real, starts = Bucket.open, list[int]()

    class Breaking:
        def __init__(self, stream: Any) -> None:
            self.stream, self.start, self.total, self.is_new = stream, stream.start, stream.total, True

        async def read(self) -> bytes:
            if not self.start and not self.is_new:
                raise Interrupted("ClientPayloadError")
            self.is_new = False
            data: bytes = await self.stream.read()
            return data if self.start else data[:1000]

    @contextlib.asynccontextmanager
    async def breaking(bucket: Bucket, key: str, start: int = 0, **more: Any) -> AsyncIterator[Any]:
        async with real(bucket, key, start, **more) as stream:
            starts.append(start)
            yield Breaking(stream) if key == BLOBS[0] else stream

    monkeypatch.setattr(Bucket, "open", breaking)
    assert moved(await places.into()) == ALL
    assert [start for start in starts if start] == [1000]
    assert published(places.empty) == published(places.full)


async def test_what_is_no_part_of_a_cache_is_let_be(places: Places) -> None:
    strangers = [
        "trial/1", "leases/a", "uses/b", "blobs/readme", f"blobs/sha256//{DIGESTS[0].encoded}",
        f"{link_key(REPO, DIGESTS[0])}/more", "repositories/docker.io/a/_new/b", "repositories/../_tags/v1",
    ]  # fmt: skip
    for key in strangers:
        await places.put(key, b"something")
    await places.full.write("blobs/sha256/zz/stray", b"stray")
    await places.full.write("repositories/docker.io/library/app/_tags/-stray", b"stray")
    assert moved(await places.out()) == ALL
    tally = await places.into()
    assert (moved(tally), tally.failures) == (ALL, [])
    assert published(places.empty).keys() == published(places.full).keys() - {
        "blobs/sha256/zz/stray", "repositories/docker.io/library/app/_tags/-stray",
    }  # fmt: skip
