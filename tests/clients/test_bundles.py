"""Bundles: read by every client that reads such files, and imported where there is no upstream."""

from pathlib import Path

import pytest

from .containerd import Containerds
from .dockerd import Dockers
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
