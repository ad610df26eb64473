"""Platforms: what an index says of its manifests, and a config of its image (image-spec image-index.md, config.md)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from proxy.oci.digest import Digest
from proxy.oci.errors import OciError

UNKNOWN = "unknown"  # what BuildKit's attestations call themselves


@dataclass(frozen=True, slots=True, order=True)
class Platform:
    """An operating system, an architecture, and its variant if there are any."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "linux/arm64" or "linux/arm/v7". Raises ValueError."""
        parts = text.strip().lower().split("/")
        if len(parts) not in {2, 3} or not all(part.isascii() and part.isprintable() and part for part in parts):
            raise ValueError(f'{text!r} is no platform: write "linux/amd64" or "linux/arm/v7"')
        return cls(*parts)

    def covers(self, other: "Platform") -> bool:
        """Whether who asks for this one means the other: a variant that is not given may be any."""
        same = (self.os, self.architecture) == (other.os, other.architecture)
        return same and self.variant in {"", other.variant}

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


def is_wanted(platform: Platform | None, wanted: Sequence[Platform]) -> bool:
    """Whether a manifest of an index is for one of the platforms that are wanted: all, if there are none."""
    return not wanted or (platform is not None and any(one.covers(platform) for one in wanted))


def of_index(body: bytes) -> Iterator[tuple[Digest, Platform | None]]:
    """The manifests that an index names, in order; what is no descriptor is passed over."""
    document = _object(body)
    listed = document.get("manifests")
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, Mapping) and isinstance(entry.get("digest"), str):
            try:
                digest = Digest.parse(entry["digest"])
            except OciError:
                continue
            yield digest, _platform(entry.get("platform"))


def of_config(body: bytes) -> Platform | None:
    """What an image's config says that it runs on; None for what is no such config."""
    return _platform(_object(body))


def _platform(value: object) -> Platform | None:
    if not isinstance(value, Mapping):
        return None
    os, architecture, variant = (value.get(key, "") for key in ("os", "architecture", "variant"))
    if not all(isinstance(part, str) and part.isascii() and part.isprintable() for part in (os, architecture, variant)):
        return None
    return Platform(os, architecture, variant) if os and architecture and os != UNKNOWN else None


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
