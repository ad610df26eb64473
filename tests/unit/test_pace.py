"""How many connections a blob is worth, against links whose truth is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.pace import CALM, FAST, RETIRED, Pace

MB = 1e6
STEP = 0.05  # seconds


def flow(pace: Pace, seconds: float, *, cap: float, link: float, blobs: int = 1, since: float = 0.0) -> float:
    """Blobs that follow the level at once, each connection with its cap, all together with the link's rate."""
    now, connected = since, 0
    for _ in range(int(seconds / STEP)):
        while connected < blobs * pace.level:
            pace.opened(now)
            connected += 1
        while connected > blobs * pace.level:
            pace.closed(now)
            connected -= 1
        now += STEP
        pace.received(int(min(connected * cap, link) * STEP), now)
    for _ in range(connected):
        pace.closed(now)
    return now


@pytest.mark.parametrize(("most", "found"), [(1, 1), (2, 2), (4, 4), (6, 6), (16, 16)])
def test_under_a_cap_as_many_are_used_as_are_allowed(most: int, found: int) -> None:
    pace = Pace(most)
    flow(pace, 12, cap=0.75 * MB, link=1000 * MB)
    assert pace.level == found


@given(link=st.floats(0.1, 49), blobs=st.integers(1, 4))
def test_a_slow_link_without_a_cap_is_left_to_one(link: float, blobs: int) -> None:
    pace = Pace(8)
    flow(pace, 30, cap=link * MB, link=link * MB, blobs=blobs)
    assert pace.level == 1


def test_a_cap_is_followed_only_as_far_as_the_link_reaches() -> None:
    pace = Pace(16)
    flow(pace, 30, cap=1 * MB, link=4 * MB)
    assert pace.level == 4


def test_nothing_is_tried_where_it_is_fast_anyway() -> None:
    pace, seen = Pace(8), set()
    for number in range(20):
        flow(pace, 1, cap=FAST, link=10 * FAST, since=float(number))
        seen.add(pace.level)
    assert seen == {1}


def test_a_finding_is_tried_anew_when_it_has_lapsed() -> None:
    pace = Pace(4)
    end = flow(pace, 12, cap=1 * MB, link=1000 * MB)
    assert pace.level == 4
    flow(pace, 30, cap=8 * MB, link=8 * MB, since=end + CALM)
    assert pace.level == 1


def test_a_refusal_means_one_for_a_while_and_what_has_no_parts_one_for_long() -> None:
    pace = Pace(4)
    pace.refused(0.0)
    flow(pace, 30, cap=1 * MB, link=1000 * MB, since=CALM - 40)
    assert pace.level == 1
    flow(pace, 12, cap=1 * MB, link=1000 * MB, since=CALM + 1)
    assert pace.level == 4
    pace.retire(1000.0)
    assert pace.level == 1
    flow(pace, 30, cap=1 * MB, link=1000 * MB, since=1000 + RETIRED - 40)
    assert pace.level == 1


@given(
    st.lists(
        st.tuples(st.sampled_from(["opened", "closed", "received", "refused"]), st.floats(0, 5), st.integers(0, 10**8)),
        max_size=80,
    ),
    st.integers(1, 16),
)
def test_there_are_never_more_than_allowed_and_always_one(steps: list[tuple[str, float, int]], most: int) -> None:
    pace, now, connected = Pace(most), 0.0, 0
    for what, wait, count in steps:
        now += wait
        match what:
            case "opened":
                pace.opened(now)
                connected += 1
            case "closed" if connected:
                pace.closed(now)
                connected -= 1
            case "received" if connected:
                pace.received(count, now)
            case "refused":
                pace.refused(now)
            case _:
                pass
        assert 1 <= pace.level <= most
        assert pace.share >= 0
