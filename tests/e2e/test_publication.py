"""A client waits until the digest holds, and not until the disk has it all; whoever comes meanwhile has it as well."""

import asyncio
import errno
import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.files import Extent, Tree
from proxy.oci.errors import OciError
from proxy.origin import Source
from proxy.reading import ComingBlob
from proxy.spool import End
from proxy.telemetry import Outcome
from tests.discarding import Discarding

from .harness import DEADLINE, Proxy, running, toml, until
from .raw_client import ask
from .upstream import FakeRegistry

REPO = "library/app"
DATA = bytes(range(256)) * 4096  # 1 MiB


class Disk:
    """A disk that takes its time with what is in the spool: `begun`, then waits for `go_on`, then may fail."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.error: OSError | None = None
        self._fsync = os.fsync

    def fsync(self, fd: int) -> None:
        """Instead of os.fsync()."""
        if "/spool/" in os.readlink(f"/proc/self/fd/{fd}"):
            self.begun.set()
            self.go_on.wait()
            if self.error is not None:
                raise self.error
        self._fsync(fd)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """One that is slow, until it is told to go on."""
    one = Disk()
    monkeypatch.setattr(os, "fsync", one.fsync)
    yield one
    one.go_on.set()


async def pull(proxy: Proxy, digest: str) -> tuple[bytes, str]:
    """GET a blob, without waiting until it is published."""
    answer = await ask(proxy.host, "GET", f"/v2/{REPO}/blobs/{digest}", {"Host": proxy.host, "Connection": "close"})
    return answer.body, answer.ended


@pytest.mark.parametrize("chunked", [False, True])
async def test_clients_do_not_wait_for_the_disk(
    upstream: FakeRegistry, proxy: Proxy, disk: Disk, *, chunked: bool
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    if chunked:
        upstream.on("GET", blob=digest).chunked()
    assert await pull(proxy, digest) == (DATA, "complete")
    assert await asyncio.to_thread(disk.begun.wait, DEADLINE)
    assert proxy.blobs() == []
    assert await pull(proxy, digest) == (DATA, "complete")  # though all readers had left
    disk.go_on.set()
    await proxy.settled()
    assert (proxy.blobs(), proxy.spools(), upstream.count("GET")) == ([digest], [], 1)


async def test_who_wants_it_stored_waits_for_the_disk(upstream: FakeRegistry, proxy: Proxy, disk: Disk) -> None:
    digest = upstream.add_blob(REPO, DATA)
    await pull(proxy, digest)
    await asyncio.to_thread(disk.begun.wait, DEADLINE)
    fill = next(iter(proxy.app.blobs._fills.values()))
    fill.spool.join()
    blob = ComingBlob(Source(fill._upstream, fill.repository, fill.digest), fill.spool, len(DATA), Outcome.JOIN)

    async def stored() -> list[int]:
        return [count async for count in blob.arriving()]

    waiting = asyncio.create_task(stored())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    disk.go_on.set()
    assert await waiting == [len(DATA)]
    assert proxy.blobs() == [digest]
    blob.close()


async def test_what_was_given_out_is_published_though_the_server_ends(
    upstream: FakeRegistry, store: Path, disk: Disk
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, digest)
        await asyncio.to_thread(disk.begun.wait, DEADLINE)
        asyncio.get_running_loop().call_later(0.1, disk.go_on.set)
    assert (proxy.blobs(), proxy.spools()) == ([digest], [])
    async with running(toml(upstream.url), store) as proxy:
        assert await proxy.app.means.space.refresh() == len(DATA)


async def test_a_disk_that_fails_as_the_server_ends_leaves_nothing_that_is_complained_of(
    upstream: FakeRegistry, store: Path, disk: Disk
) -> None:
    complaints, digest = list[object](), upstream.add_blob(REPO, DATA)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    disk.error = OSError(errno.EIO, os.strerror(errno.EIO))
    async with running(toml(upstream.url), store) as proxy:
        assert await pull(proxy, digest) == (DATA, "complete")
        await asyncio.to_thread(disk.begun.wait, DEADLINE)
        closing = asyncio.create_task(proxy.app.blobs.aclose())
        await asyncio.sleep(0)  # the fill is cancelled
        disk.go_on.set()
        await closing
    gc.collect()
    assert (complaints, proxy.blobs(), proxy.spools()) == ([], [], [])


async def test_a_spool_that_is_dropped_as_the_server_ends_is_not_closed_before_that(
    upstream: FakeRegistry, store: Path, discarding: Discarding
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest).wrong_bytes()
    async with running(toml(upstream.url), store) as proxy:
        pulling = asyncio.create_task(pull(proxy, digest))
        assert await asyncio.to_thread(discarding.begun.wait, DEADLINE)
        closing = asyncio.create_task(proxy.app.blobs.aclose())
        done, _ = await asyncio.wait({closing}, timeout=0.1)  # in which it could be over
        discarding.go_on.set()
        assert not done
        await closing
        assert (await pulling)[1] != "complete"
    assert (discarding.outcomes, proxy.spools()) == (["dropped"], [])


async def test_a_slow_reader_gets_no_end_once_the_disk_has_failed(
    upstream: FakeRegistry, proxy: Proxy, disk: Disk
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    disk.error = OSError(errno.EIO, os.strerror(errno.EIO))
    await pull(proxy, digest)
    await asyncio.to_thread(disk.begun.wait, DEADLINE)
    fill = next(iter(proxy.app.blobs._fills.values()))
    fill.spool.join()
    blob = ComingBlob(Source(fill._upstream, fill.repository, fill.digest), fill.spool, len(DATA), Outcome.JOIN)
    reader = blob.read(None)
    piece = await anext(reader)
    assert isinstance(piece, Extent)
    assert piece.end == len(DATA) - 1
    disk.go_on.set()
    await until(lambda: fill.spool.end is End.FAILED)
    with pytest.raises(OciError, match="the cache's disk fails"):
        await anext(reader)
    blob.close()
    await proxy.settled()
    assert (proxy.blobs(), proxy.spools()) == ([], [])


async def test_no_client_waits_for_a_link_to_be_on_disk_but_no_blob_is_stored_before_it(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, write = upstream.add_blob(REPO, DATA), Tree._write
    begun, go_on = threading.Event(), threading.Event()

    def slow(tree: Tree, key: str, body: bytes, mode: int) -> None:
        if "/_links/" in key:
            begun.set()
            go_on.wait()
        write(tree, key, body, mode)

    monkeypatch.setattr(Tree, "_write", slow)
    try:
        assert await pull(proxy, digest) == (DATA, "complete")
        await asyncio.to_thread(begun.wait)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await proxy.settled()
        assert proxy.blobs() == []
    finally:
        go_on.set()
    await proxy.settled()
    assert proxy.blobs() == [digest]
