"""How long what an upstream said may be believed."""

from enum import Enum

_CLOCK_TOLERANCE = 1.0


class Verdict(Enum):
    """What to do with a remembered answer: use it, ask again, or ask for the first time."""

    FRESH = "fresh"
    STALE = "stale"
    MISSING = "missing"


def verdict(checked: float | None, now: float, ttl: float) -> Verdict:
    """Judge an answer by the wall-clock time it was last checked; a time in the future is a clock that jumped back."""
    if checked is None:
        return Verdict.MISSING
    age = now - checked
    if age < -_CLOCK_TOLERANCE:
        return Verdict.STALE
    return Verdict.FRESH if max(age, 0.0) < ttl else Verdict.STALE
