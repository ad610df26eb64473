"""The index of a bundle: what it says of its images, ours and other tools'."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci import layout, manifest
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError
from proxy.oci.layout import Entry, Layout, Loadable
from proxy.oci.manifest import Descriptor, ManifestInvalid

ONE, TWO = Digest.of(b"one"), Digest.of(b"two", "sha512")
KEYS = st.sampled_from(["manifests", "annotations", "digest", "size", "mediaType", "schemaVersion"]) | st.text()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
)
NAME, REF = "io.containerd.image.name", "org.opencontainers.image.ref.name"
TOP = Descriptor(manifest.OCI_INDEX, ONE, 7)


def foreign(**annotations: object) -> bytes:
    """An index.json as another tool may write it."""
    entry = {"mediaType": manifest.OCI_MANIFEST, "digest": str(ONE), "size": 7, "annotations": annotations}
    return json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()


def test_what_is_written_is_read_again() -> None:
    entries = [
        Entry("docker.io/library/app:v1", TOP, [ONE, TWO], [TWO]),
        Entry(None, Descriptor(manifest.OCI_MANIFEST, TWO, 9)),
    ]
    for written in (Layout(entries, "old.tar"), Layout(entries), Layout([])):
        assert layout.parse_index(layout.index(written)) == written


@pytest.mark.parametrize(
    ("annotations", "name"),
    [
        ({NAME: "docker.io/library/app:v1", REF: "v1"}, "docker.io/library/app:v1"),
        ({REF: "ghcr.io/a/b:v1"}, "ghcr.io/a/b:v1"),
        ({REF: "v1"}, None),
        ({REF: 7}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_only_a_full_name_is_a_name(annotations: dict[str, object], name: str | None) -> None:
    (entry,) = layout.parse_index(foreign(**annotations)).entries
    assert (entry.name, entry.parts) == (name, None)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"{}", b'{"manifests":7,"schemaVersion":2}', b'{"manifests":[7]}', b'{"manifests":[{}]}',
        b'{"manifests":[{"digest":"sha256:00","size":1}]}', b'{"manifests":[],"manifests":[]}', b"[" * 100_000,
        foreign(**{layout.PARTS: "sha256:00"}), b'{"manifests":[{"digest":{"a":[1]},"size":1}]}',
    ],
)  # fmt: skip
def test_what_is_no_index_is_refused(body: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        layout.parse_index(body)


@given(VALUES)
def test_any_json_is_read_or_refused(value: Any) -> None:
    for body in (json.dumps(value).encode(), json.dumps({"manifests": value, "annotations": value}).encode()):
        with contextlib.suppress(ManifestInvalid):
            layout.parse_index(body)


def test_the_layout_of_another_version_is_refused() -> None:
    layout.check_layout(layout.LAYOUT)
    for body in (b"", b"{}", b"[]", b'{"imageLayoutVersion":"2.0"}', b'{"imageLayoutVersion":1}', b"[" * 4000):
        with pytest.raises(ManifestInvalid):
            layout.check_layout(body)


def test_a_blobs_path_is_its_digest_and_other_paths_are_none() -> None:
    for digest in (ONE, TWO):
        assert layout.blob_digest(layout.blob_path(digest)) == digest
    assert layout.blob_digest("index.json") is None
    for path in ("blobs/sha256/00", "blobs/blake3/" + "0" * 64, "blobs/sha256/x/" + ONE.encoded, "blobs"):
        with pytest.raises(OciError):
            layout.blob_digest(path)


def test_docker_gets_images_alone_and_no_layers_from_elsewhere() -> None:
    def document(config: str, layer: str) -> bytes:
        return json.dumps({
            "schemaVersion": 2, "mediaType": manifest.OCI_MANIFEST,
            "config": {"mediaType": config, "digest": str(ONE), "size": 3},
            "layers": [{"mediaType": layer, "digest": str(TWO), "size": 3}] * 2,
        }).encode()  # fmt: skip

    image, tar = "application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar"
    found = layout.loadable(manifest.parse(document(image, tar), ""))
    assert found == Loadable(ONE, (TWO, TWO))
    assert layout.loadable(manifest.parse(document("application/vnd.cncf.helm.config.v1+json", tar), "")) is None
    assert (
        layout.loadable(manifest.parse(document(image, "application/vnd.oci.image.layer.nondistributable.v1.tar"), ""))
        is None
    )
