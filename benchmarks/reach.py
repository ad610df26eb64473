"""What is to be reached, as data, and whether a run did."""

from collections.abc import Iterable
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
