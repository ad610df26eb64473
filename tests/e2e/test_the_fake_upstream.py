"""The fake upstream is itself tested: right by default, and wrong exactly as told."""

import asyncio
import base64
import gc
import gzip
import json
import os
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import trustme

from .raw_client import RawAnswer, ask, connect
from .upstream import OCI_INDEX, OCI_MANIFEST, Canary, FakeRegistry, Storage, digest_of

DATA = bytes(range(256)) * 40  # 10,240 bytes
REPO = "library/app"


@pytest.fixture
async def upstream() -> AsyncIterator[FakeRegistry]:
    """A registry."""
    async with FakeRegistry() as registry:
        yield registry


@pytest.fixture
async def storage() -> AsyncIterator[Storage]:
    """An object store."""
    async with Storage() as store:
        yield store


@pytest.fixture
def blob(upstream: FakeRegistry) -> str:
    """The digest of DATA, which the registry has."""
    return upstream.add_blob(REPO, DATA)


@pytest.fixture
def path(blob: str) -> str:
    """Where DATA is."""
    return f"/v2/{REPO}/blobs/{blob}"


def basic(user: str, password: str) -> dict[str, str]:
    """The header of a user."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def bearer(answer: RawAnswer, key: str = "token") -> dict[str, str]:
    """The header of the token in an answer."""
    return {"Authorization": "Bearer " + json.loads(answer.body)[key]}


def open_files() -> set[str]:
    """What this process has open, by kernel name."""
    links = (Path("/proc/self/fd") / number for number in os.listdir("/proc/self/fd"))
    return {str(link.readlink()) for link in links if link.is_symlink()}


# Right by default.


async def test_a_blob_is_served_with_its_digest_and_length(upstream: FakeRegistry, path: str, blob: str) -> None:
    got = await ask(upstream.host, "GET", path)
    assert (got.status, got.body, got.ended) == (200, DATA, "complete")
    assert got.header("Docker-Content-Digest") == blob
    assert got.header("Content-Length") == str(len(DATA))


async def test_a_head_has_the_headers_of_the_get(upstream: FakeRegistry, path: str) -> None:
    assert (await ask(upstream.host, "HEAD", path)).headers == (await ask(upstream.host, "GET", path)).headers


async def test_a_head_leaves_the_connection_in_step(upstream: FakeRegistry, path: str) -> None:
    async with connect(upstream.host) as client:
        await client.ask("HEAD", path)
        assert (await client.ask("GET", path)).body == DATA
    assert upstream.connections == 1


async def test_a_sha512_blob_has_a_sha512_digest(upstream: FakeRegistry) -> None:
    digest = upstream.add_blob(REPO, DATA, "sha512")
    assert digest.startswith("sha512:")
    assert (await ask(upstream.host, "GET", f"/v2/{REPO}/blobs/{digest}")).body == DATA


@pytest.mark.parametrize(
    ("asked", "span"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=100-199", (100, 200)),
        ("bytes=10000-", (10000, 10240)),
        ("bytes=-5", (10235, 10240)),
        ("bytes=0-99999", (0, 10240)),
    ],
)
async def test_a_single_range_is_a_206(upstream: FakeRegistry, path: str, asked: str, span: tuple[int, int]) -> None:
    got = await ask(upstream.host, "GET", path, {"Range": asked})
    assert (got.status, got.body) == (206, DATA[slice(*span)])
    assert got.header("Content-Range") == f"bytes {span[0]}-{span[1] - 1}/{len(DATA)}"


@pytest.mark.parametrize("asked", ["bytes=10240-", "bytes=-0", "bytes=5-4"])
async def test_an_unsatisfiable_range_is_a_416(upstream: FakeRegistry, path: str, asked: str) -> None:
    got = await ask(upstream.host, "GET", path, {"Range": asked})
    assert (got.status, got.header("Content-Range")) == (416, f"bytes */{len(DATA)}")


@pytest.mark.parametrize("asked", ["bytes=0-1,3-4", "bytes=-", "lines=1-2", "bytes=a-b"])
async def test_an_odd_range_is_ignored(upstream: FakeRegistry, path: str, asked: str) -> None:
    assert (await ask(upstream.host, "GET", path, {"Range": asked})).status == 200


async def test_an_image_can_be_pulled_by_tag_and_by_digest(upstream: FakeRegistry) -> None:
    image = upstream.add_image(REPO, "v1", [b"one", b"two"])
    for reference in ("v1", image.digest):
        got = await ask(upstream.host, "GET", f"/v2/{REPO}/manifests/{reference}")
        assert (got.body, got.header("Content-Type")) == (image.body, OCI_MANIFEST)
        assert got.header("Docker-Content-Digest") == image.digest == digest_of(got.body)
    for digest in image.blob_digests:
        got = await ask(upstream.host, "GET", f"/v2/{REPO}/blobs/{digest}")
        assert digest_of(got.body) == digest
        assert len(got.body) == image.sizes[digest]


async def test_an_index_names_its_images(upstream: FakeRegistry) -> None:
    images = [upstream.add_image(REPO, layers=[b"x"], architecture=name) for name in ("amd64", "arm64")]
    index = upstream.add_index(REPO, "v1", images)
    got = await ask(upstream.host, "GET", f"/v2/{REPO}/manifests/v1")
    entries = json.loads(got.body)["manifests"]
    assert got.header("Content-Type") == OCI_INDEX
    assert got.header("Docker-Content-Digest") == index.digest
    assert [entry["digest"] for entry in entries] == [image.digest for image in images]
    assert [entry["platform"]["architecture"] for entry in entries] == ["amd64", "arm64"]


async def test_a_manifest_is_kept_byte_for_byte(upstream: FakeRegistry) -> None:
    digest = upstream.add_manifest(REPO, b'{ "odd" :\n1}', "application/odd", tags=["t"])
    got = await ask(upstream.host, "GET", f"/v2/{REPO}/manifests/t")
    assert (got.body, got.header("Content-Type")) == (b'{ "odd" :\n1}', "application/odd")
    assert digest == digest_of(got.body)


async def test_content_is_served_through_its_own_repository_only(upstream: FakeRegistry, blob: str) -> None:
    upstream.add_blob("other/app", b"another")
    got = await ask(upstream.host, "GET", f"/v2/other/app/blobs/{blob}")
    assert (got.status, json.loads(got.body)["errors"][0]["code"]) == (404, "BLOB_UNKNOWN")


async def test_a_moved_tag_names_the_new_digest_and_a_removed_one_nothing(upstream: FakeRegistry) -> None:
    upstream.add_image(REPO, "v1", [b"old"])
    new = upstream.add_image(REPO, None, [b"new"])
    upstream.tag(REPO, "v1", new.digest)
    got = await ask(upstream.host, "HEAD", f"/v2/{REPO}/manifests/v1")
    assert got.header("Docker-Content-Digest") == new.digest
    upstream.untag(REPO, "v1")
    got = await ask(upstream.host, "GET", f"/v2/{REPO}/manifests/v1")
    assert (got.status, json.loads(got.body)["errors"][0]["code"]) == (404, "MANIFEST_UNKNOWN")


async def test_removed_content_is_gone(upstream: FakeRegistry, path: str, blob: str) -> None:
    upstream.remove(REPO, blob)
    assert (await ask(upstream.host, "GET", path)).status == 404


async def test_an_unknown_repository_is_a_404(upstream: FakeRegistry) -> None:
    got = await ask(upstream.host, "GET", "/v2/nobody/manifests/latest")
    assert (got.status, json.loads(got.body)["errors"][0]["code"]) == (404, "NAME_UNKNOWN")


async def test_the_base_answers_200_and_writing_405(upstream: FakeRegistry) -> None:
    assert (await ask(upstream.host, "GET", "/v2/")).status == 200
    assert (await ask(upstream.host, "DELETE", "/v2/")).status == 405


async def test_tags_are_listed_in_pages(upstream: FakeRegistry) -> None:
    image = upstream.add_image(REPO)
    for name in ("c", "a", "b"):
        upstream.tag(REPO, name, image.digest)
    first = await ask(upstream.host, "GET", f"/v2/{REPO}/tags/list?n=2")
    assert json.loads(first.body) == {"name": REPO, "tags": ["a", "b"]}
    assert first.header("Link") == f'</v2/{REPO}/tags/list?n=2&last=b>; rel="next"'
    second = await ask(upstream.host, "GET", f"/v2/{REPO}/tags/list?n=2&last=b")
    assert (json.loads(second.body)["tags"], second.header("Link")) == (["c"], None)
    none = await ask(upstream.host, "GET", f"/v2/{REPO}/tags/list?n=0")
    assert (json.loads(none.body)["tags"], none.header("Link")) == ([], None)


async def test_referrers_are_found_and_filtered(upstream: FakeRegistry) -> None:
    image = upstream.add_image(REPO, "v1")
    subject = {"digest": image.digest}
    signature = upstream.add_image(REPO, layers=[b"sig"], subject=subject, artifactType="a/sig")
    upstream.add_image(REPO, layers=[b"bom"], subject=subject, artifactType="a/bom")
    path = f"/v2/{REPO}/referrers/{image.digest}"
    everything = await ask(upstream.host, "GET", path)
    assert everything.header("Content-Type") == OCI_INDEX
    assert everything.header("OCI-Filters-Applied") is None
    assert len(json.loads(everything.body)["manifests"]) == 2
    some = await ask(upstream.host, "GET", path + "?artifactType=a%2Fsig")
    assert some.header("OCI-Filters-Applied") == "artifactType"
    assert [entry["digest"] for entry in json.loads(some.body)["manifests"]] == [signature.digest]


async def test_a_registry_can_insist_on_accept(upstream: FakeRegistry) -> None:
    upstream.add_image(REPO, "v1")
    upstream.require_accept()
    path = f"/v2/{REPO}/manifests/v1"
    assert (await ask(upstream.host, "GET", path, {"Accept": "text/plain"})).status == 404
    assert (await ask(upstream.host, "GET", path, {"Accept": f"text/plain, {OCI_MANIFEST}"})).status == 200


async def test_a_real_client_understands_all_of_it(upstream: FakeRegistry, path: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(upstream.url + path) as response:
        assert await response.read() == DATA


async def test_tls_is_spoken_when_given_a_context() -> None:
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    async with FakeRegistry(tls=server) as upstream:
        digest = upstream.add_blob(REPO, DATA)
        upstream.on("GET", times=1, skip=1).truncate(after=1000)
        assert upstream.url.startswith("https://127.0.0.1:")
        async with connect(upstream.host, client) as connection:
            assert (await connection.ask("GET", f"/v2/{REPO}/blobs/{digest}")).body == DATA
            cut = await connection.ask("GET", f"/v2/{REPO}/blobs/{digest}")
            assert (cut.body, cut.ended) == (DATA[:1000], "short")


async def test_a_client_that_distrusts_the_certificate_makes_a_connection_but_no_request() -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(server)
    async with FakeRegistry(tls=server) as upstream:
        with pytest.raises(ssl.SSLError):
            async with connect(upstream.host, ssl.create_default_context()):
                pass
        assert (upstream.connections, upstream.requests) == (1, [])


# What is recorded.


async def test_a_request_is_recorded_as_it_came(upstream: FakeRegistry) -> None:
    async with connect(upstream.host) as client:
        client.writer.write(b"GET /v2/a%2Fb?n=1&n=2&x= HTTP/1.1\r\nAccept: one\r\naccept: two\r\nX: \xff\r\n\r\n")
        await client.answer()
    (request,) = upstream.requests
    assert (request.method, request.path, request.decoded_path) == ("GET", "/v2/a%2Fb", "/v2/a/b")
    assert request.query == [("n", "1"), ("n", "2"), ("x", "")]
    assert (request.lines("ACCEPT"), request.header("accept")) == (["one", "two"], "one, two")
    assert (request.header("x"), request.header("y")) == ("\xff", None)
    assert request.connection == 1
    assert 0 < request.at <= asyncio.get_running_loop().time()


async def test_requests_and_bytes_are_counted(upstream: FakeRegistry, path: str) -> None:
    await ask(upstream.host, "HEAD", path)
    await ask(upstream.host, "GET", path, {"Range": "bytes=0-9"})
    await ask(upstream.host, "GET", "/v2/")
    assert (upstream.count(), upstream.count("GET"), upstream.count(path_contains="/blobs/")) == (3, 2, 2)
    assert upstream.body_bytes_by_path[path] == upstream.body_bytes_sent_for("/blobs/") == 10
    assert upstream.body_bytes_sent == 12
    assert upstream.connections == 3


async def test_a_test_can_wait_for_requests_to_arrive(upstream: FakeRegistry, path: str) -> None:
    upstream.on("GET").hang()
    async with connect(upstream.host) as one, connect(upstream.host) as two:
        await one.send("GET", path)
        await two.send("GET", path)
        requests = await upstream.seen(2, method="GET", path_contains="/blobs/")
        assert {request.connection for request in requests} == {1, 2}
        assert upstream.in_flight == 2


async def test_a_wait_for_what_does_not_come_says_what_came(upstream: FakeRegistry) -> None:
    await ask(upstream.host, "GET", "/v2/")
    with pytest.raises(AssertionError, match="GET /v2/"):
        await upstream.seen(2, within=0.01)


async def test_a_test_can_wait_for_a_connection_to_end(upstream: FakeRegistry) -> None:
    async with connect(upstream.host):
        assert upstream.open_connections == 1
    await upstream.until(lambda: upstream.open_connections == 0)


async def test_pipelined_requests_are_answered_in_order(upstream: FakeRegistry, path: str) -> None:
    async with connect(upstream.host) as client:
        await client.send("GET", path)
        await client.send("GET", "/v2/")
        assert (await client.answer()).body == DATA
        assert (await client.answer()).body == b"{}"


async def test_a_client_that_asks_for_close_gets_it(upstream: FakeRegistry) -> None:
    async with connect(upstream.host) as client:
        await client.ask("GET", "/v2/", {"Connection": "close"})
        assert await client.reader.read() == b""


@pytest.mark.parametrize("line", [b"nonsense\r\n\r\n", b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/2\r\n\r\n"])
async def test_what_is_not_http_gets_a_400_and_a_close(upstream: FakeRegistry, line: bytes) -> None:
    async with connect(upstream.host) as client:
        client.writer.write(line)
        assert (await client.answer()).status == 400
        assert await client.reader.read() == b""


# Which requests a rule is for.


async def test_a_rule_is_used_so_many_times_after_so_many_others(upstream: FakeRegistry, path: str) -> None:
    rule = upstream.on("GET", skip=1, times=2).status(503)
    statuses = [(await ask(upstream.host, "GET", path)).status for _ in range(4)]
    assert (statuses, rule.applied) == ([200, 503, 503, 200], 2)


async def test_rules_are_used_in_the_order_they_were_made(upstream: FakeRegistry, path: str) -> None:
    upstream.on("GET", times=1).status(503)
    upstream.on("GET", times=1).status(500)
    upstream.on().status(429)
    statuses = [(await ask(upstream.host, "GET", path)).status for _ in range(3)]
    assert statuses == [503, 500, 429]
    upstream.forget_rules()
    assert (await ask(upstream.host, "GET", path)).status == 200


async def test_a_rule_has_only_the_requests_it_is_for(upstream: FakeRegistry, path: str, blob: str) -> None:
    image = upstream.add_image(REPO, "v1")
    upstream.on("HEAD", blob=blob).status(501)
    upstream.on(blob=image.config_digest).status(502)
    upstream.on(manifest="v1").status(503)
    upstream.on(path_contains="/tags/").status(504)
    upstream.on(path="/v2/").status(505)
    upstream.on(where=lambda request: request.header("X-Odd") is not None).status(506)
    upstream.on(repo="other").status(507)

    async def status(method: str, target: str, headers: dict[str, str] | None = None) -> int:
        return (await ask(upstream.host, method, target, headers)).status

    assert await status("HEAD", path) == 501
    assert await status("GET", path) == 200
    assert await status("GET", f"/v2/{REPO}/blobs/{image.config_digest}") == 502
    assert await status("GET", f"/v2/{REPO}/manifests/v1") == 503
    assert await status("GET", f"/v2/{REPO}/manifests/{image.digest}") == 200
    assert await status("GET", f"/v2/{REPO}/tags/list") == 504
    assert await status("GET", "/v2/") == 505
    assert await status("GET", path, {"X-Odd": "1"}) == 506
    assert await status("GET", "/v2/other/tags/list") == 504
    assert await status("GET", "/v2/other/manifests/x") == 507


async def test_a_stopped_rule_changes_nothing(upstream: FakeRegistry, path: str) -> None:
    rule = upstream.on().status(500)
    rule.stop()
    assert (await ask(upstream.host, "GET", path)).status == 200


async def test_behaviours_are_combined(upstream: FakeRegistry, path: str) -> None:
    gate = upstream.on("GET").wrong_bytes(at=5).chunked(size=100).truncate(after=250).gate(after=10)
    async with connect(upstream.host) as client:
        await client.send("GET", path)
        await gate.reached.wait()
        assert upstream.body_bytes_sent == 10
        gate.open()
        got = await client.answer()
    wrong = DATA[:5] + bytes([DATA[5] ^ 0xFF]) + DATA[6:250]
    assert (got.body, got.ended) == (wrong, "short")


# What is said.


async def test_status_carries_headers_and_body(upstream: FakeRegistry, path: str) -> None:
    upstream.on("GET", times=1).status(429, [("Retry-After", "7")], b"slow down")
    got = await ask(upstream.host, "GET", path)
    assert (got.status, got.header("Retry-After"), got.body) == (429, "7", b"slow down")
    upstream.on("GET").status(429)
    got = await ask(upstream.host, "GET", path)
    assert json.loads(got.body)["errors"][0]["code"] == "TOOMANYREQUESTS"


async def test_wrong_bytes_have_the_right_length(upstream: FakeRegistry, path: str) -> None:
    upstream.on("GET").wrong_bytes()
    got = await ask(upstream.host, "GET", path)
    assert len(got.body) == len(DATA)
    assert sum(a != b for a, b in zip(got.body, DATA, strict=True)) == 1
    assert got.ended == "complete"


async def test_a_resized_body_is_framed_correctly(upstream: FakeRegistry, path: str) -> None:
    upstream.on("GET", times=1).resized(-1)
    upstream.on("GET", times=1).resized(+1)
    assert (await ask(upstream.host, "GET", path)).body == DATA[:-1]
    assert (await ask(upstream.host, "GET", path)).body == DATA + b"\0"


async def test_a_longer_body_spills_over_its_content_length(upstream: FakeRegistry, path: str) -> None:
    upstream.on("GET", times=1).longer(by=3)
    async with connect(upstream.host) as client:
        got = await client.ask("GET", path)
        assert (got.header("Content-Length"), got.body) == (str(len(DATA)), DATA)
        assert await client.reader.readexactly(3) == b"\0\0\0"


async def test_a_shorter_body_ends_with_fin_before_its_content_length(upstream: FakeRegistry, path: str) -> None:
    upstream.on("GET").shorter(by=3)
    got = await ask(upstream.host, "GET", path)
    assert (got.header("Content-Length"), got.body, got.ended) == (str(len(DATA)), DATA[:-3], "short")


async def test_another_body_can_be_sent(upstream: FakeRegistry, path: str, blob: str) -> None:
    upstream.on("GET").body(b"hello")
    got = await ask(upstream.host, "GET", path)
    assert (got.body, got.header("Content-Length"), got.header("Docker-Content-Digest")) == (b"hello", "5", blob)


async def test_a_range_can_be_ignored(upstream: FakeRegistry, path: str) -> None:
    upstream.on("GET").ignore_range()
    got = await ask(upstream.host, "GET", path, {"Range": "bytes=10-"})
    assert (got.status, got.body, got.header("Content-Range")) == (200, DATA, None)


async def test_a_content_range_can_lie(upstream: FakeRegistry, path: str) -> None:
    upstream.on("GET", times=1).wrong_content_range()
    upstream.on("GET", times=1).wrong_content_range("bytes 0-1/*")
    got = await ask(upstream.host, "GET", path, {"Range": "bytes=10-19"})
    assert (got.header("Content-Range"), got.body) == ("bytes 11-19/10240", DATA[10:20])
    got = await ask(upstream.host, "GET", path, {"Range": "bytes=10-19"})
    assert got.header("Content-Range") == "bytes 0-1/*"


async def test_a_resumed_body_can_be_another(upstream: FakeRegistry, path: str) -> None:
    upstream.on("GET").different_body_on_range()
    assert (await ask(upstream.host, "GET", path)).body == DATA
    got = await ask(upstream.host, "GET", path, {"Range": "bytes=10-19"})
    assert (got.status, got.body) == (206, bytes(byte ^ 0xFF for byte in DATA[10:20]))


async def test_header_lies(upstream: FakeRegistry, path: str) -> None:
    upstream.on("GET", times=1).lying_digest()
    upstream.on("GET", times=1).no_digest().no_content_type()
    upstream.on("GET", times=1).content_type("text/html; charset=utf-8").set_cookie("a=b")
    upstream.on("GET", times=1).set_header("Content-Length", "99999").drop_headers("Accept-Ranges")
    first = await ask(upstream.host, "GET", path)
    assert first.header("Docker-Content-Digest") == "sha256:" + "0" * 64
    second = await ask(upstream.host, "GET", path)
    assert (second.header("Docker-Content-Digest"), second.header("Content-Type")) == (None, None)
    third = await ask(upstream.host, "GET", path)
    assert (third.header("Content-Type"), third.header("Set-Cookie")) == ("text/html; charset=utf-8", "a=b")
    async with connect(upstream.host) as client:
        await client.send("GET", path)
        _, headers = await client.head()
    assert [value for name, value in headers if name == "Content-Length"] == ["99999"]


async def test_extra_headers_are_sent_byte_for_byte(upstream: FakeRegistry) -> None:
    upstream.on().extra_headers(("X-A", "1\x00\x1b[31m\xff"), ("X-A", "2"), ("Transfer-Encoding", "identity"))
    async with connect(upstream.host) as client:
        await client.send("GET", "/v2/")
        head = await client.reader.readuntil(b"\r\n\r\n")
    assert b"X-A: 1\x00\x1b[31m\xff\r\nX-A: 2\r\nTransfer-Encoding: identity\r\n" in head


async def test_a_body_can_be_gzipped_unasked(upstream: FakeRegistry, path: str) -> None:
    upstream.on("GET").content_encoding_gzip()
    got = await ask(upstream.host, "GET", path)
    assert (gzip.decompress(got.body), got.header("Content-Encoding")) == (DATA, "gzip")


@pytest.mark.parametrize(
    "location",
    ["http://elsewhere:1/a%2Fb%7E/../c%2e%2e?sig=%2F+%20&x=~", "/rel/%7E/../%2F?q=a%2Bb", "../up/%2E%2E/x", "//h/p"],
)
async def test_a_location_is_sent_byte_for_byte(upstream: FakeRegistry, path: str, location: str) -> None:
    upstream.on("GET").redirect(location, status=302)
    got = await ask(upstream.host, "GET", path)
    assert (got.status, got.header("Location"), got.body) == (302, location, b"")


async def test_any_bytes_can_be_an_answer(upstream: FakeRegistry) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"
    upstream.on().raw(answer)
    async with connect(upstream.host) as client:
        await client.send("GET", "/v2/")
        assert await client.reader.readexactly(len(answer)) == answer


# How it is framed.


async def test_a_body_without_length_ends_with_the_connection(upstream: FakeRegistry, path: str) -> None:
    upstream.on("GET").no_content_length()
    got = await ask(upstream.host, "GET", path)
    assert (got.body, got.header("Content-Length"), got.ended) == (DATA, None, "complete")


@pytest.mark.parametrize("size", [1000, 1024, 10240, 99999])
async def test_a_chunked_body_arrives_and_the_connection_stays(upstream: FakeRegistry, path: str, size: int) -> None:
    upstream.on("GET").chunked(size)
    async with connect(upstream.host) as client:
        for _ in range(2):
            got = await client.ask("GET", path)
            assert (got.body, got.header("Content-Length"), got.ended) == (DATA, None, "complete")


@pytest.mark.parametrize("after", [0, 1, 1000, 1500, 10239, 10240])
async def test_a_truncated_chunked_body_has_no_last_chunk(upstream: FakeRegistry, path: str, after: int) -> None:
    upstream.on("GET").chunked_truncated(after, size=1000)
    got = await ask(upstream.host, "GET", path)
    assert (got.body, got.ended) == (DATA[:after], "short")


# How it ends.


@pytest.mark.parametrize("after", [0, 1, 1000, 10239])
async def test_a_truncated_body_ends_with_fin(upstream: FakeRegistry, path: str, after: int) -> None:
    upstream.on("GET", times=1).truncate(after)
    got = await ask(upstream.host, "GET", path)
    assert (got.body, got.ended) == (DATA[:after], "short")
    assert (await ask(upstream.host, "GET", path)).ended == "complete"


async def test_a_large_body_is_truncated_at_the_very_byte(upstream: FakeRegistry) -> None:
    digest = upstream.add_blob(REPO, os.urandom(5_000_000))
    upstream.on("GET").truncate(4_999_999)
    assert len((await ask(upstream.host, "GET", f"/v2/{REPO}/blobs/{digest}")).body) == 4_999_999
    assert upstream.body_bytes_sent == 4_999_999


async def test_a_reset_comes_after_the_bytes_before_it(upstream: FakeRegistry, path: str) -> None:
    upstream.on("GET").reset(after=1000)
    got = await ask(upstream.host, "GET", path)
    assert (got.body, got.ended) == (DATA[:1000], "reset")


async def test_a_reset_can_come_before_the_answer(upstream: FakeRegistry, path: str) -> None:
    upstream.on("GET").reset()
    async with connect(upstream.host) as client:
        await client.send("GET", path)
        with pytest.raises(ConnectionResetError):
            await client.reader.read()


async def test_a_connection_can_be_closed_without_an_answer(upstream: FakeRegistry, path: str) -> None:
    upstream.on("GET").close_without_answer()
    async with connect(upstream.host) as client:
        await client.send("GET", path)
        assert await client.reader.read() == b""


async def test_an_unsolicited_response_comes_when_the_test_says(upstream: FakeRegistry, path: str) -> None:
    gate = upstream.on("GET", times=1).second_response(b"poison")
    async with connect(upstream.host) as client:
        assert (await client.ask("GET", path)).body == DATA
        await gate.reached.wait()
        gate.open()
        await gate.sent.wait()
        assert (await client.answer()).body == b"poison"


async def test_bytes_can_trail_an_answer(upstream: FakeRegistry, path: str) -> None:
    upstream.on("GET").trailing(b"garbage")
    async with connect(upstream.host) as client:
        assert (await client.ask("GET", path)).body == DATA
        assert await client.reader.readexactly(7) == b"garbage"


# How it is held.


async def test_a_gate_holds_the_body_until_opened(upstream: FakeRegistry, path: str, blob: str) -> None:
    gate = upstream.on("GET", blob=blob).gate(after=1000)
    async with connect(upstream.host) as client:
        await client.send("GET", path)
        await gate.reached.wait()
        await client.head()
        assert await client.reader.readexactly(1000) == DATA[:1000]
        assert upstream.body_bytes_sent == 1000
        gate.open()
        assert await client.reader.readexactly(len(DATA) - 1000) == DATA[1000:]
        await gate.sent.wait()
    assert gate.arrivals == 1


async def test_a_gate_before_the_body_lets_the_head_through(upstream: FakeRegistry, path: str) -> None:
    gate = upstream.on("GET").gate()
    async with connect(upstream.host) as client:
        await client.send("GET", path)
        assert (await client.head())[0] == 200
        await gate.reached.wait()
        assert upstream.body_bytes_sent == 0


async def test_an_answer_can_pass_several_gates(upstream: FakeRegistry, path: str) -> None:
    rule = upstream.on("GET")
    gates = [rule.gate(after) for after in (0, 10, 10_240)]
    async with connect(upstream.host) as client:
        await client.send("GET", path)
        for gate, sent in zip(gates, (0, 10, 10_240), strict=True):
            await gate.reached.wait()
            assert upstream.body_bytes_sent == sent
            gate.open()
        assert (await client.answer()).body == DATA


async def test_a_gate_tells_that_the_client_left(upstream: FakeRegistry, path: str) -> None:
    gate = upstream.on("GET").gate(after=10)
    async with connect(upstream.host) as client:
        await client.send("GET", path)
        await gate.reached.wait()
    await gate.abandoned.wait()
    await upstream.until(lambda: upstream.open_connections == 0)


async def test_a_stalled_answer_goes_on_when_released(upstream: FakeRegistry, path: str) -> None:
    stall = upstream.on("GET").stall(after=5)
    async with connect(upstream.host) as client:
        await client.send("GET", path)
        await stall.reached.wait()
        stall.release()
        assert (await client.answer()).body == DATA


async def test_a_hanging_server_sends_nothing_until_released(upstream: FakeRegistry, path: str) -> None:
    hang = upstream.on("HEAD").hang()
    async with connect(upstream.host) as client:
        await client.send("HEAD", path)
        await hang.reached.wait()
        hang.release()
        assert (await client.answer("HEAD")).status == 200


async def test_a_drip_gives_so_many_bytes_per_step(upstream: FakeRegistry, path: str) -> None:
    drip = upstream.on("GET").drip(bytes_per_step=100)
    async with connect(upstream.host) as client:
        await client.send("GET", path)
        await client.head()
        await drip.waiting.wait()
        assert upstream.body_bytes_sent == 0
        drip.step(3)
        assert await client.reader.readexactly(300) == DATA[:300]
        await drip.waiting.wait()
        assert upstream.body_bytes_sent == 300
        drip.open()
        assert await client.reader.readexactly(len(DATA) - 300) == DATA[300:]


async def test_a_drip_can_keep_its_own_pace(upstream: FakeRegistry, path: str) -> None:
    upstream.on("GET").drip(bytes_per_step=2048, every=0.001)
    assert (await ask(upstream.host, "GET", path)).body == DATA


async def test_headers_can_dribble(upstream: FakeRegistry) -> None:
    steps = upstream.on("GET").slow_headers(bytes_per_step=4)
    async with connect(upstream.host) as client:
        await client.send("GET", "/v2/")
        steps.step(2)
        assert await client.reader.readexactly(8) == b"HTTP/1.1"
        await steps.waiting.wait()
        steps.open()
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b" 200 OK\r\n")


# Authentication.


async def test_a_bearer_registry_challenges_with_the_scope_of_the_repository(upstream: FakeRegistry, path: str) -> None:
    upstream.require_bearer(service="registry")
    got = await ask(upstream.host, "GET", path)
    assert (got.status, json.loads(got.body)["errors"][0]["code"]) == (401, "UNAUTHORIZED")
    challenge = f'Bearer realm="{upstream.url}/token",service="registry",scope="repository:{REPO}:pull"'
    assert got.header("WWW-Authenticate") == challenge
    base = await ask(upstream.host, "GET", "/v2/")
    assert base.header("WWW-Authenticate") == f'Bearer realm="{upstream.url}/token",service="registry"'


async def test_a_challenge_can_name_another_realm_and_a_placeholder(upstream: FakeRegistry, path: str) -> None:
    upstream.require_bearer(realm="http://evil/", service=None, scope_placeholder=True)
    got = await ask(upstream.host, "GET", path)
    assert got.header("WWW-Authenticate") == 'Bearer realm="http://evil/",scope="repository:user/image:pull"'


async def test_a_token_opens_its_own_repository_only(upstream: FakeRegistry, path: str) -> None:
    upstream.require_bearer()
    upstream.add_blob("other", b"x")
    token = bearer(await ask(upstream.host, "GET", f"/token?service=fake&scope=repository:{REPO}:pull"))
    assert (await ask(upstream.host, "GET", path, token)).body == DATA
    other = await ask(upstream.host, "GET", "/v2/other/tags/list", token)
    assert (other.status, 'error="insufficient_scope"' in (other.header("WWW-Authenticate") or "")) == (401, True)
    (asked,) = upstream.token_requests
    assert (asked.service, asked.scopes, asked.user, asked.authorization, asked.status) == (
        "fake",
        (f"repository:{REPO}:pull",),
        None,
        None,
        200,
    )


async def test_tokens_can_be_revoked_and_expire(upstream: FakeRegistry, path: str) -> None:
    upstream.require_bearer()
    target = f"/token?scope=repository:{REPO}:pull"
    token = bearer(await ask(upstream.host, "GET", target))
    upstream.revoke_all()
    got = await ask(upstream.host, "GET", path, token)
    assert (got.status, 'error="invalid_token"' in (got.header("WWW-Authenticate") or "")) == (401, True)
    upstream.require_bearer(expires_in=0)
    token = bearer(await ask(upstream.host, "GET", target))
    assert (await ask(upstream.host, "GET", path, token)).status == 401


async def test_the_token_endpoint_knows_its_users(upstream: FakeRegistry, path: str) -> None:
    upstream.require_bearer(users={"ann": "secret:x"}, anonymous=False, token_key="access_token", expires_in=None)
    target = f"/token?scope=repository:{REPO}:pull"
    assert (await ask(upstream.host, "GET", target)).status == 401
    assert (await ask(upstream.host, "GET", target, basic("ann", "wrong"))).status == 401
    assert (await ask(upstream.host, "GET", target, {"Authorization": "Basic %"})).status == 401
    got = await ask(upstream.host, "GET", target, basic("ann", "secret:x"))
    assert set(json.loads(got.body)) == {"access_token"}
    assert (await ask(upstream.host, "GET", path, bearer(got, "access_token"))).status == 200
    assert [asked.user for asked in upstream.token_requests] == [None, "ann", "", "ann"]


async def test_a_token_for_less_than_asked_is_still_a_200(upstream: FakeRegistry, path: str) -> None:
    upstream.require_bearer(users={"ann": "pw"}, grants={None: [], "ann": [REPO]})
    target = f"/token?scope=repository:{REPO}:pull"
    nobody, ann = await ask(upstream.host, "GET", target), await ask(upstream.host, "GET", target, basic("ann", "pw"))
    assert (nobody.status, ann.status) == (200, 200)
    assert (await ask(upstream.host, "GET", path, bearer(nobody))).status == 401
    assert (await ask(upstream.host, "GET", path, bearer(ann))).status == 200


async def test_the_token_endpoint_takes_a_form_if_told(upstream: FakeRegistry) -> None:
    upstream.require_bearer(users={"ann": "pw"}, post=True)
    form = f"grant_type=password&username=ann&password=pw&service=fake&scope=repository:{REPO}:pull".encode()
    async with connect(upstream.host) as client:
        await client.send("POST", "/token", {"Content-Length": str(len(form))}, form)
        assert (await client.answer()).status == 200
    assert upstream.token_requests[0].user == "ann"
    upstream.require_bearer()
    assert (await ask(upstream.host, "POST", "/token")).status == 405


async def test_basic_wants_a_password_each_time(upstream: FakeRegistry, path: str) -> None:
    upstream.require_basic({"ann": "pw"})
    got = await ask(upstream.host, "GET", path)
    assert (got.status, got.header("WWW-Authenticate")) == (401, 'Basic realm="fake"')
    assert (await ask(upstream.host, "GET", path, basic("ann", "no"))).status == 401
    assert (await ask(upstream.host, "GET", path, basic("ann", "pw"))).status == 200
    upstream.require_nothing()
    assert (await ask(upstream.host, "GET", path)).status == 200


async def test_a_refused_request_does_not_use_up_a_rule(upstream: FakeRegistry, path: str) -> None:
    upstream.require_basic({"ann": "pw"})
    upstream.on("GET", times=1).status(503)
    assert (await ask(upstream.host, "GET", path)).status == 401
    assert (await ask(upstream.host, "GET", path, basic("ann", "pw"))).status == 503
    upstream.on("GET", unauthorized=True).status(418)
    assert (await ask(upstream.host, "GET", path)).status == 418


# Storage and canaries.


@pytest.mark.parametrize("key", ["/b/plain", "/b/a%2Fb%7E/../c%2e%2e", "/b//x;y=%20"])
async def test_storage_serves_a_signed_url_byte_for_byte(storage: Storage, key: str) -> None:
    target = storage.put(key, DATA).removeprefix(storage.url)
    assert (await ask(storage.host, "GET", target)).body == DATA
    assert storage.targets == [target]
    assert (await ask(storage.host, "GET", target, {"Range": "bytes=1-2"})).body == DATA[1:3]


async def test_storage_refuses_what_object_stores_refuse(storage: Storage) -> None:
    target = storage.put("/b/a%2Fb", DATA).removeprefix(storage.url)
    assert (await ask(storage.host, "HEAD", target)).status == 403
    assert (await ask(storage.host, "GET", target, basic("a", "b"))).status == 400
    assert (await ask(storage.host, "GET", target.replace("%2F", "/"))).status == 403
    assert (await ask(storage.host, "GET", "/b/a%2Fb")).status == 403
    assert (await ask(storage.host, "GET", storage.sign_target("/b/none"))).status == 404
    assert (await ask(storage.host, "HEAD", storage.sign_target("/b/a%2Fb", "HEAD"))).status == 200


async def test_signed_urls_expire_when_told(storage: Storage) -> None:
    one, two = storage.put("/a", DATA), storage.sign("/a")
    storage.expire(one)
    assert one != two
    assert (await ask(storage.host, "GET", one.removeprefix(storage.url))).status == 403
    assert (await ask(storage.host, "GET", two.removeprefix(storage.url))).status == 200
    storage.expire_all()
    assert (await ask(storage.host, "GET", two.removeprefix(storage.url))).status == 403
    assert (await ask(storage.host, "GET", storage.sign_target("/a"))).status == 200


async def test_blobs_can_be_redirected_to_storage(upstream: FakeRegistry, storage: Storage, path: str) -> None:
    upstream.redirect_blobs_to(storage)
    upstream.on("GET", blob=digest_of(DATA), times=1).status(503)
    assert (await ask(upstream.host, "GET", path)).status == 503
    assert (await ask(upstream.host, "HEAD", path)).status == 200
    assert (await ask(upstream.host, "GET", f"/v2/{REPO}/blobs/sha256:{'0' * 64}")).status == 404
    locations = [(await ask(upstream.host, "GET", path)).header("Location") or "" for _ in range(2)]
    assert locations[0] != locations[1]
    for location in locations:
        assert (await ask(storage.host, "GET", location.removeprefix(storage.url))).body == DATA


async def test_storage_can_misbehave_too(storage: Storage) -> None:
    target = storage.put("/a", DATA).removeprefix(storage.url)
    storage.on("GET", times=1).truncate(after=7)
    assert (await ask(storage.host, "GET", target)).body == DATA[:7]


async def test_a_canary_counts_connections_and_keeps_what_came() -> None:
    async with Canary() as canary:
        assert canary.connections == 0
        async with connect(canary.host) as client:
            assert canary.connections == 1
            await client.send("GET", "/secret")
            await canary.came.wait()
            await canary.until(lambda: b"/secret" in canary.received.get(1, b""))


# Coming and going.


async def test_a_server_that_is_down_refuses_and_comes_back_on_its_port(upstream: FakeRegistry, path: str) -> None:
    async with connect(upstream.host) as client:
        await client.ask("GET", path)
        await upstream.go_down()
        assert await client.reader.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await ask(upstream.host, "GET", path)
    upstream.come_back()
    assert (await ask(upstream.host, "GET", path)).body == DATA


async def test_connections_can_be_dropped(upstream: FakeRegistry) -> None:
    async with connect(upstream.host) as client:
        await client.ask("GET", "/v2/")
        await upstream.hang_up()
        assert await client.reader.read() == b""


async def test_a_predicate_that_fails_fails_the_test() -> None:
    upstream = await FakeRegistry().__aenter__()
    upstream.on(where=lambda _: 1 // 0 > 0)
    async with connect(upstream.host) as client:
        await client.send("GET", "/v2/")
        assert await client.reader.read() == b""
    with pytest.raises(ExceptionGroup) as caught:
        await upstream.__aexit__(None, None, None)
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)


@pytest.mark.parametrize("spoken", ["http", "https"])
async def test_closing_leaves_nothing_behind(spoken: str) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if spoken == "https" else None
    await asyncio.sleep(0)
    gc.collect()  # what earlier tests left to the collector is not ours to miss
    before, files = asyncio.all_tasks(), open_files()
    upstream, canary = FakeRegistry(tls=tls), Canary()
    async with upstream, canary:
        upstream.on("GET").hang()
        sockets = [await asyncio.open_connection(*server.host.split(":")) for server in (upstream, canary) * 20]
        for _, writer in sockets:
            writer.write(b"GET /v2/ HTTP/1.1\r\n\r\n" if spoken == "http" else b"\x16\x03")
        if spoken == "http":
            await upstream.seen(20)
        assert (upstream.connections, canary.connections) == (20, 20)
    for _, writer in sockets:
        writer.transport.abort()
    del sockets, writer
    await asyncio.sleep(0)
    gc.collect()
    assert asyncio.all_tasks() == before
    assert open_files() == files
