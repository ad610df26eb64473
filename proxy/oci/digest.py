"""Content digests (image-spec descriptor.md, "Digests"): sha256 and sha512, nothing else."""

import hashlib
import re
from dataclasses import dataclass
from typing import Protocol, Self

from proxy.oci.errors import OciError, Problem

_GRAMMAR = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", re.ASCII)


class Hasher(Protocol):
    """The part of a hashlib object that verification needs."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...

    def copy(self) -> "Hasher": ...


@dataclass(frozen=True, slots=True)
class Digest:
    """A digest whose text is known to be well formed, so that file names may be made of it."""

    algorithm: str
    encoded: str

    def __post_init__(self) -> None:
        if not _GRAMMAR.fullmatch(str(self)):
            raise OciError(Problem.DIGEST_INVALID, "not a sha256 or sha512 digest", detail=str(self))

    def __hash__(self) -> int:
        return hash(self.encoded)  # which a string remembers: digests are looked up several times a request

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read 'sha256:...'; OciError(DIGEST_INVALID) for anything else."""
        algorithm, _, encoded = text.partition(":")
        return cls(algorithm, encoded)

    @classmethod
    def of(cls, body: bytes, algorithm: str = "sha256") -> Self:
        """The digest of these bytes."""
        return cls(algorithm, hashlib.new(algorithm, body).hexdigest())

    def hasher(self) -> Hasher:
        """A fresh hasher of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def matches(self, hasher: Hasher) -> bool:
        """Whether the bytes this hasher was fed are the bytes of this digest."""
        return hasher.hexdigest() == self.encoded

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.encoded}"
