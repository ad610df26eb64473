"""skopeo: whole copies, of all platforms and attestations, and listings."""

import pytest

from .pulling import Scene
from .skopeo import Skopeo


@pytest.mark.parametrize("shape", ["index", "list", "single", "layered", "large"])
def test_skopeo_copies_all_platforms_from_its_mirror_and_again_without_upstream(
    scene: Scene, skopeo: Skopeo, shape: str
) -> None:
    image = scene.upstreams.images[shape]
    with scene.proxy.serves(image.blobs, "skopeo/"):
        skopeo.copy(image, image.name)
    with scene.upstreams.stopped(), scene.proxy.serves(image.blobs, "skopeo/"):
        skopeo.copy(image, image.name)


def test_skopeo_copies_through_a_prefix(scene: Scene, skopeo: Skopeo) -> None:
    image = scene.upstreams.images["other"]
    source = f"{scene.proxy.address}/{image.name}"
    with scene.proxy.serves(image.blobs, "skopeo/"):
        skopeo.copy(image, source)
    with scene.upstreams.stopped(), scene.proxy.serves(image.blobs, "skopeo/"):
        skopeo.copy(image, source)


def test_skopeo_lists_the_tags_of_a_repository(scene: Scene, skopeo: Skopeo) -> None:
    image = scene.upstreams.images["other"]
    assert skopeo.tags(f"{scene.proxy.address}/{image.registry}/{image.repository}") == ["latest"]
