"""A run as drawings, SVG and PNG: for each group of cases a panel for each case, a bar for each contender."""

import math
from collections.abc import Iterator
from pathlib import Path

from benchmarks.report import Report
from benchmarks.results import Group, Results

COLOURS = {  # told apart by anyone (Okabe and Ito)
    "entrepot": "#d55e00",
    "nginx": "#0072b2",
    "docker-registry": "#009e73",
    "varnish": "#cc79a7",
    "direct": "#999999",
}
FORMATS = ("svg", "png")
ROW = 0.26  # inches
WIDE = 20  # times the least value from which on the axis is logarithmic


def draw(results: Results, folder: Path, formats: tuple[str, ...] = FORMATS) -> list[Path]:
    """Write a file for each group and format. Raises ImportError without matplotlib, which make bench installs."""
    return [path for group in results.groups for path in _draw(results.report, group, folder, formats)]


def file_name(group: Group) -> str:
    """Of its drawing, without an ending."""
    return "-".join("".join(one if one.isalnum() else " " for one in group.name.lower()).split())


def _draw(report: Report, group: Group, folder: Path, formats: tuple[str, ...]) -> Iterator[Path]:
    from matplotlib import rcParams  # noqa: PLC0415  a run without it is a run
    from matplotlib.figure import Figure as Drawing  # noqa: PLC0415

    rcParams["svg.hashsalt"] = "bench"  # the same values make the same file
    rows = {
        case: [one for one in report.contenders(case) if report.figure(case, one, group.chief)] for case in group.cases
    }
    rows = {case: those for case, those in rows.items() if those}
    if not rows:
        return
    heights = [len(those) * ROW + 0.75 for those in rows.values()]
    drawing = Drawing(figsize=(8, sum(heights)), layout="constrained")
    axes = drawing.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (case, those) in zip(axes, rows.items(), strict=True):
        figures = [report.figure(case, one, group.chief) for one in those]
        medians = [figure.median for figure in figures if figure is not None]
        axis.barh(range(len(those)), medians, color=[_colour(one) for one in those], height=0.7)
        for row, one in enumerate(those):
            values = [
                each.value
                for each in report.samples
                if (each.case, each.contender, each.measure) == (case, one, group.chief)
            ]
            axis.plot(values, [row] * len(values), "k|", markersize=7)
        axis.set_yticks(range(len(those)), those, fontsize=8)
        axis.invert_yaxis()
        axis.set_title(case, loc="left", fontsize=9)
        axis.tick_params(axis="x", labelsize=8)
        if min(medians) > 0 and max(medians) / min(medians) > WIDE:
            axis.set_xscale("log")
            axis.set_xlim(left=10 ** math.floor(math.log10(min(medians)) - 0.3))
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel(f"{group.chief} (bars: medians; strokes: each of the values)", fontsize=8)
    for kind in formats:
        path = folder / f"{file_name(group)}.{kind}"
        drawing.savefig(path, dpi=120, metadata={"Date": None} if kind == "svg" else None)
        yield path


def _colour(contender: str) -> str:
    return next((colour for name, colour in COLOURS.items() if contender.startswith(name)), "#555555")
