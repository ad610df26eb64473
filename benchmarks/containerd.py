"""A containerd of our own, with nothing in it: its root, its state and its socket are nobody else's.

As root only. What it mounts or starts is in a namespace that ends with it.
"""

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks.contents import REPOSITORY, TAG, Image
from benchmarks.drain import WrongAnswerError
from benchmarks.servers import START

CONFIG = """\
version = 2
root = "{root}"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "{folder}/containerd.sock"
"""
HOSTS = '[host."http://{host}"]\ncapabilities = ["pull", "resolve"]\n'
ISOLATED = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
PROGRAMS = ("containerd", "ctr", "unshare")


def is_possible() -> bool:
    """Whether this user may run one."""
    return os.geteuid() == 0


class Containerd:
    """One that runs, with its store below a folder and all else in another."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._folder = folder
        self._blobs = root / "io.containerd.content.v1.content" / "blobs" / "sha256"

    async def fetch(self, host: str, image: Image) -> float:
        """Have it bring an image from a host into its store, without unpacking it.

        Returns seconds from the start of its client until the last blob is verified, on disk and in place, which is
        when it sets its time: the client itself looks whether it is done ten times a second. Raises WrongAnswerError.
        """
        hosts = self._folder / "hosts"
        (hosts / "docker.io").mkdir(parents=True)
        (hosts / "docker.io" / "hosts.toml").write_text(HOSTS.format(host=host))
        began = time.time()
        await self.ctr("content", "fetch", "--hosts-dir", str(hosts), f"docker.io/{REPOSITORY}:{TAG}")
        files = [self._blobs / blob.encoded for blob in (image.manifest, *image.blobs)]
        if missing := [file for file in files if not file.exists()]:
            raise WrongAnswerError(f"containerd has not got {len(missing)} blobs from {host}")
        return max(file.stat().st_mtime for file in files) - began

    async def ctr(self, *arguments: str) -> str:
        """Ask it for something, by its own client. Raises WrongAnswerError."""
        pipe = asyncio.subprocess.PIPE
        command = ("ctr", "--address", str(self._folder / "containerd.sock"), *arguments)
        one = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
        said, _ = await one.communicate()
        if one.returncode:
            raise WrongAnswerError(f"ctr {arguments[0]}: {said.decode()[-300:]}")
        return said.decode()

    async def _answers(self) -> bool:
        with contextlib.suppress(WrongAnswerError):
            await self.ctr("version")
            return True
        return False

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, root: Path) -> AsyncIterator["Containerd"]:
        """Start one; it is gone at the end, with all that it has started."""
        with tempfile.TemporaryDirectory(prefix="bench-") as name:  # a socket's path has to be short
            folder = Path(name)
            config, own = folder / "config.toml", cls(root, folder)
            config.write_text(CONFIG.format(root=root, folder=folder))
            command = (*ISOLATED, "containerd", "--config", str(config))
            null = asyncio.subprocess.DEVNULL
            daemon = await asyncio.create_subprocess_exec(*command, stdout=null, stderr=null)
            try:
                async with asyncio.timeout(START):
                    while not await own._answers():
                        if daemon.returncode is not None:
                            raise RuntimeError(f"containerd ended with status {daemon.returncode}")
                yield own
            finally:
                with contextlib.suppress(ProcessLookupError):
                    daemon.kill()
                await daemon.wait()
