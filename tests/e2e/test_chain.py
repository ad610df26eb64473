"""Caches in a row: Entrepot in front of Entrepot in front of a registry, and no client can tell."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proxy import exchange, outage

from .harness import DEADLINE, Proxy, running, serving, toml, until
from .raw_client import RawAnswer, connect
from .upstream import OCI_MANIFEST, FakeRegistry, Storage, digest_of

REPO = "library/app"
OTHER = "owner/tool"
TAG = f"/v2/{REPO}/manifests/v1"
DATA = bytes(range(251)) * 4001  # about 1 MiB, and no power of two in sight
SIZE = len(DATA)
LARGE = bytes(range(241)) * 60_000  # far more than is worth waiting for
HEX = "a" * 64
MOST_AT_ONCE = 64  # requests, as max_requests has it
TRIES = 2  # of one blob, before the byte that the cache behind withholds is understood
NEVER_FRESH = 'tag_ttl = "0s"'


@dataclass(frozen=True)
class Chain:
    """The cache that clients see, and the one behind it, which asks the registry."""

    front: Proxy
    inner: Proxy

    async def settled(self) -> None:
        """Wait until neither has anything to do."""
        await self.front.settled()
        await self.inner.settled()

    def asked_of_inner(self, kind: str) -> list[dict[str, Any]]:
        """What the cache in front asked the one behind it for."""
        return [request for request in self.inner.requests if request["kind"] == kind]


@contextlib.asynccontextmanager
async def chained(upstream: FakeRegistry, folder: Path, *, more: str = "") -> AsyncIterator[Chain]:
    """Two caches; both know docker.io, the default, and ghcr.io, which is the same registry here."""
    ghcr = '[[upstream]]\nregistry = "ghcr.io"\nurl = "{}"\n' + more
    behind = toml(upstream.url, more=f"{more}\n{ghcr.format(upstream.url)}")
    async with running(behind, folder / "inner") as inner:
        url = f"http://{inner.host}"
        before = toml(url, more=f"{more}\n{ghcr.format(f'{url}/ghcr.io')}")
        async with running(before, folder / "front", alone=False) as front:
            yield Chain(front, inner)
            await front.settled()
        assert not list((front.store / "tmp").iterdir())
        assert front.spools() == []


@pytest.fixture
async def chain(upstream: FakeRegistry, tmp_path: Path) -> AsyncIterator[Chain]:
    """Two caches in front of the registry."""
    async with chained(upstream, tmp_path) as one:
        yield one


@pytest.fixture
async def unsure(upstream: FakeRegistry, tmp_path: Path) -> AsyncIterator[Chain]:
    """Two caches that take no tag to be fresh."""
    async with chained(upstream, tmp_path, more=NEVER_FRESH) as one:
        yield one


def problem(answer: RawAnswer) -> tuple[int, str]:
    """The status and the code of an OCI error."""
    assert answer.header("Content-Type") == "application/json"
    return answer.status, str(json.loads(answer.body)["errors"][0]["code"])


class Door:
    """A port that leads to another one, which is told later; it counts who comes through."""

    def __init__(self) -> None:
        self.host = ""
        self.behind = ""
        self.passed = 0

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["Door"]:
        """Listen for as long as the block lasts."""
        server = await asyncio.start_server(self._through, "127.0.0.1", 0)
        self.host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    async def _through(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.passed += 1
        name, _, port = self.behind.partition(":")
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection(name, int(port))
            await asyncio.gather(_pump(reader, back), _pump(there, writer))
        writer.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    sink.close()


# A pull


async def test_a_pull_through_two_caches_asks_the_registry_for_each_thing_once(
    upstream: FakeRegistry, chain: Chain
) -> None:
    image = upstream.add_image(REPO, "v1", [DATA, b"small"])
    head = await chain.front.head(TAG)
    assert (head.status, head.header("Docker-Content-Digest")) == (200, image.digest)
    assert head.header("Content-Length") == str(len(image.body))
    for _ in range(2):
        for reference in ("v1", image.digest):
            got = await chain.front.get(f"/v2/{REPO}/manifests/{reference}")
            assert (got.body, got.header("Content-Type")) == (image.body, OCI_MANIFEST)
        for digest in image.blob_digests:
            got = await chain.front.get(f"/v2/{REPO}/blobs/{digest}")
            assert (got.status, got.ended, digest_of(got.body)) == (200, "complete", digest)
    await chain.settled()
    assert sorted(request.path for request in upstream.requests) == sorted(
        [TAG, *(f"/v2/{REPO}/blobs/{digest}" for digest in image.blob_digests)]
    )
    assert chain.front.blobs() == chain.inner.blobs() == sorted([image.digest, *image.blob_digests])


@pytest.mark.parametrize(
    ("target", "repo"),
    [
        ("/v2/app/{}", REPO),
        ("/v2/library/app/{}?ns=docker.io", REPO),
        ("/v2/docker.io/app/{}", REPO),
        ("/docker.io/v2/library/app/{}", REPO),
        ("/v2/owner/tool/{}?ns=ghcr.io", OTHER),
        ("/v2/ghcr.io/owner/tool/{}", OTHER),
        ("/ghcr.io/v2/owner/tool/{}", OTHER),
        ("/ghcr.io/v2/owner/tool/{}?ns=ghcr.io", OTHER),
    ],
)
async def test_every_way_to_name_a_registry_leads_through_both(
    upstream: FakeRegistry, chain: Chain, target: str, repo: str
) -> None:
    image = upstream.add_image(repo, "v1", [b"layer"])
    assert (await chain.front.get(target.format("manifests/v1"))).body == image.body
    assert (await chain.front.get(target.format(f"blobs/{image.layer_digests[0]}"))).body == b"layer"
    assert json.loads((await chain.front.get(target.format("tags/list"))).body)["tags"] == ["v1"]
    assert {request.path.split("/")[2:4] == repo.split("/") for request in upstream.requests} == {True}
    known = {request["upstream"] for proxy in (chain.front, chain.inner) for request in proxy.requests}
    assert known == {"docker.io" if repo == REPO else "ghcr.io"}


async def test_a_cache_may_be_an_upstream_by_a_name_of_its_own(
    upstream: FakeRegistry, chain: Chain, tmp_path: Path
) -> None:
    image = upstream.add_image(OTHER, "v1", [b"layer"])
    text = toml(f"http://{chain.inner.host}", registry="cache.example")
    async with running(text, tmp_path / "third", alone=False) as front:
        for prefix in ("/v2/cache.example/ghcr.io/owner/tool", "/v2/ghcr.io/owner/tool"):
            target = f"{prefix}/manifests/v1" + ("?ns=cache.example" if "/cache.example" not in prefix else "")
            assert (await front.get(target)).body == image.body
        await front.settled()


async def test_many_clients_at_once_cost_one_transfer_of_each_cache(upstream: FakeRegistry, chain: Chain) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).gate(after=1000)
    target = f"/v2/{REPO}/blobs/{digest}"
    pulls = [asyncio.create_task(proxy.get(target)) for proxy in (chain.front, chain.front, chain.inner) * 11]
    await gate.reached.wait()
    gate.open()
    assert {digest_of(answer.body) for answer in await asyncio.gather(*pulls)} == {digest}
    await chain.settled()
    assert (upstream.count(), upstream.body_bytes_sent) == (1, SIZE)
    assert len(chain.asked_of_inner("blob")) == 11 + 1


async def test_the_first_bytes_come_through_before_the_last_have_left(upstream: FakeRegistry, chain: Chain) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).gate(after=5000)
    async with connect(chain.front.host) as client:
        await client.send("GET", f"/v2/{REPO}/blobs/{digest}")
        status, _ = await client.head()
        begun = await client.reader.readexactly(4998)  # each withholds the last byte that has come
        gate.open()
        rest = await client.reader.readexactly(SIZE - 4998)
    assert (status, digest_of(begun + rest)) == (200, digest)
    await chain.settled()
    assert upstream.count() == 1


async def test_wrong_bytes_never_come_through_whole_and_right_ones_do_again_soon(
    upstream: FakeRegistry, chain: Chain
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    target = f"/v2/{REPO}/blobs/{digest}"
    rule = upstream.on("GET", blob=digest).wrong_bytes()
    got = await chain.front.get(target)
    assert (got.status, got.ended) == (200, "short")
    await chain.settled()
    assert upstream.count() <= TRIES
    rule.stop()
    got = await chain.front.get(target)
    assert (got.ended, digest_of(got.body)) == ("complete", digest)
    await chain.settled()
    assert chain.front.blobs() == chain.inner.blobs() == [digest]


async def test_storage_behind_the_registry_is_asked_by_the_cache_behind_only(
    upstream: FakeRegistry, tmp_path: Path
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with Storage() as storage:
        upstream.redirect_blobs_to(storage)
        more = 'private_networks = ["127.0.0.0/8"]'
        async with chained(upstream, tmp_path, more=more) as chain:
            got = await chain.front.get(f"/v2/{REPO}/blobs/{digest}", {"Range": "bytes=100-199"})
            assert (got.status, got.body) == (206, DATA[100:200])
            assert digest_of((await chain.front.get(f"/v2/{REPO}/blobs/{digest}")).body) == digest
        assert (upstream.count("GET"), storage.count("GET")) == (1, 1)


# HEAD and Range


async def test_a_head_of_a_blob_downloads_nothing_into_either(upstream: FakeRegistry, chain: Chain) -> None:
    digest = upstream.add_blob(REPO, DATA)
    got = await chain.front.head(f"/v2/{REPO}/blobs/{digest}")
    assert (got.status, got.header("Content-Length"), got.header("Docker-Content-Digest")) == (200, str(SIZE), digest)
    assert [request.method for request in upstream.requests] == ["HEAD"]
    assert chain.front.blobs() == chain.inner.blobs() == []


@pytest.mark.parametrize("where", ["cold", "behind", "in front"])
@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=500-999", 500, 1000),
        ("bytes=700000-", 700_000, SIZE),
        ("bytes=-1000", SIZE - 1000, SIZE),
        (f"bytes={SIZE - 5}-{SIZE + 5}", SIZE - 5, SIZE),
    ],
)
async def test_a_range_is_the_same_wherever_the_blob_is(
    upstream: FakeRegistry, chain: Chain, where: str, asked: str, start: int, stop: int
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    target = f"/v2/{REPO}/blobs/{digest}"
    if where != "cold":
        await {"behind": chain.inner, "in front": chain.front}[where].get(target)
        await chain.settled()
    got = await chain.front.get(target, {"Range": asked})
    assert (got.status, got.ended, got.body) == (206, "complete", DATA[start:stop])
    assert got.header("Content-Range") == f"bytes {start}-{stop - 1}/{SIZE}"
    await chain.settled()
    assert upstream.count("GET") == 1
    assert chain.front.blobs() == chain.inner.blobs() == [digest]


async def test_a_range_past_the_end_is_416_through_both(upstream: FakeRegistry, chain: Chain) -> None:
    digest = upstream.add_blob(REPO, DATA)
    got = await chain.front.get(f"/v2/{REPO}/blobs/{digest}", {"Range": f"bytes={SIZE}-"})
    assert (got.status, got.header("Content-Range")) == (416, f"bytes */{SIZE}")


async def test_a_range_far_ahead_comes_through_both_before_what_is_in_front_of_it(
    upstream: FakeRegistry, chain: Chain
) -> None:
    digest = upstream.add_blob(REPO, LARGE)
    gate = upstream.on("GET", blob=digest, where=lambda request: request.header("Range") is None).gate(after=1000)
    target = f"/v2/{REPO}/blobs/{digest}"
    first = asyncio.create_task(chain.front.get(target))
    await gate.reached.wait()
    got = await chain.front.get(target, {"Range": f"bytes={len(LARGE) - 1000}-"})
    assert (got.status, got.body) == (206, LARGE[-1000:])
    assert not first.done()
    gate.open()
    assert digest_of((await first).body) == digest


# Listings


async def walk(proxy: Proxy, target: str) -> list[list[str]]:
    """The tags of every page, each by the link of the one before."""
    found: list[list[str]] = []
    following: str | None = target
    while following is not None and len(found) < 20:
        answer = await proxy.get(following)
        assert answer.status == 200, answer.body
        found.append(list(json.loads(answer.body)["tags"]))
        link = answer.header("Link")
        following = None if link is None else link.removesuffix('>; rel="next"').removeprefix("<")
    assert following is None, "it does not end"
    return found


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (f"/v2/{OTHER}/tags/list?n=2&ns=ghcr.io", OTHER),
        (f"/v2/ghcr.io/{OTHER}/tags/list?n=2", f"ghcr.io/{OTHER}"),
        (f"/ghcr.io/v2/{OTHER}/tags/list?n=2", OTHER),
    ],
)
async def test_tags_are_paged_through_both_under_the_name_that_was_asked_for(
    upstream: FakeRegistry, chain: Chain, target: str, name: str
) -> None:
    image = upstream.add_image(OTHER, "a")
    for tag in "bcde":
        upstream.tag(OTHER, tag, image.digest)
    assert json.loads((await chain.front.get(target)).body)["name"] == name
    assert await walk(chain.front, target) == [["a", "b"], ["c", "d"], ["e"]]


async def test_referrers_come_through_both_filtered_or_not(upstream: FakeRegistry, chain: Chain) -> None:
    subject = upstream.add_image(REPO, "v1")
    for number, kind in enumerate(("application/x.sbom", "application/x.signature")):
        upstream.add_image(REPO, f"r{number}", [b"%d" % number], subject={"digest": subject.digest}, artifactType=kind)
    target = f"/v2/{REPO}/referrers/{subject.digest}"
    every = await chain.front.get(target)
    assert {found["artifactType"] for found in json.loads(every.body)["manifests"]} == {
        "application/x.sbom",
        "application/x.signature",
    }
    some = await chain.front.get(f"{target}?artifactType=application/x.sbom")
    assert [found["artifactType"] for found in json.loads(some.body)["manifests"]] == ["application/x.sbom"]
    assert some.header("OCI-Filters-Applied") == "artifactType"


async def test_a_digest_without_referrers_has_an_empty_list_of_them(upstream: FakeRegistry, chain: Chain) -> None:
    upstream.add_image(REPO, "v1")
    got = await chain.front.get(f"/v2/{REPO}/referrers/sha256:{HEX}")
    assert (got.status, json.loads(got.body)["manifests"]) == (200, [])


# Errors


async def test_what_is_missing_is_missing_by_the_same_error(upstream: FakeRegistry, chain: Chain) -> None:
    upstream.add_image(REPO, "v1")
    for target, code in {
        f"/v2/{REPO}/manifests/v2": "MANIFEST_UNKNOWN",
        f"/v2/{REPO}/manifests/sha256:{HEX}": "MANIFEST_UNKNOWN",
        f"/v2/{REPO}/blobs/sha256:{HEX}": "BLOB_UNKNOWN",
        "/v2/library/nothing/tags/list": "NAME_UNKNOWN",
    }.items():
        assert problem(await chain.front.get(target)) == (404, code)
        assert (await chain.front.head(target)).status == 404


@pytest.mark.parametrize("refusal", [401, 403])
async def test_what_is_denied_is_denied_without_a_challenge(upstream: FakeRegistry, chain: Chain, refusal: int) -> None:
    upstream.on().status(refusal, [("WWW-Authenticate", 'Basic realm="upstream"')])
    for target in (TAG, f"/v2/{REPO}/blobs/sha256:{HEX}"):
        got = await chain.front.get(target)
        assert (problem(got), got.header("WWW-Authenticate")) == ((403, "DENIED"), None)


@pytest.mark.parametrize("target", [TAG, f"/v2/{REPO}/blobs/sha256:{HEX}", f"/v2/{REPO}/tags/list"])
async def test_a_rate_limit_comes_through_with_the_time_to_wait_and_is_not_tried_over(
    upstream: FakeRegistry, chain: Chain, target: str
) -> None:
    upstream.on().status(429, [("Retry-After", "120")])
    got = await chain.front.get(target)
    assert problem(got) == (429, "TOOMANYREQUESTS")
    assert 100 < int(got.header("Retry-After") or "0") <= 120
    assert upstream.count() == 1


async def test_an_error_that_is_no_oci_error_becomes_one(upstream: FakeRegistry, chain: Chain) -> None:
    upstream.on().status(500, [("Content-Type", "text/html")], b"<html>")
    for target in (TAG, f"/v2/{REPO}/blobs/sha256:{HEX}", f"/v2/{REPO}/tags/list"):
        status, code = problem(await chain.front.get(target))
        assert (status in {502, 503}, code) == (True, "UNAVAILABLE")


# Outages


async def test_without_the_registry_both_serve_what_they_have(upstream: FakeRegistry, unsure: Chain) -> None:
    image = upstream.add_image(REPO, "v1", [DATA])
    targets = [TAG, *(f"/v2/{REPO}/blobs/{digest}" for digest in image.blob_digests)]
    had = [(await unsure.front.get(target)).body for target in targets]
    await unsure.settled()
    await upstream.go_down()
    for proxy in (unsure.front, unsure.inner):
        assert [(await proxy.get(target)).body for target in targets] == had
    assert (await unsure.inner.get(TAG)).header("Warning") is not None


async def test_without_the_cache_behind_it_the_one_in_front_serves_what_it_has(
    upstream: FakeRegistry, tmp_path: Path
) -> None:
    image = upstream.add_image(REPO, "v1", [DATA])
    targets = [TAG, *(f"/v2/{REPO}/blobs/{digest}" for digest in image.blob_digests)]
    async with contextlib.AsyncExitStack() as stack:
        inner = await stack.enter_async_context(serving(toml(upstream.url), tmp_path / "inner"))
        text = toml(f"http://{inner.host}", more=NEVER_FRESH)
        front = await stack.enter_async_context(running(text, tmp_path / "front"))
        had = [(await front.get(target)).body for target in targets]
        await front.settled()
        await inner.stop()
        answers = [await front.get(target) for target in targets]
        assert [answer.body for answer in answers] == had
        assert answers[0].header("Warning") is not None


async def test_what_the_registry_breaks_off_the_cache_behind_resumes_unseen(
    upstream: FakeRegistry, chain: Chain
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, times=1).truncate(after=300_000)
    got = await chain.front.get(f"/v2/{REPO}/blobs/{digest}")
    assert (got.status, got.ended, digest_of(got.body)) == (200, "complete", digest)
    await chain.settled()
    assert [request.header("Range") for request in upstream.requests] == [None, "bytes=300000-"]
    assert len(chain.asked_of_inner("blob")) == 1


async def test_when_the_cache_behind_is_killed_the_one_in_front_goes_on_when_it_is_back(
    upstream: FakeRegistry, tmp_path: Path
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest, times=1).gate(after=SIZE // 2)
    text, store = toml(upstream.url), tmp_path / "inner"
    async with contextlib.AsyncExitStack() as stack:
        door = await stack.enter_async_context(Door().open())
        inner = await stack.enter_async_context(serving(text, store))
        door.behind = inner.host
        front = await stack.enter_async_context(running(toml(f"http://{door.host}"), tmp_path / "front"))
        pull = asyncio.create_task(front.get(f"/v2/{REPO}/blobs/{digest}"))
        await until(lambda: front.spools() != [] and front.spools()[0].stat().st_size > 0, "nothing has come")
        inner.process.kill()
        await inner.process.wait()
        door.behind = (await stack.enter_async_context(serving(text, store))).host
        async with asyncio.timeout(DEADLINE):
            got = await pull
        assert (got.status, got.ended, digest_of(got.body)) == (200, "complete", digest)
        assert upstream.count("GET", path_contains="/blobs/") == 2
        assert upstream.requests[-1].header("Range") is not None  # it went on from what was on disk
        gate.open()
        await front.settled()
        assert front.blobs() == [digest]


# A loop


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "what", ["manifests/v1", f"manifests/sha256:{HEX}", f"blobs/sha256:{HEX}", "tags/list", f"referrers/sha256:{HEX}"]
)
async def test_two_caches_that_ask_each_other_end_in_an_error_before_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, what: str
) -> None:
    monkeypatch.setattr(exchange, "BUDGET", 0.5)
    monkeypatch.setattr(outage, "PROBE_BUDGET", 0.5)
    async with contextlib.AsyncExitStack() as stack:
        door = await stack.enter_async_context(Door().open())
        one = await stack.enter_async_context(running(toml(f"http://{door.host}"), tmp_path / "one"))
        other = await stack.enter_async_context(running(toml(f"http://{one.host}"), tmp_path / "other", alone=False))
        door.behind = other.host
        got = await one.ask(method, f"/v2/{REPO}/{what}")
        assert (got.status >= 500, got.header("Content-Type")) == (True, "application/json")
        await one.settled()
        await other.settled()
        assert door.passed <= MOST_AT_ONCE
