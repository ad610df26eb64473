"""skopeo, with the proxy as its mirror of docker.io."""

import hashlib
import itertools
import json
from pathlib import Path

from .images import Image
from .processes import ISOLATED, run

REGISTRIES = """\
[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = "{proxy}"
insecure = true
"""


class Skopeo:
    """skopeo, copying into one new directory after the other."""

    def __init__(self, directory: Path, proxy: str) -> None:
        self._directories = (directory / f"copy{number}" for number in itertools.count())
        self._registries = directory / "skopeo.conf"
        self._registries.write_text(REGISTRIES.format(proxy=proxy))

    def copy(self, image: Image, source: str) -> None:
        """Copy an image with everything that its index names, and compare the bytes with upstream's."""
        directory = next(self._directories)
        directory.mkdir()
        self._skopeo("copy", "--quiet", "--all", "--src-tls-verify=false", f"docker://{source}", f"dir:{directory}")
        files = {f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in directory.iterdir()}
        manifests = {manifest.content.digest for manifest in image.manifests}
        assert {image.digest, *manifests, *image.blobs} <= files

    def tags(self, repository: str) -> list[str]:
        """The tags of a repository."""
        listing = json.loads(self._skopeo("list-tags", "--tls-verify=false", f"docker://{repository}"))
        tags: list[str] = listing["Tags"]
        return tags

    def _skopeo(self, *arguments: str) -> str:
        # It ignores the variable that podman takes the file's name from.
        return run([*ISOLATED, "skopeo", "--registries-conf", str(self._registries), *arguments])
