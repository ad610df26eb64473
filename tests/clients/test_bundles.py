"""Bundles: read by every client that reads such files, and imported where there is no upstream."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .containerd import Containerds
from .dockerd import Dockers
from .entrepot import Entrepot
from .podman import Podmans
from .pulling import Scene
from .skopeo import Skopeo

SHAPES = ("index", "list", "single", "layered")


@pytest.fixture
def bundle(scene: Scene, workplace: Path) -> Path:
    """Images of all shapes, brought in and exported."""
    path = workplace / "bundle.tar"
    scene.proxy.command("export", *(scene.upstreams.images[shape].name for shape in SHAPES), str(path))
    return path


def test_skopeo_reads_each_image_of_a_bundle_by_its_full_name(scene: Scene, skopeo: Skopeo, bundle: Path) -> None:
    for shape in SHAPES:
        skopeo.read(scene.upstreams.images[shape], bundle)


def test_docker_loads_a_bundle(scene: Scene, dockers: Dockers, bundle: Path) -> None:
    with dockers.empty() as docker:
        docker.load(bundle)
        for shape in SHAPES:
            image = scene.upstreams.images[shape]
            assert docker.run(image.name) == image.says


def test_podman_loads_a_bundle(scene: Scene, podmans: Podmans, bundle: Path) -> None:
    with scene.upstreams.stopped(), podmans.empty() as podman:
        podman.load(bundle)
        for shape in SHAPES:
            image = scene.upstreams.images[shape]
            assert podman.run(image.name) == image.says


def test_containerd_imports_a_bundle(scene: Scene, containerds: Containerds, bundle: Path) -> None:
    with containerds.empty() as containerd:
        containerd.load(bundle)
        for shape in SHAPES:
            image = scene.upstreams.images[shape]
            assert containerd.run(image.name) == image.says


@pytest.fixture
def sealed(scene: Scene, workplace: Path, bundle: Path) -> Iterator[Entrepot]:
    """Another cache, sealed, that had nothing until the bundle was imported beside it."""
    directory = workplace / "sealed"
    directory.mkdir()
    proxy = Entrepot(directory, scene.upstreams.urls, more="sealed = true\n")
    with proxy.running():
        proxy.command("import", str(bundle))
        yield proxy


def test_what_was_imported_is_pulled_with_no_upstream(scene: Scene, workplace: Path, sealed: Entrepot) -> None:
    containerds = Containerds(workplace / "sealed", sealed.url)
    podmans = Podmans(workplace / "sealed", sealed.address)
    with scene.upstreams.stopped():
        for empty, agent in ((containerds.empty, "containerd/"), (podmans.empty, "containers/")):
            for shape in SHAPES:
                image = scene.upstreams.images[shape]
                with empty() as client, sealed.serves(image.pulled, agent):
                    assert client.pull(image.name) == image.digest
                    assert client.run(image.name) == image.says


def test_what_skopeo_packed_is_imported_and_pulled(scene: Scene, workplace: Path, skopeo: Skopeo) -> None:
    image = scene.upstreams.images["index"]
    foreign = workplace / "foreign.tar"
    skopeo.pack(image, foreign)
    directory = workplace / "sealed"
    directory.mkdir()
    proxy = Entrepot(directory, scene.upstreams.urls, more="sealed = true\n")
    with proxy.running(), scene.upstreams.stopped():
        proxy.command("import", "--as", image.name, str(foreign))
        with Podmans(directory, proxy.address).empty() as podman, proxy.serves(image.pulled, "containers/"):
            assert podman.pull(image.name) == image.digest
            assert podman.run(image.name) == image.says
