"""Images in a file: an OCI image layout that has all that they need, the same bytes each time, and nothing half."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from .harness import running, toml
from .test_inventory import entrepot, pull
from .test_warm import configured
from .upstream import FakeRegistry

REPO, OTHER = "library/app", "acme/tool"


async def exported(store: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    """What `entrepot export --json` says."""
    said = await entrepot(store, "export", "--json", *arguments, code=code)
    found: dict[str, Any] = json.loads(said.stdout)
    return found


def files_of(bundle: Path) -> dict[str, bytes]:
    """The files of a bundle, by their paths."""
    with tarfile.open(bundle) as archive:
        found = {}
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            found[member.name] = content.read()
    return found


def index_of(bundle: Path) -> dict[str, Any]:
    """The index.json of a bundle."""
    found: dict[str, Any] = json.loads(files_of(bundle)["index.json"])
    return found


def blobs_of(bundle: Path) -> set[str]:
    """The digests of a bundle's blobs, each of which is that of its bytes."""
    found = {name: body for name, body in files_of(bundle).items() if name.startswith("blobs/")}
    assert all(name == f"blobs/sha256/{hashlib.sha256(body).hexdigest()}" for name, body in found.items())
    return {name.removeprefix("blobs/").replace("/", ":") for name in found}


async def test_a_bundle_is_a_layout_with_all_that_an_image_needs_and_its_full_name(
    upstream: FakeRegistry, store: Path, tmp_path: Path
) -> None:
    image = upstream.add_image(REPO, "v1", [bytes(3_000_000), b"two"])
    configured(upstream, store)
    bundle = tmp_path / "bundle.tar"
    said = await exported(store, "app:v1", str(bundle))
    assert blobs_of(bundle) == {image.digest, *image.blob_digests}
    assert list(files_of(bundle))[-3:] == ["index.json", "manifest.json", "oci-layout"]
    (entry,) = index_of(bundle)["manifests"]
    assert (entry["digest"], entry["size"]) == (image.digest, len(image.body))
    assert set(entry["annotations"].values()) == {"docker.io/library/app:v1"}
    assert said["size"] == sum(map(len, (body for name, body in files_of(bundle).items() if name.startswith("blobs/"))))
    assert (said["blobs"], said["left_out"], said["images"][0]["digest"]) == (4, 0, image.digest)


async def test_docker_finds_the_config_and_the_layers_in_order(
    upstream: FakeRegistry, store: Path, tmp_path: Path
) -> None:
    image = upstream.add_image(REPO, "v1", [b"one", b"two"])
    upstream.tag(REPO, "latest", image.digest)
    configured(upstream, store)
    bundle = tmp_path / "bundle.tar"
    await exported(store, "app:v1", "app", "docker.io/library/app:v1", str(bundle))
    assert len(index_of(bundle)["manifests"]) == 2
    (entry,) = json.loads(files_of(bundle)["manifest.json"])
    assert entry["RepoTags"] == ["docker.io/library/app:v1", "docker.io/library/app:latest"]
    paths = [entry["Config"], *entry["Layers"]]
    assert [path.removeprefix("blobs/").replace("/", ":") for path in paths] == list(image.blob_digests)


async def test_the_same_images_make_the_same_bytes(upstream: FakeRegistry, store: Path, tmp_path: Path) -> None:
    upstream.add_image(REPO, "v1", [b"one"])
    configured(upstream, store)
    await exported(store, "app:v1", str(tmp_path / "one.tar"))
    (tmp_path / "second").mkdir()
    configured(upstream, tmp_path / "second" / "cache")
    await exported(tmp_path / "second" / "cache", "app:v1", str(tmp_path / "two.tar"))
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


async def test_of_an_index_the_platforms_that_are_wanted_are_in_it_and_its_digest_stays(
    upstream: FakeRegistry, store: Path, tmp_path: Path
) -> None:
    images = [upstream.add_image(REPO, "p1", [b"1"]), upstream.add_image(REPO, "p2", [b"2"], architecture="arm64")]
    index = upstream.add_index(REPO, "v1", images)
    configured(upstream, store)
    bundle = tmp_path / "bundle.tar"
    await exported(store, "--platform", "linux/arm64", "app:v1", str(bundle))
    wanted = {index.digest, images[1].digest, *images[1].blob_digests}
    assert blobs_of(bundle) == wanted
    (entry,) = index_of(bundle)["manifests"]
    assert (entry["digest"], entry["annotations"]["io.entrepot.parts"]) == (index.digest, images[1].digest)
    said = await entrepot(store, "export", "--platform", "plan9/mips", "app:v1", str(bundle), code=1)
    assert "nothing for plan9/mips" in said.stderr
    assert blobs_of(bundle) == wanted, "what was there before has been touched"


async def test_what_an_earlier_bundle_has_is_left_out_and_that_is_said(
    upstream: FakeRegistry, store: Path, tmp_path: Path
) -> None:
    old = upstream.add_image(REPO, "v1", [b"shared", b"old"])
    new = upstream.add_image(REPO, "v2", [b"shared", b"new"])
    configured(upstream, store)
    await exported(store, "app:v1", str(tmp_path / "old.tar"))
    said = await exported(store, "--since", str(tmp_path / "old.tar"), "app:v1", "app:v2", str(tmp_path / "new.tar"))
    everything = {old.digest, *old.blob_digests, new.digest, *new.blob_digests}
    assert blobs_of(tmp_path / "new.tar") == everything - blobs_of(tmp_path / "old.tar")
    index = index_of(tmp_path / "new.tar")
    assert [one["digest"] for one in index["manifests"]] == [old.digest, new.digest]
    assert index["annotations"] == {"io.entrepot.since": "old.tar"}
    assert said["left_out"] == len(blobs_of(tmp_path / "old.tar"))
    (loadable,) = json.loads(files_of(tmp_path / "new.tar")["manifest.json"])  # it has no config of v1 any more
    assert loadable["RepoTags"] == ["docker.io/library/app:v2"]
    (tmp_path / "cut.tar").write_bytes((tmp_path / "old.tar").read_bytes()[:2000])
    refused = await entrepot(store, "export", "--since", str(tmp_path / "cut.tar"), "app:v1", "-", code=2)
    assert "cut off" in refused.stderr


async def test_a_bundle_never_takes_the_place_of_the_one_that_it_goes_by(
    upstream: FakeRegistry, store: Path, tmp_path: Path
) -> None:
    upstream.add_image(REPO, "v1", [b"one"])
    configured(upstream, store)
    old = tmp_path / "old.tar"
    await exported(store, "app:v1", str(old))
    before = old.read_bytes()
    (tmp_path / "link.tar").symlink_to(old)
    refused = await entrepot(store, "export", "--since", str(tmp_path / "link.tar"), "app:v1", str(old), code=2)
    assert "would take its place" in refused.stderr
    assert old.read_bytes() == before


async def test_only_what_is_cached_is_exported_without_a_question_and_what_is_not_whole_is_refused(
    upstream: FakeRegistry, store: Path, tmp_path: Path
) -> None:
    one = upstream.add_image(REPO, "v1", [b"one"])
    two = upstream.add_image(OTHER, "v1", [b"two", b"three"])
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, one)
        await pull(proxy, two, blobs=1)
    before, bundle = upstream.connections, tmp_path / "bundle.tar"
    await exported(store, "--cached", "app:v1", str(bundle))
    assert blobs_of(bundle) == {one.digest, *one.blob_digests}
    bundle.unlink()
    said = await entrepot(store, "export", "--cached", "app:v1", "acme/tool:v1", "app:v9", str(bundle), code=1)
    assert "acme/tool:v1: 2 of its blobs, 8 B, are not cached" in said.stderr
    assert "app:v9: nothing of it is cached" in said.stderr
    assert "nothing is exported" in said.stderr
    assert not bundle.exists()
    assert upstream.connections == before


async def test_what_upstream_does_not_have_is_named_and_nothing_is_written(
    upstream: FakeRegistry, store: Path, tmp_path: Path
) -> None:
    upstream.add_image(REPO, "v1", [b"one"])
    configured(upstream, store)
    said = await entrepot(store, "export", "app:v1", "app:v9", str(tmp_path / "bundle.tar"), code=1)
    assert "app:v9: docker.io has no such thing" in said.stderr
    assert not (tmp_path / "bundle.tar").exists()


async def test_a_damaged_blob_stops_it_and_leaves_no_bundle(
    upstream: FakeRegistry, store: Path, tmp_path: Path
) -> None:
    image = upstream.add_image(REPO, "v1", [bytes(2_000_000)])
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, image)
        path = proxy.blob_path(image.layer_digests[0])
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(1_500_000)
        file.write(b"rot")
    path.chmod(0o400)
    bundle = tmp_path / "bundle.tar"
    bundle.write_bytes(b"before")
    said = await entrepot(store, "export", "--cached", "app:v1", str(bundle), code=1)
    assert said.stderr == (
        f"entrepot: {image.layer_digests[0]} is damaged in the cache: entrepot rm its image, and bring it in again\n"
    )
    assert bundle.read_bytes() == b"before"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".bundle")]


async def test_it_goes_to_standard_output_and_what_is_said_does_not(
    upstream: FakeRegistry, store: Path, tmp_path: Path
) -> None:
    image = upstream.add_image(REPO, "v1", [b"one"])
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, image)
    command = [sys.executable, "-m", "proxy", "export", "--config", str(store.parent / f"{store.name}.toml")]
    done = subprocess.run(  # noqa: ASYNC221  nothing else goes on here
        [*command, "--cached", "app:v1", "-"], env={"ENTREPOT_STORE_PATH": str(store)}, capture_output=True, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        assert "index.json" in archive.getnames()
    assert b"app:v1: 3 blobs" in done.stderr


async def test_a_place_that_cannot_be_written_is_named(upstream: FakeRegistry, store: Path, tmp_path: Path) -> None:
    upstream.add_image(REPO, "v1", [b"one"])
    configured(upstream, store)
    for place, word in (
        (tmp_path / "none" / "bundle.tar", "cannot be written (No such file or directory)"),
        (tmp_path, "it is no file"),
        (Path("/dev/full"), "it is no file"),
    ):
        assert word in (await entrepot(store, "export", "app:v1", str(place), code=2)).stderr
    assert "Name images" in (await entrepot(store, "export", str(tmp_path / "bundle.tar"), code=2)).stderr
