"""A bucket: objects come and go as a store of blobs needs it, and what goes wrong is said in words."""

import asyncio
import errno
import time
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from botocore.exceptions import ClientError
from yarl import URL

from proxy.files import Handle, Tree, hop
from proxy.sections.store import S3
from proxy.stores import s3_trial, s3_uploads
from proxy.stores.payloads import Whole
from proxy.stores.s3 import Bucket
from proxy.stores.s3_access import Access
from proxy.stores.s3_errors import BucketError, Taken
from tests.buckets import KEYS, REGION, TestBucket
from tests.faulty_disk import FaultyDisk, Point


@pytest.fixture
def outside(bucket: TestBucket) -> TestBucket:
    """The bucket as an outsider sees it."""
    return bucket


def settings(outside: TestBucket, **more: object) -> S3:
    """What proxy.toml would say of a bucket."""
    return S3.model_validate(
        {"bucket": outside.name, "endpoint_url": outside.url, "region": REGION, "prefix": "cache", **more}
    )


@pytest.fixture
async def opened(outside: TestBucket) -> AsyncIterator[Bucket]:
    """The same as the product sees it."""
    async with Bucket(settings(outside)) as one:
        yield one


async def file(tree: Tree, body: bytes) -> Handle:
    """A file of the store's, open."""
    await tree.write("blobs/sha256/aa/aa", body, committed=True)
    handle = await tree.open("blobs/sha256/aa/aa")
    assert handle is not None
    return handle


async def whole(opened: Bucket, key: str, start: int = 0) -> tuple[int, bytes] | None:
    """What a stream brings: from where, and which bytes."""
    async with opened.open(key, start) as stream:
        if stream is None:
            return None
        body = b""
        while data := await stream.read():
            body += data
        return stream.start, body


async def test_what_is_written_can_be_read_whole_and_from_an_offset(opened: Bucket, outside: TestBucket) -> None:
    await opened.write("a/b", b"0123456789")
    assert await hop(outside.keys) == ["cache/a/b"]
    assert await opened.read("a/b", 10) == b"0123456789"
    assert await opened.read("a/b", 9) is None  # longer than it may be
    assert await whole(opened, "a/b", 4) == (4, b"456789")
    assert await opened.size("a/b") == 10


async def test_what_is_not_there_is_none_and_its_removal_no_error(opened: Bucket) -> None:
    assert await opened.read("none", 10) is None
    assert await opened.size("none") is None
    assert await whole(opened, "none", 5) is None
    await opened.remove("none")


async def test_an_offset_beyond_the_end_is_as_good_as_nothing(opened: Bucket) -> None:
    await opened.write("short", b"abc")
    assert await whole(opened, "short", 10) is None


async def test_objects_are_listed_below_a_prefix_in_order_and_from_one_on(
    opened: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, pages = opened.access.client.list_objects_v2, 0

    async def two(**arguments: object) -> object:
        nonlocal pages
        pages += 1
        return await real(**arguments, MaxKeys=2)  # type: ignore[arg-type]

    monkeypatch.setattr(opened.access.client, "list_objects_v2", two)
    names = ["a/1", "a/2 +%ä", "a/3", "a/b/4", "a/b/5"]
    for name in (*names, "a", "b/6"):
        await opened.write(name, name.encode())
    found = [one async for one in opened.keys("a/")]
    assert [(one.key, one.size) for one in found] == [(name, len(name.encode())) for name in names]
    assert all(abs(one.modified - time.time()) < 60 for one in found)
    assert pages == 3
    assert [one.key async for one in opened.keys("a/", "a/3")] == ["a/b/4", "a/b/5"]
    assert [one async for one in opened.keys("none/")] == []


async def test_a_failure_says_whether_it_passes(outside: TestBucket) -> None:
    passing = ["503-SlowDown", "500-InternalError", "429-TooManyRequests", "400-RequestTimeout"]
    lasting = ["403-AccessDenied", "404-NoSuchBucket", "403-InvalidObjectState"]

    async def answer(request: web.Request) -> web.Response:
        status, _, code = request.path.rpartition("/")[2].partition("-")
        return web.Response(status=int(status), text=f"<Error><Code>{code}</Code><Message>m</Message></Error>")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server, Bucket(settings(outside, endpoint_url=str(server.make_url("")))) as opened:
        asked = (opened.write(key, b"body") for key in (*passing, *lasting))
        failures = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(one, BucketError) and one.passes for one in failures] == [True] * 4 + [False] * 3


async def test_of_many_that_write_a_new_object_one_does(opened: Bucket) -> None:
    outcomes = await asyncio.gather(
        *(opened.write("new", b"%d" % number, is_new=True) for number in range(16)), return_exceptions=True
    )
    assert sum(outcome is None for outcome in outcomes) == 1
    assert all(isinstance(outcome, Taken) for outcome in outcomes if outcome is not None)
    won = next(number for number, outcome in enumerate(outcomes) if outcome is None)
    assert await opened.read("new", 10) == b"%d" % won


@pytest.mark.parametrize("size", [0, 1, 5 * 1024 * 1024, 5 * 1024 * 1024 + 1, 17 * 1024 * 1024])
async def test_a_file_of_any_size_is_uploaded(
    opened: Bucket, outside: TestBucket, tree: Tree, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(s3_uploads, "PART", 5 * 1024 * 1024)
    body = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    handle = await file(tree, body)
    await opened.upload("blob", Whole(handle))
    await opened.upload("blob", Whole(handle))  # once more: it is the same
    handle.close()
    assert await hop(outside.__getitem__, "cache/blob") == body
    assert await hop(outside.uploads) == []


async def test_an_upload_that_fails_leaves_nothing_behind(
    opened: Bucket, outside: TestBucket, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_uploads, "PART", 5 * 1024 * 1024)
    handle = await file(tree, b"x" * (12 * 1024 * 1024))
    real, calls = opened.access.client.upload_part, 0

    async def failing(**arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError("the network")
        return await real(**arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(opened.access.client, "upload_part", failing)
    with pytest.raises(BucketError):
        await opened.upload("blob", Whole(handle))
    handle.close()
    assert await hop(outside.keys) == []
    assert await hop(outside.uploads) == []


@pytest.mark.parametrize("size", [1024, 12 * 1024 * 1024])
async def test_a_file_that_cannot_be_read_is_the_disks_failure_and_not_the_buckets(
    opened: Bucket, outside: TestBucket, tree: Tree, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(s3_uploads, "PART", 5 * 1024 * 1024)
    handle = await file(tree, b"x" * size)
    FaultyDisk(monkeypatch).fail(Point("pread", 1, errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        await opened.upload("blob", Whole(handle))
    handle.close()
    assert await hop(outside.uploads) == []


async def test_uploads_that_a_crash_left_are_given_up(opened: Bucket, outside: TestBucket) -> None:
    await opened.access.client.create_multipart_upload(Bucket=outside.name, Key="cache/left")
    assert await opened.abandon(0.0) == 0
    assert await opened.abandon(1e12) == 1
    assert await hop(outside.uploads) == []


async def test_a_trial_leaves_nothing_and_knows_conditional_writes(opened: Bucket, outside: TestBucket) -> None:
    assert await s3_trial.trial(opened) is True
    assert await hop(outside.keys) == []


async def test_objects_are_kept_as_configured(outside: TestBucket) -> None:
    rules = [{"name": "STANDARD"}, {"name": "STANDARD_IA", "min_size": "4 B"}]
    how = settings(outside, encryption="aws:kms", kms_key_id="key", storage_class=rules)
    async with Bucket(how) as opened:
        await opened.write("small", b"abc")
        await opened.write("large", b"abcd")
    small, large = [await hop(outside.head, f"cache/{name}") for name in ("small", "large")]
    assert (small["ServerSideEncryption"], small["SSEKMSKeyId"]) == ("aws:kms", "key")
    assert (small.get("StorageClass", "STANDARD"), large["StorageClass"]) == ("STANDARD", "STANDARD_IA")


async def test_what_is_taken_and_not_done_is_told_from_what_is_done(
    outside: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    encrypted = settings(outside, encryption="AES256")
    async with Bucket(encrypted) as opened:
        assert await s3_trial.unheeded(opened) == []
        monkeypatch.setattr(Access, "keeping", lambda *_: {"StorageClass": "STANDARD"})  # as if nobody heeded it
        assert ["does not say that it encrypts" in reason for reason in await s3_trial.unheeded(opened)] == [True]
    assert await hop(outside.keys) == []


async def test_a_bucket_of_somebody_else_is_refused_where_the_store_looks(
    outside: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Bucket(settings(outside, expected_bucket_owner="123456789012")) as opened:
        assert len(await s3_trial.unheeded(opened)) == 1  # this store does not
        asked = dict[str, str]()

        async def refused(**arguments: str) -> None:
            asked.update(arguments)
            raise ClientError({"Error": {"Code": "403"}}, "HeadBucket")

        monkeypatch.setattr(opened.access.client, "head_bucket", refused)
        assert await s3_trial.unheeded(opened) == []
        assert asked["ExpectedBucketOwner"] == "123456789010"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"bucket": "no-such-bucket"}, "no such bucket"),
        ({"endpoint_url": "http://127.0.0.1:9"}, "cannot be reached: check store.s3.endpoint_url"),
    ],
)
async def test_what_is_wrong_is_said_by_the_key_that_would_mend_it(
    outside: TestBucket, more: dict[str, object], reason: str
) -> None:
    async with Bucket(settings(outside, **more)) as opened:
        with pytest.raises(BucketError, match=reason):
            await s3_trial.trial(opened)


async def test_no_credentials_are_said_to_be_none(outside: TestBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    async with Bucket(settings(outside)) as opened:
        with pytest.raises(BucketError, match="no AWS credentials"):
            await opened.read("key", 10)


async def test_a_profile_that_is_none_is_said_at_the_start(outside: TestBucket) -> None:
    with pytest.raises(BucketError, match=r"store\.s3\.profile"):
        async with Bucket(settings(outside, profile="nobody")):
            pass


async def signed(how: S3) -> tuple[URL, str]:
    """The URL of an object for others, and where it leads."""
    async with Bucket(how) as opened:
        url = await opened.presign("blobs/a")
        assert url is not None
        assert opened.public_endpoint is not None
        return URL(url.get_secret_value(), encoded=True), opened.public_endpoint


NEAR = {"redirect_networks": ["10.0.0.0/8"]}


async def test_a_url_is_signed_for_one_object_for_a_while_and_for_nothing_that_a_redirect_cannot_send(
    outside: TestBucket,
) -> None:
    how = settings(
        outside, expected_bucket_owner="123456789012", checksums="when_supported", redirect_for="90s", **NEAR
    )
    url, endpoint = await signed(how)
    assert (f"{url.origin()}", url.path) == (outside.url, f"/{outside.name}/cache/blobs/a")
    assert endpoint == outside.url
    assert (url.query["X-Amz-Algorithm"], url.query["X-Amz-Expires"]) == ("AWS4-HMAC-SHA256", "90")
    assert url.query["X-Amz-SignedHeaders"] == "host"
    assert "owner" not in str(url).lower()


@pytest.mark.parametrize(
    ("more", "where"),
    [
        ({}, "https://images.s3.eu-central-1.amazonaws.com/cache/blobs/a"),
        ({"addressing": "virtual"}, "https://images.s3.eu-central-1.amazonaws.com/cache/blobs/a"),
        ({"addressing": "path"}, "https://s3.eu-central-1.amazonaws.com/images/cache/blobs/a"),
        ({"bucket": "my.images"}, "https://s3.eu-central-1.amazonaws.com/my.images/cache/blobs/a"),
        ({"endpoint_url": "https://ceph.example"}, "https://ceph.example/images/cache/blobs/a"),
        (
            {"endpoint_url": "https://ceph.example", "addressing": "virtual"},
            "https://images.ceph.example/cache/blobs/a",
        ),
        (
            {"endpoint_url": "http://10.0.0.1", "redirect_endpoint_url": "https://out.example:7480"},
            "https://out.example:7480/images/cache/blobs/a",
        ),
    ],
)
async def test_a_url_leads_to_where_clients_reach_the_bucket(
    outside: TestBucket, more: dict[str, str], where: str
) -> None:
    how = settings(outside, **{"bucket": "images", "endpoint_url": None, "region": "eu-central-1", **NEAR, **more})
    url, endpoint = await signed(how)
    assert str(url.with_query(None)) == where
    assert URL(endpoint).scheme == url.scheme


async def test_where_nobody_is_to_be_redirected_there_are_no_urls(opened: Bucket) -> None:
    assert opened.public_endpoint is None
    assert await opened.presign("blobs/a") is None
    assert await s3_trial.refuses_its_urls(opened) is False


async def test_a_url_that_was_just_made_is_tried_and_leaves_nothing(outside: TestBucket) -> None:
    async with Bucket(settings(outside, **NEAR)) as opened:
        assert await s3_trial.refuses_its_urls(opened) is False
    async with Bucket(settings(outside, redirect_endpoint_url=f"{outside.url}/elsewhere", **NEAR)) as opened:
        assert await s3_trial.refuses_its_urls(opened) is True
    async with Bucket(settings(outside, redirect_endpoint_url="http://127.0.0.1:9", **NEAR)) as opened:
        assert await s3_trial.refuses_its_urls(opened) is False  # not from here: clients may reach it
    assert await hop(outside.keys) == []


async def test_an_upload_that_is_broken_off_waits_for_no_bucket(
    opened: Bucket, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_uploads, "PART", 5 * 1024 * 1024)
    monkeypatch.setattr(s3_uploads, "PATIENCE", 0.05)
    handle, reached = await file(tree, b"x" * (12 * 1024 * 1024)), asyncio.Event()

    async def frozen(**_: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(opened.access.client, "upload_part", frozen)
    monkeypatch.setattr(opened.access.client, "abort_multipart_upload", frozen)
    task = asyncio.create_task(opened.upload("blob", Whole(handle)))
    await reached.wait()
    task.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await task
    handle.close()
