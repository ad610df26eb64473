"""The proxy under a certificate of an authority that only the client knows."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from .containerd import Containerds
from .entrepot import Entrepot
from .pulling import Scene
from .registries import Upstreams


@pytest.fixture
def authority() -> trustme.CA:
    """A certificate authority of the test's own."""
    return trustme.CA()


@pytest.fixture
def scene(workplace: Path, upstreams: Upstreams, authority: trustme.CA) -> Iterator[Scene]:
    """A proxy that speaks TLS."""
    upstreams.forget()
    proxy = Entrepot(workplace, upstreams.urls, authority)
    with proxy.running():
        yield Scene(proxy, upstreams)


def test_containerd_pulls_over_tls_and_again_without_upstream(
    scene: Scene, containerds: Containerds, workplace: Path, authority: trustme.CA
) -> None:
    image = scene.upstreams.images["other"]
    trusted = workplace / "authority.pem"
    authority.cert_pem.write_to_path(str(trusted))
    containerds.ask(image.registry, f'[host."{scene.proxy.url}"]\nca = "{trusted}"\n')
    scene.pulls_cold_and_again_without_upstream(containerds.empty, image, image.name, "containerd/")
