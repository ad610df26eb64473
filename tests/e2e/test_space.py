"""The cache takes no more than it may, drops what was used longest ago, and lets pass what it cannot keep."""

import asyncio
import errno
import os
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.files import cached

from .harness import DEADLINE, Proxy, open_blobs, running, serving, toml, until
from .raw_client import connect
from .upstream import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, FakeRegistry, descriptor, digest_of

REPO = "library/app"
DATA = bytes(range(256)) * 1200  # 300 KiB


def blob(number: int, data: bytes = DATA) -> bytes:
    """As many blobs as one likes."""
    return number.to_bytes(4, "big") + data[4:]


def limited(upstream: FakeRegistry, size: str) -> str:
    """A configuration with a max_size."""
    return toml(upstream.url, store=f'max_size = "{size}"')


def taken(store: Path) -> int:
    """The bytes that blobs and spools take, in whole blocks."""
    files = [path for folder in ("blobs", "spool") for path in (store / folder).rglob("*") if path.is_file()]
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in files)


async def pull(proxy: Proxy, digest: str) -> str:
    """GET a blob, which must be right; returns where it came from."""
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert (got.status, got.ended, digest_of(got.body)) == (200, "complete", digest)
    await until(lambda: any(r["reference"] == digest for r in proxy.requests))
    return str([r["outcome"] for r in proxy.requests if r["reference"] == digest][-1])


async def name(proxy: Proxy, upstream: FakeRegistry, *blobs: bytes) -> list[str]:
    """Let the proxy see a manifest that names these blobs and their sizes."""
    digests = [upstream.add_blob(REPO, data) for data in blobs]
    layers = [descriptor(OCI_LAYER, digest, len(data)) for digest, data in zip(digests, blobs, strict=True)]
    config = descriptor(OCI_CONFIG, upstream.add_blob(REPO, b"{}"), 2)
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}
    manifest = upstream.add_manifest(REPO, document)
    assert (await proxy.get(f"/v2/{REPO}/manifests/{manifest}")).status == 200
    return digests


# max_size


async def test_the_least_recently_used_goes_first(upstream: FakeRegistry, store: Path) -> None:
    first, second, third, fourth = (upstream.add_blob(REPO, blob(n)) for n in range(4))
    async with running(limited(upstream, "1 MB"), store) as proxy:
        for digest in (first, second, third):
            assert await pull(proxy, digest) == "fill"
        assert await pull(proxy, first) == "hit"
        assert await pull(proxy, fourth) == "fill"
        assert proxy.blobs() == sorted([first, third, fourth])
        assert await pull(proxy, second) == "fill"
        assert proxy.blobs() == sorted([first, fourth, second])
        assert proxy.metrics.evicted_bytes._value.get() == 2 * len(DATA)


async def test_the_last_use_survives_a_restart(upstream: FakeRegistry, store: Path) -> None:
    first, second, third, fourth = (upstream.add_blob(REPO, blob(n)) for n in range(4))
    async with running(limited(upstream, "1 MB"), store) as proxy:
        for digest in (first, second, third, first):
            await pull(proxy, digest)
    async with running(limited(upstream, "1 MB"), store) as proxy:
        await pull(proxy, fourth)
        assert proxy.blobs() == sorted([first, third, fourth])


async def test_the_last_use_in_one_process_counts_in_the_other(upstream: FakeRegistry, store: Path) -> None:
    first, second, third, fourth = (upstream.add_blob(REPO, blob(n)) for n in range(4))
    async with (
        running(limited(upstream, "1 MB"), store) as one,
        running(limited(upstream, "1 MB"), store, alone=False) as other,
    ):
        for digest in (first, second, third):
            await pull(one, digest)
        await pull(other, first)
        await other.app.housekeeping._store.record_uses()  # as it does every few seconds
        await pull(one, fourth)
        assert one.blobs() == sorted([first, third, fourth])


async def test_nothing_waits_for_a_look_that_takes_long(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with running(limited(upstream, "1 MB"), store) as proxy:
        await pull(proxy, digest)
        os.utime(proxy.blob_path(digest), (1, 1))
        monkeypatch.setattr(proxy.app.means.space, "prepare", asyncio.Event().wait)
        keeping = asyncio.create_task(proxy.app.housekeeping.run())
        await until(lambda: proxy.metrics.descriptors._value.get() > 0, "the round comes to its end")
        assert proxy.blob_path(digest).stat().st_mtime > 1
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_what_is_small_goes_last(upstream: FakeRegistry, store: Path) -> None:
    small = upstream.add_blob(REPO, b"a config")
    large = [upstream.add_blob(REPO, blob(n)) for n in range(5)]
    async with running(limited(upstream, "1 MB"), store) as proxy:
        for digest in (small, *large):
            await pull(proxy, digest)
        assert proxy.blobs() == sorted([small, *large[-3:]])


async def test_no_mixture_of_concurrent_pulls_takes_more_than_max_size(upstream: FakeRegistry, store: Path) -> None:
    digests = [upstream.add_blob(REPO, blob(n)) for n in range(12)]
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, await asyncio.to_thread(taken_or_less, store))
            await asyncio.sleep(0)

    async with running(limited(upstream, "1 MB"), store) as proxy:
        watching = asyncio.create_task(watch())
        await asyncio.gather(*(pull(proxy, digest) for digest in digests))
        await proxy.settled()
        watching.cancel()
        assert 0 < most <= 1_000_000
        assert taken(store) <= 1_000_000
        assert proxy.spools() == []


def taken_or_less(store: Path) -> int:
    """Like `taken`, while files come and go."""
    try:
        return taken(store)
    except FileNotFoundError:
        return 0


async def test_space_is_reserved_before_the_first_byte(upstream: FakeRegistry, store: Path) -> None:
    data = DATA * 2
    async with running(limited(upstream, "1 MB"), store) as proxy:
        one, other = await name(proxy, upstream, blob(1, data), blob(2, data))
        gate = upstream.on("GET", blob=one).gate(after=10)
        first = asyncio.create_task(pull(proxy, one))
        await gate.reached.wait()
        assert await pull(proxy, other) == "direct"
        gate.open()
        assert await first == "fill"
        assert one in proxy.blobs()
        assert other not in proxy.blobs()


async def test_what_one_process_has_reserved_another_does_not_take(upstream: FakeRegistry, store: Path) -> None:
    one, other = (upstream.add_blob(REPO, blob(n, DATA * 2)) for n in range(2))
    gate = upstream.on("GET", blob=one).gate(after=10)
    async with (
        running(limited(upstream, "1 MB"), store) as first,
        running(limited(upstream, "1 MB"), store, alone=False) as second,
    ):
        pulling = asyncio.create_task(pull(first, one))
        await gate.reached.wait()
        assert await pull(second, other) == "direct"
        gate.open()
        assert await pulling == "fill"
        assert await pull(second, other) == "fill"  # the first is stored, and may go
        assert first.blobs() == [other]


async def test_what_a_dead_process_had_reserved_counts_no_more(upstream: FakeRegistry, store: Path) -> None:
    one, other = (upstream.add_blob(REPO, blob(n, DATA * 2)) for n in range(2))
    gate = upstream.on("GET", blob=one).gate(after=100_000)
    async with running(limited(upstream, "1 MB"), store) as living:
        async with serving(limited(upstream, "1 MB"), store) as dying:
            pulling = asyncio.create_task(dying.get(f"/v2/{REPO}/blobs/{one}"))
            await gate.reached.wait()
            assert await pull(living, other) == "direct"
            await dying.stop(signal.SIGKILL)
            await pulling
        assert await pull(living, other) == "fill"


async def test_what_is_over_a_lowered_limit_is_dropped_at_the_start(upstream: FakeRegistry, store: Path) -> None:
    digests = [upstream.add_blob(REPO, blob(n)) for n in range(3)]
    async with running(toml(upstream.url), store) as proxy:
        for digest in digests:
            await pull(proxy, digest)
    async with running(limited(upstream, "700 KB"), store) as proxy:
        assert proxy.blobs() == sorted(digests[1:])


async def test_a_broken_off_download_makes_room_before_any_blob(upstream: FakeRegistry, store: Path) -> None:
    broken, first, second = (upstream.add_blob(REPO, blob(n)) for n in range(3))
    async with running(limited(upstream, "700 KB"), store) as proxy:
        await pull(proxy, first)
        left = store / "spool" / broken.replace(":", "-")
        left.touch(0o600)
        left.write_bytes(DATA[:-1])
    async with running(limited(upstream, "700 KB"), store) as proxy:
        await pull(proxy, second)
        assert proxy.blobs() == sorted([first, second])
        assert proxy.spools() == []


async def test_a_ledger_of_nonsense_is_counted_anew(upstream: FakeRegistry, store: Path) -> None:
    digests = [upstream.add_blob(REPO, blob(n)) for n in range(4)]
    async with running(limited(upstream, "1 MB"), store) as proxy:
        for digest in digests[:3]:
            await pull(proxy, digest)
        (store / "ledger" / "stored").write_text("9" * 20)
        await pull(proxy, digests[3])
        assert proxy.blobs() == sorted(digests[1:])


# Never what is being sent


async def test_what_is_being_sent_is_not_evicted(upstream: FakeRegistry, store: Path) -> None:
    large = blob(1, DATA * 40)  # more than the sockets' buffers take
    sent, other = upstream.add_blob(REPO, large), upstream.add_blob(REPO, blob(2, DATA * 40))
    async with running(limited(upstream, "15 MB"), store) as proxy:
        await pull(proxy, sent)
        async with connect(proxy.host) as idle:
            await idle.send("GET", f"/v2/{REPO}/blobs/{sent}")
            await idle.head()
            assert await pull(proxy, other) == "direct"
            assert proxy.blobs() == [sent]
            assert digest_of(await idle.reader.readexactly(len(large))) == sent
        await until(lambda: proxy.app.handlers.active == 0)
        await proxy.settled()
        assert await pull(proxy, other) == "fill"
        assert proxy.blobs() == [other]


async def test_what_was_just_filled_and_is_still_being_sent_is_not_evicted(upstream: FakeRegistry, store: Path) -> None:
    large = blob(1, DATA * 40)
    sent, other = upstream.add_blob(REPO, large), upstream.add_blob(REPO, blob(2, DATA * 40))
    async with running(limited(upstream, "15 MB"), store) as proxy, connect(proxy.host) as idle:
        await idle.send("GET", f"/v2/{REPO}/blobs/{sent}")
        await idle.head()
        await proxy.app.blobs.idle()
        assert proxy.blobs() == [sent]
        assert await pull(proxy, other) == "direct"
        assert proxy.blobs() == [sent]
        assert digest_of(await idle.reader.readexactly(len(large))) == sent


# What does not fit passes through


async def test_a_blob_larger_than_the_cache_passes_through_verified(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with running(limited(upstream, "100 KB"), store) as proxy:
        for _ in range(2):
            assert await pull(proxy, digest) == "direct"
        assert (proxy.blobs(), proxy.spools()) == ([], [])
        part = await proxy.get(f"/v2/{REPO}/blobs/{digest}", {"Range": "bytes=1000-1999"})
        assert (part.status, part.body) == (206, DATA[1000:2000])


async def test_a_blob_known_to_be_larger_than_the_cache_costs_no_second_transfer(
    upstream: FakeRegistry, store: Path
) -> None:
    async with running(limited(upstream, "100 KB"), store) as proxy:
        (digest,) = await name(proxy, upstream, DATA)
        assert await pull(proxy, digest) == "direct"
        assert upstream.count("GET", f"/blobs/{digest}") == 1


@pytest.mark.parametrize("asked", [None, "bytes=0-"])
@pytest.mark.parametrize("fault", ["wrong_bytes", "shorter_blob", "longer_blob"])
async def test_what_passes_through_is_never_completed_wrong(
    upstream: FakeRegistry, store: Path, fault: str, asked: str | None
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    rule = upstream.on("GET", blob=digest)
    faults: dict[str, Callable[[], object]] = {
        "wrong_bytes": rule.wrong_bytes,
        "shorter_blob": lambda: rule.resized(-1),
        "longer_blob": lambda: rule.resized(+1),
    }
    faults[fault]()
    async with running(limited(upstream, "100 KB"), store) as proxy:
        got = await proxy.get(f"/v2/{REPO}/blobs/{digest}", {} if asked is None else {"Range": asked})
        assert got.ended == "short"
        assert len(got.body) < len(DATA)
        rule.stop()
        assert await pull(proxy, digest) == "direct"


async def test_a_head_that_lied_about_the_size_once_does_not_spoil_what_passes_through(
    upstream: FakeRegistry, store: Path
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("HEAD", blob=digest, times=1).set_header("Content-Length", "7")
    async with running(limited(upstream, "100 KB"), store) as proxy:
        assert (await proxy.head(f"/v2/{REPO}/blobs/{digest}")).header("Content-Length") == "7"
        assert await pull(proxy, digest) == "direct"


async def test_what_passes_through_is_resumed_where_it_breaks_off(upstream: FakeRegistry, store: Path) -> None:
    async with running(limited(upstream, "100 KB"), store) as proxy:
        (digest,) = await name(proxy, upstream, DATA)
        upstream.on("GET", blob=digest, times=2).truncate(after=100_000)
        assert await pull(proxy, digest) == "direct"
        ranges = [request.header("Range") for request in upstream.matching("GET", f"/blobs/{digest}")]
        assert ranges == [None, "bytes=100000-", "bytes=200000-"]


async def test_a_blob_of_unknown_length_passes_through_a_small_cache(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on(blob=digest).chunked()
    async with running(limited(upstream, "1 MB"), store) as proxy:
        assert await pull(proxy, digest) == "direct"


async def test_a_range_passes_through_from_an_upstream_that_knows_none(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest).ignore_range()
    async with running(limited(upstream, "100 KB"), store) as proxy:
        got = await proxy.get(f"/v2/{REPO}/blobs/{digest}", {"Range": "bytes=1000-1999"})
        assert (got.status, got.ended, got.body) == (206, "complete", DATA[1000:2000])


async def test_a_blob_that_passes_through_is_not_given_to_who_may_not_have_it(
    upstream: FakeRegistry, store: Path
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with running(limited(upstream, "100 KB"), store) as proxy:
        await pull(proxy, digest)
        assert (await proxy.get(f"/v2/library/private/blobs/{digest}")).status == 404


# A disk that is full, or broken


class Disk:
    """Lets calls on the spool files fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.calls = 0

    def breaks(
        self, call: str, number: int, *, after: int = 0, where: str = "/spool/", when: threading.Event | None = None
    ) -> None:
        """From its `after`-th use on, os.`call` on such files raises an OSError, which it waits for."""
        real = getattr(os, call)
        self.calls = 0

        def failing(fd: int, *args: object, **kwargs: object) -> object:
            if where in os.readlink(f"/proc/self/fd/{fd}"):
                self.calls += 1
                if self.calls > after:
                    assert when is None or when.wait(DEADLINE)
                    raise OSError(number, os.strerror(number))
            return real(fd, *args, **kwargs)

        self._monkeypatch.setattr(os, call, failing)

    def breaks_sending(self, number: int) -> None:
        """From now on os.sendfile raises an OSError."""

        def failing(_to: int, _from: int, _offset: int, _count: int) -> int:
            raise OSError(number, os.strerror(number))

        self._monkeypatch.setattr(os, "sendfile", failing)

    def recovers(self) -> None:
        """As if nothing had been."""
        self._monkeypatch.undo()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The disk, to break."""
    return Disk(monkeypatch)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("after", [0, 1])
async def test_a_disk_that_takes_no_more_bytes_lets_them_pass(
    upstream: FakeRegistry, proxy: Proxy, disk: Disk, number: int, after: int
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).gate(after=100_000)
    disk.breaks("pwritev", number, after=after)
    pulls = [asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}")) for _ in range(5)]
    await until(lambda: disk.calls > 0)
    gate.open()
    answers = await asyncio.gather(*pulls)
    assert {(answer.status, digest_of(answer.body)) for answer in answers} == {(200, digest)}
    assert disk.calls == after + 1
    await proxy.settled()
    assert (proxy.blobs(), proxy.spools()) == ([], [])
    disk.recovers()
    await pull(proxy, digest)
    assert proxy.blobs() == [digest]


async def test_a_short_write_before_the_disk_is_full_is_accounted_for(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    real, room = os.pwritev, 100_001

    def pwritev(fd: int, pieces: list[memoryview], offset: int) -> int:
        if "/spool/" not in os.readlink(f"/proc/self/fd/{fd}"):
            return real(fd, pieces, offset)
        if offset >= room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, [memoryview(b"".join(pieces))[: room - offset]], offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    await pull(proxy, digest)
    assert (proxy.blobs(), proxy.spools()) == ([], [])


@pytest.mark.parametrize("call", ["rename", "fchmod"])
async def test_a_blob_that_cannot_be_published_is_delivered_all_the_same(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    real = getattr(os, call)

    def failing(*args: object, **kwargs: object) -> object:
        is_blob = args[1] == 0o400 if call == "fchmod" else str(args[0]).startswith("sha256-")
        if is_blob:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, failing)
    await pull(proxy, digest)
    assert (proxy.blobs(), proxy.spools()) == ([], [])
    monkeypatch.undo()
    await pull(proxy, digest)
    assert proxy.blobs() == [digest]


async def test_bytes_that_did_not_reach_the_disk_are_not_built_upon(
    upstream: FakeRegistry, proxy: Proxy, disk: Disk
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    has_come = threading.Event()
    disk.breaks("fsync", errno.EIO, when=has_come)
    async with connect(proxy.host) as client:
        got = await client.ask("GET", f"/v2/{REPO}/blobs/{digest}")
    assert (got.ended, got.body) == ("complete", DATA)  # they were right before the disk lost them
    has_come.set()
    await proxy.settled()
    assert [record["reason"] for record in proxy.log if record["event"] == "fill failed"] == ["the cache's disk fails"]
    assert disk.calls == 1  # a failed fsync is not tried again: the second one would lie
    assert (proxy.blobs(), proxy.spools()) == ([], [])
    disk.recovers()
    await pull(proxy, digest)
    assert upstream.count("GET") == 2


async def test_a_stored_blob_that_cannot_be_read_is_cut_short_never_404(
    upstream: FakeRegistry, proxy: Proxy, disk: Disk
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    await pull(proxy, digest)
    disk.breaks_sending(errno.EIO)
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert (got.status, got.ended) == (200, "short")
    disk.recovers()
    assert await pull(proxy, digest) == "fill"  # a bad sector stays bad: it was dropped, and fetched again
    assert await pull(proxy, digest) == "hit"


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM])
@pytest.mark.parametrize("state", ["warm", "cold"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_trouble_in_opening_a_blob_is_never_404(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, method: str, state: str, number: int
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    if state == "warm":
        await pull(proxy, digest)
    real = os.open

    def failing(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is not None and path.endswith(digest.partition(":")[2]):
            raise OSError(number, os.strerror(number))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", failing)
    monkeypatch.setattr(cached, "open_below", lambda _root, _key: None)  # which fails as well, and says nothing of it
    got = await proxy.ask(method, f"/v2/{REPO}/blobs/{digest}")
    if number == errno.EIO or (state == "cold" and method == "HEAD"):  # a disk that fails is passed by
        assert (got.status, got.header("Content-Length")) == (200, str(len(DATA)))
    else:
        assert (got.status, got.header("Retry-After")) == (503, "2")
    monkeypatch.undo()
    assert (await proxy.ask(method, f"/v2/{REPO}/blobs/{digest}")).status == 200


# For real: limits of the kernel on a process of its own


@pytest.fixture
def limits() -> Callable[[int, int, int], None]:
    """Set a soft limit of another process."""

    def limit(pid: int, what: int, soft: int) -> None:
        _, hard = resource.prlimit(pid, what)
        resource.prlimit(pid, what, (soft if soft >= 0 else hard, hard))

    return limit


async def test_a_file_system_that_takes_no_byte_at_all_makes_a_pass_through_of_the_cache(
    upstream: FakeRegistry, store: Path, limits: Callable[[int, int, int], None]
) -> None:
    image = upstream.add_image(REPO, "v1", [DATA])
    layer = image.layer_digests[0]
    async with serving(toml(upstream.url), store) as proxy:
        limits(proxy.process.pid, resource.RLIMIT_FSIZE, 0)
        for _ in range(2):
            assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).body == image.body
            got = await proxy.get(f"/v2/{REPO}/blobs/{layer}")
            assert (got.status, digest_of(got.body)) == (200, layer)
        upstream.add_blob("library/other", DATA)
        assert (await proxy.get(f"/v2/library/other/blobs/{layer}")).status == 200
        assert (await proxy.get(f"/v2/library/private/blobs/{layer}")).status == 404
        limits(proxy.process.pid, resource.RLIMIT_FSIZE, -1)
        assert digest_of((await proxy.get(f"/v2/{REPO}/blobs/{layer}")).body) == layer
        before = upstream.count("GET", "/blobs/")
        assert digest_of((await proxy.get(f"/v2/{REPO}/blobs/{layer}")).body) == layer
        assert upstream.count("GET", "/blobs/") == before
        assert await proxy.stop() == 0


async def test_a_file_system_that_fills_up_midway_makes_a_pass_through_of_the_rest(
    upstream: FakeRegistry, store: Path, limits: Callable[[int, int, int], None]
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with serving(toml(upstream.url), store) as proxy:
        limits(proxy.process.pid, resource.RLIMIT_FSIZE, 100_001)
        answers = await asyncio.gather(*(proxy.get(f"/v2/{REPO}/blobs/{digest}") for _ in range(4)))
        assert {(answer.status, digest_of(answer.body)) for answer in answers} == {(200, digest)}
        assert list((store / "spool").iterdir()) == []


async def test_a_process_without_descriptors_answers_503_never_404(
    upstream: FakeRegistry, store: Path, limits: Callable[[int, int, int], None]
) -> None:
    image = upstream.add_image(REPO, "v1", [DATA, blob(1)])
    warm, cold = image.layer_digests
    async with serving(toml(upstream.url), store) as proxy:
        await proxy.get(f"/v2/{REPO}/blobs/{warm}")
        async with connect(proxy.host) as client:
            await client.ask("GET", "/v2/")
            await until(lambda: not open_blobs(proxy.process.pid), "the blob is published, and its file closed")
            limits(proxy.process.pid, resource.RLIMIT_NOFILE, 1)
            for method in ("GET", "HEAD"):
                for target in (f"blobs/{warm}", f"blobs/{cold}", "manifests/v1", f"manifests/{image.digest}"):
                    got = await client.ask(method, f"/v2/{REPO}/{target}")
                    assert (target, got.status, got.ended) == (target, 503, "complete")
            limits(proxy.process.pid, resource.RLIMIT_NOFILE, -1)
            for digest in (warm, cold):
                assert digest_of((await client.ask("GET", f"/v2/{REPO}/blobs/{digest}")).body) == digest
            assert (await client.ask("GET", f"/v2/{REPO}/manifests/v1")).body == image.body
