"""Bundles that are damaged or hostile: each is refused in one line, and nothing is linked."""

import asyncio
import contextlib
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy import importing
from proxy.eviction import Bounds, Space
from proxy.files import Tree, hop, reading
from proxy.fill import Means
from proxy.importing import ImportFailed, Importing
from proxy.intake import Intake
from proxy.oci import manifest
from proxy.oci.digest import Digest
from proxy.oci.layout import Entry
from proxy.oci.reference import Repository, Tag
from proxy.stores.directory import open_tree
from proxy.stores.disk import DiskBlobs, DiskRepositories
from proxy.stores.keys import spool_key
from proxy.telemetry import quiet
from tests.discarding import Discarding

APP, V1 = Repository("docker.io", "library/app"), Tag("v1")
LAYER, CONFIG = b"layer" * 1000, b"{}"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"

Files = dict[str, bytes]
Change = Callable[[Files], object]


def digest_of(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def path_of(body: bytes) -> str:
    return f"blobs/sha256/{hashlib.sha256(body).hexdigest()}"


def descriptor(body: bytes, media_type: str, **more: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(body), "size": len(body), **more}


def document(**changes: object) -> bytes:
    """The manifest of an image of one layer."""
    said: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": manifest.OCI_MANIFEST,
        "config": descriptor(CONFIG, "application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor(LAYER, LAYER_TYPE)],
    }
    return json.dumps(said | changes).encode()


def bundle(body: bytes = document(), media_type: str = manifest.OCI_MANIFEST, **more: object) -> Files:
    """A bundle with one image."""
    listed = descriptor(body, media_type, annotations={"io.containerd.image.name": "docker.io/library/app:v1"}, **more)
    return {
        **{path_of(one): one for one in dict.fromkeys((CONFIG, LAYER, body))},
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [listed]}).encode(),
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
    }


def packed(files: Mapping[str, bytes], first: Sequence[tarfile.TarInfo] = ()) -> bytes:
    """A tar of these files, after entries without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for entry in first:
            archive.addfile(entry)
        for name, body in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            archive.addfile(entry, io.BytesIO(body))
    return buffer.getvalue()


@dataclass
class Cache:
    """A cache that bundles are imported into."""

    tree: Tree
    means: Means
    repositories: DiskRepositories
    path: Path

    async def read(self, body: bytes) -> tuple[Importing, list[Entry]]:
        """Take the blobs of a bundle in."""
        self.path.write_bytes(body)
        one = Importing(self.means, self.repositories)
        async with reading(self.path) as stream:
            return one, list((await one.read(stream, lambda _: None)).entries)

    async def take(self, body: bytes) -> None:
        """Import every image of a bundle as app:v1."""
        one, entries = await self.read(body)
        for entry in entries:
            await one.image(APP, V1, entry)

    async def refuses(self, body: bytes, word: str) -> None:
        """Try to, be told in one line why not, and find that nothing is known of an image, and nothing wrong there."""
        with pytest.raises(ImportFailed) as refused:
            await self.take(body)
        assert word in str(refused.value)
        assert str(refused.value).isprintable()
        await hop(self._check)

    def _check(self) -> None:
        assert not self.tree.scan("repositories")
        assert not self.tree.scan("spool")
        assert not self.tree.scan("tmp")
        for entry in self.tree.scan("blobs"):
            stored = self.tree.read_now(entry.key, 10**8)
            assert stored is not None
            assert hashlib.sha256(stored).hexdigest() == entry.key.rpartition("/")[2]


@contextlib.contextmanager
def opened(tmp_path: Path, bounds: Bounds) -> Iterator[Cache]:
    """A cache of that size."""
    with contextlib.closing(open_tree(tmp_path / "cache")) as tree:
        store = DiskBlobs(tree)
        space = Space(tree, bounds, record_uses=store.record_uses, kept=frozenset, evicted=lambda _: None)
        space.open()
        yield Cache(
            tree, Means(tree, store, space, quiet(), spool_key), DiskRepositories(tree), tmp_path / "bundle.tar"
        )
        space._close()


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    """A cache with room for ten megabytes."""
    with opened(tmp_path, Bounds(max_size=10**7)) as one:
        yield one


@pytest.fixture
def boundless(tmp_path: Path) -> Iterator[Cache]:
    """A cache without a quota."""
    with opened(tmp_path, Bounds()) as one:
        yield one


def special(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    """A member without content."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


async def test_what_is_right_is_taken(cache: Cache) -> None:
    await cache.take(packed(bundle()))
    record = await cache.repositories.tag(APP, V1)
    assert record is not None
    assert str(record.digest) == digest_of(document())
    for body in (document(), LAYER, CONFIG):
        assert await cache.repositories.link(APP, Digest.parse(digest_of(body))) is not None
    assert not await hop(cache.tree.scan, "spool")


@pytest.mark.parametrize(
    ("member", "word"),
    [
        (special("/etc/cron.d/x"), "no path below"),
        (special("blobs/../../x"), "no path below"),
        (special("blobs/sha256/" + "0" * 64, tarfile.SYMTYPE, "/etc/passwd"), "is a link"),
        (special("index.json", tarfile.LNKTYPE, "/etc/passwd"), "is a link"),
        (special("oci-layout", tarfile.CHRTYPE), "is a device"),
        (special("oci-layout", tarfile.FIFOTYPE), "is a pipe"),
        (special("oci-layout", tarfile.GNUTYPE_SPARSE), "is a sparse file"),
        (special("index.json"), "'index.json' is in it twice"),
        (special("./index.json"), "'index.json' is in it twice"),
        (special("blobs/md5/" + "0" * 32), "not a sha256 or sha512 digest"),
        (special("blobs/sha256/\x1b[2J"), "not a sha256 or sha512 digest"),
        (special("blobs/sha256/" + "0" * 64), "other bytes than its name says"),
    ],
    ids=lambda value: value.name if isinstance(value, tarfile.TarInfo) else "",
)
async def test_a_hostile_member_is_refused(cache: Cache, member: tarfile.TarInfo, word: str) -> None:
    await cache.refuses(packed(bundle(), [member]), word)


def put(path: str, body: bytes) -> Change:
    """Put a content where a file of a bundle is."""
    return lambda files: files.update({path: body})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (put(path_of(LAYER), LAYER[:-1] + b"x"), "other bytes than its name says"),
        (put(path_of(LAYER), LAYER[:-1]), "other bytes than its name says"),
        (put(path_of(LAYER), LAYER + b"x"), "other bytes than its name says"),
        (lambda files: files.pop(path_of(LAYER)), "1 of its blobs are neither in the bundle nor in the cache"),
        (lambda files: files.pop(path_of(document())), "1 of its blobs are neither in the bundle nor in the cache"),
        (lambda files: files.pop("index.json"), "it is no OCI image layout: it has no index.json"),
        (lambda files: files.pop("oci-layout"), "it is no OCI image layout: it has no oci-layout"),
        (put("oci-layout", b'{"imageLayoutVersion":"9.0"}'), "not of version 1"),
        (put("oci-layout", b" " * 5000), "oci-layout has 5000 bytes"),
        (put("index.json", b"{}"), "an index without manifests"),
        (put("index.json", b'{"manifests":' + b"[" * 1000), "nested deeper"),
        (put("index.json", b'{"manifests":[' + b"{}," * 200_000 + b"{}]}"), "objects and lists"),
        (put("index.json", b" " * 5_000_000), "index.json has 5000000 bytes"),
    ],
)
async def test_a_damaged_bundle_is_refused(cache: Cache, change: Change, word: str) -> None:
    files = bundle()
    change(files)
    await cache.refuses(packed(files), word)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (document(mediaType="text/html"), "is no manifest: mediaType differs"),
        (document(schemaVersion=1), "is no manifest: schema 1"),
        (document(manifests=[]), "is no manifest: an index and a manifest at once"),
        (document(layers=[{"mediaType": LAYER_TYPE, "digest": "sha256:" + "0" * 64, "size": 1}]), "1 of its blobs"),
        (document(layers=[descriptor(LAYER, LAYER_TYPE) | {"size": 7}]), "has 5000 bytes, and its manifest says 7"),
        (b"layer", "is no manifest: not valid JSON"),
        (b"[" * 5_000_000, "has other bytes than is said of it"),
    ],
)
async def test_a_manifest_that_is_none_or_that_lies_is_refused(cache: Cache, body: bytes, word: str) -> None:
    await cache.refuses(packed(bundle(body)), word)


async def test_a_document_of_another_type_is_no_manifest(cache: Cache) -> None:
    await cache.refuses(packed(bundle(b'{"config":{}}', "text/html")), "is no manifest: it is of type text/html")
    await cache.refuses(packed(bundle(document(), size=7)), "has other bytes than is said of it")


async def test_an_index_of_which_nothing_is_in_the_bundle_is_refused(cache: Cache) -> None:
    body = json.dumps({"schemaVersion": 2, "manifests": [descriptor(b"elsewhere", manifest.OCI_MANIFEST)]}).encode()
    await cache.refuses(packed(bundle(body, manifest.OCI_INDEX)), "none of its platforms is in the bundle")


async def test_an_image_may_have_only_so_many_parts(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "MOST_PARTS", 10)
    await cache.refuses(packed(bundle(document(layers=[descriptor(LAYER, LAYER_TYPE)] * 20))), "more than 10 parts")


@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.9, 0.999])
async def test_a_bundle_that_is_cut_off_is_refused(cache: Cache, part: float) -> None:
    body = packed(bundle())
    await cache.refuses(body[: int(len(body.rstrip(b"\0")) * part)], "it is cut off")


async def test_a_bundle_without_an_end_is_cut_off_even_between_two_files(cache: Cache) -> None:
    body = packed(bundle()).rstrip(b"\0")
    await cache.refuses(body.ljust(-(-len(body) // 512) * 512, b"\0"), "it is cut off")


async def test_a_file_with_too_many_extended_headers_is_refused(cache: Cache) -> None:
    extended = special("x", tarfile.XHDTYPE).tobuf(tarfile.USTAR_FORMAT)
    await cache.refuses(extended * 9 + packed(bundle()), "too many extended headers")


def lying() -> bytes:
    """A blob that says that it is larger than any disk."""
    entry = special("blobs/sha256/" + "0" * 64)
    entry.size = 2**60
    return entry.tobuf(tarfile.PAX_FORMAT) + b"some bytes"


async def test_a_size_that_is_a_lie_is_refused_before_anything_has_to_go_for_it(cache: Cache) -> None:
    await cache.refuses(lying(), "the cache has no room for it")


async def test_a_size_that_is_a_lie_takes_no_space(boundless: Cache) -> None:
    await boundless.refuses(lying(), "it is cut off")


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"\x1f\x8b", "packed by gzip"),
        (b"\x28\xb5\x2f\xfd", "packed by zstd"),
        (b"<html>", "no tar archive"),
        (b"", "cut off"),
    ],
)
async def test_what_is_no_tar_is_said_to_be_none(cache: Cache, head: bytes, word: str) -> None:
    await cache.refuses(head + bytes(range(256)) * (10 if head else 0), word)


async def test_a_failure_of_the_disk_leaves_no_spool(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _data: object, _offset: int) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as failing:
        failing.setattr(os, "pwritev", full)
        with pytest.raises(OSError, match="No space"):
            await cache.take(packed(bundle()))
    assert not await hop(cache.tree.scan, "spool")
    await cache.take(packed(bundle()))


async def test_a_stored_blob_of_another_size_than_it_should_have_is_replaced(cache: Cache) -> None:
    digest = Digest.parse(digest_of(LAYER))
    await cache.means.blobs.put(digest, LAYER[:100])
    await cache.take(packed(bundle()))
    handle = await cache.means.blobs.open(digest)
    assert handle is not None
    assert await handle.read(0, 10_000) == LAYER
    handle.close()


async def test_who_is_cancelled_while_a_spool_is_dropped_closes_it_no_sooner(
    cache: Cache, discarding: Discarding
) -> None:
    async def wrong(_: int) -> bytes:
        return b""

    taking = asyncio.create_task(Intake(cache.means).take(Digest.of(LAYER), len(LAYER), wrong))
    await hop(discarding.begun.wait)
    for _ in range(2):
        taking.cancel()
        await asyncio.sleep(0)
    discarding.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert discarding.outcomes == ["dropped"]
    assert not await hop(cache.tree.scan, "spool")
