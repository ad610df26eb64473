"""A real disk that takes no writes: the server starts on it, and caches again when it takes them, by itself."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.e2e.harness import Process, serving, toml
from tests.e2e.upstream import FakeRegistry, digest_of

from .disks import LoopDisk

REPO = "library/app"
DATA = bytes(range(256)) * 1200  # 300 KiB


@contextmanager
def read_only(disk: LoopDisk) -> Iterator[None]:
    """Remounted so, and back."""
    disk.remount("ro")
    try:
        yield
    finally:
        disk.remount("rw")


def full(disk: LoopDisk) -> AbstractContextManager[None]:
    """To the last byte."""
    return disk.filled()


async def pull(proxy: Process, digest: str) -> None:
    """GET a blob, which must be right."""
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert (got.status, got.ended, digest_of(got.body)) == (200, "complete", digest)


@pytest.mark.parametrize(("kind", "workers"), [("ext4", 1), ("ext4", 2), ("xfs", 1)])
@pytest.mark.parametrize("trouble", [read_only, full])
async def test_a_disk_that_takes_no_writes_is_started_on_and_cached_on_later(
    upstream: FakeRegistry,
    disk_of: Callable[[str], LoopDisk],
    tmp_path: Path,
    trouble: Callable[[LoopDisk], AbstractContextManager[None]],
    kind: str,
    workers: int,
) -> None:
    disk = disk_of(kind)
    there = {"ENTREPOT_STORE_PATH": str(disk.store)}
    image, cold = upstream.add_image(REPO, "v1", [DATA]), upstream.add_image(REPO, "v2", [DATA[::-1]])
    text = toml(upstream.url, server=f"workers = {workers}", store="min_free = 0")
    async with serving(text, tmp_path / "cache", environ=there) as proxy:
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).body == image.body
        await pull(proxy, image.layer_digests[0])
        assert await proxy.stop() == 0
    asked = upstream.count("GET")
    with ExitStack() as stack:
        stack.enter_context(trouble(disk))
        async with serving(text, tmp_path / "cache", environ=there) as proxy:
            assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).body == image.body
            await pull(proxy, image.layer_digests[0])
            assert upstream.count("GET") == asked
            assert (await proxy.get(f"/v2/{REPO}/manifests/v2")).body == cold.body
            await pull(proxy, cold.layer_digests[0])
            warnings = sum(line["event"] == "the store takes no writes" for line in proxy.lines)
            assert (trouble is read_only) <= warnings <= workers
            await asyncio.to_thread(stack.close)
            await pull(proxy, cold.layer_digests[0])
            assert await proxy.stop() == 0
    asked = upstream.count("GET")
    async with serving(text, tmp_path / "cache", environ=there) as proxy:
        await pull(proxy, cold.layer_digests[0])
        assert upstream.count("GET") == asked
        assert await proxy.stop() == 0
