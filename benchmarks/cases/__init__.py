"""Every case, in the order in which they are run."""

from benchmarks.bench import Case

CASES: tuple[Case, ...] = ()
