"""What upstream allows: read, kept to, shared out between accounts, and told to whoever asks."""

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from proxy.oci.ratelimit import DAY, State

from .harness import DEADLINE, Proxy, running, serving, toml
from .raw_client import RawAnswer
from .test_manifests import Clock
from .upstream import FakeRegistry

REPO = "library/app"
ALWAYS_ASK = 'tag_ttl = "0s"'
USERS = {"ann": "one", "bob": "two"}
ACCOUNTS = """
[[upstream.account]]
username = "ann"
password_file = "{0}/ann"
[[upstream.account]]
username = "bob"
password_file = "{0}/bob"
"""


def tag(name: str) -> str:
    """The path of a tag."""
    return f"/v2/{REPO}/manifests/{name}"


def allow(upstream: FakeRegistry, limit: int, remaining: int, **only: Any) -> None:
    """Have every answer say how much is left, as Docker Hub does."""
    headers = (("ratelimit-limit", f"{limit};w=21600"), ("ratelimit-remaining", f"{remaining};w=21600"))
    upstream.on(**only).extra_headers(*headers, ("docker-ratelimit-source", "192.0.2.1"))


def code(answer: RawAnswer) -> tuple[int, str]:
    """The status and the code of an error."""
    return answer.status, str(json.loads(answer.body)["errors"][0]["code"])


def logged(proxy: Proxy, event: str) -> list[dict[str, Any]]:
    """The records of an event."""
    return [record for record in proxy.log if record["event"] == event]


def accounts(tmp_path: Path) -> str:
    """Two accounts, by their password files."""
    for name, password in USERS.items():
        (tmp_path / name).write_text(password)
    return ACCOUNTS.format(tmp_path)


@pytest.mark.parametrize("header", ["120", "Fri, 31 Dec 2999 23:59:59 GMT", "4102444800", "1000000000"])
async def test_500_clients_on_cached_tags_cost_one_request_while_upstream_limits_our_rate(
    upstream: FakeRegistry, store: Path, header: str
) -> None:
    names = [f"v{number}" for number in range(25)]
    images = {name: upstream.add_image(REPO, name, [name.encode()]) for name in names}
    async with running(toml(upstream.url, more=ALWAYS_ASK), store) as proxy:
        for name in names:
            assert (await proxy.get(tag(name))).status == 200
        before = upstream.count()
        upstream.on().status(429, [("Retry-After", header)])
        got = await asyncio.gather(*(proxy.get(tag(names[number % 25])) for number in range(500)))
        assert {answer.status for answer in got} == {200}
        assert all(answer.body == images[names[number % 25]].body for number, answer in enumerate(got))
        assert all("limits our rate" in (answer.header("Warning") or "") for answer in got)
        assert upstream.count() - before == 1
        cold = await asyncio.gather(*(proxy.get(tag(f"cold{number}")) for number in range(10)))
        assert {code(answer) for answer in cold} == {(429, "TOOMANYREQUESTS")}
        assert all(int(answer.header("Retry-After") or 0) > 60 for answer in cold)
        assert upstream.count() - before == 1
        assert len(logged(proxy, "rate limited")) == 1


async def test_a_pause_outlives_a_restart(upstream: FakeRegistry, store: Path) -> None:
    async with running(toml(upstream.url), store) as proxy:
        upstream.on(times=1).status(429, [("Retry-After", "300")])
        assert (await proxy.get(tag("v1"))).status == 429
    upstream.add_image(REPO, "v1")
    async with running(toml(upstream.url), store) as proxy:
        assert (await proxy.get(tag("v1"))).status == 429
    assert upstream.count() == 1


async def test_a_pause_is_another_workers_too(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.accounts.LOOK", 0.0)
    async with running(toml(upstream.url), store) as one, running(toml(upstream.url), store, alone=False) as other:
        upstream.on(times=1).status(429, [("Retry-After", "300")])
        assert (await one.get(tag("v1"))).status == 429
        await asyncio.gather(*one.app.housekeeping.upstreams[0]._accounts._writing)
        assert (await other.get(tag("v1"))).status == 429
    assert upstream.count() == 1


async def test_a_pull_goes_on_where_only_pulls_are_counted(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    assert (await proxy.get(tag("v1"))).status == 200
    upstream.on("GET", path_contains="/manifests/").status(429)
    assert (await proxy.get(tag("v2"))).status == 429
    for digest in image.blob_digests:
        assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).status == 200


async def test_as_little_is_left_tags_are_believed_for_longer_and_it_is_said(
    upstream: FakeRegistry, store: Path
) -> None:
    image = upstream.add_image(REPO, "v1")
    allow(upstream, 100, 20)
    async with running(toml(upstream.url, more='tag_ttl = "50ms"\nlongest_tag_ttl = "1h"'), store) as proxy:
        assert (await proxy.get(tag("v1"))).header("Warning") is None
        before = upstream.count()
        deadline = time.monotonic() + DEADLINE
        while (got := await proxy.get(tag("v1"))).header("Warning") is None:
            assert time.monotonic() < deadline
        assert got.body == image.body
        assert "allows little more" in (got.header("Warning") or "")
        assert upstream.count() == before


async def test_where_little_is_left_no_tag_is_asked_about_ahead(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.add_image(REPO, "v1")
    allow(upstream, 100, 20)
    async with running(toml(upstream.url, more='tag_ttl = "100s"'), store) as proxy:
        clock, ahead = Clock(monkeypatch), list[object]()
        await proxy.get(tag("v1"))
        monkeypatch.setattr(proxy.app.manifests, "_refresh", lambda *what: ahead.append(what))
        clock.now += 95
        assert (await proxy.get(tag("v1"))).status == 200
    assert ahead == []


async def test_what_is_left_is_kept_for_what_is_not_cached(upstream: FakeRegistry, store: Path) -> None:
    old = upstream.add_image(REPO, "v1", [b"old"])
    async with running(toml(upstream.url, more='tag_ttl = "0s"\nlongest_tag_ttl = "0s"'), store) as proxy:
        allow(upstream, 100, 5)
        assert (await proxy.get(tag("v1"))).status == 200
        new = upstream.add_image(REPO, "v1", [b"new"])
        got = await proxy.get(tag("v1"))
        assert got.body == old.body
        assert "limits our rate" in (got.header("Warning") or "")
        assert upstream.count("GET", path_contains=new.digest) == 0
        other = upstream.add_image(REPO, "v2", [b"cold"])
        assert (await proxy.get(tag("v2"))).body == other.body
        (low,) = logged(proxy, "rate budget low")
        assert (low["remaining"], low["limit"], low["source"]) == (5, 100, "192.0.2.1")


async def test_an_account_that_is_refused_gives_way_to_the_next(
    upstream: FakeRegistry, store: Path, tmp_path: Path
) -> None:
    image = upstream.add_image(REPO, "v1")
    upstream.require_basic(USERS)
    async with running(toml(upstream.url, more=accounts(tmp_path)), store) as proxy:
        upstream.on(times=1).status(429, [("Retry-After", "300")])
        assert (await proxy.get(tag("v1"))).body == image.body
        assert [record["account"] for record in logged(proxy, "rate limited")] == ["ann"]
        (switched,) = logged(proxy, "account switched")
        assert (switched["was"], switched["account"]) == ("ann", "bob")
        for digest in image.blob_digests:
            assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).status == 200
    sent = {request.header("Authorization") for request in upstream.requests[2:]}
    assert len(sent - {None}) == 1


async def test_an_account_that_is_low_gives_way_before_it_is_refused(
    upstream: FakeRegistry, store: Path, tmp_path: Path
) -> None:
    upstream.require_basic(USERS)
    for name in ("v1", "v2"):
        upstream.add_image(REPO, name, [name.encode()])
    async with running(toml(upstream.url, more=accounts(tmp_path)), store) as proxy:
        allow(upstream, 100, 3)
        assert (await proxy.get(tag("v1"))).status == 200
        assert (await proxy.get(tag("v2"))).status == 200
        (switched,) = logged(proxy, "account switched")
        assert (switched["account"], switched["reason"]) == ("bob", "its budget is low")


async def test_an_account_for_some_repositories_is_used_for_no_other(
    upstream: FakeRegistry, store: Path, tmp_path: Path
) -> None:
    upstream.require_bearer(users=USERS, anonymous=True)
    for repository in ("acme/app", REPO):
        upstream.add_image(repository, "v1")
    named = accounts(tmp_path).replace('username = "ann"', 'username = "ann"\nrepositories = ["acme/*"]')
    async with running(toml(upstream.url, more=named), store) as proxy:
        for repository in ("acme/app", REPO):
            assert (await proxy.get(f"/v2/{repository}/manifests/v1")).status == 200
    users = [(request.scopes, request.user) for request in upstream.token_requests]
    assert users == [(("repository:acme/app:pull",), "ann"), ((f"repository:{REPO}:pull",), "bob")]


async def test_a_token_service_that_limits_our_rate_pauses_the_account(upstream: FakeRegistry, proxy: Proxy) -> None:
    upstream.require_bearer()
    upstream.add_image(REPO, "v1")
    upstream.on(path="/token").status(429, [("Retry-After", "90")])
    got = await proxy.get(tag("v1"))
    assert (got.status, got.header("Retry-After")) == (429, "90")
    before = upstream.count()
    assert (await proxy.get(tag("v2"))).status == 429
    assert upstream.count() == before


async def test_bad_credentials_stop_no_pull_of_what_is_cached_and_are_said_clearly(
    upstream: FakeRegistry, store: Path, tmp_path: Path
) -> None:
    image = upstream.add_image(REPO, "v1")
    upstream.require_bearer(users=USERS, anonymous=False)
    text = toml(upstream.url, more=ALWAYS_ASK + accounts(tmp_path))
    async with running(text, store) as proxy:
        assert (await proxy.get(tag("v1"))).status == 200
    (tmp_path / "ann").write_text("changed-and-wrong")
    upstream.revoke_all()
    async with running(text, store) as proxy:
        got = await proxy.get(tag("v1"))
        assert (got.status, got.body) == (200, image.body)
        assert "credentials_refused" in (got.header("Warning") or "")
        cold = await proxy.get(tag("v2"))
        assert code(cold) == (403, "DENIED")
        assert b"refuses the credentials of docker.io as ann" in cold.body
        assert "changed-and-wrong" not in proxy.log_stream.getvalue()


async def test_a_password_that_was_rotated_is_picked_up_without_a_restart(
    upstream: FakeRegistry, store: Path, tmp_path: Path
) -> None:
    (tmp_path / "ann").write_text("one")
    login = f'{ALWAYS_ASK}\nusername = "ann"\npassword_file = "{tmp_path}/ann"'
    image = upstream.add_image(REPO, "v1")
    upstream.require_bearer(users={"ann": "one"}, anonymous=False)
    async with running(toml(upstream.url, more=login), store) as proxy:
        assert (await proxy.get(tag("v1"))).status == 200
        upstream.require_bearer(users={"ann": "renewed"}, anonymous=False)
        upstream.revoke_all()
        (tmp_path / "ann").write_text("renewed")
        async with asyncio.timeout(20):
            while (got := await proxy.get(tag("v1"))).header("Warning") is not None:
                assert got.body == image.body
        assert got.status == 200


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_operator_sees_what_is_left_and_until_when_nobody_asks(
    upstream: FakeRegistry, store: Path, workers: int
) -> None:
    upstream.add_image(REPO, "v1")
    allow(upstream, 100, 42, manifest="v1")
    upstream.on(manifest="v2").status(429, [("Retry-After", "600")])
    async with serving(toml(upstream.url, server=f"workers = {workers}"), store) as process:
        assert (await process.get(tag("v1"))).status == 200
        assert (await process.get(tag("v2"))).status == 429
        admin = next(line["admin"] for line in process.lines if line.get("admin"))
        async with aiohttp.ClientSession() as session, asyncio.timeout(20):
            known: dict[str, Any] = {}
            while not known.get("paused_until") or known.get("remaining") is None:
                async with session.get(f"http://{admin}/api/upstreams") as response:
                    known = next(iter((await response.json())["upstreams"]), {})
        assert (known["registry"], known["account"]) == ("docker.io", "anonymous")
        assert (known["limit"], known["remaining"], known["window"]) == (100, 42, 21600)
        assert known["source"] == "192.0.2.1"
        assert datetime.fromisoformat(known["paused_until"]) > datetime.now(UTC) + timedelta(seconds=500)


async def test_a_rate_limit_is_said_to_be_over_when_it_is(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1", [b"one", b"two"])
    upstream.on("GET", manifest="v2").status(429)
    assert (await proxy.get(tag("v1"))).status == 200
    assert (await proxy.get(tag("v2"))).status == 429
    for digest in image.blob_digests:  # what goes on all the same is no sign
        assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).status == 200
    assert logged(proxy, "rate limit over") == []


async def test_an_account_of_no_repository_at_all_makes_nothing_stale(
    upstream: FakeRegistry, store: Path, tmp_path: Path
) -> None:
    named = accounts(tmp_path).replace("[[upstream.account]]", '[[upstream.account]]\nrepositories = ["acme/*"]')
    async with running(toml(upstream.url, more=named), store) as proxy:
        got = await proxy.get(tag("v1"))
        assert code(got) == (403, "DENIED")
        assert b"no account of docker.io is for library/app" in got.body
    assert upstream.count() == 0


async def test_a_429_is_kept_to_after_the_clock_was_set_back(upstream: FakeRegistry, store: Path) -> None:
    """The clock was three days ahead when a pause was recorded, and has been set right since."""
    async with running(toml(upstream.url), store):
        pass
    state = State(paused_until=time.time() + 3 * DAY, metadata_paused_until=time.time() + 3 * DAY, refusals=1)
    async with running(toml(upstream.url), store) as proxy:
        accounts = proxy.app.housekeeping.upstreams[0]._accounts
        await accounts._limits.save("docker.io", accounts._accounts[0].label, state)
    async with running(toml(upstream.url), store) as proxy:
        upstream.on().status(429, [("Retry-After", "120")])
        got = await proxy.get(f"/v2/{REPO}/manifests/v1")
        assert upstream.count() == 1
        assert got.status == 429
