"""A small blob that is asked for again, byte for byte, comes from memory as long as it would come from the store."""

import asyncio
import errno
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from proxy import repeats
from proxy.oci.digest import Digest
from proxy.reading import SMALL
from proxy.stores import quarantine as quarantine_of_the_store
from proxy.stores.directory import announce_change
from tests.buckets import TestBucket

from .harness import Proxy, running, toml, until
from .raw_client import RawAnswer, RawClient, connect
from .test_repeats import connection, thrice, told
from .test_s3_redirects import redirecting
from .test_scrub import quarantined, rotten, scrubbed
from .upstream import FakeRegistry, digest_of

REPO = "library/app"
CONFIG = b'{"architecture": "amd64", "os": "linux"}'


def path_of(digest: str, repository: str = REPO) -> str:
    """Where a blob is asked for."""
    return f"/v2/{repository}/blobs/{digest}"


async def known(upstream: FakeRegistry, proxy: Proxy, client: RawClient, body: bytes = CONFIG) -> tuple[str, RawAnswer]:
    """The digest of a blob that is answered again, and what the ordinary way answers."""
    digest = upstream.add_blob(REPO, body)
    await proxy.get(path_of(digest))
    ordinary, *_ = await thrice(client, "GET", path_of(digest))
    return digest, ordinary


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-"}, {"Authorization": "Basic b2Y6bWluZQ=="}])
@pytest.mark.parametrize("size", [1, 1000, SMALL])
async def test_the_third_of_the_same_requests_is_answered_from_memory_and_counted_and_logged_as_ever(
    upstream: FakeRegistry, proxy: Proxy, parsed: list[str], size: int, headers: dict[str, str]
) -> None:
    body = bytes(number % 251 for number in range(size))
    target = path_of(upstream.add_blob(REPO, body))
    async with connect(proxy.host) as client:
        await proxy.get(target)
        parsed.clear()
        first, second, third = await thrice(client, "GET", target, headers)
        await until(lambda: len(proxy.requests) == 4)
    assert (parsed, third.body) == ([target, target], body)
    assert told(first) == told(second) == told(third)
    before, again = ({**record, "timestamp": "", "seconds": 0} for record in proxy.requests[-2:])
    assert before == again
    sample = proxy.metrics.registry.get_sample_value
    labels = {"kind": "blob", "upstream": "docker.io", "status": str(third.status), "outcome": "hit"}
    assert sample("entrepot_requests_total", labels) == 3
    assert sample("entrepot_client_bytes_total", {"upstream": "docker.io"}) == 4 * size
    assert upstream.count() == 1


@pytest.mark.parametrize(
    ("method", "size", "headers"),
    [
        ("HEAD", 100, {}),
        ("GET", 100, {"Range": "bytes=10-19"}),
        ("GET", 100, {"Range": "bytes=100-"}),
        ("GET", 100, {"If-None-Match": "*"}),
        ("GET", SMALL + 1, {}),
    ],
    ids=["head", "part", "beyond", "unmodified", "large"],
)
async def test_what_is_not_a_whole_small_blob_goes_the_ordinary_way(
    upstream: FakeRegistry, proxy: Proxy, parsed: list[str], method: str, size: int, headers: dict[str, str]
) -> None:
    target = path_of(upstream.add_blob(REPO, bytes(size)))
    await proxy.get(target)
    parsed.clear()
    async with connect(proxy.host) as client:
        first, _, third = await thrice(client, method, target, headers)
        assert told(first) == told(third)
        await client.ask(method, target, headers)
    assert len(parsed) == 4


async def test_permission_is_asked_each_time(
    upstream: FakeRegistry, proxy: Proxy, parsed: list[str], store: Path
) -> None:
    async with connect(proxy.host) as client:
        digest, _ = await known(upstream, proxy, client)
        assert (await client.ask("GET", path_of(digest, "library/other"))).status == 404
        (link,) = (store / "repositories").glob("**/_links/sha256/*")
        await asyncio.to_thread(link.unlink)
        proxy.app.housekeeping._repositories.forget()
        upstream.on("HEAD", path_contains="/blobs/").status(404)
        parsed.clear()
        assert (await client.ask("GET", path_of(digest))).status == 404
    assert parsed == [path_of(digest)]


async def remove(proxy: Proxy, digest: str) -> None:
    """As eviction does, and another worker's: it is noticed in the round after the next use."""
    await asyncio.to_thread(proxy.blob_path(digest).unlink)
    await noticed(proxy, digest)


async def take_out(proxy: Proxy, digest: str) -> None:
    """As an operator does, whoever asks for it meanwhile."""
    await asyncio.to_thread(proxy.blob_path(digest).unlink)
    await announce_change(proxy.app.housekeeping._tree)
    await proxy.app.housekeeping._heed_changes()


async def quarantine(proxy: Proxy, digest: str) -> None:
    """As a scrub does, that finds it damaged."""
    await asyncio.to_thread(rotten, proxy.blob_path(digest))
    await scrubbed(proxy)
    await noticed(proxy, digest)


async def noticed(proxy: Proxy, digest: str) -> None:
    """It is used, and the next round finds out whether it is still there."""
    proxy.app.means.blobs.used(Digest.parse(digest))
    await proxy.app.housekeeping.record_uses()


@pytest.mark.parametrize("removal", [remove, take_out])
async def test_what_was_removed_is_not_answered_from_memory_and_fetched_again(
    upstream: FakeRegistry,
    proxy: Proxy,
    parsed: list[str],
    removal: Callable[[Proxy, str], Awaitable[None]],
) -> None:
    async with connect(proxy.host) as client:
        digest, ordinary = await known(upstream, proxy, client)
        await removal(proxy, digest)
        parsed.clear()
        assert told(await client.ask("GET", path_of(digest))) == told(ordinary)
        await proxy.settled()
        assert (parsed, proxy.blobs(), upstream.count("GET")) == ([path_of(digest)], [digest], 2)
        await client.ask("GET", path_of(digest))
        assert told(await client.ask("GET", path_of(digest))) == told(ordinary)
        assert len(parsed) < 3  # it is stored, and answered from memory again


async def test_what_is_answered_from_memory_is_used(upstream: FakeRegistry, proxy: Proxy, parsed: list[str]) -> None:
    async with connect(proxy.host) as client:
        digest, _ = await known(upstream, proxy, client)
        await proxy.app.housekeeping.record_uses()
        before = proxy.blob_path(digest).stat().st_mtime_ns
        await client.ask("GET", path_of(digest))
        await proxy.app.housekeeping.record_uses()
    assert len(parsed) == 3
    assert proxy.blob_path(digest).stat().st_mtime_ns > before


async def test_what_rots_on_the_disk_is_right_in_memory(
    upstream: FakeRegistry, proxy: Proxy, parsed: list[str]
) -> None:
    async with connect(proxy.host) as client:
        digest, ordinary = await known(upstream, proxy, client)
        await asyncio.to_thread(rotten, proxy.blob_path(digest))
        assert told(await client.ask("GET", path_of(digest))) == told(ordinary)
    assert len(parsed) == 3


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=1-3"}])
async def test_a_small_blob_that_rotted_is_not_sent_and_comes_from_upstream_at_once(
    upstream: FakeRegistry, proxy: Proxy, headers: dict[str, str]
) -> None:
    digest = upstream.add_blob(REPO, CONFIG)
    await proxy.get(path_of(digest))
    right = await proxy.get(path_of(digest), headers)
    await asyncio.to_thread(rotten, proxy.blob_path(digest))
    got = await proxy.get(path_of(digest), headers)
    assert (got.status, got.body, got.ended) == (right.status, right.body, "complete")
    await proxy.settled()
    assert (upstream.count("GET"), len(quarantined(proxy.store)), proxy.blobs()) == (2, 1, [digest])
    (line,) = [line for line in proxy.log if line["event"] == "blob damaged"]
    assert (line["kind"], line["remedy"]) == ("rot", "fetched again")


@pytest.mark.parametrize("store_keys", ["", "verify_on_read = true"])
async def test_a_small_blob_that_rotted_is_not_sent_though_it_cannot_be_taken_out(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch, store_keys: str
) -> None:
    def refusing(*_: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    digest = upstream.add_blob(REPO, CONFIG)
    async with running(toml(upstream.url, store=store_keys), store) as proxy:
        await proxy.get(path_of(digest))
        await asyncio.to_thread(rotten, proxy.blob_path(digest))
        monkeypatch.setattr(quarantine_of_the_store, "set_aside", refusing)
        got = await proxy.get(path_of(digest))
        assert (got.status, got.body, got.ended) == (200, CONFIG, "complete")
        await proxy.settled()
        assert await asyncio.to_thread(proxy.blob_path(digest).read_bytes) == CONFIG
        assert upstream.count("GET") == 2


async def test_while_somebody_records_every_request_is_noted(
    upstream: FakeRegistry, proxy: Proxy, parsed: list[str]
) -> None:
    async with connect(proxy.host) as client:
        digest, _ = await known(upstream, proxy, client)
        parsed.clear()
        proxy.app.recorder.is_on = True
        await thrice(client, "GET", path_of(digest))
    assert len(parsed) == 3


async def test_where_clients_may_be_redirected_each_request_is_looked_at(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, parsed: list[str]
) -> None:
    async with running(redirecting(upstream.url, bucket), store) as proxy, connect(proxy.host) as client:
        await known(upstream, proxy, client)
    assert len(parsed) == 4


async def test_the_memory_for_many_small_blobs_is_bounded(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "MEMORY", 100_000)
    async with running(toml(upstream.url), store) as proxy, connect(proxy.host) as client:
        for number in range(12):
            await known(upstream, proxy, client, bytes([number]) * 20_000)
        kept = connection(proxy)._repeats._known
        assert len(kept) == 100_000 // (20_000 + repeats.OVERHEAD + 700)
        assert 80_000 < kept.currsize <= 100_000


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_in_between_the_same_answer_comes_and_what_is_gone_is_fetched_once(
    upstream: FakeRegistry, proxy: Proxy, parsed: list[str], seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311  the same in every run is what is wanted
    bodies = {upstream.add_blob(REPO, body): body for body in (b"a", b"b" * 100, b"c" * SMALL)}
    right: dict[tuple[str, str], object] = {}
    async with connect(proxy.host) as client:
        for _ in range(80):
            digest, agent = chance.choice([*bodies]), chance.choice(["one", "two"])
            disturb = chance.choice([None, None, None, None, remove, take_out, quarantine])
            if disturb is not None and digest in proxy.blobs():
                await disturb(proxy, digest)
            answer = await client.ask("GET", path_of(digest), {"User-Agent": agent})
            assert told(answer) == right.setdefault((digest, agent), told(answer))
            assert digest_of(answer.body) == digest
            await proxy.settled()
            assert digest in proxy.blobs()
    assert len(parsed) < 80
