"""What comes fast by a plain connection goes into its file past this process, with the same bytes and ends."""

import asyncio
import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from proxy import blob_stream, download
from proxy.blob_stream import Rest
from proxy.files import hop
from proxy.siphon import Siphon
from proxy.stores import s3_access
from tests.buckets import TestBucket

from .faulty_bucket import Fault, FaultyBucket, blobs
from .harness import Proxy, running, toml, until
from .networks import at, server_tls, write_ca
from .test_s3 import cached, configured, filled, pull
from .upstream import FakeRegistry, digest_of
from .upstream.behaviours import Dripped
from .upstream.gates import Steps

REPO = "library/app"
DATA = os.urandom(1024 * 1024)
LARGE = os.urandom(3 * 1024 * 1024)  # more than aiohttp has read by the time that it is known to be fast


@pytest.fixture(autouse=True)
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Everything counts as fast, and as worth it, after its first bytes; what was left of each that went that way."""
    monkeypatch.setattr(download, "FAST", 0.0)
    monkeypatch.setattr(blob_stream, "HELD_BACK", 1)
    monkeypatch.setattr(download, "GAUGED", 1)
    monkeypatch.setattr(download, "WORTHWHILE", 1)
    left: list[int] = []
    run = Siphon.run

    async def counted(self: Siphon, rest: Rest, room: Callable[[int], object]) -> None:
        left.append(rest.left)
        await run(self, rest, room)  # type: ignore[arg-type]  # it is handed on

    monkeypatch.setattr(Siphon, "run", counted)
    return left


def ranges(upstream: FakeRegistry) -> list[str | None]:
    """What of the blob was asked for, in order."""
    return [request.header("Range") for request in upstream.matching("GET", path_contains="/blobs/")]


async def test_it_is_served_stored_and_counted_as_what_comes_any_other_way(
    upstream: FakeRegistry, proxy: Proxy, runs: list[int]
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest, times=1).gate(after=100_000)
    pulls = [asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}")) for _ in range(4)]
    await gate.reached.wait()
    gate.open()
    assert {digest_of((await pull).body) for pull in pulls} == {digest}
    await proxy.settled()
    assert runs
    assert proxy.blobs() == [digest]
    assert upstream.count("GET", path_contains="/blobs/") == 1
    assert proxy.metrics.upstream_bytes.labels("docker.io")._value.get() == len(DATA)


@pytest.mark.parametrize("how", ["truncate", "reset"])
async def test_a_break_costs_no_byte_that_came(upstream: FakeRegistry, proxy: Proxy, runs: list[int], how: str) -> None:
    digest = upstream.add_blob(REPO, DATA)
    rule = upstream.on("GET", blob=digest, times=1)
    rule.drip(50_000, every=0.01)
    getattr(rule, how)(after=400_000)
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert digest_of(got.body) == digest
    assert ranges(upstream)[:2] == [None, "bytes=400000-"]
    assert upstream.body_bytes_sent == len(DATA)
    assert len(runs) == 2


@pytest.mark.parametrize("drips", [False, True])
async def test_what_stalls_or_drips_is_broken_off_and_resumed(
    upstream: FakeRegistry, store: Path, runs: list[int], drips: bool
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    rule = upstream.on("GET", blob=digest, times=1)
    rule.drip(bytes_per_step=1, every=0.02) if drips else rule.stall(after=400_000)
    async with running(toml(upstream.url, more='stall_timeout = "1s"'), store) as proxy:
        got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
        assert digest_of(got.body) == digest
    assert len(ranges(upstream)) == 2
    assert len(runs) == 2


async def test_wrong_bytes_are_never_completed_nor_kept(upstream: FakeRegistry, proxy: Proxy, runs: list[int]) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, times=1).wrong_bytes()
    bad = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert (bad.status, bad.ended) == (200, "short")
    assert proxy.blobs() == []
    assert proxy.spools() == []
    assert runs


async def test_what_has_no_known_length_is_read(upstream: FakeRegistry, proxy: Proxy, runs: list[int]) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest).chunked()
    assert digest_of((await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body) == digest
    assert runs == []


async def test_what_comes_over_tls_is_read(store: Path, tmp_path: Path, runs: list[int]) -> None:
    ca = trustme.CA()
    async with FakeRegistry(tls=server_tls(ca, "localhost"), name="localhost") as upstream:
        digest = upstream.add_blob(REPO, DATA)
        async with running(at(upstream, f'ca_file = "{write_ca(tmp_path / "ca.pem", ca)}"'), store) as proxy:
            assert digest_of((await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body) == digest
    assert runs == []


async def test_what_is_not_worth_a_connection_leaves_it_to_the_next(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, runs: list[int]
) -> None:
    monkeypatch.undo()
    for number in range(3):
        digest = upstream.add_blob(REPO, DATA + bytes([number]))
        assert digest_of((await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body) == digest
        await proxy.settled()
    assert upstream.connections == 1
    assert runs == []


async def test_a_connection_that_was_taken_is_not_used_again(
    upstream: FakeRegistry, proxy: Proxy, runs: list[int]
) -> None:
    for number in range(2):
        digest = upstream.add_blob(REPO, DATA + bytes([number]))
        assert digest_of((await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body) == digest
        await proxy.settled()
    assert len(runs) == upstream.connections == 2


@pytest.mark.parametrize("fails", ["splice", "preadv"])
async def test_a_disk_that_fails_midway_costs_no_client_a_wrong_byte(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Where it takes no more, the client has the rest from upstream; where it gives nothing back, what it was sent."""
    digest = upstream.add_blob(REPO, DATA)
    real, calls = getattr(os, fails), 0

    def failing(*args: object, **kwargs: object) -> int:
        nonlocal calls
        calls += "offset_dst" in kwargs or (fails == "preadv" and len(args) == 3)
        if calls > 1:
            raise OSError(errno.ENOSPC if fails == "splice" else errno.EIO, "fails")
        return int(real(*args, **kwargs))

    upstream.on("GET", blob=digest, times=1).drip(200_000, every=0.02)
    monkeypatch.setattr(os, fails, failing)
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    monkeypatch.setattr(os, fails, real)
    await proxy.settled()
    assert calls > 1
    assert got.body == DATA[: len(got.body)]
    assert got.ended == ("complete" if fails == "splice" else "short")
    assert digest_of((await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body) == digest


async def test_stopping_leaves_what_came_to_be_resumed(upstream: FakeRegistry, store: Path, runs: list[int]) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest, times=1).gate(after=400_000)
    async with running(toml(upstream.url), store) as proxy:
        pull = asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}"))
        await gate.reached.wait()
        await until(lambda: any(path.stat().st_size == 400_000 for path in proxy.spools()))
    assert (await pull).ended == "short"
    assert len(runs) == 1
    async with running(toml(upstream.url), store) as proxy:
        assert digest_of((await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body) == digest
    assert ranges(upstream) == [None, "bytes=400000-"]


@pytest.mark.parametrize("side", ["socket", "file"])
async def test_where_nothing_can_be_spliced_it_is_read_and_written(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, runs: list[int], side: str
) -> None:
    splice = os.splice

    def refusing(*args: int, **kwargs: int) -> int:
        if ("offset_dst" in kwargs) == (side == "file"):
            raise OSError(errno.EINVAL, "Invalid argument")
        return splice(*args, **kwargs)

    monkeypatch.setattr(os, "splice", refusing)
    digest = upstream.add_blob(REPO, DATA)
    assert digest_of((await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body) == digest
    await proxy.settled()
    assert (len(runs), proxy.blobs()) == (1, [digest])


@pytest.mark.parametrize("left", [0, 1])
async def test_where_no_thread_can_be_started_it_comes_all_the_same(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, runs: list[int], left: int
) -> None:
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        nonlocal left
        if thread.name.startswith("siphon"):
            left -= 1
            if left < 0:
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    digest = upstream.add_blob(REPO, DATA)
    assert digest_of((await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body) == digest
    await proxy.settled()
    assert (len(runs), proxy.blobs()) == (1, [digest])
    assert left < 0


async def test_what_a_plain_bucket_sends_goes_that_way_and_is_counted(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, runs: list[int]
) -> None:
    image = await filled(upstream, bucket, store, LARGE)
    asked = len(upstream.requests)
    runs.clear()
    await hop(shutil.rmtree, store / "blobs")
    async with cached(configured(upstream.url, bucket), store) as proxy:
        await pull(proxy, image)
        down = proxy.metrics.registry.get_sample_value("entrepot_bucket_bytes_total", {"direction": "down"})
    assert len(upstream.requests) == asked
    assert runs
    assert down == len(image.body) + sum(image.sizes[digest] for digest in image.blob_digests)


@pytest.mark.usefixtures("impatient_bucket")
@pytest.mark.parametrize("how", ["broken", "stalled", "truncated", "shorter", "longer", "wrong"])
async def test_however_a_bucket_goes_wrong_meanwhile_clients_get_right_bytes_or_fewer(
    upstream: FakeRegistry, bucket: TestBucket, faulty: FaultyBucket, store: Path, tmp_path: Path,
    runs: list[int], how: str,
) -> None:  # fmt: skip
    image = await filled(upstream, bucket, store, LARGE)
    runs.clear()
    faulty.fail_all(how, blobs)
    async with cached(configured(upstream.url, bucket, url=faulty.url), tmp_path / "other") as proxy:
        for digest in image.blob_digests:
            first, second = [await proxy.get(f"/v2/{REPO}/blobs/{digest}") for _ in range(2)]
            assert first.ended == "short" or digest_of(first.body) == digest
            assert digest_of(second.body) == digest
        await proxy.settled()
        assert set(image.blob_digests) <= set(proxy.blobs())
    assert runs


@pytest.mark.usefixtures("hurried_bucket")
async def test_what_a_bucket_sends_for_longer_than_it_may_be_silent_is_taken_to_its_end(
    upstream: FakeRegistry, bucket: TestBucket, faulty: FaultyBucket, store: Path, tmp_path: Path,
    runs: list[int], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The library that asks the bucket has its own watch over the connection, and sees nothing come by then."""
    image = await filled(upstream, bucket, store, LARGE)
    asked = len(upstream.requests)
    runs.clear()
    monkeypatch.setattr(s3_access, "STALL", 0.6)
    faulty.fail_all(Fault(Dripped(50_000, Steps(every=0.02)), is_done=True), blobs)
    async with cached(configured(upstream.url, bucket, url=faulty.url), tmp_path / "other") as proxy:
        answer = await proxy.get(f"/v2/{REPO}/blobs/{image.layer_digests[0]}")
    assert digest_of(answer.body) == image.layer_digests[0]
    assert len([request for request in faulty.requests if blobs(request)]) == len(runs) == 1
    assert len(upstream.requests) == asked
