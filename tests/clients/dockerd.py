"""dockerd, with the proxy as its mirror of Docker Hub."""

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from .processes import CGROUP, ISOLATED, Daemon, run, show, tail

# Debian's client, of the daemon's version; another one may come first on PATH.
DOCKER = "/usr/bin/docker"


class Docker:
    """A Docker daemon, and a client that talks to it; images are in the /var/lib that only the daemon sees."""

    def __init__(self, directory: Path, mirror: str, bridge: str) -> None:
        directory.mkdir()
        self._socket = f"unix://{directory}/docker.sock"
        self._env = {"DOCKER_HOST": self._socket, "DOCKER_CONFIG": str(directory), "DOCKER_BUILDKIT": "1"}
        self._log = directory / "dockerd.log"
        self._config = directory / "daemon.json"
        settings = {
            "registry-mirrors": [mirror],
            "deprecated-key-path": str(directory / "key.json"),
            "hosts": [self._socket],
            "cgroup-parent": f"/{CGROUP}",
            "bridge": bridge,
            "iptables": False,
            "ip6tables": False,
            "ip-forward": False,
        }
        self._config.write_text(json.dumps(settings))

    @contextlib.contextmanager
    def running(self) -> Iterator["Docker"]:
        """The daemon, for as long as the block lasts."""
        daemon = Daemon([*ISOLATED, "dockerd", "--config-file", str(self._config)], self._log)
        try:
            daemon.wait_until(self._answers)
            yield self
        finally:
            daemon.kill()  # it has nothing to lose, and would take seconds to say goodbye
            show(tail(self._log))

    def pull(self, name: str) -> str:
        self._docker("pull", name)
        known = self._docker("image", "inspect", "--format", "{{index .RepoDigests 0}}", name)
        return known.strip().rpartition("@")[2]

    def run(self, name: str) -> str:
        return self._docker("run", "--rm", "--network", "none", name)

    def load(self, bundle: Path) -> None:
        self._docker("load", "--input", str(bundle))

    def build(self, context: Path) -> None:
        """`docker build`, by BuildKit."""
        self._docker("build", "--network", "none", "--tag", "built", str(context))

    def _docker(self, *arguments: str) -> str:
        return run([DOCKER, *arguments], self._env)

    def _answers(self) -> bool:
        with contextlib.suppress(AssertionError):
            self._docker("version")
            return True
        return False


class Dockers:
    """Makes daemons that have nothing yet."""

    def __init__(self, directory: Path, mirror: str, bridge: str) -> None:
        self._directories = (directory / f"docker{number}" for number in itertools.count())
        self._mirror = mirror
        self._bridge = bridge

    def empty(self) -> contextlib.AbstractContextManager[Docker]:
        return Docker(next(self._directories), self._mirror, self._bridge).running()
