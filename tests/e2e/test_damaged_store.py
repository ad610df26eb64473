"""What somebody did to the cache directory: never followed, never served, healed from upstream."""

import asyncio
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.files import UnsafeDirectory
from proxy.stores.directory import open_tree

from .harness import Proxy, running, serving, toml, until
from .upstream import FakeRegistry, digest_of

REPO = "library/app"
DATA = bytes(range(256)) * 1200  # 300 KiB
SECRET = b"what the cache must not serve " * 10_000


async def pull(proxy: Proxy, digest: str) -> None:
    """GET a blob, whole and in part and by HEAD: all of it must be right."""
    target = f"/v2/{REPO}/blobs/{digest}"
    got = await proxy.get(target)
    assert (got.status, got.ended, digest_of(got.body)) == (200, "complete", digest)
    await proxy.settled()
    part = await proxy.get(target, {"Range": "bytes=5-9"})
    assert (part.status, part.body) == (206, DATA[5:10])
    assert (await proxy.head(target)).header("Content-Length") == str(len(DATA))


def committed(path: Path) -> bool:
    """Whether a file is one of ours, whole and read-only."""
    status = path.lstat()
    return path.is_file() and not path.is_symlink() and status.st_mode & 0o777 == 0o400 and status.st_nlink == 1


def replaced(path: Path, make: Callable[[Path], object]) -> None:
    """Put something else where a file is."""
    path.unlink()
    make(path)


def outside(path: Path) -> Path:
    """A file that is none of the cache's business."""
    other = path.parents[4] / "outside"
    other.write_bytes(SECRET)
    other.chmod(0o600)
    return other


def shortened(path: Path) -> None:
    """Cut a file."""
    path.chmod(0o600)
    os.truncate(path, 1000)
    path.chmod(0o400)


def lengthened(path: Path) -> None:
    """Append to a file."""
    path.chmod(0o600)
    with path.open("ab") as file:
        file.write(b"more")
    path.chmod(0o400)


def hardlinked(path: Path) -> None:
    """Give a file a second name, by which it may be written to."""
    os.link(path, path.parents[4] / "second name")


def symlinked_aside(path: Path) -> None:
    """Move a directory elsewhere and leave a symbolic link."""
    elsewhere = path.parents[4] / "elsewhere"
    path.parent.rename(elsewhere)
    path.parent.symlink_to(elsewhere)


def full_directory(path: Path) -> None:
    """Put a directory where a file is, with something in it."""
    path.unlink()
    (path / "inner").mkdir(parents=True)


def file_for_a_directory(path: Path) -> None:
    """Put a file where the directory of a file is."""
    path.parent.rename(path.parents[4] / "away")
    path.parent.touch()


def writable_by_all(path: Path) -> None:
    """Leave a file that everybody may write to."""
    path.write_bytes(SECRET)
    path.chmod(0o666)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "vanished": Path.unlink,
    "short": shortened,
    "empty": lambda path: replaced(path, lambda it: it.touch(0o400)),
    "longer": lengthened,
    "symlink to a secret": lambda path: replaced(path, lambda it: it.symlink_to(outside(it))),
    "symlink to nothing": lambda path: replaced(path, lambda it: it.symlink_to("nothing")),
    "symlink to itself": lambda path: replaced(path, lambda it: it.symlink_to(it)),
    "symlink to a device": lambda path: replaced(path, lambda it: it.symlink_to("/dev/zero")),
    "FIFO": lambda path: replaced(path, os.mkfifo),
    "hardlink to a secret": lambda path: replaced(path, lambda it: os.link(outside(it), it)),
    "second name": hardlinked,
    "writable by all": lambda path: path.chmod(0o666),
}


@pytest.mark.parametrize("restarted", [False, True], ids=["same process", "next process"])
@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_blob_is_fetched_again_and_replaced(
    upstream: FakeRegistry, store: Path, damage: str, restarted: bool
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, digest)
        DAMAGES[damage](proxy.blob_path(digest))
        if not restarted:
            await pull(proxy, digest)
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, digest)
        assert upstream.count("GET") == 2
        assert committed(proxy.blob_path(digest))
    if (store.parent / "outside").exists():
        assert (store.parent / "outside").read_bytes() == SECRET


@pytest.mark.parametrize("framing", ["chunked", "no_content_length"])
async def test_a_blob_whose_length_upstream_never_told_is_healed_too(
    upstream: FakeRegistry, proxy: Proxy, framing: str
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    rule = upstream.on("GET", blob=digest)
    _ = rule.chunked() if framing == "chunked" else rule.no_content_length()
    await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    shortened(proxy.blob_path(digest))
    await pull(proxy, digest)
    assert upstream.count("GET") == 2


@pytest.mark.parametrize("damage", ["directory", "symlinked directory", "file for a directory", "sealed directory"])
async def test_a_place_that_cannot_be_repaired_makes_a_pass_through_of_the_cache(
    upstream: FakeRegistry, store: Path, damage: str
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    damages: dict[str, Callable[[Path], object]] = {
        "directory": full_directory,
        "symlinked directory": symlinked_aside,
        "file for a directory": file_for_a_directory,
        "sealed directory": lambda path: replaced(path, os.mkdir),
    }
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, digest)
        await asyncio.to_thread(damages[damage], proxy.blob_path(digest))
        got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
        assert (got.status, digest_of(got.body)) == (200, digest)
        await proxy.settled()


async def test_a_symlinked_directory_is_not_followed(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, digest)
        await asyncio.to_thread(symlinked_aside, proxy.blob_path(digest))
        (kept,) = (store.parent / "elsewhere").iterdir()
        kept.chmod(0o600)
        kept.write_bytes(SECRET[: len(DATA)])
        got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
        assert digest_of(got.body) == digest
        await proxy.settled()
        assert [path.name for path in (store.parent / "elsewhere").iterdir()] == [kept.name]


@pytest.mark.parametrize("suffix", [".gz", ".br", ".zst", ".sha256", "~", ".tmp"])
async def test_a_file_beside_a_blob_is_not_served(upstream: FakeRegistry, proxy: Proxy, suffix: str) -> None:
    digest = upstream.add_blob(REPO, DATA)
    await pull(proxy, digest)
    path = proxy.blob_path(digest)
    path.with_name(path.name + suffix).write_bytes(SECRET)
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}", {"Accept-Encoding": "gzip, br, zstd"})
    assert (digest_of(got.body), got.header("Content-Encoding")) == (digest, None)
    assert upstream.count("GET") == 1


@pytest.mark.parametrize("plant", ["symlink", "FIFO", "directory", "hardlink", "full directory", "writable"])
async def test_a_planted_spool_is_not_written_to(upstream: FakeRegistry, store: Path, plant: str) -> None:
    digest = upstream.add_blob(REPO, DATA)
    secret = store.parent / "outside"
    plants: dict[str, Callable[[Path], object]] = {
        "symlink": lambda path: path.symlink_to(secret),
        "FIFO": os.mkfifo,
        "directory": os.mkdir,
        "hardlink": lambda path: os.link(secret, path),
        "full directory": lambda path: (path / "inner").mkdir(parents=True),
        "writable": writable_by_all,
    }
    async with running(toml(upstream.url), store) as proxy:
        secret.write_bytes(SECRET)
        plants[plant](store / "spool" / digest.replace(":", "-"))
        got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
        assert (got.status, digest_of(got.body)) == (200, digest)
        await proxy.settled()
        if "directory" not in plant:
            assert proxy.blobs() == [digest]
    assert secret.read_bytes() == SECRET


async def test_a_spool_with_other_bytes_is_never_completed_nor_published(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with running(toml(upstream.url), store) as proxy:
        left = store / "spool" / digest.replace(":", "-")
        left.touch(0o600)
        left.write_bytes(SECRET[:1000])
        first = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
        assert first.ended == "short" or digest_of(first.body) == digest
        await pull(proxy, digest)
        assert proxy.blobs() == [digest]


# Links and tags


NONSENSE = [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"\x00" * 100, b"[" * 4000, b"{}" + b" " * 5000]
LINKS = [*NONSENSE, b'{"size": "x"}', b'{"size": true}', b'{"size": -1}', b'{"size": 7}', b'{"size": 1e400}']
TAGS = [*NONSENSE, b"{}", b'{"digest": "sha256:x", "checked": 1}', b'{"digest": 5, "checked": 1}']


@pytest.mark.parametrize("body", LINKS)
async def test_a_corrupted_link_is_asked_for_again(upstream: FakeRegistry, store: Path, body: bytes) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, digest)
    (link,) = (store / "repositories").glob("**/_links/*/*")
    link.write_bytes(body)
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, digest)
    assert upstream.count("GET") == 1
    assert json.loads(link.read_bytes())["size"] == len(DATA)


@pytest.mark.parametrize("body", TAGS)
async def test_a_corrupted_tag_is_asked_for_again(upstream: FakeRegistry, store: Path, body: bytes) -> None:
    image = upstream.add_image(REPO, "v1")
    async with running(toml(upstream.url), store) as proxy:
        await proxy.get(f"/v2/{REPO}/manifests/v1")
    (tag,) = (store / "repositories").glob("**/_tags/*")
    tag.write_bytes(body)
    async with running(toml(upstream.url), store) as proxy:
        got = await proxy.get(f"/v2/{REPO}/manifests/v1")
        assert (got.status, got.body) == (200, image.body)
    assert json.loads(tag.read_bytes())["digest"] == image.digest


@pytest.mark.parametrize("kind", ["_links", "_tags"])
@pytest.mark.parametrize("plant", ["symlink", "FIFO", "directory"])
async def test_a_planted_record_is_not_followed(upstream: FakeRegistry, store: Path, kind: str, plant: str) -> None:
    image = upstream.add_image(REPO, "v1", [DATA])
    async with running(toml(upstream.url), store) as proxy:
        await proxy.get(f"/v2/{REPO}/manifests/v1")
        await pull(proxy, image.layer_digests[0])
    elsewhere = store.parent / "elsewhere"
    for record in list((store / "repositories").glob(f"**/{kind}/**/*")):
        if record.is_file():
            elsewhere.write_bytes(record.read_bytes())
            plants: dict[str, Callable[[Path], object]] = {
                "symlink": lambda path: path.symlink_to(elsewhere),
                "FIFO": os.mkfifo,
                "directory": os.mkdir,
            }
            replaced(record, plants[plant])
    before = elsewhere.read_bytes()
    asked = upstream.count()
    async with running(toml(upstream.url), store) as proxy:
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).body == image.body
        await pull(proxy, image.layer_digests[0])
        assert upstream.count() > asked
    assert elsewhere.read_bytes() == before


async def test_a_damaged_manifest_is_fetched_again(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1")
    async with running(toml(upstream.url), store) as proxy:
        await proxy.get(f"/v2/{REPO}/manifests/v1")
        path = proxy.blob_path(image.digest)
    path.chmod(0o600)
    path.write_bytes(image.body.replace(b"layer", b"lawyr"))
    path.chmod(0o400)
    async with running(toml(upstream.url), store) as proxy:
        assert (await proxy.get(f"/v2/{REPO}/manifests/{image.digest}")).body == image.body


@pytest.mark.parametrize("part", ["manifest", "layer"])
@pytest.mark.parametrize("folder", ["blobs", "_links"])
async def test_what_the_disk_cannot_read_is_fetched_again_and_replaced(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch, part: str, folder: str
) -> None:
    image = upstream.add_image(REPO, "v1", [DATA])
    bad = (image.digest if part == "manifest" else image.layer_digests[0]).partition(":")[2]
    async with running(toml(upstream.url), store) as proxy:
        await proxy.get(f"/v2/{REPO}/manifests/v1")
        await pull(proxy, image.layer_digests[0])
    before = {path: path.stat().st_ctime_ns for path in everything_in(store) if path.name == bad}
    real = os.open

    def failing(path: str, flags: int, *args: int, dir_fd: int | None = None) -> int:
        if path == bad and dir_fd is not None and f"/{folder}/" in os.readlink(f"/proc/self/fd/{dir_fd}") + "/":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, flags, *args, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", failing)
    async with running(toml(upstream.url), store) as proxy:
        got = await proxy.get(f"/v2/{REPO}/manifests/v1")
        assert (got.status, got.body) == (200, image.body)
        await pull(proxy, image.layer_digests[0])
        monkeypatch.undo()
        await pull(proxy, image.layer_digests[0])
    replaced = [path for path, changed in before.items() if path.stat().st_ctime_ns != changed]
    assert any(f"/{folder}/" in str(path) for path in replaced)


# The directory itself


@pytest.mark.parametrize("folder", ["", "blobs", "repositories", "spool", "tmp", "ledger"])
def test_a_store_that_everybody_may_write_to_is_refused(store: Path, folder: str) -> None:
    open_tree(store).close()
    (store / folder).chmod(0o777)
    with pytest.raises(UnsafeDirectory, match="chmod"):
        open_tree(store)


@pytest.mark.parametrize("folder", ["blobs", "repositories", "spool", "tmp", "ledger"])
@pytest.mark.parametrize("plant", ["symlink", "file"])
def test_a_store_with_something_else_for_a_directory_is_refused(store: Path, folder: str, plant: str) -> None:
    store.mkdir()
    elsewhere = store.parent / "elsewhere"
    elsewhere.mkdir()
    if plant == "symlink":
        (store / folder).symlink_to(elsewhere)
    else:
        (store / folder).touch()
    with pytest.raises(UnsafeDirectory, match="move it away"):
        open_tree(store)
    assert list(elsewhere.iterdir()) == []


async def test_the_command_refuses_an_unsafe_store(upstream: FakeRegistry, store: Path) -> None:
    os.mkdir(store)
    os.chmod(store, 0o777)  # noqa: S103
    async with serving(toml(upstream.url), store) as proxy:
        await until(lambda: proxy.process.returncode is not None)
        assert proxy.process.returncode == 2


async def test_what_the_cache_makes_is_for_its_owner_only(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1", [DATA])
    async with running(toml(upstream.url), store) as proxy:
        await proxy.get(f"/v2/{REPO}/manifests/v1")
        await pull(proxy, image.layer_digests[0])
    assert len(everything_in(store)) > 10
    assert [path for path in everything_in(store) if path.lstat().st_mode & 0o077] == []


def everything_in(store: Path) -> list[Path]:
    """The store, and all files and directories below it."""
    return [store, *store.rglob("*")]


async def test_a_store_that_vanishes_makes_a_pass_through_of_the_cache(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, digest)
        await asyncio.to_thread(lambda: [path.rename(store.parent / path.name) for path in store.iterdir()])
        got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
        assert (got.status, digest_of(got.body)) == (200, digest)
        await proxy.settled()
        for name in ("tmp", "ledger"):
            (store / name).mkdir(exist_ok=True)
