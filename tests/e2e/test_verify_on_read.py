"""With store.verify_on_read no byte that rotted on the disk completes a blob."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy import vouching
from proxy.files import Handle, calls
from proxy.oci.digest import Hasher

from .harness import Proxy, running, toml, until
from .test_damaged_store import DAMAGES
from .test_scrub import quarantined, rotten
from .upstream import FakeRegistry, digest_of

REPO = "library/app"
DATA = bytes(range(256)) * 4096  # 1 MiB
PART = {"Range": "bytes=1000-1999"}


@pytest.fixture
async def proxy(upstream: FakeRegistry, store: Path) -> AsyncIterator[Proxy]:
    """A proxy that trusts no disk."""
    async with running(toml(upstream.url, store="verify_on_read = true"), store) as one:
        yield one


async def stored(upstream: FakeRegistry, proxy: Proxy, data: bytes = DATA) -> str:
    """A blob that has been pulled; its target."""
    target = f"/v2/{REPO}/blobs/{upstream.add_blob(REPO, data)}"
    assert (await proxy.get(target)).status == 200
    await proxy.settled()
    return target


def path_of(proxy: Proxy, target: str) -> Path:
    """Where the blob of a target is stored."""
    return proxy.blob_path(target.rpartition("/")[2])


async def test_a_blob_that_is_right_is_sent_whole_and_in_part(upstream: FakeRegistry, proxy: Proxy) -> None:
    target = await stored(upstream, proxy)
    got = await proxy.get(target)
    assert (got.body, got.ended) == (DATA, "complete")
    part = await proxy.get(target, PART)
    assert (part.status, part.body) == (206, DATA[1000:2000])
    assert (await proxy.get(target, {"Range": "bytes=0-"})).body == DATA
    assert (await proxy.head(target)).header("Content-Length") == str(len(DATA))
    assert upstream.count("GET") == 1


async def test_a_blob_that_rotted_is_closed_short_and_comes_from_upstream_the_next_time(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    target = await stored(upstream, proxy)
    await asyncio.to_thread(rotten, path_of(proxy, target))
    got = await proxy.get(target)
    assert (got.status, got.ended) == (200, "short")
    assert len(got.body) < len(DATA)
    assert len(quarantined(proxy.store)) == 1
    again = await proxy.get(target)
    assert (again.body, again.ended) == (DATA, "complete")
    await proxy.settled()
    assert upstream.count("GET") == 2
    (line,) = [line for line in proxy.log if line["event"] == "blob damaged"]
    assert (line["kind"], line["remedy"]) == ("rot", "fetched again")


@pytest.mark.parametrize("headers", [PART, {"Range": "bytes=0-"}, {"Range": "bytes=-1"}])
async def test_a_part_of_a_blob_that_rotted_comes_from_upstream_at_once(
    upstream: FakeRegistry, proxy: Proxy, headers: dict[str, str]
) -> None:
    target = await stored(upstream, proxy)
    whole = await proxy.get(target, headers)
    await asyncio.to_thread(rotten, path_of(proxy, target))
    proxy.app.blobs._vouching._known.clear()  # as after an hour, or in another process
    got = await proxy.get(target, headers)
    assert (got.status, got.body, got.ended) == (206, whole.body, "complete")
    await proxy.settled()
    assert (upstream.count("GET"), len(quarantined(proxy.store))) == (2, 1)


async def test_head_does_not_promise_a_blob_that_rotted(upstream: FakeRegistry, proxy: Proxy) -> None:
    target = await stored(upstream, proxy)
    await asyncio.to_thread(rotten, path_of(proxy, target))
    upstream.on("HEAD", path_contains="/blobs/").status(404)
    assert (await proxy.head(target)).status == 404
    assert len(quarantined(proxy.store)) == 1


@pytest.mark.parametrize("damage", ["short", "empty", "longer"])
async def test_other_damage_is_healed_at_once(upstream: FakeRegistry, proxy: Proxy, damage: str) -> None:
    target = await stored(upstream, proxy)
    await asyncio.to_thread(DAMAGES[damage], path_of(proxy, target))
    assert (await proxy.get(target)).body == DATA
    await proxy.settled()
    assert upstream.count("GET") == 2


async def test_nothing_where_a_blob_belongs_is_not_sent_whatever_the_link_says(
    upstream: FakeRegistry, store: Path
) -> None:
    async with running(toml(upstream.url), store) as proxy:
        target = await stored(upstream, proxy)
        await asyncio.to_thread(DAMAGES["empty"], path_of(proxy, target))
        (link,) = (store / "repositories").glob("**/_links/*/*")
        link.write_bytes(b'{"size": 0}')
        proxy.app.housekeeping._repositories.forget()
        assert (await proxy.get(target)).body == DATA


async def test_a_file_is_read_through_once_for_any_number_of_parts(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = await stored(upstream, proxy)
    pieces: list[int] = []
    read = calls._read_hashed

    def counted(fd: int, offset: int, count: int, hasher: Hasher) -> bytes:
        pieces.append(offset)
        return read(fd, offset, count, hasher)

    monkeypatch.setattr(calls, "_read_hashed", counted)
    for got in await asyncio.gather(*(proxy.get(target, PART) for _ in range(8))):
        assert got.body == DATA[1000:2000]
    await proxy.app.housekeeping._round(None)  # its use is written down, which changes the file's times
    assert (await proxy.get(target, PART)).status == 206
    assert pieces == [0, len(DATA)]


async def test_who_leaves_does_not_have_the_reading_begin_again(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = await stored(upstream, proxy)
    begun, gate = asyncio.Event(), asyncio.Event()
    read = vouching.Vouching._read

    async def slow(self: vouching.Vouching, identity: vouching.Identity, handle: Handle) -> bool:
        begun.set()
        await gate.wait()
        return await read(self, identity, handle)

    monkeypatch.setattr(vouching.Vouching, "_read", slow)
    leaving = asyncio.create_task(proxy.get(target, PART))
    await begun.wait()
    leaving.cancel()
    await proxy.settled()
    gate.set()
    await until(lambda: len(proxy.app.blobs._vouching._known) == 1)
    begun.clear()
    assert (await proxy.get(target, PART)).body == DATA[1000:2000]
    assert not begun.is_set()


async def test_many_clients_of_a_blob_that_rotted_get_no_wrong_byte_whole(upstream: FakeRegistry, proxy: Proxy) -> None:
    target = await stored(upstream, proxy)
    await asyncio.to_thread(rotten, path_of(proxy, target))
    for got in await asyncio.gather(*(proxy.get(target) for _ in range(8))):
        assert got.ended == "short" or digest_of(got.body) == digest_of(DATA)
    await proxy.settled()
    assert (await proxy.get(target)).body == DATA
    assert (upstream.count("GET"), len(quarantined(proxy.store))) == (2, 1)
