"""The caches that a request has come through (RFC 9110, section 7.6.3), so that caches that ask each other notice.

Only our own entries are read and passed on: whatever else a client sends as Via stays here.
"""

import re
from collections.abc import Sequence

from proxy.oci.errors import OciError, Problem

MOST = 8  # caches in a row: more is a loop whose members cannot be told apart
_ENTRY = re.compile(r"1\.1 (entrepot-[0-9a-f]{32})", re.ASCII)
_LONGEST = 1024  # characters of one header


def parse(headers: Sequence[str]) -> tuple[str, ...]:
    """The names of the caches among what Via says, in order: the first asked first."""
    entries = (entry.strip(" \t") for header in headers for entry in header[:_LONGEST].split(","))
    return tuple(found[1] for entry in entries if (found := _ENTRY.fullmatch(entry)))


def joined(names: Sequence[str], own: str) -> tuple[str, ...]:
    """The way of a request with this cache in it. Raises OciError LOOP if it has been here, or elsewhere too often."""
    if own in names or len(names) >= MOST:
        raise OciError(Problem.LOOP, "this cache is asked for what it asks itself: its upstream leads back to it")
    return (*names, own)


def render(names: Sequence[str]) -> str:
    """The value of a Via header."""
    return ", ".join(f"1.1 {name}" for name in names)
