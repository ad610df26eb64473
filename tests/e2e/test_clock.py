"""The clock jumps by a day, under way and across a restart: nothing is denied, nothing believed for ever, no storm."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from proxy import revalidation
from proxy.jobs import Job

from .harness import DEADLINE, Proxy, running, toml
from .upstream import FakeRegistry, digest_of

REPO = "library/app"
DATA = bytes(range(256)) * 1200  # 300 KiB
DAY = 86400.0
HOURS = [24.0, -7.0, -24.0]  # that the clock jumps by


class Clock:
    """The wall clock; the monotonic one goes on as it does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real, self.ahead = time.time, 0.0
        monkeypatch.setattr(time, "time", lambda: real() + self.ahead)

    def jump(self, hours: float) -> None:
        """Set it, forward or back."""
        self.ahead += hours * 3600


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock, to set."""
    return Clock(monkeypatch)


@asynccontextmanager
async def jumping(
    text: str, store: Path, before: Callable[[Proxy], Awaitable[object]], jump: Callable[[], None], *, restarts: bool
) -> AsyncIterator[Proxy]:
    """A proxy that has done something before the clock jumped: this one, or the one before it."""
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(running(text, store))
        await before(proxy)
        await proxy.app.housekeeping._round(None)
        if restarts:
            await stack.aclose()
        jump()
        yield await stack.enter_async_context(running(text, store)) if restarts else proxy


async def pull(proxy: Proxy, digest: str) -> None:
    """GET a blob, which must be right."""
    got = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
    assert (got.status, got.ended, digest_of(got.body)) == (200, "complete", digest)
    await proxy.settled()


jumps = pytest.mark.parametrize("hours", HOURS)
restarting = pytest.mark.parametrize("restarts", [False, True], ids=["under way", "across a restart"])


@jumps
@restarting
async def test_a_tag_is_asked_for_once_and_then_believed_again(
    upstream: FakeRegistry, store: Path, clock: Clock, hours: float, restarts: bool
) -> None:
    old = upstream.add_image(REPO, "v1")

    async def before(proxy: Proxy) -> None:
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).body == old.body

    async with jumping(toml(upstream.url), store, before, lambda: clock.jump(hours), restarts=restarts) as proxy:
        new = upstream.add_image(REPO, "v1", [DATA])
        asked = upstream.count()
        answers = await asyncio.gather(*(proxy.get(f"/v2/{REPO}/manifests/v1") for _ in range(20)))
        assert {answer.body for answer in answers} == {new.body}
        assert upstream.count() - asked == 2  # a HEAD, and what is new
        for _ in range(3):
            assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).body == new.body
        assert upstream.count() - asked == 2
        clock.jump(-hours)  # and it is put right
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).body == new.body
        assert upstream.count() - asked == 3


@jumps
@restarting
async def test_what_is_cached_is_served_while_upstream_is_away(
    upstream: FakeRegistry, store: Path, clock: Clock, hours: float, restarts: bool
) -> None:
    image = upstream.add_image(REPO, "v1", [DATA])

    async def before(proxy: Proxy) -> None:
        await proxy.get(f"/v2/{REPO}/manifests/v1")
        await pull(proxy, image.layer_digests[0])

    async with jumping(toml(upstream.url), store, before, lambda: clock.jump(hours), restarts=restarts) as proxy:
        await upstream.go_down()
        got = await proxy.get(f"/v2/{REPO}/manifests/v1")
        assert (got.status, got.body) == (200, image.body)
        assert "-" not in (got.header("Warning") or "").split("said")[-1]  # no time below zero
        await pull(proxy, image.layer_digests[0])


@pytest.mark.parametrize("hours", [-7.0, -24.0])
@restarting
async def test_a_pause_of_a_minute_does_not_last_for_hours(
    upstream: FakeRegistry, store: Path, clock: Clock, hours: float, restarts: bool
) -> None:
    image = upstream.add_image(REPO, "v1")
    rule = upstream.on("GET", manifest="v1").status(429, [("Retry-After", "60")])

    async def before(proxy: Proxy) -> None:
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).status == 429

    async with jumping(toml(upstream.url), store, before, lambda: clock.jump(hours), restarts=restarts) as proxy:
        rule.stop()
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).body == image.body


@jumps
async def test_what_is_pinned_frozen_and_in_use_stays(
    upstream: FakeRegistry, store: Path, clock: Clock, hours: float
) -> None:
    pinned, frozen = upstream.add_image(REPO, "v1", [DATA]), upstream.add_image(REPO, "v2", [DATA[1:]])
    blobs = [upstream.add_blob(REPO, DATA[number:]) for number in range(2, 5)]

    async def before(proxy: Proxy) -> None:
        for tag, image in (("v1", pinned), ("v2", frozen)):
            assert (await proxy.get(f"/v2/{REPO}/manifests/{tag}")).body == image.body
            for digest in image.blob_digests:
                await pull(proxy, digest)
        await asyncio.to_thread(proxy.app.desk.pin, [f"{REPO}:v1"], 3 * DAY)
        await asyncio.to_thread(proxy.app.desk.freeze, [f"{REPO}:v2"], None)

    text = toml(upstream.url, store='max_size = "1 MB"')
    async with jumping(text, store, before, lambda: clock.jump(hours), restarts=False) as proxy:
        upstream.add_image(REPO, "v2", [b"something else"])
        for digest in blobs:
            await pull(proxy, digest)
            assert set(pinned.blob_digests) <= set(proxy.blobs())
        assert (await proxy.get(f"/v2/{REPO}/manifests/v2")).body == frozen.body


@jumps
async def test_a_download_that_is_going_on_is_none_that_nobody_came_back_for(
    upstream: FakeRegistry, proxy: Proxy, clock: Clock, hours: float
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).gate(after=100_000)
    pulling = asyncio.create_task(pull(proxy, digest))
    await gate.reached.wait()
    clock.jump(hours)
    await proxy.app.housekeeping._round(None)
    for job in proxy.app.jobs._jobs:
        await proxy.app.jobs.turn(job)
    gate.open()
    await pulling
    assert upstream.count("GET") == 1


@jumps
async def test_jobs_are_done_again_and_not_over_and_over(proxy: Proxy, clock: Clock, hours: float) -> None:
    done = 0

    async def work() -> None:
        nonlocal done
        done += 1

    job = Job("some work", 3600.0, work)
    await proxy.app.jobs.turn(job)
    clock.jump(hours)
    for _ in range(3):
        await proxy.app.jobs.turn(job)
    assert done == 2


@jumps
async def test_what_was_not_there_is_found_when_it_is_pushed(
    upstream: FakeRegistry, store: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    monkeypatch.setattr(revalidation, "NEGATIVE_TTL", 0.2)
    async with running(toml(upstream.url), store) as proxy:
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).status == 404
        image = upstream.add_image(REPO, "v1")
        clock.jump(hours)
        async with asyncio.timeout(DEADLINE):
            while (await proxy.get(f"/v2/{REPO}/manifests/v1")).body != image.body:
                assert upstream.count() < 5  # its 404 is remembered for a moment
