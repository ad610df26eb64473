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
        files = self._copied("--all", "--src-tls-verify=false", f"docker://{source}")
        manifests = {manifest.content.digest for manifest in image.manifests}
        assert {image.digest, *manifests, *image.blobs} <= files

    def read(self, image: Image, bundle: Path) -> None:
        """Copy this machine's platform of an image out of a bundle, by its full name.

        Of an OCI layout it takes OCI's media types only; what is of Docker's is there for `docker load`, as layers
        that are unpacked on the way.
        """
        if image.top.media_type.startswith("application/vnd.oci."):
            assert image.pulled <= self._copied(f"oci-archive:{bundle}:{image.name}")
        else:
            assert self._copied(f"docker-archive:{bundle}:{image.name}")

    def pack(self, image: Image, path: Path) -> None:
        """Put an image with all of its platforms into a file, as skopeo does."""
        self._skopeo(
            "copy", "--quiet", "--all", "--src-tls-verify=false", f"docker://{image.name}", f"oci-archive:{path}"
        )

    def _copied(self, *arguments: str) -> set[str]:
        """The digests of all files of a copy."""
        directory = next(self._directories)
        directory.mkdir()
        self._skopeo("copy", "--quiet", *arguments, f"dir:{directory}")
        return {f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in directory.iterdir()}

    def tags(self, repository: str) -> list[str]:
        """The tags of a repository."""
        listing = json.loads(self._skopeo("list-tags", "--tls-verify=false", f"docker://{repository}"))
        tags: list[str] = listing["Tags"]
        return tags

    def _skopeo(self, *arguments: str) -> str:
        # It ignores the variable that podman takes the file's name from.
        return run([*ISOLATED, "skopeo", "--registries-conf", str(self._registries), *arguments])
