"""Manifests and indexes (image-spec manifest.md and image-index.md), read for what they name and never rewritten.

Clients parse the same bytes with other parsers: what two parsers could understand in two ways is refused
(CVE-2021-41190, and Go's encoding/json, which takes keys in any letter case).
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NoReturn, TypeAlias

from proxy.oci.digest import Digest
from proxy.oci.errors import OciError

MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 64
MAX_CONTAINERS = 100_000  # objects and lists: a manifest of 4 MiB whose descriptors are real has some 40,000
MOST_NESTED = 2  # indexes within an index that are followed

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})  # name manifests, one for each platform
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
IMAGES = frozenset({*INDEXES, OCI_MANIFEST, DOCKER_MANIFEST})
ACCEPT = ", ".join((OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST))

_SCHEMA1 = {
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
}
_GENERIC = {"", "application/json", "text/plain", "application/octet-stream"}
_TCHAR = r"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_MEDIA_TYPE = re.compile(rf"(?=.{{3,255}}\Z){_TCHAR}++/{_TCHAR}++", re.ASCII)

# The keys that decide what a document is, by their folded form.
_DECISIVE = {key.casefold(): key for key in ("mediaType", "manifests", "layers", "config", "subject", "schemaVersion")}

# Brackets as signed steps of depth; everything else but quotes is deleted.
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_STEP = bytes(byte for byte in range(256) if byte not in b'[{]}"')

_SURROGATE_PAIR = re.compile(rb"\\u[dD][89abAB]..\\u[dD][c-fC-F]..")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

# A JSON object as json.loads hands it over here: the pairs as written, and a tuple, where an array is a list.
_Object: TypeAlias = tuple[tuple[str, object], ...]


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a manifest says of a blob or of another manifest (image-spec descriptor.md)."""

    media_type: str
    digest: Digest
    size: int

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is a layer that registries do not have, by its manifest's word: such are never followed."""
        return "foreign" in self.media_type or "nondistributable" in self.media_type


@dataclass(frozen=True, slots=True)
class Manifest:
    """A document that is consistent in itself: its exact bytes and, in order, what it names."""

    body: bytes
    digest: Digest
    media_type: str
    descriptors: tuple[Descriptor, ...]


class ManifestInvalid(ValueError):
    """The bytes are no manifest that every client would understand alike."""


def parse(body: bytes, declared: str, algorithm: str = "sha256") -> Manifest:
    """Read a manifest that came with this Content-Type, or raise ManifestInvalid."""
    fields = _decisive_fields(_read_object(body))
    media_type = _media_type(fields, declared)
    _check_shape(fields, media_type)
    return Manifest(body, Digest.of(body, algorithm), media_type, _descriptors(fields))


def _read_object(body: bytes) -> _Object:
    if len(body) > MAX_BYTES:
        raise ManifestInvalid(f"larger than {MAX_BYTES} bytes")
    _check_text(body)
    try:
        value = json.loads(
            body.decode("utf-8"), object_pairs_hook=tuple, parse_constant=_refuse_constant, parse_float=_finite
        )
    except (ValueError, RecursionError, MemoryError) as error:
        raise ManifestInvalid("not valid JSON") from error
    if not isinstance(value, tuple):
        raise ManifestInvalid("not a JSON object")
    return value


def _check_text(body: bytes) -> None:
    # json.loads does not let go of the GIL: 4 MiB of nothing but {} would stop the event loop for a second.
    if body.count(b"{") + body.count(b"[") > MAX_CONTAINERS:
        raise ManifestInvalid(f"has more than {MAX_CONTAINERS} objects and lists")
    # Without its escaped backslashes, a backslash that is left escapes what follows it.
    text = body.replace(rb"\\", b"__")
    if _SURROGATE.search(_SURROGATE_PAIR.sub(b"", text)):
        raise ManifestInvalid("has a lone surrogate")
    if _depth(text) > MAX_DEPTH:
        raise ManifestInvalid(f"nested deeper than {MAX_DEPTH} levels")


def _depth(text: bytes) -> int:
    """How deep the brackets of a JSON container nest; its strings may hold brackets, but no escaped backslashes.

    Each step is one call over the whole text, because a loop over 4 MiB would stop the event loop.
    """
    marks = text.replace(rb"\"", b"").translate(_STEPS, _NO_STEP).replace(b'""', b"")
    outside = b"".join(marks.split(b'"')[::2])
    # Taking away every innermost pair takes exactly one level; longer steps reach the same heights.
    steps = outside.replace(b"\x01\xff", b"")
    for step, twice in ((b"\x01", b"\x02"), (b"\xff", b"\xfe"), (b"\x02", b"\x04"), (b"\xfe", b"\xfc")):
        steps = steps.replace(step * 2, twice)
    return 1 + max(accumulate(memoryview(steps).cast("b")), default=0)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number out of range")
    return number


def _decisive_fields(document: _Object) -> dict[str, object]:
    fields: dict[str, object] = {}
    for key, value in document:
        name = _DECISIVE.get(key.casefold())
        if name is None:
            continue
        if key != name or name in fields:
            raise ManifestInvalid(f"{name} stands there twice or in another letter case")
        fields[name] = value
    return fields


def _media_type(fields: dict[str, object], declared: str) -> str:
    outer = _lowered(declared.partition(";")[0])
    inner = _lowered(fields.get("mediaType"))
    if outer in _SCHEMA1 or inner in _SCHEMA1 or fields.get("schemaVersion") == 1:
        raise ManifestInvalid("schema 1 manifests are not supported")
    if inner and outer not in _GENERIC and inner != outer:
        raise ManifestInvalid("mediaType differs from the Content-Type")
    media_type = inner or (_guess(fields) if outer in _GENERIC else outer)
    if not _MEDIA_TYPE.fullmatch(media_type):
        raise ManifestInvalid("malformed media type")
    return media_type


def _lowered(media_type: object) -> str:
    if media_type is None:
        return ""
    # Not every letter that has an ASCII letter as its lower case is one: the Kelvin sign.
    if not isinstance(media_type, str) or not media_type.isascii():
        raise ManifestInvalid("a media type that is no ASCII text")
    return media_type.strip(" \t").lower()


def _guess(fields: dict[str, object]) -> str:
    if "manifests" in fields:
        return OCI_INDEX
    if "layers" in fields or "config" in fields:
        return OCI_MANIFEST
    raise ManifestInvalid("neither an index nor a manifest")


def _check_shape(fields: dict[str, object], media_type: str) -> None:
    has_children = "manifests" in fields
    if has_children and ("layers" in fields or "config" in fields):
        raise ManifestInvalid("an index and a manifest at once")
    if media_type in {OCI_INDEX, DOCKER_LIST} and not has_children:
        raise ManifestInvalid("an index without manifests")
    if media_type in {OCI_MANIFEST, DOCKER_MANIFEST} and has_children:
        raise ManifestInvalid("a manifest with manifests")


def _descriptors(fields: dict[str, object]) -> tuple[Descriptor, ...]:
    named = [_descriptor(item) for item in _items(fields)]
    found = [descriptor for descriptor in named if descriptor is not None]
    sizes: dict[Digest, set[int]] = {}
    for descriptor in found:
        sizes.setdefault(descriptor.digest, set()).add(descriptor.size)
    # Of two sizes for one digest at least one is a lie, and nothing tells which.
    return tuple(descriptor for descriptor in found if len(sizes[descriptor.digest]) == 1)


def _items(fields: dict[str, object]) -> Iterator[object]:
    yield fields.get("config")
    for name in ("manifests", "layers"):
        listed = fields.get(name)
        if isinstance(listed, list):
            yield from listed


def _descriptor(value: object) -> Descriptor | None:
    # Never `urls`: a manifest does not tell us where to go (CVE-2020-15157).
    entry: dict[str, object] = dict(value) if isinstance(value, tuple) else {}
    media_type, digest, size = entry.get("mediaType"), entry.get("digest"), entry.get("size")
    # A bool is an int to isinstance.
    if not isinstance(digest, str) or type(size) is not int or not 0 <= size < 2**63:
        return None
    if not isinstance(media_type, str) or not _MEDIA_TYPE.fullmatch(media_type):
        media_type = ""  # the digest and the size are worth having without it
    try:
        return Descriptor(media_type, Digest.parse(digest), size)
    except OciError:
        return None
