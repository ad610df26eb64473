"""A bucket that does some of what it is asked and not the rest, or answers with what it should not have."""

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy import blob_stream
from proxy.files import hop
from proxy.sections.store import S3
from proxy.stores import durable, s3, s3_access, tiered, uploads
from proxy.stores.s3_errors import BucketError
from tests.buckets import REGION, TestBucket

from .faulty_bucket import FAULTS, Fault, FaultyBucket, blobs, kind
from .harness import Proxy, running
from .test_s3 import LAYER, REPO, cached, configured, filled, key_of, pending, pull, uploaded
from .upstream import FakeRegistry, digest_of
from .upstream.behaviours import Asked, Dripped
from .upstream.gates import Steps
from .upstream.reply import Delivery, Ending, Framing, Reply
from .upstream.wire import Request

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("hurried_bucket")]


def only(*kinds: str) -> Callable[[Request], bool]:
    """Requests of some kinds."""
    return lambda request: kind(request) in kinds


def said(proxy: Proxy, event: str) -> list[dict[str, object]]:
    """The lines of the log that tell of something."""
    return [record for record in proxy.log if record["event"] == event]


def is_up(proxy: Proxy) -> float | None:
    """What the metric says."""
    return proxy.metrics.registry.get_sample_value("entrepot_bucket_up")


async def test_where_only_writing_is_denied_reading_goes_on_and_it_is_said_once_until_it_is_granted(
    upstream: FakeRegistry, bucket: TestBucket, faulty: FaultyBucket, store: Path, tmp_path: Path
) -> None:
    image = await filled(upstream, bucket, store)
    new = upstream.add_image(REPO, "v2", [LAYER + b"!"])
    faulty.fail_all("denied", only("PutObject", "CreateMultipartUpload"))
    asked = len(upstream.requests)
    async with cached(configured(upstream.url, bucket, url=faulty.url), tmp_path / "other") as proxy:
        await pull(proxy, image)
        assert len(upstream.requests) == asked
        await pull(proxy, new, "v2")
        await faulty.until(lambda: faulty.hits.total() > 12)
        await pull(proxy, image)
        (line,) = said(proxy, "bucket fails")
        assert "(PutObject)" in str(line["reason"])
        assert (said(proxy, "bucket answers again"), is_up(proxy)) == ([], 0)
        assert (await proxy.get("/readyz")).status == 200
        faulty.heal()
        await uploaded(proxy.store)
        assert (len(said(proxy, "bucket answers again")), is_up(proxy)) == (1, 1)
    assert key_of(new.layer_digests[0]) in await hop(bucket.keys)


async def test_where_listing_is_denied_it_is_said_once_and_the_bucket_is_up(
    upstream: FakeRegistry, bucket: TestBucket, faulty: FaultyBucket, store: Path
) -> None:
    faulty.fail_all("denied", only("ListMultipartUploads"))
    image = upstream.add_image(REPO, "v1", [b"layer"])
    async with cached(configured(upstream.url, bucket, url=faulty.url), store) as proxy:
        await pull(proxy, image)
        await uploaded(store)
        for _ in range(3):
            await _remote(proxy).abandon(0.0)
        (line,) = said(proxy, "bucket fails in part")
        assert "(ListMultipartUploads)" in str(line["reason"])
        assert is_up(proxy) == 1


async def test_where_removing_is_denied_a_damaged_object_is_passed_over_and_replaced(
    upstream: FakeRegistry, bucket: TestBucket, faulty: FaultyBucket, store: Path, tmp_path: Path
) -> None:
    image = await filled(upstream, bucket, store)
    layer = image.layer_digests[0]
    await hop(bucket.__setitem__, key_of(layer), LAYER.upper())
    await hop(bucket.__setitem__, key_of(image.digest), image.body.upper())
    faulty.fail_all("denied", only("DeleteObject"))
    async with cached(configured(upstream.url, bucket, url=faulty.url), tmp_path / "other") as proxy:
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).body == image.body
        await _short_once(proxy, layer)
        await uploaded(proxy.store)
        assert len(said(proxy, "object in the bucket passed over")) == 2
        assert is_up(proxy) == 1
    assert await hop(bucket.__getitem__, key_of(layer)) == LAYER
    assert await hop(bucket.__getitem__, key_of(image.digest)) == image.body


async def test_what_is_damaged_and_can_be_neither_removed_nor_replaced_costs_one_pull_and_not_each(
    upstream: FakeRegistry, bucket: TestBucket, faulty: FaultyBucket, store: Path, tmp_path: Path
) -> None:
    image = await filled(upstream, bucket, store)
    layer = image.layer_digests[0]
    await hop(bucket.__setitem__, key_of(layer), LAYER.upper())
    faulty.fail_all("denied", lambda request: request.method != "GET")
    async with cached(configured(upstream.url, bucket, url=faulty.url), tmp_path / "other") as proxy:
        await _short_once(proxy, layer)
        proxy.blob_path(layer).unlink()  # evicted
        await _whole(proxy, layer)


async def _short_once(proxy: Proxy, digest: str) -> None:
    answer = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert (answer.ended, digest_of(answer.body) == digest) == ("short", False)
    await _whole(proxy, digest)


async def _whole(proxy: Proxy, digest: str) -> None:
    answer = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert (answer.status, answer.ended, digest_of(answer.body)) == (200, "complete", digest)


def _remote(proxy: Proxy) -> durable.Durable:
    assert proxy.app.shared is not None
    return proxy.app.shared.replicas.durable


async def test_a_clock_that_is_wrong_is_said_to_be_and_nothing_else_is_wrong_until_it_is_set(
    upstream: FakeRegistry, bucket: TestBucket, faulty: FaultyBucket, store: Path
) -> None:
    """Botocore, other than some SDKs of other languages, does not take the time from the answer's Date."""
    skewed = FAULTS["skewed"].behaviour

    def tomorrow(reply: Reply, asked: Asked) -> Reply:
        return skewed(reply, asked).setting("Date", "Fri, 31 Dec 2038 23:59:59 GMT")

    faulty.fail_all(Fault(tomorrow))
    image = upstream.add_image(REPO, "v1", [LAYER])
    async with cached(configured(upstream.url, bucket, url=faulty.url), store) as proxy:
        await pull(proxy, image)
        (line,) = said(proxy, "bucket fails")
        assert line["reason"] == "the clock of this machine is wrong by more than it bears: set it"
        dates = {str(request.header("X-Amz-Date"))[:4] for request in faulty.requests}
        assert dates == {time.strftime("%Y", time.gmtime())}
        assert (await proxy.get("/readyz")).status == 200
        faulty.heal()  # somebody has set it
        await uploaded(store)
        await _remote(proxy).size("nothing")
        assert (len(said(proxy, "bucket answers again")), is_up(proxy)) == (1, 1)


async def test_a_region_that_is_wrong_is_said_to_be_and_asked_for_once_not_without_end(
    upstream: FakeRegistry, bucket: TestBucket, faulty: FaultyBucket, store: Path
) -> None:
    faulty.fail_all("elsewhere")
    image = upstream.add_image(REPO, "v1", [b"layer"])
    async with running(configured(upstream.url, bucket, url=faulty.url), store) as proxy:
        assert await _remote(proxy).size("one") is None
        assert faulty.count() == 2  # what was wanted, and where the bucket is
        await pull(proxy, image)
        (line,) = said(proxy, "bucket fails")
        assert line["reason"] == "the bucket is in another region: check store.s3.region"


async def test_a_200_of_somebody_in_between_is_no_upload(
    upstream: FakeRegistry, bucket: TestBucket, faulty: FaultyBucket, store: Path
) -> None:
    faulty.fail_all("bare", lambda request: request.method != "GET")
    digest = upstream.add_blob(REPO, LAYER)
    async with cached(configured(upstream.url, bucket, url=faulty.url), store) as proxy:
        await _whole(proxy, digest)
        await faulty.until(lambda: faulty.hits.total() > 12)
        assert any(key.startswith("blobs/") for key in pending(store))
        faulty.heal()
        await uploaded(store)
    assert await hop(bucket.__getitem__, key_of(digest)) == LAYER


async def test_an_upload_that_nobody_reads_is_given_up(
    bucket: TestBucket, faulty: FaultyBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = {"bucket": bucket.name, "endpoint_url": faulty.url, "region": REGION}
    async with s3.Bucket(S3.model_validate(where)) as one:
        faulty.is_deaf = True
        with monkeypatch.context() as scaled:
            scaled.setattr(s3_access, "SLOWEST", 2**26)
            scaled.setattr(s3_access, "STALL", 0.6)
            with pytest.raises(BucketError, match="does not answer"):
                await one.write("key", bytes(24 * 2**20))  # more than the kernel takes in between
        await faulty.hang_up()
        faulty.is_deaf = False
        await one.write("key", b"small")
    assert await hop(bucket.__getitem__, "key") == b"small"


@pytest.mark.parametrize(
    ("span", "framing"),
    [("bytes 3-12/13", Framing.LENGTH), ("bytes 0-9/*", Framing.LENGTH), ("junk", Framing.LENGTH),
     ("bytes 0-9/11", Framing.LENGTH), ("bytes 0-8/9", Framing.LENGTH), ("bytes 0-9/10", Framing.CHUNKED)],
)  # fmt: skip
async def test_what_is_another_part_than_was_asked_for_or_may_be_longer_than_it_says_is_no_object(
    bucket: TestBucket, faulty: FaultyBucket, span: str, framing: Framing
) -> None:
    def part(reply: Reply, _: Asked) -> Reply:
        return replace(reply.setting("Content-Range", span), status=206, framing=framing)

    where = {"bucket": bucket.name, "endpoint_url": faulty.url, "region": REGION}
    async with s3.Bucket(S3.model_validate(where)) as one:
        await one.write("key", bytes(10))
        faulty.fail_all(Fault(part, is_done=True), only("GetObject"))
        with pytest.raises(BucketError, match="something else"):
            await one.read("key", 100)


async def test_where_the_bucket_only_drips_upstream_goes_on_and_the_next_blob_does_not_wait_for_it(
    upstream: FakeRegistry, bucket: TestBucket, faulty: FaultyBucket, store: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    image = await filled(upstream, bucket, store)
    monkeypatch.setattr(durable, "FIRST_REST", 60.0)
    monkeypatch.setattr(durable, "LONGEST_REST", 60.0)
    monkeypatch.setattr(blob_stream, "LOW_SPEED", 10_000)
    monkeypatch.setattr(s3_access, "STALL", 3.0)
    faulty.fail_all(Fault(Dripped(1, Steps(every=0.02)), is_done=True), blobs)
    async with cached(configured(upstream.url, bucket, url=faulty.url), tmp_path / "other") as proxy:
        await _whole(proxy, image.layer_digests[0])
        asked = len([request for request in faulty.requests if blobs(request)])
        await _whole(proxy, image.layer_digests[1])
        assert len([request for request in faulty.requests if blobs(request)]) == asked == 1
        (line,) = said(proxy, "bucket fails in part")
        assert "bytes a second" in str(line["reason"])
        assert is_up(proxy) == 1


WAYS: dict[str, Callable[[bytes], bytes]] = {
    "right": lambda body: body,
    "short": lambda body: body[:-1],
    "half": lambda body: body[: len(body) // 2],
    "long": lambda body: body + b"!",
    "wrong": lambda body: body[:100] + b"!" + body[101:],
    "twice": lambda body: body * 2,
    "nothing": lambda _body: b"",
}


@st.composite
def objects(draw: st.DrawFn) -> Callable[[bytes], Reply]:
    """Whatever may be answered to a question for an object that should have certain bytes."""
    way = draw(
        st.sampled_from(sorted(WAYS)).map(WAYS.__getitem__) | st.binary(max_size=300).map(lambda other: lambda _: other)
    )
    cut = draw(st.none() | st.integers(-1, 300))
    ending = Ending.KEEP if cut is None else draw(st.sampled_from([Ending.FIN, Ending.RESET]))
    declared = draw(st.none() | st.integers(0, 500))
    reply = Reply(
        draw(st.sampled_from([200, 200, 200, 206, 204, 301, 304, 403, 404, 416, 500])),
        framing=draw(st.sampled_from([Framing.LENGTH, Framing.LENGTH, Framing.CHUNKED, Framing.CLOSE])),
        declared=declared,
        delivery=Delivery(cut=cut, ending=ending if declared is None else Ending.FIN),
    )
    span = draw(st.none() | st.sampled_from(["bytes 0-9/10", "bytes 5-3/*", "junk", "bytes */7"]))
    reply = reply if span is None else reply.adding(("Content-Range", span))
    return lambda body: replace(reply, body=way(body))


async def test_whatever_an_object_is_a_client_gets_the_blob_or_a_short_body_and_the_blob_next(
    upstream: FakeRegistry, bucket: TestBucket, faulty: FaultyBucket, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "FIRST_REST", 0.0)
    numbers = itertools.count()
    async with running(configured(upstream.url, bucket, url=faulty.url), store) as proxy:

        @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(objects())
        async def play(answered: Callable[[bytes], Reply]) -> None:
            right = b"%8d" % next(numbers) + bytes(range(200))
            digest = upstream.add_blob(REPO, right)
            reply = answered(right)
            faulty.heal()
            faulty.fail_all(Fault(lambda _reply, _asked: reply), blobs)
            answer = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
            assert answer.ended == "short" or (answer.status, answer.body) == (200, right)
            faulty.heal()
            answer = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
            assert (answer.status, answer.ended, answer.body) == (200, "complete", right)

        await _each(play)


async def _each(play: Callable[..., object]) -> None:
    """Run the examples of an asynchronous property on this loop; Hypothesis itself is not asynchronous."""
    loop = asyncio.get_running_loop()
    inner = play.hypothesis.inner_test  # type: ignore[attr-defined]

    def one(*arguments: object, **named: object) -> None:
        asyncio.run_coroutine_threadsafe(inner(*arguments, **named), loop).result()

    play.hypothesis.inner_test = one  # type: ignore[attr-defined]
    await asyncio.to_thread(play)


@pytest.mark.parametrize(
    "record",
    [b"", b"\x00\xff", b"null", b"[" * 4000, b"7", json.dumps({"size": -1}).encode(), b'{"size": 1e3}',
     json.dumps({"size": 3, "mediaType": "a/b\r\nX: y"}).encode(), b'{"mediaType": "text/plain"}', b"{}" * 4096,
     json.dumps({"digest": "sha256:zz", "checked": 5}).encode(), b'{"digest": 7, "checked": NaN}'],
    ids=lambda record: record[:20].decode("latin-1"),
)  # fmt: skip
async def test_a_link_or_a_tag_that_is_none_is_as_good_as_not_there(
    upstream: FakeRegistry, bucket: TestBucket, faulty: FaultyBucket, store: Path, record: bytes
) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    text = configured(upstream.url, bucket, url=faulty.url)
    repository = f"docker.io/{REPO}"
    for digest in (image.digest, *image.blob_digests):
        await hop(bucket.__setitem__, f"cache/repositories/{repository}/_links/{digest.replace(':', '/')}", record)
    await hop(bucket.__setitem__, key_of(image.digest), image.body)
    for directory in ("_tags", "_history"):
        await hop(bucket.__setitem__, f"cache/repositories/{repository}/{directory}/v1", record)
    async with running(text, store) as proxy:
        for digest in image.blob_digests:
            answer = await proxy.head(f"/v2/{REPO}/blobs/{digest}")
            assert answer.header("Content-Length") == str(image.sizes[digest])
        await pull(proxy, image)
        assert proxy.requests[-1]["status"] == 200


async def test_a_tag_that_another_machine_has_checked_in_the_future_is_not_believed(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiered, "LOOK", 0.0)
    old = upstream.add_image(REPO, "v1", [b"old"])
    async with cached(configured(upstream.url, bucket), store) as proxy:
        await pull(proxy, old)
        await uploaded(store)
        record = f"cache/repositories/docker.io/{REPO}/_tags/v1"
        other = upstream.add_image(REPO, "v2", [b"other"])
        await pull(proxy, other, "v2")
        await uploaded(store)
        for ahead, believed in ((3600.0, old), (-0.001, other)):
            theirs = {"digest": other.digest, "checked": time.time() + ahead}
            await hop(bucket.__setitem__, record, json.dumps(theirs).encode())
            await proxy.app.housekeeping._round(None)
            proxy.app.manifests.forget()
            assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).body == believed.body


async def test_what_is_more_than_is_remembered_waits_on_disk_and_is_uploaded_by_a_later_look(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MOST", 3)
    monkeypatch.setattr(uploads, "LOOK", 0.1)
    digests = [upstream.add_blob(REPO, b"%d" % number) for number in range(8)]
    async with running(configured(upstream.url, bucket), store) as proxy:  # nobody uploads yet
        for digest in digests:
            await _whole(proxy, digest)
        assert proxy.app.shared is not None
        assert len(proxy.app.shared.uploads._known) == 3
        assert len(pending(store)) >= len(digests)
    async with cached(configured(upstream.url, bucket), store):
        await uploaded(store)
    assert {key_of(digest) for digest in digests} <= set(await hop(bucket.keys))
