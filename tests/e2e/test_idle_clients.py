"""Clients that read nothing, storage and name servers that say nothing: whoever waits for them, others do not."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from proxy import app, exchange, revalidation

from .harness import Proxy, running, toml, until
from .raw_client import RawClient, connect
from .upstream import FakeRegistry

pytestmark = pytest.mark.slow  # it takes them seconds to have all that a socket takes

REPO = "library/app"
MIB = 1024 * 1024
EIGHT = "max_requests = 8\nconnections_per_blob = 1"  # two for questions, six for downloads, five for one repository
LOOPBACK = 'private_networks = ["127.0.0.0/8", "::1"]\n'


async def idle(stack: AsyncExitStack, proxy: Proxy, target: str, headers: dict[str, str] | None = None) -> RawClient:
    """A client that asks, and does not read."""
    client = await stack.enter_async_context(connect(proxy.host))
    await client.send("GET", target, headers)
    return client


async def test_clients_that_read_nothing_keep_no_downloads_from_others_where_nothing_can_be_kept(
    upstream: FakeRegistry, store: Path
) -> None:
    bodies = [bytes(24 * MIB) + str(number).encode() for number in range(5)]
    digests = [upstream.add_blob(REPO, body) for body in bodies]
    wanted = upstream.add_blob(REPO, b"wanted" * 100)
    text = toml(upstream.url, more=EIGHT, store='max_size = "1 MiB"')
    async with running(text, store) as proxy, AsyncExitStack() as stack:
        clients = [await idle(stack, proxy, f"/v2/{REPO}/blobs/{digest}") for digest in digests]
        await upstream.seen(5, method="GET", path_contains="/blobs/")
        got = await proxy.get(f"/v2/{REPO}/blobs/{wanted}")
        assert (got.status, got.body) == (200, b"wanted" * 100)
        # Whose turn went to others goes on from where it was.
        for client, body in zip(clients, bodies, strict=True):
            answer = await client.answer()
            assert (answer.status, answer.ended, answer.body == body) == (200, "complete", True)


async def test_clients_that_read_nothing_of_a_far_range_keep_no_downloads_from_others(
    upstream: FakeRegistry, store: Path
) -> None:
    body = bytes(64 * MIB)
    digest, wanted = upstream.add_blob(REPO, body), upstream.add_blob(REPO, b"wanted" * 100)
    gate = upstream.on("GET", blob=digest, times=1).gate(after=1000)
    async with running(toml(upstream.url, more=EIGHT), store) as proxy, AsyncExitStack() as stack:
        span = {"Range": f"bytes={20 * MIB}-{60 * MIB - 1}"}
        clients = [await idle(stack, proxy, f"/v2/{REPO}/blobs/{digest}", span) for _ in range(5)]
        await upstream.seen(5, method="GET", path_contains="/blobs/")
        got = await proxy.get(f"/v2/{REPO}/blobs/{wanted}")
        assert (got.status, got.body) == (200, b"wanted" * 100)
        gate.open()
        await until(lambda: digest in proxy.blobs(), "the fill is done")
        for client in clients:
            answer = await client.answer()
            assert (answer.status, answer.ended, len(answer.body)) == (206, "complete", 40 * MIB)


async def test_an_upstream_that_ignores_ranges_is_not_asked_for_the_whole_again_and_again(
    upstream: FakeRegistry, store: Path
) -> None:
    bodies = [bytes(24 * MIB) + str(number).encode() for number in range(5)]
    digests = [upstream.add_blob(REPO, body) for body in bodies]
    wanted = [upstream.add_blob(REPO, b"%d" % number) for number in range(3)]
    upstream.on("GET", path_contains="/blobs/").ignore_range()
    text = toml(upstream.url, more=EIGHT, store='max_size = "1 MiB"')
    async with running(text, store) as proxy, AsyncExitStack() as stack:
        clients = [await idle(stack, proxy, f"/v2/{REPO}/blobs/{digest}") for digest in digests]
        await upstream.seen(5, method="GET", path_contains="/blobs/")
        for digest in wanted:
            assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).status == 200
        for client, body in zip(clients, bodies, strict=True):
            assert (await client.answer()).body == body
    for digest in digests:  # by the fill, by the client, and once more by a client that had lost its turn
        assert upstream.count("GET", path_contains=digest) <= 3


async def test_questions_that_storage_does_not_answer_keep_no_manifest_waiting(
    upstream: FakeRegistry, store: Path
) -> None:
    images = [upstream.add_image(f"library/a{number}", "v1", [b"%d" % number]) for number in range(100)]
    more = f"{LOOPBACK}max_requests = 8"
    other = upstream.add_image("library/other", "v1", [b"other"])
    async with FakeRegistry() as storage, running(toml(upstream.url, more=more), store) as proxy:
        gate = storage.on().hang()
        upstream.on(path_contains="/blobs/").redirect(f"{storage.url}/x")
        targets = [f"/v2/{image.repo}/blobs/{image.layer_digests[0]}" for image in images]
        heads = [asyncio.create_task(proxy.head(target)) for target in targets]
        await gate.reached.wait()
        asked = asyncio.create_task(proxy.get(f"/v2/{other.repo}/manifests/v1"))
        answered, _ = await asyncio.wait({asked, *heads}, return_when=asyncio.FIRST_COMPLETED)
        assert answered == {asked}
        assert asked.result().body == other.body
        assert storage.count() <= 2, "no more at once than there are turns for"
        for head in heads:
            head.cancel()
        await asyncio.gather(*heads, return_exceptions=True)
        storage.forget_rules()
        gate.open()


async def test_a_token_service_that_is_silent_is_waited_for_once_and_not_at_every_pull_of_a_tag(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revalidation, "POSTPONEMENT", 0.0)  # what failed at once may be tried at once
    image = upstream.add_image(REPO, "v1", [b"layer"])
    upstream.require_bearer(expires_in=1)
    async with running(toml(upstream.url, more=f'{LOOPBACK}tag_ttl = "0s"'), store) as proxy:
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).status == 200
        monkeypatch.setattr(exchange, "STALE_BUDGET", 0.2)
        gate = upstream.on(path="/token", unauthorized=True).hang()
        await asyncio.sleep(1.1)  # the token's life
        for _ in range(5):
            got = await proxy.get(f"/v2/{REPO}/manifests/v1")
            assert (got.body, got.header("Warning") is None) == (image.body, False)
        assert len([line for line in proxy.log if line["event"] == "serving stale"]) == 1, "the others did not wait"
        gate.open()


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """A name server that does not answer for names below silent.example; how many look-ups wait for it."""
    over, waiting, known = threading.Event(), [0], socket.getaddrinfo

    def look_up(host: str, *args: Any, **kwargs: Any) -> Any:
        if host.endswith(".silent.example"):
            waiting[0] += 1
            over.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "silence")
        return known(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield lambda: waiting[0]
    over.set()


async def test_names_that_do_not_resolve_keep_no_other_upstream_waiting_nor_the_same_one(
    upstream: FakeRegistry, store: Path, silence: Callable[[], int]
) -> None:
    images = [upstream.add_image(REPO, f"v{number}", [b"%d" % number]) for number in range(2)]
    async with FakeRegistry() as fine:
        image = fine.add_image(REPO, "v1", [b"fine"])
        hosts = iter(range(100))
        upstream.on("GET", path_contains="/blobs/").redirect(lambda _: f"http://h{next(hosts)}.silent.example/x")
        text = toml(upstream.url.replace("127.0.0.1", "localhost")) + (
            f'\n[[upstream]]\nregistry = "fine.example"\nurl = "{fine.url.replace("127.0.0.1", "localhost")}"\n'
        )
        async with running(text, store) as proxy:
            blobs = [upstream.add_blob(REPO, b"blob %d" % number) for number in range(40)]
            stuck = [asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}")) for digest in blobs]
            await until(lambda: silence() >= 4, "look-ups wait")
            got = await asyncio.gather(
                proxy.get(f"/v2/fine.example/{REPO}/manifests/v1"),
                *(proxy.get(f"/v2/{REPO}/manifests/{one.tag}") for one in images),
            )
            assert [answer.body for answer in got] == [image.body, *(one.body for one in images)]
            assert not any(task.done() for task in stuck)
            for task in stuck:
                task.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)


async def test_clients_that_read_nothing_hold_no_thread_that_sends(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "SENDERS", 1)
    body = bytes(range(256)) * (48 * MIB // 256)
    digest = upstream.add_blob(REPO, body)
    async with running(toml(upstream.url), store) as proxy, AsyncExitStack() as stack:
        assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body == body
        clients = [await idle(stack, proxy, f"/v2/{REPO}/blobs/{digest}") for _ in range(8)]
        for client in clients:
            assert (await client.head())[0] == 200  # and nothing more for now
        assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body == body
        for client in clients:
            assert await client.reader.readexactly(len(body)) == body


async def test_several_requests_on_one_connection_are_each_sent_whole(upstream: FakeRegistry, store: Path) -> None:
    bodies = [bytes([number]) * (size + number) for number, size in enumerate((0, 1, 300_000, 128 * 1024, 5 * MIB))]
    digests = [upstream.add_blob(REPO, body) for body in bodies]
    async with running(toml(upstream.url), store) as proxy:
        for digest in digests:
            await proxy.get(f"/v2/{REPO}/blobs/{digest}")
        async with connect(proxy.host) as client:
            for digest in digests * 2:  # all of them before the first answer is read
                await client.send("GET", f"/v2/{REPO}/blobs/{digest}")
            for body in bodies * 2:
                assert (await client.answer()).body == body
        assert not [record for record in proxy.requests if "error" in record]
