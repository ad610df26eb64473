"""What the benchmarks make of what they measured."""

import pytest

from benchmarks.docs import replaced
from benchmarks.drain import Ask, Drained, Load, WrongAnswerError, asks
from benchmarks.load import Rate, parse_wrk
from benchmarks.reach import Bound, Goal, judge
from benchmarks.report import Figure, Report, Sample
from benchmarks.tables import cell, near, short

CASE = "warm blob, 8 clients"
SAID = """Running 1s test @ http://127.0.0.1:5000/v2/library/bench/manifests/latest
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     3.22ms    1.01ms  14.41ms   81.33%
    Req/Sec     4.99k   512.10     5.60k    81.82%
  Latency Distribution
     50%    3.17ms
     75%  950.00us
     90%    1.20s
     99%    2.50m
  5439 requests in 1.10s, 3.44MB read
Requests/sec:   4944.55
Transfer/sec:      3.13MB
"""


def _report() -> Report:
    values = {"nginx": (2.0, 4.0, 3.0), "entrepot": (6.0, 1.0, 4.5), "idle": (0.0,)}
    samples = [Sample(CASE, name, "GB/s", value) for name, those in values.items() for value in those]
    return Report([*samples, Sample(CASE, "nginx", "p50, ms", 45.0)], {CASE: "nginx"})


def _goal(bound: Bound, value: float, *, reference: str | None = "nginx", measure: str | None = None) -> Goal:
    return Goal(CASE, "GB/s", "entrepot", bound, value, reference, measure)


def test_a_figure_is_the_median_and_the_spread_of_all_values() -> None:
    assert _report().figure(CASE, "entrepot", "GB/s") == Figure(4.5, 1.0, 6.0, 3)


def test_a_ratio_is_of_medians() -> None:
    report = _report()
    assert report.ratio(CASE, "entrepot", "GB/s") == 1.5
    assert report.ratio(CASE, "nginx", "GB/s") == 1


def test_there_is_no_ratio_to_what_was_not_measured_or_is_nothing() -> None:
    report = _report()
    assert report.ratio(CASE, "entrepot", "p50, ms") is None
    assert report.ratio("another case", "entrepot", "GB/s") is None
    assert Report(report.samples, {CASE: "idle"}).ratio(CASE, "entrepot", "GB/s") is None


def test_names_stay_in_the_order_of_the_run() -> None:
    report = _report()
    assert report.cases() == [CASE]
    assert report.contenders(CASE) == ["nginx", "entrepot", "idle"]
    assert report.measures(CASE) == ["GB/s", "p50, ms"]


@pytest.mark.parametrize(
    ("goal", "value", "is_met"),
    [
        (_goal(Bound.AT_LEAST, 1.5), 1.5, True),
        (_goal(Bound.AT_LEAST, 1.6), 1.5, False),
        (_goal(Bound.AT_MOST, 1.5), 1.5, True),
        (_goal(Bound.AT_MOST, 1.4), 1.5, False),
        (_goal(Bound.AT_MOST, 4.5, reference=None), 4.5, True),
        (_goal(Bound.AT_MOST, 0.1, measure="p50, ms"), 0.1, True),
        (_goal(Bound.AT_LEAST, 1, reference="varnish"), None, None),
        (Goal("another case", "GB/s", "entrepot", Bound.AT_LEAST, 1), None, None),
    ],
)
def test_a_goal_is_met_missed_or_was_not_run(goal: Goal, value: float | None, is_met: bool | None) -> None:
    [verdict] = judge(_report(), [goal])
    assert (verdict.value, verdict.is_met) == (value, is_met)


def test_a_cell_says_the_median_the_spread_and_how_many_times_the_reference() -> None:
    report = _report()
    assert cell(report, CASE, "entrepot", "GB/s") == "4.50 (1.00-6.00), 1.50x"
    assert cell(report, CASE, "nginx", "GB/s") == "3.00 (2.00-4.00)"
    assert cell(report, CASE, "entrepot", "p50, ms") == "-"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0123, "0.012"), (1, "1.00"), (9.996, "10.00"), (12.34, "12.3"), (123.4, "123"), (140585, "140,585")],
)
def test_numbers_have_the_digits_that_mean_something(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(
    ("value", "bound", "text"),
    [(1.0034, 1.0, "1.003"), (0.9996, 1.0, "0.9996"), (1.0, 1.0, "1.000"), (19.98, 20, "19.98"), (1000, 1000, "1,000")],
)
def test_what_is_near_to_its_bound_has_the_digits_that_tell_them_apart(value: float, bound: float, text: str) -> None:
    assert near(value, bound) == text


def test_wrk_is_understood_in_all_its_units() -> None:
    assert parse_wrk(SAID) == Rate(5439, 4944.55, 3.17, 150_000.0)
    assert parse_wrk(SAID.replace("3.17ms", "317.00us")).p50 == pytest.approx(0.317)
    assert parse_wrk(SAID.replace("3.17ms", "1.20s")).p50 == 1200


@pytest.mark.parametrize(
    "said",
    [
        SAID + "  Non-2xx or 3xx responses: 7\n",
        SAID + "  Socket errors: connect 0, read 3, write 0, timeout 0\n",
        "unable to connect to 127.0.0.1:5000 Connection refused\n",
        SAID.replace("     99%    2.50m\n", ""),
    ],
)
def test_a_run_of_wrk_with_failures_counts_for_nothing(said: str) -> None:
    with pytest.raises(WrongAnswerError):
        parse_wrk(said)


def test_a_slow_answer_is_no_failure() -> None:
    assert parse_wrk(SAID + "  Socket errors: connect 0, read 0, write 0, timeout 5\n").count == 5439


def test_each_connection_asks_once_or_the_parts_are_dealt_out_with_their_digests() -> None:
    assert list(asks(Load("a:1", "/", 9, connections=2, digests=("d",)))) == [Ask(None, "d")] * 2
    parts = Load("a:1", "/", 9, connections=2, spans=((0, 3), (5, 9)), digests=("d", "e"))
    assert list(asks(parts)) == [Ask((0, 3), "d"), Ask((5, 9), "e")]
    assert next(asks(Load("a:1", "/", 9, seconds=1.0))) == Ask(None, "")


def test_wrong_answers_are_not_measured() -> None:
    Drained().check()
    with pytest.raises(WrongAnswerError, match="2 answers were wrong; the first: 404"):
        Drained(wrong=("404", "500")).check()


def test_results_go_between_the_markers_of_a_page_and_nowhere_else() -> None:
    page = "before\n<!-- results: begin -->\nold\n<!-- results: end -->\nafter\n"
    new = replaced(page, "new")
    assert new == page.replace("old", "new")
    assert replaced(new, "new") == new
    with pytest.raises(ValueError, match="the page has no"):
        replaced("a page", "new")
