"""One upstream transfer per blob among all processes on one store, and none lost when one of them dies."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

from .harness import Process, Proxy, running, serving, toml, until
from .raw_client import ask, connect
from .upstream import FakeRegistry, digest_of

REPO = "library/app"
DATA = bytes(range(256)) * 4096  # 1 MiB


def spool_size(store: Path) -> int:
    """How much has come of the one blob that is on its way."""
    return sum(path.stat().st_size for path in (store / "spool").iterdir())


def another(upstream: FakeRegistry, store: Path) -> contextlib.AbstractAsyncContextManager[Proxy]:
    """A second proxy on a store."""
    return running(toml(upstream.url), store, alone=False)


async def pull(proxy: Proxy | Process, digest: str, repo: str = REPO) -> str:
    """GET a blob; the digest of what came if it came whole, else how it ended."""
    answer = await proxy.get(f"/v2/{repo}/blobs/{digest}")
    return digest_of(answer.body) if (answer.status, answer.ended) == (200, "complete") else answer.ended


async def test_two_processes_and_32_clients_cost_one_upstream_transfer(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).gate(after=1000)
    async with running(toml(upstream.url), store) as one, another(upstream, store) as other:
        pulls = [asyncio.create_task(pull(proxy, digest)) for proxy in (one, other) * 16]
        await gate.reached.wait()
        gate.open()
        assert set(await asyncio.gather(*pulls)) == {digest}
        assert upstream.count() == 1
        assert upstream.body_bytes_sent == len(DATA)
        assert one.blobs() == [digest]
        assert one.spools() == []
        assert await pull(other, digest) == digest
    assert upstream.count() == 1


async def test_a_joiner_in_another_process_has_every_byte_that_has_come_at_once(
    upstream: FakeRegistry, store: Path
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).gate(after=600_000)
    async with running(toml(upstream.url), store) as one, another(upstream, store) as other:
        first = asyncio.create_task(pull(one, digest))
        await gate.reached.wait()
        async with connect(other.host) as late:
            await late.send("GET", f"/v2/{REPO}/blobs/{digest}")
            status, headers = await late.head()
            assert (status, dict(headers)["Content-Length"]) == (200, str(len(DATA)))
            assert await late.reader.readexactly(599_999) == DATA[:599_999]
            part = await other.get(f"/v2/{REPO}/blobs/{digest}", {"Range": "bytes=5-9"})
            assert (part.status, part.body) == (206, DATA[5:10])
            gate.open()
            assert await late.reader.readexactly(len(DATA) - 599_999) == DATA[599_999:]
        assert await first == digest
    assert upstream.count() == 1


async def test_the_last_byte_is_withheld_in_the_other_process_too(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).wrong_bytes().gate(after=len(DATA))
    async with running(toml(upstream.url), store) as one, another(upstream, store) as other:
        first = asyncio.create_task(one.get(f"/v2/{REPO}/blobs/{digest}"))
        await gate.reached.wait()
        async with connect(other.host) as late:
            await late.send("GET", f"/v2/{REPO}/blobs/{digest}")
            await late.head()
            assert await late.reader.readexactly(len(DATA) - 1)
            gate.open()
            assert await late.reader.read() == b""
        assert (await first).ended == "short"
        assert one.blobs() == []
        upstream.forget_rules()
        assert await pull(other, digest) == digest


async def test_a_digest_on_its_way_in_one_process_is_not_joined_in_another_through_a_repository_that_lacks_it(
    upstream: FakeRegistry, store: Path
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest, repo=REPO).gate(after=600_000)
    async with running(toml(upstream.url), store) as one, another(upstream, store) as other:
        first = asyncio.create_task(pull(one, digest))
        await gate.reached.wait()
        denied = await other.get(f"/v2/library/private/blobs/{digest}")
        assert (denied.status, DATA[:100] in denied.body) == (404, False)
        gate.open()
        assert await first == digest


async def test_a_joiner_through_another_repository_asks_upstream_by_head(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.add_blob("library/other", DATA)
    gate = upstream.on("GET", blob=digest).gate(after=600_000)
    async with running(toml(upstream.url), store) as one, another(upstream, store) as other:
        first = asyncio.create_task(pull(one, digest))
        await gate.reached.wait()
        second = asyncio.create_task(pull(other, digest, "library/other"))
        await upstream.seen(1, method="HEAD")
        gate.open()
        assert (await first, await second) == (digest, digest)
    assert (upstream.count("GET"), upstream.count("HEAD")) == (1, 1)


async def test_a_fill_that_its_process_leaves_is_taken_over_while_the_clients_of_the_other_go_on(
    upstream: FakeRegistry, store: Path
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest, times=1).gate(after=600_000)
    async with running(toml(upstream.url), store) as other:
        async with another(upstream, store) as one:
            first = asyncio.create_task(pull(one, digest))
            await gate.reached.wait()
            await until(lambda: spool_size(store) == 600_000)
            seconds = [asyncio.create_task(pull(other, digest)) for _ in range(5)]
            await until(lambda: other.app.handlers.active == 5)
        assert await first == "short"
        assert set(await asyncio.gather(*seconds)) == {digest}
        assert other.blobs() == [digest]
    assert [request.header("Range") for request in upstream.requests] == [None, "bytes=600000-"]
    assert upstream.body_bytes_sent == len(DATA)


async def test_a_fill_that_fails_in_one_process_fails_in_the_other_without_a_wrong_byte_too_many(
    upstream: FakeRegistry, store: Path
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest, times=1).truncate(after=600_000).gate(after=600_000)
    upstream.on("GET", blob=digest, times=1).status(404)
    async with running(toml(upstream.url), store) as one, another(upstream, store) as other:
        first = asyncio.create_task(pull(one, digest))
        await gate.reached.wait()
        second = asyncio.create_task(pull(other, digest))
        await until(lambda: other.app.handlers.active == 1)
        gate.open()
        assert await first == "short"
        assert await second in {"short", digest}
        assert await pull(one, digest) == digest


async def test_what_one_process_has_stored_another_serves_without_upstream(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with running(toml(upstream.url), store) as one, another(upstream, store) as other:
        assert await pull(one, digest) == digest
        assert await pull(other, digest) == digest
    assert upstream.count() == 1


# Processes that really are, and really die


async def test_a_fill_whose_process_is_killed_is_taken_over_by_the_other(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest, times=1).gate(after=600_000)
    async with serving(toml(upstream.url), store) as one, serving(toml(upstream.url), store) as other:
        first = asyncio.create_task(pull(one, digest))
        await gate.reached.wait()
        await until(lambda: spool_size(store) == 600_000)
        async with connect(other.host) as client:
            await client.send("GET", f"/v2/{REPO}/blobs/{digest}")
            await client.head()
            assert await client.reader.readexactly(599_999) == DATA[:599_999]
            await one.stop(signal.SIGKILL)
            assert await client.reader.readexactly(len(DATA) - 599_999) == DATA[599_999:]
        assert await first in {"short", "reset"}
    assert [request.header("Range") for request in upstream.matching("GET")] == [None, "bytes=600000-"]


async def test_a_fill_whose_process_is_killed_is_resumed_by_the_next(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest, times=1).gate(after=600_000)
    async with serving(toml(upstream.url), store) as one:
        first = asyncio.create_task(pull(one, digest))
        await gate.reached.wait()
        await until(lambda: spool_size(store) == 600_000)
        await one.stop(signal.SIGKILL)
        with contextlib.suppress(asyncio.IncompleteReadError):  # it may have died before its answer's head went out
            await first
    async with serving(toml(upstream.url), store) as following:
        assert await pull(following, digest) == digest
    assert [request.header("Range") for request in upstream.matching("GET")] == [None, "bytes=600000-"]
    assert upstream.body_bytes_sent == len(DATA)


async def test_an_old_and_a_new_process_overlap_in_a_restart(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).gate(after=600_000)
    async with serving(toml(upstream.url), store) as old:
        first = asyncio.create_task(pull(old, digest))
        await gate.reached.wait()
        async with serving(toml(upstream.url), store) as new:
            stopping = asyncio.create_task(old.stop())
            await until(lambda: any(line["event"] == "draining" for line in old.lines))
            second = asyncio.create_task(pull(new, digest))
            await until(lambda: spool_size(store) == 600_000)
            gate.open()
            assert (await first, await second) == (digest, digest)
            assert await stopping == 0
    assert upstream.count("GET") == 1


@pytest.mark.parametrize("kill", [False, True], ids=["all alive", "one killed midway"])
async def test_workers_share_one_transfer(upstream: FakeRegistry, store: Path, kill: bool) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest, times=1).gate(after=600_000)
    async with serving(toml(upstream.url), store, environ={"ENTREPOT_SERVER_WORKERS": "2"}) as proxy:
        await until(lambda: len([line for line in proxy.lines if line["event"] == "serving"]) == 2)
        pulls = [asyncio.create_task(pull(proxy, digest)) for _ in range(16)]
        await gate.reached.wait()
        await until(lambda: spool_size(store) == 600_000)
        if kill:
            os.kill(writer_of(store / "spool" / digest.replace(":", "-")), signal.SIGKILL)
        gate.open()
        ended = await asyncio.gather(*pulls, return_exceptions=True)
        if kill:
            assert await pull(proxy, digest) == digest
        else:
            assert set(ended) == {digest}
            assert upstream.body_bytes_sent == len(DATA)
    assert upstream.count("GET") == (2 if kill else 1)
    if kill:
        assert upstream.requests[-1].header("Range") == "bytes=600000-"


def writer_of(path: Path) -> int:
    """The process that has a file open for writing."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") == str(path):
                    flags = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().split("flags:")[1].split()[0]
                    if int(flags, 8) & os.O_ACCMODE != os.O_RDONLY:
                        return int(pid)
    raise AssertionError("nobody writes it")


def children_of(pid: int) -> list[int]:
    """The processes that one has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_a_worker_that_dies_is_replaced_and_the_port_stays_open(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with serving(toml(upstream.url), store, environ={"ENTREPOT_SERVER_WORKERS": "2"}) as proxy:
        assert await pull(proxy, digest) == digest
        workers = children_of(proxy.process.pid)
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        assert (await ask(proxy.host, "GET", f"/v2/{REPO}/blobs/{digest}")).status == 200  # waits for a new worker
        assert await proxy.stop() == 0
