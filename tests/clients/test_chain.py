"""What may be behind the cache: a plain registry, another pull-through cache, a registry whose blobs are on S3."""

import contextlib
import hashlib
import http.client
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from . import buckets
from .buckets import Bucket
from .entrepot import Entrepot
from .images import Content, Image
from .podman import Podmans
from .pulling import Scene
from .registries import Mirrors, Stored, Upstreams
from .skopeo import Skopeo
from .wires import Wire

HUB = "docker.io"
PRIVATE = 'private_networks = ["127.0.0.0/8"]\n'
SHAPES = ("index", "layered", "large")
CUT = 10_000_000  # bytes, of a layer of 50 MB

# For the first that needs an S3 server, which has to be built.
LONG = pytest.mark.timeout(900, method="signal")


@dataclass(frozen=True)
class Behind:
    """What is behind the cache. Blobs come over the wire; from the bucket, if they are on S3."""

    upstreams: Upstreams
    url: str
    wire: Wire
    bucket: Bucket | None = None

    def whole(self, image: Image, blob: Content) -> int:
        """How often a blob was sent from its beginning."""
        if self.bucket is not None:
            return self.bucket.asked(blob.digest).count(("GET", 200))
        return self.upstreams.of(image).asked(image, blob.digest).count(("GET", 200))


@pytest.fixture(scope="session")
def on_s3(upstreams: Upstreams) -> Iterator[Behind]:
    """docker-registry with its content on S3, where it sends everybody with a signed URL."""
    reason = buckets.what_is_missing()
    if reason is not None:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="entrepot-s3-") as name:
        wire = Wire()
        bucket = Bucket(Path(name), door=wire.port)
        stored = Stored(Path(name), {shape: upstreams.images[shape] for shape in SHAPES}, bucket.driver)
        with wire.to(bucket.port), bucket.running(), stored.running():
            yield Behind(stored, stored.urls[HUB], wire, bucket)


@pytest.fixture(params=["a registry", "a mirror", "a registry on S3"])
def behind(request: pytest.FixtureRequest, workplace: Path, upstreams: Upstreams) -> Iterator[Behind]:
    """Each of them, with nothing counted yet."""
    with contextlib.ExitStack() as stack:
        if request.param == "a registry on S3":
            found: Behind = request.getfixturevalue("on_s3")
        else:
            near = upstreams
            if request.param == "a mirror":
                near = Mirrors(workplace, upstreams)
                stack.enter_context(near.started())
            wire = stack.enter_context(Wire().to(int(near.urls[HUB].rpartition(":")[2])))
            found = Behind(near, f"http://127.0.0.1:{wire.port}", wire)
        upstreams.forget()
        found.upstreams.forget()
        if found.bucket is not None:
            found.bucket.forget()
        yield found


@pytest.fixture
def scene(workplace: Path, behind: Behind) -> Iterator[Scene]:
    """The cache, with nothing in it yet, in front of it."""
    proxy = Entrepot(workplace, {HUB: behind.url}, more=PRIVATE)
    with proxy.running():
        yield Scene(proxy, behind.upstreams)


def ask(scene: Scene, method: str, target: str, part: str | None = None) -> tuple[http.client.HTTPResponse, bytes]:
    """One request to the cache: the answer and its body."""
    with contextlib.closing(http.client.HTTPConnection(scene.proxy.address, timeout=60)) as connection:
        connection.request(method, target, headers={} if part is None else {"Range": part})
        answer = connection.getresponse()
        return answer, answer.read()


@LONG
@pytest.mark.parametrize("shape", ["index", "layered"])
def test_podman_pulls_through_both_and_again_from_the_cache_alone(scene: Scene, podmans: Podmans, shape: str) -> None:
    image = scene.upstreams.images[shape]
    scene.pulls_cold_and_again_without_upstream(podmans.empty, image, image.name, "containers/")


@LONG
@pytest.mark.parametrize("shape", ["index", "large"])
def test_skopeo_copies_everything_through_both_for_one_transfer_of_each_blob(
    scene: Scene, skopeo: Skopeo, behind: Behind, shape: str
) -> None:
    image = scene.upstreams.images[shape]
    for _ in range(2):
        with scene.proxy.serves(image.blobs, "skopeo/"):
            skopeo.copy(image, image.name)
    assert {behind.whole(image, blob) for manifest in image.manifests for blob in manifest.blobs} == {1}


@LONG
def test_head_and_ranges_are_answered_whatever_is_behind(scene: Scene, behind: Behind) -> None:
    image = scene.upstreams.images["index"]
    blob = image.manifests[0].blobs[1]
    target = f"/v2/{image.repository}/blobs/{blob.digest}"
    tag, _ = ask(scene, "HEAD", f"/v2/{image.repository}/manifests/latest")
    assert (tag.status, tag.headers["Docker-Content-Digest"]) == (200, image.digest)
    for _ in ("cold", "warm"):
        head, _ = ask(scene, "HEAD", target)
        assert (head.status, head.headers["Content-Length"]) == (200, str(len(blob.body)))
        part, body = ask(scene, "GET", target, "bytes=100-199")
        assert (part.status, body) == (206, blob.body[100:200])
        assert part.headers["Content-Range"] == f"bytes 100-199/{len(blob.body)}"
        tail, body = ask(scene, "GET", target, "bytes=-50")
        assert (tail.status, body) == (206, blob.body[-50:])
        beyond, _ = ask(scene, "GET", target, f"bytes={len(blob.body)}-")
        assert beyond.status == 416
        whole, body = ask(scene, "GET", target)
        assert (whole.status, body) == (200, blob.body)
    assert behind.whole(image, blob) == 1


@LONG
def test_a_transfer_that_is_cut_goes_on_and_the_client_sees_nothing_of_it(scene: Scene, behind: Behind) -> None:
    image = scene.upstreams.images["large"]
    blob = max(image.manifests[0].blobs, key=lambda found: len(found.body))
    behind.wire.cut_once(CUT)
    answer, body = ask(scene, "GET", f"/v2/{image.repository}/blobs/{blob.digest}")
    assert (answer.status, f"sha256:{hashlib.sha256(body).hexdigest()}") == (200, blob.digest)
    assert behind.wire.cuts == 1
    if behind.bucket is not None:
        assert {status for _, status in behind.bucket.asked(blob.digest)} == {200, 206}


@LONG
@pytest.mark.parametrize("behind", ["a registry on S3"], indirect=True)
def test_a_url_of_s3_is_used_for_what_it_was_signed_for_only(scene: Scene, behind: Behind) -> None:
    image = scene.upstreams.images["index"]
    assert behind.bucket is not None
    for blob in image.manifests[0].blobs:
        for method in ("HEAD", "GET"):
            answer, _ = ask(scene, method, f"/v2/{image.repository}/blobs/{blob.digest}")
            assert answer.status == 200
        assert behind.bucket.asked(blob.digest) == [("GET", 206), ("GET", 200)]  # a HEAD takes one byte


@LONG
def test_what_is_missing_behind_is_missing(scene: Scene) -> None:
    for what, code in (("manifests/no-such-tag", b"MANIFEST_UNKNOWN"), (f"blobs/sha256:{'a' * 64}", b"BLOB_UNKNOWN")):
        answer, body = ask(scene, "GET", f"/v2/library/alpine/{what}")
        assert (answer.status, code in body) == (404, True)
