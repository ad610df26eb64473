"""containerd: hosts.toml, and `ns` to tell registries apart."""

import pytest

from .containerd import Containerds
from .pulling import Scene


@pytest.mark.parametrize("shape", ["index", "list", "single", "layered", "large"])
def test_containerd_pulls_from_its_mirror_and_again_without_upstream(
    scene: Scene, containerds: Containerds, shape: str
) -> None:
    image = scene.upstreams.images[shape]
    scene.pulls_cold_and_again_without_upstream(containerds.empty, image, image.name, "containerd/")


@pytest.mark.parametrize("shape", ["app", "other"])
def test_ns_tells_two_registries_apart_that_have_a_repository_of_the_same_name(
    scene: Scene, containerds: Containerds, shape: str
) -> None:
    image = scene.upstreams.images[shape]
    assert image.repository == "team/app"
    scene.pulls_cold_and_again_without_upstream(containerds.empty, image, image.name, "containerd/")
    assert {request.upstream for request in scene.proxy.requests()} == {image.registry}


def test_containerd_names_the_registry_in_an_overridden_path_too(scene: Scene, containerds: Containerds) -> None:
    image = scene.upstreams.images["other"]
    containerds.ask("ghcr.io", f'[host."{scene.proxy.url}/v2/ghcr.io"]\noverride_path = true\n')
    scene.pulls_cold_and_again_without_upstream(containerds.empty, image, image.name, "containerd/")


def test_containerd_pulls_by_digest(scene: Scene, containerds: Containerds) -> None:
    image = scene.upstreams.images["index"]
    name = f"{image.registry}/{image.repository}@{image.digest}"
    scene.pulls_cold_and_again_without_upstream(containerds.empty, image, name, "containerd/")
