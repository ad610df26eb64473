"""Runs drawn as SVG: a dot for each, on a logarithmic axis, a row for each phase and way."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from proxy.timings import Phase, Run, Way, percentile, span

WIDTH, LEFT, RIGHT = 880, 150, 90  # pixels; between the margins are the dots
ROW, GAP, HEAD = 18, 10, 44
COLOURS: Mapping[Way, str] = {Way.DIRECT: "#0072b2", Way.COLD: "#d55e00", Way.WARM: "#009e73"}  # told apart by anyone


def draw(images: Mapping[str, Sequence[Run]]) -> str:
    """A drawing of all images, one below the other; those without a run are left out."""
    drawn, top = [], 0
    for name, runs in images.items():
        if runs:
            lines, top = _image(name, runs, top)
            drawn += lines
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top + GAP}">',
            '<style>text { font: 12px sans-serif }</style><rect width="100%" height="100%" fill="white"/>',
            *drawn,
            "</svg>\n",
        ]
    )


def _image(name: str, runs: Sequence[Run], top: int) -> tuple[list[str], int]:
    """The lines of one image, and where the next begins."""
    least = min(seconds for run in runs for seconds in run.seconds.values())
    most = max(seconds for run in runs for seconds in run.seconds.values())
    first, last = math.floor(math.log10(max(least, 1e-6))), max(math.ceil(math.log10(max(most, 1e-6))), -5)
    last = max(last, first + 1)

    def place(seconds: float) -> float:
        share = (math.log10(max(seconds, 1e-6)) - first) / (last - first)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    rows, bottom = [], top + HEAD
    for phase in Phase:
        for number, (way, values) in enumerate(_values(runs, phase)):
            label = phase.value if not number else ""
            rows += _row(label, way, [(place(one), one) for one in values], bottom)
            bottom += ROW
        bottom += GAP
    grid = [line for power in range(first, last + 1) for line in _decade(10.0**power, place(10.0**power), top, bottom)]
    return [f'<text x="10" y="{top + 20}" style="font-weight: bold">{escape(name)}</text>', *grid, *rows], bottom


def _values(runs: Sequence[Run], phase: Phase) -> Iterator[tuple[Way, list[float]]]:
    for way in Way:
        values = [run.seconds[phase] for run in runs if run.way is way and phase in run.seconds]
        if values:
            yield way, values


def _decade(seconds: float, x: float, top: int, bottom: int) -> list[str]:
    label = f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"
    return [
        f'<line x1="{x:.1f}" y1="{top + HEAD - 8}" x2="{x:.1f}" y2="{bottom - GAP}" stroke="#ddd"/>',
        f'<text x="{x:.1f}" y="{top + HEAD - 12}" text-anchor="middle" fill="#666">{label}</text>',
    ]


def _row(label: str, way: Way, dots: Sequence[tuple[float, float]], top: int) -> list[str]:
    """One phase of one way: its dots, a bar through the one in the middle, and what that is."""
    middle, colour, y = percentile([seconds for _, seconds in dots], 0.5), COLOURS[way], top + ROW // 2
    x = next(place for place, seconds in dots if seconds == middle)
    return [
        f'<text x="10" y="{y + 4}">{label}</text>',
        f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end" fill="{colour}">{way}</text>',
        *(f'<circle cx="{place:.1f}" cy="{y}" r="3.5" fill="{colour}" fill-opacity="0.5"/>' for place, _ in dots),
        f'<line x1="{x:.1f}" y1="{top + 2}" x2="{x:.1f}" y2="{top + ROW - 2}" stroke="{colour}" stroke-width="2"/>',
        f'<text x="{WIDTH - RIGHT + 14}" y="{y + 4}" fill="{colour}">{span(middle)}</text>',
    ]
