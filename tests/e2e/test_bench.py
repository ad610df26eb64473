"""`entrepot bench`: what it measures, that it costs upstream what it said and no more, and what it will not do."""

import asyncio
import json
import os
import signal
import socket
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from proxy.__main__ import main
from proxy.commands import site
from proxy.desk import Desk

from .harness import Proxy, running, serving, toml, until
from .test_inventory import entrepot, pull
from .test_rate_limits import allow
from .upstream import FakeRegistry, Image, Storage

REPO = "library/app"
LAYERS = [bytes(2_000_000), b"two" * 1000, b"three", b"four"]


async def bench(proxy: Proxy, *arguments: str, code: int = 0, host: str | None = None, answer: str = "") -> Result:
    """Run it beside a proxy, as an operator would."""
    environ = {"ENTREPOT_STORE_PATH": str(proxy.store), "ENTREPOT_SERVER_LISTEN": host or proxy.host, "COLUMNS": "200"}
    command = ["bench", "--platform", "linux/amd64", *arguments]
    command += ["--config", str(proxy.store.parent / f"{proxy.store.name}.toml")]
    invoke = CliRunner(env=environ).invoke
    result = await asyncio.to_thread(invoke, main, command, prog_name="entrepot", input=answer)
    assert result.exit_code == code, (result.output, result.exception)
    return result


async def measured(proxy: Proxy, *arguments: str, code: int = 0, host: str | None = None) -> dict[str, Any]:
    """What it says for programs."""
    result = await bench(proxy, "--yes", "--json", "-", *arguments, code=code, host=host)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def ways(said: dict[str, Any]) -> list[str]:
    """How the first image was pulled, pull by pull."""
    return [run["way"] for run in said["images"][0]["runs"]]


def manifests(upstream: FakeRegistry) -> int:
    """How many were asked for by GET: what a registry counts."""
    return upstream.count("GET", "/manifests/")


def add_index(upstream: FakeRegistry) -> Image:
    """Two platforms; returns that of linux/amd64."""
    images = [upstream.add_image(REPO, None, LAYERS), upstream.add_image(REPO, None, [b"arm"], architecture="arm64")]
    upstream.add_index(REPO, "v1", images)
    return images[0]


def heed(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy notices at once what is taken out."""
    loop, remove = asyncio.get_running_loop(), Desk.remove

    def noticed(desk: Desk, names: Sequence[str], *, dry_run: bool) -> list[dict[str, Any]]:
        asyncio.run_coroutine_threadsafe(proxy.settled(), loop).result()  # what the last pull brought is stored
        answers = remove(desk, names, dry_run=dry_run)
        asyncio.run_coroutine_threadsafe(proxy.app.housekeeping._round(None), loop).result()
        return answers

    monkeypatch.setattr(Desk, "remove", noticed)
    monkeypatch.setattr(site, "HEEDED", 0)


async def test_upstream_is_asked_for_what_was_announced_and_no_more(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = add_index(upstream)
    said = await measured(proxy, "--runs", "3", "app:v1")
    assert ways(said) == ["cold", *(["direct", "warm"] * 3)]
    (bill,) = said["upstreams"]
    assert (bill["asked"], bill["gets"]) == (2, 8)
    assert manifests(upstream) == 10
    blobs = sum(image.sizes[digest] for digest in image.blob_digests)
    assert upstream.body_bytes_sent_for("/blobs/") == 4 * blobs
    assert bill["size"] == 4 * said["images"][0]["size"]
    assert upstream.body_bytes_sent_for("/blobs/") <= bill["size"]


async def test_what_is_cached_is_not_asked_for_again_and_not_measured_cold(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    image = upstream.add_image(REPO, "v1", LAYERS)
    await pull(proxy, image)
    before = manifests(upstream)
    said = await measured(proxy, "--runs", "2", "app:v1")
    assert ways(said) == ["direct", "warm", "direct", "warm"]
    assert "it is cached already" in said["images"][0]["note"]
    assert (said["upstreams"][0]["asked"], said["upstreams"][0]["gets"]) == (1, 2)
    assert manifests(upstream) - before == 3
    dry = await bench(proxy, "--dry-run", "--no-direct", "app:v1")
    assert "docker.io is asked for nothing." in dry.stdout
    assert sum(request["outcome"] in {"fill", "join"} for request in proxy.requests) == 1 + len(image.blob_digests)


async def test_a_dry_run_asks_for_manifests_once_and_for_nothing_else(upstream: FakeRegistry, proxy: Proxy) -> None:
    add_index(upstream)
    result = await bench(proxy, "--dry-run", "app:v1")
    assert "asked for 12 manifests at most, beside 2 for this plan, and " in result.stdout
    assert (manifests(upstream), upstream.count(path_contains="/blobs/")) == (2, 0)
    assert [record["kind"] for record in proxy.requests] == ["ping"]


async def test_without_direct_pulls_only_the_cache_asks_upstream(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = add_index(upstream)
    said = await measured(proxy, "--no-direct", "--runs", "2", "app:v1")
    assert ways(said) == ["warm", "warm"]
    assert manifests(upstream) == 2
    assert upstream.count("GET", "/blobs/") == len(image.blob_digests)
    assert said["images"][0]["warm_to_direct"] is None


async def test_a_registry_that_answers_no_head_is_asked_for_what_was_announced(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    upstream.add_image(REPO, "v1", LAYERS)
    upstream.on("HEAD", path_contains="/manifests/").status(405)
    said = await measured(proxy, "--runs", "2", "app:v1")
    (bill,) = said["upstreams"]
    assert (bill["asked"], bill["gets"]) == (1, 1 + 2 * 2 + 2)
    assert manifests(upstream) == 1 + 1 + 2 * 2  # warm ones cost nothing here, since the tag is fresh


async def test_with_tokens_each_direct_pull_asks_for_one_of_its_own(upstream: FakeRegistry, proxy: Proxy) -> None:
    upstream.require_bearer()
    upstream.add_image(REPO, "v1", LAYERS)
    said = await measured(proxy, "--runs", "2", "app:v1")
    asked = upstream.matching("GET", "/manifests/")
    pulls = [one for one in asked if one.header("Authorization")]  # what is answered 401 is none
    assert len(pulls) == said["upstreams"][0]["asked"] + said["upstreams"][0]["gets"]
    assert len(upstream.token_requests) >= 3


async def test_every_pull_is_told_phase_by_phase(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = add_index(upstream)
    said = await measured(proxy, "--runs", "2", "app:v1")
    (one,) = said["images"]
    phases = ["resolve", "manifests", "first byte", "layers", "total"]
    assert (one["image"], one["repository"], one["layers"]) == ("app:v1", f"docker.io/{REPO}", len(LAYERS))
    assert one["manifests"][1] == image.digest
    assert all(list(run["seconds"]) == phases for run in one["runs"])
    assert all(
        0 < run["seconds"]["first byte"] <= run["seconds"]["layers"] < run["seconds"]["total"] for run in one["runs"]
    )
    assert set(one["spread"]) == {"direct", "cold", "warm"}
    assert set(one["spread"]["warm"]["total"]) == {"p50", "p95", "p99"}
    assert one["warm_to_direct"] > 0
    assert said["ended_by"] is None


async def test_people_get_a_table_and_a_sentence(upstream: FakeRegistry, proxy: Proxy, tmp_path: Path) -> None:
    add_index(upstream)
    drawing = tmp_path / "pulls.svg"
    result = await bench(proxy, "--yes", "--runs", "2", "--plot", str(drawing), "app:v1")
    assert "app:v1  linux/amd64, 4 layers, 2.0 MB" in result.stdout
    assert "DIRECT (2) P50" in result.stdout
    assert "COLD (1)" in result.stdout
    for phase in ("resolve", "manifests", "first byte", "layers", "total", "MB/s"):
        assert f"\n{phase} " in result.stdout
    assert "From the cache it takes" in result.stdout
    root = ET.fromstring(drawing.read_text())  # noqa: S314  our own
    assert len(root.findall("{http://www.w3.org/2000/svg}circle")) == 5 * 5


async def test_an_image_without_layers_is_measured_all_the_same(upstream: FakeRegistry, proxy: Proxy) -> None:
    upstream.add_image(REPO, "v1", [])
    result = await bench(proxy, "--yes", "--runs", "2", "app:v1")
    assert "0 layers" in result.stdout
    assert "\nfirst byte " in result.stdout


# What is wrong


async def test_a_wrong_byte_ends_it_and_what_was_measured_is_told(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1", LAYERS)
    await pull(proxy, image)
    upstream.on("GET", blob=image.layer_digests[0], skip=1).wrong_bytes()
    said = await measured(proxy, "--runs", "3", "app:v1", code=1)
    assert (
        said["ended_by"] == f"app:v1, direct: {image.layer_digests[0]} came with other bytes than those of its digest"
    )
    assert ways(said) == ["direct", "warm"]


@pytest.mark.parametrize("by", [-1, 1])
async def test_a_layer_of_another_size_than_announced_ends_it(upstream: FakeRegistry, proxy: Proxy, by: int) -> None:
    image = upstream.add_image(REPO, "v1", LAYERS)
    await pull(proxy, image)
    upstream.on("GET", blob=image.layer_digests[0]).resized(by)
    said = await measured(proxy, "app:v1", code=1)
    assert "came with other bytes" in said["ended_by"]


async def test_what_the_cache_says_wrong_ends_it(upstream: FakeRegistry, proxy: Proxy) -> None:
    image, other = (upstream.add_image(REPO, tag, [tag.encode()]) for tag in ("v1", "v2"))
    where = ["--no-direct", "--through", upstream.url, "app:v1"]  # the registry itself stands in for a cache
    upstream.on("GET", manifest=image.digest, skip=1, times=1).body(other.body)
    said = await measured(proxy, *where, code=1)
    assert said["ended_by"] == f"app:v1, warm: {image.digest} came with other bytes than those of its digest"
    upstream.on("GET", blob=image.layer_digests[0], times=1).wrong_bytes()
    assert "came with other bytes" in (await measured(proxy, *where, code=1))["ended_by"]
    upstream.on("GET", blob=image.layer_digests[0], times=1).truncate(1)
    assert (
        f"{upstream.url} broke off within {image.layer_digests[0]}"
        in (await measured(proxy, *where, code=1))["ended_by"]
    )
    body = b'{"errors": [{"message": "a \\u001b[2J limit"}]}'
    upstream.on("GET", blob=image.config_digest).status(429, [("Retry-After", "9")], body)
    said = await measured(proxy, *where, code=1)
    assert said["ended_by"].endswith(" answered 429: a \\x1b[2J limit (asks us to wait 9 s)")


async def test_a_rate_limit_in_the_middle_ends_it(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1", LAYERS)
    await pull(proxy, image)
    upstream.on("GET", path_contains="/manifests/", skip=2).status(429, [("Retry-After", "77")])
    result = await bench(proxy, "--yes", "--runs", "3", "app:v1", code=1)
    assert "app:v1, direct: docker.io limits our rate (asks us to wait 77 s)" in result.stderr
    assert "DIRECT (1)" in result.stdout
    assert manifests(upstream) == 1 + 1 + 1 + 1


async def test_nothing_is_asked_for_where_a_look_would_already_cost_the_reserve(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    add_index(upstream)
    allow(upstream, 100, 12)
    result = await bench(proxy, "--yes", "app:v1", code=2)
    assert "docker.io allows 12 more pulls, 10 of which are kept" in result.stderr
    assert manifests(upstream) == 0


async def test_more_than_upstream_allows_is_refused_before_it_starts(upstream: FakeRegistry, proxy: Proxy) -> None:
    add_index(upstream)
    allow(upstream, 100, 21)
    result = await bench(proxy, "--yes", "app:v1", code=2)
    assert "this takes up to 12" in result.stderr
    assert (manifests(upstream), upstream.count(path_contains="/blobs/")) == (2, 0)
    assert (
        "It allows 21 more pulls of 100 in 6 h, 10 of which are kept"
        in (await bench(proxy, "--dry-run", "--runs", "4", "app:v1")).stdout
    )


async def test_it_stops_where_others_have_spent_what_was_left(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1", LAYERS)
    await pull(proxy, image)
    # A look is two HEADs and a GET; a direct pull a HEAD, and a GET that tells of the others.
    allow(upstream, 100, 50, path_contains="/manifests/", times=4)
    allow(upstream, 100, 10, path_contains="/manifests/")
    said = await measured(proxy, "--runs", "3", "app:v1", code=1)
    assert "docker.io allows 10 more pulls" in said["ended_by"]
    assert ways(said) == ["direct", "warm"]


async def test_without_a_terminal_nothing_begins_unasked(upstream: FakeRegistry, proxy: Proxy) -> None:
    upstream.add_image(REPO, "v1", LAYERS)
    result = await bench(proxy, "app:v1", code=2)
    assert "--yes: it begins once that is agreed to" in result.stderr
    assert (manifests(upstream), upstream.count(path_contains="/blobs/")) == (1, 0)


@pytest.mark.parametrize(("answer", "code"), [("n\n", 2), ("\n", 2), ("y\n", 0)])
async def test_on_a_terminal_it_asks(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True)
    upstream.add_image(REPO, "v1", LAYERS)
    result = await bench(proxy, "--runs", "1", "app:v1", code=code, answer=answer)
    assert "Begin?" in result.stderr
    assert ("DIRECT (1)" in result.stdout) == (code == 0)


async def test_where_no_cache_answers_its_address_and_its_key_are_named(upstream: FakeRegistry, proxy: Proxy) -> None:
    upstream.add_image(REPO, "v1", LAYERS)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        result = await bench(proxy, "--yes", "--cold", "1", "app:v1", code=2, host=host)
    assert f"no cache answers at http://{host} " in result.stderr
    assert result.stderr.endswith("see server.listen, or name it by --through\n")
    assert upstream.requests == []


@pytest.mark.parametrize("more", [[], ["--no-direct"]])
async def test_an_image_that_is_not_there_is_named(upstream: FakeRegistry, proxy: Proxy, more: list[str]) -> None:
    upstream.add_image(REPO, "v1", LAYERS)
    result = await bench(proxy, "--yes", *more, "app:v1", "app:none", code=1)
    assert result.stderr.startswith("entrepot: app:none: ")
    assert upstream.count(path_contains="/blobs/") == 0


async def test_a_platform_that_an_index_has_not_is_named(upstream: FakeRegistry, proxy: Proxy) -> None:
    add_index(upstream)
    result = await bench(proxy, "--yes", "--platform", "plan9/mips", "app:v1", code=1)
    assert "app:v1: it has nothing for plan9/mips" in result.stderr


async def test_a_cache_that_has_another_image_under_the_tag_is_not_compared(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    await pull(proxy, upstream.add_image(REPO, "v1", [b"old"]))
    upstream.add_image(REPO, "v1", [b"new"])
    said = await measured(proxy, "app:v1", code=1)
    assert "the cache has not asked since (entrepot refresh app:v1)" in said["ended_by"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--plot", "pulls.png"], "write a name that ends in .svg"),
        (["--plot", "/nowhere/pulls.svg"], "there is no directory /nowhere"),
        (["--json", "/nowhere/pulls.json"], "there is no directory /nowhere"),
        (["--platform", "linux"], "'linux' is no platform"),
        (["--through", "cache:5000"], "write http://127.0.0.1:5000"),
    ],
)
async def test_what_could_not_be_done_is_refused_first(
    upstream: FakeRegistry, proxy: Proxy, arguments: list[str], why: str
) -> None:
    result = await bench(proxy, *arguments, "app:v1", code=2)
    assert why in result.stderr
    assert upstream.count() == 0


# Cold


async def test_an_image_is_taken_out_before_each_cold_pull(
    upstream: FakeRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    heed(proxy, monkeypatch)
    image = add_index(upstream)
    said = await measured(proxy, "--cold", "3", "--runs", "1", "--no-direct", "app:v1")
    assert ways(said) == ["cold", "cold", "cold", "warm"]
    assert said["upstreams"][0]["gets"] == 6
    assert manifests(upstream) == 2 + 6
    blobs = sum(image.sizes[digest] for digest in image.blob_digests)
    assert upstream.body_bytes_sent_for("/blobs/") == 3 * blobs
    await proxy.settled()
    assert set(image.blob_digests) <= set(proxy.blobs())


async def test_what_goes_with_an_image_that_is_taken_out_is_said_first(upstream: FakeRegistry, proxy: Proxy) -> None:
    images = [upstream.add_image(REPO, None, LAYERS), upstream.add_image(REPO, None, [b"arm"], architecture="arm64")]
    index = upstream.add_index(REPO, "v1", images)
    assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).status == 200
    for image in images:
        assert (await proxy.get(f"/v2/{REPO}/manifests/{image.digest}")).status == 200
        for digest in image.blob_digests:
            assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).status == 200
    await proxy.settled()
    result = await bench(proxy, "--dry-run", "--cold", "2", "app:v1")
    assert "the image is taken out of the cache 2 times for it; linux/arm64 goes with it" in result.stdout
    assert index.digest in proxy.blobs()


@pytest.mark.parametrize(
    ("command", "why"),
    [(["pin", "app:v1"], "it is pinned"), (["freeze", "app:v1"], "its tag is frozen")],
)
async def test_what_is_pinned_or_frozen_is_not_taken_out(
    upstream: FakeRegistry, proxy: Proxy, command: list[str], why: str
) -> None:
    await pull(proxy, upstream.add_image(REPO, "v1", LAYERS))
    await entrepot(proxy.store, *command)
    result = await bench(proxy, "--yes", "--cold", "1", "app:v1", code=2)
    assert f"app:v1: --cold: it is not taken out of the cache: {why}" in result.stderr
    before = proxy.blobs()
    await measured(proxy, "--runs", "1", "app:v1")
    assert proxy.blobs() == before


async def test_what_is_pinned_meanwhile_is_not_taken_out(upstream: FakeRegistry, proxy: Proxy) -> None:
    await entrepot(proxy.store, "pin", "app:v1")  # before it is cached: the first cold pull takes nothing out
    upstream.add_image(REPO, "v1", LAYERS)
    said = await measured(proxy, "--cold", "2", "app:v1", code=1)
    assert said["ended_by"] == "app:v1, cold: it is not taken out of the cache: it is pinned"
    assert ways(said) == ["cold"]


async def test_what_freeze_holds_is_not_taken_out(upstream: FakeRegistry, store: Path) -> None:
    upstream.add_image(REPO, "v1", LAYERS)
    async with running(toml(upstream.url, more='freeze = ["library/*"]'), store) as proxy:
        result = await bench(proxy, "--yes", "--cold", "1", "app:v1", code=2)
        assert "freeze holds its tag" in result.stderr


async def test_of_a_cache_that_is_known_by_its_address_alone_nothing_is_taken_out(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    upstream.add_image(REPO, "v1", LAYERS)
    where = ["--through", f"http://{proxy.host}"]
    result = await bench(proxy, "--yes", *where, "--cold", "1", "app:v1", code=2)
    assert "name its admin listener by --server" in result.stderr
    said = await measured(proxy, *where, "--runs", "1", "app:v1", host="127.0.0.1:1")
    assert ways(said) == ["direct", "warm"]


async def test_a_server_elsewhere_tells_by_its_admin_listener_what_it_has(
    upstream: FakeRegistry, store: Path, tmp_path: Path
) -> None:
    upstream.add_image(REPO, "v1", LAYERS)
    async with serving(toml(upstream.url), store) as server:
        path = tmp_path / "elsewhere.toml"
        path.write_text(toml(upstream.url, store=f'path = "{tmp_path / "none"}"'))
        command = ["bench", "--config", str(path), "--yes", "--runs", "1", "--json", "-", "app:v1"]
        command += ["--through", f"http://{server.host}/", "--server", server.admin]
        result = await asyncio.to_thread(CliRunner().invoke, main, command)
        assert result.exit_code == 0, result.output
        assert ways(json.loads(result.stdout)) == ["cold", "direct", "warm"]
        result = await asyncio.to_thread(CliRunner().invoke, main, command)
        assert ways(json.loads(result.stdout)) == ["direct", "warm"]
    assert not (tmp_path / "none").exists()


async def test_a_client_that_is_sent_to_the_bucket_goes_there(upstream: FakeRegistry, proxy: Proxy) -> None:
    upstream.add_image(REPO, "v1", LAYERS)
    async with Storage() as storage:
        upstream.redirect_blobs_to(storage)  # the registry itself stands in for a cache that redirects
        said = await measured(proxy, "--no-direct", "--through", upstream.url, "--runs", "1", "app:v1")
        assert ways(said) == ["warm"]
        assert storage.count("GET") == 2 * (1 + len(LAYERS))


async def test_with_a_bucket_it_says_what_cold_means(upstream: FakeRegistry, proxy: Proxy) -> None:
    upstream.add_image(REPO, "v1", LAYERS)
    path = proxy.store.parent / f"{proxy.store.name}.toml"
    path.write_text(f'{path.read_text()}\n[store.s3]\nbucket = "images"\nregion = "us-east-1"\n')
    result = await bench(proxy, "--dry-run", "app:v1")
    assert "A bucket is behind the cache (images): cold is what comes from there" in result.stdout


# Interrupted


async def test_ctrl_c_tells_what_was_measured_by_then(upstream: FakeRegistry, proxy: Proxy, tmp_path: Path) -> None:
    image = upstream.add_image(REPO, "v1", LAYERS)
    upstream.on("GET", blob=image.layer_digests[0], skip=2).stall(1000)  # the second direct pull
    told = tmp_path / "pulls.json"
    config = str(proxy.store.parent / f"{proxy.store.name}.toml")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", "bench", "--config", config, "--yes", "--json", str(told), "app:v1",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "ENTREPOT_STORE_PATH": str(proxy.store), "ENTREPOT_SERVER_LISTEN": proxy.host},
    )  # fmt: skip
    await until(lambda: upstream.count("GET", image.layer_digests[0]) == 3)
    process.send_signal(signal.SIGINT)
    stdout, stderr = await process.communicate()
    assert process.returncode == 130
    assert "ended early: it was interrupted" in stderr.decode()
    assert "DIRECT (1)" in stdout.decode()
    assert ways(json.loads(await asyncio.to_thread(told.read_text))) == ["cold", "direct", "warm"]
