"""What was measured, and what it comes to: medians, spreads, and ratios to a reference."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """One value, measured once. `measure` ends with its unit: "seconds", "requests/s", "first byte, ms"."""

    case: str
    contender: str
    measure: str
    value: float


@dataclass(frozen=True, slots=True)
class Figure:
    """What several samples of the same come to."""

    median: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        """Raises ValueError without any value."""
        if not values:
            raise ValueError("nothing was measured")
        return cls(statistics.median(values), min(values), max(values), len(values))


class Report:
    """All samples of a run. `references`: whom the others are held against, by cases; a case may have none."""

    def __init__(self, samples: Iterable[Sample], references: Mapping[str, str]) -> None:
        self.samples = tuple(samples)
        self.references = dict(references)
        values: dict[tuple[str, str, str], list[float]] = {}
        for sample in self.samples:
            values.setdefault((sample.case, sample.contender, sample.measure), []).append(sample.value)
        self._figures = {what: Figure.of(those) for what, those in values.items()}

    def cases(self) -> list[str]:
        """Their names, in the order in which they were run."""
        return list(dict.fromkeys(sample.case for sample in self.samples))

    def contenders(self, case: str) -> list[str]:
        """Who took part in a case."""
        return list(dict.fromkeys(sample.contender for sample in self.samples if sample.case == case))

    def measures(self, case: str) -> list[str]:
        """What was measured in a case."""
        return list(dict.fromkeys(sample.measure for sample in self.samples if sample.case == case))

    def figure(self, case: str, contender: str, measure: str) -> Figure | None:
        """Median and spread; None if that was not measured."""
        return self._figures.get((case, contender, measure))

    def ratio(self, case: str, contender: str, measure: str) -> float | None:
        """The contender's median as a multiple of the reference's; None where there is no such thing."""
        own = self.figure(case, contender, measure)
        base = self.figure(case, self.references.get(case, ""), measure)
        if own is None or base is None or base.median == 0:
            return None
        return own.median / base.median
