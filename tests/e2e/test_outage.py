"""An upstream that does not answer: one client pays for finding out, and nobody pays again at once."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy import egress, exchange, outage, revalidation, sessions
from proxy.oci import retry

from .harness import Clock, Proxy, running, toml
from .raw_client import RawAnswer
from .upstream import FakeRegistry, Storage

REPO = "library/app"
TAG = f"/v2/{REPO}/manifests/v1"
HEX = "a" * 64
NEVER_FRESH = 'tag_ttl = "0s"'
COLD = [f"/v2/{REPO}/manifests/{{}}", f"/v2/{REPO}/blobs/sha256:{HEX[:60]}{{:0>4}}", f"/v2/{REPO}/tags/list?last={{}}"]


def problem(answer: RawAnswer) -> tuple[int, str]:
    """The status and the code of an error."""
    return answer.status, str(json.loads(answer.body)["errors"][0]["code"])


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every attempt to send a request, by its URL: what is refused leaves no trace at the other end."""
    sent: list[str] = []
    true = egress.Egress._exchange

    async def counted(self: egress.Egress, sending: sessions.Sending, *rest: Any, **more: Any) -> object:
        sent.append(str(sending.url))
        return await true(self, sending, *rest, **more)

    monkeypatch.setattr(egress.Egress, "_exchange", counted)
    return sent


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the breaker."""
    return Clock(monkeypatch, "proxy.outage")


@contextlib.contextmanager
def hurried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The budgets of questions scaled down, for one that is not answered: on a busy machine no other is in time."""
    with monkeypatch.context() as scaled:
        for module, name in ((exchange, "STALE_BUDGET"), (exchange, "BUDGET"), (outage, "PROBE_BUDGET")):
            scaled.setattr(module, name, 0.2)
        yield


# The budgets


def test_no_client_waits_for_longer_than_it_would() -> None:
    # Connect, token, redirects, headers, and for manifests the body; then a look at whether upstream is there at all.
    assert exchange.BUDGET + outage.PROBE_BUDGET < 20
    # A HEAD and, if the tag moved, a GET.
    assert 2 * exchange.STALE_BUDGET + outage.PROBE_BUDGET < 20
    assert sessions.CONNECT_TIMEOUT < exchange.BUDGET
    longest_pauses = sum(retry.pause(number, 1.0) for number in range(exchange.TRIES - 1))
    assert longest_pauses < 2
    assert revalidation.NEGATIVE_TTL <= 10
    assert revalidation.POSTPONEMENT <= 5


# The breaker


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("cold", COLD)
async def test_after_refused_connections_the_next_request_tries_none(
    upstream: FakeRegistry, proxy: Proxy, tries: list[str], cold: str
) -> None:
    await upstream.go_down()
    assert problem(await proxy.get(cold.format(1))) == (502, "UNAVAILABLE")
    assert 1 <= len(tries) <= exchange.TRIES + 1  # the last one asks whether upstream is there at all
    tries.clear()
    for number in range(2, 12):
        for path in COLD:
            got = await proxy.get(path.format(number))
            assert problem(got) == (503, "UNAVAILABLE")
            assert 1 <= int(got.header("Retry-After") or "0") <= 8
    assert tries == []


@pytest.mark.usefixtures("clock")
async def test_after_a_black_hole_the_next_request_connects_to_nothing(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.on().hang()
    with hurried(monkeypatch):
        assert problem(await proxy.get(TAG)) == (504, "UNAVAILABLE")
    before = upstream.connections
    for number in range(10):
        for path in COLD:
            assert problem(await proxy.get(path.format(number))) == (503, "UNAVAILABLE")
    assert upstream.connections == before


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("down", ["refused", "hanging"])
async def test_what_is_cached_is_served_through_an_outage_without_waiting(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch, tries: list[str], down: str
) -> None:
    image = upstream.add_image(REPO, "v1")
    others = [upstream.add_image(REPO, f"t{number}", [b"%d" % number]) for number in range(5)]
    async with running(toml(upstream.url, more=NEVER_FRESH), store) as proxy:
        for one in (image, *others):
            await proxy.get(f"/v2/{REPO}/manifests/{one.tag}")
        if down == "refused":
            await upstream.go_down()
        else:
            upstream.on().hang()
        with hurried(monkeypatch):
            assert (await proxy.get(TAG)).header("Warning") is not None
        tries.clear()
        for one in (image, *others):
            got = await proxy.get(f"/v2/{REPO}/manifests/{one.tag}")
            assert (got.body, got.header("Warning") is None) == (one.body, False)
            assert (await proxy.get(f"/v2/{REPO}/manifests/{one.digest}")).body == one.body
        assert tries == []


async def test_an_upstream_that_is_back_is_asked_again(
    upstream: FakeRegistry, proxy: Proxy, clock: Clock, tries: list[str]
) -> None:
    image = upstream.add_image(REPO, "v1")
    await upstream.go_down()
    await proxy.get(TAG)
    upstream.come_back()
    assert (await proxy.get(TAG)).status == 503
    clock.now += 9
    tries.clear()
    assert (await proxy.get(TAG)).body == image.body
    assert len(tries) == 2  # whether it is there, and then the manifest
    assert (await proxy.get(f"/v2/{REPO}/blobs/{image.config_digest}")).status == 200


async def test_at_the_end_of_a_pause_one_look_is_taken_for_all_who_wait(
    upstream: FakeRegistry, proxy: Proxy, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = upstream.on().hang()
    with hurried(monkeypatch):
        await proxy.get(TAG)
    clock.now += 9
    before = upstream.count()
    monkeypatch.setattr(outage, "PROBE_BUDGET", 0.2)
    answers = await asyncio.gather(*(proxy.get(f"/v2/{REPO}/manifests/t{number}") for number in range(20)))
    assert {answer.status for answer in answers} == {503}
    assert [request.path for request in upstream.requests[before:]] == ["/v2/"]
    gate.open()


@pytest.mark.usefixtures("clock")
async def test_many_victims_of_one_outage_make_no_longer_pause_than_one(upstream: FakeRegistry, proxy: Proxy) -> None:
    await upstream.go_down()
    await asyncio.gather(*(proxy.get(f"/v2/{REPO}/manifests/t{number}") for number in range(20)))
    assert proxy_breaker(proxy)._pause == 1.0


def proxy_breaker(proxy: Proxy) -> retry.Breaker:
    """The breaker of the only upstream."""
    (one,) = proxy.app.handlers._manifests._upstreams.values()
    return one._exchange._outage._breaker


@pytest.mark.parametrize("status", [404, 401, 500, 503])
async def test_an_upstream_that_answers_is_not_down_whatever_it_answers(
    upstream: FakeRegistry, proxy: Proxy, status: int
) -> None:
    image = upstream.add_image(REPO, "v1")
    upstream.on("GET", manifest="bad").status(status)
    await proxy.get(f"/v2/{REPO}/manifests/bad")
    assert (await proxy.get(TAG)).body == image.body


async def test_an_outage_of_one_upstream_touches_no_other(
    upstream: FakeRegistry, store: Path, tries: list[str]
) -> None:
    async with FakeRegistry() as other:
        image = other.add_image(REPO, "v1")
        more = f'[[upstream]]\nregistry = "other.example"\nurl = "{other.url}"'
        async with running(toml(upstream.url, more=more), store) as proxy:
            await upstream.go_down()
            for number in range(3):
                assert (await proxy.get(f"/v2/{REPO}/manifests/t{number}")).status in {502, 503}
            assert (await proxy.get(f"{TAG}?ns=other.example")).body == image.body
            for digest in image.blob_digests:
                assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}?ns=other.example")).status == 200
            assert (await proxy.get("/readyz")).status == 200
        assert [url for url in tries if other.url in url] != []


async def test_storage_that_is_down_does_not_make_the_registry_down(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1")
    more = 'private_networks = ["127.0.0.0/8"]'
    async with Storage() as storage, running(toml(upstream.url, more=more), store) as proxy:
        upstream.redirect_blobs_to(storage)
        await storage.go_down()
        assert problem(await proxy.get(f"/v2/{REPO}/blobs/{image.config_digest}")) == (502, "UNAVAILABLE")
        assert (await proxy.get(TAG)).body == image.body


async def test_storage_that_hangs_does_not_make_the_registry_down(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = upstream.add_image(REPO, "v1")
    more = 'private_networks = ["127.0.0.0/8"]'
    async with Storage() as storage, running(toml(upstream.url, more=more), store) as proxy:
        upstream.redirect_blobs_to(storage)
        storage.on().hang()
        with monkeypatch.context() as scaled:
            scaled.setattr(exchange, "BUDGET", 0.3)
            assert problem(await proxy.get(f"/v2/{REPO}/blobs/{image.config_digest}")) == (504, "UNAVAILABLE")
        assert (await proxy.get(TAG)).body == image.body


# Trouble that passes, and limits


async def test_one_failure_in_passing_is_tried_over(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1")
    for failure in ("reset", "no answer", "503"):
        rule = upstream.on("GET", where=lambda request: "/token" not in request.path, times=1)
        if failure == "503":
            rule.status(503)
        else:
            {"reset": rule.reset, "no answer": rule.close_without_answer}[failure]()
        target = {"reset": "manifests/v1", "no answer": f"blobs/{image.config_digest}", "503": "tags/list"}[failure]
        assert (await proxy.get(f"/v2/{REPO}/{target}")).status == 200, failure


@pytest.mark.parametrize(
    ("header", "passed"),
    [("120", "120"), ("1000000000", "3600"), ("Wed, 21 Oct 2015 07:28:00 GMT", "1"), ("0", "1")],
)  # fmt: skip
async def test_a_rate_limit_is_passed_on_with_the_time_to_wait(
    upstream: FakeRegistry, proxy: Proxy, header: str | None, passed: str | None
) -> None:
    upstream.on().status(429, [] if header is None else [("Retry-After", header)])
    for target in (TAG, f"/v2/{REPO}/blobs/sha256:{HEX}", f"/v2/{REPO}/tags/list"):
        got = await proxy.get(target)
        assert (problem(got), got.header("Retry-After")) == ((429, "TOOMANYREQUESTS"), passed)
    assert upstream.count() == 1


@pytest.mark.parametrize("header", ["-5", "soon", "\x01", None])
async def test_a_rate_limit_without_a_time_is_passed_on_with_one_of_ours(
    upstream: FakeRegistry, proxy: Proxy, header: str | None
) -> None:
    upstream.on().status(429, [] if header is None else [("Retry-After", header)])
    for target in (TAG, f"/v2/{REPO}/tags/list", f"/v2/{REPO}/blobs/sha256:{HEX}"):
        got = await proxy.get(target)
        assert problem(got) == (429, "TOOMANYREQUESTS")
        assert 1 <= int(got.header("Retry-After") or 0) <= 60
    assert upstream.count() == 2  # blobs are not counted with pulls: they are refused once one was


async def test_a_rate_limit_is_not_tried_over(upstream: FakeRegistry, proxy: Proxy) -> None:
    upstream.on().status(429)
    await proxy.get(TAG)
    assert upstream.count() == 1


@pytest.mark.usefixtures("clock")
async def test_the_budget_is_for_all_hops_together(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.require_bearer()
    steps = upstream.on(unauthorized=True).slow_headers(bytes_per_step=5, every=0.01)
    with hurried(monkeypatch):
        got = await proxy.get(TAG)
    assert problem(got) == (504, "UNAVAILABLE")
    steps.open()
