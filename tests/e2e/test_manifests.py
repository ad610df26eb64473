"""Manifests: digests are immutable, tags are revalidated, and what is cached outlives an outage."""

import asyncio
import errno
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import AsyncMock

import pytest

from proxy.manifests import AT_ONCE
from proxy.oci.reference import Repository, Tag
from proxy.stores.base import TagRecord

from .harness import DEADLINE, Proxy, running, toml, until
from .raw_client import RawAnswer
from .upstream import OCI_INDEX, OCI_MANIFEST, FakeRegistry, Image, Rule, digest_of

REPO = "library/app"
TAG = f"/v2/{REPO}/manifests/v1"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
LIMIT = 4 * 1024 * 1024
NEVER_FRESH = 'tag_ttl = "0s"'


def problem(answer: RawAnswer) -> tuple[int, str]:
    """The status and the code of an error."""
    return answer.status, str(json.loads(answer.body)["errors"][0]["code"])


def asked(upstream: FakeRegistry) -> list[str]:
    """What upstream was asked, a word each: the method and the last part of the path."""
    return [f"{request.method} {request.path.rpartition('/')[2]}" for request in upstream.requests]


# Fresh, stale, missing


async def test_a_tag_is_fetched_once_and_then_fresh(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1")
    for method in ("HEAD", "GET", "GET", "HEAD"):
        got = await proxy.ask(method, TAG)
        assert (got.status, got.header("Docker-Content-Digest")) == (200, image.digest)
        assert (got.header("Content-Type"), got.header("Warning")) == (OCI_MANIFEST, None)
    assert asked(upstream) == ["GET v1"]
    assert (await proxy.get(f"/v2/{REPO}/manifests/{image.digest}")).body == image.body
    assert asked(upstream) == ["GET v1"]
    await proxy.settled()
    assert [record["outcome"] for record in proxy.requests] == ["fill", "hit", "hit", "hit", "hit"]


async def test_a_tag_without_ttl_is_revalidated_by_head_each_time(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1")
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        for _ in range(3):
            got = await proxy.get(TAG)
            assert (got.body, got.header("Warning")) == (image.body, None)
        await proxy.settled()
        assert asked(upstream) == ["GET v1", "HEAD v1", "HEAD v1"]
        assert [record["outcome"] for record in proxy.requests] == ["fill", "revalidated", "revalidated"]


async def test_a_head_that_finds_no_change_makes_the_tag_fresh_again(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = upstream.add_image(REPO, "v1")
    async with running(toml(upstream.url, more='tag_ttl = "100s"'), store) as proxy:
        clock = Clock(monkeypatch)
        for later, requests in ((0, 1), (89, 1), (12, 2), (89, 2), (12, 3)):
            clock.now += later
            assert (await proxy.get(TAG)).body == image.body
            assert upstream.count() == requests
    assert asked(upstream) == ["GET v1", "HEAD v1", "HEAD v1"]
    # That it was looked at is on disk as well: another process need not ask again.
    async with running(toml(upstream.url, more='tag_ttl = "100s"'), store) as proxy:
        assert (await proxy.get(TAG)).body == image.body
    assert upstream.count() == 3


class Clock:
    """The wall clock, for what judges the age of tags."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_800_000_000.0
        monkeypatch.setattr("proxy.tags.time", SimpleNamespace(time=lambda: self.now, monotonic=time.monotonic))


async def asked_ahead(proxy: Proxy) -> None:
    """Wait until what is asked about while it is served has been."""
    await until(lambda: not len(proxy.app.manifests._ahead))


async def test_a_tag_that_will_soon_be_stale_is_asked_about_while_it_is_served(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = upstream.add_image(REPO, "v1", [b"old"])
    async with running(toml(upstream.url, more='tag_ttl = "100s"'), store) as proxy:
        clock = Clock(monkeypatch)
        await proxy.get(TAG)
        new = upstream.add_image(REPO, "v1", [b"new"])
        clock.now += 95
        gate = upstream.on("HEAD", manifest="v1").hang()
        assert {(await proxy.get(TAG)).body for _ in range(3)} == {old.body}  # nobody waits
        await gate.reached.wait()
        gate.open()
        await asked_ahead(proxy)
        assert asked(upstream) == ["GET v1", "HEAD v1", f"GET {new.digest}"]
        for later in (0, 10):  # of which the second is long after the first answer has become stale
            clock.now += later
            assert (await proxy.get(TAG)).body == new.body
        assert len(asked(upstream)) == 3


async def test_what_another_process_has_found_out_ahead_is_not_asked_again(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.add_image(REPO, "v1", [b"old"])
    text = toml(upstream.url, more='tag_ttl = "100s"')
    async with running(text, store) as proxy, running(text, store, alone=False) as other:
        clock = Clock(monkeypatch)
        await proxy.get(TAG)
        await other.get(TAG)
        new = upstream.add_image(REPO, "v1", [b"new"])
        clock.now += 95
        for one in (proxy, other):
            await one.get(TAG)
            await asked_ahead(one)
        assert asked(upstream) == ["GET v1", "HEAD v1", f"GET {new.digest}"]
        clock.now += 10
        assert {(await one.get(TAG)).body for one in (proxy, other)} == {new.body}
        assert len(asked(upstream)) == 3


@pytest.mark.parametrize("status", [200, 404])
async def test_who_wants_a_tag_anew_is_not_told_what_another_process_has_found(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    old = upstream.add_image(REPO, "v1", [b"old"])
    text, anew = toml(upstream.url, more='tag_ttl = "100s"'), {"Cache-Control": "no-cache"}
    async with running(text, store) as proxy, running(text, store, alone=False) as other:
        clock = Clock(monkeypatch)
        await proxy.get(TAG)
        clock.now += 50
        await other.get(TAG, anew)
        upstream.add_image(REPO, "v1", [b"new"])
        if status != 200:
            upstream.on(manifest="v1").status(status)
        clock.now += 45
        look = Look(proxy, monkeypatch)
        assert (await proxy.get(TAG)).body == old.body
        await look.begun.wait()
        answers = [await proxy.get(TAG, anew)]
        look.may_end.set()
        await asked_ahead(proxy)
        answers.append(await proxy.get(TAG))
        assert [answer.status for answer in answers] == [status, status]
        assert old.body not in {answer.body for answer in answers}


class Look:
    """The first look at what other processes have recorded of a tag: it takes until it is told to end."""

    def __init__(self, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.may_end = asyncio.Event(), asyncio.Event()
        self._recorded = proxy.app.manifests._tags.recorded
        monkeypatch.setattr(proxy.app.manifests._tags, "recorded", self._look)

    async def _look(self, repository: Repository, tag: Tag) -> TagRecord | None:
        record, is_first = await self._recorded(repository, tag), not self.begun.is_set()
        self.begun.set()
        if is_first:
            await self.may_end.wait()
        return record


@pytest.mark.parametrize(("status", "headers"), [(429, [("Retry-After", "120")]), (503, [])])
async def test_while_upstream_does_not_answer_it_is_asked_ahead_once_and_nobody_is_told(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch, status: int, headers: list[tuple[str, str]]
) -> None:
    image = upstream.add_image(REPO, "v1")
    monkeypatch.setattr("proxy.revalidation.POSTPONEMENT", 0.0)  # another second has gone by
    async with running(toml(upstream.url, more='tag_ttl = "100s"'), store) as proxy:
        clock = Clock(monkeypatch)
        await proxy.get(TAG)
        clock.now += 95
        upstream.on("HEAD").status(status, headers)
        for _ in range(5):
            answer = await proxy.get(TAG)
            assert (answer.body, answer.header("Warning")) == (image.body, None)
            await asked_ahead(proxy)
        assert asked(upstream) == ["GET v1", "HEAD v1"]
        clock.now += 10
        check_stale(await proxy.get(TAG), image, image.body)


async def test_while_the_disk_does_not_let_go_of_a_tag_upstream_is_asked_ahead_once(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.add_image(REPO, "v1")
    async with running(toml(upstream.url, more='tag_ttl = "100s"'), store) as proxy:
        clock = Clock(monkeypatch)
        await proxy.get(TAG)
        clock.now += 95
        upstream.on("HEAD").status(404)
        repositories = proxy.app.manifests._repositories
        monkeypatch.setattr(repositories, "drop_tag", AsyncMock(side_effect=OSError(errno.EROFS, "read-only")))
        for _ in range(10):
            await proxy.get(TAG)
            await asked_ahead(proxy)
        assert asked(upstream) == ["GET v1", "HEAD v1"]


async def test_a_registry_that_allows_no_head_is_not_asked_ahead_since_a_get_is_a_pull(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.add_image(REPO, "v1")
    upstream.on("HEAD").status(405)
    async with running(toml(upstream.url, more='tag_ttl = "100s"'), store) as proxy:
        clock = Clock(monkeypatch)
        for later, gets in ((0, 1), (101, 2), (95, 2), (10, 3)):
            clock.now += later
            assert (await proxy.get(TAG)).status == 200
            await asked_ahead(proxy)
            assert upstream.count("GET") == gets
    assert upstream.count("HEAD") == 1


async def test_of_many_tags_few_are_asked_about_ahead_at_once_and_who_waits_is_not_behind_them_all(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = [f"v{number}" for number in range(AT_ONCE + 4)]
    for name in tags:
        upstream.add_image(REPO, name)
    async with running(toml(upstream.url, more='tag_ttl = "100s"'), store) as proxy:
        clock = Clock(monkeypatch)
        for name in tags:
            await proxy.get(f"/v2/{REPO}/manifests/{name}")
        clock.now += 95
        gate = upstream.on("HEAD").hang()
        for name in tags:
            assert (await proxy.get(f"/v2/{REPO}/manifests/{name}")).status == 200
        assert len(proxy.app.manifests._ahead) == AT_ONCE
        gate.open()
        await asked_ahead(proxy)
        for name in tags:
            await proxy.get(f"/v2/{REPO}/manifests/{name}")
            await asked_ahead(proxy)
        assert sorted(asked(upstream)[len(tags) :]) == sorted(f"HEAD {name}" for name in tags)


@pytest.mark.parametrize("more", ['freeze = ["library/*"]', "sealed = true"])
async def test_what_does_not_become_stale_is_not_asked_about(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    upstream.add_image(REPO, "v1")
    clock = Clock(monkeypatch)
    async with running(toml(upstream.url, more='tag_ttl = "100s"'), store) as proxy:
        await proxy.get(TAG)
    async with running(toml(upstream.url, more=f'tag_ttl = "100s"\n{more}'), store) as proxy:
        ahead = list[object]()
        monkeypatch.setattr(proxy.app.manifests, "_refresh", lambda *what: ahead.append(what))
        await proxy.get(TAG)
        clock.now += 95
        assert (await proxy.get(TAG)).status == 200
        assert ahead == []
    assert upstream.count() == 1


async def test_a_tag_that_moved_is_fetched_by_its_digest(upstream: FakeRegistry, store: Path) -> None:
    upstream.add_image(REPO, "v1", [b"old"])
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        await proxy.get(TAG)
        new = upstream.add_image(REPO, "v1", [b"new"])
        got = await proxy.get(TAG)
        assert (got.body, got.header("Docker-Content-Digest")) == (new.body, new.digest)
        assert asked(upstream) == ["GET v1", "HEAD v1", f"GET {new.digest}"]
        assert (await proxy.get(TAG)).body == new.body
        assert asked(upstream)[3:] == ["HEAD v1"]


async def test_a_tag_that_moves_between_head_and_get_gives_what_the_head_said(
    upstream: FakeRegistry, store: Path
) -> None:
    upstream.add_image(REPO, "v1", [b"old"])
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        await proxy.get(TAG)
        new = upstream.add_image(REPO, "v1", [b"new"])
        gate = upstream.on("GET", manifest=new.digest).hang()
        pull = asyncio.create_task(proxy.get(TAG))
        await gate.reached.wait()
        newer = upstream.add_image(REPO, "v1", [b"newer"])
        gate.open()
        assert (await pull).body == new.body
        assert (await proxy.get(TAG)).body == newer.body


async def test_a_tag_that_moves_back_to_what_is_cached_costs_no_get(upstream: FakeRegistry, store: Path) -> None:
    old = upstream.add_image(REPO, "v1", [b"old"])
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        await proxy.get(TAG)
        upstream.add_image(REPO, "v1", [b"new"])
        await proxy.get(TAG)
        upstream.tag(REPO, "v1", old.digest)
        assert (await proxy.get(TAG)).body == old.body
    assert asked(upstream)[-1] == "HEAD v1"


async def test_a_head_without_a_digest_leads_to_a_get(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1", [b"old"])
    upstream.on(manifest="v1").no_digest()
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        for _ in range(2):
            got = await proxy.get(TAG)
            assert (got.body, got.header("Docker-Content-Digest")) == (image.body, image.digest)
        new = upstream.add_image(REPO, "v1", [b"new"])
        assert (await proxy.get(TAG)).body == new.body
    assert asked(upstream) == ["GET v1", "HEAD v1", "GET v1", "HEAD v1", "GET v1"]


async def test_a_registry_that_allows_no_head_leaves_what_is_cached_with_a_warning(
    upstream: FakeRegistry, store: Path
) -> None:
    image = upstream.add_image(REPO, "v1")
    upstream.on("HEAD").status(405)
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        await proxy.get(TAG)
        assert (await proxy.get(TAG)).body == image.body


async def test_32_clients_of_a_missing_tag_cost_one_get(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1")
    gate = upstream.on("GET", manifest="v1").hang()
    pulls = [asyncio.create_task(proxy.ask(method, TAG)) for method in ("GET", "HEAD") * 16]
    await gate.reached.wait()
    await all_waiting(proxy, 32)
    gate.open()
    answers = await asyncio.gather(*pulls)
    assert {answer.header("Docker-Content-Digest") for answer in answers} == {image.digest}
    assert asked(upstream) == ["GET v1"]


async def test_32_clients_of_a_stale_tag_cost_one_head(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = upstream.add_image(REPO, "v1")
    async with running(toml(upstream.url, more='tag_ttl = "100s"'), store) as proxy:
        clock = Clock(monkeypatch)
        await proxy.get(TAG)
        clock.now += 101
        gate = upstream.on("HEAD", manifest="v1").hang()
        pulls = [asyncio.create_task(proxy.get(TAG)) for _ in range(32)]
        await gate.reached.wait()
        await all_waiting(proxy, 32)
        gate.open()
        assert {answer.body for answer in await asyncio.gather(*pulls)} == {image.body}
    assert asked(upstream) == ["GET v1", "HEAD v1"]


async def test_32_clients_of_a_cold_digest_cost_one_get(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO)
    gate = upstream.on("GET", manifest=image.digest).hang()
    target = f"/v2/{REPO}/manifests/{image.digest}"
    pulls = [asyncio.create_task(proxy.get(target)) for _ in range(32)]
    await gate.reached.wait()
    await all_waiting(proxy, 32)
    gate.open()
    assert {answer.body for answer in await asyncio.gather(*pulls)} == {image.body}
    assert upstream.count() == 1


async def test_a_client_that_leaves_takes_the_answer_from_nobody(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1")
    gate = upstream.on("GET", manifest="v1").hang()
    first, second = (asyncio.create_task(proxy.get(TAG)) for _ in range(2))
    await gate.reached.wait()
    await all_waiting(proxy, 2)
    first.cancel()
    await asyncio.wait([first])
    gate.open()
    assert (await second).body == image.body
    assert upstream.count() == 1


async def all_waiting(proxy: Proxy, count: int) -> None:
    """Wait until so many requests are being answered."""
    await until(lambda: proxy.app.handlers.active >= count, f"{count} requests are going on")


# Upstream fails


FAILURES: dict[str, Callable[[Rule], object]] = {
    "429": lambda rule: rule.status(429),
    "429 without an end": lambda rule: rule.status(429, [("Retry-After", "999999999")]),
    "500": lambda rule: rule.status(500),
    "502": lambda rule: rule.status(502, (), b"<html>bad gateway</html>"),
    "503": lambda rule: rule.status(503, [("Retry-After", "x")]),
    "504": lambda rule: rule.status(504),
    "reset": lambda rule: rule.reset(),
    "no answer": lambda rule: rule.close_without_answer(),
    "no HTTP": lambda rule: rule.raw(b"SSH-2.0-OpenSSH_9.9\r\n\r\n").truncate(0),
    "hang": lambda rule: rule.hang(),
    "drip": lambda rule: rule.slow_headers(1),
    "a digest that is none": lambda rule: rule.lying_digest("sha256:zzz"),
    "a digest of nothing": lambda rule: rule.lying_digest(),
    "a redirect to itself": lambda rule: rule.redirect("/v2/library/app/manifests/v1"),
    "a redirect to nowhere": lambda rule: rule.redirect("file:///etc/passwd"),
    "no content": lambda rule: rule.status(204),
    "not modified": lambda rule: rule.status(304),
    "a teapot": lambda rule: rule.status(418),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_stale_tag_is_served_with_a_warning_when_upstream_fails(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    monkeypatch.setattr("proxy.exchange.STALE_BUDGET", 0.2)
    image = upstream.add_image(REPO, "v1")
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        await proxy.get(TAG)
        FAILURES[failure](upstream.on(manifest="v1"))
        for method in ("GET", "HEAD", "GET"):
            got = await proxy.ask(method, TAG)
            check_stale(got, image, b"" if method == "HEAD" else image.body)
        await proxy.settled()
        assert [record["outcome"] for record in proxy.requests] == ["fill", "stale", "stale", "stale"]


def check_stale(got: RawAnswer, image: Image, body: bytes) -> None:
    assert (got.status, got.body, got.header("Docker-Content-Digest")) == (200, body, image.digest)
    assert got.header("Content-Type") == OCI_MANIFEST
    warning = got.header("Warning")
    assert warning is not None
    assert warning.startswith(('299 - "docker.io does not answer', '299 - "docker.io limits our rate'))
    assert warning.count('"') == 2


async def test_a_stale_tag_is_served_when_connections_are_refused(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1")
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        await proxy.get(TAG)
        await upstream.go_down()
        check_stale(await proxy.get(TAG), image, image.body)
        upstream.come_back()
        new = upstream.add_image(REPO, "v1", [b"new"])
        await eventually(proxy, TAG, new.body)


async def eventually(proxy: Proxy, target: str, body: bytes) -> None:
    """Ask until upstream is asked again and this is the answer."""
    answers: list[bytes] = []
    async with asyncio.timeout(DEADLINE):
        while body not in answers:
            answers.append((await proxy.get(target)).body)
            await asyncio.sleep(0.05)  # there is no event for the end of a pause


BAD_BODIES: dict[str, Callable[[Rule], object]] = {
    "wrong bytes": lambda rule: rule.wrong_bytes(),
    "another body": lambda rule: rule.body(b"{}"),
    "truncated": lambda rule: rule.truncate(100),
    "reset": lambda rule: rule.reset(100),
    "longer": lambda rule: rule.resized(1),
    "encoded": lambda rule: rule.content_encoding_gzip(),
    "too large": lambda rule: rule.body(b" " * (LIMIT + 1)),
    "gone": lambda rule: rule.status(404),
    "503": lambda rule: rule.status(503),
    "another type": lambda rule: rule.content_type(OCI_INDEX),
    "stall": lambda rule: rule.stall(10),
}


@pytest.mark.parametrize("failure", BAD_BODIES)
async def test_a_stale_tag_is_served_when_what_it_moved_to_cannot_be_had(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    monkeypatch.setattr("proxy.exchange.STALE_BUDGET", 0.3)
    monkeypatch.setattr("proxy.revalidation.POSTPONEMENT", 0.05)
    old = upstream.add_image(REPO, "v1", [b"old"])
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        await proxy.get(TAG)
        new = upstream.add_image(REPO, "v1", [b"new"])
        BAD_BODIES[failure](upstream.on("GET", manifest=new.digest))
        check_stale(await proxy.get(TAG), old, old.body)
        upstream.forget_rules()
        await eventually(proxy, TAG, new.body)


async def test_a_digest_header_that_lies_leaves_the_tag_where_it_was(upstream: FakeRegistry, store: Path) -> None:
    old = upstream.add_image(REPO, "v1", [b"old"])
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        await proxy.get(TAG)
        upstream.add_image(REPO, "v1", [b"new"])
        upstream.on("HEAD", manifest="v1").no_digest()
        upstream.on("GET", manifest="v1").lying_digest(old.digest)
        check_stale(await proxy.get(TAG), old, old.body)


async def test_a_cold_tag_whose_digest_header_lies_is_refused(upstream: FakeRegistry, proxy: Proxy) -> None:
    upstream.add_image(REPO, "v1")
    rule = upstream.on("GET", manifest="v1").lying_digest()
    assert problem(await proxy.get(TAG)) == (502, "UNAVAILABLE")
    assert proxy.blobs() == []
    rule.stop()
    assert (await proxy.get(TAG)).status == 200


async def test_during_an_outage_upstream_is_not_asked_for_every_request(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1")
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        await proxy.get(TAG)
        upstream.on("HEAD").status(429, [("Retry-After", "120")])
        for _ in range(20):
            check_stale(await proxy.get(TAG), image, image.body)
        assert asked(upstream) == ["GET v1", "HEAD v1"]


# Answers


@pytest.mark.parametrize(
    ("status", "ours", "code"), [(404, 404, "MANIFEST_UNKNOWN"), (401, 403, "DENIED"), (403, 403, "DENIED")]
)
async def test_a_refusal_is_an_answer_and_ends_what_was_known(
    upstream: FakeRegistry, store: Path, status: int, ours: int, code: str
) -> None:
    upstream.add_image(REPO, "v1")
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        await proxy.get(TAG)
        upstream.on(manifest="v1").status(status)
        assert problem(await proxy.get(TAG)) == (ours, code)
        # An outage does not bring back what upstream has taken away, not even after a restart.
        upstream.forget_rules()
        await upstream.go_down()
        assert (await proxy.get(TAG)).status in {404, 502, 503}
    async with running(toml(upstream.url), store) as proxy:
        assert (await proxy.get(TAG)).status in {502, 503}


async def test_a_404_is_remembered_for_a_moment_and_nothing_else_is(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = f"sha256:{'a' * 64}"
    upstream.add_image(REPO)
    for reference in ("none", digest):
        before = upstream.count()
        for _ in range(5):
            assert problem(await proxy.get(f"/v2/{REPO}/manifests/{reference}")) == (404, "MANIFEST_UNKNOWN")
        assert upstream.count() == before + 1
    for status in (401, 403, 500):
        upstream.on("GET", manifest=f"t{status}").status(status)
        for _ in range(2):
            before = upstream.count()
            assert (await proxy.get(f"/v2/{REPO}/manifests/t{status}")).status != 404
            assert upstream.count() > before
    # Memory is short: what has been pushed in the meantime is found.
    image = upstream.add_image(REPO, "none")
    monkeypatch.setattr(proxy.app.handlers._manifests._revalidation._missing, "_TTLCache__ttl", 0.0)
    proxy.app.handlers._manifests._revalidation._missing.expire(float("inf"))
    assert (await proxy.get(f"/v2/{REPO}/manifests/none")).body == image.body


async def test_a_404_is_remembered_for_its_own_repository_and_reference(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1")
    assert (await proxy.get("/v2/library/other/manifests/v1")).status == 404
    assert (await proxy.get(f"/v2/{REPO}/manifests/v2")).status == 404
    assert (await proxy.get(TAG)).body == image.body


# What is a manifest


async def test_upstream_is_sent_one_full_accept_list_whatever_the_client_sends(
    upstream: FakeRegistry, store: Path
) -> None:
    image = upstream.add_image(REPO, "v1")
    upstream.require_accept()
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        for accept in (
            "*/*",
            "application/json",
            DOCKER_MANIFEST,
            "application/vnd.docker.distribution.manifest.v1+json",
            "",
        ):
            for reference in ("v1", image.digest):
                assert (await proxy.get(f"/v2/{REPO}/manifests/{reference}", {"Accept": accept})).body == image.body
    lists = {tuple(request.lines("Accept")) for request in upstream.requests}
    assert lists == {(f"{OCI_INDEX}, {DOCKER_LIST}, {OCI_MANIFEST}, {DOCKER_MANIFEST}",)}


async def test_what_is_asked_for_by_digest_is_verified(upstream: FakeRegistry, proxy: Proxy) -> None:
    image, other = upstream.add_image(REPO), upstream.add_image(REPO, None, [b"other"])
    target = f"/v2/{REPO}/manifests/{image.digest}"
    rule = upstream.on("GET", manifest=image.digest).body(other.body)
    assert problem(await proxy.get(target)) == (502, "UNAVAILABLE")
    assert proxy.blobs() == []
    rule.stop()
    assert (await proxy.get(target)).body == image.body


@pytest.mark.parametrize(
    "declared", ["application/json", "text/plain; charset=utf-8", "application/octet-stream", None]
)
async def test_a_media_type_that_says_nothing_gives_way_to_the_bodys(
    upstream: FakeRegistry, proxy: Proxy, declared: str | None
) -> None:
    image = upstream.add_image(REPO, "v1")
    rule = upstream.on("GET", manifest="v1")
    _ = rule.no_content_type() if declared is None else rule.content_type(declared)
    assert (await proxy.get(TAG)).header("Content-Type") == image.media_type


@pytest.mark.parametrize(
    "media_type", [OCI_MANIFEST, DOCKER_MANIFEST, OCI_INDEX, DOCKER_LIST, "application/vnd.x+json"]
)
async def test_the_media_type_stays_with_the_digest_over_a_restart(
    upstream: FakeRegistry, store: Path, media_type: str
) -> None:
    field = "manifests" if media_type in {OCI_INDEX, DOCKER_LIST} else "layers"
    body = json.dumps({"schemaVersion": 2, field: []}).encode()
    digest = upstream.add_manifest(REPO, body, media_type, ["v1"])
    async with running(toml(upstream.url), store) as proxy:
        assert (await proxy.get(TAG)).header("Content-Type") == media_type
        upstream.on().content_type("text/html")  # and is not what upstream says the next time
        assert (await proxy.get(f"/v2/{REPO}/manifests/{digest}")).header("Content-Type") == media_type
    await upstream.go_down()
    async with running(toml(upstream.url), store) as proxy:
        for reference in (digest, "v1"):
            got = await proxy.get(f"/v2/{REPO}/manifests/{reference}")
            assert (got.body, got.header("Content-Type")) == (body, media_type)


LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": f"sha256:{'a' * 64}", "size": 1}
DEEP = 100_000


def document(**fields: object) -> bytes:
    return json.dumps({"schemaVersion": 2, **fields}).encode()


BAD_MANIFESTS: dict[str, tuple[bytes, str]] = {
    "an index declared a manifest": (document(mediaType=OCI_INDEX, manifests=[]), OCI_MANIFEST),
    "a manifest declared an index": (document(mediaType=OCI_MANIFEST, layers=[]), OCI_INDEX),
    "a manifest with an index's media type": (document(layers=[LAYER]), OCI_INDEX),
    "an index with a manifest's media type": (document(manifests=[]), OCI_MANIFEST),
    "manifests and layers": (document(mediaType=OCI_MANIFEST, manifests=[], layers=[LAYER]), OCI_MANIFEST),
    "manifests and layers as an index": (document(mediaType=OCI_INDEX, manifests=[], layers=[]), OCI_INDEX),
    "manifests and config": (document(manifests=[], config=LAYER), OCI_INDEX),
    "mediaType twice": (
        b'{"mediaType":"%s","mediaType":"%s","layers":[]}' % (OCI_INDEX.encode(), OCI_MANIFEST.encode()), OCI_MANIFEST,
    ),
    "mediaType in another case": (b'{"MediaType":"%s","layers":[]}' % OCI_INDEX.encode(), OCI_MANIFEST),
    "layers twice": (b'{"layers":[],"layers":[]}', OCI_MANIFEST),
    "Layers": (b'{"layers":[],"Layers":[]}', OCI_MANIFEST),
    "Manifests": (b'{"layers":[],"Manifests":[]}', OCI_MANIFEST),
    "Layers alone": (b'{"Layers":[]}', OCI_MANIFEST),
    "Manifests alone": (b'{"MANIFESTS":[]}', OCI_INDEX),
    "a long s": ('{"layer\u017f":[],"layers":[]}'.encode(), OCI_MANIFEST),
    "schema 1": (document(schemaVersion=1, fsLayers=[]), "application/vnd.docker.distribution.manifest.v1+json"),
    "schema 1, signed": (document(schemaVersion=1), "application/vnd.docker.distribution.manifest.v1+prettyjws"),
    "schema 1 in disguise": (document(schemaVersion=1, layers=[]), OCI_MANIFEST),
    "schema 1 as JSON": (document(schemaVersion=1, fsLayers=[]), "application/json"),
    "nothing": (b"", OCI_MANIFEST),
    "no JSON": (b"<html>login</html>", OCI_MANIFEST),
    "HTML": (b"<html>login</html>", "text/html"),
    "a list": (b"[]", OCI_MANIFEST),
    "a number": (b"1", OCI_MANIFEST),
    "null": (b"null", OCI_MANIFEST),
    "no manifest's fields": (b"{}", "application/json"),
    "trailing bytes": (document(layers=[]) + b"x", OCI_MANIFEST),
    "deep lists": (b'{"layers":[],"x":' + b"[" * DEEP + b"]" * DEEP + b"}", OCI_MANIFEST),
    "deep objects": (b'{"layers":[],"x":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}", OCI_MANIFEST),
    "deep and open": (b"[" * DEEP, OCI_MANIFEST),
    "a long number": (b'{"layers":[],"x":' + b"9" * 5000 + b"}", OCI_MANIFEST),
    "NaN": (b'{"layers":[],"x":NaN}', OCI_MANIFEST),
    "Infinity": (b'{"layers":[],"x":-Infinity}', OCI_MANIFEST),
    "out of range": (b'{"layers":[],"x":1e400}', OCI_MANIFEST),
    "a lone surrogate": (b'{"layers":[],"x":"\\ud800"}', OCI_MANIFEST),
    "UTF-16": ('{"layers":[]}'.encode("utf-16"), OCI_MANIFEST),
    "a byte order mark": (b"\xef\xbb\xbf" + document(layers=[]), OCI_MANIFEST),
    "no UTF-8": (b'{"layers":[],"x":"\xff"}', OCI_MANIFEST),
    "a media type that is none": (document(mediaType="x\r\ny", layers=[]), "application/json"),
    "a media type of another kind": (document(mediaType=5, layers=[]), OCI_MANIFEST),
    "4 MiB of objects": (b'{"layers":[' + b"{}," * 1_398_000 + b"{}]}", OCI_MANIFEST),
    "4 MiB of lists": (b'{"layers":[],"x":[' + b"[]," * 1_398_000 + b"[]]}", OCI_MANIFEST),
    "a byte too many": (b'{"layers":[]}' + b" " * (LIMIT - 12), OCI_MANIFEST),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_MANIFESTS)
async def test_a_document_that_clients_could_understand_in_two_ways_is_refused(
    upstream: FakeRegistry, proxy: Proxy, case: str
) -> None:
    body, media_type = BAD_MANIFESTS[case]
    digest = upstream.add_manifest(REPO, body, media_type, ["v1"])
    for reference in ("v1", digest):
        assert problem(await proxy.get(f"/v2/{REPO}/manifests/{reference}")) == (502, "UNAVAILABLE")
    assert proxy.blobs() == []
    assert upstream.count() == 2  # nonsense is not asked for again at once


async def test_a_manifest_of_very_many_layers_is_served(upstream: FakeRegistry, proxy: Proxy) -> None:
    layers = [{**LAYER, "digest": f"sha256:{number:064}", "annotations": {"n": "x"}} for number in range(20_000)]
    body = document(config=LAYER, layers=layers)
    assert 3_000_000 < len(body) < LIMIT
    digest = upstream.add_manifest(REPO, body)
    assert digest_of((await proxy.get(f"/v2/{REPO}/manifests/{digest}")).body) == digest


async def test_the_largest_manifest_is_served(upstream: FakeRegistry, proxy: Proxy) -> None:
    body = b'{"manifests":[]}'.ljust(LIMIT)
    digest = upstream.add_manifest(REPO, body, OCI_INDEX)
    for _ in range(2):
        got = await proxy.get(f"/v2/{REPO}/manifests/{digest}")
        assert (got.status, digest_of(got.body)) == (200, digest)


@pytest.mark.parametrize("framing", ["declared", "chunked", "until the end"])
async def test_no_more_than_the_limit_is_read_of_what_is_too_large(
    upstream: FakeRegistry, proxy: Proxy, framing: str
) -> None:
    upstream.add_image(REPO, "v1")
    rule = upstream.on("GET", manifest="v1").body(b" " * (16 * LIMIT))
    if framing == "chunked":
        rule.chunked()
    elif framing == "until the end":
        rule.no_content_length()
    assert problem(await proxy.get(TAG)) == (502, "UNAVAILABLE")
    assert upstream.body_bytes_sent < 12 * LIMIT  # what lay in the kernel's buffers included
    await upstream.until(lambda: upstream.open_connections == 0)


async def test_a_body_without_a_length_is_taken_if_its_digest_holds(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1")
    upstream.on("GET", manifest="v1").no_content_length()
    got = await proxy.get(TAG)
    assert (got.body, got.header("Content-Length")) == (image.body, str(len(image.body)))


async def test_foreign_urls_in_a_manifest_are_passed_on_and_never_followed(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    body = document(layers=[{**LAYER, "urls": [f"{upstream.url}/elsewhere/layer"]}])
    upstream.add_manifest(REPO, body, OCI_MANIFEST, ["v1"])
    assert (await proxy.get(TAG)).body == body
    assert (await proxy.get(f"/v2/{REPO}/blobs/{LAYER['digest']}")).status == 404
    assert upstream.count(path_contains="/elsewhere/") == 0


# What is on disk


async def test_after_a_restart_with_upstream_down_tags_and_digests_are_served(
    upstream: FakeRegistry, store: Path
) -> None:
    image = upstream.add_image(REPO, "v1")
    index = upstream.add_index(REPO, "all", [image])
    async with running(toml(upstream.url), store) as proxy:
        await proxy.get(TAG)
        await proxy.get(f"/v2/{REPO}/manifests/all")
    await upstream.go_down()
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        for reference, want in ((image.digest, image), (index.digest, index), ("v1", image), ("all", index)):
            got = await proxy.get(f"/v2/{REPO}/manifests/{reference}")
            assert (got.status, got.body, got.header("Content-Type")) == (200, want.body, want.media_type)
            assert (got.header("Warning") is None) == (":" in reference)


@pytest.mark.parametrize("damage", [b"", b"{}", b"x" * 5_000_000])
async def test_a_manifest_that_is_damaged_on_disk_is_fetched_again(
    upstream: FakeRegistry, store: Path, damage: bytes
) -> None:
    image = upstream.add_image(REPO, "v1")
    async with running(toml(upstream.url), store) as proxy:
        await proxy.get(TAG)
        path = proxy.blob_path(image.digest)
    for reference in ("v1", image.digest):
        path.chmod(0o600)
        path.write_bytes(damage)
        async with running(toml(upstream.url), store) as proxy:
            assert (await proxy.get(f"/v2/{REPO}/manifests/{reference}")).body == image.body
        assert path.read_bytes() == image.body


async def test_a_manifest_that_vanished_from_disk_is_fetched_again(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1")
    async with running(toml(upstream.url), store) as proxy:
        await proxy.get(TAG)
        path = proxy.blob_path(image.digest)
    for reference in ("v1", image.digest):
        path.unlink()
        async with running(toml(upstream.url), store) as proxy:
            assert (await proxy.get(f"/v2/{REPO}/manifests/{reference}")).body == image.body
            assert path.read_bytes() == image.body


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b'{"digest":"sha256:..","checked":1}', b"\x00" * 60, b"1" * 5000])
async def test_a_record_of_a_tag_that_a_crash_garbled_is_asked_for_anew(
    upstream: FakeRegistry, store: Path, record: bytes
) -> None:
    image = upstream.add_image(REPO, "v1")
    async with running(toml(upstream.url), store) as proxy:
        await proxy.get(TAG)
    path = store / "repositories/docker.io/library/app/_tags/v1"
    path.chmod(0o600)
    path.write_bytes(record)
    async with running(toml(upstream.url), store) as proxy:
        assert (await proxy.get(TAG)).body == image.body
    assert asked(upstream) == ["GET v1", "GET v1"]


async def test_a_manifest_is_served_only_through_a_repository_that_has_it(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1")
    upstream.add_image("library/other", "v1", [b"other"])
    await proxy.get(TAG)
    assert (await proxy.get(f"/v2/library/other/manifests/{image.digest}")).status == 404
    upstream.add_manifest("library/third", image.body, image.media_type)
    assert (await proxy.get(f"/v2/library/third/manifests/{image.digest}")).body == image.body


async def test_a_manifest_is_served_though_the_disk_will_not_keep_it(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = upstream.add_image(REPO, "v1")

    async def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    manifests = proxy.app.handlers._manifests
    monkeypatch.setattr(manifests._blobs, "put", full)
    monkeypatch.setattr(manifests._repositories, "put_tag", full)
    assert (await proxy.get(TAG)).body == image.body


async def test_a_manifest_asked_for_as_a_blob_stays_a_manifest(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1")
    upstream.add_blob(REPO, image.body)
    async with running(toml(upstream.url), store) as proxy:
        assert (await proxy.get(f"/v2/{REPO}/manifests/{image.digest}")).status == 200
        proxy.blob_path(image.digest).unlink()
        assert (await proxy.head(f"/v2/{REPO}/blobs/{image.digest}")).status == 200
        assert (await proxy.get(f"/v2/{REPO}/blobs/{image.digest}")).body == image.body
        await proxy.settled()
    await upstream.go_down()
    async with running(toml(upstream.url), store) as proxy:
        assert (await proxy.get(f"/v2/{REPO}/manifests/{image.digest}")).body == image.body
