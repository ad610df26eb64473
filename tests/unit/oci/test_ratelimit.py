"""What an upstream's limit means for us: read leniently, honoured once, and never a reason for silence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.ratelimit import DAY, LONGEST_PAUSE, MOST_STRETCH, Allowance, Budget, State, parse

NOW = 1_790_000_000.0
COUNTS = st.integers(0, 1000)
KINDS = st.booleans()


def headers(limit: str | None = None, remaining: str | None = None, source: str | None = None) -> dict[str, str]:
    """The headers that are there."""
    pairs = {"ratelimit-limit": limit, "ratelimit-remaining": remaining, "docker-ratelimit-source": source}
    return {name: value for name, value in pairs.items() if value is not None}


def told(remaining: int, limit: int = 100, reserve: float = 0.1, window: float | None = 21600.0) -> Budget:
    """A budget that has been told this much, just now."""
    budget = Budget(reserve)
    budget.answered(Allowance(limit, remaining, window), NOW)
    return budget


@pytest.mark.parametrize(
    ("said", "understood"),
    [
        (headers("100;w=21600", "76;w=21600", "192.0.2.1"), Allowance(100, 76, 21600, "192.0.2.1")),
        (headers("100", "76;w=60"), Allowance(100, 76, 60)),
        (headers("2000", "1999"), Allowance(2000, 1999)),
        (headers("100, 100;w=60", "5"), Allowance(100, 5, 60)),
        (headers("100;w=0", "0"), Allowance(100, 0)),
        (headers("100", "3", "a b\x1b"), Allowance(100, 3)),
        (headers("100"), None),
        (headers(None, "5"), None),
        (headers("many", "5"), None),
        (headers("-1", "5"), None),
        (headers("9" * 40, "5"), None),
        (headers("\u0661\u0660", "5"), None),
        ({}, None),
    ],
)
def test_what_an_upstream_says_of_its_limit_is_read(said: dict[str, str], understood: Allowance | None) -> None:
    assert parse(said) == understood


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=200))
def test_whatever_it_says_breaks_nothing(limit: str, remaining: str, source: str) -> None:
    known = parse(headers(limit, remaining, source))
    if known is not None:
        assert 0 <= known.left <= 1
        assert known.source is None or known.source.isprintable()


@given(COUNTS, COUNTS)
def test_the_less_is_left_the_longer_an_answer_is_believed(one: int, other: int) -> None:
    less, more = sorted((one, other))
    stretched = [told(left, limit=1000).stretch(NOW) for left in (less, more)]
    assert MOST_STRETCH >= stretched[0] >= stretched[1] >= 1


def test_with_half_of_it_left_nothing_is_stretched_and_with_nothing_known_neither() -> None:
    assert told(50).stretch(NOW) == 1
    assert told(25).stretch(NOW) == 4
    assert Budget().stretch(NOW) == 1


@pytest.mark.parametrize(("remaining", "is_low"), [(100, False), (11, False), (10, True), (0, True)])
def test_the_reserve_is_kept(remaining: int, is_low: bool) -> None:
    assert told(remaining).is_low(NOW) is is_low
    assert Budget().is_low(NOW) is False


def test_what_was_said_counts_for_its_window_only() -> None:
    budget = told(0, window=60)
    assert budget.is_low(NOW + 59)
    assert not budget.is_low(NOW + 61)
    assert budget.stretch(NOW + 61) == 1
    assert not budget.is_low(NOW - 1)  # a clock that jumped back


@given(st.lists(st.tuples(st.none() | st.floats(0, 3600), KINDS, st.floats(0, 7200)), max_size=20))
def test_a_pause_that_upstream_asks_for_is_never_cut_short(refusals: list[tuple[float | None, bool, float]]) -> None:
    budget, now, asked_until = Budget(), NOW, 0.0
    for wait, is_blob, passes in refusals:
        budget.refused(wait, is_blob=is_blob, allowance=None, now=now)
        if wait is not None:
            asked_until = max(asked_until, now + wait)
        budget.answered(None, now)  # of something asked before
        now += passes
        for kind in (True, False):
            assert now + budget.pause(now, is_blob=kind) >= asked_until or now >= asked_until
            assert budget.pause(now, is_blob=kind) <= max(3600, LONGEST_PAUSE)


def test_a_wait_that_upstream_asks_for_holds_for_everything() -> None:
    budget = Budget()
    assert budget.refused(120, is_blob=False, allowance=None, now=NOW) == 120
    assert budget.pause(NOW + 119, is_blob=True) == 1
    assert budget.pause(NOW + 119, is_blob=False) == 1
    assert budget.pause(NOW + 120, is_blob=True) == 0


def test_without_a_time_blobs_go_on_until_one_is_refused() -> None:
    budget = Budget()
    budget.refused(None, is_blob=False, allowance=None, now=NOW)
    assert budget.pause(NOW, is_blob=False) > 0
    assert budget.pause(NOW, is_blob=True) == 0
    budget.refused(None, is_blob=True, allowance=None, now=NOW)
    assert budget.pause(NOW, is_blob=True) > 0


def test_pauses_of_our_own_grow_and_begin_anew_after_an_answer() -> None:
    budget, now, pauses = Budget(), NOW, []
    for _ in range(8):
        pauses.append(budget.refused(None, is_blob=False, allowance=None, now=now))
        now += pauses[-1] + 1
    assert pauses == [30, 60, 120, 240, 480, 600, 600, 600]
    budget.answered(None, now)
    assert budget.refused(None, is_blob=False, allowance=None, now=now) == 30


def test_a_clock_that_jumped_back_a_year_does_not_make_a_pause_of_a_year() -> None:
    budget = Budget()
    budget.refused(60, is_blob=False, allowance=None, now=NOW)
    assert budget.pause(NOW - 365 * DAY, is_blob=False) == 0


def test_two_processes_know_the_later_word_and_the_longer_pause() -> None:
    old = State(Allowance(100, 50), seen=NOW, paused_until=NOW + 60)
    new = State(Allowance(100, 40), seen=NOW + 1, paused_until=NOW + 30)
    for merged in (old.merged(new, NOW), new.merged(old, NOW)):
        assert merged.allowance == Allowance(100, 40)
        assert merged.paused_until == NOW + 60


def test_the_forecast_is_when_nothing_is_left_at_the_rate_of_late() -> None:
    budget = Budget()
    for minute in range(11):
        budget.answered(Allowance(100, 100 - minute, 21600), NOW + 60 * minute)
    assert budget.state.empty_at == pytest.approx(NOW + 600 + 90 * 60)


def test_there_is_no_forecast_when_it_lasts_for_the_window_or_the_window_began_anew() -> None:
    slow = Budget()
    for hour in range(3):
        slow.answered(Allowance(100, 100 - hour, 21600), NOW + 3600 * hour)
    assert slow.state.empty_at is None
    fresh = told(10)
    fresh.answered(Allowance(100, 5, 21600), NOW + 60)
    fresh.answered(Allowance(100, 100, 21600), NOW + 120)
    assert fresh.state.empty_at is None


def test_a_pause_counts_though_one_from_before_a_clock_jump_is_days_ahead() -> None:
    now = 1_800_000_000.0
    budget = Budget(state=State(paused_until=now + 3 * DAY, metadata_paused_until=now + 3 * DAY))
    budget.refused(60.0, is_blob=False, allowance=None, now=now)
    assert budget.pause(now, is_blob=False) == 60.0


def test_an_allowance_from_the_future_does_not_outlive_what_upstream_says_now() -> None:
    now = 1_800_000_000.0
    future = State(allowance=Allowance(100, 100, 21600.0), seen=now + 3 * DAY)
    budget = Budget()
    budget.answered(Allowance(100, 1, 21600.0), now)
    budget.state = budget.state.merged(future, now)  # what _learn does each second
    assert budget.is_low(now)
