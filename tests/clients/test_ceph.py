"""A cache with a bucket of Ceph's behind it, over HTTPS with an authority of its own: what works, and what is said."""

import asyncio
import contextlib
import http.client
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustme

from proxy import trial
from proxy.sections.store import S3
from proxy.stores.s3 import Bucket
from proxy.stores.s3_errors import Taken
from tests.buckets import TestBucket

from .ceph import SECRET, USER, Ceph
from .entrepot import Entrepot
from .images import Content, Image
from .processes import wait_until
from .registries import Upstreams
from .skopeo import Skopeo
from .wires import Wire

HUB = "docker.io"
MIDDLE = 10_000_000  # bytes, of a layer of 20 MB, and of its first part of 16 MiB


@pytest.fixture
def bucket(ceph: Ceph, monkeypatch: pytest.MonkeyPatch) -> TestBucket:
    """An empty bucket, and the keys to it in the environment of what is started."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", USER)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return ceph.bucket()


@pytest.fixture
def image(upstreams: Upstreams) -> Image:
    """One with a layer that is uploaded by parts; nothing of it has been counted yet."""
    upstreams.forget()
    return upstreams.images["parted"]


class Replica:
    """A cache with a directory of its own, and a client of it."""

    def __init__(self, directory: Path, upstreams: Mapping[str, str], table: Mapping[str, Any]) -> None:
        directory.mkdir()
        lines = "".join(f'{key} = "{value}"\n' for key, value in table.items())
        self.proxy = Entrepot(directory, upstreams, more="connections_per_blob = 1\n", tables=f"\n[store.s3]\n{lines}")
        self._skopeo = Skopeo(directory, self.proxy.address)

    def pull(self, image: Image) -> None:
        """Copy all of an image. Raises AssertionError unless every byte of it comes."""
        self._skopeo.copy(image, image.name)

    def upload(self) -> None:
        """Wait until the bucket has all that is here."""
        wait_until(lambda: not self.proxy.waiting(), "everything is uploaded")


def test_check_finds_nothing_to_mend(ceph: Ceph, bucket: TestBucket, workplace: Path) -> None:
    said = Replica(workplace / "one", {HUB: "http://127.0.0.1:9"}, ceph.table(bucket)).proxy.command("check")
    assert f"bucket {bucket.name}" in said
    assert bucket.keys() == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"checksums": "when_supported"}, 'takes no checksums as trailers: set store.s3.checksums = "when_required"'),
        ({"ca_file": None}, "its certificate could not be verified: check store.s3.ca_file"),
        ({"bucket": "no-such-bucket"}, "there is no such bucket: create it, or check store.s3.bucket"),
        ({"encryption": "AES256"}, "it takes store.s3.encryption and does not say that it encrypts"),
        ({"encryption": "aws:kms", "kms_key_id": "none"}, "check store.s3.encryption, kms_key_id and"),
        (
            {"expected_bucket_owner": "123456789012"},
            "it does not look whose the bucket is: leave store.s3.expected_bucket_owner out",
        ),
        ({"storage_class": [{"name": "STANDARD_IA", "min_size": "1 MiB"}]}, "kms_key_id and storage_class"),
    ],
)
async def test_what_this_store_does_not_do_is_said_by_the_key_that_would_mend_it(
    ceph: Ceph, bucket: TestBucket, changed: dict[str, Any], said: str
) -> None:
    found = await trial.bucket_problems(S3.model_validate(ceph.table(bucket, **changed)))
    assert len(found) == 1
    assert said in found[0]
    assert bucket.keys() == []


async def test_urls_that_are_signed_for_others_lead_to_its_objects(ceph: Ceph, bucket: TestBucket) -> None:
    table = ceph.table(bucket, redirect_networks=["127.0.0.0/8"])
    assert await trial.bucket_problems(S3.model_validate(table)) == []


async def test_another_authority_than_its_own_is_told_by_ca_file(
    ceph: Ceph, bucket: TestBucket, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    found = await trial.bucket_problems(S3.model_validate(ceph.table(bucket, ca_file=str(other))))
    assert found == [f"store.s3: {bucket.name}: its certificate could not be verified: check store.s3.ca_file"]


async def test_keys_that_it_does_not_know_are_told_from_a_secret_that_is_wrong(
    ceph: Ceph, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = S3.model_validate(ceph.table(bucket))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "the secret of the access key is wrong" in (await trial.bucket_problems(settings))[0]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    assert "does not know the access key of this machine" in (await trial.bucket_problems(settings))[0]


def test_a_second_machine_serves_an_image_from_the_bucket_while_the_registry_is_down(
    ceph: Ceph, bucket: TestBucket, workplace: Path, upstreams: Upstreams, image: Image
) -> None:
    one = Replica(workplace / "one", upstreams.urls, ceph.table(bucket))
    two = Replica(workplace / "two", upstreams.urls, ceph.table(bucket))
    with one.proxy.running():
        one.pull(image)
        one.upload()
    assert {key_of(digest) for digest in {image.digest, *image.blobs}} <= set(bucket.keys())
    assert bucket[key_of(layer(image).digest)] == layer(image).body
    with upstreams.stopped(), two.proxy.running():
        two.pull(image)


def test_an_object_that_was_tampered_with_is_never_completed_and_is_removed(
    ceph: Ceph, bucket: TestBucket, workplace: Path, upstreams: Upstreams, image: Image
) -> None:
    key = key_of(layer(image).digest)
    one = Replica(workplace / "one", upstreams.urls, ceph.table(bucket))
    with one.proxy.running():
        one.pull(image)
        one.upload()
    bucket[key] = layer(image).body[:-1] + b"?"
    two = Replica(workplace / "two", upstreams.urls, ceph.table(bucket))
    with two.proxy.running(bears={"object removed from the bucket"}):
        with pytest.raises(http.client.IncompleteRead):
            got(two.proxy, f"/v2/{image.repository}/blobs/{layer(image).digest}")
        wait_until(lambda: key not in bucket.keys(), "what was wrong is gone")  # noqa: SIM118  no dict
        two.pull(image)  # from upstream
        two.upload()
    assert bucket[key] == layer(image).body


def test_an_upload_that_the_gateway_did_not_survive_is_made_again(
    ceph: Ceph, bucket: TestBucket, workplace: Path, upstreams: Upstreams, image: Image
) -> None:
    key = key_of(layer(image).digest)
    with Wire().to(ceph.port) as wire, wire.held(MIDDLE, is_down=False) as hold:
        one = Replica(workplace / "one", upstreams.urls, over(wire, ceph.table(bucket)))
        with one.proxy.running(bears={"bucket fails"}):
            one.pull(image)
            wait_until(lambda: hold.count > 0, "an upload is in the middle")
            assert bucket.uploads() == [key]
            ceph.kill_gateway()
            hold.reset()
            try:
                wait_until(lambda: one.proxy.has_said("bucket fails"), "the failure is noted")
                one.pull(image)  # from disk
            finally:
                ceph.start_gateway()
            one.upload()
            assert one.proxy.has_said("bucket answers again")
    assert bucket[key] == layer(image).body


async def test_of_many_that_write_a_new_object_one_does(ceph: Ceph, bucket: TestBucket) -> None:
    async with Bucket(S3.model_validate(ceph.table(bucket))) as opened:
        writing = [opened.write("new", b"%d" % number, is_new=True) for number in range(32)]
        outcomes = await asyncio.gather(*writing, return_exceptions=True)
        assert [outcome for outcome in outcomes if not isinstance(outcome, Taken)] == [None]
        assert await opened.read("new", 10) == b"%d" % outcomes.index(None)


async def test_uploads_that_nobody_ends_are_given_up(ceph: Ceph, bucket: TestBucket) -> None:
    client: Any = bucket.client
    for prefix in ("cache", "other"):
        client.create_multipart_upload(Bucket=bucket.name, Key=f"{prefix}/blobs/one")
    async with Bucket(S3.model_validate(ceph.table(bucket))) as opened:
        assert await opened.abandon(time.time() - 3600) == 0
        assert await opened.abandon(time.time() + 3600) == 1
    assert bucket.uploads() == ["other/blobs/one"]


@pytest.mark.parametrize("count", [2, 4])
def test_a_replica_that_dies_while_it_fetches_costs_the_clients_of_the_others_nothing(
    ceph: Ceph, bucket: TestBucket, workplace: Path, upstreams: Upstreams, image: Image, count: int
) -> None:
    with contextlib.ExitStack() as stack:
        wire = stack.enter_context(Wire().to(port_of(upstreams.urls[HUB])))
        hub = {HUB: f"http://127.0.0.1:{wire.port}"}
        first, *others = replicas(stack, workplace, hub, ceph.table(bucket), count)
        hold = stack.enter_context(wire.held(MIDDLE, is_down=True))
        clients = stack.enter_context(ThreadPoolExecutor())
        lost = clients.submit(first.pull, image)
        wait_until(lambda: hold.count > 0, "the first has a part of the layer")
        pulls = [clients.submit(other.pull, image) for other in others]
        wait_until(lambda: all(other.proxy.spooled(layer(image).digest) for other in others), "all others follow it")
        first.proxy.kill()
        hold.release()
        with pytest.raises(AssertionError):
            lost.result()
        for pull in [*pulls, clients.submit(others[0].pull, image)]:  # the client that was cut off asks another one
            pull.result()
        has_come(bucket, layer(image))
        sent = answers(upstreams, image)
        assert sent[206] == 1  # one of the others went on from the byte it had
        assert sent[200] <= 1  # the first, which the registry's log leaves out where it broke off


@pytest.mark.parametrize("count", [2, 4])
def test_a_replica_that_dies_while_it_uploads_costs_nobody_anything(
    ceph: Ceph, bucket: TestBucket, workplace: Path, upstreams: Upstreams, image: Image, count: int
) -> None:
    key = key_of(layer(image).digest)
    with contextlib.ExitStack() as stack:
        wire = stack.enter_context(Wire().to(ceph.port))
        table = over(wire, ceph.table(bucket))
        first, *others = replicas(stack, workplace, upstreams.urls, table, count)
        with wire.held(MIDDLE, is_down=False) as hold:
            first.pull(image)
            wait_until(lambda: hold.count > 0, "its upload is in the middle")
            first.proxy.kill()
        assert key not in bucket.keys()  # noqa: SIM118  no dict
        with ThreadPoolExecutor() as clients:
            for pull in [clients.submit(other.pull, image) for other in others]:
                pull.result()
        has_come(bucket, layer(image))
        assert answers(upstreams, image) == {200: 2}  # one for the first, and one for all others
        with upstreams.stopped(), first.proxy.running():  # it comes back, to what it had
            first.upload()
            first.pull(image)
        assert bucket[key] == layer(image).body


def has_come(bucket: TestBucket, blob: Content) -> None:
    """Wait until the bucket has a blob: one of the replicas has uploaded it. All of it is right."""
    wait_until(lambda: key_of(blob.digest) in bucket.keys(), "it is uploaded")  # noqa: SIM118  no dict
    assert bucket[key_of(blob.digest)] == blob.body


def answers(upstreams: Upstreams, image: Image) -> Counter[int]:
    """By which status upstream has sent the layer, and how often."""
    return Counter(status for _, status in upstreams.of(image).asked(image, layer(image).digest))


def replicas(
    stack: contextlib.ExitStack, directory: Path, upstreams: Mapping[str, str], table: Mapping[str, Any], count: int
) -> Sequence[Replica]:
    """So many of them on one bucket, running until the stack is left."""
    made = [Replica(directory / f"replica{number}", upstreams, table) for number in range(count)]
    for one in made:
        stack.enter_context(one.proxy.running())
    return made


def over(wire: Wire, table: Mapping[str, Any]) -> dict[str, Any]:
    """The same bucket, at the other end of a wire."""
    return {**table, "endpoint_url": f"https://127.0.0.1:{wire.port}"}


def port_of(url: str) -> int:
    """Where a server of the tests listens."""
    return int(url.rpartition(":")[2])


def layer(image: Image) -> Content:
    """Its largest layer."""
    return max(image.manifests[0].blobs, key=lambda blob: len(blob.body))


def key_of(digest: str) -> str:
    """The key of a blob."""
    _, _, encoded = digest.partition(":")
    return f"cache/blobs/sha256/{encoded[:2]}/{encoded}"


def got(proxy: Entrepot, path: str) -> bytes:
    """The body of an answer. Raises IncompleteRead."""
    with contextlib.closing(http.client.HTTPConnection(proxy.address, timeout=30)) as connection:
        connection.request("GET", path)
        return connection.getresponse().read()
