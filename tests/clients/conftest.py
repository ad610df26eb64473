"""What real clients need: root, Debian's packages, upstream registries with content, and a proxy in front of them."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .ceph import Ceph
from .containerd import Containerds
from .dockerd import Dockers
from .entrepot import Entrepot
from .images import everything
from .podman import Podmans
from .processes import remove_cgroups, run, what_is_missing
from .pulling import Scene
from .registries import Upstreams
from .skopeo import Skopeo

HERE = Path(__file__).parent


def pytest_configure() -> None:
    """Refuse to start, in one sentence, where the clients cannot run."""
    reason = what_is_missing(as_root=True)
    if reason is not None:
        raise pytest.UsageError(f"the client tests cannot run: {reason}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Engines take their time; a signal, unlike a thread, lets the fixtures stop what they started."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.timeout(180, method="signal"))


@pytest.fixture(scope="session")
def upstreams() -> Iterator[Upstreams]:
    """Docker Hub and ghcr.io, as far as the clients can tell."""
    with tempfile.TemporaryDirectory(prefix="entrepot-upstream-") as directory:
        registries = Upstreams(Path(directory), everything())
        with registries.running():
            yield registries


@pytest.fixture(scope="session")
def ceph() -> Iterator[Ceph]:
    """A Ceph that speaks S3."""
    with tempfile.TemporaryDirectory(prefix="entrepot-ceph-") as directory:
        cluster = Ceph(Path(directory))
        with cluster.running():
            yield cluster


@pytest.fixture(scope="session")
def _cgroups() -> Iterator[None]:
    yield
    remove_cgroups()


@pytest.fixture
def workplace(_cgroups: None) -> Iterator[Path]:
    """A directory of a short name, for sockets, and one that is not kept: images are large."""
    directory = Path(tempfile.mkdtemp(prefix="entrepot-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def scene(workplace: Path, upstreams: Upstreams) -> Iterator[Scene]:
    """A proxy that has nothing in its cache yet, in front of the upstreams."""
    upstreams.forget()
    proxy = Entrepot(workplace, upstreams.urls)
    with proxy.running():
        yield Scene(proxy, upstreams)


@pytest.fixture(scope="session")
def bridge() -> Iterator[str]:
    """A bridge for the daemons: without one, or with none, dockerd would make or delete the machine's docker0."""
    name = f"entrepot{os.getpid()}"[:15]
    run(["ip", "link", "add", "name", name, "type", "bridge"])
    try:
        run(["ip", "address", "add", "192.0.2.1/24", "dev", name])
        yield name
    finally:
        run(["ip", "link", "delete", name])


@pytest.fixture
def dockers(workplace: Path, scene: Scene, bridge: str) -> Dockers:
    """Daemons with the proxy as their mirror of Docker Hub."""
    return Dockers(workplace, scene.proxy.url, bridge)


@pytest.fixture
def containerds(workplace: Path, scene: Scene) -> Containerds:
    """containerds with the proxy in front of every registry."""
    return Containerds(workplace, scene.proxy.url)


@pytest.fixture
def podmans(workplace: Path, scene: Scene) -> Podmans:
    """podmans with the proxy as a mirror of docker.io, and in the place of ghcr.io."""
    return Podmans(workplace, scene.proxy.address)


@pytest.fixture
def skopeo(workplace: Path, scene: Scene) -> Skopeo:
    """skopeo with the proxy as a mirror of docker.io."""
    return Skopeo(workplace, scene.proxy.address)
