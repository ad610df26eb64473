"""How long an answer is believed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.freshness import Verdict, verdict

TIME = st.floats(0, 2e9)
NOW = 1_700_000_000.0


def test_what_was_never_checked_is_missing() -> None:
    assert verdict(None, NOW, 60) is Verdict.MISSING


@pytest.mark.parametrize("age", [0, 1, 59, 59.9])
def test_what_is_younger_than_its_time_to_live_is_fresh(age: float) -> None:
    assert verdict(NOW - age, NOW, 60) is Verdict.FRESH


@pytest.mark.parametrize("age", [60, 61, 1e9])
def test_what_has_reached_its_time_to_live_is_stale(age: float) -> None:
    assert verdict(NOW - age, NOW, 60) is Verdict.STALE


@pytest.mark.parametrize("ahead", [0.5, 1.0])
def test_clocks_that_differ_by_a_second_do_no_harm(ahead: float) -> None:
    assert verdict(NOW + ahead, NOW, 60) is Verdict.FRESH


@pytest.mark.parametrize("ahead", [1.5, 60, 1e9, math.inf])
def test_what_was_checked_in_the_future_is_stale(ahead: float) -> None:
    assert verdict(NOW + ahead, NOW, 1e12) is Verdict.STALE


@pytest.mark.parametrize("checked", [NOW, NOW + 0.5, NOW - 1])
def test_without_a_time_to_live_everything_is_stale(checked: float) -> None:
    assert verdict(checked, NOW, 0) is Verdict.STALE


def test_a_time_that_is_no_number_is_stale() -> None:
    assert verdict(math.nan, NOW, 60) is Verdict.STALE


@given(TIME, TIME, st.floats(0, 1e9), st.floats(0, 1e9))
def test_what_became_stale_by_age_does_not_become_fresh_again(
    checked: float, now: float, ttl: float, later: float
) -> None:
    if now >= checked and verdict(checked, now, ttl) is Verdict.STALE:
        assert verdict(checked, now + later, ttl) is Verdict.STALE


@given(TIME, TIME, st.floats(0, 1e9))
def test_what_was_checked_is_never_missing(checked: float, now: float, ttl: float) -> None:
    assert verdict(checked, now, ttl) is not Verdict.MISSING
