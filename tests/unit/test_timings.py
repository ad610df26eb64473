"""Percentiles and ratios, as they are told."""

import math
import xml.etree.ElementTree as ET

import pytest

from proxy import plot
from proxy.timings import Phase, Run, Spread, Way, percentile, ratio, span, spreads, times


@pytest.mark.parametrize(
    ("count", "share", "rank"),
    [
        (1, 0.5, 1),
        (1, 0.99, 1),
        (2, 0.5, 1),
        (5, 0.5, 3),
        (5, 0.95, 5),
        (20, 0.95, 19),
        (100, 0.95, 95),
        (100, 0.99, 99),
    ],
)
def test_a_percentile_is_one_of_the_values_by_nearest_rank(count: int, share: float, rank: int) -> None:
    values = [float(number) for number in range(count, 0, -1)]
    assert percentile(values, share) == rank


def test_of_nothing_there_is_no_percentile() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        percentile([], 0.5)


def run(way: Way, total: float, **more: float) -> Run:
    """A pull that took so long."""
    return Run(way, {Phase.TOTAL: total} | {Phase(name.replace("_", " ")): value for name, value in more.items()})


def test_each_way_spreads_on_its_own_and_a_phase_that_never_was_is_left_out() -> None:
    found = spreads([run(Way.DIRECT, 3), run(Way.WARM, 0.1), run(Way.DIRECT, 1), run(Way.DIRECT, 2, first_byte=0.5)])
    assert found == {
        Way.DIRECT: {Phase.FIRST_BYTE: Spread(0.5, 0.5, 0.5), Phase.TOTAL: Spread(2, 3, 3)},
        Way.WARM: {Phase.TOTAL: Spread(0.1, 0.1, 0.1)},
    }


def test_a_ratio_is_that_of_the_middles_and_there_is_none_of_what_was_not_measured() -> None:
    found = spreads([run(Way.DIRECT, 2), run(Way.WARM, 0.5)])
    assert ratio(found, Phase.TOTAL, Way.WARM) == 0.25
    assert ratio(found, Phase.TOTAL, Way.COLD) is None
    assert ratio(found, Phase.LAYERS, Way.WARM) is None
    assert ratio(spreads([run(Way.DIRECT, 0), run(Way.WARM, 1)]), Phase.TOTAL, Way.WARM) is None


def test_small_ratios_keep_two_digits() -> None:
    assert [times(one) for one in (0.0134, 0.1, 1.019, 12.345)] == ["0.013", "0.10", "1.02", "12.35"]


def test_times_are_told_in_the_unit_that_fits() -> None:
    assert [span(one) for one in (0.0042, 0.9994, 0.9996, 12.345, math.nan)] == [
        "4.2 ms", "999.4 ms", "1.00 s", "12.35 s", "-",
    ]  # fmt: skip


def test_a_drawing_has_a_dot_for_each_phase_of_each_run_and_no_name_breaks_it() -> None:
    runs = [run(Way.DIRECT, 2, layers=1.5), run(Way.DIRECT, 0), run(Way.WARM, 0.04)]
    root = ET.fromstring(plot.draw({"<b>&": runs, "nothing": []}))  # noqa: S314  our own
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}circle")) == 4
    texts = [one.text for one in root.findall(f"{space}text")]
    assert "<b>&" in texts
    assert "nothing" not in texts
    places = [float(one.attrib["cx"]) for one in root.findall(f"{space}circle")]
    assert all(plot.LEFT <= place <= plot.WIDTH - plot.RIGHT for place in places)


def test_a_drawing_of_nothing_is_one_all_the_same() -> None:
    assert ET.fromstring(plot.draw({})).tag.endswith("svg")  # noqa: S314  our own
