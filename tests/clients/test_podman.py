"""podman: a mirror, a prefix in registries.conf, and a prefix in the image's name."""

import pytest

from .podman import Podmans
from .pulling import Scene


@pytest.mark.parametrize("shape", ["index", "list", "single", "layered", "large"])
def test_podman_pulls_from_its_mirror_and_again_without_upstream(scene: Scene, podmans: Podmans, shape: str) -> None:
    image = scene.upstreams.images[shape]
    scene.pulls_cold_and_again_without_upstream(podmans.empty, image, image.name, "containers/")


def test_podman_pulls_through_a_prefix_of_its_configuration(scene: Scene, podmans: Podmans) -> None:
    image = scene.upstreams.images["other"]
    scene.pulls_cold_and_again_without_upstream(podmans.empty, image, image.name, "containers/")


@pytest.mark.parametrize("shape", ["app", "other"])
def test_podman_pulls_by_a_name_that_starts_with_the_proxy(scene: Scene, podmans: Podmans, shape: str) -> None:
    image = scene.upstreams.images[shape]
    name = f"{scene.proxy.address}/{image.name}"
    scene.pulls_cold_and_again_without_upstream(podmans.empty, image, name, "containers/")
