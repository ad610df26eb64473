"""A real S3 server in this process (moto's), and an empty bucket on it for each test that wants one."""

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import boto3  # type: ignore[import-untyped]  # it has no types
from moto.core.utils import utcnow
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

REGION = "us-east-1"
KEYS = {
    "AWS_ACCESS_KEY_ID": "made-up", "AWS_SECRET_ACCESS_KEY": "made-up-secret",
    "AWS_CONFIG_FILE": "/nowhere", "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
}  # fmt: skip


@dataclass(frozen=True)
class Server:
    """Where an S3 server listens."""

    url: str

    def bucket(self) -> "TestBucket":
        """A new bucket on it."""
        client = boto3.client(
            "s3", endpoint_url=self.url, region_name=REGION, aws_access_key_id="made-up",
            aws_secret_access_key="made-up-secret",
        )  # fmt: skip
        name = f"images-{secrets.token_hex(4)}"
        client.create_bucket(Bucket=name)
        return TestBucket(self.url, name, client)


@dataclass(frozen=True)
class TestBucket:
    """A bucket as an outsider sees it: blocking, and by another library than the product's."""

    __test__ = False  # no test of pytest's

    url: str
    name: str
    client: object

    def __getitem__(self, key: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()  # type: ignore[attr-defined]
        return body

    def __setitem__(self, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=body)  # type: ignore[attr-defined]

    def __delitem__(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=key)  # type: ignore[attr-defined]

    def parts(self) -> list[int]:
        """The sizes of the parts of all uploads that have begun and not ended."""
        listed = [
            self.client.list_parts(Bucket=self.name, Key=key, UploadId=upload)  # type: ignore[attr-defined]
            for key, upload in self._begun()
        ]
        return [part["Size"] for one in listed for part in one.get("Parts", ())]

    def head(self, key: str) -> dict[str, object]:
        """What is said of an object."""
        found: dict[str, object] = self.client.head_object(Bucket=self.name, Key=key)  # type: ignore[attr-defined]
        return found

    def keys(self, prefix: str = "") -> list[str]:
        """The keys of all objects there are, below a prefix; a thousand at most."""
        page = self.client.list_objects_v2(Bucket=self.name, Prefix=prefix)  # type: ignore[attr-defined]
        return [entry["Key"] for entry in page.get("Contents", ())]

    def age(self, key: str, days: float) -> None:
        """Have an object be written so many days ago: moto keeps it in this process."""
        (backend,) = (one for account in s3_backends.values() for one in account.values() if self.name in one.buckets)
        backend.buckets[self.name].keys[key].last_modified = utcnow() - timedelta(days=days)

    def uploads(self) -> list[str]:
        """The keys of uploads that have begun and not ended."""
        return [key for key, _ in self._begun()]

    def _begun(self) -> list[tuple[str, str]]:
        page = self.client.list_multipart_uploads(Bucket=self.name)  # type: ignore[attr-defined]
        return [(entry["Key"], entry["UploadId"]) for entry in page.get("Uploads", ())]


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """Start it, on a free port of 127.0.0.1."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    try:
        yield Server(f"http://{host}:{port}")
    finally:
        moto.stop()
