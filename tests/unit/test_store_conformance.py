"""What every store promises, run for each of them."""

import asyncio
import copy
import dataclasses
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from proxy.files import Handle
from proxy.oci.digest import Digest
from proxy.oci.reference import Repository, Tag
from proxy.sections.store import S3
from proxy.stores.base import BlobStore, Link, RepositoryStore, TagRecord
from proxy.stores.directory import open_tree
from proxy.stores.disk import DiskBlobs, DiskRepositories
from proxy.stores.durable import Durable
from proxy.stores.keys import spool_key
from proxy.stores.s3 import Bucket
from proxy.stores.s3_uploads import Uploader
from proxy.stores.tiered import TieredBlobs, TieredRepositories
from proxy.stores.uploads import Uploads
from proxy.telemetry import Metrics, quiet
from tests.buckets import KEYS, REGION, Server

BODY = b"verified bytes " * 1000


@dataclass(frozen=True, slots=True)
class Stores:
    """One kind of store: its two halves, how a verified spool comes about, and the same place seen anew."""

    blobs: BlobStore
    repositories: RepositoryStore
    spooled: Callable[[Digest, bytes], Awaitable[Handle]]
    reopened: Callable[[], "Stores"]


@pytest.fixture(scope="module")
async def shared(s3_server: Server) -> AsyncIterator[Bucket]:
    """A bucket for all of these tests: to open one takes a while."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in KEYS.items():
            environment.setenv(name, value)
        outside = await asyncio.to_thread(s3_server.bucket)
        settings = S3.model_validate({"bucket": outside.name, "endpoint_url": outside.url, "region": REGION})
        async with Bucket(settings) as one:
            yield one


@pytest.fixture(scope="module")
async def away() -> AsyncIterator[Bucket]:
    """A bucket that does not answer."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in KEYS.items():
            environment.setenv(name, value)
        settings = S3.model_validate({"bucket": "none", "endpoint_url": "http://127.0.0.1:9", "region": REGION})
        async with Bucket(settings) as one:
            yield one


async def alone(_digest: Digest, _size: int) -> bool:
    """There are no other replicas."""
    return False


def below_a_prefix(bucket: Bucket) -> Bucket:
    """The same, with nothing in it."""
    other = copy.copy(bucket)
    settings = bucket.access.settings.model_copy(update={"prefix": f"{secrets.token_hex(8)}/"})
    other.access = dataclasses.replace(bucket.access, settings=settings)
    other._uploader = Uploader(other.access)
    return other


@pytest.fixture(params=["disk", "bucket", "bucket away"])
async def stores(request: pytest.FixtureRequest, tmp_path: Path, shared: Bucket, away: Bucket) -> AsyncIterator[Stores]:
    """Each store there is, and the one with a bucket behind it also while that does not answer."""
    tree = await asyncio.to_thread(open_tree, tmp_path / "store")

    async def spooled(digest: Digest, body: bytes) -> Handle:
        key = spool_key(digest)
        handle = await tree.open_spool(key)
        await tree.inspect_spool(key, handle)
        (tree.root / key).write_bytes(body)
        return handle

    def opened() -> Stores:
        return Stores(DiskBlobs(tree), DiskRepositories(tree), spooled, opened)

    if request.param == "disk":
        yield opened()
    else:
        is_there = request.param == "bucket"
        durable = Durable(below_a_prefix(shared if is_there else away), Metrics(CollectorRegistry()), quiet())

        def tiered() -> Stores:
            uploads = Uploads(tree, durable, alone, Metrics(CollectorRegistry()), quiet())
            return Stores(
                TieredBlobs(tree, durable, uploads), TieredRepositories(tree, durable, uploads), spooled, tiered
            )

        yield tiered()
    tree.close()


@pytest.fixture(params=["sha256", "sha512"])
def digest(request: pytest.FixtureRequest) -> Digest:
    """The digest of BODY, by each algorithm."""
    return Digest.of(BODY, request.param)


def repository(name: str = "library/app", registry: str = "docker.io") -> Repository:
    """A repository."""
    return Repository(registry, name)


async def body_of(blobs: BlobStore, digest: Digest) -> bytes | None:
    """A whole blob."""
    handle = await blobs.open(digest)
    if handle is None:
        return None
    try:
        body = await handle.read(0, handle.size + 1)
    finally:
        handle.close()
    assert len(body) == handle.size
    return body


# Blobs


async def test_a_blob_that_was_never_stored_is_not_there(stores: Stores, digest: Digest) -> None:
    assert await stores.blobs.open(digest) is None


async def test_what_is_put_is_there(stores: Stores, digest: Digest) -> None:
    await stores.blobs.put(digest, BODY)
    assert await body_of(stores.blobs, digest) == BODY
    assert await body_of(stores.reopened().blobs, digest) == BODY


async def test_what_is_adopted_is_there(stores: Stores, digest: Digest) -> None:
    spool = await stores.spooled(digest, BODY)
    await stores.blobs.adopt(digest, spool)
    spool.close()
    assert await body_of(stores.blobs, digest) == BODY
    assert await body_of(stores.reopened().blobs, digest) == BODY


async def test_an_adopted_spool_can_still_be_read_by_who_follows_it(stores: Stores, digest: Digest) -> None:
    spool = await stores.spooled(digest, BODY)
    await stores.blobs.adopt(digest, spool)
    assert await spool.read(15, 15) == BODY[15:30]
    spool.close()


async def test_putting_twice_changes_nothing(stores: Stores, digest: Digest) -> None:
    await stores.blobs.put(digest, BODY)
    reader = await stores.blobs.open(digest)
    assert reader is not None
    await stores.blobs.put(digest, BODY)
    assert await reader.read(0, len(BODY)) == BODY
    reader.close()
    assert await body_of(stores.blobs, digest) == BODY


async def test_a_blob_without_bytes_is_stored(stores: Stores) -> None:
    empty = Digest.of(b"")
    await stores.blobs.put(empty, b"")
    assert await body_of(stores.blobs, empty) == b""


async def test_what_is_removed_is_gone_but_for_who_reads_it(stores: Stores, digest: Digest) -> None:
    await stores.blobs.put(digest, BODY)
    reader = await stores.blobs.open(digest)
    assert reader is not None
    await stores.blobs.remove(digest, reader)
    assert await stores.blobs.open(digest) is None
    assert await reader.read(0, len(BODY)) == BODY
    reader.close()


async def test_a_blob_is_known_once_it_was_opened_until_it_is_gone(stores: Stores, digest: Digest) -> None:
    await stores.blobs.put(digest, BODY)
    assert not stores.blobs.is_known(digest)
    reader = await stores.blobs.open(digest)
    assert reader is not None
    assert stores.blobs.is_known(digest)
    await stores.blobs.remove(digest, reader)
    reader.close()
    assert not stores.blobs.is_known(digest)
    await stores.blobs.put(digest, BODY)
    assert await body_of(stores.blobs, digest) == BODY
    assert stores.blobs.is_known(digest)


async def test_what_has_taken_the_place_of_a_damaged_blob_stays(stores: Stores, digest: Digest) -> None:
    await stores.blobs.put(digest, BODY)
    damaged = await stores.blobs.open(digest)
    assert damaged is not None
    await stores.blobs.remove(digest, damaged)
    await stores.blobs.remove(digest, damaged)  # it is gone: no error
    await stores.blobs.put(digest, BODY)
    await stores.blobs.remove(digest, damaged)
    damaged.close()
    assert await body_of(stores.blobs, digest) == BODY


async def test_the_same_bytes_by_another_algorithm_are_another_blob(stores: Stores) -> None:
    await stores.blobs.put(Digest.of(BODY), BODY)
    assert await stores.blobs.open(Digest.of(BODY, "sha512")) is None


async def test_any_part_of_a_blob_can_be_read(stores: Stores, digest: Digest) -> None:
    await stores.blobs.put(digest, BODY)
    handle = await stores.blobs.open(digest)
    assert handle is not None
    assert handle.size == len(BODY)
    assert await handle.read(100, 50) == BODY[100:150]
    assert await handle.read(len(BODY) - 1, 50) == BODY[-1:]
    assert await handle.read(len(BODY), 50) == b""
    handle.close()


async def test_a_use_of_what_is_not_there_is_no_error(stores: Stores, digest: Digest) -> None:
    stores.blobs.used(digest)


# Links


@pytest.mark.parametrize(
    "link", [Link(), Link(0), Link(7), Link(2**62), Link(7, "application/vnd.oci.image.index.v1+json")]
)
async def test_a_link_is_remembered(stores: Stores, digest: Digest, link: Link) -> None:
    assert await stores.repositories.link(repository(), digest) is None
    await stores.repositories.put_link(repository(), digest, link)
    assert await stores.repositories.link(repository(), digest) == link
    assert await stores.reopened().repositories.link(repository(), digest) == link


async def test_a_link_is_corrected(stores: Stores, digest: Digest) -> None:
    for link in (Link(None), Link(7), Link(8, "a/b"), Link(8, "a/b")):
        await stores.repositories.put_link(repository(), digest, link)
        assert await stores.repositories.link(repository(), digest) == link
        assert await stores.reopened().repositories.link(repository(), digest) == link


@pytest.mark.parametrize(
    "other",
    [
        repository("library/ap"),
        repository("library/app/more"),
        repository("app"),
        repository("library"),
        repository(registry="ghcr.io"),
        repository(registry="docker.io:443"),
    ],
)
async def test_a_link_of_one_repository_is_none_of_another(stores: Stores, digest: Digest, other: Repository) -> None:
    await stores.repositories.put_link(repository(), digest, Link(7))
    assert stores.repositories.is_known(repository(), digest)
    assert not stores.repositories.is_known(other, digest)
    assert await stores.repositories.link(other, digest) is None


async def test_a_link_says_nothing_of_another_digest(stores: Stores, digest: Digest) -> None:
    await stores.repositories.put_link(repository(), digest, Link(7))
    assert await stores.repositories.link(repository(), Digest.of(b"other", digest.algorithm)) is None


# Tags


async def test_a_tag_is_remembered_and_moved(stores: Stores, digest: Digest) -> None:
    tag = Tag("v1.0")
    assert await stores.repositories.tag(repository(), tag) is None
    for record in (TagRecord(digest, 1e9), TagRecord(Digest.of(b"other"), 2e9 + 0.25)):
        await stores.repositories.put_tag(repository(), tag, record)
        assert await stores.repositories.tag(repository(), tag) == record
        assert await stores.reopened().repositories.tag(repository(), tag) == record
    assert await stores.repositories.tag(repository("library/other"), tag) is None
    assert await stores.repositories.tag(repository(), Tag("v1")) is None


async def test_a_dropped_tag_is_forgotten(stores: Stores, digest: Digest) -> None:
    tag = Tag("latest")
    await stores.repositories.drop_tag(repository(), tag)
    await stores.repositories.put_tag(repository(), tag, TagRecord(digest, 1.0))
    await stores.repositories.drop_tag(repository(), tag)
    assert await stores.repositories.tag(repository(), tag) is None


@pytest.mark.parametrize("name", ["_tags", "_links", "v1", "x" * 128])
async def test_no_tag_collides_with_anything(stores: Stores, digest: Digest, name: str) -> None:
    await stores.repositories.put_link(repository(), digest, Link(7))
    await stores.repositories.put_tag(repository(), Tag(name), TagRecord(digest, 1.0))
    await stores.repositories.put_tag(repository("library/app/v1"), Tag(name), TagRecord(digest, 2.0))
    assert await stores.repositories.tag(repository(), Tag(name)) == TagRecord(digest, 1.0)
    assert await stores.repositories.link(repository(), digest) == Link(7)


async def test_a_frozen_tag_stays_whoever_records_it_at_the_same_moment(stores: Stores, digest: Digest) -> None:
    repositories, tag = stores.repositories, Tag("v1")
    others = [TagRecord(Digest.of(str(number).encode()), float(number)) for number in range(20)]
    frozen = TagRecord(digest, 5.0, is_frozen=True)
    await asyncio.gather(
        *(repositories.put_tag(repository(), tag, record) for record in (*others[:10], frozen, *others[10:]))
    )
    assert await repositories.tag(repository(), tag) == frozen
    assert await repositories.put_tag(repository(), tag, others[0]) is False
    again = TagRecord(others[0].digest, 6.0, is_frozen=True)
    assert await repositories.put_tag(repository(), tag, again) is True
    assert await repositories.put_tag(repository(), tag, others[1], thaws=True) is True
    assert await stores.reopened().repositories.tag(repository(), tag) == others[1]


async def test_many_writers_of_one_record_leave_a_whole_one(stores: Stores, digest: Digest) -> None:
    tag = Tag("v1")
    records = [TagRecord(digest, float(number)) for number in range(50)]
    await asyncio.gather(*(stores.repositories.put_tag(repository(), tag, record) for record in records))
    assert await stores.reopened().repositories.tag(repository(), tag) in records
