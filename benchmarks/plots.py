"""A run as drawings, SVG and PNG: for each group of cases a panel for each case, a bar for each contender."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
WIDTH, ROW, TITLE = 8, 0.26, 0.6  # inches; of a contender, and of what a panel has besides
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

    rcParams.update({"svg.hashsalt": "bench", "svg.fonttype": "none"})  # the same values make the same, small file
    panels = {case: _values(report, case, group.chief) for case in group.cases}
    panels = {case: values for case, values in panels.items() if values}
    if not panels:
        return
    heights = [len(values) * ROW + TITLE for values in panels.values()]
    drawing = Drawing(figsize=(WIDTH, sum(heights)), layout="constrained")
    axes = drawing.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (case, values) in zip(axes, panels.items(), strict=True):
        _panel(axis, case, values)
    axes[-1].set_xlabel(f"{group.chief} (bars: medians; strokes: each value)", fontsize=8)
    for kind in formats:
        path = folder / f"{file_name(group)}.{kind}"
        drawing.savefig(path, dpi=120, metadata={"Date": None} if kind == "svg" else None)
        yield path


def _values(report: Report, case: str, measure: str) -> dict[str, list[float]]:
    """All values of a measure, by contenders."""
    found: dict[str, list[float]] = {}
    for sample in report.samples:
        if sample.case == case and sample.measure == measure:
            found.setdefault(sample.contender, []).append(sample.value)
    return found


def _panel(axis: Any, case: str, values: Mapping[str, Sequence[float]]) -> None:
    """One case. Where contenders are far apart the axis is logarithmic, and says so."""
    medians = [statistics.median(one) for one in values.values()]
    axis.barh(range(len(values)), medians, color=[_colour(one) for one in values], height=0.7)
    for row, one in enumerate(values.values()):
        axis.plot(one, [row] * len(one), "k|", markersize=7)
    axis.set_yticks(range(len(values)), values, fontsize=8)
    axis.invert_yaxis()
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    least = min(min(one) for one in values.values())
    is_logarithmic = least > 0 and max(medians) / min(medians) > WIDE
    axis.set_title(f"{case} (logarithmic)" if is_logarithmic else case, loc="left", fontsize=9)
    if is_logarithmic:
        axis.set_xscale("log")
        axis.set_xlim(left=least / 2)


def _colour(contender: str) -> str:
    return next((colour for name, colour in COLOURS.items() if contender.startswith(name)), "#555555")
