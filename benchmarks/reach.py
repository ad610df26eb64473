"""What is to be reached, as data, and whether a run did."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from benchmarks.report import Report


class Bound(StrEnum):
    """Which side of its bound a value has to be on."""

    AT_LEAST = "at least"
    AT_MOST = "not above"


@dataclass(frozen=True, slots=True)
class Goal:
    """A contender's median in a case, as a multiple of a reference's, or as it is if there is no reference.

    `reference_measure`: what of the reference, if that is another measure than the contender's.
    """

    case: str
    measure: str
    contender: str
    bound: Bound
    value: float
    reference: str | None = None
    reference_measure: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a goal; None: it was not measured in this run."""

    goal: Goal
    value: float | None

    @property
    def is_met(self) -> bool | None:
        """Whether it was reached."""
        if self.value is None:
            return None
        return self.value >= self.goal.value if self.goal.bound is Bound.AT_LEAST else self.value <= self.goal.value


def judge(report: Report, goals: Iterable[Goal]) -> list[Verdict]:
    """Hold a run against the goals."""
    return [Verdict(goal, _value(report, goal)) for goal in goals]


def _value(report: Report, goal: Goal) -> float | None:
    own = report.figure(goal.case, goal.contender, goal.measure)
    if own is None or goal.reference is None:
        return None if own is None else own.median
    base = report.figure(goal.case, goal.reference, goal.reference_measure or goal.measure)
    return None if base is None or base.median == 0 else own.median / base.median


def _warm_blobs(where: str, bounds: Mapping[str, tuple[float, float]]) -> Iterator[Goal]:
    """By clients: the least throughput, and the most processor's time of the whole machine, of nginx's."""
    for clients, (speed, cost) in bounds.items():
        case = f"warm blob of 64 MiB{where}, {clients}"
        yield Goal(case, "GB/s", "entrepot", Bound.AT_LEAST, speed, "nginx, 2 workers")
        yield Goal(case, "machine CPU, s/GB", "entrepot", Bound.AT_MOST, cost, "nginx, 2 workers")


def _warm_manifests() -> Iterator[Goal]:
    for way in ("by tag", "by digest"):
        case = f"warm manifest {way}, 16 connections"
        yield Goal(case, "requests/s", "entrepot", Bound.AT_LEAST, 20, "docker-registry")
        yield Goal(case, "requests/s", "entrepot", Bound.AT_LEAST, 0.25, "nginx")
        yield Goal(case, "p99, ms", "entrepot", Bound.AT_MOST, 0.1, "docker-registry", "p50, ms")


def _cold() -> Iterator[Goal]:
    alone, herd, crowd = (
        "cold blob of 256 MiB, 1 client",
        "cold blob of 256 MiB, 32 clients",
        "cold blob of 4 MiB, 1,000 clients",
    )
    paced = "cold blob of 256 MiB at 1 Gbit/s, 1 client"
    yield Goal(alone, "seconds", "entrepot", Bound.AT_MOST, 0.85, "nginx proxy_cache")
    yield Goal(paced, "seconds", "entrepot", Bound.AT_MOST, 1.03, "direct")
    yield Goal(herd, "seconds", "entrepot", Bound.AT_MOST, 0.75, "nginx proxy_cache")
    yield Goal(herd, "seconds", "entrepot", Bound.AT_MOST, 0.3, "docker-registry pull-through")
    yield Goal(herd, "upstream bytes, x", "entrepot", Bound.AT_MOST, 1.0)
    yield Goal(herd, "slowest first byte, ms", "entrepot", Bound.AT_MOST, 0.1, "nginx proxy_cache")
    yield Goal(crowd, "peak memory, MiB", "entrepot", Bound.AT_MOST, 200)
    yield Goal(crowd, "right", "entrepot", Bound.AT_LEAST, 1000)


def _sites() -> Iterator[Goal]:
    image, layer = "image of 61 layers over a WAN, by containerd", "layer from an upstream that caps each connection"
    start = ("start and warm pulls by how much is cached", "seconds from start to ready")
    yield Goal(image, "seconds", "entrepot, cold", Bound.AT_MOST, 1.03, "direct")
    yield Goal(image, "seconds", "entrepot, warm", Bound.AT_MOST, 0.05, "entrepot, cold")
    one = ("entrepot, 1 connection", "steady MB/s")  # it is never faster
    yield Goal(layer, "MB/s", "entrepot, 8 connections", Bound.AT_LEAST, 6, *one)
    yield Goal(*start, "nothing else", Bound.AT_MOST, 1)
    yield Goal(*start, "100,000 blobs", Bound.AT_MOST, 2)


ALIKE = {"1 client": (1.0, 1.0), "8 clients": (1.0, 1.0), "64 clients": (1.0, 1.0)}
GOALS: tuple[Goal, ...] = (
    *_warm_blobs("", {"1 client": (1.0, 1.2), "8 clients": (1.0, 1.0), "64 clients": (1.05, 0.9)}),
    *_warm_blobs(" over TLS", ALIKE),
    *_warm_manifests(),
    *_cold(),
    *_sites(),
)
