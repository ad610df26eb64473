"""What a tag has stood for, and since when; times are unix seconds."""

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.oci.digest import Digest

END = 253402300800.0  # unix seconds of the year 10000: no time that was meant
LONGEST = 500  # moves that are kept of a tag; the oldest are forgotten


@dataclass(frozen=True, slots=True)
class Move:
    """From then on a tag stood for this, as far as the cache has seen."""

    at: float
    digest: Digest


def moved(history: Sequence[Move], digest: Digest, at: float) -> tuple[Move, ...]:
    """The history with what a tag stands for now; the same if that is nothing new."""
    if history and history[-1].digest == digest:
        return tuple(history)
    # A clock that was set back makes no move earlier than the one before it.
    since = max(at, history[-1].at) if history else at
    return (*history, Move(since, digest))[-LONGEST:]


def as_of(history: Sequence[Move], when: float) -> Digest | None:
    """What a tag stood for then; None if the cache had not seen it yet."""
    return next((move.digest for move in reversed(history) if move.at <= when), None)
