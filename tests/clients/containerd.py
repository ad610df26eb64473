"""containerd, with hosts.toml files that lead to the proxy."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from .processes import CGROUP, ISOLATED, Daemon, run, show, tail

CONFIG = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "{directory}/containerd.sock"
"""


class Containerd:
    """A containerd, and a ctr that talks to it and, to run an image, looks into its root as well."""

    def __init__(self, directory: Path, hosts: Path) -> None:
        directory.mkdir()
        self._directory = directory
        self._hosts = hosts
        self._log = directory / "containerd.log"
        self._config = directory / "config.toml"
        self._config.write_text(CONFIG.format(directory=directory))

    @contextlib.contextmanager
    def running(self) -> Iterator["Containerd"]:
        """The daemon, for as long as the block lasts."""
        daemon = Daemon([*ISOLATED, "containerd", "--config", str(self._config)], self._log)
        try:
            daemon.wait_until(self._answers)
            yield self
        finally:
            daemon.stop()
            show(tail(self._log))

    def pull(self, name: str) -> str:
        self._ctr("images", "pull", "--hosts-dir", str(self._hosts), name)
        _, line = self._ctr("images", "list", f"name=={name}").splitlines()
        return line.split()[2]

    def run(self, name: str) -> str:
        fifos = ["--fifo-dir", str(self._directory / "fifos")]
        return self._ctr("run", "--rm", "--cgroup", f"/{CGROUP}/ctr", *fifos, name, "test")

    def load(self, bundle: Path) -> None:
        self._ctr("images", "import", str(bundle))

    def _ctr(self, *arguments: str) -> str:
        return run(["ctr", "--address", f"{self._directory}/containerd.sock", *arguments])

    def _answers(self) -> bool:
        with contextlib.suppress(AssertionError):
            self._ctr("version")
            return True
        return False


class Containerds:
    """Makes containerds that have nothing yet, and tells them where to look for which registry."""

    def __init__(self, directory: Path, proxy: str) -> None:
        self._hosts = directory / "hosts"
        self._directories = (directory / f"containerd{number}" for number in itertools.count())
        # What README tells users: one registry by name, and every other one by the default.
        self.ask("docker.io", f'server = "https://registry-1.docker.io"\n\n[host."{proxy}"]\n')
        self.ask("_default", f'[host."{proxy}"]\n')

    def ask(self, registry: str, host: str) -> None:
        """Write a registry's hosts.toml."""
        (self._hosts / registry).mkdir(parents=True)
        (self._hosts / registry / "hosts.toml").write_text(f'{host}capabilities = ["pull", "resolve"]\n')

    def empty(self) -> contextlib.AbstractContextManager[Containerd]:
        return Containerd(next(self._directories), self._hosts).running()
