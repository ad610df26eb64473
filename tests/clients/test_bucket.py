"""A cache with a bucket behind it, on a server that holds signatures against what they were made for; real clients."""

import hashlib
import http.client
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from .buckets import BUCKET, SECRET, USER, Bucket, what_is_missing
from .containerd import Containerds
from .dockerd import Dockers
from .entrepot import Entrepot
from .images import Image, everything
from .podman import Podmans
from .processes import wait_until
from .pulling import Client
from .registries import Upstreams
from .skopeo import Skopeo

TABLE = """
[store.s3]
bucket = "{bucket}"
prefix = "cache/"
endpoint_url = "http://127.0.0.1:{port}"
region = "us-east-1"
addressing = "path"
"""

REDIRECTS = """
redirect_networks = ["127.0.0.0/8"]
redirect_for = "5s"
"""

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """The bucket, and its keys in the environment of what is started."""
    missing = what_is_missing()
    if missing is not None:
        pytest.skip(missing)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", USER)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    one = Bucket(tmp_path)
    with one.running():
        yield one


def test_a_second_machine_serves_an_image_from_the_bucket_while_the_registry_is_down(
    bucket: Bucket, tmp_path: Path
) -> None:
    images = everything()
    image = images["large"]
    upstreams = Upstreams(tmp_path, images)
    table = TABLE.format(bucket=BUCKET, port=bucket.port)
    with upstreams.running():
        pulled(tmp_path / "one", upstreams, image, table)
        with upstreams.stopped():
            pulled(tmp_path / "two", upstreams, image, table)


def test_clients_that_are_sent_to_the_bucket_pull_from_there(
    bucket: Bucket, workplace: Path, upstreams: Upstreams, bridge: str
) -> None:
    image = everything()["large"]
    table = TABLE.format(bucket=BUCKET, port=bucket.port)
    pulled(workplace / "one", upstreams, image, table)
    proxy = Entrepot(workplace, upstreams.urls, tables=table + REDIRECTS)
    podmans, containerds = Podmans(workplace, proxy.address), Containerds(workplace, proxy.url)
    dockers = Dockers(workplace, proxy.url, bridge)
    clients: dict[str, Callable[[], AbstractContextManager[Client]]] = {
        "containers/": podmans.empty, "containerd/": containerds.empty, "docker/": dockers.empty,
    }  # fmt: skip
    with upstreams.stopped():
        for agent, empty in clients.items():
            bucket.forget()
            with proxy.running(), empty() as client:
                assert client.pull(image.name) == image.digest
                assert client.run(image.name) == image.says
            assert redirected(proxy, agent) == image.pulled
            assert {status for blob in image.pulled for status in bucket.served(blob)} == {200}
        with proxy.running():
            Skopeo(workplace, proxy.address).copy(image, image.name)
        assert redirected(proxy, "skopeo/") == image.blobs


def test_a_url_is_good_for_one_object_to_get_and_for_a_while(
    bucket: Bucket, tmp_path: Path, upstreams: Upstreams
) -> None:
    image = everything()["large"]
    table = TABLE.format(bucket=BUCKET, port=bucket.port)
    pulled(tmp_path / "one", upstreams, image, table)
    proxy = Entrepot(tmp_path, upstreams.urls, tables=table + REDIRECTS)
    one, other = sorted(image.pulled)[:2]
    with proxy.running():
        status, url, _ = asked("GET", f"{proxy.url}/v2/{image.repository}/blobs/{one}?ns=docker.io")
        assert (status, url is not None) == (307, True)
        assert proxy.log.read_text().count("X-Amz-") == 0
        assert digest(asked("GET", str(url))[2]) == one
        for method in ("HEAD", "PUT", "DELETE"):
            assert (method, asked(method, str(url))[0]) == (method, 403)
        assert asked("GET", str(url).replace(hex_of(one), hex_of(other)))[0] == 403
        assert asked("GET", str(url).replace("X-Amz-Expires=5", "X-Amz-Expires=500"))[0] == 403
        assert digest(asked("GET", str(url))[2]) == one
        wait_until(lambda: asked("GET", str(url))[0] == 403, "the URL has expired", timeout=20)


def redirected(proxy: Entrepot, agent: str) -> frozenset[str]:
    """The blobs that a client was sent elsewhere for; it got none from the proxy."""
    blobs = [request for request in proxy.requests() if request.kind == "blob" and request.agent.startswith(agent)]
    assert {(request.status, request.outcome) for request in blobs} == {(307, "redirect")}
    return frozenset(request.reference for request in blobs)


def asked(method: str, url: str) -> tuple[int, str | None, bytes]:
    """The answer to a client that says it is containerd: status, Location, body."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", headers={"User-Agent": "containerd/1.7.2"})
        answer = connection.getresponse()
        return answer.status, answer.getheader("Location"), answer.read()
    finally:
        connection.close()


def digest(body: bytes) -> str:
    """What a body is called."""
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def hex_of(name: str) -> str:
    """The part of a blob's key that two blobs differ in."""
    encoded = name.rpartition(":")[2]
    return f"{encoded[:2]}/{encoded}"


def pulled(directory: Path, upstreams: Upstreams, image: Image, table: str) -> None:
    """A machine of its own pulls an image, and uploads what it has brought in."""
    directory.mkdir()
    proxy = Entrepot(directory, upstreams.urls, tables=table)
    with proxy.running():
        Skopeo(directory, proxy.address).copy(image, image.name)
        wait_until(lambda: not proxy.waiting(), "everything is uploaded")
