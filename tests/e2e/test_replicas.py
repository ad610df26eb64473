"""Replicas on one bucket: one of them brings in a blob, the others stream from it; its death costs nobody a pull."""

import asyncio
import contextlib
import json
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import trustme

from proxy import peers
from proxy.files import hop
from proxy.lending import HOLDER, PREFIX
from proxy.oci.digest import Digest
from proxy.stores import leases, uploads
from proxy.stores.leases import Identity, Lease
from tests.buckets import TestBucket

from .harness import DEADLINE, Process, Proxy, running, serving, until
from .raw_client import connect
from .test_s3 import REPO, cached, configured, key_of, uploaded
from .upstream import FakeRegistry, digest_of

DATA = bytes(range(256)) * 4096  # 1 MiB
HALF = 600_000


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at every few seconds is looked at often."""
    monkeypatch.setattr(leases, "LOOK", 0.02)
    monkeypatch.setattr(leases, "GRACE", 1.0)
    monkeypatch.setattr(uploads, "LEAVE", 0.02)


@contextlib.asynccontextmanager
async def replicas(text: str, directory: Path, count: int = 2) -> AsyncIterator[list[Proxy]]:
    """So many of them in this process, each with a directory of its own."""
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(cached(text, directory / f"replica-{number}", alone=not number))
            for number in range(count)
        ]


def in_the_bucket(bucket: TestBucket) -> list[str]:
    """The keys of the leases there are."""
    found = bucket.keys()
    return [key for key in found if key.startswith("cache/leases/")]


def lease_key(digest: str) -> str:
    """Where the lease for a blob is."""
    return f"cache/leases/{digest.replace(':', '-')}"


async def pull(proxy: Proxy | Process, digest: str) -> str:
    """GET a blob; the digest of what came if it came whole, else how it ended."""
    answer = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    return digest_of(answer.body) if (answer.status, answer.ended) == (200, "complete") else answer.ended


async def test_32_cold_clients_of_four_replicas_cost_one_upstream_transfer_and_one_upload(
    upstream: FakeRegistry, bucket: TestBucket, tmp_path: Path
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).gate(after=1000)
    async with replicas(configured(upstream.url, bucket), tmp_path, 4) as four:
        pulls = [asyncio.create_task(pull(proxy, digest)) for proxy in four * 8]
        await gate.reached.wait()
        await until(lambda: sum(one.app.handlers.active for one in four) == 32 + 3, "three follow the fourth")
        gate.open()
        assert set(await asyncio.gather(*pulls)) == {digest}
        assert upstream.count(method="GET") == 1
        assert upstream.body_bytes_sent == len(DATA)
        for proxy in four:
            await uploaded(proxy.store)
            assert proxy.blobs() == [digest]
        sent = [proxy.metrics.registry.get_sample_value("entrepot_bucket_bytes_total", {"direction": "up"}) or 0.0
                for proxy in four]  # fmt: skip
        assert sum(size >= len(DATA) for size in sent) == 1
        await until_none_is_left(bucket)


async def until_none_is_left(bucket: TestBucket) -> None:
    """Wait until no lease is in the bucket."""
    async with asyncio.timeout(DEADLINE):
        while await hop(in_the_bucket, bucket):  # noqa: ASYNC110  nobody tells of it
            await asyncio.sleep(0.02)


async def test_whoever_follows_has_every_byte_that_has_come_at_once_and_the_last_when_the_digest_holds(
    upstream: FakeRegistry, bucket: TestBucket, tmp_path: Path
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).gate(after=HALF)
    async with replicas(configured(upstream.url, bucket), tmp_path) as (one, other):
        first = asyncio.create_task(pull(one, digest))
        await gate.reached.wait()
        async with connect(other.host) as late:
            await late.send("GET", f"/v2/{REPO}/blobs/{digest}")
            status, headers = await late.head()
            assert (status, dict(headers)["Content-Length"]) == (200, str(len(DATA)))
            assert await late.reader.readexactly(HALF - 1) == DATA[: HALF - 1]
            gate.open()
            assert await late.reader.readexactly(len(DATA) - HALF + 1) == DATA[HALF - 1 :]
        assert await first == digest
    assert upstream.count(method="GET") == 1


@pytest.mark.slow
async def test_the_death_of_the_holder_costs_no_client_its_pull_and_another_resumes_where_it_was(
    upstream: FakeRegistry, bucket: TestBucket, tmp_path: Path
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest, times=1).gate(after=HALF)
    text = configured(upstream.url, bucket)
    async with serving(text, tmp_path / "holder") as holder, replicas(text, tmp_path, 3) as three:
        first = asyncio.create_task(pull(holder, digest))
        await gate.reached.wait()
        pulls = [asyncio.create_task(pull(proxy, digest)) for proxy in three * 4]
        await until(lambda: all(size_of_spool(one.store) == HALF for one in three), "all follow")
        await holder.stop(signal.SIGKILL)
        assert await first != digest
        assert set(await asyncio.gather(*pulls)) == {digest}
        assert upstream.count(method="GET") == 2
        assert upstream.requests[-1].header("Range") == f"bytes={HALF}-"
        for proxy in three:
            await uploaded(proxy.store)
    assert await hop(bucket.__getitem__, key_of(digest)) == DATA


def size_of_spool(store: Path) -> int:
    """How much has come of the one blob that is on its way."""
    return sum(path.stat().st_size for path in (store / "spool").iterdir())


@pytest.mark.slow
async def test_four_processes_serve_32_clients_by_one_transfer_though_one_that_follows_is_killed(
    upstream: FakeRegistry, bucket: TestBucket, tmp_path: Path
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).gate(after=HALF)
    text = configured(upstream.url, bucket)
    async with contextlib.AsyncExitStack() as stack:
        four = [await stack.enter_async_context(serving(text, tmp_path / f"process-{n}")) for n in range(4)]
        first = asyncio.create_task(pull(four[0], digest))
        await gate.reached.wait()
        pulls = [asyncio.create_task(pull(process, digest)) for process in four for _ in range(8)]
        await until(lambda: all(size_of_spool(one.store) == HALF for one in four), "all follow")
        await four[3].stop(signal.SIGKILL)
        gate.open()
        assert await first == digest
        came = await asyncio.gather(*pulls, return_exceptions=True)  # of the killed one anything may come
        assert (set(came[:24]), upstream.count(method="GET")) == ({digest}, 1)
        await four[0].published(digest)
        await uploaded(four[0].store)
        for process in four[:3]:
            assert await process.stop() == 0
    assert await hop(bucket.__getitem__, key_of(digest)) == DATA
    assert await hop(in_the_bucket, bucket) == []


async def test_where_a_holder_cannot_be_reached_another_takes_over_and_a_third_follows_that_one(
    upstream: FakeRegistry, bucket: TestBucket, tmp_path: Path
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    words = {"holder": "0" * 64, "token": "1" * 64, "nonce": "2" * 32, "certificate": None}
    lease = {**words, "address": "http://127.0.0.1:9"}
    await hop(bucket.__setitem__, lease_key(digest), json.dumps(lease).encode())
    gate = upstream.on("GET", blob=digest).gate(after=HALF)
    async with replicas(configured(upstream.url, bucket), tmp_path) as (one, other):
        first = asyncio.create_task(pull(one, digest))
        await gate.reached.wait()
        second = asyncio.create_task(pull(other, digest))
        await until(lambda: size_of_spool(other.store) == HALF, "it follows")
        gate.open()
        assert (await first, await second) == (digest, digest)
        assert upstream.count(method="GET") == 1
        await until_none_is_left(bucket)  # the dead one's is gone with it
        assert any(record["event"] == "replica does not answer" for record in one.log)


async def test_a_holder_that_says_nothing_keeps_the_first_pull_waiting_and_no_other(
    upstream: FakeRegistry, bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "PATIENCE", 0.2)
    digests = [upstream.add_blob(REPO, DATA + bytes([number])) for number in range(3)]
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections wait in its queue
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for digest in digests:
            lease = Lease("0" * 64, address, "1" * 64, digest[7:39])
            await hop(bucket.__setitem__, lease_key(digest), json.dumps(asdict(lease)).encode())
        async with cached(configured(upstream.url, bucket), tmp_path / "one") as one:
            for digest in digests:
                assert await pull(one, digest) == digest
            assert [line["event"] for line in one.log].count("replica does not answer") == 1


@pytest.mark.parametrize(
    "lease",
    [b"", b"{}", b"[]", b"\xff", b"[" * 4000, b'{"holder": 1}', b"x" * 5000],
    ids=["nothing", "an empty object", "a list", "no text", "too deep", "a number for a holder", "no JSON"],
)
async def test_what_is_no_lease_has_each_replica_go_on_by_itself(
    upstream: FakeRegistry, bucket: TestBucket, tmp_path: Path, lease: bytes
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    await hop(bucket.__setitem__, lease_key(digest), lease)
    async with replicas(configured(upstream.url, bucket), tmp_path) as (one, other):
        assert await pull(one, digest) == digest
        await uploaded(one.store)
        assert await pull(other, digest) == digest
    assert upstream.count(method="GET") == 1


async def test_a_holder_that_sends_wrong_bytes_completes_nothing_and_is_followed_no_more(
    upstream: FakeRegistry, bucket: TestBucket, tmp_path: Path
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with replicas(configured(upstream.url, bucket), tmp_path) as (one, other):
        assert await pull(one, digest) == digest
        await uploaded(one.store)
        await until_none_is_left(bucket)
        await hop(bucket.__delitem__, key_of(digest))
        await hop(rot, one.blob_path(digest))
        assert one.app.shared is not None
        assert await one.app.shared.replicas.leases.claim(Digest.parse(digest)) is not None
        assert await pull(other, digest) == "short"
        assert await hop(in_the_bucket, bucket) == []
        assert await pull(other, digest) == digest
        await uploaded(other.store)
    assert await hop(bucket.__getitem__, key_of(digest)) == DATA


def rot(path: Path) -> None:
    """A byte is another one."""
    path.chmod(0o600)
    path.write_bytes(b"!" + DATA[1:])
    path.chmod(0o400)


async def test_a_replica_that_upstream_denies_a_blob_to_gets_none_of_it_from_another(
    upstream: FakeRegistry, bucket: TestBucket, tmp_path: Path
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).gate(after=HALF)
    async with replicas(configured(upstream.url, bucket), tmp_path) as (one, other):
        first = asyncio.create_task(pull(one, digest))
        await gate.reached.wait()
        denied = await other.get(f"/v2/library/private/blobs/{digest}")
        assert (denied.status, DATA[:100] in denied.body) == (404, False)
        gate.open()
        assert await first == digest


async def test_a_token_is_good_for_its_blob_and_nothing_else_and_is_in_no_log(
    upstream: FakeRegistry, bucket: TestBucket, tmp_path: Path
) -> None:
    digest, second = upstream.add_blob(REPO, DATA), upstream.add_blob(REPO, DATA[::-1])
    gate = upstream.on("GET", blob=digest).gate(after=HALF)
    async with replicas(configured(upstream.url, bucket), tmp_path) as (one, other):
        first = asyncio.create_task(pull(one, digest))
        await gate.reached.wait()
        follower = asyncio.create_task(pull(other, digest))
        await until(lambda: size_of_spool(other.store) == HALF, "it follows")
        assert await pull(one, second) == second
        lease = Lease.parse(await hop(bucket.__getitem__, lease_key(digest)))
        assert lease is not None
        given = {"Authorization": f"Bearer {lease.token}"}
        for target, headers, status in [
            (f"{PREFIX}{digest}", {}, 403),
            (f"{PREFIX}{digest}", {"Authorization": "Bearer \xff"}, 403),
            (f"{PREFIX}{second}", given, 403),
            (f"{PREFIX}{digest}?start=x", given, 400),
            (f"{PREFIX}{digest}?start={'9' * 30}", given, 400),
            (f"{PREFIX}nothing", given, 400),
            (f"/v2/{REPO}/blobs/{'sha256:' + '0' * 64}", given, 404),
        ]:
            assert (await one.get(target, headers)).status == status, target
        assert (await one.head(f"{PREFIX}{digest}", given)).status == 400
        gate.open()
        assert (await first, await follower) == (digest, digest)
        whole = await one.get(f"{PREFIX}{digest}?start=10", given)
        assert (whole.status, whole.body) == (200, DATA[10:])
        assert (await one.get(f"{PREFIX}{digest}?start={len(DATA) + 1}", given)).status == 404
        said = one.log_stream.getvalue() + other.log_stream.getvalue()
        assert lease.token not in said
        assert lease.nonce not in said


async def test_without_conditional_writes_it_is_said_and_each_replica_brings_it_in_itself(
    upstream: FakeRegistry, bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ignorant(_bucket: object, _key: str) -> bool:
        return False

    monkeypatch.setattr("proxy.stores.s3_trial.prove", ignorant)
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).gate(after=HALF)
    async with replicas(configured(upstream.url, bucket), tmp_path) as both:
        pulls = [asyncio.create_task(pull(one, digest)) for one in both]
        await until(lambda: gate.arrivals == 2, "each asks upstream")
        gate.open()
        assert set(await asyncio.gather(*pulls)) == {digest}
        for one in both:
            assert [line["event"] for line in one.log].count("bucket without conditional writes") == 1
    assert await hop(in_the_bucket, bucket) == []


async def test_what_upstream_has_not_is_said_by_each_replica_and_leaves_no_lease(
    upstream: FakeRegistry, bucket: TestBucket, tmp_path: Path
) -> None:
    none = "sha256:" + "0" * 64
    async with replicas(configured(upstream.url, bucket), tmp_path) as both:
        for one in both * 2:
            assert (await one.get(f"/v2/{REPO}/blobs/{none}")).status == 404
        await until_none_is_left(bucket)


async def test_a_lease_that_somebody_else_has_made_in_its_place_stays(
    upstream: FakeRegistry, bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "GRACE", 0.0)
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).gate(after=HALF)
    words = {"holder": "0" * 64, "token": "1" * 64, "nonce": "2" * 32, "certificate": None}
    theirs = json.dumps({**words, "address": "http://127.0.0.1:9"}).encode()
    async with replicas(configured(upstream.url, bucket), tmp_path, 1) as (one,):
        pulled = asyncio.create_task(pull(one, digest))
        await gate.reached.wait()
        await hop(bucket.__setitem__, lease_key(digest), theirs)  # as if ours had been thought dead, and removed
        gate.open()
        assert await pulled == digest
        assert one.app.shared is not None
        held = one.app.shared.replicas.leases._held
        await until(lambda: not held, "the lease is given up")
    assert await hop(bucket.__getitem__, lease_key(digest)) == theirs


@pytest.mark.slow
async def test_a_replica_that_ends_gives_up_the_leases_of_what_it_has_not_brought_in(
    upstream: FakeRegistry, bucket: TestBucket, tmp_path: Path
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest, times=1).gate(after=HALF)
    text = configured(upstream.url, bucket)
    async with serving(text.replace("[store]", 'drain_timeout = "0s"\n[store]'), tmp_path / "one") as one:
        first = asyncio.create_task(pull(one, digest))
        await gate.reached.wait()
        assert len(await hop(in_the_bucket, bucket)) == 1
        assert await one.stop() == 0
        assert await first != digest
    assert await hop(in_the_bucket, bucket) == []


@pytest.mark.slow
@pytest.mark.parametrize("is_known", [True, False])
async def test_over_tls_a_holder_is_known_by_the_certificate_that_its_lease_names(
    upstream: FakeRegistry, bucket: TestBucket, tmp_path: Path, is_known: bool
) -> None:
    digest, ca = upstream.add_blob(REPO, DATA), trustme.CA()
    pair, trust = ca.issue_cert("127.0.0.1"), ssl.create_default_context()
    await hop(pair.private_key_and_cert_chain_pem.write_to_path, str(tmp_path / "pair.pem"))
    ca.configure_trust(trust)
    keys = f'tls_certificate = "{tmp_path}/pair.pem"\ntls_key = "{tmp_path}/pair.pem"\nworkers = 2'
    gate = upstream.on("GET", blob=digest).gate(after=HALF)
    text = configured(upstream.url, bucket)
    secure = configured(upstream.url, bucket, server=keys)
    async with serving(secure, tmp_path / "one") as one, cached(text, tmp_path / "other") as other:
        async with connect(one.host, trust) as client:
            await client.send("GET", f"/v2/{REPO}/blobs/{digest}", {"Host": one.host})
            await gate.reached.wait()
            key = lease_key(digest)
            lease = Lease.parse(await hop(bucket.__getitem__, key))
            assert lease is not None
            assert lease.address == f"https://{one.host}"
            if not is_known:
                forged = replace(lease, certificate="0" * 64)
                await hop(bucket.__setitem__, key, json.dumps(asdict(forged)).encode())
            follower = asyncio.create_task(pull(other, digest))
            if is_known:
                await until(lambda: size_of_spool(other.store) == HALF, "it follows")
            else:
                await until(lambda: gate.arrivals == 2, "it asks upstream")
            gate.open()
            assert (await client.answer("GET")).body == DATA
        assert await follower == digest
        assert upstream.count(method="GET") == (1 if is_known else 2)


async def test_what_a_replica_has_of_one_that_died_it_uploads_itself(
    upstream: FakeRegistry, bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "LEAVES", 10**9)
    digest, text = upstream.add_blob(REPO, DATA), configured(upstream.url, bucket)
    async with running(text, tmp_path / "holder") as holder, cached(text, tmp_path / "other", alone=False) as other:
        assert holder.app.shared is not None
        holder.app.shared.replicas.leases.introduce(f"http://{holder.host}")  # it uploads nothing
        assert await pull(holder, digest) == digest
        assert await pull(other, digest) == digest
        await until(lambda: other.metrics.registry.get_sample_value("entrepot_uploads_pending") == 1, "it is left")
        assert upstream.count(method="GET") == 1
        monkeypatch.setattr(holder.app.shared.lending, "_identity", Identity(b"another"))  # as if it was no more
        await uploaded(other.store)
    assert await hop(bucket.__getitem__, key_of(digest)) == DATA


class Impostor:
    """Somebody at a holder's address who answers as it would, and sends what a test wants."""

    def __init__(self, lease: Lease, head: bytes, body: bytes) -> None:
        self._answer = b"HTTP/1.1 200 OK\r\n%s: %s\r\n%s\r\n\r\n%s" % (
            HOLDER.encode(),
            lease.holder.encode(),
            head,
            body,
        )
        self.asked = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            writer.write(self._answer)
            await reader.read()  # until the other end has had enough
        writer.close()


@contextlib.asynccontextmanager
async def claimed_by_an_impostor(bucket: TestBucket, digest: str, head: bytes, body: bytes) -> AsyncIterator[Impostor]:
    """A lease in the bucket whose holder is one."""
    lease = Lease("0" * 64, "http://127.0.0.1:1", "1" * 64, digest[7:39])
    impostor = Impostor(lease, head, body)
    async with await asyncio.start_server(impostor, "127.0.0.1", 0) as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await hop(bucket.__setitem__, lease_key(digest), json.dumps(asdict(replace(lease, address=address))).encode())
        yield impostor


@pytest.mark.parametrize(
    ("head", "body", "pulls"),
    [
        (b"Content-Length: %d" % (len(DATA) + 1), DATA + b"!", 1),
        (b"Content-Length: %d" % (len(DATA) - 1000), DATA[:-1000], 1),
        (b"Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(DATA) + 9, DATA + b"too much!"), 2),
        (b"Content-Length: %d" % len(DATA), DATA[::-1], 2),
        (b"Content-Length: %d" % len(DATA), b"", 1),
    ],
    ids=["more", "less", "more in chunks", "wrong", "nothing"],
)
async def test_a_lease_in_the_bucket_keeps_no_blob_from_anybody_for_long(
    upstream: FakeRegistry, bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    head: bytes, body: bytes, pulls: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(peers, "STALL", 0.5)
    image = upstream.add_image(REPO, "v1", [DATA])
    digest = image.layer_digests[0]
    async with (
        claimed_by_an_impostor(bucket, digest, head, body) as impostor,
        cached(configured(upstream.url, bucket), tmp_path / "one") as one,
    ):
        await one.get(f"/v2/{REPO}/manifests/v1")  # which tells how long it is
        came = [await pull(one, digest) for _ in range(pulls)]
        assert came == ["short"] * (pulls - 1) + [digest]
        assert impostor.asked


async def test_a_part_of_what_another_replica_lends_is_given_to_nobody_before_the_digest_holds(
    upstream: FakeRegistry, bucket: TestBucket, tmp_path: Path
) -> None:
    digest, head = upstream.add_blob(REPO, DATA), b"Content-Length: %d" % len(DATA)
    async with (
        claimed_by_an_impostor(bucket, digest, head, DATA[::-1]),
        cached(configured(upstream.url, bucket), tmp_path / "one") as one,
    ):
        part = await one.get(f"/v2/{REPO}/blobs/{digest}", {"Range": "bytes=0-99999"})
        assert part.ended != "complete" or part.body == DATA[:100_000]
        part = await one.get(f"/v2/{REPO}/blobs/{digest}", {"Range": "bytes=0-99999"})
        assert (part.status, part.body) == (206, DATA[:100_000])
