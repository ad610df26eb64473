"""A cache whose bytes outlive it in a bucket: pulls never wait for it nor fail with it, and believe nothing it says."""

import asyncio
import contextlib
import errno
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from proxy import candidates, fill, trial
from proxy.files import Tree, hop
from proxy.sections.store import S3
from proxy.stores import durable, s3, s3_uploads, tiered, uploads
from tests.buckets import REGION, TestBucket
from tests.faulty_disk import FaultyDisk, Point

from .harness import DEADLINE, Proxy, running, serving, toml, until
from .upstream import FakeRegistry, Image, digest_of

REPO = "library/app"
LAYER = b"layer" * 100_000
OWNER_IGNORED = "it does not look whose the bucket is: leave store.s3.expected_bucket_owner out"


def configured(upstream: str, bucket: TestBucket, *, url: str | None = None, more: str = "", server: str = "") -> str:
    """A proxy with a bucket behind it."""
    s3 = (
        f'[store.s3]\nbucket = "{bucket.name}"\nprefix = "cache/"\nendpoint_url = "{url or bucket.url}"\n'
        f'region = "{REGION}"\n'
    )
    return toml(upstream, more=more, server=server).replace("[[upstream]]", f"{s3}[[upstream]]")


@contextlib.asynccontextmanager
async def cached(text: str, store: Path, *, alone: bool = True) -> AsyncIterator[Proxy]:
    """A proxy that uploads, as a server does."""
    async with running(text, store, alone=alone) as proxy:
        assert proxy.app.shared is not None
        leases = proxy.app.shared.replicas.leases
        leases.introduce(f"http://{proxy.host}")
        tasks = [asyncio.create_task(work.run()) for work in (proxy.app.shared.uploads, leases)]
        try:
            yield proxy
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(one, asyncio.CancelledError) for one in ended), ended


def pending(store: Path) -> list[str]:
    """The keys that have yet to be uploaded."""
    return sorted(str(path.relative_to(store / "uploads")) for path in (store / "uploads").rglob("*") if path.is_file())


async def uploaded(store: Path) -> None:
    """Wait until the bucket has everything."""
    await until(lambda: not pending(store), "everything is uploaded")


async def pull(proxy: Proxy, image: Image, tag: str = "v1") -> None:
    """All of an image, by tag; every byte is right."""
    assert (await proxy.get(f"/v2/{REPO}/manifests/{tag}")).body == image.body
    for digest in image.blob_digests:
        answer = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
        assert (answer.status, digest_of(answer.body)) == (200, digest)


def key_of(digest: str) -> str:
    """Where the bucket has a blob."""
    algorithm, _, encoded = digest.partition(":")
    return f"cache/blobs/{algorithm}/{encoded[:2]}/{encoded}"


async def filled(upstream: FakeRegistry, bucket: TestBucket, store: Path, *layers: bytes) -> Image:
    """An image that was pulled by one machine, and is in the bucket."""
    image = upstream.add_image(REPO, "v1", layers or [LAYER, b"small"])
    async with cached(configured(upstream.url, bucket), store) as proxy:
        await pull(proxy, image)
        await uploaded(store)
    return image


async def test_what_is_pulled_gets_into_the_bucket_under_its_digest_and_once(
    upstream: FakeRegistry, bucket: TestBucket, store: Path
) -> None:
    image = await filled(upstream, bucket, store)
    found = await hop(bucket.keys)
    for digest in (image.digest, *image.blob_digests):
        assert found.count(key_of(digest)) == 1
        assert digest_of(await hop(bucket.__getitem__, key_of(digest))) == digest
    assert await hop(bucket.uploads) == []


async def test_another_machine_serves_it_all_from_the_bucket_while_upstream_is_away(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, tmp_path: Path
) -> None:
    image = await filled(upstream, bucket, store)
    await upstream.go_down()
    async with cached(configured(upstream.url, bucket), tmp_path / "other") as proxy:
        await pull(proxy, image)
        assert proxy.blobs() == sorted([image.digest, *image.blob_digests])  # the disk is its tier in front
    async with cached(configured(upstream.url, bucket, more="sealed = true"), tmp_path / "sealed") as proxy:
        await pull(proxy, image)


async def test_a_replica_believes_what_another_one_has_just_asked(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, tmp_path: Path
) -> None:
    image = await filled(upstream, bucket, store)
    asked = len(upstream.requests)
    async with cached(configured(upstream.url, bucket), tmp_path / "other") as proxy:
        await pull(proxy, image)
    assert len(upstream.requests) == asked


async def test_a_blob_in_the_bucket_is_given_to_no_repository_that_may_not_have_it(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, tmp_path: Path
) -> None:
    image = await filled(upstream, bucket, store)
    layer = image.layer_digests[0]
    async with cached(configured(upstream.url, bucket), tmp_path / "other") as proxy:
        assert (await proxy.get(f"/v2/library/other/blobs/{layer}")).status == 404
        assert (await proxy.get(f"/v2/{REPO}/blobs/{layer}")).status == 200


@pytest.mark.parametrize(
    "body", [b"LAYER" * 100_000, LAYER[:-1], LAYER + b"!", b""], ids=["wrong", "short", "long", "nothing"]
)
async def test_an_object_that_was_tampered_with_is_never_completed_is_removed_and_fetched_again(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, tmp_path: Path, body: bytes
) -> None:
    image = await filled(upstream, bucket, store)
    layer = image.layer_digests[0]
    await hop(bucket.__setitem__, key_of(layer), body)
    async with cached(configured(upstream.url, bucket), tmp_path / "other") as proxy:
        answer = await proxy.get(f"/v2/{REPO}/blobs/{layer}")
        assert answer.ended != "complete" or answer.status >= 500 or answer.body == LAYER
        answer = await proxy.get(f"/v2/{REPO}/blobs/{layer}")
        assert (answer.status, answer.body, answer.ended) == (200, LAYER, "complete")
        await uploaded(proxy.store)
        assert any(record["event"] == "object removed from the bucket" for record in proxy.log)
    assert await hop(bucket.__getitem__, key_of(layer)) == LAYER


async def test_a_manifest_that_was_tampered_with_is_removed_and_fetched_again(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, tmp_path: Path
) -> None:
    image = await filled(upstream, bucket, store)
    await hop(bucket.__setitem__, key_of(image.digest), image.body.replace(b"linux", b"LINUX") + b" ")
    async with cached(configured(upstream.url, bucket), tmp_path / "other") as proxy:
        await pull(proxy, image)
        await uploaded(proxy.store)
    assert await hop(bucket.__getitem__, key_of(image.digest)) == image.body


async def test_pulls_go_on_without_the_bucket_and_it_gets_everything_later(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(durable, "FIRST_REST", 0.01)
    monkeypatch.setattr(durable, "LONGEST_REST", 0.01)
    image = upstream.add_image(REPO, "v1", [LAYER])
    async with cached(configured(upstream.url, bucket, url="http://127.0.0.1:9"), store) as proxy:
        await pull(proxy, image)
        assert set(image.blob_digests) <= {blob.partition("/")[2] or blob for blob in proxy.blobs()}
        failures = [record for record in proxy.log if record["event"] == "bucket fails"]
        assert len(failures) == 1
        assert "cannot be reached" in failures[0]["reason"]
        assert proxy.metrics.registry.get_sample_value("entrepot_bucket_up") == 0
    assert await hop(bucket.keys) == []
    assert len(pending(store)) >= 4
    async with cached(configured(upstream.url, bucket), store) as proxy:
        await uploaded(store)
    assert key_of(image.layer_digests[0]) in await hop(bucket.keys)


async def test_what_has_yet_to_be_uploaded_is_not_evicted(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "SELDOM", 0.0)  # else what was kept a moment ago may be kept a little longer
    one, other = upstream.add_blob(REPO, LAYER), upstream.add_blob(REPO, LAYER + b"!")
    text = configured(upstream.url, bucket).replace("[store]", '[store]\nmax_size = "800 kB"')
    async with running(text, store) as proxy:  # nobody uploads
        assert (await proxy.get(f"/v2/{REPO}/blobs/{one}")).body == LAYER
        assert (await proxy.get(f"/v2/{REPO}/blobs/{other}")).body == LAYER + b"!"
        assert proxy.blobs() == [one]
        assert proxy.requests[-1]["outcome"] == "direct"
    async with cached(text, store) as proxy:
        await uploaded(store)
        assert (await proxy.get(f"/v2/{REPO}/blobs/{other}")).body == LAYER + b"!"
        await uploaded(store)
        assert proxy.blobs() == [other]
    assert {key_of(one), key_of(other)} <= set(await hop(bucket.keys))


async def test_what_was_evicted_here_comes_from_the_bucket_and_not_from_upstream(
    upstream: FakeRegistry, bucket: TestBucket, store: Path
) -> None:
    image = await filled(upstream, bucket, store)
    asked = len(upstream.requests)
    await hop(shutil.rmtree, store / "blobs")
    async with cached(configured(upstream.url, bucket), store) as proxy:
        await pull(proxy, image)
    assert len(upstream.requests) == asked


async def test_a_tag_that_upstream_has_no_more_is_gone_from_the_bucket_too(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiered, "LOOK", 0.0)
    image = upstream.add_image(REPO, "v1", [b"layer"])
    text = configured(upstream.url, bucket, more='tag_ttl = "0s"')
    async with cached(text, store) as proxy:
        await pull(proxy, image)
        await uploaded(store)
        upstream.untag(REPO, "v1")
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).status == 404
    assert not [key for key in await hop(bucket.keys) if "/_tags/" in key]


async def test_replicas_in_processes_of_their_own_share_one_bucket_and_the_death_of_one_costs_nothing(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, tmp_path: Path
) -> None:
    image = upstream.add_image(REPO, "v1", [LAYER, b"small"])
    text = configured(upstream.url, bucket)
    async with serving(text, store) as one, serving(text, tmp_path / "two") as two:
        for digest in image.blob_digests:
            assert digest_of((await one.get(f"/v2/{REPO}/blobs/{digest}")).body) == digest
        assert (await one.get(f"/v2/{REPO}/manifests/v1")).body == image.body
        await one.published(*image.blob_digests)
        await uploaded(store)
        await one.stop(signal.SIGKILL)
        await upstream.go_down()
        assert (await two.get(f"/v2/{REPO}/manifests/v1")).body == image.body
        for digest in image.blob_digests:
            assert digest_of((await two.get(f"/v2/{REPO}/blobs/{digest}")).body) == digest
        assert await two.stop() == 0


async def test_what_a_killed_process_had_yet_to_upload_the_next_one_uploads(
    upstream: FakeRegistry, bucket: TestBucket, store: Path
) -> None:
    digest = upstream.add_blob(REPO, LAYER)
    async with running(configured(upstream.url, bucket), store) as proxy:  # nobody uploads
        assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body == LAYER
    assert f"blobs/sha256/{digest[7:9]}/{digest[7:]}" in pending(store)
    async with serving(configured(upstream.url, bucket), store) as process:
        await uploaded(store)
        assert await process.stop() == 0
    assert await hop(bucket.__getitem__, key_of(digest)) == LAYER


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, []),
        ({"bucket": "no-such-bucket"}, ["there is no such bucket: create it, or check store.s3.bucket"]),
        ({"encryption": "AES256", "storage_class": [{"name": "STANDARD_IA", "min_size": "1 MiB"}]}, []),
        ({"storage_class": [{"name": "NONE", "min_size": "1 MiB"}]}, ["it does not know store.s3.storage_class"]),
        ({"expected_bucket_owner": "123456789012"}, [OWNER_IGNORED]),
    ],
)
async def test_check_tries_the_bucket(bucket: TestBucket, changed: dict[str, str], said: list[str]) -> None:
    table = {"bucket": bucket.name, "endpoint_url": bucket.url, "region": REGION, **changed}
    found = await trial.bucket_problems(S3.model_validate(table))
    assert [problem.partition(": ")[2].partition(": ")[2] for problem in found] == said
    assert await hop(bucket.keys) == []


async def test_a_server_says_at_its_start_what_the_bucket_takes_and_does_not_do(
    upstream: FakeRegistry, bucket: TestBucket, store: Path
) -> None:
    owned = configured(upstream.url, bucket).replace(
        "[[upstream]]", 'expected_bucket_owner = "123456789012"\n[[upstream]]'
    )
    async with cached(owned, store) as proxy:
        await until(lambda: any("does less" in record["event"] for record in proxy.log), "it is said")
        said = [record for record in proxy.log if record["event"] == "bucket does less than is configured"]
        assert [record["reason"] for record in said] == [OWNER_IGNORED]


async def test_one_blob_is_uploaded_once_by_all_workers_of_a_machine(
    upstream: FakeRegistry, bucket: TestBucket, store: Path
) -> None:
    digests = [upstream.add_blob(REPO, LAYER + str(number).encode()) for number in range(6)]
    text = configured(upstream.url, bucket)
    async with cached(text, store) as one, cached(text, store, alone=False) as two:
        for digest in digests:
            await one.get(f"/v2/{REPO}/blobs/{digest}")
            await two.get(f"/v2/{REPO}/blobs/{digest}")
        for worker in (one, two):
            await worker.app.blobs.idle()  # until then it is not said of the last one that it is to be uploaded
        await uploaded(store)
        sent = [proxy.metrics.registry.get_sample_value("entrepot_bucket_bytes_total", {"direction": "up"}) or 0.0
                for proxy in (one, two)]  # fmt: skip
        blobs = sum(len(LAYER) + 1 for _ in digests)
        assert blobs <= sum(sent) < blobs + len(LAYER)  # records are small


async def test_a_disk_that_fails_while_uploads_are_looked_for_ends_them_not(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "FIRST_WAIT", 0.01)
    digest, failures = upstream.add_blob(REPO, LAYER), [OSError(5, "Input/output error")] * 3
    look = uploads.wanted

    def failing(tree: Tree) -> Iterator[str]:
        if failures:
            raise failures.pop()
        return look(tree)

    async with running(configured(upstream.url, bucket), store) as proxy:  # nobody uploads
        await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    monkeypatch.setattr(uploads, "wanted", failing)
    async with cached(configured(upstream.url, bucket).replace("[store]", "[store]\nmax_size = 0"), store):
        await uploaded(store)
    assert key_of(digest) in await hop(bucket.keys)


async def test_a_tag_that_is_frozen_here_stays_whatever_another_replica_has_recorded(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiered, "LOOK", 0.0)
    image, text = upstream.add_image(REPO, "v1", [b"old"]), configured(upstream.url, bucket, more='tag_ttl = "0s"')
    async with cached(text, store) as one, cached(text, tmp_path / "two", alone=False) as two:
        await pull(one, image)
        await asyncio.to_thread(one.app.desk.freeze, ["app:v1"], None)
        await one.app.housekeeping._round(None)
        newer = upstream.add_image(REPO, "v1", [b"new"])
        await pull(two, newer)
        await uploaded(two.store)
        await pull(one, image)
        await asyncio.to_thread(one.app.desk.unfreeze, ["app:v1"])
        await one.app.housekeeping._round(None)
        await pull(one, newer)


async def test_a_link_that_the_disk_would_not_take_is_written_once_it_does(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = upstream.add_blob(REPO, LAYER)
    async with cached(configured(upstream.url, bucket), store) as proxy:
        write, tree = proxy.app.means.tree.write, proxy.app.means.tree

        async def refusing(key: str, body: bytes, *, committed: bool = False) -> None:
            if key.startswith("repositories/"):
                raise OSError(28, "No space left on device")
            await write(key, body, committed=committed)

        monkeypatch.setattr(tree, "write", refusing)
        assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body == LAYER
        assert not list((store / "repositories").rglob(digest[7:]))
        monkeypatch.setattr(tree, "write", write)
        await proxy.app.housekeeping._round(None)
        assert list((store / "repositories").rglob(digest[7:]))


async def test_what_others_have_recorded_counts_though_the_disk_takes_none_of_it(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = await filled(upstream, bucket, store)
    await upstream.go_down()
    async with cached(configured(upstream.url, bucket), tmp_path / "full") as proxy:
        disk = FaultyDisk(monkeypatch)
        disk.fail(Point("any", 1, errno.ENOSPC))
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).body == image.body
        disk.heal()
        await pull(proxy, image)


BIG = bytes(range(256)) * (12 * 1024 * 1024 // 256)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large begins at less."""
    monkeypatch.setattr(s3_uploads, "PART", 5 * 1024 * 1024)
    monkeypatch.setattr(fill, "LARGE", 10 * 1024 * 1024)


@pytest.mark.usefixtures("small_parts")
async def test_a_large_blob_is_uploaded_while_it_comes_and_is_there_once_it_is_right(
    upstream: FakeRegistry, bucket: TestBucket, store: Path
) -> None:
    digest = upstream.add_blob(REPO, BIG)
    gate = upstream.on("GET", blob=digest).gate(after=11 * 1024 * 1024)
    async with cached(configured(upstream.url, bucket), store) as proxy:
        pulling = asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}"))
        await gate.reached.wait()
        async with asyncio.timeout(DEADLINE):
            while [len(BIG[: 5 * 1024 * 1024])] * 2 != await hop(bucket.parts):  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.02)
        assert key_of(digest) not in await hop(bucket.keys)
        gate.open()
        assert (await pulling).body == BIG
        await uploaded(store)
        sent = proxy.metrics.registry.get_sample_value("entrepot_bucket_bytes_total", {"direction": "up"}) or 0.0
        assert len(BIG) <= sent < 2 * len(BIG)
    assert await hop(bucket.__getitem__, key_of(digest)) == BIG
    assert await hop(bucket.uploads) == []


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("ending", ["wrong bytes", "shutdown"])
async def test_of_a_large_blob_that_does_not_come_right_nothing_is_in_the_bucket(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, ending: str
) -> None:
    digest = upstream.add_blob(REPO, BIG)
    rule = upstream.on("GET", blob=digest)
    gate = (rule.wrong_bytes() if ending == "wrong bytes" else rule).gate(after=11 * 1024 * 1024)
    async with cached(configured(upstream.url, bucket), store) as proxy:
        pulling = asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}"))
        await gate.reached.wait()
        async with asyncio.timeout(DEADLINE):
            while not await hop(bucket.parts):  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.02)
        if ending == "wrong bytes":
            gate.open()
            assert (await pulling).ended == "short"
            await proxy.settled()
    pulling.cancel()
    assert key_of(digest) not in await hop(bucket.keys)
    assert await hop(bucket.uploads) == []


async def test_a_manifest_that_lies_about_a_size_costs_the_bucket_nothing(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, tmp_path: Path
) -> None:
    image = await filled(upstream, bucket, store)
    layer = image.layer_digests[0]
    liar = image.body.replace(b'"size": %d' % len(LAYER), b'"size": %d' % (len(LAYER) + 1)).replace(
        b'"size":%d' % len(LAYER), b'"size":%d' % (len(LAYER) + 1)
    )
    assert liar != image.body
    upstream.add_manifest("evil/app", liar, tags=["v1"])
    async with cached(configured(upstream.url, bucket), tmp_path / "other") as proxy:
        assert (await proxy.get("/v2/evil/app/manifests/v1")).body == liar
        assert (await proxy.get(f"/v2/evil/app/blobs/{layer}")).status >= 400
    assert await hop(bucket.__getitem__, key_of(layer)) == LAYER


async def test_what_a_bad_beginning_on_disk_makes_wrong_costs_the_bucket_nothing(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, tmp_path: Path
) -> None:
    image = await filled(upstream, bucket, store)
    layer, other = image.layer_digests[0], tmp_path / "other"
    async with cached(configured(upstream.url, bucket), other) as proxy:
        await hop((other / "spool" / layer.replace(":", "-")).write_bytes, b"rotten " * 100)
        answer = await proxy.get(f"/v2/{REPO}/blobs/{layer}")
        assert answer.ended != "complete" or answer.body == LAYER
        assert (await proxy.get(f"/v2/{REPO}/blobs/{layer}")).body == LAYER
        assert not [record for record in proxy.log if record["event"] == "object removed from the bucket"]


async def test_a_tag_waits_for_nobodys_layers(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never, upload = asyncio.Event(), s3.Bucket.upload

    async def slow(self: s3.Bucket, key: str, *rest: object) -> None:
        if key.startswith("blobs/"):
            await never.wait()
        await upload(self, key, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(s3.Bucket, "upload", slow)
    image = upstream.add_image(REPO, "v1", [b"layer %d" % number for number in range(6)])
    async with cached(configured(upstream.url, bucket), store) as proxy:
        await pull(proxy, image)
        await until(lambda: all(key.startswith("blobs/") for key in pending(store)), "all that is small is uploaded")
        assert any("/_tags/" in key for key in await hop(bucket.keys))
        never.set()
        await uploaded(store)
