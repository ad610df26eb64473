"""A disk that takes no writes: the cache starts on it, serves what is there, passes on the rest, and caches later."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

from tests.faulty_disk import FaultyDisk, Point

from .harness import Proxy, running, toml
from .upstream import FakeRegistry, digest_of

REPO = "library/app"
DATA = bytes(range(256)) * 1200  # 300 KiB
REFUSALS = [errno.EROFS, errno.ENOSPC]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FaultyDisk:
    """The disk, to break."""
    return FaultyDisk(monkeypatch)


async def pull(proxy: Proxy, digest: str) -> str:
    """GET a blob, which must be right; returns where it came from."""
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert (got.status, got.ended, digest_of(got.body)) == (200, "complete", digest)
    await proxy.settled()
    return str(proxy.requests[-1]["outcome"])


def refuse(disk: FaultyDisk, number: int) -> None:
    """Let every write fail from now on, whether or not a directory is there already."""
    disk.fail(Point("any", 1, number))


@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
async def test_it_starts_says_so_once_serves_what_is_cached_and_caches_again_when_it_can(
    upstream: FakeRegistry, store: Path, disk: FaultyDisk, number: int
) -> None:
    image = upstream.add_image(REPO, "v1", [DATA])
    cold = upstream.add_image(REPO, "v2", [DATA[::-1]])
    async with running(toml(upstream.url), store) as proxy:
        await proxy.get(f"/v2/{REPO}/manifests/v1")
        await pull(proxy, image.layer_digests[0])
    asked = upstream.count("GET")
    refuse(disk, number)
    async with running(toml(upstream.url), store) as proxy:
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).body == image.body
        assert await pull(proxy, image.layer_digests[0]) == "hit"
        assert upstream.count("GET") == asked
        for _ in range(2):
            assert (await proxy.get(f"/v2/{REPO}/manifests/v2")).body == cold.body
            assert await pull(proxy, cold.layer_digests[0]) == "direct"
            await proxy.app.housekeeping._round(None)
        assert upstream.count("GET", "/manifests/") == 2  # memory keeps what the disk would not
        assert len([line for line in proxy.log if line["event"] == "the store takes no writes"]) == 1
        failed = [line["step"] for line in proxy.log if line["event"].startswith("housekeeping failed")]
        assert len(failed) == len(set(failed))
        disk.heal()
        await proxy.app.housekeeping._round(None)
        assert await pull(proxy, cold.layer_digests[0]) == "fill"
        assert await pull(proxy, cold.layer_digests[0]) == "hit"
    await upstream.go_down()
    async with running(toml(upstream.url), store) as proxy:  # what memory had is on the disk by now
        assert (await proxy.get(f"/v2/{REPO}/manifests/v2")).body == cold.body
        assert await pull(proxy, cold.layer_digests[0]) == "hit"


async def test_what_only_memory_has_is_written_though_an_operator_has_removed_something_to_make_room(
    upstream: FakeRegistry, store: Path, disk: FaultyDisk
) -> None:
    upstream.add_image(REPO, "v1", [DATA])
    image = upstream.add_image(REPO, "v2", [DATA[::-1]])
    async with running(toml(upstream.url), store) as proxy:
        await proxy.get(f"/v2/{REPO}/manifests/v1")
        refuse(disk, errno.ENOSPC)
        assert (await proxy.get(f"/v2/{REPO}/manifests/v2")).body == image.body
        await proxy.app.housekeeping._round(None)
        disk.heal()
        await asyncio.to_thread(proxy.app.desk.remove, [f"{REPO}:v1"], dry_run=False)
        for _ in range(2):
            await proxy.app.housekeeping._round(None)
        assert proxy.blobs() == [image.digest]
    await upstream.go_down()
    async with running(toml(upstream.url), store) as proxy:
        assert (await proxy.get(f"/v2/{REPO}/manifests/v2")).body == image.body


@pytest.mark.parametrize("number", [*REFUSALS, errno.EACCES], ids=errno.errorcode.get)
async def test_it_starts_in_an_empty_directory_in_which_nothing_can_be_made(
    upstream: FakeRegistry, store: Path, disk: FaultyDisk, number: int
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    os.mkdir(store, 0o700)
    refuse(disk, number)
    async with running(toml(upstream.url), store, alone=False) as proxy:
        assert await pull(proxy, digest) == "direct"
        disk.heal()
        assert await pull(proxy, digest) == "fill"
        assert proxy.blobs() == [digest]


async def test_one_bad_inode_keeps_no_others_from_being_counted_or_dropped(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = [upstream.add_blob(REPO, DATA[n:]) for n in range(4)]
    async with running(toml(upstream.url, store='max_size = "1 MB"'), store) as proxy:
        for digest in digests[:3]:
            await pull(proxy, digest)
        bad = digests[1].partition(":")[2]
        for name in ("stat", "open"):
            real = getattr(os, name)

            def failing(path: object, *args: object, real: object = real, **kwargs: object) -> object:
                if path == bad:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                return real(path, *args, **kwargs)  # type: ignore[operator]

            monkeypatch.setattr(os, name, failing)
        assert await pull(proxy, digests[3]) == "fill"
        monkeypatch.undo()
        assert digests[3] in proxy.blobs()


async def test_one_bad_record_hides_no_other_image_and_a_bad_pin_lets_nothing_go(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = upstream.add_image(REPO, "v1", [DATA]), upstream.add_image(REPO, "v2", [DATA[1:]])
    async with running(toml(upstream.url, store='max_size = "700 KB"'), store) as proxy:
        for tag, image in (("v1", first), ("v2", second)):
            await proxy.get(f"/v2/{REPO}/manifests/{tag}")
            await pull(proxy, image.layer_digests[0])
        await asyncio.to_thread(proxy.app.desk.pin, [f"{REPO}:v1"], None)
        real = os.open

        def failing(path: str, flags: int, *args: int, dir_fd: int | None = None) -> int:
            if path == "v1":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(path, flags, *args, dir_fd=dir_fd)

        monkeypatch.setattr(os, "open", failing)
        listed = await asyncio.to_thread(proxy.app.desk.images, [])
        assert [image["digest"] for image in listed if image["tags"]] == [second.digest]
        assert await pull(proxy, upstream.add_blob(REPO, DATA[2:])) == "direct"
        monkeypatch.undo()
        assert await pull(proxy, first.layer_digests[0]) == "hit"
        assert await pull(proxy, upstream.add_blob(REPO, DATA[2:])) == "fill"
        assert first.layer_digests[0] in proxy.blobs()


async def test_what_is_written_later_takes_no_place_of_what_another_worker_has_learnt_since(
    upstream: FakeRegistry, store: Path, disk: FaultyDisk
) -> None:
    upstream.add_image(REPO, "v1", [DATA])
    async with (
        running(toml(upstream.url), store) as one,
        running(toml(upstream.url), store, alone=False) as other,
    ):
        refuse(disk, errno.EROFS)
        await one.get(f"/v2/{REPO}/manifests/v1")
        disk.heal()
        moved = upstream.add_image(REPO, "v1", [DATA[1:]])
        assert (await other.get(f"/v2/{REPO}/manifests/v1")).body == moved.body
        await one.app.housekeeping._round(None)
        (shown,) = await asyncio.to_thread(other.app.desk.moves, [], 0.0)
        assert shown["to"] == moved.digest
