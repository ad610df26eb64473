"""What replicas tell each other of what they used: each use once a day, what is kept each day, and nothing is lost."""

import os
import time
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry

from proxy import uses
from proxy.files import Tree, hop
from proxy.oci.digest import Digest
from proxy.oci.reference import Repository
from proxy.sections.store import S3
from proxy.stores.base import Link
from proxy.stores.disk import DiskBlobs, DiskRepositories
from proxy.stores.durable import Durable
from proxy.stores.keys import blob_key, link_key
from proxy.stores.s3 import Bucket
from proxy.stores.s3_errors import BucketError
from proxy.telemetry import Metrics, quiet
from proxy.uses import Uses, parse, short
from proxy.uses import told as all_told
from tests.buckets import REGION, TestBucket

DAY = 86400.0


@pytest.fixture
async def opened(bucket: TestBucket) -> AsyncIterator[Bucket]:
    how = {"bucket": bucket.name, "endpoint_url": bucket.url, "region": REGION}
    async with Bucket(S3.model_validate(how)) as one:
        yield one


class Directory:
    """One replica's directory."""

    def __init__(self, tree: Tree, bucket: Bucket, holder: str = "one") -> None:
        self.tree = tree
        self.kept = frozenset[str]()
        self.durable = Durable(bucket, Metrics(CollectorRegistry()), quiet())
        self.uses = Uses(tree, self.durable, holder, kept=lambda: self.kept, record_uses=self._record)
        self.recorded = 0

    async def _record(self) -> None:
        self.recorded += 1

    async def put(self, name: str, days: float = 0.0) -> Digest:
        """A blob that was used so many days ago."""
        digest = Digest.of(name.encode())
        await DiskBlobs(self.tree).put(digest, name.encode())
        await hop(self.use, blob_key(digest), days)
        return digest

    def use(self, key: str, days: float = 0.0) -> None:
        """Have a file be used then."""
        os.utime(self.tree.root / key, (time.time() - days * DAY,) * 2)


@pytest.fixture
def directory(tree: Tree, opened: Bucket) -> Directory:
    return Directory(tree, opened)


def told(bucket: TestBucket) -> dict[str, set[bytes]]:
    """What has been told, by keys."""
    found = bucket.keys()
    return {key: set(parse(bucket[key])) for key in found if key.startswith("uses/")}


def lines(*digests: Digest) -> set[bytes]:
    return {short(digest) for digest in digests}


def today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())


async def test_the_first_time_all_that_is_here_counts_as_used_today_and_then_what_has_been_used(
    directory: Directory, bucket: TestBucket
) -> None:
    old, new = await directory.put("old", 50), await directory.put("new")
    await directory.uses.tell()
    assert await hop(told, bucket) == {f"uses/{today()}/one": lines(old, new)}
    assert directory.recorded == 1
    await hop(bucket.__delitem__, f"uses/{today()}/one")
    await directory.uses.tell()
    assert await hop(told, bucket) == {f"uses/{today()}/one": lines(new)}  # within the last minute


async def test_what_was_used_this_morning_and_is_here_no_more_stays_told_and_nothing_new_is_not_written(
    directory: Directory, bucket: TestBucket
) -> None:
    gone = await directory.put("gone")
    await directory.uses.tell()
    await directory.tree.remove(blob_key(gone))
    new = await directory.put("new")
    await directory.uses.tell()
    assert await hop(told, bucket) == {f"uses/{today()}/one": lines(gone, new)}
    await hop(bucket.age, f"uses/{today()}/one", 0.5)
    before = await hop(bucket.head, f"uses/{today()}/one")
    await directory.uses.tell()
    assert (await hop(bucket.head, f"uses/{today()}/one"))["LastModified"] == before["LastModified"]


async def test_what_is_kept_counts_as_used_each_day(directory: Directory, bucket: TestBucket) -> None:
    pinned = await directory.put("pinned", 50)
    await directory.uses.tell()
    await hop(bucket.__delitem__, f"uses/{today()}/one")  # the day changes
    directory.kept = frozenset({blob_key(pinned)})
    await directory.uses.tell()
    assert await hop(told, bucket) == {f"uses/{today()}/one": lines(pinned)}


async def test_all_that_belongs_to_an_image_that_was_pulled_counts_whether_or_not_it_is_on_this_disk(
    directory: Directory, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, repository = Digest.of(b"layer"), Repository("docker.io", "library/app")
    config = Digest.of(b"config")
    body = (
        '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"a/b",'
        f'"digest":"{config}","size":6}},"layers":[{{"mediaType":"a/b","digest":"{layer}","size":5}}]}}'
    )
    manifest = await directory.put(body, 50)
    link = Link(len(body), "application/vnd.oci.image.manifest.v1+json")
    await DiskRepositories(directory.tree).put_link(repository, manifest, link)
    key = link_key(repository, manifest)
    await hop(directory.use, key, 50)
    await directory.uses.tell()
    await hop(bucket.__delitem__, f"uses/{today()}/one")
    await directory.uses.tell()
    assert await hop(told, bucket) == {}
    await hop(directory.use, key)
    await directory.uses.tell()
    assert await hop(told, bucket) == {f"uses/{today()}/one": lines(manifest, config, layer)}


async def test_a_bucket_that_is_away_is_told_of_it_later(
    directory: Directory, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    await directory.put("old", 50)
    await directory.uses.tell()
    used = await directory.put("used")
    with monkeypatch.context() as patch:
        patch.setattr(Durable, "is_away", True)
        await directory.uses.tell()
    await hop(directory.use, blob_key(used), 0.01)  # a quarter of an hour ago
    await hop(directory.uses._note, time.time() - 0.02 * DAY)
    await directory.uses.tell()
    assert lines(used) <= (await hop(told, bucket))[f"uses/{today()}/one"]


async def test_what_cannot_be_read_is_not_overwritten(
    directory: Directory, bucket: TestBucket, opened: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = await directory.put("gone")
    await directory.uses.tell()
    await directory.tree.remove(blob_key(gone))
    await directory.put("new")

    async def refused(_key: str, _limit: int) -> bytes | None:
        raise BucketError("no")

    with monkeypatch.context() as patch:
        patch.setattr(opened, "read", refused)
        await directory.uses.tell()
    assert await hop(told, bucket) == {f"uses/{today()}/one": lines(gone)}


async def test_a_clock_that_was_ahead_hides_no_use(directory: Directory, bucket: TestBucket) -> None:
    await hop(directory.uses._note, time.time() + 10 * DAY)
    used = await directory.put("used")
    await directory.uses.tell()
    assert await hop(told, bucket) == {f"uses/{today()}/one": lines(used)}


async def test_a_day_is_told_up_to_a_bound_and_what_is_kept_first(
    directory: Directory, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uses, "MOST", 3)
    monkeypatch.setattr(uses, "LIMIT", 3 * 17)
    pinned = Digest.of(b"pinned")
    directory.kept = frozenset({blob_key(pinned)})
    for number in range(6):
        await directory.put(str(number))
    await directory.uses.tell()
    (found,) = (await hop(told, bucket)).values()
    assert (len(found), short(pinned) in found) == (3, True)


async def test_the_latest_use_on_any_replica_is_the_last(opened: Bucket, bucket: TestBucket) -> None:
    one, other = Digest.of(b"one"), Digest.of(b"other")
    for holder, days in (("a", 5.0), ("b", 3.0), ("c", 9.0)):
        bucket[f"uses/2026-01-01/{holder}"] = short(one) + b"\n"
        bucket.age(f"uses/2026-01-01/{holder}", days)
    bucket["uses/2026-01-02/a"] = short(other) + b"\n" + short(one)[:8]
    bucket.age("uses/2026-01-02/a", 20.0)
    found, now = (await all_told(opened, 0.0)).last, time.time()
    assert now - found[short(one)] == pytest.approx(3 * DAY, abs=60)
    assert now - found[short(other)] == pytest.approx(20 * DAY, abs=60)
    recent = await all_told(opened, now - 10 * DAY)
    assert set(recent.last) == {short(one)}
    assert now - recent.since == pytest.approx(20 * DAY, abs=60)
    assert set((await all_told(opened, 0.0, now)).last) == set()
