"""Images out of a file: whole, verified, linked to the repository that they are imported for, and nothing else."""

import asyncio
import io
import json
import os
import signal
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from .harness import running, toml, until
from .test_export import blobs_of, exported, files_of, index_of
from .test_inventory import entrepot, listed, pull
from .test_warm import configured
from .upstream import FakeRegistry, Image

REPO, OTHER = "library/app", "acme/tool"
Change = Callable[[dict[str, bytes]], object]


async def imported(store: Path, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    """What `entrepot import --json` says of the images."""
    said = await entrepot(store, "import", "--json", *arguments, code=code)
    found: list[dict[str, Any]] = json.loads(said.stdout)["images"]
    return found


@pytest.fixture
def empty(upstream: FakeRegistry, tmp_path: Path) -> Path:
    """A cache that has nothing, where there is no upstream."""
    path = tmp_path / "empty"
    configured(upstream, path, more="sealed = true")
    return path


@pytest.fixture
async def image(upstream: FakeRegistry) -> Image:
    """An image of several megabytes."""
    return upstream.add_image(REPO, "v1", [bytes(3_000_000), b"two"])


@pytest.fixture
async def bundle(upstream: FakeRegistry, image: Image, store: Path, tmp_path: Path) -> Path:
    """That image, exported."""
    configured(upstream, store)
    await exported(store, "app:v1", str(tmp_path / "bundle.tar"))
    return tmp_path / "bundle.tar"


def packed(path: Path, files: Mapping[str, bytes], more: Sequence[tarfile.TarInfo] = ()) -> Path:
    """A tar of these files, after entries without content."""
    with tarfile.open(path, "w") as archive:
        for entry in more:
            archive.addfile(entry)
        for name, body in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            archive.addfile(entry, io.BytesIO(body))
    return path


def changed(bundle: Path, change: Change) -> Path:
    """A bundle with something changed."""
    files = files_of(bundle)
    change(files)
    return packed(bundle.with_name("changed.tar"), files)


def published(store: Path) -> set[str]:
    """Every file of a store that says something: blobs, links, tags."""
    return {
        str(path.relative_to(store))
        for kind in ("blobs", "repositories", "pins")
        for path in (store / kind).rglob("*")
        if path.is_file()
    }


async def test_an_imported_image_is_served_where_there_is_no_upstream(
    upstream: FakeRegistry, image: Image, bundle: Path, empty: Path
) -> None:
    before = upstream.connections
    (said,) = await imported(empty, str(bundle))
    assert (said["image"], said["digest"], said["failure"]) == ("docker.io/library/app:v1", image.digest, None)
    assert said["blobs"] == len(blobs_of(bundle))
    async with running(toml(upstream.url, more="sealed = true"), empty) as proxy:
        got = await proxy.get(f"/v2/{REPO}/manifests/v1")
        assert (got.body, got.header("Content-Type")) == (image.body, "application/vnd.oci.image.manifest.v1+json")
        for digest in image.blob_digests:
            assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).status == 200
            assert (await proxy.get(f"/v2/{OTHER}/blobs/{digest}")).status == 404
    assert upstream.connections == before
    (found,) = await listed(empty)
    assert (found["missing"], found["tags"][0]["tag"]) == (0, "v1")
    assert image.digest[7:19] in (await entrepot(empty, "moves")).stdout
    assert not os.listdir(empty / "spool")


async def test_importing_again_changes_nothing_and_a_pin_is_set_when_asked_for(bundle: Path, empty: Path) -> None:
    await imported(empty, str(bundle))
    before = published(empty)
    said = await entrepot(empty, "import", "--keep", "30d", str(bundle))
    assert "0 B that the cache did not have" in said.stdout
    assert (await listed(empty))[0]["pinned"]["until"]
    assert {path for path in published(empty) if not path.startswith("pins/")} == before


async def test_a_running_server_serves_what_was_imported_beside_it_though_it_has_just_said_no(
    upstream: FakeRegistry, image: Image, bundle: Path, empty: Path
) -> None:
    async with running(toml(upstream.url, more="sealed = true"), empty) as proxy:
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).status == 404
        await imported(empty, str(bundle))
        await proxy.app.housekeeping._round(None)
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).body == image.body


async def test_it_is_taken_in_beside_a_download_of_the_same_blob(
    upstream: FakeRegistry, image: Image, bundle: Path, tmp_path: Path
) -> None:
    store = tmp_path / "other"
    gate = upstream.on("GET", blob=image.layer_digests[0], times=1).gate(after=1_000_000)
    async with running(toml(upstream.url), store) as proxy:
        asking = asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{image.layer_digests[0]}"))
        await until(lambda: bool(proxy.spools()))
        await imported(store, str(bundle))
        assert image.layer_digests[0] in proxy.blobs()
        gate.open()
        assert len((await asking).body) == 3_000_000
        await proxy.settled()
        assert not proxy.spools()


async def test_of_an_index_the_platforms_in_the_bundle_come_and_its_digest_stays(
    upstream: FakeRegistry, store: Path, tmp_path: Path, empty: Path
) -> None:
    images = [upstream.add_image(REPO, "p1", [b"1"]), upstream.add_image(REPO, "p2", [b"2"], architecture="arm64")]
    index = upstream.add_index(REPO, "v2", images)
    configured(upstream, store)
    await exported(store, "--platform", "linux/arm64", "app:v2", str(tmp_path / "one.tar"))
    await exported(store, "--platform", "all", "app:v2", str(tmp_path / "all.tar"))
    (said,) = await imported(empty, str(tmp_path / "one.tar"))
    assert said["digest"] == index.digest
    (found,) = await listed(empty)
    assert [one["digest"] for one in found["platforms"]] == [images[1].digest]
    assert [one["missing"] for one in found["platforms"]] == [0]
    await imported(empty, str(tmp_path / "all.tar"))
    assert len((await listed(empty))[0]["platforms"]) == 2
    short = changed(tmp_path / "all.tar", lambda files: files.pop(path_of(images[0].digest)))
    async with running(toml(upstream.url), tmp_path / "third"):
        (said,) = await imported(tmp_path / "third", str(short), code=1)
    assert said["failure"] == "1 of its blobs are neither in the bundle nor in the cache"


def path_of(digest: str) -> str:
    """Where a blob is in a bundle."""
    return f"blobs/{digest.replace(':', '/')}"


async def test_what_was_left_out_has_to_be_there_first(
    upstream: FakeRegistry, bundle: Path, store: Path, tmp_path: Path, empty: Path
) -> None:
    new = upstream.add_image(OTHER, "v2", [bytes(3_000_000), b"new"])
    await exported(store, "--since", str(bundle), "acme/tool:v2", str(tmp_path / "new.tar"))
    (said,) = await imported(empty, str(tmp_path / "new.tar"), code=1)
    assert said["failure"] == (
        "1 of its blobs are neither in the bundle nor in the cache; this bundle leaves out what 'bundle.tar' has: "
        "import that first"
    )
    assert not [path for path in published(empty) if not path.startswith("blobs/")]
    await imported(empty, str(bundle))
    (said,) = await imported(empty, str(tmp_path / "new.tar"))
    assert (said["digest"], said["failure"]) == (new.digest, None)
    assert [one["missing"] for one in await listed(empty)] == [0, 0]


@pytest.mark.parametrize("dialect", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
async def test_other_tools_layouts_are_read_and_named_by_the_operator(
    image: Image, bundle: Path, empty: Path, tmp_path: Path, dialect: int
) -> None:
    files, index = files_of(bundle), index_of(bundle)
    index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
    files["index.json"] = json.dumps(index).encode()
    foreign = tmp_path / "foreign.tar"
    with tarfile.open(foreign, "w", format=dialect) as archive:
        for name in (".", "./blobs", "./blobs/sha256"):
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.DIRTYPE
            archive.addfile(entry)
        for name, body in reversed(files.items()):
            entry = tarfile.TarInfo(f"./{name}")
            entry.size, entry.mtime = len(body), 1.5 if dialect == tarfile.PAX_FORMAT else 1
            archive.addfile(entry, io.BytesIO(body))
    said = await entrepot(empty, "import", str(foreign), code=1)
    assert "--as docker.io/library/app:1" in said.stderr
    (one,) = await imported(empty, "--as", "acme/app:new", str(foreign))
    assert (one["digest"], one["failure"]) == (image.digest, None)
    (found,) = await listed(empty)
    assert (found["repository"], found["tags"][0]["tag"]) == ("docker.io/acme/app", "new")


async def test_the_name_of_a_registry_that_is_not_configured_is_a_failure_of_that_image_alone(
    upstream: FakeRegistry, store: Path, image: Image, bundle: Path, empty: Path, tmp_path: Path
) -> None:
    index = index_of(bundle)
    stranger = json.loads(json.dumps(index["manifests"][0]))
    stranger["annotations"] = {"io.containerd.image.name": "quay.example\x1b[2J/a/b:v1"}
    index["manifests"].insert(0, stranger)
    two = changed(bundle, lambda files: files.update({"index.json": json.dumps(index).encode()}))
    no, yes = await imported(empty, str(two), code=1)
    assert "quay.example\\x1b[2j is not configured here" in no["failure"]
    assert yes["failure"] is None
    (found,) = await listed(empty)
    assert found["repository"] == f"docker.io/{REPO}"


async def test_a_frozen_tag_stays_where_it_is(
    upstream: FakeRegistry, store: Path, bundle: Path, image: Image, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    async with running(toml(upstream.url), other) as proxy:
        newer = upstream.add_image(REPO, "v1", [b"newer"])
        await pull(proxy, newer)
    await entrepot(other, "freeze", "app:v1")
    (said,) = await imported(other, str(bundle), code=1)
    assert "frozen" in said["failure"]
    tags = {one["digest"]: [tag["tag"] for tag in one["tags"]] for one in await listed(other)}
    assert tags == {newer.digest: ["v1"], image.digest: []}


async def test_a_hostile_bundle_is_refused_in_one_line(bundle: Path, empty: Path, tmp_path: Path) -> None:
    link = tarfile.TarInfo("blobs/sha256/" + "0" * 64)
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hostile = packed(tmp_path / "hostile.tar", files_of(bundle), [link])
    said = await entrepot(empty, "import", str(hostile), code=1)
    assert said.stderr == f"entrepot: {hostile}: {link.name!a} is a link: a bundle has files alone\n"
    assert not published(empty)
    assert "No such file" in (await entrepot(empty, "import", str(tmp_path / "none"), code=2)).stderr


async def test_the_quota_holds_and_what_does_not_fit_is_said(upstream: FakeRegistry, bundle: Path, empty: Path) -> None:
    configured(upstream, empty, store_keys='max_size = "2 MB"')
    said = await entrepot(empty, "import", str(bundle), code=1)
    assert "the cache has no room for it" in said.stderr
    assert sum(path.stat().st_size for path in (empty / "blobs").rglob("*") if path.is_file()) < 2_000_000


async def test_a_sealed_cache_that_is_full_refuses_what_is_new_and_keeps_what_nobody_could_bring_back(
    upstream: FakeRegistry, bundle: Path, store: Path, tmp_path: Path
) -> None:
    upstream.add_image(REPO, "v2", [b"2" * 1_500_000, b"4" * 3_000_000])
    await exported(store, "app:v2", str(tmp_path / "second.tar"))
    sealed = tmp_path / "sealed"
    configured(upstream, sealed, more="sealed = true", store_keys='max_size = "5 MB"')
    await imported(sealed, str(bundle))
    before = published(sealed)
    for _ in range(2):  # what came of it before it failed has no name, and makes room
        said = await entrepot(sealed, "import", str(tmp_path / "second.tar"), code=1)
        assert "the cache has no room for it" in said.stderr
        assert before <= published(sealed)
    upstream.add_image(REPO, "v3", [b"3" * 1_500_000])
    await exported(store, "app:v3", str(tmp_path / "third.tar"))
    await imported(sealed, str(tmp_path / "third.tar"))
    assert before <= published(sealed)
    configured(upstream, sealed, store_keys='max_size = "5 MB"')  # sealed no more: upstream could bring it back
    await imported(sealed, str(tmp_path / "second.tar"))
    assert not before <= published(sealed)


async def test_what_goes_again_while_the_rest_comes_is_said(
    upstream: FakeRegistry, empty: Path, store: Path, tmp_path: Path
) -> None:
    upstream.add_image(REPO, "v3", [bytes([number]) * 1_000_000 for number in range(3)])
    configured(upstream, store)
    await exported(store, "app:v3", str(tmp_path / "large.tar"))
    configured(upstream, empty, store_keys='max_size = "2500 kB"')
    (said,) = await imported(empty, str(tmp_path / "large.tar"), code=1)
    assert "no room for all of it" in said["failure"]


async def ended_half_way(empty: Path, bundle: Path, number: signal.Signals) -> int:
    """Send a signal to an import that waits for the rest of a bundle; its exit status."""
    command = [sys.executable, "-m", "proxy", "import", "--config", str(empty.parent / f"{empty.name}.toml"), "-"]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, env={**os.environ, "ENTREPOT_STORE_PATH": str(empty)}
    )
    assert process.stdin is not None
    process.stdin.write((await asyncio.to_thread(bundle.read_bytes))[:2_000_000])
    await until(lambda: any(path.stat().st_size > 500_000 for path in empty.glob("spool/*")))
    process.send_signal(number)
    return await process.wait()


async def test_ctrl_c_ends_an_import_though_the_other_end_of_its_pipe_says_nothing(bundle: Path, empty: Path) -> None:
    assert await ended_half_way(empty, bundle, signal.SIGINT) == 130
    assert os.listdir(empty / "spool") == []


async def test_a_killed_import_leaves_nothing_wrong_and_can_be_done_again(
    upstream: FakeRegistry, bundle: Path, image: Image, empty: Path
) -> None:
    await ended_half_way(empty, bundle, signal.SIGKILL)
    assert not [path for path in published(empty) if not path.startswith("blobs/")]
    (said,) = await imported(empty, str(bundle))
    assert said["failure"] is None
    async with running(toml(upstream.url, more="sealed = true"), empty) as proxy:
        assert image.layer_digests[0] in proxy.blobs()
