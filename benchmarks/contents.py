"""What is pulled: an image of random bytes, laid out as files whose paths are the requests' for them."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = "library/bench"
TAG = "latest"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
MIB = 1024 * 1024


@dataclass(frozen=True)
class Blob:
    """Bytes and their name."""

    digest: str
    size: int

    @property
    def path(self) -> str:
        """Of a request for it."""
        return f"/v2/{REPOSITORY}/blobs/{self.digest}"

    @property
    def encoded(self) -> str:
        """The digest without its algorithm."""
        return self.digest.partition(":")[2]


@dataclass(frozen=True)
class Image:
    """An image with its files below `root`, at the paths of requests."""

    root: Path
    manifest: Blob
    config: Blob
    layers: tuple[Blob, ...]

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Config and layers."""
        return (self.config, *self.layers)

    @property
    def by_tag(self) -> str:
        """The path of the manifest by its tag."""
        return f"/v2/{REPOSITORY}/manifests/{TAG}"

    @property
    def by_digest(self) -> str:
        """The path of the manifest by its digest."""
        return f"/v2/{REPOSITORY}/manifests/{self.manifest.digest}"

    def file(self, path: str) -> Path:
        """Where the bytes of a request's path are."""
        return self.root / path.removeprefix("/")


def lay(root: Path, sizes: Sequence[int]) -> Image:
    """Make an image with layers of so many bytes."""
    folder = root / "v2" / REPOSITORY
    for name in ("blobs", "manifests"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    config = _blob(folder, iter([b'{"architecture":"amd64","os":"linux"}']))
    layers = tuple(_blob(folder, _noise(size)) for size in sizes)
    body = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": config.digest, "size": config.size},
            "layers": [{"mediaType": LAYER, "digest": layer.digest, "size": layer.size} for layer in layers],
        }
    ).encode()
    manifest = Blob(f"sha256:{hashlib.sha256(body).hexdigest()}", len(body))
    for name in (TAG, manifest.digest):
        (folder / "manifests" / name).write_bytes(body)
    return Image(root, manifest, config, layers)


def _noise(size: int) -> Iterator[bytes]:
    for offset in range(0, size, MIB):
        yield os.urandom(min(MIB, size - offset))


def _blob(folder: Path, chunks: Iterator[bytes]) -> Blob:
    hasher, size = hashlib.sha256(), 0
    growing = folder / "growing"
    with growing.open("wb") as file:
        for chunk in chunks:
            hasher.update(chunk)
            size += file.write(chunk)
    digest = f"sha256:{hasher.hexdigest()}"
    growing.rename(folder / "blobs" / digest)
    return Blob(digest, size)
