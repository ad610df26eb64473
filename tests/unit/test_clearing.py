"""What goes from a bucket: what no replica has used for long, and what is too much; what is used meanwhile stays."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from proxy import clearing
from proxy.clearing import Limits, Tally, clear, clear_all, plan
from proxy.files import hop
from proxy.oci.digest import Digest
from proxy.sections.store import S3
from proxy.stores.keys import blob_key
from proxy.stores.s3 import Bucket
from proxy.stores.s3_errors import BucketError
from proxy.uses import short
from tests.buckets import REGION, TestBucket

DAY = 86400.0
UNUSED = Limits(30 * DAY, 0)
BIG = 100_000  # bytes: more than what is small


@pytest.fixture(autouse=True)
def telling(bucket: TestBucket) -> None:
    """Replicas have told of their uses for a year."""
    bucket["cache/uses/2020-01-01/first"] = b""
    bucket.age("cache/uses/2020-01-01/first", 365)


@pytest.fixture
async def opened(bucket: TestBucket) -> AsyncIterator[Bucket]:
    """The bucket as the product sees it."""
    how = {"bucket": bucket.name, "endpoint_url": bucket.url, "region": REGION, "prefix": "cache"}
    async with Bucket(S3.model_validate(how)) as one:
        yield one


def put(bucket: TestBucket, name: str, days: float, size: int = BIG) -> Digest:
    """A blob that was written so many days ago."""
    digest = Digest.of(name.encode())
    key = f"cache/{blob_key(digest)}"
    bucket[key] = name.encode().ljust(size, b".")
    bucket.age(key, days)
    return digest


def use(bucket: TestBucket, *digests: Digest, holder: str = "one", days: float = 0.0, day: str = "2026-01-01") -> None:
    """Have a replica tell of uses so many days ago, whatever day it takes that for."""
    key = f"cache/uses/{day}/{holder}"
    bucket[key] = b"".join(short(digest) + b"\n" for digest in digests)
    bucket.age(key, days)


def today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())


def left(bucket: TestBucket) -> set[str]:
    """The blobs that are there, by their hex."""
    found = bucket.keys()
    return {key.rpartition("/")[2] for key in found if "/blobs/" in key}


def names(*digests: Digest) -> set[str]:
    return {digest.encoded for digest in digests}


async def always() -> bool:
    return True


async def cleared(opened: Bucket, limits: Limits) -> Tally:
    """What became of all that was to go."""
    tally = Tally()
    await clear_all(opened, limits, tally, always)
    return tally


async def test_what_no_replica_has_used_for_so_long_goes_and_what_any_has_used_stays(
    opened: Bucket, bucket: TestBucket
) -> None:
    old, used, dead, young = (
        put(bucket, name, days) for name, days in (("old", 100), ("used", 100), ("dead", 100), ("young", 29))
    )
    use(bucket, used, holder="one", days=29)
    use(bucket, dead, holder="two", days=31)  # a replica that is no more, or does not use it any more
    use(bucket, old, holder="three", days=60)
    tally = await cleared(opened, UNUSED)
    assert left(bucket) == names(used, young)
    assert (tally.gone, tally.freed, tally.failed) == (2, 2 * BIG, 0)


@pytest.mark.parametrize("limits", [UNUSED, Limits(None, BIG)])
async def test_nothing_counts_as_unused_for_longer_than_replicas_tell_of_uses(
    opened: Bucket, bucket: TestBucket, limits: Limits
) -> None:
    old, older = put(bucket, "old", 100), put(bucket, "older", 200)
    del bucket["cache/uses/2020-01-01/first"]
    assert (await plan(opened, limits)).going == []  # nobody knows of any use
    use(bucket, days=29.0)
    made = await plan(opened, limits)
    assert made.now - made.told == pytest.approx(29 * DAY, abs=5)
    assert [one.key for one in made.going] == ([] if limits is UNUSED else [blob_key(older)])
    use(bucket, days=31.0)
    assert {one.key for one in (await plan(opened, UNUSED)).going} == {blob_key(old), blob_key(older)}


@pytest.mark.parametrize("day", ["1970-01-01", "2099-01-01", "nothing"])
async def test_a_clock_that_is_wrong_makes_no_use_older_or_younger(
    opened: Bucket, bucket: TestBucket, day: str
) -> None:
    one, other = put(bucket, "one", 100), put(bucket, "other", 100)
    use(bucket, one, days=1, day=day)
    use(bucket, other, days=40, day=day, holder="other")
    await cleared(opened, UNUSED)
    assert left(bucket) == names(one)


async def test_it_is_the_stores_clock_that_counts(
    opened: Bucket, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, "one", 29)
    assert (await plan(opened, UNUSED)).going == []
    now = await opened.now()
    assert now == pytest.approx(time.time(), abs=5)

    async def ahead() -> float:
        return now + 2 * DAY

    monkeypatch.setattr(opened, "now", ahead)
    assert len((await plan(opened, UNUSED)).going) == 1


async def test_a_bucket_that_is_too_large_loses_what_was_used_longest_ago_on_any_replica(
    opened: Bucket, bucket: TestBucket
) -> None:
    a, b, c, d = (put(bucket, name, days) for name, days in (("a", 50), ("b", 40), ("c", 30), ("d", 20)))
    manifest = put(bucket, "manifest", 60, size=2000)
    use(bucket, a, holder="one", days=1)
    use(bucket, c, holder="two", days=2)
    made = await plan(opened, Limits(None, 2 * BIG + 5000))
    assert [one.key for one in made.going] == [blob_key(b), blob_key(d)]
    assert (made.blobs, made.size, made.freed, made.is_all) == (5, 4 * BIG + 2000, 2 * BIG, True)
    await cleared(opened, Limits(None, 2 * BIG + 5000))
    assert left(bucket) == names(a, c, manifest)  # what is small goes last


async def test_what_is_unused_makes_room_first_and_no_more_goes_than_is_too_much(
    opened: Bucket, bucket: TestBucket
) -> None:
    old, used = put(bucket, "old", 100, size=2000), [put(bucket, f"used {n}", 10 + n) for n in range(3)]
    assert (await plan(opened, Limits(30 * DAY, 3 * BIG))).freed == 2000
    await cleared(opened, Limits(30 * DAY, 3 * BIG - 1))
    assert left(bucket) == names(*used[:2])
    assert old.encoded not in left(bucket)


async def test_what_was_used_in_the_last_hours_stays_however_large_the_bucket_is(
    opened: Bucket, bucket: TestBucket
) -> None:
    new = put(bucket, "new", 0.05)
    await cleared(opened, Limits(None, 1))
    assert left(bucket) == names(new)


async def test_more_than_a_plan_names_goes_by_the_next(
    opened: Bucket, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clearing, "MOST", 3)
    for number in range(8):
        put(bucket, f"big {number}", 10)
    for number in range(5):
        put(bucket, f"old {number}", 100, size=10)
    made = await plan(opened, UNUSED)
    assert (len(made.going), made.is_all) == (3, False)
    assert (await cleared(opened, UNUSED)).gone == 5
    assert len(left(bucket)) == 8
    assert (await cleared(opened, Limits(None, BIG))).gone == 7


async def test_what_another_replica_uses_or_writes_after_the_listing_stays(opened: Bucket, bucket: TestBucket) -> None:
    used, written, old = put(bucket, "used", 100), put(bucket, "written", 100), put(bucket, "old", 100)
    made, tally = await plan(opened, UNUSED), Tally()
    use(bucket, used, day=today())
    put(bucket, "written", 0)
    await clear(opened, made, tally, always)
    assert left(bucket) == names(used, written)
    assert (tally.gone, tally.stayed) == (1, 2)
    assert old.encoded not in left(bucket)


async def test_two_at_once_and_one_that_was_cut_short_do_no_harm(
    opened: Bucket, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clearing, "BATCH", 2)
    for number in range(6):
        put(bucket, f"old {number}", 100)
    made, rounds = await plan(opened, UNUSED), 0

    async def once() -> bool:
        nonlocal rounds
        rounds += 1
        return rounds == 1

    tally = Tally()
    await clear(opened, made, tally, once)
    assert (tally.gone, len(left(bucket))) == (2, 4)
    both = await asyncio.gather(cleared(opened, UNUSED), cleared(opened, UNUSED))
    assert sum(one.failed for one in both) == 0
    assert left(bucket) == set()


async def test_a_blob_that_cannot_be_removed_is_told_and_the_others_go(
    opened: Bucket, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, old = put(bucket, "held", 100), put(bucket, "old", 100)
    real = opened.remove

    async def remove(key: str) -> None:
        if key == blob_key(held):
            raise BucketError("no")
        await real(key)

    monkeypatch.setattr(opened, "remove", remove)
    tally = await cleared(opened, UNUSED)
    assert (tally.gone, tally.failures) == (1, [(blob_key(held), "no")])
    assert old.encoded not in left(bucket)
    with pytest.raises(BucketError, match="no"):
        await cleared(opened, UNUSED)  # it goes on no further where nothing can be removed


async def test_what_is_no_blob_of_ours_stays_and_counts_for_nothing(opened: Bucket, bucket: TestBucket) -> None:
    for key in ("cache/blobs/readme", "cache/blobs/sha256/zz/zz", "cache/repositories/a/b", "other/blobs/x"):
        bucket[key] = b"x" * BIG
        bucket.age(key, 100)
    bucket["cache/uses/2026-01-01/foreign"] = b"\xff" * 1000
    made = await plan(opened, Limits(30 * DAY, 1))
    assert (made.blobs, made.size, made.going) == (0, 0, [])


async def test_a_plan_changes_nothing(opened: Bucket, bucket: TestBucket) -> None:
    put(bucket, "old", 100)
    before = await hop(bucket.keys)
    assert len((await plan(opened, UNUSED)).going) == 1
    assert await hop(bucket.keys) == before
