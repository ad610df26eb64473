"""Byte ranges (RFC 9110, section 14), resolved once into half-open spans."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

# Nineteen digits hold every file offset; more are an attack or a mistake.
_RANGE = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})", re.ASCII | re.IGNORECASE)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", re.ASCII | re.IGNORECASE)
_MAX_OFFSET = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes from start up to, and without, stop."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"not a span: {self.start}..{self.stop}")

    @property
    def length(self) -> int:
        """How many bytes the span holds."""
        return self.stop - self.start

    def __len__(self) -> int:
        return self.length


@dataclass(frozen=True, slots=True)
class RangeSpec:
    """One range as asked: 'bytes=5-9' is (5, 9), '5-' is (5, None), the last seven bytes '-7' are (None, 7)."""

    first: int | None
    last: int | None

    def resolve(self, size: int) -> Span | None:
        """The bytes meant in a file of this size, or None where there are none (416)."""
        if self.first is None:
            length = min(self.last or 0, size)
            return Span(size - length, size) if length else None
        if self.first >= size:
            return None
        return Span(self.first, size if self.last is None else min(self.last + 1, size))


def parse(headers: Sequence[str]) -> RangeSpec | None:
    """Read the Range headers of a request; None means that they are ignored, which RFC 9110 14.2 always allows."""
    match = _RANGE.fullmatch(headers[0]) if len(headers) == 1 else None
    if match is None:
        return None
    first, last = (int(digits) if digits else None for digits in match.groups())
    if last is None:
        return None if first is None else RangeSpec(first, None)
    return RangeSpec(first, last) if first is None or first <= last else None


def content_range(span: Span, size: int) -> str:
    """The Content-Range of a 206."""
    return f"bytes {span.start}-{span.stop - 1}/{size}"


def unsatisfied(size: int) -> str:
    """The Content-Range of a 416."""
    return f"bytes */{size}"


def parse_content_range(header: str) -> tuple[Span, int | None]:
    """Read an upstream's Content-Range into the span and, unless it is '*', the whole size; else ValueError."""
    match = _CONTENT_RANGE.fullmatch(header.strip(" \t"))
    if match is None:
        raise ValueError("malformed Content-Range")
    span = Span(int(match[1]), int(match[2]) + 1)
    size = None if match[3] == "*" else int(match[3])
    if not span.length or span.stop > (_MAX_OFFSET if size is None else size):
        raise ValueError("impossible Content-Range")
    return span, size
