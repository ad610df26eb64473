"""What must be kept to oneself is found nowhere: not in the log, an error, a metric, nor in a file or its name."""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from .harness import Proxy, running, serving, toml, until
from .raw_client import connect
from .upstream import FakeRegistry, Storage

REPO = "library/app"
TAG = f"/v2/{REPO}/manifests/v1"
PASSWORD = "canary-password"
TOKEN = "canary-token"
CLIENT = "canary-client"
SIGNATURE = "X-Amz-Signature="
SECRETS = (
    PASSWORD,
    base64.b64encode(f"ann:{PASSWORD}".encode()).decode(),
    TOKEN,
    CLIENT,
    base64.b64encode(f"hub:{CLIENT}".encode()).decode(),
    SIGNATURE,
    "X-Amz-Credential",
    "canary-cookie",
    "canary-query",
)


def found_in(text: str) -> list[str]:
    """The secrets that are in a text."""
    return [secret for secret in SECRETS if secret in text]


def at(store: Path, url: str) -> str:
    """A configuration that logs in."""
    secret = store.parent / "secret"
    secret.write_text(PASSWORD)
    more = f'username = "ann"\npassword_file = "{secret}"\nprivate_networks = ["127.0.0.0/8"]\ntag_ttl = "0s"'
    return toml(url, more=more, server='client_stall_timeout = "5s"')


def everything(proxy: Proxy, answers: list[str]) -> str:
    """All that leaves the process, but for what it sends upstream."""
    files = [path for path in proxy.store.rglob("*") if path.is_file()]
    records = [path.read_bytes().decode("latin-1") for path in files if "repositories" in path.parts]
    return "\n".join(
        [
            proxy.log_stream.getvalue(),
            generate_latest(proxy.metrics.registry).decode(),
            *map(str, files),
            *records,
            *answers,
        ]
    )


@pytest.fixture
async def storage() -> AsyncIterator[Storage]:
    """Another host, where the blobs are."""
    async with Storage() as one:
        yield one


FAULTS = [
    "none", "denied", "token service down", "token service garbage", "evil realm", "storage denies", "storage resets",
    "storage down", "storage is garbage", "forbidden redirect", "redirect to no URL", "too many redirects", "refused",
    "no HTTP", "wrong bytes", "429", "500",
]  # fmt: skip


async def break_it(  # noqa: C901, PLR0912, PLR0915  one case a fault
    fault: str, upstream: FakeRegistry, storage: Storage
) -> None:
    """Let something go wrong in this way."""
    signed = f"?{SIGNATURE}canary-query&token={TOKEN}"
    blobs: dict[str, Any] = {"where": lambda request: "/blobs/" in request.path}
    match fault:
        case "denied":
            upstream.on(unauthorized=True, where=lambda request: request.path != "/token").status(403)
        case "token service down":
            upstream.on(path="/token").status(503)
        case "token service garbage":
            upstream.on(path="/token").body(b'{"token":"' + TOKEN.encode() + b'\\r\\n"}')
        case "evil realm":
            challenge = f'Bearer realm="http://evil.example/{signed}"'
            upstream.on(unauthorized=True).status(401, [("WWW-Authenticate", challenge)])
        case "storage denies":
            storage.on().status(403)
        case "storage resets":
            storage.on().reset()
        case "storage down":
            await storage.go_down()
        case "storage is garbage":
            storage.on().raw(b"garbage\r\n\r\n").truncate(0)
        case "forbidden redirect":
            upstream.on(**blobs).redirect(f"http://10.0.0.1/x{signed}")
        case "redirect to no URL":
            upstream.on(**blobs).redirect(f"ftp://ann:{PASSWORD}@evil/x{signed}")
        case "too many redirects":
            upstream.on(**blobs).redirect(f"{upstream.url}/v2/x/blobs/y{signed}")
        case "refused":
            await upstream.go_down()
        case "no HTTP":
            upstream.on().raw(f"{TOKEN}\r\n\r\n".encode()).truncate(0)
        case "wrong bytes":
            storage.on().wrong_bytes()
        case "429" | "500":
            upstream.on().status(int(fault), (), f"{TOKEN} {PASSWORD}".encode())
        case _:
            assert fault == "none"


@pytest.mark.parametrize("fault", FAULTS)
async def test_no_secret_is_told_whatever_goes_wrong(
    upstream: FakeRegistry, storage: Storage, store: Path, fault: str
) -> None:
    image = upstream.add_image(REPO, "v1", [b"x" * 5000])
    upstream.require_bearer(users={"ann": PASSWORD}, anonymous=False)
    upstream.redirect_blobs_to(storage)
    basic = base64.b64encode(f"hub:{CLIENT}".encode()).decode()
    headers = {"Authorization": f"Basic {basic}", "Cookie": "a=canary-cookie", "Referer": f"http://x/?{CLIENT}"}
    answers = []
    async with running(at(store, upstream.url), store) as proxy:
        assert (await proxy.get(TAG, headers)).status == 200
        await break_it(fault, upstream, storage)
        for target in (
            "manifests/v1", f"manifests/sha256:{'a' * 64}", "manifests/v2", f"blobs/{image.config_digest}",
            f"blobs/{image.layer_digests[0]}", "tags/list", f"referrers/sha256:{'a' * 64}",
        ):  # fmt: skip
            for method in ("HEAD", "GET"):
                got = await proxy.ask(method, f"/v2/{REPO}/{target}?key=canary-query", headers)
                answers.append(f"{got.headers} {got.body.decode('latin-1')}")
        await proxy.settled()
        text = everything(proxy, answers)
    issued = list(upstream._bearer.tokens) if upstream._bearer else []
    assert issued
    assert found_in(text) == []
    assert [token for token in issued if token in text] == []


async def test_a_malformed_request_is_not_logged_with_what_it_says(upstream: FakeRegistry, store: Path) -> None:
    async with serving(at(store, upstream.url), store, environ={"ENTREPOT_LOG_LEVEL": "debug"}) as proxy:
        for header in (f"Authorization: Basic {CLIENT}\x01", f"Authorization : {CLIENT}", f"Cookie {CLIENT}\x00"):
            async with connect(proxy.host) as client:
                client.writer.write(f"GET /v2/ HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())
                assert (await client.answer()).status == 400
        async with connect(proxy.host) as client:
            client.writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: " + CLIENT.encode() * 2000 + b"\r\n\r\n")
            assert (await client.answer()).status in {400, 431}
        assert (await proxy.get("/v2/")).status == 200
        await until(lambda: any(line["event"] == "request" for line in proxy.lines))
        assert found_in(json.dumps(proxy.lines)) == []


async def test_a_clients_query_is_not_logged(proxy: Proxy) -> None:
    await proxy.get(f"{TAG}?token={CLIENT}")
    await proxy.get(f"/nowhere?token={CLIENT}")
    await proxy.settled()
    assert found_in(proxy.log_stream.getvalue()) == []


async def test_every_line_of_the_log_is_one_record_whatever_a_client_sends(proxy: Proxy) -> None:
    for target in ("/v2/a%0ab/manifests/v1", "/v2/%1b[31m/manifests/v1", '/v2/"}{/manifests/v1', "/%e2%80%ae/%ff"):
        await proxy.get(target, {"User-Agent": 'x"}\\ \xff \t'})
    await proxy.settled()
    assert len(proxy.requests) == len(proxy.log_stream.getvalue().splitlines()) == 4


async def test_the_labels_of_metrics_are_a_closed_set(upstream: FakeRegistry, proxy: Proxy) -> None:
    def series() -> int:
        return len([line for line in generate_latest(proxy.metrics.registry).splitlines() if not line.startswith(b"#")])

    async def all_kinds(number: int) -> None:
        for target in (
            f"/v2/a{number}/b/manifests/t{number}", f"/v2/a{number}.io/b/manifests/v1", f"/x{number}",
            f"/v2/A{number}/tags/list", f"/v2/app/tags/list?ns=h{number}.example",
            f"/v2/app/blobs/sha256:{number:064}",
        ):  # fmt: skip
            await proxy.get(target, {"User-Agent": f"agent{number}", "Host": f"host{number}"})
        await proxy.ask(f"M{number}", "/v2/")

    await all_kinds(0)
    before = series()
    for number in range(1, 30):
        await all_kinds(number)
    assert series() == before
