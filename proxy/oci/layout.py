"""Bundles: an OCI image layout (image-spec image-layout.md) with the names of its images, and what `docker load` wants.

An index.json says of each image what it is called in full, so that who reads it knows registry, repository and tag.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxy.oci import manifest
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError
from proxy.oci.manifest import Descriptor, Manifest, ManifestInvalid

LAYOUT_PATH, INDEX_PATH, DOCKER_PATH = "oci-layout", "index.json", "manifest.json"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
LAYOUT_LIMIT = 4096  # bytes of an oci-layout that is read
CONFIGS = {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}

FULL_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
PARTS = (
    "io.entrepot.parts"  # of an index: the digests of the manifests that the bundle's maker took, with spaces between
)
BLOBS = "io.entrepot.blobs"  # of an image that is not meant to be whole: the digests of those that are, spaces between
SINCE = "io.entrepot.since"  # of the whole: the bundles whose blobs were left out


@dataclass(frozen=True, slots=True)
class Entry:
    """An image of a bundle. `parts`: the manifests of an index that belong to it here; None if nobody says.

    `blobs`: those that are meant to be there, where somebody recorded some only; None for all.
    """

    name: str | None
    top: Descriptor
    parts: Sequence[Digest] | None = None
    blobs: Sequence[Digest] | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """What an index.json says: the images, and the names of the bundles that came before, if any."""

    entries: Sequence[Entry]
    since: str | None = None


@dataclass(frozen=True, slots=True)
class Loadable:
    """A platform's image as `docker load` wants it: the digests of its config and of its layers, in order."""

    config: Digest
    layers: tuple[Digest, ...]


def blob_path(digest: Digest) -> str:
    """Where a blob is."""
    return f"blobs/{digest.algorithm}/{digest.encoded}"


def blob_digest(path: str) -> Digest | None:
    """The digest that a path below blobs/ is for; None for what is no blob. Raises OciError for an unknown kind."""
    root, _, rest = path.partition("/")
    return Digest.parse(rest.replace("/", ":", 1)) if root == "blobs" else None


def index(layout: Layout) -> bytes:
    """An index.json."""
    body: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": manifest.OCI_INDEX,
        "manifests": [_descriptor(one) for one in layout.entries],
    }
    if layout.since is not None:
        body["annotations"] = {SINCE: layout.since}
    return _json(body)


def _descriptor(entry: Entry) -> dict[str, Any]:
    annotations = {} if entry.name is None else {FULL_NAME: entry.name, REF_NAME: entry.name}
    for key, digests in ((PARTS, entry.parts), (BLOBS, entry.blobs)):
        if digests is not None:
            annotations[key] = " ".join(map(str, digests))
    return {
        "mediaType": entry.top.media_type,
        "digest": str(entry.top.digest),
        "size": entry.top.size,
        "annotations": annotations,
    }


def parse_index(body: bytes) -> Layout:
    """Read an index.json, whoever wrote it. Raises ManifestInvalid."""
    named = {one.digest: one for one in manifest.parse(body, manifest.OCI_INDEX).descriptors}
    document = json.loads(body)
    entries = []
    if not isinstance(document["manifests"], list):
        raise ManifestInvalid("it lists no images")
    for listed in document["manifests"]:
        descriptor = named.get(_digest(listed.get("digest"))) if isinstance(listed, dict) else None
        if descriptor is None:
            raise ManifestInvalid("it names an image by no digest and size")
        said = _annotations(listed)
        entries.append(Entry(_full_name(said), descriptor, _listed(said, PARTS), _listed(said, BLOBS)))
    return Layout(entries, _annotations(document).get(SINCE))


def check_layout(body: bytes) -> None:
    """Raise ManifestInvalid for an oci-layout of another kind."""
    try:
        version = json.loads(body)["imageLayoutVersion"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise ManifestInvalid("not an OCI image layout's") from None
    if not isinstance(version, str) or not version.startswith("1."):
        raise ManifestInvalid("of an OCI image layout that is not of version 1")


def _digest(text: object) -> Digest:
    try:
        return Digest.parse(str(text))
    except OciError as error:
        raise ManifestInvalid(f"{ascii(text)[:100]} is {error.message}") from None


def _annotations(value: Mapping[str, Any]) -> Mapping[str, str]:
    said = value.get("annotations")
    return {key: text for key, text in said.items() if isinstance(text, str)} if isinstance(said, dict) else {}


def _listed(annotations: Mapping[str, str], key: str) -> list[Digest] | None:
    return [_digest(text) for text in annotations[key].split()] if key in annotations else None


def _full_name(annotations: Mapping[str, str]) -> str | None:
    """What an image is called in full: many tools write no more than a tag, or nothing."""
    return next((annotations[key] for key in (FULL_NAME, REF_NAME) if "/" in annotations.get(key, "")), None)


def loadable(found: Manifest) -> Loadable | None:
    """A manifest as `docker load` wants it; None for what is no image, or whose layers registries do not have."""
    first, *rest = found.descriptors or (None,)
    if first is None or first.media_type not in CONFIGS or any(one.is_elsewhere for one in rest):
        return None
    return Loadable(first.digest, tuple(one.digest for one in rest))


def docker_manifest(images: Mapping[Loadable, Sequence[str]]) -> bytes:
    """A manifest.json as `docker save` writes it: images, and what each is called."""
    return _json(
        [
            {
                "Config": blob_path(image.config),
                "RepoTags": list(tags) or None,
                "Layers": [blob_path(layer) for layer in image.layers],
            }
            for image, tags in images.items()
        ]
    )


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
