"""A request that comes again, byte for byte, gets the same answer without being parsed, and never another one."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from proxy import encore, repeats

from .harness import DEADLINE, Proxy, running, toml, until
from .raw_client import RawAnswer, RawClient, connect
from .test_manifests import Clock
from .upstream import FakeRegistry

REPO = "library/app"
TAG = f"/v2/{REPO}/manifests/v1"


async def thrice(client: RawClient, method: str, target: str, headers: dict[str, str] | None = None) -> list[RawAnswer]:
    """One request three times: fetched, or from the cache; from the cache; again."""
    return [await client.ask(method, target, headers) for _ in range(3)]


def connection(proxy: Proxy) -> repeats.Connection:
    """The server's end of the only connection."""
    (one,) = proxy.listener.server.connections
    assert isinstance(one, repeats.Connection)
    return one


def told(answer: RawAnswer) -> tuple[int, list[tuple[str, str]], bytes]:
    """All of an answer but its date."""
    return answer.status, [pair for pair in answer.headers if pair[0] != "Date"], answer.body


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("by_tag", [True, False])
async def test_the_third_of_the_same_requests_is_answered_without_being_parsed(
    upstream: FakeRegistry, proxy: Proxy, parsed: list[str], method: str, by_tag: bool
) -> None:
    image = upstream.add_image(REPO, "v1")
    target = TAG if by_tag else f"/v2/{REPO}/manifests/{image.digest}"
    async with connect(proxy.host) as client:
        await client.ask("GET", target)
        parsed.clear()
        first, second, third = await thrice(client, method, target)
    assert parsed == [target, target]
    assert told(first) == told(second) == told(third)
    assert third.body == (image.body if method == "GET" else b"")
    assert third.header("Date") is not None
    assert upstream.count() == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"User-Agent": 'a "client" \\ {with} %s marks'},
        {"If-None-Match": "<etag>"},
        {"Accept": "application/vnd.oci.image.manifest.v1+json, */*"},
        {"Authorization": "Bearer token-of-mine"},
    ],
)
async def test_an_answer_again_is_counted_and_logged_as_the_one_before(
    upstream: FakeRegistry, proxy: Proxy, parsed: list[str], headers: dict[str, str]
) -> None:
    image = upstream.add_image(REPO, "v1")
    headers = {name: value.replace("<etag>", f'"{image.digest}"') for name, value in headers.items()}
    async with connect(proxy.host) as client:
        await client.ask("GET", TAG)
        parsed.clear()
        first, second, third = await thrice(client, "GET", TAG, headers)
        await until(lambda: len(proxy.requests) == 4)
    assert (len(parsed), told(first), told(second)) == (2, told(third), told(third))
    before, again = ({**record, "timestamp": "", "seconds": 0} for record in proxy.requests[-2:])
    assert before == again
    assert proxy.requests[-1]["timestamp"] >= proxy.requests[-2]["timestamp"]
    sample = proxy.metrics.registry.get_sample_value
    labels = {"kind": "manifest", "upstream": "docker.io", "status": str(third.status), "outcome": "hit"}
    assert sample("entrepot_requests_total", labels) == 3
    assert sample("entrepot_request_seconds_count", {"kind": "manifest"}) == 4
    assert sample("entrepot_client_bytes_total", {"upstream": "docker.io"}) == len(image.body) + 3 * len(third.body)
    assert "token-of-mine" not in proxy.log_stream.getvalue()


async def test_another_client_that_asks_in_the_same_words_has_a_line_of_its_own(
    upstream: FakeRegistry, proxy: Proxy, parsed: list[str]
) -> None:
    upstream.add_image(REPO, "v1")
    async with connect(proxy.host) as client:
        await thrice(client, "GET", TAG)
    async with connect(proxy.host) as client:
        assert (await client.ask("GET", TAG)).status == 200
        await until(lambda: len(proxy.requests) == 4)
    assert len(parsed) == 2 + 1  # the first was a fill, and is not offered


async def test_many_who_ask_at_once_are_each_answered_counted_and_logged(
    upstream: FakeRegistry, proxy: Proxy, parsed: list[str]
) -> None:
    image, many = upstream.add_image(REPO, "v1"), 16
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(proxy.host)) for _ in range(many)]
        await thrice(clients[0], "GET", TAG)
        parsed.clear()
        answers = await asyncio.gather(*(client.ask("GET", TAG) for client in clients))
        await until(lambda: len(proxy.requests) == 3 + many)
    assert parsed == []
    assert [answer.body for answer in answers] == [image.body] * many
    assert proxy.metrics.registry.get_sample_value("entrepot_request_seconds_count", {"kind": "manifest"}) == 3 + many


async def test_a_tag_is_answered_again_only_while_it_is_fresh(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch, parsed: list[str]
) -> None:
    upstream.add_image(REPO, "v1", [b"old"])
    async with running(toml(upstream.url, more='tag_ttl = "100s"'), store) as proxy, connect(proxy.host) as client:
        clock = Clock(monkeypatch)
        for _ in range(2):
            await thrice(client, "GET", TAG)
        assert len(parsed) == 3
        new = upstream.add_image(REPO, "v1", [b"new"])
        clock.now += 89
        assert (await client.ask("GET", TAG)).body != new.body
        clock.now += 12
        assert (await client.ask("GET", TAG)).body == new.body
        assert len(parsed) == 4
        for answer in await thrice(client, "GET", TAG):
            assert answer.body == new.body


async def test_what_an_operator_has_taken_out_is_not_answered_again(
    upstream: FakeRegistry, proxy: Proxy, parsed: list[str]
) -> None:
    image = upstream.add_image(REPO, "v1")
    by_digest = f"/v2/{REPO}/manifests/{image.digest}"
    async with connect(proxy.host) as client:
        await thrice(client, "GET", TAG)
        await thrice(client, "GET", by_digest)
        proxy.app.manifests.forget()
        parsed.clear()
        assert (await client.ask("GET", by_digest)).status == 200
        assert parsed == [by_digest]


async def test_while_somebody_records_every_request_is_noted(
    upstream: FakeRegistry, proxy: Proxy, parsed: list[str]
) -> None:
    upstream.add_image(REPO, "v1")
    async with connect(proxy.host) as client:
        await thrice(client, "GET", TAG)
        await client.ask("GET", TAG)
        parsed.clear()
        proxy.app.recorder.is_on = True
        await thrice(client, "GET", TAG)
    assert len(parsed) == 3


@pytest.mark.parametrize(
    "headers", [{"Cache-Control": "no-cache"}, {"Entrepot-As-Of": "2030-01-01"}, {"Content-Length": "0"}]
)
async def test_what_takes_more_than_memory_is_asked_each_time(
    upstream: FakeRegistry, proxy: Proxy, parsed: list[str], headers: dict[str, str]
) -> None:
    upstream.add_image(REPO, "v1")
    async with connect(proxy.host) as client:
        await client.ask("GET", TAG)
        parsed.clear()
        for _ in range(2):
            await thrice(client, "GET", TAG, headers)
    assert len(parsed) == 6


@pytest.mark.parametrize("words", ["HTTP/1.1\r\nConnection: close", "HTTP/1.0"])
async def test_a_connection_that_ends_with_its_answer_ends_each_time(
    upstream: FakeRegistry, proxy: Proxy, parsed: list[str], words: str
) -> None:
    image = upstream.add_image(REPO, "v1")
    await proxy.get(TAG)
    for _ in range(3):
        async with connect(proxy.host) as client, asyncio.timeout(DEADLINE):
            client.writer.write(f"GET {TAG} {words}\r\nHost: fake\r\n\r\n".encode())
            assert (await client.reader.read(-1)).endswith(image.body)
    assert len(parsed) == 4


async def test_a_manifest_too_large_to_be_sent_without_waiting_is_sent_the_ordinary_way(
    upstream: FakeRegistry, proxy: Proxy, parsed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.handlers.LARGEST", 10)
    upstream.add_image(REPO, "v1")
    async with connect(proxy.host) as client:
        for _ in range(2):
            await thrice(client, "GET", TAG)
    assert (len(parsed), encore.LARGEST) == (6, 64 * 1024)


async def test_with_an_aiohttp_that_is_made_otherwise_every_request_goes_the_ordinary_way(
    upstream: FakeRegistry, proxy: Proxy, parsed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "INTERNALS", ("_something_else",))
    image = upstream.add_image(REPO, "v1")
    async with connect(proxy.host) as client:
        for _ in range(2):
            assert {answer.body for answer in await thrice(client, "GET", TAG)} == {image.body}
    assert len(parsed) == 6


async def test_a_manifest_that_is_kept_for_its_headers_alone_counts_for_all_that_it_takes(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    image = upstream.add_image(REPO, "v1", annotations={"filler": "x" * 50_000})
    async with connect(proxy.host) as client:
        await client.ask("GET", TAG)
        await thrice(client, "HEAD", TAG)
        assert connection(proxy)._repeats._known.currsize > len(image.body)


class TestAPlainConnection:
    """Only where bytes are sure to be the beginning of a request may they be taken for one."""

    async def known(self, proxy: Proxy, client: RawClient) -> tuple[bytes, repeats.Connection]:
        """The bytes of a request that is answered again, and the server's end of the connection."""
        for _ in range(3):
            await client.ask("GET", TAG)
        return f"GET {TAG} HTTP/1.1\r\nHost: fake\r\n\r\n".encode(), connection(proxy)

    async def test_the_body_of_a_request_is_not_a_request(
        self, upstream: FakeRegistry, proxy: Proxy, parsed: list[str]
    ) -> None:
        upstream.add_image(REPO, "v1")
        async with connect(proxy.host) as client:
            head, _ = await self.known(proxy, client)
            parsed.clear()
            await client.send("POST", "/v2/x/blobs/uploads/", {"Content-Length": str(len(head))})
            await until(lambda: len(parsed) == 1)
            client.writer.write(head)
            assert (await client.answer()).status == 405
            assert (await client.ask("GET", "/v2/")).body == b"{}"  # the next answer is that of the next request
        assert parsed == ["/v2/x/blobs/uploads/", "/v2/"]

    async def test_the_rest_of_a_head_is_not_a_request(
        self, upstream: FakeRegistry, proxy: Proxy, parsed: list[str]
    ) -> None:
        upstream.add_image(REPO, "v1")
        async with connect(proxy.host) as client:
            head, server = await self.known(proxy, client)
            parsed.clear()
            client.writer.write(b"GET /v2/ HTTP/1.1\r\nX-Smuggled: ")
            await until(lambda: not server._is_plain)
            client.writer.write(head)
            assert (await client.answer()).body == b"{}"
        assert parsed == ["/v2/"]

    async def test_requests_that_are_sent_before_the_answer_are_answered_in_their_order(
        self, upstream: FakeRegistry, proxy: Proxy, parsed: list[str]
    ) -> None:
        image = upstream.add_image(REPO, "v1")
        async with connect(proxy.host) as client:
            head, server = await self.known(proxy, client)
            other = upstream.add_image(REPO, "v2", [b"another"])
            gate = upstream.on("GET", manifest="v2").hang()
            await client.send("GET", f"/v2/{REPO}/manifests/v2")
            await gate.reached.wait()
            client.writer.write(head)
            await until(lambda: not server._is_plain)
            gate.open()
            assert [(await client.answer()).body for _ in range(2)] == [other.body, image.body]
            client.writer.write(head + head)
            assert [(await client.answer()).body for _ in range(2)] == [image.body, image.body]

    async def test_a_client_that_does_not_read_is_waited_for(
        self, upstream: FakeRegistry, proxy: Proxy, parsed: list[str]
    ) -> None:
        image = upstream.add_image(REPO, "v1", annotations={"filler": "x" * 50_000})
        async with connect(proxy.host) as client:
            head, server = await self.known(proxy, client)
            for _ in range(200):
                client.writer.write(head)
                await asyncio.sleep(0)
            await until(lambda: server.writing_paused)
            assert server.transport is not None
            assert server.transport.get_write_buffer_size() < 200_000
            assert {(await client.answer()).body for _ in range(200)} == {image.body}

    async def test_an_answer_again_keeps_a_connection_from_being_idle(
        self, upstream: FakeRegistry, proxy: Proxy, parsed: list[str]
    ) -> None:
        upstream.add_image(REPO, "v1")
        async with connect(proxy.host) as client:
            _, server = await self.known(proxy, client)
            server._next_keepalive_close_time = 0.0
            assert (await client.ask("GET", TAG)).status == 200
            assert server._next_keepalive_close_time > 0
            assert len(parsed) == 3

    async def test_a_server_that_ends_answers_no_more(
        self, upstream: FakeRegistry, proxy: Proxy, parsed: list[str]
    ) -> None:
        upstream.add_image(REPO, "v1")
        async with connect(proxy.host) as client:
            head, server = await self.known(proxy, client)
            server.close()
            assert not server._answer_again(head)


def test_what_is_remembered_is_bounded_and_only_what_came_twice() -> None:
    class Fixed:
        size = 60_000

        def __call__(self, client: str) -> bytes:
            return b""

    known = repeats.Repeats()
    for number in range(2000):
        known.offer(b"%d" % number, Fixed)
        assert known.find(b"%d" % number) is None
        known.offer(b"%d" % number, Fixed)
        assert known.find(b"%d" % number) is not None
    found = sum(known.find(b"%d" % number) is not None for number in range(2000))
    assert found == repeats.MEMORY // (Fixed.size + repeats.OVERHEAD)
