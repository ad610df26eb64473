"""All clients at once, as on a morning when a new image is out."""

from concurrent.futures import ThreadPoolExecutor

from .containerd import Containerds
from .dockerd import Dockers
from .podman import Podmans
from .pulling import Scene
from .skopeo import Skopeo


def test_four_kinds_of_clients_at_once_cost_one_transfer_from_upstream(
    scene: Scene, dockers: Dockers, containerds: Containerds, podmans: Podmans, skopeo: Skopeo
) -> None:
    image = scene.upstreams.images["large"]
    with (
        dockers.empty() as docker,
        containerds.empty() as containerd,
        podmans.empty() as podman,
        ThreadPoolExecutor() as threads,
    ):
        copied = threads.submit(skopeo.copy, image, image.name)
        pulled = list(threads.map(lambda client: client.pull(image.name), [docker, containerd, podman]))
        copied.result()
        assert set(pulled) == {image.digest}
        assert {docker.run(image.name), containerd.run(image.name), podman.run(image.name)} == {image.says}
    downloads = scene.upstreams.of(image).downloads(image)
    assert downloads == dict.fromkeys(image.blobs, 1)
