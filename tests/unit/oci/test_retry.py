"""Backoff, Retry-After and the breaker, with time as an argument."""

import math
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from proxy.oci.retry import Breaker, pause, retry_after

NOW = 784111777.0 - 100  # a hundred seconds before the date that RFC 9110 gives as its example
TODAY = 1_790_000_000.0


@pytest.mark.parametrize(("attempt", "bound"), [(0, 0.2), (1, 0.4), (2, 0.8), (4, 3.2), (5, 5.0), (6, 5.0)])
def test_the_bound_of_a_pause_doubles_up_to_the_cap(attempt: int, bound: float) -> None:
    assert pause(attempt, 1.0) == pytest.approx(bound)
    assert pause(attempt, 0.5) == pytest.approx(bound / 2)


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0.001, 10), st.floats(0.001, 100))
def test_a_pause_stays_within_its_bounds(attempt: int, draw: float, base: float, cap: float) -> None:
    assert 0 <= pause(attempt, draw, base=base, cap=cap) <= cap


def test_the_millionth_attempt_does_not_overflow() -> None:
    assert pause(10**6, 1.0) == 5.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0),
        ("1", 1),
        ("120", 120),
        (" 120\t", 120),
        ("0060", 60),
        ("3600", 3600),
        ("3601", 3600),
        ("999999999", 3600),
        ("1000000000", 3600),
        ("9999999999999999999", 3600),
    ],
)
def test_seconds_are_taken_up_to_an_hour(header: str, seconds: float) -> None:
    assert retry_after(header, TODAY) == seconds


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 100),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 100),
        ("Sun Nov  6 08:49:37 1994", 100),
        ("Sun, 06 Nov 1994 08:49:37 -0000", 100),
        ("Sun, 06 Nov 1994 09:49:37 +0100", 100),
        ("Sun, 06 Nov 1994 08:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
    ],
)
def test_a_date_counts_from_now(header: str, seconds: float) -> None:
    assert retry_after(header, NOW) == seconds


@pytest.fixture
def far_from_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC+5")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("far_from_greenwich")
@pytest.mark.parametrize("header", ["Sun Nov  6 08:49:37 1994", "Sun, 06 Nov 1994 08:49:37 -0000"])
def test_a_date_without_a_zone_is_universal_time_wherever_the_machine_stands(header: str) -> None:
    assert retry_after(header, NOW) == 100


@pytest.mark.parametrize(("ahead", "seconds"), [(90, 90), (0, 0), (-90, 0), (10**8, 3600)])
def test_a_unix_time_is_understood_as_one(ahead: int, seconds: float) -> None:
    assert retry_after(str(int(TODAY) + ahead), TODAY) == seconds


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        " ",
        "-1",
        "+1",
        "1.5",
        "1e9",
        "0x10",
        "1_000",
        "soon",
        "\u0661\u0662",
        "\u00b2",
        "1, 2",
        "99999999999999999999",
        "9" * 5000,
        "Sun, 99 Nov 1994 08:49:37 GMT",
        "Sun, 06 Foo 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 99:99:99 GMT",
        "Sun, 06 Nov 1994 08:49:37 +999999999999",
        "Sun, 06 Nov 99999 08:49:37 GMT",
        "06 Nov",
        "\udcff",
    ],
)
def test_what_says_no_time_is_none(header: str | None) -> None:
    assert retry_after(header, NOW) is None


WORDS = [
    "Sun,",
    "06",
    "Nov",
    "1994",
    "08:49:37",
    "GMT",
    "-0000",
    "+9999",
    "0",
    "-1",
    "(",
    ")",
    '"',
    "\\",
    ":",
    ";",
    ",",
]


@given(
    st.text(st.characters(exclude_categories=())) | st.lists(st.sampled_from(WORDS)).map(" ".join),
    st.floats(0, 4e9),
)
def test_an_arbitrary_header_is_at_most_an_hour_or_none(header: str, now: float) -> None:
    seconds = retry_after(header, now)
    assert seconds is None or 0 <= seconds <= 3600


def opened(*failures: float) -> Breaker:
    """A breaker after failures at these times, each but the first of a probe."""
    breaker = Breaker()
    for moment in failures:
        assert breaker.admit(moment)
        breaker.failed(moment)
    return breaker


def test_a_new_breaker_admits_everybody() -> None:
    breaker = Breaker()
    assert all(breaker.admit(0.0) for _ in range(100))
    assert breaker.reopens_in(0.0) == 0


def test_a_failure_pauses_everybody() -> None:
    breaker = opened(10.0)
    assert not any(breaker.admit(moment) for moment in (10.0, 11.0, 11.99))
    assert breaker.reopens_in(10.5) == 1.5


def test_after_the_pause_exactly_one_probe_goes_out() -> None:
    breaker = opened(10.0)
    assert breaker.admit(12.0)
    assert not any(breaker.admit(12.0 + later) for later in (0.0, 1.0, 29.9))


def test_a_probe_that_succeeds_lets_everybody_in_again() -> None:
    breaker = opened(10.0)
    assert breaker.admit(12.0)
    breaker.succeeded()
    assert breaker.admit(12.0)
    assert breaker.admit(12.0)
    assert breaker.reopens_in(12.0) == 0


def test_each_probe_that_fails_doubles_the_pause_up_to_the_longest() -> None:
    breaker = Breaker(first=2.0, longest=30.0)
    now, pauses = 100.0, []
    for _ in range(7):
        assert breaker.admit(now)
        breaker.failed(now)
        pauses.append(breaker.reopens_in(now))
        now += pauses[-1]
    assert pauses == [2, 4, 8, 16, 30, 30, 30]


def test_a_success_forgets_the_failures_before_it() -> None:
    breaker = opened(0.0, 2.0, 6.0)
    assert breaker.admit(14.0)
    breaker.succeeded()
    breaker.failed(20.0)
    assert breaker.reopens_in(20.0) == 2


def test_a_probe_that_never_reports_is_forgotten_after_the_longest_pause() -> None:
    breaker = opened(0.0)
    assert breaker.admit(2.0)
    assert not breaker.admit(31.9)
    assert breaker.reopens_in(31.0) == 1
    assert breaker.admit(32.0)
    assert not breaker.admit(32.0)


def test_many_requests_that_fail_together_are_one_failure() -> None:
    breaker = opened(0.0)
    for late in (0.0, 0.5, 1.9):
        breaker.failed(late)
    assert breaker.reopens_in(0.0) == 2


def test_a_failure_after_an_unused_pause_counts() -> None:
    breaker = opened(0.0)
    breaker.failed(2.0)
    assert breaker.reopens_in(2.0) == 4


def test_the_first_pause_is_never_longer_than_the_longest() -> None:
    breaker = Breaker(first=60.0, longest=30.0)
    breaker.failed(0.0)
    assert breaker.reopens_in(0.0) == 30


class BreakerRules(RuleBasedStateMachine):
    """Whatever happens in whatever order: one probe at a time, and no pause without an end."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(first=2.0, longest=30.0)
        self.now = 0.0
        self.closed = True
        self.probe: float | None = None

    @rule(seconds=st.floats(0, 40) | st.sampled_from([2.0, 4.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def a_request_comes(self) -> None:
        admitted = self.breaker.admit(self.now)
        if self.closed:
            assert admitted
        elif admitted:
            assert self.probe is None or self.now - self.probe >= 30 or math.isclose(self.now - self.probe, 30)
            self.probe = self.now

    @rule()
    def a_request_succeeds(self) -> None:
        self.breaker.succeeded()
        self.closed, self.probe = True, None

    @rule()
    def a_request_fails(self) -> None:
        self.breaker.failed(self.now)
        self.closed, self.probe = False, None

    @invariant()
    def the_end_of_the_pause_is_in_sight(self) -> None:
        left = self.breaker.reopens_in(self.now)
        assert left == 0 if self.closed else 0 <= left <= 30.0001


TestBreakerRules = BreakerRules.TestCase
