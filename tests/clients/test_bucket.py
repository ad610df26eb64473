"""A cache with a bucket behind it, on a server that holds signatures against what they were made for; a real client."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .buckets import BUCKET, SECRET, USER, Bucket, what_is_missing
from .entrepot import Entrepot
from .images import Image, everything
from .processes import wait_until
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


def pulled(directory: Path, upstreams: Upstreams, image: Image, table: str) -> None:
    """A machine of its own pulls an image, and uploads what it has brought in."""
    directory.mkdir()
    proxy = Entrepot(directory, upstreams.urls, tables=table)
    with proxy.running():
        Skopeo(directory, proxy.address).copy(image, image.name)
        wait_until(lambda: not proxy.waiting(), "everything is uploaded")
