"""Images made from nothing but busybox: the same bytes on every run of a machine, in every shape that clients meet."""

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

BUSYBOX = Path("/bin/busybox")  # of Debian's busybox-static, so that it runs in an otherwise empty image
HERE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
ELSEWHERE = {"amd64": "arm64", "arm64": "amd64"}[HERE]
EPOCH = "1970-01-01T00:00:00Z"


@dataclass(frozen=True)
class Family:
    """The media types that belong together."""

    index: str
    manifest: str
    config: str
    layer: str


OCI = Family(
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.oci.image.layer.v1.tar+gzip",
)
DOCKER = Family(
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.container.image.v1+json",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
)


@dataclass(frozen=True)
class Content:
    """Bytes with a media type: a blob or a manifest."""

    media_type: str
    body: bytes

    @cached_property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.body).hexdigest()}"

    @property
    def descriptor(self) -> dict[str, object]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.body)}


@dataclass(frozen=True)
class Manifest:
    """A manifest of one platform, with the blobs that it names."""

    content: Content
    blobs: tuple[Content, ...]
    architecture: str


@dataclass(frozen=True)
class Image:
    """Everything that a registry holds of one image; `says` is what it prints when it runs."""

    registry: str
    repository: str
    top: Content
    manifests: tuple[Manifest, ...]
    says: str

    @property
    def name(self) -> str:
        return f"{self.registry}/{self.repository}:latest"

    @property
    def digest(self) -> str:
        return self.top.digest

    @property
    def pulled(self) -> frozenset[str]:
        """The digests of the blobs that a pull on this machine must transfer."""
        return frozenset(blob.digest for found in self.manifests if found.architecture == HERE for blob in found.blobs)

    @property
    def blobs(self) -> frozenset[str]:
        """The digests of all its blobs, of every platform."""
        return frozenset(blob.digest for found in self.manifests for blob in found.blobs)


def everything() -> dict[str, Image]:
    """The images of the tests, by a word for their shape; `other` is Docker Hub's `app` in name and no more."""
    base = {"bin/busybox": BUSYBOX.read_bytes()}
    return {
        "index": _index("docker.io", "library/alpine", OCI, base),
        "list": _index("docker.io", "library/legacy", DOCKER, base),
        "single": _single("docker.io", "library/single", [base]),
        "layered": _single("docker.io", "library/layered", [base, *({f"layer/{n}": b"%d" % n} for n in range(59))]),
        "large": _single("docker.io", "library/large", [base, {"large": _noise(50_000_000)}]),
        "parted": _single("docker.io", "library/parted", [base, {"parted": _noise(20_000_000)}]),
        "app": _index("docker.io", "team/app", OCI, base),
        "other": _index("ghcr.io", "team/app", OCI, base),
    }


def _noise(size: int) -> bytes:
    """Bytes that do not compress."""
    return hashlib.shake_256(b"entrepot").digest(size)


def _single(registry: str, repository: str, layers: Sequence[Mapping[str, bytes]]) -> Image:
    says = f"{repository} of {registry}"
    manifest = _manifest(OCI, HERE, [*layers, {"greeting": says.encode()}])
    return Image(registry, repository, manifest.content, (manifest,), says)


def _index(registry: str, repository: str, family: Family, base: Mapping[str, bytes]) -> Image:
    says = f"{repository} of {registry}"
    here = _manifest(family, HERE, [base, {"greeting": says.encode()}])
    elsewhere = _manifest(family, ELSEWHERE, [{"greeting": b"elsewhere"}])
    manifests = [here, elsewhere]
    if family is OCI:
        manifests.append(_attestation(here))
    entries = [_entry(found, here) for found in manifests]
    return Image(registry, repository, _document(family.index, manifests=entries), tuple(manifests), says)


def _entry(found: Manifest, subject: Manifest) -> dict[str, object]:
    if found.architecture != "unknown":
        return {**found.content.descriptor, "platform": {"architecture": found.architecture, "os": "linux"}}
    return {
        **found.content.descriptor,
        "platform": {"architecture": "unknown", "os": "unknown"},
        "annotations": {
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": subject.content.digest,
        },
    }


def _manifest(family: Family, architecture: str, layers: Sequence[Mapping[str, bytes]]) -> Manifest:
    archives = [_archive(files) for files in layers]
    config = {
        "architecture": architecture,
        "os": "linux",
        "created": EPOCH,
        "config": {"Cmd": ["/bin/busybox", "cat", "/greeting"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in archives]},
        "history": [{"created": EPOCH, "created_by": "tests/clients/images.py"} for _ in archives],
    }
    blobs = [Content(family.layer, gzip.compress(tar, compresslevel=1, mtime=0)) for tar in archives]
    return _with_blobs(family.manifest, Content(family.config, _json(config)), blobs, architecture)


def _attestation(subject: Manifest) -> Manifest:
    """What BuildKit pushes beside an image; only a copy of all platforms fetches it."""
    name, _, encoded = subject.content.digest.partition(":")
    statement = {
        "_type": "https://in-toto.io/Statement/v0.1",
        "predicateType": "https://slsa.dev/provenance/v0.2",
        "subject": [{"name": "image", "digest": {name: encoded}}],
        "predicate": {},
    }
    layer = Content("application/vnd.in-toto+json", _json(statement))
    config = {"architecture": "unknown", "os": "unknown", "rootfs": {"type": "layers", "diff_ids": [layer.digest]}}
    return _with_blobs(OCI.manifest, Content(OCI.config, _json(config)), [layer], "unknown")


def _with_blobs(media_type: str, config: Content, layers: Sequence[Content], architecture: str) -> Manifest:
    content = _document(media_type, config=config.descriptor, layers=[layer.descriptor for layer in layers])
    return Manifest(content, (config, *layers), architecture)


def _document(media_type: str, **members: object) -> Content:
    return Content(media_type, _json({"schemaVersion": 2, "mediaType": media_type, **members}))


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2).encode()


def _archive(files: Mapping[str, bytes]) -> bytes:
    """A tar archive without anything of the day or the machine in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, body in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(body), 0o755
            archive.addfile(entry, io.BytesIO(body))
    return buffer.getvalue()
