"""Ranges: the same answers whether the blob is stored, on its way, or not yet asked for."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from .harness import Proxy, until
from .raw_client import RawAnswer, connect
from .upstream import FakeRegistry, Gate, digest_of

REPO = "library/app"
DATA = bytes(range(251)) * 4001  # about 1 MiB, and no power of two in sight
SIZE = len(DATA)

GOOD = {
    "bytes=0-0": (0, 1),
    "bytes=0-99": (0, 100),
    "bytes=500-999": (500, 1000),
    "bytes=700000-": (700_000, SIZE),
    "bytes=0-": (0, SIZE),
    "bytes=-1": (SIZE - 1, SIZE),
    "bytes=-1000": (SIZE - 1000, SIZE),
    f"bytes=-{SIZE + 1}": (0, SIZE),
    f"bytes={SIZE - 1}-": (SIZE - 1, SIZE),
    f"bytes={SIZE - 5}-{SIZE + 5}": (SIZE - 5, SIZE),
    "Bytes=5-9": (5, 10),
}
IMPOSSIBLE = [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 9}", "bytes=9223372036854775807-", "bytes=-0"]
IGNORED = [
    "bytes=0-1,5-9",
    "bytes=0-1, -1",
    "lines=0-9",
    "bytes=9-5",
    "bytes=-",
    "bytes=a-b",
    "bytes 0-9",
    "bytes=1-2-3",
    "bytes=+1-2",
    "bytes=\u0661-",
    "bytes=99999999999999999999-",
    "",
]


@pytest.fixture(params=["cold", "coming", "warm"])
async def digest(request: pytest.FixtureRequest, upstream: FakeRegistry, proxy: Proxy) -> AsyncIterator[str]:
    """A blob that is not there yet, that is on its way (all of it but a byte), that is stored."""
    made = upstream.add_blob(REPO, DATA)
    gate: Gate | None = None
    pulls: list[asyncio.Task[RawAnswer]] = []
    if request.param == "coming":
        gate = upstream.on("GET", blob=made).gate(after=SIZE - 1)
        pulls.append(asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{made}")))
        await gate.reached.wait()
        asyncio.get_running_loop().call_later(0.01, gate.open)
    if request.param == "warm":
        await proxy.get(f"/v2/{REPO}/blobs/{made}")
        await proxy.settled()
    yield made
    await asyncio.gather(*pulls)
    await proxy.settled()
    assert proxy.blobs() == [made]
    assert upstream.count("GET") == 1


@pytest.mark.parametrize("asked", GOOD)
async def test_a_range_is_answered_with_its_bytes(proxy: Proxy, digest: str, asked: str) -> None:
    start, stop = GOOD[asked]
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}", {"Range": asked})
    assert (got.status, got.ended, got.body) == (206, "complete", DATA[start:stop])
    assert got.header("Content-Range") == f"bytes {start}-{stop - 1}/{SIZE}"
    assert got.header("Content-Length") == str(stop - start)
    assert got.header("ETag") == f'"{digest}"'
    assert got.header("Content-Type") == "application/octet-stream"


@pytest.mark.parametrize("asked", IMPOSSIBLE)
async def test_a_range_past_the_end_is_416(proxy: Proxy, digest: str, asked: str) -> None:
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}", {"Range": asked})
    assert (got.status, got.header("Content-Range"), got.header("Content-Length")) == (416, f"bytes */{SIZE}", "0")


@pytest.mark.parametrize("asked", IGNORED)
async def test_a_range_that_is_none_or_many_is_answered_with_the_whole(proxy: Proxy, digest: str, asked: str) -> None:
    async with connect(proxy.host) as client:
        client.writer.write(
            f"GET /v2/{REPO}/blobs/{digest} HTTP/1.1\r\nHost: {proxy.host}\r\nRange: {asked}\r\n\r\n".encode()
        )
        got = await client.answer()
    assert (got.status, got.header("Content-Range"), digest_of(got.body)) == (200, None, digest)


async def test_two_range_headers_are_answered_with_the_whole(proxy: Proxy, digest: str) -> None:
    async with connect(proxy.host) as client:
        lines = f"Host: {proxy.host}\r\nRange: bytes=0-1\r\nRange: bytes=5-9\r\n\r\n"
        client.writer.write(f"GET /v2/{REPO}/blobs/{digest} HTTP/1.1\r\n{lines}".encode())
        got = await client.answer()
    assert (got.status, digest_of(got.body)) == (200, digest)


async def test_if_range_with_the_digest_keeps_the_range(proxy: Proxy, digest: str) -> None:
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}", {"Range": "bytes=5-9", "If-Range": f'"{digest}"'})
    assert (got.status, got.body) == (206, DATA[5:10])


@pytest.mark.parametrize("validator", ['"sha256:other"', 'W/"{}"', "{}", "Mon, 23 Nov 2026 00:00:00 GMT"])
async def test_if_range_with_anything_else_is_answered_with_the_whole(
    proxy: Proxy, digest: str, validator: str
) -> None:
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}", {"Range": "bytes=5-9", "If-Range": validator.format(digest)})
    assert (got.status, digest_of(got.body)) == (200, digest)


async def test_the_parts_of_parallel_ranges_make_the_whole(proxy: Proxy, digest: str) -> None:
    step = 100_000
    answers = await asyncio.gather(
        *(
            proxy.get(f"/v2/{REPO}/blobs/{digest}", {"Range": f"bytes={start}-{start + step - 1}"})
            for start in range(0, SIZE, step)
        )
    )
    assert {answer.status for answer in answers} == {206}
    assert digest_of(b"".join(answer.body for answer in answers)) == digest


# A cold blob


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> int:
    """How far ahead of the watermark is near, small enough for small files."""
    monkeypatch.setattr("proxy.reading.NEAR", 50_000)
    return 50_000


@pytest.mark.usefixtures("near")
async def test_a_far_range_of_a_cold_blob_is_answered_at_once_while_the_fill_goes_on(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest, where=lambda request: request.header("Range") is None).gate(after=1000)
    far = await proxy.get(f"/v2/{REPO}/blobs/{digest}", {"Range": "bytes=900000-900999"})
    assert (far.status, far.body) == (206, DATA[900_000:901_000])
    suffix = await proxy.get(f"/v2/{REPO}/blobs/{digest}", {"Range": "bytes=-10"})
    assert (suffix.status, suffix.body) == (206, DATA[-10:])
    assert [request.header("Range") for request in upstream.matching("GET")] == [
        None,
        "bytes=900000-900999",
        f"bytes={SIZE - 10}-{SIZE - 1}",
    ]
    gate.open()
    await proxy.settled()
    assert proxy.blobs() == [digest]
    assert upstream.body_bytes_sent == SIZE + 1010


@pytest.mark.usefixtures("near")
async def test_a_near_range_of_a_cold_blob_waits_for_the_fill_and_costs_nothing(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).gate(after=1000)
    near = asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}", {"Range": "bytes=20000-29999"}))
    await gate.reached.wait()
    gate.open()
    assert ((await near).status, (await near).body) == (206, DATA[20_000:30_000])
    assert upstream.count("GET") == 1


async def test_a_range_below_the_watermark_is_answered_while_the_fill_is_held(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).gate(after=500_000)
    pull = asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}"))
    await gate.reached.wait()
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}", {"Range": "bytes=100-499998"})
    assert (got.status, got.body) == (206, DATA[100:499_999])
    gate.open()
    assert (await pull).body == DATA
    assert upstream.count("GET") == 1


@pytest.mark.usefixtures("near")
async def test_a_far_range_that_breaks_off_is_gone_on_with(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest, where=lambda request: request.header("Range") is None).gate(after=1000)
    upstream.on("GET", blob=digest, times=2).truncate(after=3000)
    far = await proxy.get(f"/v2/{REPO}/blobs/{digest}", {"Range": "bytes=900000-909999"})
    assert (far.status, far.ended, far.body) == (206, "complete", DATA[900_000:910_000])
    assert [request.header("Range") for request in upstream.matching("GET")][1:] == [
        "bytes=900000-909999",
        "bytes=903000-909999",
        "bytes=906000-909999",
    ]
    gate.open()


@pytest.mark.usefixtures("near")
@pytest.mark.parametrize("fault", ["ignored", "failing"])
async def test_a_far_range_that_upstream_will_not_give_waits_for_the_fill(
    upstream: FakeRegistry, proxy: Proxy, fault: str
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest, where=lambda request: request.header("Range") is None).gate(after=1000)
    rule = upstream.on("GET", blob=digest)
    _ = rule.ignore_range() if fault == "ignored" else rule.status(429)
    far = asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}", {"Range": "bytes=900000-900999"}))
    await gate.reached.wait()
    await upstream.seen(2, method="GET")
    gate.open()
    assert ((await far).status, (await far).body) == (206, DATA[900_000:901_000])


@pytest.mark.usefixtures("near")
async def test_a_client_that_leaves_in_a_far_range_leaves_nothing_behind(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    fill = upstream.on("GET", blob=digest, where=lambda request: request.header("Range") is None).gate(after=1000)
    part = upstream.on("GET", blob=digest).gate(after=1000)
    async with connect(proxy.host) as client:
        await client.send("GET", f"/v2/{REPO}/blobs/{digest}", {"Range": "bytes=900000-"})
        await part.reached.wait()
    await until(lambda: len(proxy.requests) == 1)
    await part.abandoned.wait()
    fill.open()
    await proxy.settled()
    assert proxy.blobs() == [digest]


async def test_a_range_of_a_wrong_blob_that_holds_its_last_byte_never_completes(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest).wrong_bytes()
    for asked in ("bytes=0-", f"bytes=0-{SIZE - 1}", "bytes=1000-", "bytes=-5"):
        assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}", {"Range": asked})).ended == "short"


async def test_a_range_of_a_blob_of_unknown_size_is_answered_with_the_whole(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest).chunked()
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}", {"Range": "bytes=5-9"})
    assert (got.status, digest_of(got.body)) == (200, digest)
    warm = await proxy.get(f"/v2/{REPO}/blobs/{digest}", {"Range": "bytes=5-9"})
    assert (warm.status, warm.body) == (206, DATA[5:10])


async def test_any_range_of_a_blob_without_bytes_is_416(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, b"")
    for asked in ("bytes=0-", "bytes=-1", "bytes=0-0"):
        for _ in range(2):
            got = await proxy.get(f"/v2/{REPO}/blobs/{digest}", {"Range": asked})
            assert (got.status, got.header("Content-Range")) == (416, "bytes */0")


async def test_head_takes_no_notice_of_a_range(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, DATA)
    for _ in range(2):
        got = await proxy.head(f"/v2/{REPO}/blobs/{digest}", {"Range": "bytes=5-9"})
        assert (got.status, got.header("Content-Length"), got.header("Content-Range")) == (200, str(SIZE), None)
        await proxy.get(f"/v2/{REPO}/blobs/{digest}")
