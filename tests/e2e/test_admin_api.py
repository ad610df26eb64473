"""The operator's questions and orders over HTTP: who may ask, what is answered, and what a web page may not do."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from prometheus_client import CollectorRegistry
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from proxy.__main__ import main
from proxy.admin import MAX_BODY, Admin
from proxy.serving import bind, listening
from proxy.values import Listen

from .harness import DEADLINE, Proxy, running, toml
from .raw_client import RawAnswer, RawClient, connect
from .test_inventory import entrepot as beside
from .test_inventory import pull
from .upstream import FakeRegistry

REPO = "library/app"
JSON = {"Content-Type": "application/json"}


@asynccontextmanager
async def administered(
    upstream: FakeRegistry, store: Path, more: str = "", shared: Path | None = None
) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy, and where its admin listener is; its configuration names the port that it listens on.

    `shared`: where workers count.
    """
    front = bind(Listen(host="127.0.0.1", port=0), "server.listen")
    text = f"[admin]\n{more}\n" + toml(upstream.url, server=f'listen = "127.0.0.1:{front.getsockname()[1]}"')
    with closing(front):
        async with running(text, store, environ={"SECRET": "s3cret"}) as proxy:
            back = bind(Listen(host="127.0.0.1", port=0), "admin.listen")
            admin = Admin(proxy.config.admin, CollectorRegistry(), proxy.app.limits, proxy.app.desk, shared)
            async with listening(proxy.app.handlers, front, DEADLINE), listening(admin, back, DEADLINE):
                yield proxy, f"127.0.0.1:{back.getsockname()[1]}"


async def ask(
    host: str, method: str, target: str, body: object = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """Ask as a program would; the status, and what the JSON says."""
    sent = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    async with connect(host) as client:
        answer = await _asked(client, method, target, {"Host": host, **(headers or {})}, sent)
    return answer.status, json.loads(answer.body) if answer.body.startswith(b"{") else answer.body


async def _asked(client: RawClient, method: str, target: str, headers: dict[str, str], body: bytes) -> RawAnswer:
    length = {"Content-Length": str(len(body))} if body else {}
    await client.send(method, target, {**headers, **length}, body)
    return await client.answer(method)


async def order(host: str, what: str, **body: Any) -> tuple[int, Any]:
    """Give an order."""
    return await ask(host, "POST", f"/api/{what}", body, JSON)


async def test_metrics_are_told_while_a_worker_is_still_making_its_files(
    upstream: FakeRegistry, store: Path, tmp_path: Path
) -> None:
    counted: Any = MmapedDict(str(tmp_path / "counter_1.db"))  # type: ignore[no-untyped-call]
    with closing(counted):
        counted.write_value(mmap_key("n", "n_total", [], [], "what it is"), 3.0, 0.0)
    (tmp_path / "counter_2.db").touch()
    async with administered(upstream, store, shared=tmp_path) as (_, host):
        status, text = await ask(host, "GET", "/metrics")
    assert status == 200
    assert b"n_total 3.0" in text


async def test_what_the_commands_say_is_said_over_http(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    async with administered(upstream, store) as (proxy, host):
        await pull(proxy, image)
        status, listed = await ask(host, "GET", "/api/images?repository=docker.io/library/*")
        assert (status, [one["digest"] for one in listed["images"]]) == (200, [image.digest])
        assert (await ask(host, "GET", "/api/images?repository=none"))[1] == {"images": []}
        status, shown = await ask(host, "GET", "/api/image?name=app:v1")
        assert (status, shown["digest"]) == (200, image.digest)
        assert (await ask(host, "GET", "/api/usage"))[1]["images"] == shown["size"]
        assert (await order(host, "pin", images=["app:v1"], **{"for": "30d"}))[0] == 200
        assert (await ask(host, "GET", "/api/image?name=app:v1"))[1]["pinned"]["until"]
        assert (await order(host, "unpin", images=["app:v1"]))[0] == 200
        assert (await order(host, "remove", images=["app:v1"], dry_run=True))[1]["images"][0]["freed"] == shown["size"]
        assert (await order(host, "remove", images=["app:v1"]))[1]["images"][0]["whole"] is True
        assert proxy.blobs() == []


async def test_refresh_asks_upstream_now_and_says_what_moved(upstream: FakeRegistry, store: Path) -> None:
    old = upstream.add_image(REPO, "v1", [b"old"])
    async with administered(upstream, store) as (proxy, host):
        await pull(proxy, old)
        upstream.tag(REPO, "v1", (new := upstream.add_image(REPO, "v2", [b"new"])).digest)
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).body == old.body  # tag_ttl is a minute
        await asyncio.sleep(1.1)  # what upstream has said within a second is believed by everybody
        _, said = await order(host, "refresh", images=["app:v1"])
        assert [(one["before"], one["digest"]) for one in said["images"]] == [(old.digest, new.digest)]
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).body == new.body
        _, said = await order(host, "refresh", images=["app:none"])
        assert "no such thing" in said["images"][0]["error"]


@pytest.mark.parametrize(
    ("method", "target", "body", "headers", "status"),
    [
        ("GET", "/api/nothing", None, {}, 404),
        ("POST", "/api/images", {}, JSON, 405),
        ("GET", "/api/remove", None, {}, 405),
        ("GET", "/api/image?name=none:v1", None, {}, 404),
        ("GET", "/api/image?name=A%20B", None, {}, 400),
        ("GET", "/api/image", None, {}, 400),
        ("POST", "/api/remove", {"images": ["app:v1"]}, {}, 415),
        ("POST", "/api/remove", {"images": ["app:v1"]}, {"Content-Type": "text/plain"}, 415),
        ("POST", "/api/remove", b"{", JSON, 400),
        ("POST", "/api/remove", [], JSON, 400),
        ("POST", "/api/remove", {}, JSON, 400),
        ("POST", "/api/remove", {"images": "app:v1"}, JSON, 400),
        ("POST", "/api/remove", {"images": ["none:v1"]}, JSON, 404),
        ("POST", "/api/pin", {"images": ["app:v1"], "for": "soon"}, JSON, 400),
        ("POST", "/api/pin", {"images": ["app:v1"], "for": [1]}, JSON, 400),
        ("POST", "/api/pin", {"images": ["app:v1"], "til": "30d"}, JSON, 400),
        ("POST", "/api/pin", {"images": ["app:v1"], "dry_run": True}, JSON, 400),
        ("POST", "/api/freeze", {"images": ["app:v1"], "for": "30d"}, JSON, 400),
        ("POST", "/api/pin", b"[" * MAX_BODY * 2, JSON, 413),
        ("GET", "/api/images", None, {"Host": "evil.example"}, 403),
        ("GET", "/api/images", None, {"Host": "127.0.0.1.evil.example"}, 403),
        ("POST", "/api/remove", {"images": ["app:v1"]}, {**JSON, "Host": "evil.example:5001"}, 403),
    ],
)
async def test_what_is_no_question_is_refused_with_a_word(
    upstream: FakeRegistry, store: Path, method: str, target: str, body: object, headers: dict[str, str], status: int
) -> None:
    async with administered(upstream, store) as (_, host):
        answer = await ask(host, method, target, body, headers)
        assert answer[0] == status
        assert answer[1]


@pytest.mark.parametrize("said", ["true", "false", 1, None])
async def test_nothing_is_removed_on_a_dry_run_that_is_neither_true_nor_false(
    upstream: FakeRegistry, store: Path, said: object
) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    async with administered(upstream, store) as (proxy, host):
        await pull(proxy, image)
        assert (await order(host, "remove", images=["app:v1"], dry_run=said))[0] == 400
        assert len(proxy.blobs()) == 3


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "localhost:5001", "[::1]", "[::1]:5001"])
async def test_this_machine_is_known_by_each_of_its_names(upstream: FakeRegistry, store: Path, name: str) -> None:
    async with administered(upstream, store) as (_, host):
        assert (await ask(host, "GET", "/api/images", None, {"Host": name}))[0] == 200


async def test_with_a_token_only_who_says_it_may_ask_but_metrics_are_for_all(
    upstream: FakeRegistry, store: Path
) -> None:
    async with administered(upstream, store, 'token_env = "SECRET"') as (_, host):
        for said in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "Basic s3cret"}):
            for target in ("/api/images", "/api/upstreams", "/api/usage"):
                assert (await ask(host, "GET", target, None, said))[0] == 401
            assert (await ask(host, "POST", "/api/remove", {"images": ["app"]}, {**JSON, **said}))[0] == 401
        assert (await ask(host, "GET", "/api/images", None, {"Authorization": "Bearer \xff"}))[0] == 401
        right = {"Authorization": "Bearer s3cret", "Host": "cache.example:5001"}
        assert await ask(host, "GET", "/api/images", None, right) == (200, {"images": []})
        assert (await ask(host, "GET", "/metrics"))[0] == 200


async def test_on_an_address_that_others_reach_nobody_may_ask_without_a_token(
    upstream: FakeRegistry, store: Path
) -> None:
    async with administered(upstream, store, 'listen = "0.0.0.0:5001"') as (_, host):
        status, said = await ask(host, "GET", "/api/images")
        assert (status, "admin.token_env" in said["error"]) == (403, True)
        assert (await ask(host, "GET", "/metrics"))[0] == 200


# The commands, by way of a server


async def entrepot(*arguments: str, token: str | None = None, code: int = 0) -> Result:
    """Run a command that asks a server."""
    environ = {"COLUMNS": "160", "ENTREPOT_TOKEN": token}
    result = await asyncio.to_thread(CliRunner(env=environ).invoke, main, list(arguments), prog_name="entrepot")
    assert result.exit_code == code, (result.output, result.exception)
    return result


async def test_the_commands_can_ask_a_server_in_place_of_the_directory(upstream: FakeRegistry, store: Path) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    async with administered(upstream, store, 'token_env = "SECRET"') as (proxy, host):
        await pull(proxy, image)
        said = await entrepot("ls", "--server", host, token="s3cret")
        assert "docker.io/library/app:v1" in said.stdout
        assert "say the admin token" in (await entrepot("ls", "--server", host, code=2)).stderr
        for command in (["du"], ["show", "app:v1"], ["pin", "--for", "1d", "app:v1"], ["unpin", "app:v1"]):
            await entrepot(command[0], "--server", f"http://{host}", *command[1:], token="s3cret")
        said = await entrepot("refresh", "--server", host, "app:v1", token="s3cret")
        assert said.stdout == f"app:v1: unchanged, {image.digest}\n"
        await entrepot("rm", "--server", host, "app:v1", token="s3cret")
        assert proxy.blobs() == []
        assert (
            "nothing of it is cached"
            in (await entrepot("show", "--server", host, "app:v1", token="s3cret", code=1)).stderr
        )


async def test_what_is_wrong_ends_a_command_alike_with_a_server_and_without(
    upstream: FakeRegistry, store: Path
) -> None:
    async with administered(upstream, store) as (_, host):
        for name, code in (("none:v1", 1), ("evil.example/app", 1), ("A B", 2), ("app:", 2)):
            said = await entrepot("show", "--server", host, name, code=code)
            assert said.stderr == (await beside(store, "show", name, code=code)).stderr


async def test_a_server_that_is_none_is_said_in_a_line(upstream: FakeRegistry) -> None:
    for server in ("127.0.0.1:1", "ftp://x", upstream.host, "http://", "http://[", "127.0.0.1:99999"):
        said = await entrepot("ls", "--server", server, code=2)
        assert said.stderr.count("\n") == 1, said.stderr


async def test_without_a_server_refresh_asks_by_itself(upstream: FakeRegistry, tmp_path: Path) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    path = tmp_path / "entrepot.toml"
    with socket.socket() as nobody:  # bound, so that no other gets its port, and not listening
        nobody.bind(("127.0.0.1", 0))
        listen = f'listen = "127.0.0.1:{nobody.getsockname()[1]}"'
        path.write_text(toml(upstream.url, server=listen, store=f'path = "{tmp_path}/cache"'))
        said = await entrepot("refresh", "--config", str(path), "app:v1")
        assert said.stdout == f"app:v1: cached, {image.digest}\n"
        assert "no such thing" in (await entrepot("refresh", "--config", str(path), "app:none", code=1)).stdout
