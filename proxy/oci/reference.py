"""Names of repositories, tags and references (distribution-spec, "Pulling manifests")."""

import re
from dataclasses import dataclass
from typing import Self, TypeAlias

from proxy.oci.digest import Digest
from proxy.oci.errors import OciError, Problem

MAX_NAME = 255

_COMPONENT = r"[a-z0-9]++(?:(?:\.|__?|-++)[a-z0-9]++)*+"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*+", re.ASCII)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of one registry; the registry comes from configuration, the name from a client."""

    registry: str
    name: str

    def __post_init__(self) -> None:
        if len(self.name) > MAX_NAME or not _NAME.fullmatch(self.name):
            raise OciError(Problem.NAME_INVALID, "invalid repository name", detail=self.name)

    def __hash__(self) -> int:
        return hash(self.name)  # which a string remembers

    @classmethod
    def parse(cls, registry: str, name: str) -> Self:
        """Check a client's <name> by the grammar; OciError(NAME_INVALID) where it does not fit."""
        return cls(registry, name)

    def __str__(self) -> str:
        return f"{self.registry}/{self.name}"


@dataclass(frozen=True, slots=True)
class Tag:
    """A name in a repository that may point elsewhere tomorrow."""

    name: str

    def __post_init__(self) -> None:
        if not _TAG.fullmatch(self.name):
            raise OciError(Problem.TAG_INVALID, "invalid tag", detail=self.name)

    def __hash__(self) -> int:
        return hash(self.name)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Check a tag by the grammar; OciError(TAG_INVALID) where it does not fit."""
        return cls(text)

    def __str__(self) -> str:
        return self.name


Reference: TypeAlias = Tag | Digest


def parse_reference(text: str) -> Reference:
    """Read what stands after /manifests/: a tag has no colon, a digest always has one."""
    return Digest.parse(text) if ":" in text else Tag.parse(text)
