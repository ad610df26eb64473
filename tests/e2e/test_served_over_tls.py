"""Blobs over TLS, which threads encrypt: cold and warm, in parts, beside clients that take nothing, and broken off."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trustme

from .harness import Proxy, running, toml, until
from .networks import server_tls
from .raw_client import RawAnswer, RawClient, connect
from .upstream import FakeRegistry

REPO = "library/app"
DATA = bytes(range(256)) * 32_768  # 8 MiB


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Whom the clients trust."""
    return trustme.CA()


@pytest.fixture
def trust(authority: trustme.CA) -> ssl.SSLContext:
    """A client's TLS."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
async def secured(upstream: FakeRegistry, store: Path, authority: trustme.CA) -> AsyncIterator[Proxy]:
    """A proxy that speaks TLS."""
    async with running(toml(upstream.url), store, tls=server_tls(authority, "127.0.0.1")) as proxy:
        yield proxy


def path(digest: str) -> str:
    """Where a blob is."""
    return f"/v2/{REPO}/blobs/{digest}"


async def test_a_blob_that_comes_goes_to_all_who_ask_and_their_connections_go_on(
    upstream: FakeRegistry, secured: Proxy, trust: ssl.SSLContext
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).gate(after=len(DATA) // 2)

    async def pull(client: RawClient) -> RawAnswer:
        return await client.ask("GET", path(digest))

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(secured.host, trust)) for _ in range(4)]
        cold = [asyncio.create_task(pull(client)) for client in clients]
        await gate.reached.wait()
        gate.open()
        first = [await one for one in cold]
        for answer in first + [await pull(client) for client in clients]:
            assert (answer.status, answer.ended, answer.body == DATA) == (200, "complete", True)
    assert upstream.count() == 1


async def test_parts_of_a_blob_are_those_bytes(upstream: FakeRegistry, secured: Proxy, trust: ssl.SSLContext) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with connect(secured.host, trust) as client:
        await client.ask("GET", path(digest))
        for first, last in ((0, 0), (1, 300_000), (5, len(DATA) - 2), (len(DATA) - 400_000, len(DATA) - 1)):
            answer = await client.ask("GET", path(digest), {"Range": f"bytes={first}-{last}"})
            assert (answer.status, answer.body == DATA[first : last + 1]) == (206, True)


async def test_a_client_that_takes_nothing_slows_nobody_and_is_let_go(
    upstream: FakeRegistry, store: Path, authority: trustme.CA, trust: ssl.SSLContext
) -> None:
    digest = upstream.add_blob(REPO, DATA * 2)
    text = toml(upstream.url, server='client_stall_timeout = "2s"')
    async with (
        running(text, store, tls=server_tls(authority, "127.0.0.1")) as secured,
        connect(secured.host, trust) as idle,
        connect(secured.host, trust) as other,
    ):
        await idle.send("GET", path(digest))
        assert (await other.ask("GET", path(digest))).body == DATA * 2
        await until(lambda: len(secured.requests) == 2)
        assert (await idle.answer()).ended != "complete"
    assert sorted(request["bytes"] == len(DATA) * 2 for request in secured.requests) == [False, True]


async def test_a_body_that_upstream_breaks_off_ends_short_for_good_and_the_next_one_is_whole(
    upstream: FakeRegistry, secured: Proxy, trust: ssl.SSLContext
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    upstream.on("GET", blob=digest, times=1).wrong_bytes()
    async with connect(secured.host, trust) as client:
        answer = await client.ask("GET", path(digest))
        assert (answer.status, answer.ended, len(answer.body) < len(DATA)) == (200, "short", True)
    async with connect(secured.host, trust) as client:
        answer = await client.ask("GET", path(digest))
        assert (answer.ended, answer.body == DATA) == ("complete", True)


async def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(
    upstream: FakeRegistry, secured: Proxy, trust: ssl.SSLContext
) -> None:
    digest = upstream.add_blob(REPO, DATA)
    async with connect(secured.host, trust) as client:
        await client.ask("GET", path(digest))
    for taken in (0, 1, 100_000, 5_000_000):
        async with connect(secured.host, trust) as client:
            await client.send("GET", path(digest))
            await client.head()
            await client.reader.readexactly(taken)
    await secured.settled()
    assert [request["status"] for request in secured.requests] == [200] * 5


async def test_what_was_asked_before_is_answered_again_over_tls(
    upstream: FakeRegistry, secured: Proxy, trust: ssl.SSLContext
) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    async with connect(secured.host, trust) as client:
        for _ in range(5):
            answer = await client.ask("GET", f"/v2/{REPO}/manifests/v1", {"Accept": "*/*"})
            assert (answer.status, answer.body) == (200, image.body)
    await until(lambda: len(secured.requests) == 5)
