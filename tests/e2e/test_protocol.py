"""The protocol as clients see it: paths, methods, errors, headers, and what a client may not make of a request."""

import json
from pathlib import Path

import pytest

from .harness import Proxy, running, toml
from .raw_client import RawAnswer, connect
from .upstream import OCI_INDEX, OCI_MANIFEST, FakeRegistry, digest_of

REPO = "library/app"
HEX = "a" * 64
# The codes of the distribution specification, and the one of Distribution's own for 5xx.
CODES = {
    "BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED", "DENIED",
    "UNSUPPORTED", "TOOMANYREQUESTS", "UNAVAILABLE",
}  # fmt: skip


def code_of(answer: RawAnswer) -> str:
    """The code of an OCI error body, which has the form that the specification wants."""
    assert answer.header("Content-Type") == "application/json"
    assert answer.header("Content-Length") == str(len(answer.body))
    errors = json.loads(answer.body)["errors"]
    assert len(errors) == 1
    assert set(errors[0]) <= {"code", "message", "detail"}
    assert errors[0]["message"]
    assert errors[0]["code"] in CODES
    return str(errors[0]["code"])


# The version check


@pytest.mark.parametrize(
    "target", ["/v2/", "/v2", "/docker.io/v2/", "/v2/?ns=docker.io", "/docker.io/v2/?ns=docker.io"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_version_check_is_answered_here_on_every_prefix(
    upstream: FakeRegistry, proxy: Proxy, target: str, method: str
) -> None:
    got = await proxy.ask(method, target)
    assert (got.status, got.header("Content-Type")) == (200, "application/json")
    assert got.header("Docker-Distribution-Api-Version") == "registry/2.0"
    assert got.header("Content-Length") == "2"
    assert got.body == (b"{}" if method == "GET" else b"")
    assert got.header("WWW-Authenticate") is None  # podman would act on it, even on a 200
    assert upstream.requests == []


# Methods and paths


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize(
    "target",
    [
        "/v2/",
        f"/v2/{REPO}/manifests/v1",
        f"/v2/{REPO}/manifests/sha256:{HEX}",
        f"/v2/{REPO}/blobs/sha256:{HEX}",
        f"/v2/{REPO}/tags/list",
        f"/v2/{REPO}/blobs/uploads/",
        f"/v2/{REPO}/blobs/uploads/?mount=sha256:{HEX}&from=library/other",
        f"/v2/{REPO}/blobs/uploads/0b7c?digest=sha256:{HEX}",
        "/v2/_catalog",
    ],
)
async def test_whatever_would_write_is_unsupported(
    upstream: FakeRegistry, proxy: Proxy, method: str, target: str
) -> None:
    got = await proxy.ask(method, target, {"Content-Length": "0"})
    assert (got.status, code_of(got)) == (405, "UNSUPPORTED")
    assert got.header("Allow") == "GET, HEAD"
    assert upstream.requests == []


async def test_the_body_of_a_refused_push_does_not_become_the_next_request(proxy: Proxy) -> None:
    smuggled = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"
    async with connect(proxy.host) as client:
        headers = {"Host": proxy.host, "Content-Length": str(len(smuggled))}
        await client.send("PUT", f"/v2/{REPO}/manifests/v1", headers, smuggled)
        assert (await client.answer()).status == 405
        await client.send("GET", "/nowhere", {"Host": proxy.host, "Connection": "close"})
        assert (await client.answer()).status == 404
        assert await client.reader.read() == b""


async def test_the_status_of_an_upload_is_unsupported_too(proxy: Proxy) -> None:
    got = await proxy.get(f"/v2/{REPO}/blobs/uploads/0b7c")
    assert (got.status, code_of(got)) == (405, "UNSUPPORTED")


@pytest.mark.parametrize(
    "target",
    [
        "/", "/v1/_ping", "/v1/search?q=x", "/v3/", "/v2/_catalog", "/v2/_catalog?n=5", f"/v2/{REPO}", f"/v2/{REPO}/",
        f"/v2/{REPO}/tags", f"/v2/{REPO}/tags/other", f"/v2/{REPO}/manifests", "/v2/manifests/v1", "/v2/tags/list",
        "/v2/_oci/ext/discover", f"/extensions/v2/{REPO}/signatures/x", "/favicon.ico", "/a/b/v2/",
        f"/a/b/v2/{REPO}/manifests/v1", "/V2/",
    ],
)  # fmt: skip
async def test_a_path_that_is_no_endpoint_is_not_found(upstream: FakeRegistry, proxy: Proxy, target: str) -> None:
    got = await proxy.get(target)
    assert got.status in {400, 404}
    assert code_of(got) in {"NAME_UNKNOWN", "NAME_INVALID"}
    assert upstream.requests == []


async def test_the_keywords_of_the_protocol_may_be_part_of_a_name(upstream: FakeRegistry, proxy: Proxy) -> None:
    names = ["a/manifests/b", "a/blobs/b", "a/tags/list", "manifests/blobs", "a/referrers/b", "x/uploads", "v2/v2"]
    for name in names:
        image = upstream.add_image(name, "v1", [name.encode()])
        assert (await proxy.get(f"/v2/{name}/manifests/v1")).body == image.body
        assert (await proxy.get(f"/v2/{name}/blobs/{image.layer_digests[0]}")).body == name.encode()
        assert json.loads((await proxy.get(f"/v2/{name}/tags/list")).body)["tags"] == ["v1"]


# What a path may not hold


TRAVERSALS = [
    "/v2/../v2/{repo}/manifests/v1",
    "/v2/./{repo}/manifests/v1",
    "/v2/library/../{repo}/manifests/v1",
    "/v2/library/%2e%2e/{repo}/manifests/v1",
    "/v2/%2e%2e/%2e%2e/etc/passwd/manifests/v1",
    "/v2/..%2f..%2fetc/manifests/v1",
    "/v2/library%2f..%2fapp/manifests/v1",
    "/v2/library/app%2e%2e/manifests/v1",
    "/v2/library/app/manifests/..",
    "/v2/library/app/manifests/%2e%2e",
    "/v2/library/app/manifests/..%2f..%2fx",
    "/v2/library/app/manifests/.hidden",
    "/v2/library/app/manifests/-v1",
    "/v2/library/app/manifests/v1%00",
    "/v2/library/app/manifests/v1%0a",
    "/v2/library/app/manifests/v1%0d%0aX:%201",
    "/v2/library/app/manifests/v1%20",
    "/v2/library/app/manifests/v%c3%a9",
    "/v2/library/app/manifests/%ff%fe",
    "/v2/library/app/manifests/%ed%a0%80",
    "/v2/library/app/manifests/%d9%a1",
    "/v2/library/app/manifests/%252e%252e",
    "/v2/library/app/manifests/" + "t" * 129,
    "/v2/library/app/manifests/",
    "/v2//library/app/manifests/v1",
    "/v2/library//app/manifests/v1",
    "//v2/library/app/manifests/v1",
    "/v2/library/app//manifests/v1",
    "/v2/library/app/manifests//v1",
    "/v2/library\\app/manifests/v1",
    "/v2/library%5capp/manifests/v1",
    "/v2/library/%00/manifests/v1",
    "/v2/library/app%00/manifests/v1",
    "/v2/library/app%0a/manifests/v1",
    "/v2/Library/app/manifests/v1",
    "/v2/library/App/manifests/v1",
    "/v2/library/a__/manifests/v1",
    "/v2/library/a___b/manifests/v1",
    "/v2/library/-a/manifests/v1",
    "/v2/library/a-/manifests/v1",
    "/v2/library/.a/manifests/v1",
    "/v2/library/a..b/manifests/v1",
    "/v2/_app/manifests/v1",
    "/v2/library/%252e%252e/app/manifests/v1",
    "/v2/library/ap%70~/manifests/v1",
    "/v2/library/%e2%91%a0/manifests/v1",
    "/v2/library/%d9%a1/manifests/v1",
    "/v2/library/\xc3\xa9/manifests/v1",
    "/v2/library/app;x=1/manifests/v1",
    "/v2/library/a@b/manifests/v1",
    "/v2/" + "a" * 256 + "/manifests/v1",
    "/v2/" + "/".join(["a"] * 200) + "/manifests/v1",
    "/v2/" + "a" * 8200 + "/manifests/v1",
    "/../v2/library/app/manifests/v1",
    "/%2e%2e/v2/library/app/manifests/v1",
    "/..%2fv2/library/app/manifests/v1",
    "/./v2/library/app/manifests/v1",
    "/v2/library/app/manifests/v1/x",
    "/v2/library/app/manifests/x/manifests/y/",
    "/v2/library/app/blobs/..",
    "/v2/library/app/blobs/sha256:../../../etc/passwd",
    "/v2/library/app/blobs/sha256%3a..%2f..%2fetc%2fpasswd",
    "/v2/library/app/tags/list/..",
    "/v2/library/app/tags/list/%2e%2e/%2e%2e",
    "/v2/library/%2e/tags/list",
    "/v2/library/app/referrers/..",
    "/v2/library/app/referrers/v1",
    "*",
    "v2/library/app/manifests/v1",
    "\\v2\\library\\app",
    "/v2/library/app/manifests/v1\x01",
    "/v2/library/app/manifests/v1\x7f",
    "/v2/library/app/manifests/v%zz",
    "/v2/library/app/manifests/%",
]  # fmt: skip


async def test_no_path_leads_out_of_a_repository(upstream: FakeRegistry, proxy: Proxy) -> None:
    upstream.add_image(REPO, "v1")
    before = sorted(proxy.store.parent.rglob("*"))
    for target in TRAVERSALS:
        got = await proxy.get(target.format(repo=REPO))
        assert got.status in {400, 404}, (target, got)
        assert b"passwd:" not in got.body
    assert upstream.requests == []
    assert sorted(proxy.store.parent.rglob("*")) == before


async def test_a_name_that_is_escaped_needlessly_means_the_same(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1")
    for target in (f"/v2/{REPO}/manifests/%76%31", "/v2/library%2Fapp/manifests/v1", "/v2/library/%61pp/manifests/v1"):
        assert (await proxy.get(target)).body == image.body
    assert {request.path for request in upstream.requests} == {f"/v2/{REPO}/manifests/v1"}


DIGESTS = [
    f"md5:{'a' * 32}", f"sha1:{'a' * 40}", f"sha384:{'a' * 96}", f"blake3:{HEX}", f"SHA256:{HEX}", f"Sha256:{HEX}",
    f"sha256:{HEX[1:]}", f"sha256:{HEX}a", f"sha256:{'A' * 64}", f"sha256:{'g' * 64}", "sha256:", f":{HEX}",
    f"sha256::{HEX}", f"sha512:{HEX}", f"sha256:{'a' * 128}", f"sha512:{'a' * 127}", f"sha512:{'a' * 129}",
    f"sha256:{HEX}%0a", f"sha256:{HEX}%00", f"sha256:%00{HEX[3:]}", f"%20sha256:{HEX}", f"sha256:{HEX}%20",
    "sha256:../../x", f"sha256+b64:{HEX}", f"sha256:{'%d9%a1' * 64}", f"sha256:{'%ef%bc%91' * 64}",
    f"sha256:{HEX}:{HEX}", f"sha256:{HEX}@x", f"multihash+base58:{HEX}", "sha256:baddigeststring",
]  # fmt: skip


@pytest.mark.parametrize("noun", ["blobs", "manifests", "referrers"])
async def test_only_sha256_and_sha512_in_lower_case_are_digests(
    upstream: FakeRegistry, proxy: Proxy, noun: str
) -> None:
    upstream.add_image(REPO, "v1")
    before = sorted(proxy.store.rglob("*"))
    for digest in DIGESTS:
        got = await proxy.get(f"/v2/{REPO}/{noun}/{digest}")
        assert (got.status, code_of(got) in {"DIGEST_INVALID", "NAME_INVALID"}) == (400, True), digest
    assert upstream.requests == []
    assert sorted(proxy.store.rglob("*")) == before


async def test_what_is_addressed_by_sha512_is_verified_by_sha512(upstream: FakeRegistry, proxy: Proxy) -> None:
    blob = upstream.add_blob(REPO, b"some bytes", "sha512")
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
    index = upstream.add_manifest(REPO, body, OCI_INDEX, algorithm="sha512")
    false = upstream.add_blob(REPO, b"other bytes", digest="sha512:" + "0" * 128)
    for target, want in ((f"blobs/{blob}", b"some bytes"), (f"manifests/{index}", body)):
        for _ in range(2):
            got = await proxy.get(f"/v2/{REPO}/{target}")
            assert (got.status, got.body) == (200, want)
            assert got.header("Docker-Content-Digest") == target.partition("/")[2]
    assert (await proxy.get(f"/v2/{REPO}/blobs/{false}")).ended == "short"
    assert set(proxy.blobs()) == {blob, index}


# The request line and its frame


async def test_a_request_that_could_be_understood_in_two_ways_is_refused(upstream: FakeRegistry, proxy: Proxy) -> None:
    start = f"GET /v2/{REPO}/manifests/v1 HTTP/1.1\r\n"
    for text in (
        start + "Host: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        start + "Host: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        start + "Host: a\r\nContent-Length: +5\r\n\r\nhello",
        start + "Host: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        start + "Host: a\r\nHost : b\r\n\r\n",
        start + "Host: a\r\n folded\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS to a plain port\r\n\r\n",
    ):
        async with connect(proxy.host) as client:
            client.writer.write(text.encode("latin-1"))
            answer = await client.answer()
            assert answer.status == 400, text
            assert await client.reader.read() == b"", text
    assert upstream.requests == []


async def test_two_host_headers_are_refused(upstream: FakeRegistry, proxy: Proxy) -> None:
    async with connect(proxy.host) as client:
        client.writer.write(f"GET /v2/{REPO}/manifests/v1 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".encode())
        assert (await client.answer()).status == 400
    assert upstream.requests == []


async def test_an_absolute_request_target_does_not_lead_to_its_host(upstream: FakeRegistry, proxy: Proxy) -> None:
    for target in ("http://127.0.0.1:1/v2/", f"http://evil.example/v2/{REPO}/manifests/v1"):
        got = await proxy.get(target)
        assert got.status in {200, 400, 404}
    assert all(request.header("Host") == upstream.host for request in upstream.requests)


async def test_requests_follow_one_another_on_a_connection(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1")
    headers = {"Host": proxy.host}
    async with connect(proxy.host) as client:
        for method, target, status in (
            ("HEAD", f"/v2/{REPO}/manifests/v1", 200),
            ("GET", f"/v2/{REPO}/manifests/v1", 200),
            ("GET", f"/v2/{REPO}/manifests/nope", 404),
            ("HEAD", f"/v2/{REPO}/manifests/nope", 404),
            ("HEAD", f"/v2/{REPO}/blobs/{image.config_digest}", 200),
            ("GET", f"/v2/{REPO}/blobs/{image.config_digest}", 200),
            ("GET", "/v2/", 200),
        ):
            assert (await client.ask(method, target, headers)).status == status, target


# Headers


def comparable(answer: RawAnswer) -> list[tuple[str, str]]:
    """An answer's headers without those that tell the time or concern the connection."""
    return sorted((name.lower(), value) for name, value in answer.headers if name.lower() not in {"date", "connection"})


async def test_a_head_has_the_headers_of_the_get_and_no_body(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1", subject={"digest": f"sha256:{HEX}"})
    upstream.add_image(REPO, "v2")
    layer = image.layer_digests[0]
    targets = [
        f"manifests/{image.tag}", f"manifests/{image.digest}", f"blobs/{layer}", "tags/list", "tags/list?n=1",
        f"referrers/sha256:{HEX}", "manifests/none", f"blobs/sha256:{HEX}", "manifests/%20",
    ]  # fmt: skip
    for _ in range(2):
        for target in targets:
            async with connect(proxy.host) as client:
                head = await client.ask("HEAD", f"/v2/{REPO}/{target}", {"Host": proxy.host, "Connection": "close"})
                assert await client.reader.read() == b"", target
            get = await proxy.get(f"/v2/{REPO}/{target}")
            assert (head.status, comparable(head)) == (get.status, comparable(get)), target
            assert get.header("Content-Length") == str(len(get.body)), target


async def test_a_head_downloads_no_blob(upstream: FakeRegistry, proxy: Proxy) -> None:
    digest = upstream.add_blob(REPO, b"x" * 100_000)
    got = await proxy.head(f"/v2/{REPO}/blobs/{digest}")
    assert (got.status, got.header("Content-Length")) == (200, "100000")
    assert upstream.body_bytes_sent_for("/blobs/") == 0
    assert upstream.count() == 1


async def test_media_types_carry_no_parameters(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1")
    upstream.on("GET", manifest="v1").content_type(f"{OCI_MANIFEST}; charset=utf-8")
    upstream.on("GET", path_contains="/tags/").content_type("application/json; charset=utf-8")
    for target, media_type in (
        ("manifests/v1", OCI_MANIFEST),
        (f"blobs/{image.config_digest}", "application/octet-stream"),
        ("tags/list", "application/json"),
        (f"referrers/{image.digest}", OCI_INDEX),
        ("manifests/none", "application/json"),
    ):
        assert (await proxy.get(f"/v2/{REPO}/{target}")).header("Content-Type") == media_type


@pytest.mark.parametrize("encoding", ["gzip", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5", "br, *", "identity;q=0, gzip"])
async def test_nothing_is_compressed_though_asked_for(upstream: FakeRegistry, proxy: Proxy, encoding: str) -> None:
    layer = b"highly compressible " * 1000
    image = upstream.add_image(REPO, "v1", [layer], annotations={"long": "x" * 5000})
    for _ in range(2):
        for target, want in (
            (f"manifests/{image.digest}", image.body),
            (f"blobs/{image.layer_digests[0]}", layer),
            ("tags/list", None),
            ("manifests/none", None),
        ):
            got = await proxy.get(f"/v2/{REPO}/{target}", {"Accept-Encoding": encoding})
            assert got.header("Content-Encoding") is None
            assert got.header("Transfer-Encoding") is None
            assert want in (None, got.body)
    assert {request.header("Accept-Encoding") for request in upstream.requests} == {"identity"}


@pytest.mark.parametrize("kind", ["tag", "manifest", "blob"])
async def test_the_etag_is_the_digest_and_if_none_match_is_honoured(
    upstream: FakeRegistry, proxy: Proxy, kind: str
) -> None:
    image = upstream.add_image(REPO, "v1")
    target, digest = {
        "tag": ("manifests/v1", image.digest),
        "manifest": (f"manifests/{image.digest}", image.digest),
        "blob": (f"blobs/{image.config_digest}", image.config_digest),
    }[kind]
    first = await proxy.get(f"/v2/{REPO}/{target}")
    assert (first.status, first.header("ETag")) == (200, f'"{digest}"')
    for method in ("GET", "HEAD"):
        for known in (f'"{digest}"', digest, f'W/"{digest}"', f'"other", "{digest}"', "*"):
            got = await proxy.ask(method, f"/v2/{REPO}/{target}", {"If-None-Match": known})
            assert (got.status, got.body, got.header("ETag")) == (304, b"", f'"{digest}"'), known
            assert got.header("Content-Type") is None
        for other in ('"other"', f'"sha256:{HEX}"', "", digest[:-1]):
            got = await proxy.ask(method, f"/v2/{REPO}/{target}", {"If-None-Match": other})
            assert got.status == 200, other


async def test_nothing_is_unmodified_for_a_client_that_did_not_ask(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1")
    for _ in range(3):
        assert (await proxy.get(f"/v2/{REPO}/manifests/{image.digest}")).status == 200


async def test_accept_in_several_lines_or_none_at_all_gets_what_is_stored(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1")
    index = upstream.add_index(REPO, "all", [image])
    for accept in (
        ["application/vnd.docker.distribution.manifest.v2+json", OCI_INDEX, "application/json", OCI_MANIFEST],
        [f"{OCI_MANIFEST}, */*"],
        ["application/vnd.docker.distribution.manifest.v2+json"],
        [],
    ):
        for tag, want in (("v1", image), ("all", index)):
            lines = "".join(f"Accept: {line}\r\n" for line in accept)
            async with connect(proxy.host) as client:
                client.writer.write(f"GET /v2/{REPO}/manifests/{tag} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
                got = await client.answer()
            assert (got.status, got.body, got.header("Content-Type")) == (200, want.body, want.media_type)


async def test_bytes_are_passed_on_verbatim(upstream: FakeRegistry, proxy: Proxy) -> None:
    bodies = [
        b'{"manifests":[],  "schemaVersion":2}\n',
        b'\r\n{ "mediaType" : "application\\/vnd.oci.image.index.v1+json","manifests":[] }\r\n\r\n',
        '{"manifests":[],"annotations":{"é":"\\u00e9 \\ud83d\\ude00 ☃","n":1.10e2}}'.encode(),
    ]
    for body in bodies:
        digest = upstream.add_manifest(REPO, body, OCI_INDEX, ["v"])
        for reference in (digest, digest):
            got = await proxy.get(f"/v2/{REPO}/manifests/{reference}")
            assert (got.body, got.header("Content-Type")) == (body, OCI_INDEX)
            assert got.header("Docker-Content-Digest") == digest_of(got.body)
        assert proxy.blob_path(digest).read_bytes() == body


async def test_upstreams_headers_are_not_copied(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1")
    hostile = (
        ("Set-Cookie", "a=b"), ("X-Evil", "1\x01\xff"), ("WWW-Authenticate", 'Basic realm="evil"'),
        ("Link", "<http://evil/>"), ("Location", "http://evil/"), ("Content-Disposition", "evil"), ("Age", "9"),
        ("Cache-Control", "evil"), ("ETag", '"evil"'), ("OCI-Subject", "sha256:evil"), ("Server", "evil"),
        ("Warning", '299 - "evil"'), ("OCI-Namespace", "evil"), ("Vary", "*"), ("Refresh", "0; http://evil"),
    )  # fmt: skip
    upstream.on().extra_headers(*hostile)
    for target in ("manifests/v1", f"blobs/{image.config_digest}", "tags/list", "manifests/none"):
        got = await proxy.get(f"/v2/{REPO}/{target}")
        text = repr(got.headers).lower()
        assert "evil" not in text, target
        assert got.header("Set-Cookie") is None
        assert got.header("WWW-Authenticate") is None


async def test_a_request_leaves_one_line_in_the_log(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1")
    await proxy.get(f"/v2/{REPO}/manifests/v1?ns=docker.io", {"User-Agent": 'containerd/2.1 "}\\ \xff'})
    await proxy.get(f"/v2/{REPO}/blobs/{image.config_digest}")
    await proxy.get("/v2/Bad/manifests/v1")
    await proxy.settled()
    manifest, blob, bad = proxy.requests
    assert (manifest["upstream"], manifest["repository"], manifest["reference"]) == ("docker.io", REPO, "v1")
    assert (manifest["kind"], manifest["outcome"], manifest["bytes"]) == ("manifest", "fill", len(image.body))
    assert (blob["kind"], blob["status"], blob["reference"]) == ("blob", 200, image.config_digest)
    assert (bad["status"], bad["outcome"]) == (400, "error")


async def test_the_errors_of_upstream_keep_their_meaning(upstream: FakeRegistry, proxy: Proxy) -> None:
    upstream.add_image(REPO, "v1")
    for number, (status, ours, code) in enumerate(
        [
            (401, 403, "DENIED"),
            (403, 403, "DENIED"),
            (404, 404, "MANIFEST_UNKNOWN"),
            (410, 404, "MANIFEST_UNKNOWN"),
            (500, 502, "UNAVAILABLE"),
            (503, 502, "UNAVAILABLE"),
            (204, 502, "UNAVAILABLE"),
            (304, 502, "UNAVAILABLE"),
            (418, 502, "UNAVAILABLE"),
            (429, 429, "TOOMANYREQUESTS"),  # the last: nothing more is asked then
        ]
    ):
        upstream.on("GET", manifest=f"t{number}").status(status, [("WWW-Authenticate", "Basic")])
        got = await proxy.get(f"/v2/{REPO}/manifests/t{number}")
        assert (got.status, code_of(got)) == (ours, code), status
        assert got.header("WWW-Authenticate") is None  # a client would send its own credentials there


async def test_an_answer_nobody_asked_for_is_not_taken_for_the_next_one(upstream: FakeRegistry, proxy: Proxy) -> None:
    upstream.add_image(REPO, "v1")
    other = upstream.add_image("library/other", "v1", [b"other"])
    blob, small = upstream.add_blob(REPO, b"a blob"), upstream.add_blob("library/other", b"another blob")
    poison = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
    gates = [
        upstream.on("GET", manifest="v1", repo=REPO, times=1).second_response(poison, ("Content-Type", OCI_INDEX)),
        upstream.on("GET", blob=blob, times=1).second_response(b"poison"),
    ]
    assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).status == 200
    assert (await proxy.get(f"/v2/{REPO}/blobs/{blob}")).body == b"a blob"
    for gate in gates:
        gate.open()
        await gate.sent.wait()
    assert (await proxy.get("/v2/library/other/manifests/v1")).body == other.body
    got = await proxy.get(f"/v2/library/other/blobs/{small}")
    assert (got.body == b"another blob") or got.ended == "short" or got.status == 502
    assert (await proxy.get(f"/v2/library/other/blobs/{small}")).body == b"another blob"


async def test_an_upstream_below_a_path_is_asked_there(upstream: FakeRegistry, store: Path) -> None:
    async with running(toml(f"{upstream.url}/below/here/"), store) as proxy:
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).status == 404
    assert [request.target for request in upstream.requests] == [f"/below/here/v2/{REPO}/manifests/v1"]
