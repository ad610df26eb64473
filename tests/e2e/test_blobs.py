"""Blobs: one upstream transfer, any number of readers, and no wrong byte that completes."""

import asyncio
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from .harness import Proxy, running, toml, until
from .raw_client import connect
from .upstream import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, FakeRegistry, descriptor, digest_of

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
        await until(lambda: bool(first.spools()) and first.spools()[0].stat().st_size == 500_000)
    assert (await pull).ended == "short"
    async with running(toml(upstream.url), store) as second:
        got = await second.get(f"/v2/{REPO}/blobs/{digest}")
        assert digest_of(got.body) == digest
    assert upstream.requests[-1].header("Range") == "bytes=500000-"


# One upstream transfer


async def test_a_late_joiner_has_every_byte_that_has_come_at_once(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).gate(after=600_000)
    first = asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}"))
    await gate.reached.wait()
    async with connect(proxy.host) as late:
        await late.send("GET", f"/v2/{REPO}/blobs/{digest}")
        status, _ = await late.head()
        assert status == 200
        assert await late.reader.readexactly(599_999) == DATA[:599_999]
        gate.open()
        assert await late.reader.readexactly(len(DATA) - 599_999) == DATA[599_999:]
    assert (await first).body == DATA
    assert upstream.count() == 1


async def test_headers_go_out_as_soon_as_upstream_has_sent_its_own(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).gate(after=0)
    async with connect(proxy.host) as client:
        await client.send("GET", f"/v2/{REPO}/blobs/{digest}")
        status, headers = await client.head()
        assert (status, dict(headers)["Content-Length"]) == (200, str(len(DATA)))
        gate.open()
        assert await client.reader.readexactly(len(DATA)) == DATA


async def test_a_fill_survives_all_its_clients(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).gate(after=100_000)
    for _ in range(3):
        async with connect(proxy.host) as client:
            await client.send("GET", f"/v2/{REPO}/blobs/{digest}")
            await client.head()
    await until(lambda: len(proxy.requests) == 3, "the requests end with their clients")
    assert proxy.app.handlers.active == 0
    gate.open()
    await proxy.settled()
    assert proxy.blobs() == [digest]
    assert upstream.count() == 1


async def test_a_client_that_leaves_before_upstream_answers_does_not_end_the_fill(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).hang()
    async with connect(proxy.host) as client:
        await client.send("GET", f"/v2/{REPO}/blobs/{digest}")
        await gate.reached.wait()
    await until(lambda: len(proxy.requests) == 1)
    gate.open()
    await proxy.settled()
    assert proxy.blobs() == [digest]


async def test_a_client_that_reads_nothing_slows_nobody(upstream: FakeRegistry, proxy: Proxy) -> None:
    data = DATA * 16  # more than the sockets' buffers take
    digest = upstream.add_blob(REPO, data)
    async with connect(proxy.host) as idle:
        await idle.send("GET", f"/v2/{REPO}/blobs/{digest}")
        await upstream.seen(1, method="GET")
        got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
        assert digest_of(got.body) == digest
        assert proxy.blobs() == [digest]
        assert proxy.app.handlers.active == 1  # the idle one, which is still welcome to the rest
        answer = await idle.answer()
        assert digest_of(answer.body) == digest
    assert upstream.count() == 1


async def test_a_client_that_takes_no_byte_for_too_long_is_let_go(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA * 16)
    async with (
        running(toml(upstream.url, server='client_stall_timeout = "200ms"'), store) as proxy,
        connect(proxy.host) as idle,
    ):
        await idle.send("GET", f"/v2/{REPO}/blobs/{digest}")
        await until(lambda: len(proxy.requests) == 1)
        assert proxy.app.handlers.active == 0
        assert proxy.requests[0]["bytes"] < len(DATA) * 16


async def test_the_last_byte_is_withheld_until_the_digest_holds(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).wrong_bytes().chunked().gate(after=len(DATA))
    async with connect(proxy.host) as client:
        await client.send("GET", f"/v2/{REPO}/blobs/{digest}")
        await gate.reached.wait()
        answer = asyncio.create_task(client.answer())
        await until(lambda: proxy.spools()[0].stat().st_size == len(DATA))
        gate.open()
        assert (await answer).ended == "short"
        assert len((await answer).body) == len(DATA) - 1
    assert proxy.blobs() == []


@pytest.mark.parametrize("fault", ["wrong_bytes", "shorter_blob", "longer_blob", "longer_body", "shorter_body"])
async def test_no_wrong_body_ever_completes_and_the_next_request_is_right(
    upstream: FakeRegistry, proxy: Proxy, fault: str
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    rule = upstream.on("GET", blob=digest, times=1)
    faults: dict[str, Callable[[], object]] = {
        "wrong_bytes": rule.wrong_bytes,
        "shorter_blob": lambda: rule.resized(-1),
        "longer_blob": lambda: rule.resized(+1),
        "longer_body": lambda: rule.longer(1),  # the surplus is no part of the answer
        "shorter_body": lambda: rule.shorter(1),  # resumed
    }
    faults[fault]()
    first = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert first.ended == "short" or digest_of(first.body) == digest
    assert first.ended != "reset"
    await proxy.settled()
    assert proxy.blobs() in ([], [digest])
    for _ in range(2):
        again = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
        assert (again.status, again.ended, digest_of(again.body)) == (200, "complete", digest)
    assert proxy.blobs() == [digest]


async def test_an_upstream_that_lied_about_the_size_once_is_believed_again_after_a_restart(
    upstream: FakeRegistry, store: Path
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, times=1).resized(-1)
    async with running(toml(upstream.url), store) as first:
        assert (await first.get(f"/v2/{REPO}/blobs/{digest}")).ended == "short"
    async with running(toml(upstream.url), store) as second:
        got = await second.get(f"/v2/{REPO}/blobs/{digest}")
        assert (got.status, digest_of(got.body)) == (200, digest)


async def test_a_head_that_lied_about_the_size_spoils_nothing(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("HEAD", blob=digest, times=1).set_header("Content-Length", "7")
    assert (await proxy.head(f"/v2/{REPO}/blobs/{digest}")).header("Content-Length") == "7"
    for _ in range(2):
        got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
        assert (got.status, digest_of(got.body)) == (200, digest)


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_failure_midway_is_a_fin_on_a_kept_connection_too(
    upstream: FakeRegistry, proxy: Proxy, framing: str
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    rule = upstream.on("GET", blob=digest, times=1).wrong_bytes()
    if framing == "chunked":
        rule.chunked()
    async with connect(proxy.host) as client:
        await client.ask("GET", "/v2/")
        answer = await client.ask("GET", f"/v2/{REPO}/blobs/{digest}", {"Connection": "keep-alive"})
        assert (answer.status, answer.ended) == (200, "short")
        assert await client.reader.read() == b""  # and nothing behind it


async def test_20_waiters_of_a_failing_fill_fail_at_once_and_the_next_request_fetches_anew(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest, times=1).wrong_bytes().gate(after=1000)
    pulls = [asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}")) for _ in range(20)]
    await until(lambda: proxy.app.handlers.active == 20)
    await gate.reached.wait()
    gate.open()
    assert {answer.ended for answer in await asyncio.gather(*pulls)} == {"short"}
    assert upstream.count() == 1
    assert digest_of((await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body) == digest
    assert upstream.count() == 2


async def test_20_waiters_for_a_blob_that_upstream_does_not_have_cost_one_request(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest, times=1).status(404).hang()
    pulls = [asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}")) for _ in range(20)]
    await until(lambda: proxy.app.handlers.active == 20)
    await gate.reached.wait()
    gate.open()
    answers = await asyncio.gather(*pulls)
    assert {answer.status for answer in answers} == {404}
    assert json.loads(answers[0].body)["errors"][0]["code"] == "BLOB_UNKNOWN"
    assert upstream.count() == 1
    assert proxy.spools() == []
    assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).status == 200


# Broken transfers


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once."""
    monkeypatch.setattr("proxy.download.pause", lambda *_: 0.0)
    monkeypatch.setattr("proxy.exchange.pause", lambda *_: 0.0)


def ranges(upstream: FakeRegistry) -> list[str | None]:
    """The Range of each GET of a blob."""
    return [request.header("Range") for request in upstream.matching("GET", "/blobs/")]


@pytest.mark.usefixtures("no_pauses")
async def test_a_reset_transfer_is_resumed_from_every_byte_that_came(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, times=1).reset(after=400_000)
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert digest_of(got.body) == digest
    assert ranges(upstream) == [None, "bytes=400000-"]
    assert upstream.body_bytes_sent == len(DATA)


async def test_a_stalled_transfer_is_resumed(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, times=1).stall(after=400_000)
    async with running(toml(upstream.url, more='stall_timeout = "1s"'), store) as proxy:
        got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
        assert digest_of(got.body) == digest
    assert ranges(upstream) == [None, "bytes=400000-"]


async def test_a_drip_is_a_stall(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, times=1).drip(bytes_per_step=1, every=0.02)
    async with running(toml(upstream.url, more='stall_timeout = "1s"'), store) as proxy:
        got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
        assert digest_of(got.body) == digest
    assert len(ranges(upstream)) == 2


@pytest.mark.usefixtures("no_pauses")
async def test_a_transfer_that_breaks_again_and_again_goes_on_as_long_as_bytes_come(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, times=12).truncate(after=50_000)
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert digest_of(got.body) == digest
    assert ranges(upstream) == [None, *(f"bytes={n * 50_000}-" for n in range(1, 13))]
    assert upstream.body_bytes_sent == len(DATA)


@pytest.mark.usefixtures("no_pauses")
async def test_a_transfer_that_brings_no_more_bytes_is_given_up_and_kept_to_be_resumed(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, times=6).truncate(after=300_000)
    upstream.on("GET", blob=digest, where=lambda r: r.header("Range") is not None, times=6).truncate(after=0)
    upstream._rules.reverse()
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert got.ended == "short"
    assert len(got.body) == 299_999
    await proxy.settled()
    assert [path.stat().st_size for path in proxy.spools()] == [300_000]
    assert await proxy.app.housekeeping._space.refresh() == 74 * 4096  # it counts, in whole blocks
    upstream.forget_rules()
    again = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert digest_of(again.body) == digest
    assert ranges(upstream)[-1] == "bytes=300000-"


@pytest.mark.usefixtures("no_pauses")
async def test_a_200_answered_to_a_resume_is_taken_from_where_we_were(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, times=1).truncate(after=300_000)
    upstream.on("GET", blob=digest).ignore_range()
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert (digest_of(got.body), len(got.body)) == (digest, len(DATA))
    assert len(ranges(upstream)) == 2


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("fault", ["one off", "malformed", "other size", "other body", "416"])
async def test_a_wrong_answer_to_a_resume_is_never_built_upon(upstream: FakeRegistry, proxy: Proxy, fault: str) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, times=1).truncate(after=300_000)
    rule = upstream.on("GET", blob=digest, where=lambda request: request.header("Range") is not None)
    faults: dict[str, Callable[[], object]] = {
        "one off": rule.wrong_content_range,
        "malformed": lambda: rule.wrong_content_range("bytes x-y/z"),
        "other size": lambda: rule.wrong_content_range(f"bytes 300000-{len(DATA)}/{len(DATA) + 1}"),
        "other body": rule.different_body_on_range,
        "416": lambda: rule.status(416),
    }
    faults[fault]()
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert got.ended == "short"
    await proxy.settled()
    assert proxy.blobs() == []
    upstream.forget_rules()
    assert digest_of((await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body) == digest


@pytest.mark.usefixtures("no_pauses")
async def test_an_upstream_that_denies_having_the_blob_midway_ends_the_fill(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, times=1).truncate(after=300_000)
    upstream.on("GET", blob=digest, times=1).status(404)
    assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).ended == "short"
    assert proxy.spools() == []


@pytest.mark.usefixtures("no_pauses")
async def test_errors_of_upstream_midway_are_outlived(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, times=1).truncate(after=300_000)
    upstream.on("GET", blob=digest, times=4).status(503)
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert digest_of(got.body) == digest


async def test_what_an_earlier_process_left_and_no_longer_fits_is_dropped(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, times=1).stall(after=500_000)
    async with running(toml(upstream.url), store) as first:
        pull = asyncio.create_task(first.get(f"/v2/{REPO}/blobs/{digest}"))
        await until(lambda: bool(first.spools()) and first.spools()[0].stat().st_size == 500_000)
    await pull
    spool = next((store / "spool").iterdir())
    spool.write_bytes(DATA + b"more than there is")
    async with running(toml(upstream.url), store) as second:
        got = await second.get(f"/v2/{REPO}/blobs/{digest}")
        assert digest_of(got.body) == digest
        assert second.blobs() == [digest]


async def test_what_an_earlier_process_had_complete_is_not_fetched_again(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with running(toml(upstream.url), store) as first:
        await first.get(f"/v2/{REPO}/blobs/{digest}")
        path = first.blob_path(digest)
    path.rename(store / "spool" / digest.replace(":", "-"))  # killed between the last byte and the name
    async with running(toml(upstream.url), store) as second:
        got = await second.get(f"/v2/{REPO}/blobs/{digest}")
        assert digest_of(got.body) == digest
        assert second.blobs() == [digest]
        assert second.spools() == []
    assert upstream.count("GET") == 1


# Sizes


async def pull_manifest(proxy: Proxy, upstream: FakeRegistry, size: int) -> str:
    """Let the proxy see a manifest that says so much about DATA."""
    digest = upstream.add_blob(REPO, DATA)
    layer = descriptor(OCI_LAYER, digest, size)
    config = descriptor(OCI_CONFIG, upstream.add_blob(REPO, b"{}"), 2)
    upstream.add_manifest(
        REPO, {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]}, tags=["v1"]
    )
    assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).status == 200
    return digest


@pytest.mark.parametrize("off", [-1, 1])
async def test_a_content_length_that_is_not_the_manifests_is_refused_before_the_headers(
    upstream: FakeRegistry, proxy: Proxy, off: int
) -> None:
    digest = await pull_manifest(proxy, upstream, len(DATA))
    upstream.on("GET", blob=digest, times=1).resized(off)
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert (got.status, got.ended) == (502, "complete")
    assert json.loads(got.body)["errors"][0]["code"] == "UNAVAILABLE"
    assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body == DATA


@pytest.mark.parametrize("framing", ["chunked", "no_content_length"])
async def test_a_body_of_unknown_length_has_the_manifests(upstream: FakeRegistry, proxy: Proxy, framing: str) -> None:
    digest = await pull_manifest(proxy, upstream, len(DATA))
    rule = upstream.on("GET", blob=digest)
    _ = rule.chunked() if framing == "chunked" else rule.no_content_length()
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert got.header("Content-Length") == str(len(DATA))
    assert digest_of(got.body) == digest
    assert proxy.blobs() == [digest] or len(proxy.blobs()) == 2


@pytest.mark.parametrize("framing", ["chunked", "no_content_length"])
async def test_a_body_of_unknown_length_is_streamed_verified_and_kept(
    upstream: FakeRegistry, proxy: Proxy, framing: str
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    rule = upstream.on("GET", blob=digest)
    _ = rule.chunked() if framing == "chunked" else rule.no_content_length()
    cold = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert (cold.header("Content-Length"), cold.header("Transfer-Encoding")) == (None, "chunked")
    assert (cold.ended, digest_of(cold.body)) == ("complete", digest)
    warm = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert (warm.header("Content-Length"), digest_of(warm.body)) == (str(len(DATA)), digest)
    assert upstream.count() == 1


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("framing", ["chunked", "no_content_length"])
async def test_a_body_of_unknown_length_that_breaks_off_is_resumed_or_cut_never_completed(
    upstream: FakeRegistry, proxy: Proxy, framing: str, known: bool
) -> None:
    digest = await pull_manifest(proxy, upstream, len(DATA)) if known else upstream.add_blob(REPO, DATA)
    rule = upstream.on("GET", blob=digest, times=1)
    _ = rule.chunked() if framing == "chunked" else rule.no_content_length()
    rule.truncate(after=300_000)
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    if known or framing == "chunked":
        assert digest_of(got.body) == digest
        assert ranges(upstream)[-1] == "bytes=300000-"
    else:  # nothing told this end from a true one, but the digest
        assert got.ended == "short"
        assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body == DATA


async def test_an_http_1_0_client_of_a_body_of_unknown_length_gets_it_to_the_close(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest).chunked()
    async with connect(proxy.host) as client:
        client.writer.write(f"GET /v2/{REPO}/blobs/{digest} HTTP/1.0\r\nHost: {proxy.host}\r\n\r\n".encode())
        got = await client.answer()
        assert got.header("Transfer-Encoding") is None
        assert digest_of(got.body) == digest


@pytest.mark.parametrize("framing", ["length", "chunked", "no_content_length"])
async def test_a_blob_without_bytes_is_a_blob(upstream: FakeRegistry, proxy: Proxy, framing: str) -> None:
    digest = upstream.add_blob(REPO, b"")
    if framing != "length":
        rule = upstream.on("GET", blob=digest)
        _ = rule.chunked() if framing == "chunked" else rule.no_content_length()
    for _ in range(2):
        got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
        assert (got.status, got.body, got.ended) == (200, b"", "complete")
        await proxy.settled()
    assert proxy.blobs() == [digest]
    assert upstream.count() == 1


async def test_a_blob_of_one_byte_is_a_blob(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, b"x")
    for _ in range(2):
        assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body == b"x"


async def test_no_bytes_are_no_complete_answer_for_a_blob_that_has_some(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, times=1).body(b"")
    assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).status == 502
    await proxy.settled()
    assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body == DATA


async def test_a_sha512_blob_is_verified_with_sha512(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA, "sha512")
    for _ in range(2):
        got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
        assert digest_of(got.body, "sha512") == digest
    assert proxy.blobs() == [digest]
    other = upstream.add_blob(REPO, DATA[1:], "sha512")
    upstream.on("GET", blob=other, times=1).wrong_bytes()
    assert (await proxy.get(f"/v2/{REPO}/blobs/{other}")).ended == "short"


async def test_an_encoded_blob_is_refused(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, times=1).content_encoding_gzip()
    assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).status == 502
    assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body == DATA
    assert {request.header("Accept-Encoding") for request in upstream.requests} == {"identity"}


# HEAD, conditions


async def test_head_of_a_cold_blob_downloads_nothing(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    got = await proxy.head(f"/v2/{REPO}/blobs/{digest}")
    assert (got.status, got.header("Content-Length"), got.header("Docker-Content-Digest")) == (
        200,
        str(len(DATA)),
        digest,
    )
    assert (upstream.count("HEAD"), upstream.count("GET"), upstream.body_bytes_sent) == (1, 0, 0)
    assert proxy.spools() == []


async def test_head_of_a_blob_whose_upstream_redirects_to_storage_downloads_nothing_either(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("HEAD", blob=digest).redirect(f"{upstream.url}/elsewhere?signature=for-get-only")
    got = await proxy.head(f"/v2/{REPO}/blobs/{digest}")
    assert (got.status, got.header("Content-Length")) == (200, str(len(DATA)))
    assert upstream.body_bytes_sent <= 1


async def test_head_tells_what_get_tells_cold_and_warm(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    cold = await proxy.head(f"/v2/{REPO}/blobs/{digest}")
    get = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    warm = await proxy.head(f"/v2/{REPO}/blobs/{digest}")
    told = [
        {name: value for name, value in answer.headers if name not in {"Date", "Connection"}}
        for answer in (cold, get, warm)
    ]
    assert told[0] == told[1] == told[2]
    assert upstream.count() == 2


async def test_head_of_a_missing_blob_is_404(upstream: FakeRegistry, proxy: Proxy) -> None:
    upstream.add_blob(REPO, DATA)
    assert (await proxy.head(f"/v2/{REPO}/blobs/{digest_of(b'missing')}")).status == 404


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_who_has_a_blob_is_told_so(upstream: FakeRegistry, proxy: Proxy, method: str) -> None:
    digest = upstream.add_blob(REPO, DATA)
    await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    for tags in (f'"{digest}"', f'W/"{digest}"', f'"x", "{digest}"', "*"):
        got = await proxy.ask(method, f"/v2/{REPO}/blobs/{digest}", {"If-None-Match": tags})
        assert (got.status, got.body, got.header("ETag")) == (304, b"", f'"{digest}"')
    other = await proxy.ask(method, f"/v2/{REPO}/blobs/{digest}", {"If-None-Match": '"x"'})
    assert other.status == 200


async def test_a_connection_is_good_for_many_answers(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with connect(proxy.host) as client:
        for headers in (
            {},
            {"Range": "bytes=5-9"},
            {"Range": "bytes=9999999-"},
            {"If-Range": '"x"', "Range": "bytes=5-"},
        ):
            await client.ask("GET", f"/v2/{REPO}/blobs/{digest}", headers)
            await client.ask("HEAD", f"/v2/{REPO}/blobs/{digest}", headers)
        await client.send("GET", f"/v2/{REPO}/blobs/{digest}", {"If-None-Match": f'"{digest}"'})
        assert (await client.head())[0] == 304
        got = await client.ask("GET", f"/v2/{REPO}/blobs/{digest}")
        assert digest_of(got.body) == digest


# Bytes are shared, permission is not


async def test_a_cached_digest_is_served_through_another_repository_once_upstream_confirms_it(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.add_blob("library/other", DATA)
    await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    for _ in range(2):
        assert (await proxy.get(f"/v2/library/other/blobs/{digest}")).body == DATA
    assert (upstream.count("GET"), upstream.count("HEAD", "library/other")) == (1, 1)


@pytest.mark.parametrize(("upstreams", "ours"), [(404, 404), (401, 403), (403, 403)])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_cached_digest_is_not_served_through_a_repository_that_upstream_denies(
    upstream: FakeRegistry, proxy: Proxy, method: str, upstreams: int, ours: int
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on(repo="library/private").status(upstreams)
    await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    for headers in ({}, {"Range": "bytes=0-9"}, {"If-None-Match": f'"{digest}"'}):
        got = await proxy.ask(method, f"/v2/library/private/blobs/{digest}", headers)
        assert got.status == ours
        assert DATA[:10] not in got.body


async def test_a_digest_on_its_way_is_not_joined_through_a_repository_that_upstream_denies(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", repo=REPO, blob=digest).gate(after=500_000)
    pull = asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}"))
    await gate.reached.wait()
    assert (await proxy.get(f"/v2/library/private/blobs/{digest}")).status == 404
    assert upstream.count("HEAD", "library/private") == 1
    gate.open()
    assert (await pull).body == DATA


async def test_a_digest_on_its_way_is_joined_through_another_repository_that_has_it(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.add_blob("library/other", DATA)
    gate = upstream.on("GET", repo=REPO, blob=digest).gate(after=500_000)
    pull = asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}"))
    await gate.reached.wait()
    async with connect(proxy.host) as other:
        await other.send("GET", f"/v2/library/other/blobs/{digest}")
        await other.head()
        assert await other.reader.readexactly(499_999) == DATA[:499_999]
    gate.open()
    assert (await pull).body == DATA
    assert (upstream.count("GET"), upstream.count("HEAD")) == (1, 1)


@pytest.mark.parametrize("status", [404, 403, 502])
async def test_a_fill_that_fails_for_one_repository_fails_for_no_other(
    upstream: FakeRegistry, proxy: Proxy, status: int
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", repo="library/wrong").status(status).hang()
    wrong = asyncio.create_task(proxy.get(f"/v2/library/wrong/blobs/{digest}"))
    await gate.reached.wait()
    right = asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}"))
    await upstream.seen(1, method="HEAD", path_contains=REPO)
    gate.open()
    assert (await wrong).status == status
    assert ((await right).status, digest_of((await right).body)) == (200, digest)


async def test_a_blob_that_another_process_has_stored_a_moment_ago_is_neither_fetched_again_nor_given_to_everybody(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.add_blob("library/other", DATA)
    await proxy.get(f"/v2/{REPO}/blobs/{digest}")

    async def not_yet(_repository: object, _digest: object) -> bool:
        return False

    monkeypatch.setattr(proxy.app.blobs, "_is_stored", not_yet)
    assert (await proxy.get(f"/v2/library/private/blobs/{digest}")).status == 404
    assert (await proxy.get(f"/v2/library/other/blobs/{digest}")).body == DATA
    assert (upstream.count("GET"), upstream.count("HEAD")) == (1, 2)
    assert proxy.spools() == []
    assert proxy.blobs() == [digest]


async def test_what_upstream_confirmed_is_remembered_over_a_restart(upstream: FakeRegistry, store: Path) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with running(toml(upstream.url), store) as first:
        await first.get(f"/v2/{REPO}/blobs/{digest}")
    await upstream.go_down()
    async with running(toml(upstream.url), store) as second:
        got = await second.get(f"/v2/{REPO}/blobs/{digest}")
        assert (got.status, digest_of(got.body)) == (200, digest)
        assert (await second.get(f"/v2/library/other/blobs/{digest}")).status in {502, 503, 504}


async def test_bytes_that_nobody_asked_for_on_an_upstream_connection_become_nobodys_blob(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    first, second = upstream.add_blob(REPO, DATA), upstream.add_blob(REPO, DATA[::-1])
    gate = upstream.on("GET", blob=first).second_response(b"poison")
    assert (await proxy.get(f"/v2/{REPO}/blobs/{first}")).body == DATA
    await gate.reached.wait()
    gate.open()
    await gate.sent.wait()
    for _ in range(2):
        got = await proxy.get(f"/v2/{REPO}/blobs/{second}")
        assert got.status != 200 or got.ended == "short" or digest_of(got.body) == second
    again = await proxy.get(f"/v2/{REPO}/blobs/{second}")
    assert (again.status, again.ended, digest_of(again.body)) == (200, "complete", second)


async def test_bytes_behind_an_answer_become_nobodys_blob(upstream: FakeRegistry, proxy: Proxy) -> None:
    first, second = upstream.add_blob(REPO, DATA), upstream.add_blob(REPO, DATA[::-1])
    upstream.on("GET", blob=first).trailing(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
    assert (await proxy.get(f"/v2/{REPO}/blobs/{first}")).body == DATA
    await proxy.get(f"/v2/{REPO}/blobs/{second}")
    assert (await proxy.get(f"/v2/{REPO}/blobs/{second}")).body == DATA[::-1]


# The end


async def test_stopping_cuts_the_clients_short_and_leaves_the_fill_to_be_resumed(
    upstream: FakeRegistry, store: Path
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, times=1).stall(after=500_000)
    async with running(toml(upstream.url), store) as first:
        pulls = [asyncio.create_task(first.get(f"/v2/{REPO}/blobs/{digest}")) for _ in range(3)]
        await until(lambda: bool(first.spools()) and first.spools()[0].stat().st_size == 500_000)
    assert {answer.ended for answer in await asyncio.gather(*pulls)} == {"short"}
    assert [path.stat().st_size for path in first.spools()] == [500_000]
    assert first.blobs() == []
    async with running(toml(upstream.url), store) as second:
        assert digest_of((await second.get(f"/v2/{REPO}/blobs/{digest}")).body) == digest
    assert ranges(upstream) == [None, "bytes=500000-"]
    assert upstream.body_bytes_sent == len(DATA)


async def test_stopping_while_a_blob_is_being_stored_loses_nothing(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    syncing, go_on = threading.Event(), threading.Event()
    fsync = os.fsync

    def slow(fd: int) -> None:
        if "/spool/" in os.readlink(f"/proc/self/fd/{fd}"):
            syncing.set()
            go_on.wait(5)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", slow)
    async with running(toml(upstream.url), store) as proxy:
        pull = asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}"))
        await until(syncing.is_set)
        stopping = asyncio.create_task(proxy.app.blobs.aclose())
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.1, go_on.set)
        await stopping
        await pull
        assert proxy.blobs() == [digest]
        assert proxy.spools() == []
