"""Storage and token services that cannot be reached: left alone, and tried again."""

import pytest
from yarl import URL

from proxy import pauses
from proxy.oci.errors import OciError, Problem
from proxy.pauses import FAILURES, MOST, Pauses

CDN = URL("https://cdn.example")


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that pauses are measured by."""
    one = Clock()
    monkeypatch.setattr(pauses, "time", one)
    return one


def broken(clock: Clock) -> Pauses:
    """Some that have just been opened."""
    assert clock.now
    one = Pauses()
    for _ in range(FAILURES):
        one.admit(CDN)
        one.failed(CDN)
    return one


def test_it_takes_failures_in_a_row(clock: Clock) -> None:
    one = Pauses()
    for _ in range(5):
        for _ in range(FAILURES - 1):
            one.admit(CDN)
            one.failed(CDN)
        one.succeeded(CDN)
    one.admit(CDN)
    assert clock.now == 1000.0


def test_then_it_fails_at_once_and_says_until_when(clock: Clock) -> None:
    one = broken(clock)
    with pytest.raises(OciError) as caught:
        one.admit(CDN)
    assert caught.value.problem is Problem.UPSTREAM_PAUSED
    assert caught.value.retry_after == pytest.approx(1.0)
    assert "cdn.example could not be reached 3 times in a row" in caught.value.message


def test_others_are_not_meant(clock: Clock) -> None:
    one = broken(clock)
    for url in ("https://cdn.example:8443", "http://cdn.example", "https://other.example"):
        one.admit(URL(url).origin())


def test_after_the_pause_one_request_finds_out_for_all(clock: Clock) -> None:
    one = broken(clock)
    clock.now += 1.1
    one.admit(CDN)
    with pytest.raises(OciError):
        one.admit(CDN)
    one.succeeded(CDN)
    one.admit(CDN)


def test_a_probe_that_fails_makes_the_pause_longer_to_a_limit(clock: Clock) -> None:
    one = broken(clock)
    waits = []
    for _ in range(6):
        with pytest.raises(OciError) as caught:
            one.admit(CDN)
        waits.append(caught.value.retry_after)
        clock.now += (caught.value.retry_after or 0) + 0.01
        one.admit(CDN)
        one.failed(CDN)
    assert waits == pytest.approx([1, 2, 4, 8, 8, 8])


def test_a_probe_that_is_never_heard_of_again_is_followed_by_another(clock: Clock) -> None:
    one = broken(clock)
    clock.now += 1.1
    one.admit(CDN)
    clock.now += 8.1
    one.admit(CDN)


def test_what_was_in_the_way_can_be_forgotten(clock: Clock) -> None:
    one = broken(clock)
    one.forget()
    one.admit(CDN)


def test_upstream_can_name_any_number_of_origins_and_few_are_remembered(clock: Clock) -> None:
    one = broken(clock)
    for number in range(2 * MOST):
        one.failed(URL(f"https://{number}.example"))
        one.succeeded(URL(f"https://good-{number}.example"))
    assert len(one._origins) == MOST
