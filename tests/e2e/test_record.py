"""What a boot or a build asks for, written down to the last blob: warm and export bring exactly that."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from .harness import Process, running, serving, toml, until
from .test_export import blobs_of, exported
from .test_import import imported
from .test_inventory import entrepot
from .test_warm import warmed
from .upstream import FakeRegistry, Image

pytestmark = pytest.mark.slow  # each starts processes

REPO = "library/app"


async def recorded(process: Process, *arguments: str, command: Sequence[str] = (), code: int = 0) -> Path:
    """Run `entrepot record` in a process of its own; returns its list."""
    output = process.store.parent / "list.txt"
    options = ["--config", str(process.store.parent / f"{process.store.name}.toml"), "-o", str(output), *arguments]
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", "record", *options, "--", *command,
        env={**os.environ, "ENTREPOT_STORE_PATH": str(process.store)},
    )  # fmt: skip
    assert await child.wait() == code
    return output


def pulling(process: Process, targets: Sequence[str]) -> list[str]:
    """A command that asks for these."""
    fetch = "import sys, urllib.request\nfor url in sys.argv[1:]: urllib.request.urlopen(url).read()"
    return [sys.executable, "-c", fetch, *(f"http://{process.host}/v2/{REPO}/{target}" for target in targets)]


def index_with(upstream: FakeRegistry) -> tuple[str, list[Image]]:
    """An index of two platforms."""
    images = [
        upstream.add_image(REPO, None, [b"one", b"two"]),
        upstream.add_image(REPO, None, [b"three"], architecture="arm64"),
    ]
    return upstream.add_index(REPO, "v1", images).digest, images


async def test_what_is_asked_for_is_listed_exactly_and_comes_exactly(
    upstream: FakeRegistry, store: Path, tmp_path: Path
) -> None:
    index, (image, _) = index_with(upstream)
    other = upstream.add_image("acme/tool", "v1", [b"other"])
    wanted = ["manifests/v1", f"manifests/{index}", f"manifests/{image.digest}"]
    wanted += [f"blobs/{digest}" for digest in image.blob_digests[:2]]
    text = toml(upstream.url, server="workers = 2")
    async with serving(text, store) as process:
        await until(lambda: sum(line["event"] == "serving" for line in process.lines) == 2)
        assert (await process.get(f"/v2/{other.repo}/manifests/v1")).status == 200
        path = await recorded(process, command=pulling(process, wanted))
        assert (await process.get(f"/v2/{REPO}/blobs/{image.blob_digests[2]}")).status == 200
        assert not [name for name in os.listdir(store / "recordings") if not name.startswith("worker-")]
    lines = await asyncio.to_thread(path.read_text)
    name = f"docker.io/{REPO}"
    assert sorted(lines.splitlines()[1:]) == sorted(
        [
            f"{name}:v1@{index}  manifest  # index",
            f"{name}@{image.digest}  manifest  # linux/amd64",
            *(f"{name}@{digest}  blob" for digest in image.blob_digests[:2]),
        ]
    )
    second = tmp_path / "second"
    (tmp_path / "second.toml").write_text(toml(upstream.url))
    (said,) = await warmed(second, "-f", str(path))
    assert (said["image"], said["failures"], said["blobs"]) == (f"{name}, as recorded", [], 2)
    stored = {
        f"sha256:{entry.name}" for entry in await asyncio.to_thread(lambda: list((second / "blobs").rglob("?" * 64)))
    }
    assert stored == {index, image.digest, *image.blob_digests[:2]}


async def test_a_bundle_of_a_recording_has_exactly_that_and_is_imported_for_what_it_is(
    upstream: FakeRegistry, store: Path, tmp_path: Path
) -> None:
    index, (image, _) = index_with(upstream)
    wanted = ["manifests/v1", f"manifests/{index}", f"manifests/{image.digest}"]
    wanted += [f"blobs/{digest}" for digest in image.blob_digests[:2]]
    name, path = f"docker.io/{REPO}", tmp_path / "list.txt"
    blobs = [f"{name}@{digest} blob" for digest in image.blob_digests[:2]]
    path.write_text("\n".join([f"{name}:v1@{index} manifest", f"{name}@{image.digest} manifest", *blobs]))
    (tmp_path / f"{store.name}.toml").write_text(toml(upstream.url))
    bundle = tmp_path / "bundle.tar"
    await exported(store, "-f", str(path), str(bundle))
    assert blobs_of(bundle) == {index, image.digest, *image.blob_digests[:2]}
    moves = json.loads((await entrepot(store, "moves", "--json")).stdout)
    assert [(one["image"], one["to"]) for one in moves] == [(f"{name}:v1", index)]
    since = tmp_path / "since.tar"
    await exported(store, "--cached", "--since", str(bundle), "-f", str(path), str(since))
    third = tmp_path / "third"
    (tmp_path / "third.toml").write_text(toml(upstream.url, more="sealed = true"))
    (one,) = await imported(third, str(since), code=1)
    assert "import that first" in one["failure"]
    (one,) = await imported(third, str(bundle))
    assert (one["image"], one["failure"], one["digest"]) == (f"{name}:v1", None, index)
    async with running(toml(upstream.url, more="sealed = true"), third) as proxy:
        assert [(await proxy.get(f"/v2/{REPO}/{target}")).status for target in wanted] == [200] * len(wanted)
        assert (await proxy.get(f"/v2/{REPO}/blobs/{image.blob_digests[2]}")).status == 404


async def test_it_ends_as_its_command_does_and_only_the_clients_that_are_named_count(
    upstream: FakeRegistry, store: Path
) -> None:
    upstream.add_image(REPO, "v1", [b"one"])
    async with serving(toml(upstream.url), store) as process:
        command = pulling(process, ["manifests/v1", "manifests/none"])
        path = await recorded(process, "--client", "192.0.2.1", command=command, code=1)
        assert len((await asyncio.to_thread(path.read_text)).splitlines()) == 1
        other = store.parent / "other.toml"  # that does not know the registry: the server does
        other.write_text('[[upstream]]\nregistry = "ghcr.io"\n')
        clients = ["--client", "192.0.2.1", "--client", "127.0.0.1"]
        path = await recorded(process, "--config", str(other), *clients, command=command, code=1)
        assert len((await asyncio.to_thread(path.read_text)).splitlines()) == 2


async def test_its_command_keeps_its_options_and_is_told_to_end_and_how_it_ended_is_said_as_a_shell_says_it(
    upstream: FakeRegistry, store: Path
) -> None:
    async with serving(toml(upstream.url), store) as process:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "proxy", "record", "--config", str(store.parent / f"{store.name}.toml"),
            "-o", str(store.parent / "list.txt"), "sh", "-c", "echo $0 $*; exec sleep 600", "-o", "--client", "x",
            stdout=asyncio.subprocess.PIPE, env={**os.environ, "ENTREPOT_STORE_PATH": str(process.store)},
        )  # fmt: skip
        assert child.stdout is not None
        assert await child.stdout.readline() == b"-o --client x\n"
        child.terminate()
        assert await child.wait() == 128 + signal.SIGTERM
        assert len((await asyncio.to_thread((store.parent / "list.txt").read_text)).splitlines()) == 1


async def test_ctrl_c_ends_it_and_a_killed_one_leaves_nothing_that_lasts(upstream: FakeRegistry, store: Path) -> None:
    upstream.add_image(REPO, "v1", [b"one"])
    output = store.parent / "list.txt"
    async with serving(toml(upstream.url), store) as process:
        for number in (signal.SIGKILL, signal.SIGINT):
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "proxy", "record", "--config", str(store.parent / f"{store.name}.toml"),
                "-o", str(output), stderr=asyncio.subprocess.PIPE,
                env={**os.environ, "ENTREPOT_STORE_PATH": str(store)},
            )  # fmt: skip
            assert child.stderr is not None
            assert b"recording" in await child.stderr.readline()
            assert (await process.get(f"/v2/{REPO}/manifests/v1")).status == 200
            child.send_signal(number)
            assert await child.wait() == (0 if number is signal.SIGINT else -signal.SIGKILL)
        assert "docker.io/library/app:v1@sha256:" in await asyncio.to_thread(output.read_text)
        assert [name[:7] for name in os.listdir(store / "recordings")] == ["worker-"]


async def test_without_a_server_nothing_is_recorded(upstream: FakeRegistry, store: Path) -> None:
    (store.parent / f"{store.name}.toml").write_text(toml(upstream.url))
    said = await entrepot(store, "record", "-o", str(store.parent / "list.txt"), "--", "true", code=2)
    assert said.stderr == "entrepot: no server is running on this directory\n"


async def test_what_is_mistyped_is_said_before_anything_is_recorded(upstream: FakeRegistry, store: Path) -> None:
    (store.parent / f"{store.name}.toml").write_text(toml(upstream.url))
    said = await entrepot(store, "record", "-o", str(store / "none" / "list.txt"), code=2)
    assert "list.txt: cannot be written (No such file or directory)" in said.stderr
    said = await entrepot(store, "record", "-o", str(store.parent / "list.txt"), "--client", "localhost", code=2)
    assert "'localhost' is no IP address" in said.stderr
