"""Clients of listed networks are sent to the bucket for a blob: they get the same bytes there, or get them here."""

import asyncio
import contextlib
import json
import ssl
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from botocore.exceptions import NoCredentialsError

from proxy import redirects, trial
from proxy.files import hop
from proxy.sections.store import S3
from proxy.stores.durable import REFUSED_URLS
from proxy.stores.s3 import Bucket
from proxy.stores.s3_credentials import Keys
from proxy.stores.s3_urls import SignedUrls
from tests.buckets import REGION, TestBucket

from .harness import Proxy, running, serving, toml, until
from .networks import server_tls
from .raw_client import RawAnswer, connect
from .test_s3 import LAYER, REPO, cached, configured, key_of, pull
from .upstream import FakeRegistry, Image, digest_of

pytestmark = pytest.mark.slow

AGENT = {"User-Agent": "containerd/1.7.2"}
SECRET = ("X-Amz-", "Signature=")


def redirecting(upstream: str, bucket: TestBucket, *, networks: str = "127.0.0.0/8", s3: str = "", **more: str) -> str:
    """A proxy that sends clients of these networks to the bucket."""
    text = configured(upstream, bucket, **more)
    return text.replace("[[upstream]]", f'redirect_networks = ["{networks}"]\n{s3}\n[[upstream]]')


@pytest.fixture
async def image(upstream: FakeRegistry, bucket: TestBucket, store: Path) -> Image:
    """One that is in the store and in the bucket."""
    one = upstream.add_image(REPO, "v1", [LAYER, b"small"])
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, one)
    await hop(copy, store, bucket)
    return one


def copy(store: Path, bucket: TestBucket) -> None:
    """Put all that is kept into the bucket."""
    for kept in (*(store / "blobs").rglob("*"), *(store / "repositories").rglob("*")):
        if kept.is_file():
            bucket[f"cache/{kept.relative_to(store)}"] = kept.read_bytes()


@pytest.fixture
async def proxy(upstream: FakeRegistry, bucket: TestBucket, store: Path, image: Image) -> AsyncIterator[Proxy]:
    """A proxy that has it, and redirects."""
    async with running(redirecting(upstream.url, bucket), store) as one:
        yield one


def blob(image: Image) -> str:
    """The path of its layer."""
    return f"/v2/{REPO}/blobs/{image.layer_digests[0]}"


def read(url: str | None) -> bytes:
    """What a URL brings whoever has it."""
    assert url is not None
    with contextlib.closing(urllib.request.urlopen(url)) as answer:  # noqa: S310  it is ours
        body: bytes = answer.read()
        return body


def is_bytes(answer: RawAnswer) -> bool:
    """Whether the layer came, whole and from here."""
    return (answer.status, answer.body, answer.header("Location")) == (200, LAYER, None)


async def test_a_client_is_sent_to_the_bucket_for_what_is_on_disk_too(
    upstream: FakeRegistry, proxy: Proxy, image: Image
) -> None:
    asked = len(upstream.requests)
    for digest in image.blob_digests:
        answer = await proxy.get(f"/v2/{REPO}/blobs/{digest}", AGENT)
        assert (answer.status, answer.body) == (307, b"")
        assert answer.header("Docker-Content-Digest") == digest
        assert answer.header("Cache-Control") == "no-store"
        assert digest_of(await hop(read, answer.header("Location"))) == digest
    assert len(upstream.requests) == asked
    assert {(line["status"], line["outcome"], line["bytes"]) for line in proxy.requests} == {(307, "redirect", 0)}
    labels = {"kind": "blob", "upstream": "docker.io", "status": "307", "outcome": "redirect"}
    count = proxy.metrics.registry.get_sample_value("entrepot_requests_total", labels)
    assert count == len(image.blob_digests)


async def test_what_is_not_on_disk_is_not_brought_for_who_is_sent_to_the_bucket(
    upstream: FakeRegistry, bucket: TestBucket, image: Image, tmp_path: Path
) -> None:
    await upstream.go_down()
    async with running(redirecting(upstream.url, bucket), tmp_path / "other") as proxy:
        answer = await proxy.get(blob(image), AGENT)
        assert await hop(read, answer.header("Location")) == LAYER
        assert proxy.blobs() == []


async def test_a_client_of_another_network_gets_the_bytes(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, image: Image
) -> None:
    for networks in ("10.0.0.0/8", "::1/128"):
        async with running(redirecting(upstream.url, bucket, networks=networks), store) as proxy:
            assert is_bytes(await proxy.get(blob(image), AGENT))


async def test_who_may_not_follow_gets_the_bytes(proxy: Proxy, image: Image) -> None:
    more = ("X-Forwarded-For", "If-Range", "Authorization")
    for headers in ({}, {"User-Agent": "curl/8.5.0"}, *({**AGENT, name: "x"} for name in more)):
        assert is_bytes(await proxy.get(blob(image), headers))
    async with connect(proxy.host) as client:
        client.writer.write(f"GET {blob(image)} HTTP/1.0\r\nUser-Agent: {AGENT['User-Agent']}\r\n\r\n".encode())
        assert is_bytes(await client.answer())


async def test_a_client_that_came_by_tls_is_not_sent_to_where_there_is_none(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, image: Image
) -> None:
    ca = trustme.CA()
    trust = ssl.create_default_context()
    ca.configure_trust(trust)
    async with (
        running(redirecting(upstream.url, bucket), store, tls=server_tls(ca, "127.0.0.1")) as proxy,
        connect(proxy.host, trust) as client,
    ):
        assert is_bytes(await client.ask("GET", blob(image), AGENT))


async def test_a_head_a_part_and_what_is_unmodified_are_answered_here(proxy: Proxy, image: Image) -> None:
    head = await proxy.head(blob(image), AGENT)
    assert (head.status, head.header("Content-Length"), head.header("Location")) == (200, str(len(LAYER)), None)
    part = await proxy.get(blob(image), {**AGENT, "Range": "bytes=5-9"})
    assert (part.status, part.body, part.header("Location")) == (206, LAYER[5:10], None)
    same = await proxy.get(blob(image), {**AGENT, "If-None-Match": f'"{image.layer_digests[0]}"'})
    assert (same.status, same.header("Location")) == (304, None)


async def test_a_manifest_is_never_redirected(proxy: Proxy, image: Image) -> None:
    for reference in ("v1", image.digest):
        answer = await proxy.get(f"/v2/{REPO}/manifests/{reference}", AGENT)
        assert (answer.status, answer.body) == (200, image.body)


async def test_a_repository_that_may_not_have_a_blob_gets_no_url_of_it(
    upstream: FakeRegistry, proxy: Proxy, image: Image
) -> None:
    layer = image.layer_digests[0]
    answer = await proxy.get(f"/v2/library/other/blobs/{layer}", AGENT)
    assert (answer.status, answer.header("Location")) == (404, None)
    upstream.add_blob("library/other", LAYER)
    answer = await proxy.get(f"/v2/library/other/blobs/{layer}", AGENT)
    assert is_bytes(answer)  # upstream has been asked, and from now on there is a link
    assert (await proxy.get(f"/v2/library/other/blobs/{layer}", AGENT)).status == 307


async def test_a_client_that_comes_back_soon_could_not_use_its_url_and_gets_the_bytes(
    proxy: Proxy, image: Image
) -> None:
    assert (await proxy.get(blob(image), AGENT)).status == 307
    assert is_bytes(await proxy.get(blob(image), AGENT))
    assert (await proxy.get(f"/v2/{REPO}/blobs/{image.config_digest}", AGENT)).status == 307  # another blob


async def test_an_object_that_is_not_there_or_not_as_long_as_it_must_be_is_nobodys_goal(
    upstream: FakeRegistry,
    bucket: TestBucket,
    store: Path,
    image: Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = key_of(image.layer_digests[0])
    monkeypatch.setattr(redirects, "LOOK", 0.0)
    async with running(redirecting(upstream.url, bucket), store) as proxy:
        for body in (LAYER[:-1], LAYER + b"!", b""):
            await hop(bucket.__setitem__, key, body)
            assert is_bytes(await proxy.get(blob(image), AGENT))
        await hop(bucket.__delitem__, key)
        assert is_bytes(await proxy.get(blob(image), AGENT))
    async with running(redirecting(upstream.url, bucket), tmp_path / "other") as proxy:
        assert is_bytes(await proxy.get(blob(image), AGENT))


async def test_while_the_bucket_is_away_the_bytes_come_from_here(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, image: Image
) -> None:
    async with running(redirecting(upstream.url, bucket, url="http://127.0.0.1:9"), store) as proxy:
        for _ in range(3):
            assert is_bytes(await proxy.get(blob(image), AGENT))


async def test_without_credentials_the_bytes_come_from_here(
    proxy: Proxy, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(_keys: Keys) -> None:
        raise NoCredentialsError

    assert (await proxy.get(f"/v2/{REPO}/blobs/{image.config_digest}", AGENT)).status == 307
    monkeypatch.setattr(Keys, "get_frozen_credentials", lost)
    assert is_bytes(await proxy.get(blob(image), AGENT))
    assert [line["event"] for line in proxy.log if "reason" in line] == ["bucket fails"]


async def test_a_url_that_cannot_be_signed_is_a_failure_of_the_bucket(
    proxy: Proxy, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(_urls: SignedUrls, _key: str) -> None:
        raise NoCredentialsError

    monkeypatch.setattr(SignedUrls, "sign", failing)
    assert is_bytes(await proxy.get(blob(image), AGENT))
    assert [line["event"] for line in proxy.log if "reason" in line] == ["bucket fails"]
    assert is_bytes(await proxy.get(blob(image), AGENT))


async def test_a_blob_on_its_way_in_is_joined(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, tmp_path: Path
) -> None:
    digest = upstream.add_blob(REPO, LAYER)
    gate = upstream.on("GET", blob=digest).gate(after=1000)
    async with running(redirecting(upstream.url, bucket), store) as proxy:
        first = asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}", AGENT))
        await gate.reached.wait()
        await hop(bucket.__setitem__, key_of(digest), LAYER)
        second = asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}", AGENT))
        await until(lambda: proxy.app.handlers.active == 2)
        gate.open()
        assert is_bytes(await first)
        assert is_bytes(await second)
        assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}", AGENT)).status == 307


async def test_of_many_that_ask_at_once_one_has_the_bucket_asked(
    proxy: Proxy, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, looks = Bucket.size, 0

    async def counted(bucket: Bucket, key: str) -> int | None:
        nonlocal looks
        looks += 1
        return await real(bucket, key)

    monkeypatch.setattr(Bucket, "size", counted)
    answers = await asyncio.gather(*(proxy.get(blob(image), AGENT) for _ in range(20)))
    assert {answer.status for answer in answers} <= {200, 307}
    assert 307 in {answer.status for answer in answers}
    assert looks == 1


async def test_a_bucket_that_turns_its_own_urls_down_is_nobodys_goal(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, image: Image
) -> None:
    text = redirecting(upstream.url, bucket, s3=f'redirect_endpoint_url = "{bucket.url}/elsewhere"')
    async with cached(text, store) as proxy:
        await until(lambda: any(line["event"] == "no redirects" for line in proxy.log))
        assert is_bytes(await proxy.get(blob(image), AGENT))


async def test_a_url_is_in_no_log_and_no_metric(
    upstream: FakeRegistry, bucket: TestBucket, store: Path, image: Image
) -> None:
    text, debug = redirecting(upstream.url, bucket), {"ENTREPOT_LOG_LEVEL": "debug"}
    async with serving(text, store, environ=debug) as process:
        answer = await process.get(blob(image), AGENT)
        assert SECRET[0] in str(answer.header("Location"))
        told = await process.metrics()
        assert 'outcome="redirect"' in told
        assert await process.stop() == 0
    said = json.dumps(process.lines)
    assert '"outcome": "redirect"' in said
    assert [secret for secret in SECRET if secret in said + told] == []


async def test_check_says_that_a_bucket_turns_its_own_urls_down(bucket: TestBucket) -> None:
    table = {"bucket": bucket.name, "endpoint_url": bucket.url, "region": REGION, "redirect_networks": ["::1"]}
    assert await trial.bucket_problems(S3.model_validate(table)) == []
    (problem,) = await trial.bucket_problems(S3.model_validate({**table, "redirect_endpoint_url": f"{bucket.url}/no"}))
    assert problem == f"store.s3: {bucket.name}: {REFUSED_URLS}"
