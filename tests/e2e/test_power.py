"""What a power cut left of downloads is not built upon, whatever the clock says."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from .harness import running, toml
from .upstream import FakeRegistry, digest_of

REPO = "library/app"
DATA = bytes(range(256)) * 1200  # 300 KiB
LOST = DATA[:100_000] + bytes(50_000)  # the last blocks were never written


def leave(store: Path, digest: str, data: bytes, used: float) -> None:
    """Leave a download as a process does that ends midway."""
    left = store / "spool" / digest.replace(":", "-")
    left.touch(0o600)
    left.write_bytes(data)
    os.utime(left, (used, used))


@pytest.mark.parametrize("days", [-1, 0, 1])
async def test_downloads_from_before_the_boot_are_not_resumed_whatever_the_clock_says(
    upstream: FakeRegistry, store: Path, days: int
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with running(toml(upstream.url), store):
        pass
    leave(store, digest, LOST, time.time() + days * 86400)
    (store / "boot").write_text("another boot")
    async with running(toml(upstream.url), store) as proxy:
        got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
        assert (got.status, got.ended, digest_of(got.body)) == (200, "complete", digest)
    assert [request.header("Range") for request in upstream.matching("GET")] == [None]


@pytest.mark.parametrize("days", [0, 1])
async def test_downloads_of_this_boot_are_resumed_though_the_clock_was_ahead(
    upstream: FakeRegistry, store: Path, days: int
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with running(toml(upstream.url), store):
        pass
    leave(store, digest, DATA[:100_000], time.time() + days * 86400)
    async with running(toml(upstream.url), store) as proxy:
        got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
        assert (got.status, digest_of(got.body)) == (200, digest)
    assert [request.header("Range") for request in upstream.matching("GET")] == ["bytes=100000-"]


async def test_a_download_that_is_going_on_is_not_dropped_by_a_process_that_starts(
    upstream: FakeRegistry, store: Path
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).gate(after=100_000)
    async with running(toml(upstream.url), store) as proxy:
        (store / "boot").unlink()
        task = asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}"))

        await gate.reached.wait()
        async with running(toml(upstream.url), store, alone=False):
            gate.open()
            got = await task
            assert (got.status, digest_of(got.body)) == (200, digest)
    assert upstream.count("GET") == 1
