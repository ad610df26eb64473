"""Blobs: one upstream transfer, any number of readers, and no wrong byte that completes."""

import asyncio
from pathlib import Path

from .harness import Proxy, running, toml
from .upstream import FakeRegistry, digest_of

REPO = "library/app"
DATA = bytes(range(256)) * 4096  # 1 MiB


async def test_a_cold_blob_is_streamed_stored_and_then_served_without_upstream(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    for _ in range(2):
        got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
        assert (got.status, digest_of(got.body), got.ended) == (200, digest, "complete")
        assert got.header("Docker-Content-Digest") == digest
        assert got.header("Content-Length") == str(len(DATA))
    await proxy.settled()
    assert upstream.count("GET", path_contains="/blobs/") == 1
    assert proxy.blobs() == [digest]
    assert [record["outcome"] for record in proxy.requests] == ["fill", "hit"]


async def test_32_clients_of_a_cold_blob_cost_one_upstream_transfer(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).gate(after=1000)
    pulls = [asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}")) for _ in range(32)]
    await gate.reached.wait()
    gate.open()
    answers = await asyncio.gather(*pulls)
    assert {digest_of(answer.body) for answer in answers} == {digest}
    assert upstream.count("GET", path_contains="/blobs/") == 1


async def test_wrong_bytes_are_never_completed_nor_kept(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, times=1).wrong_bytes()
    bad = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert (bad.status, bad.ended) == (200, "short")
    assert proxy.blobs() == []
    assert proxy.spools() == []
    good = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert digest_of(good.body) == digest


async def test_a_truncated_transfer_is_resumed_with_a_range(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, times=1).truncate(after=300_000)
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert digest_of(got.body) == digest
    ranges = [request.header("Range") for request in upstream.requests if request.method == "GET"]
    assert ranges == [None, "bytes=300000-"]


async def test_a_process_resumes_what_an_earlier_one_left(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, times=1).stall(after=500_000)
    async with running(toml(upstream.url), store) as first:
        pull = asyncio.create_task(first.get(f"/v2/{REPO}/blobs/{digest}"))
        async with asyncio.timeout(5):
            while not first.spools() or first.spools()[0].stat().st_size < 500_000:
                await asyncio.sleep(0.005)
    assert (await pull).ended == "short"
    async with running(toml(upstream.url), store) as second:
        got = await second.get(f"/v2/{REPO}/blobs/{digest}")
        assert digest_of(got.body) == digest
    assert upstream.requests[-1].header("Range") == "bytes=500000-"
