"""dockerd: its own puller with registry-mirrors, and the BuildKit inside it."""

from pathlib import Path

import pytest

from .dockerd import Dockers
from .pulling import Scene


@pytest.mark.parametrize("shape", ["index", "list", "single", "layered", "large"])
def test_dockerd_pulls_from_its_mirror_and_again_without_upstream(scene: Scene, dockers: Dockers, shape: str) -> None:
    image = scene.upstreams.images[shape]
    scene.pulls_cold_and_again_without_upstream(dockers.empty, image, image.name, "docker/")


def test_dockerd_pulls_from_another_registry_by_a_prefix(scene: Scene, dockers: Dockers) -> None:
    image = scene.upstreams.images["other"]
    name = f"{scene.proxy.address}/{image.name}"
    scene.pulls_cold_and_again_without_upstream(dockers.empty, image, name, "docker/")


def test_buildkit_builds_from_the_mirror_and_again_without_upstream(
    scene: Scene, dockers: Dockers, workplace: Path
) -> None:
    image = scene.upstreams.images["index"]
    context = workplace / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(f'FROM {image.name}\nRUN ["/bin/busybox", "cp", "/greeting", "/copy"]\n')
    with dockers.empty() as docker, scene.proxy.serves(image.pulled, "containerd/"):
        docker.build(context)
        assert docker.run("built") == image.says
    with scene.upstreams.stopped(), dockers.empty() as docker, scene.proxy.serves(image.pulled, "containerd/"):
        docker.build(context)
        assert docker.run("built") == image.says
