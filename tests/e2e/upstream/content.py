"""What the fake registry holds: per repository, as a real one."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
Document = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest's bytes and the media type they are served with."""

    body: bytes = field(repr=False)
    media_type: str


@dataclass(frozen=True, slots=True)
class Image:
    """What add_image has stored."""

    repo: str
    tag: str | None
    digest: str
    config_digest: str
    layer_digests: tuple[str, ...]
    sizes: Mapping[str, int]
    body: bytes = field(repr=False)
    media_type: str = OCI_MANIFEST

    @property
    def blob_digests(self) -> tuple[str, ...]:
        """Config and layers."""
        return (self.config_digest, *self.layer_digests)


@dataclass(frozen=True, slots=True)
class Index:
    """What add_index has stored."""

    repo: str
    tag: str | None
    digest: str
    images: tuple[Image, ...]
    body: bytes = field(repr=False)
    media_type: str = OCI_INDEX


@dataclass(slots=True)
class Repository:
    """One repository's content; nothing is shared with another."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def manifest(self, reference: str) -> tuple[str, Manifest] | None:
        """A manifest and its digest, by tag or digest."""
        digest = reference if ":" in reference else self.tags.get(reference, "")
        manifest = self.manifests.get(digest)
        return None if manifest is None else (digest, manifest)


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """The digest of some bytes."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


class Content:
    """All repositories, and how a test fills them."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}

    def add_blob(self, repo: str, data: bytes, algorithm: str = "sha256", *, digest: str | None = None) -> str:
        """Store a blob and return its digest; a digest of your own makes it a persistent lie."""
        name = digest or digest_of(data, algorithm)
        self._repository(repo).blobs[name] = data
        return name

    def add_manifest(
        self,
        repo: str,
        document: Document | bytes,
        media_type: str = OCI_MANIFEST,
        tags: Sequence[str] = (),
        algorithm: str = "sha256",
    ) -> str:
        """Store a manifest (bytes are kept verbatim), tag it, and return its digest."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        digest = digest_of(body, algorithm)
        self._repository(repo).manifests[digest] = Manifest(body, media_type)
        for tag in tags:
            self.tag(repo, tag, digest)
        return digest

    def tag(self, repo: str, tag: str, digest: str) -> None:
        """Let a tag name a digest from now on."""
        self._repository(repo).tags[tag] = digest

    def untag(self, repo: str, tag: str) -> None:
        """Remove a tag."""
        del self._repository(repo).tags[tag]

    def remove(self, repo: str, digest: str) -> None:
        """Remove a blob or a manifest."""
        repository = self._repository(repo)
        repository.blobs.pop(digest, None)
        repository.manifests.pop(digest, None)

    def add_image(
        self,
        repo: str,
        tag: str | None = None,
        layers: Sequence[bytes] = (b"a layer",),
        *,
        architecture: str = "amd64",
        **fields: object,
    ) -> Image:
        """Store an OCI image: its layers, a config, a manifest (with more fields, e.g. subject=)."""
        diff_ids = [digest_of(layer) for layer in layers]
        rootfs = {"type": "layers", "diff_ids": diff_ids}
        config = json.dumps({"architecture": architecture, "os": "linux", "config": {}, "rootfs": rootfs}).encode()
        sizes = {self.add_blob(repo, data): len(data) for data in (config, *layers)}
        document: dict[str, object] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, digest_of(config), len(config)),
            "layers": [descriptor(OCI_LAYER, digest_of(layer), len(layer)) for layer in layers],
            **fields,
        }
        body = json.dumps(document).encode()
        digest = self.add_manifest(repo, body, OCI_MANIFEST, [tag] if tag else [])
        frozen = MappingProxyType(sizes | {digest: len(body)})
        return Image(repo, tag, digest, digest_of(config), tuple(diff_ids), frozen, body)

    def add_index(self, repo: str, tag: str | None, images: Sequence[Image]) -> Index:
        """Store an OCI index over images of the same repository."""
        children = [
            descriptor(image.media_type, image.digest, len(image.body)) | {"platform": _platform(self, image)}
            for image in images
        ]
        body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}).encode()
        digest = self.add_manifest(repo, body, OCI_INDEX, [tag] if tag else [])
        return Index(repo, tag, digest, tuple(images), body)

    def _repository(self, repo: str) -> Repository:
        return self.repositories.setdefault(repo, Repository())


def descriptor(media_type: str, digest: str, size: int) -> dict[str, object]:
    """An OCI descriptor."""
    return {"mediaType": media_type, "digest": digest, "size": size}


def _platform(content: Content, image: Image) -> dict[str, object]:
    config = json.loads(content.repositories[image.repo].blobs[image.config_digest])
    return {"architecture": config["architecture"], "os": config["os"]}
