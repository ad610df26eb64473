"""One big blob by several connections: in order, whole, and never at the cost of one."""

import asyncio
import contextlib
import math
import os
from pathlib import Path

from .harness import Proxy, running, toml, until
from .upstream import FakeRegistry, Storage, digest_of
from .upstream.wire import Request

REPO = "library/app"
MIB = 1024 * 1024
DATA = os.urandom(12 * MIB)


def widen(proxy: Proxy, level: int = 4) -> None:
    """As if it had been found out that so many connections are faster."""
    pace = proxy.app.blobs._upstreams["docker.io"]._pace
    pace.level, pace.share, pace.rate, pace._calm_until = level, 1e5, level * 1e5, math.inf


def memory(proxy: Proxy) -> int:
    return proxy.app.blobs._upstreams["docker.io"]._memory._left


def is_part(request: Request) -> bool:
    return not (request.header("Range") or "-").endswith("-")


async def pulled(proxy: Proxy, digest: str) -> bytes:
    before = memory(proxy)
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    await proxy.settled()
    assert memory(proxy) == before, "memory is given back"
    downloads = proxy.app.blobs._upstreams["docker.io"]._exchange._downloads
    assert downloads._total == 0, "turns are given back"
    return got.body


async def test_a_fast_upstream_sees_one_request(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with running(toml(upstream.url), store) as proxy:
        assert digest_of(await pulled(proxy, digest)) == digest
    assert upstream.count() == 1


async def test_parts_arrive_in_order_as_one_blob_and_each_byte_once(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest).drip(64 * 1024, every=0.005)
    async with running(toml(upstream.url), store) as proxy:
        widen(proxy)
        assert digest_of(await pulled(proxy, digest)) == digest
        assert proxy.blobs() == [digest]
    parts = [request.header("Range") for request in upstream.requests if is_part(request)]
    assert len(parts) >= 4
    assert len(set(parts)) == len(parts)


async def test_one_connection_is_all_where_no_more_are_allowed(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with running(toml(upstream.url, more="connections_per_blob = 1"), store) as proxy:
        widen(proxy)
        assert digest_of(await pulled(proxy, digest)) == digest
    assert upstream.count() == 1


async def test_an_upstream_that_ignores_ranges_sends_the_blob_once(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, where=is_part).ignore_range().gate(after=MIB)
    upstream.on("GET", blob=digest).drip(64 * 1024, every=0.002)
    async with running(toml(upstream.url), store) as proxy:
        widen(proxy)
        assert digest_of(await pulled(proxy, digest)) == digest
        assert proxy.app.blobs._upstreams["docker.io"]._pace.level == 1
    assert len([request for request in upstream.requests if not is_part(request)]) == 1


async def test_a_part_that_breaks_off_is_taken_up_where_it_broke(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, where=is_part, times=1).truncate(after=300_000)
    upstream.on("GET", blob=digest).drip(64 * 1024, every=0.005)
    async with running(toml(upstream.url), store) as proxy:
        widen(proxy)
        assert digest_of(await pulled(proxy, digest)) == digest
    starts = [int((request.header("Range") or "=0-").split("=")[1].split("-")[0]) for request in upstream.requests]
    assert any(start % MIB == 300_000 % MIB or start - 300_000 in starts for start in starts)


async def test_parts_that_are_refused_cost_the_blob_nothing(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, where=is_part).status(403)
    upstream.on("GET", blob=digest).drip(64 * 1024, every=0.002)
    async with running(toml(upstream.url), store) as proxy:
        widen(proxy)
        assert digest_of(await pulled(proxy, digest)) == digest
        assert proxy.app.blobs._upstreams["docker.io"]._pace.level == 1
    assert len([request for request in upstream.requests if not is_part(request)]) == 1


async def test_wrong_bytes_in_a_part_complete_nothing_and_the_next_pull_comes_by_one_connection(
    upstream: FakeRegistry, store: Path
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, where=is_part, times=1).wrong_bytes()
    upstream.on("GET", blob=digest, times=20).drip(64 * 1024, every=0.005)
    async with running(toml(upstream.url), store) as proxy:
        widen(proxy)
        got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
        await proxy.settled()
        assert (got.ended, proxy.blobs(), proxy.spools()) == ("short", [], [])
        upstream.forget_rules()
        before = upstream.count()
        assert digest_of(await pulled(proxy, digest)) == digest
        assert upstream.count() == before + 1


async def test_parts_take_no_turn_that_somebody_waits_for(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest).drip(64 * 1024, every=0.005)
    async with running(toml(upstream.url, more="max_requests = 3"), store) as proxy:
        widen(proxy)
        downloads = proxy.app.blobs._upstreams["docker.io"]._exchange._downloads
        most = 0

        def seen() -> bool:
            nonlocal most
            most = max(most, downloads._total)
            return False

        pull = asyncio.create_task(pulled(proxy, digest))
        while not pull.done():
            seen()
            await asyncio.sleep(0)
        assert digest_of(await pull) == digest
        assert most == 2


async def test_where_a_redirect_led_is_used_again_until_it_expires(upstream: FakeRegistry, store: Path) -> None:
    async with Storage() as storage:
        digest = upstream.add_blob(REPO, DATA)
        upstream.redirect_blobs_to(storage)
        storage.on("GET").drip(64 * 1024, every=0.005)
        async with running(toml(upstream.url, more='private_networks = ["127.0.0.0/8"]'), store) as proxy:
            widen(proxy)
            pull = asyncio.create_task(pulled(proxy, digest))
            await storage.seen(4, method="GET")
            assert upstream.count("GET") == 1
            storage.expire_all()
            assert digest_of(await pull) == digest
        assert upstream.count("GET") > 1
        assert {request.header("Authorization") for request in storage.requests} == {None}


async def test_a_client_that_leaves_and_an_end_of_the_process_leave_nothing_behind(
    upstream: FakeRegistry, store: Path
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest).drip(16 * 1024, every=0.01)
    async with running(toml(upstream.url), store) as proxy:
        widen(proxy)
        before = memory(proxy)
        pull = asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}"))
        await upstream.until(lambda: len([one for one in upstream.requests if is_part(one)]) >= 2)
        assert memory(proxy) < before
    assert memory(proxy) == before
    with contextlib.suppress(OSError):
        assert (await pull).ended == "short"


async def test_parts_that_are_answered_and_break_off_cost_no_reader_a_byte(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, where=is_part, times=3).truncate(after=1000)
    upstream.on("GET", blob=digest, where=is_part).status(403)
    gate = upstream.on("GET", blob=digest, times=1).gate(after=MIB - 1000)
    async with running(toml(upstream.url), store) as proxy:
        widen(proxy)
        whole = asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}"))
        await gate.reached.wait()
        first = f"bytes={MIB + 1000}-{2 * MIB - 1}"
        await upstream.until(lambda: any(request.header("Range") == first for request in upstream.requests))
        await until(lambda: proxy.app.blobs._upstreams["docker.io"]._exchange._downloads._total == 1, "parts failed")
        span = {"Range": f"bytes={MIB}-{5 * MIB - 1}"}
        ranged = asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}", span))
        await until(lambda: proxy.app.handlers.active == 2, "the range was asked for")
        gate.open()
        got = await ranged
        assert (got.status, got.ended, got.body == DATA[MIB : 5 * MIB]) == (206, "complete", True)
        got = await whole
        assert (got.status, got.ended, got.body == DATA) == (200, "complete", True)
