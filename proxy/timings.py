"""What pulls took: their phases, and how those of many pulls spread; pure. Times are in seconds."""

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class Phase(enum.StrEnum):
    """A part of a pull, in order. The first byte is waited for within the layers, and the total is not the sum."""

    RESOLVE = "resolve"  # what the tag stands for, by HEAD; connection and token included
    MANIFESTS = "manifests"  # index, manifest of the platform, config, one after the other
    FIRST_BYTE = "first byte"  # of the first layer, since it was asked for
    LAYERS = "layers"  # all of them, some at a time
    TOTAL = "total"


class Way(enum.StrEnum):
    """Where the image is pulled from."""

    DIRECT = "direct"  # the registry itself
    COLD = "cold"  # the cache, which has to fetch it first
    WARM = "warm"  # the cache, which has it


@dataclass(frozen=True, slots=True)
class Run:
    """One pull; an image without layers has no first byte."""

    way: Way
    seconds: Mapping[Phase, float]


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of several runs by nearest rank: each is what one of them took."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(*(percentile(values, share) for share in (0.50, 0.95, 0.99)))


def percentile(values: Sequence[float], share: float) -> float:
    """The least of the values that so large a share of them (0 to 1) do not exceed. Raises ValueError if none."""
    if not values:
        raise ValueError("nothing was measured")
    # Rounded first: 0.95 of 20 is 19, and not a little more.
    return sorted(values)[max(0, math.ceil(round(share * len(values), 9)) - 1)]


def spreads(runs: Sequence[Run]) -> dict[Way, dict[Phase, Spread]]:
    """How each phase spread, by the ways that were measured."""
    found: dict[Way, dict[Phase, Spread]] = {}
    for way in Way:
        of = [run for run in runs if run.way is way]
        values = {phase: [run.seconds[phase] for run in of if phase in run.seconds] for phase in Phase}
        if of:
            found[way] = {phase: Spread.of(seconds) for phase, seconds in values.items() if seconds}
    return found


def ratio(found: Mapping[Way, Mapping[Phase, Spread]], phase: Phase, way: Way, base: Way = Way.DIRECT) -> float | None:
    """How many times as long as another way one takes in the middle; None where one of them was not measured."""
    one, other = found.get(way, {}).get(phase), found.get(base, {}).get(phase)
    return None if one is None or other is None or not other.p50 else one.p50 / other.p50


def times(factor: float) -> str:
    """A ratio as people read it: "1.02", "0.013"."""
    return f"{factor:.2f}" if factor >= 0.1 else f"{factor:.2g}"


def span(seconds: float) -> str:
    """A time as people read it: "4.2 ms", "1.27 s", and "-" for what was not measured."""
    if math.isnan(seconds):
        return "-"
    return f"{seconds * 1000:.1f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"
