"""A run as tables: for a terminal by rich, and as Markdown."""

from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table

from benchmarks.reach import Verdict
from benchmarks.report import Report
from benchmarks.results import Group, Results

Row = Sequence[str]
MET = {True: "met", False: "**missed**", None: "not run"}


def terminal(results: Results) -> Iterator[Table]:
    """A table for each group of cases, and one of what was to be reached."""
    for group in results.groups:
        if group.cases:
            columns, *rows = grid(results.report, group)
            yield _table(f"{group.name}: {group.about}", columns, rows)
    columns, *rows = reach(verdict for verdict in results.verdicts if verdict.value is not None)
    if rows:
        yield _table("reach", columns, [[cell.replace("**", "") for cell in row] for row in rows])


def _table(title: str, columns: Row, rows: Iterable[Row]) -> Table:
    table = Table(*columns, title=title, title_justify="left")
    before = None
    for row in rows:
        if before not in {None, row[0]}:
            table.add_section()
        table.add_row("" if row[0] == before else row[0], *row[1:])
        before = row[0]
    return table


def grid(report: Report, group: Group) -> Iterator[Row]:
    """The columns' names, then a row for each case and contender: median, least-most and times the reference's."""
    measures = list(dict.fromkeys(measure for case in group.cases for measure in report.measures(case)))
    yield ["case", "contender", *measures]
    for case in group.cases:
        for contender in report.contenders(case):
            yield [case, contender, *(cell(report, case, contender, measure) for measure in measures)]


def cell(report: Report, case: str, contender: str, measure: str) -> str:
    """Median, least to most, and the ratio; a dash where there is nothing."""
    figure = report.figure(case, contender, measure)
    if figure is None:
        return "-"
    text = short(figure.median)
    if figure.count > 1 and figure.least != figure.most:
        text += f" ({short(figure.least)}-{short(figure.most)})"
    ratio = report.ratio(case, contender, measure)
    if ratio is not None and contender != report.references.get(case):
        text += f", {short(ratio)}x"
    return text


def short(value: float) -> str:
    """Three digits of it, as a person would write them."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if abs(value) >= 1 else 3}f}" if abs(value) < 10 else f"{value:.1f}"


def near(value: float, bound: float) -> str:
    """With as many digits as tell it from a bound: that 1.003 misses what may not be above 1.00 has to be seen."""
    digits = 3 if value < 10 else 1 if value < 100 else 0
    while value != bound and round(value, digits) == bound:
        digits += 1
    return f"{value:,.{digits}f}"


def reach(verdicts: Iterable[Verdict]) -> Iterator[Row]:
    """What was to be reached, and what was."""
    yield ["case", "measure", "against", "wanted", "reached", ""]
    for verdict in verdicts:
        goal = verdict.goal
        other = f" ({goal.reference_measure})" if goal.reference_measure else ""
        against = "-" if goal.reference is None else f"{goal.reference}{other}"
        own = goal.contender if goal.contender != "entrepot" else ""
        measure = f"{goal.measure}{f' ({own})' if own else ''}"
        reached = "-" if verdict.value is None else near(verdict.value, goal.value)
        wanted = f"{goal.bound} {short(goal.value)}"
        yield [goal.case, measure, against, wanted, reached, MET[verdict.is_met]]


def markdown(columns: Row, rows: Iterable[Row]) -> Iterator[str]:
    """The lines of a table."""
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    before = None
    for row in rows:
        yield f"| {' | '.join(['' if row[0] == before else row[0], *row[1:]])} |"
        before = row[0]
