"""Damage that nobody has run into yet: found, taken out of the way, and healed from upstream."""

import asyncio
import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from proxy import files, scrubbing
from proxy.files import Tree, hop
from proxy.healing import Fate, Finding, Kind
from proxy.housekeeping import sweep
from proxy.oci.digest import Digest
from proxy.scrubbing import Busy, Order, Scrubber, Tally, Throttle
from proxy.stores.keys import blob_key

from .harness import Proxy, running, serving, toml, until
from .test_damaged_store import DAMAGES, committed, replaced, shortened
from .test_inventory import entrepot
from .upstream import FakeRegistry, digest_of

REPO = "library/app"
DATA = bytes(range(256)) * 1200  # 300 KiB
LINKS = f"repositories/docker.io/{REPO}/_links"


def rotten(path: Path) -> None:
    """Turn one bit of a file over."""
    path.chmod(0o600)
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    path.chmod(0o400)


def full_directory(path: Path) -> None:
    """Put a directory where a file is, with something in it."""
    path.unlink()
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "file").touch()


PLANTED: dict[str, Callable[[Path], object]] = {
    **{name: damage for name, damage in DAMAGES.items() if name != "vanished"},
    "rot": rotten,
    "directory": full_directory,
    "not to be read": lambda path: path.chmod(0o000),
}
KINDS = {"rot": Kind.ROT, "short": Kind.TRUNCATED, "empty": Kind.TRUNCATED, "longer": Kind.TRUNCATED}


async def scrubbed(proxy: Proxy, **order: Any) -> list[Finding]:
    """A whole pass as fast as it goes; what it found."""
    found: list[Finding] = []
    await proxy.app.scrubber.now(Order(Throttle(0), found=found.append, **order))
    return found


async def pulled(proxy: Proxy, digest: str) -> bool:
    """Whether a pull brings the right bytes."""
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    await proxy.settled()
    return (got.status, got.ended, digest_of(got.body)) == (200, "complete", digest)


def quarantined(store: Path) -> list[Path]:
    """What is in the quarantine."""
    return sorted((store / "quarantine").iterdir())


def outcomes(found: list[Finding]) -> list[tuple[Kind, Fate]]:
    """What was found, and what became of it."""
    return [(one.kind, one.fate) for one in found]


@pytest.mark.parametrize("damage", PLANTED)
async def test_a_damaged_blob_is_found_quarantined_and_healed_at_once(
    upstream: FakeRegistry, store: Path, damage: str
) -> None:
    if damage == "not to be read" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    digest = upstream.add_blob(REPO, DATA)
    async with running(toml(upstream.url), store) as proxy:
        assert await pulled(proxy, digest)
        await asyncio.to_thread(PLANTED[damage], proxy.blob_path(digest))
        (found,) = await scrubbed(proxy)
        assert (found.kind, found.fate) == (KINDS.get(damage, Kind.STRANGER), Fate.HEALED)
        (moved,) = quarantined(store)
        assert found.damage.moved == f"quarantine/{moved.name}"
        assert upstream.count("GET", path_contains=digest) == 2
        assert committed(proxy.blob_path(digest))
        assert await pulled(proxy, digest)
        assert upstream.count("GET", path_contains=digest) == 2
        assert await scrubbed(proxy) == []


@pytest.mark.parametrize("by", ["scrub", "read"])
async def test_what_is_quarantined_is_stored_no_more(upstream: FakeRegistry, store: Path, by: str) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with running(toml(upstream.url, store="verify_on_read = true"), store) as proxy:
        assert await pulled(proxy, digest)
        before = await proxy.app.means.space.refresh()
        await asyncio.to_thread(rotten, proxy.blob_path(digest))
        await (scrubbed(proxy, fetch=False) if by == "scrub" else pulled(proxy, digest))
        assert len(quarantined(store)) == 1
        assert await proxy.app.means.space.refresh() == 0
        assert await pulled(proxy, digest)
        assert await proxy.app.means.space.refresh() == before


async def test_what_is_right_is_left_alone_and_counted(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1", [DATA])
    await proxy.get(f"/v2/{REPO}/manifests/v1")
    for digest in image.blob_digests:
        assert await pulled(proxy, digest)
    assert await scrubbed(proxy) == []
    (done,) = [line for line in proxy.log if line["event"] == "scrub done"]
    size = sum(path.stat().st_size for path in (proxy.store / "blobs").glob("*/*/*"))
    assert (done["blobs"], done["bytes"], done["findings"]) == (3, size, 0)
    assert done["records"] == 5  # three links, a tag and its history
    assert quarantined(proxy.store) == []


STRANGERS = (
    "blobs/file",
    "blobs/sha256/file",
    "blobs/sha256/zz/" + "0" * 64,
    "blobs/sha256/00/" + "1" * 64,
    "blobs/sha256/00/" + "0" * 63,
    "blobs/sha256/00/" + "0" * 64 + ".gz",
    "blobs/md5/00/" + "0" * 32,
    f"repositories/docker.io/{REPO}/file",
    f"repositories/docker.io/{REPO}/_tags/v1/file",
    f"repositories/docker.io/{REPO}/_tags/-",
    f"{LINKS}/sha256/file",
    f"pins/docker.io/{REPO}/_links/md5/" + "0" * 32,
    "pins/file\x1b[31m\udcff",
)


@pytest.mark.parametrize("key", STRANGERS)
async def test_a_stranger_is_moved_out_of_the_way_and_nobody_is_asked(
    upstream: FakeRegistry, proxy: Proxy, key: str
) -> None:
    path = proxy.store / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"stranger")
    old = proxy.store / "quarantine" / "1-x-old"
    old.touch()
    assert outcomes(await scrubbed(proxy)) == [(Kind.STRANGER, Fate.MOVED)]
    assert not path.exists()
    assert not old.exists()
    assert len(quarantined(proxy.store)) == 1
    assert upstream.count() == 0


def replaced_directory(path: Path, elsewhere: Path) -> None:
    """Put a symbolic link where an empty directory is."""
    path.rmdir()
    path.symlink_to(elsewhere)


@pytest.mark.parametrize("plant", ["symlink", "symlinked directory", "FIFO", "hard link"])
async def test_a_stranger_is_not_followed(proxy: Proxy, plant: str) -> None:
    outside = proxy.store.parent / "outside"
    outside.mkdir()
    secret = outside / ("0" * 64)
    secret.write_bytes(b"secret")
    shard = proxy.store / "blobs" / "sha256" / "00"
    shard.mkdir(parents=True)
    plants: dict[str, Callable[[], object]] = {
        "symlink": lambda: (shard / secret.name).symlink_to(secret),
        "symlinked directory": lambda: replaced_directory(shard, outside),
        "FIFO": lambda: os.mkfifo(shard / secret.name),
        "hard link": lambda: os.link(secret, shard / secret.name),
    }
    await asyncio.to_thread(plants[plant])
    assert outcomes(await scrubbed(proxy)) == [(Kind.STRANGER, Fate.MOVED)]
    assert secret.read_bytes() == b"secret"
    assert list(outside.iterdir()) == [secret]


async def test_empty_directories_and_those_of_another_version_are_no_strangers(proxy: Proxy) -> None:
    newer = proxy.store / "repositories" / "docker.io" / "library" / "app" / "_notes"
    newer.mkdir(parents=True)
    (newer / "anything").touch()
    (proxy.store / "blobs" / "sha512" / "ab").mkdir(parents=True)
    assert await scrubbed(proxy) == []
    assert (newer / "anything").exists()


@pytest.mark.parametrize("body", [b"", b'{"size": []}', b'{"size": 7}' + b" " * 300_000], ids=["none", "other", "long"])
@pytest.mark.parametrize("kind", ["_links/*", "_tags", "_history"])
async def test_a_record_that_means_nothing_is_quarantined_and_asked_for_anew(
    upstream: FakeRegistry, store: Path, kind: str, body: bytes
) -> None:
    image = upstream.add_image(REPO, "v1")
    async with running(toml(upstream.url), store) as proxy:
        await proxy.get(f"/v2/{REPO}/manifests/v1")
        (record,) = (store / "repositories").glob(f"**/{kind}/*")
        record.write_bytes(body)
        fate = Fate.MISSING if kind == "_history" else Fate.MOVED
        assert outcomes(await scrubbed(proxy)) == [(Kind.RECORD, fate)]
        proxy.app.manifests.forget()
        await proxy.app.housekeeping._round(None)  # within five seconds, elsewhere
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).body == image.body
        assert kind == "_history" or json.loads(record.read_bytes())


async def test_a_pin_that_means_nothing_is_told_as_lost(proxy: Proxy) -> None:
    pin = proxy.store / "pins" / "docker.io" / "library" / "app" / "_tags" / "v1"
    pin.parent.mkdir(parents=True)
    pin.write_bytes(b"")
    (found,) = await scrubbed(proxy)
    assert (found.kind, found.fate) == (Kind.RECORD, Fate.MISSING)
    assert "pin docker.io/library/app:v1 again" in found.reason


# Healing


@pytest.mark.parametrize("restarted", [False, True], ids=["from memory", "from upstream"])
async def test_a_damaged_manifest_is_there_again(upstream: FakeRegistry, store: Path, restarted: bool) -> None:
    image = upstream.add_image(REPO, "v1")
    async with running(toml(upstream.url), store) as proxy:
        await proxy.get(f"/v2/{REPO}/manifests/v1")
        if not restarted:
            await asyncio.to_thread(rotten, proxy.blob_path(image.digest))
            assert outcomes(await scrubbed(proxy)) == [(Kind.ROT, Fate.HEALED)]
            assert upstream.count("GET", path_contains="/manifests/") == 1
            assert proxy.blob_path(image.digest).read_bytes() == image.body
    if restarted:
        await asyncio.to_thread(rotten, proxy.blob_path(image.digest))
        async with running(toml(upstream.url), store) as proxy:
            assert outcomes(await scrubbed(proxy)) == [(Kind.ROT, Fate.HEALED)]
            assert upstream.count("GET", path_contains=f"/manifests/{image.digest}") == 1
            assert proxy.blob_path(image.digest).read_bytes() == image.body


async def test_a_blob_of_a_sealed_upstream_is_missed_and_said_to_be(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with running(toml(upstream.url), store) as proxy:
        assert await pulled(proxy, digest)
    await asyncio.to_thread(rotten, proxy.blob_path(digest))
    asked = upstream.count()
    async with running(toml(upstream.url, more="sealed = true"), store) as proxy:
        (found,) = await scrubbed(proxy)
        assert (found.fate, found.reason) == (Fate.MISSING, "its upstream is sealed, or not configured")
        assert upstream.count() == asked
        (line,) = [line for line in proxy.log if line["event"] == "scrub found"]
        assert (line["what"], line["fate"], line["level"]) == (digest, "missing", "warning")
        assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).status == 404
    async with running(toml(upstream.url), store) as proxy:
        assert await pulled(proxy, digest)


async def test_a_blob_that_two_repositories_have_is_fetched_from_the_one_that_still_has_it(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.add_blob("library/other", DATA)
    for repository in (REPO, "library/other"):
        await proxy.get(f"/v2/{repository}/blobs/{digest}")
    await proxy.settled()
    for gone in (REPO, "library/other"):
        upstream.on("GET", path_contains=f"/{gone}/", times=9).status(404)
        await asyncio.to_thread(rotten, proxy.blob_path(digest))
        fate = Fate.HEALED if gone == REPO else Fate.MISSING
        assert outcomes(await scrubbed(proxy)) == [(Kind.ROT, fate)]


async def test_what_no_repository_has_is_missed_by_nobody(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = Digest.parse(upstream.add_blob(REPO, DATA))
    await proxy.app.blobs._means.blobs.put(digest, b"wrong")
    assert outcomes(await scrubbed(proxy)) == [(Kind.ROT, Fate.MOVED)]
    assert upstream.count() == 0


async def test_without_healing_nobody_is_asked_and_the_next_pull_heals(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    assert await pulled(proxy, digest)
    await asyncio.to_thread(shortened, proxy.blob_path(digest))
    assert outcomes(await scrubbed(proxy, fetch=False)) == [(Kind.TRUNCATED, Fate.MISSING)]
    assert upstream.count("GET") == 1
    assert await pulled(proxy, digest)
    assert upstream.count("GET") == 2


async def test_a_pull_while_it_is_healed_joins_and_gets_the_right_bytes(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    assert await pulled(proxy, digest)
    await asyncio.to_thread(rotten, proxy.blob_path(digest))
    gate = upstream.on("GET", blob=digest, times=1).gate(after=1000)
    scrub = asyncio.create_task(scrubbed(proxy))
    await until(lambda: upstream.count("GET", path_contains=digest) == 2)
    pull = asyncio.create_task(pulled(proxy, digest))
    await until(lambda: proxy.app.handlers.active == 1)
    gate.open()
    assert await pull
    assert outcomes(await scrub) == [(Kind.ROT, Fate.HEALED)]
    assert upstream.count("GET", path_contains=digest) == 2


# No false alarms


@pytest.fixture
def meddling(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], object]]]:
    """What is called, in turn, as pieces of blobs are about to be read; in the thread that reads."""
    calls: list[Callable[[], object]] = []
    read = files.hash_piece

    def meddled(fd: int, offset: int, hasher: Any) -> int:
        if calls:
            calls.pop(0)()
        return read(fd, offset, hasher)

    monkeypatch.setattr(files, "hash_piece", meddled)
    yield calls
    assert calls == []


def failing(number: int) -> Callable[[], object]:
    """A read that fails."""

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


async def test_a_blob_that_is_evicted_while_it_is_read_is_nothing(
    upstream: FakeRegistry, proxy: Proxy, meddling: list[Callable[[], object]]
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    assert await pulled(proxy, digest)
    rotten(proxy.blob_path(digest))
    meddling.append(lambda: proxy.app.blobs._means.tree.evict(blob_key(Digest.parse(digest))))
    assert await scrubbed(proxy) == []
    assert (upstream.count("GET"), quarantined(proxy.store)) == (1, [])


async def test_a_blob_that_is_replaced_while_it_is_read_is_nothing_and_stays(
    upstream: FakeRegistry, proxy: Proxy, meddling: list[Callable[[], object]]
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    assert await pulled(proxy, digest)
    path = proxy.blob_path(digest)
    rotten(path)

    def healed(target: Path) -> None:
        target.write_bytes(DATA)
        target.chmod(0o400)

    meddling.append(lambda: replaced(path, healed))
    assert await scrubbed(proxy) == []
    assert path.read_bytes() == DATA


async def test_a_blob_that_is_replaced_just_as_it_is_moved_is_put_back(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    assert await pulled(proxy, digest)
    path = proxy.blob_path(digest)
    rotten(path)
    rename = os.rename

    def late(source: str, target: str, **where: Any) -> None:
        if source == path.name and not other.exists():
            other.touch()
            path.unlink()
            path.write_bytes(DATA)
            path.chmod(0o400)
        rename(source, target, **where)

    other = proxy.store.parent / "late"
    monkeypatch.setattr(os, "rename", late)
    assert await scrubbed(proxy) == []
    assert (path.read_bytes(), quarantined(proxy.store)) == (DATA, [])


@pytest.mark.parametrize("number", [errno.EIO, errno.EUCLEAN, errno.EBADMSG])
async def test_a_disk_that_fails_once_is_no_damage_and_twice_it_is(
    upstream: FakeRegistry, proxy: Proxy, meddling: list[Callable[[], object]], number: int
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    assert await pulled(proxy, digest)
    meddling.append(failing(number))
    assert await scrubbed(proxy) == []
    meddling += [failing(number), failing(number)]
    assert outcomes(await scrubbed(proxy)) == [(Kind.UNREADABLE, Fate.HEALED)]


async def test_storage_that_is_away_is_said_and_nothing_is_moved(
    upstream: FakeRegistry, proxy: Proxy, meddling: list[Callable[[], object]]
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    assert await pulled(proxy, digest)
    meddling += [failing(errno.ESTALE), failing(errno.ESTALE)]
    assert outcomes(await scrubbed(proxy)) == [(Kind.UNREADABLE, Fate.LEFT)]
    assert quarantined(proxy.store) == []


@pytest.mark.parametrize("call", ["entries", "examine"])
async def test_what_cannot_be_looked_at_is_said_and_the_rest_goes_on(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    first, second = sorted(upstream.add_blob(REPO, bytes([number])) for number in range(2))
    for digest in (first, second):
        assert await pulled(proxy, digest)
    await asyncio.to_thread(rotten, proxy.blob_path(second))
    key = blob_key(Digest.parse(first))
    bad = key if call == "examine" else key.rpartition("/")[0]
    real = getattr(Tree, call)

    def fails(self: Tree, what: str) -> Any:
        return failing(errno.EIO)() if what == bad else real(self, what)

    monkeypatch.setattr(Tree, call, fails)
    found = await scrubbed(proxy)
    assert outcomes(found) == [(Kind.UNREADABLE, Fate.LEFT), (Kind.ROT, Fate.HEALED)]
    assert (found[0].damage.key, found[0].reason) == (bad, "Input/output error")


async def test_without_descriptors_nothing_is_said_of_what_could_not_be_looked_at(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await pulled(proxy, upstream.add_blob(REPO, DATA))
    monkeypatch.setattr(Tree, "examine", lambda *_: failing(errno.EMFILE)())
    found: list[Finding] = []
    with pytest.raises(OSError, match="Too many open files"):
        await proxy.app.scrubber.now(Order(Throttle(0), found=found.append))
    assert found == []


async def test_a_disk_that_fails_as_something_is_healed_says_nothing_of_what_is_read_meanwhile(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrubbing, "SETTLE", 0.0)
    assert await pulled(proxy, upstream.add_blob(REPO, DATA))
    monkeypatch.setattr(Scrubber, "_write", lambda *_: failing(errno.EIO)())
    with pytest.raises(OSError, match="Input/output error"):
        await proxy.app.scrubber.patrol()
    assert quarantined(proxy.store) == []


async def test_what_was_moved_when_a_scrub_breaks_off_is_told(
    upstream: FakeRegistry, proxy: Proxy, meddling: list[Callable[[], object]]
) -> None:
    digests = sorted(upstream.add_blob(REPO, b"%d" % number) for number in range(2))
    for digest in digests:
        assert await pulled(proxy, digest)
    await asyncio.to_thread(rotten, proxy.blob_path(digests[0]))
    meddling += [lambda: None, failing(errno.EMFILE)]
    with pytest.raises(OSError, match="Too many open files"):
        await proxy.app.scrubber.patrol()
    (line,) = [line for line in proxy.log if line["event"] == "scrub found"]
    assert (line["what"], line["fate"], line["reason"]) == (
        digests[0],
        "missing",
        "the scrub was broken off",
    )
    assert await pulled(proxy, digests[0])


async def test_a_process_without_descriptors_finds_no_damage_and_goes_on_later(
    upstream: FakeRegistry, proxy: Proxy, meddling: list[Callable[[], object]]
) -> None:
    digests = sorted(upstream.add_blob(REPO, b"%d" % number) for number in range(3))
    for digest in digests:
        assert await pulled(proxy, digest)
    meddling += [lambda: None, failing(errno.EMFILE)]
    with pytest.raises(OSError, match="Too many open files"):
        await proxy.app.scrubber.patrol()
    await proxy.app.scrubber.patrol()
    assert quarantined(proxy.store) == []


async def test_what_cannot_be_moved_is_left_and_said(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    assert await pulled(proxy, digest)
    rotten(proxy.blob_path(digest))
    monkeypatch.setattr(os, "rename", lambda *_args, **_kwargs: failing(errno.EROFS)())
    (found,) = await scrubbed(proxy)
    assert (found.fate, found.reason) == (Fate.LEFT, "Read-only file system")


# By one at a time, at a pace, and on from where it was


async def test_two_operators_do_not_scrub_at_once_and_the_server_gives_way(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrubbing, "GIVE_WAY", 0.005)
    digest = upstream.add_blob(REPO, DATA)
    assert await pulled(proxy, digest)
    rotten(proxy.blob_path(digest))
    gate = upstream.on("GET", blob=digest, times=1).gate(after=1000)
    first = asyncio.create_task(scrubbed(proxy))
    await until(lambda: upstream.count("GET", path_contains=digest) == 2)
    with pytest.raises(Busy):
        await scrubbed(proxy)
    looks: list[bool] = []
    looked = Scrubber._is_by_hand

    def look(self: Scrubber) -> bool:
        looks.append(looked(self))
        return looks[-1]

    monkeypatch.setattr(Scrubber, "_is_by_hand", look)
    patrol = asyncio.create_task(proxy.app.scrubber.patrol())
    await until(lambda: len(looks) > 2)
    assert all(looks)
    gate.open()
    assert outcomes(await first) == [(Kind.ROT, Fate.HEALED)]
    await patrol
    assert [line["findings"] for line in proxy.log if line["event"] == "scrub done"] == [1, 0]


async def test_after_a_restart_a_pass_goes_on_where_it_was(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrubbing, "SETTLE", 0.0)
    digests = sorted(upstream.add_blob(REPO, b"%d" % number) for number in range(8))
    started = asyncio.Event()
    async with running(toml(upstream.url), store) as proxy:
        for digest in digests:
            assert await pulled(proxy, digest)
        keep = Scrubber._write

        async def kept(self: Scrubber, key: str, tally: Tally) -> None:
            await keep(self, key, tally)
            if tally.blobs == 3:
                started.set()
                await asyncio.Event().wait()

        monkeypatch.setattr(Scrubber, "_write", kept)
        patrol = asyncio.create_task(proxy.app.scrubber.patrol())
        await started.wait()
        patrol.cancel()  # as a stop does
        await asyncio.gather(patrol, return_exceptions=True)
    for digest in digests[2:4]:
        await asyncio.to_thread(rotten, proxy.blob_path(digest))
    monkeypatch.setattr(Scrubber, "_write", keep)
    async with running(toml(upstream.url), store) as proxy:
        await proxy.app.scrubber.patrol()
        (found,) = [line for line in proxy.log if line["event"] == "scrub found"]
        assert found["what"] == digests[3]  # the one before had been looked at
        (done,) = [line for line in proxy.log if line["event"] == "scrub done"]
        assert (done["blobs"], done["findings"]) == (8, 1)
        await proxy.app.scrubber.patrol()
        assert [line["findings"] for line in proxy.log if line["event"] == "scrub done"] == [1, 1]


@pytest.mark.parametrize("body", [b"", b"{", b'{"began": "x"}', b'{"began": 1, "place": {"directory": 7}}', b"[]"])
async def test_a_place_that_means_nothing_is_the_beginning(upstream: FakeRegistry, proxy: Proxy, body: bytes) -> None:
    digest = upstream.add_blob(REPO, DATA)
    assert await pulled(proxy, digest)
    (proxy.store / "jobs" / "scrub-pass").write_bytes(body)
    await proxy.app.scrubber.patrol()
    (done,) = [line for line in proxy.log if line["event"] == "scrub done"]
    assert done["blobs"] == 1


async def test_no_more_is_read_than_the_pace_allows(upstream: FakeRegistry, proxy: Proxy) -> None:
    digests = [upstream.add_blob(REPO, bytes([number]) * 3_000_000) for number in range(3)]
    for digest in digests:
        assert await pulled(proxy, digest)
    now, reads = [0.0], list[tuple[float, int]]()

    async def sleep(seconds: float) -> None:
        now[0] += seconds
        await asyncio.sleep(0)

    throttle = Throttle(1_000_000, clock=lambda: now[0], sleep=sleep)
    await proxy.app.scrubber.now(Order(throttle, read=lambda count: reads.append((now[0], count))))
    assert sum(count for _, count in reads) == 9_000_000
    total = 0
    for when, count in reads:
        assert total <= when * 1_000_000 + 1
        total += count
    assert now[0] >= 9.0


async def test_what_was_not_read_in_time_is_not_made_up_for() -> None:
    now = [0.0]
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    throttle = Throttle(100, clock=lambda: now[0], sleep=sleep)
    await throttle.spend(100)
    now[0] += 3600
    await throttle.spend(100)
    await throttle.spend(50)
    assert slept == [1.0, 1.0, 0.5]


@pytest.mark.skipif(shutil.which("fincore") is None, reason="util-linux has no fincore here")
async def test_what_a_scrub_reads_is_not_kept_in_memory_and_what_others_read_is(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    hot, cold = (upstream.add_blob(REPO, bytes([number]) * 3_000_000) for number in range(2))
    for digest in (hot, cold):
        assert await pulled(proxy, digest)
    await hop(_put_out_of_memory, proxy.blob_path(cold))
    before = [await resident(proxy.blob_path(digest)) for digest in (hot, cold)]
    if before[0] < 3_000_000 or before[1]:
        pytest.skip("this file system does not put anything out of memory")
    assert await scrubbed(proxy) == []
    assert [await resident(proxy.blob_path(digest)) for digest in (hot, cold)] == before


def _put_out_of_memory(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def resident(path: Path) -> int:
    """How many bytes of a file are in the system's memory, in whole pages."""
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    told, _ = await process.communicate()
    return int(told)


# The command


def configured(upstream: FakeRegistry, store: Path, more: str = "") -> None:
    """Write the configuration, with no server that reads it."""
    (store.parent / f"{store.name}.toml").write_text(toml(upstream.url, more=more))


async def test_the_command_tells_what_it_found_and_what_became_of_it(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with running(toml(upstream.url), store) as proxy:
        assert await pulled(proxy, digest)
        assert "all is well" in (await entrepot(store, "scrub")).stdout
        await asyncio.to_thread(rotten, proxy.blob_path(digest))
        (store / "blobs" / "a\x1b[31m").touch()
        said = (await entrepot(store, "scrub")).stdout  # beside the server
        assert "rot" in said
        assert f"{digest[:19]}  307.2 kB  healed" in said
        assert "2 found, 1 healed, 1 moved" in said
        assert r"blobs/a\x1b[31m" in said
        assert "307.2 kB  besides, in quarantine" in (await entrepot(store, "du")).stdout
        assert await pulled(proxy, digest)
        assert upstream.count("GET") == 2


async def test_the_command_ends_with_1_where_something_is_missing_still(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with running(toml(upstream.url), store) as proxy:
        assert await pulled(proxy, digest)
    await asyncio.to_thread(shortened, proxy.blob_path(digest))
    configured(upstream, store, more="sealed = true")
    told = json.loads((await entrepot(store, "scrub", "--json", code=1)).stdout)
    assert (told["well"], told["fates"], told["blobs"]) == (False, {"missing": 1}, 1)
    (found,) = told["found"]
    assert (found["kind"], found["digest"], found["size"]) == ("truncated", digest, 1000)
    assert found["repositories"] == [f"docker.io/{REPO}"]
    assert (store / found["quarantine"]).stat().st_size == 1000


async def test_the_command_fetches_nothing_where_it_is_told_not_to(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with running(toml(upstream.url), store) as proxy:
        assert await pulled(proxy, digest)
    await asyncio.to_thread(rotten, proxy.blob_path(digest))
    await entrepot(store, "scrub", "--no-heal", "--rate", "100MB", code=1)
    assert upstream.count("GET") == 1


async def test_the_command_does_not_scrub_beside_another_one(upstream: FakeRegistry, store: Path) -> None:
    configured(upstream, store)
    async with running(toml(upstream.url), store) as proxy:
        tree = proxy.app.scrubber.tree
        with contextlib.ExitStack() as stack:
            assert await hop(stack.enter_context, tree.claimed(scrubbing.BY_HAND)) is not None
            assert "another entrepot scrub" in (await entrepot(store, "scrub", code=2)).stderr
    assert "500 MiB" in (await entrepot(store, "scrub", "--rate", "fast", code=2)).stderr


async def test_a_server_scrubs_by_itself_and_tells_how_it_gets_on(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with running(toml(upstream.url), store) as proxy:
        assert await pulled(proxy, digest)
    await asyncio.to_thread(rotten, proxy.blob_path(digest))
    async with serving(toml(upstream.url), store) as server:
        await until(lambda: any(line["event"] == "scrub done" for line in server.lines))
        async with aiohttp.ClientSession() as session, session.get(f"http://{server.admin}/api/scrub") as response:
            told = await response.json()
        assert told["last"]["fates"] == {"healed": 1}
        assert (told["rate"], told["quarantine"]) == (10_000_000, len(DATA))
        metrics = await server.metrics()
        assert 'entrepot_findings_total{fate="healed",kind="rot"} 1.0' in metrics
        assert "entrepot_scrubbed_blobs_total 1.0" in metrics
        await until(lambda: int((store / "jobs" / "scrub").read_bytes() or b"0") > 0, "it is not due again")


async def test_after_a_scrub_by_hand_the_servers_is_not_due(proxy: Proxy) -> None:
    (proxy.store / "jobs" / "scrub-pass").write_bytes(b'{"began": 1}')
    assert (await hop(proxy.app.desk.scrub))["going_on"]["blobs"] == 0
    await scrubbed(proxy)
    assert (await hop(proxy.app.desk.scrub))["going_on"] is None
    (job,) = [job for job in proxy.app.jobs._jobs if job.name == "scrub"]
    assert await proxy.app.jobs.turn(job) > job.every - 60
    assert [line["event"] for line in proxy.log].count("scrub done") == 1


async def test_what_is_old_in_quarantine_goes_with_the_next_sweep(proxy: Proxy) -> None:
    (proxy.store / "quarantine" / "1-x-old").touch()
    await hop(sweep, proxy.app.scrubber.tree)
    assert quarantined(proxy.store) == []


async def test_a_rate_of_nothing_is_no_scrub(upstream: FakeRegistry, store: Path) -> None:
    async with running(toml(upstream.url, store='scrub_rate = "0"'), store) as proxy:
        assert "scrub" not in [job.name for job in proxy.app.jobs._jobs]
