"""podman, with the proxy as a mirror of docker.io, and in the place of ghcr.io."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from .processes import CGROUP, ISOLATED, run

REGISTRIES = """\
[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = "{proxy}"
insecure = true

[[registry]]
prefix = "ghcr.io"
location = "{proxy}/ghcr.io"
insecure = true
"""
STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{directory}/root"
runroot = "{directory}/run"
"""
# The ulimits are for machines where root may not raise them; crun refuses a hybrid hierarchy of control groups.
CONTAINERS = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
netns = "none"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
tmp_dir = "{directory}/tmp"
[network]
network_config_dir = "{directory}/networks"
"""


class Podman:
    """podman, with a storage of its own."""

    def __init__(self, directory: Path, registries: Path) -> None:
        directory.mkdir()
        self._env = {"CONTAINERS_REGISTRIES_CONF": str(registries), "HOME": str(directory)}
        for variable, text in (("CONTAINERS_STORAGE_CONF", STORAGE), ("CONTAINERS_CONF", CONTAINERS)):
            path = directory / variable
            path.write_text(text.format(directory=directory))
            self._env[variable] = str(path)

    def pull(self, name: str) -> str:
        self._podman("pull", "--quiet", "--tls-verify=false", name)
        return self._podman("image", "inspect", "--format", "{{.Digest}}", name).strip()

    def run(self, name: str) -> str:
        return self._podman("run", "--rm", "--cgroup-parent", f"/{CGROUP}", name)

    def load(self, bundle: Path) -> None:
        self._podman("load", "--quiet", "--input", str(bundle))

    def _podman(self, *arguments: str) -> str:
        return run([*ISOLATED, "podman", *arguments], self._env)


class Podmans:
    """Makes podmans that have nothing yet."""

    def __init__(self, directory: Path, proxy: str) -> None:
        self._directories = (directory / f"podman{number}" for number in itertools.count())
        self._registries = directory / "registries.conf"
        self._registries.write_text(REGISTRIES.format(proxy=proxy))

    @contextlib.contextmanager
    def empty(self) -> Iterator[Podman]:
        yield Podman(next(self._directories), self._registries)
