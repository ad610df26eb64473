"""When to try an upstream again: backoff with jitter, Retry-After (RFC 9110, section 10.2.3) and a circuit breaker."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_LONGEST_WAIT = 3600.0
_LONGEST_HEADER = 64
_SECONDS = re.compile(r"[0-9]{1,19}", re.ASCII)
_TIMESTAMPS_FROM = 10**9


def pause(attempt: int, draw: float, *, base: float = 0.2, cap: float = 5.0) -> float:
    """Full jitter: a part, drawn from 0..1, of an exponentially growing bound; attempts count from 0."""
    return draw * min(cap, base * 2.0 ** min(attempt, 64))


def retry_after(header: str | None, now: float) -> float | None:
    """Seconds from now (a unix time) that a Retry-After asks for, at most an hour; None where it says nothing."""
    text = (header or "").strip(" \t")
    if len(text) > _LONGEST_HEADER:
        return None
    if not _SECONDS.fullmatch(text):
        moment = _http_date(text)
        return None if moment is None else _clamp(moment - now)
    seconds = int(text)
    # Docker Hub has sent a unix time here: hub-feedback#2459.
    return _clamp(seconds - now if seconds > _TIMESTAMPS_FROM else seconds)


def _http_date(text: str) -> float | None:
    try:
        date: datetime = parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _clamp(seconds: float) -> float:
    return min(max(float(seconds), 0.0), _LONGEST_WAIT)


class Breaker:
    """Spares an upstream that fails: after a failure a pause, then one probe decides about the next, longer pause.

    Closed while `_reopens_at` is None. Times are monotonic seconds, given by the caller.
    """

    __slots__ = ("_first", "_longest", "_pause", "_probing", "_reopens_at")

    def __init__(self, first: float = 2.0, longest: float = 30.0) -> None:
        self._first = first
        self._longest = longest
        self._pause = 0.0
        self._probing = False
        self._reopens_at: float | None = None

    def admit(self, now: float) -> bool:
        """Whether a request may go out; once a pause is over, True means that it is the probe and must report."""
        if self._reopens_at is None:
            return True
        if now < self._reopens_at:
            return False
        # A probe that never reports counts for no longer than the longest pause.
        self._probing = True
        self._reopens_at = now + self._longest
        return True

    @property
    def is_open(self) -> bool:
        """Whether requests are to be spared for now."""
        return self._reopens_at is not None

    def succeeded(self) -> None:
        """Upstream answered: let everybody in."""
        self._pause = 0.0
        self._probing = False
        self._reopens_at = None

    def failed(self, now: float) -> None:
        """Upstream failed: pause, twice as long as the last time."""
        if self._reopens_at is not None and now < self._reopens_at and not self._probing:
            return  # a request from before the pause: one outage is not counted once per victim
        self._pause = min(self._longest, self._pause * 2 or self._first)
        self._probing = False
        self._reopens_at = now + self._pause

    def reopens_in(self, now: float) -> float:
        """Seconds until a request may go out again, 0 when one may now."""
        return 0.0 if self._reopens_at is None else max(0.0, self._reopens_at - now)


class RetryBudget:
    """Retries may be a tenth of the requests, and a few more: an upstream in trouble is not asked thrice as much."""

    __slots__ = ("_left", "_most", "_share")

    def __init__(self, share: float = 0.1, most: float = 10.0) -> None:
        """`share`: retries earned by a request; `most`: how many may be saved up, and are there at first."""
        self._share = share
        self._most = most
        self._left = most

    def asked(self) -> None:
        """A request goes out for the first time."""
        self._left = min(self._most, self._left + self._share)

    def take(self) -> bool:
        """Whether there may be one retry more."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Ramp:
    """How many may ask at once where nobody waits for the answer: one at first, twice as many after each answer.

    So a refusal, or an outage, is found out by one question and not by five hundred; and after it there is no storm.
    """

    __slots__ = ("_asking", "_last", "_rest", "_widest", "_width")

    def __init__(self, widest: int = 32, rest: float = 30.0) -> None:
        """`rest`: seconds without an answer after which it begins at one again."""
        self._widest = widest
        self._rest = rest
        self._width = 1
        self._asking = 0
        self._last = 0.0

    def enter(self, now: float) -> bool:
        """Whether one more may ask now (monotonic seconds); whoever may must leave."""
        if now - self._last > self._rest:
            self._width = 1
        if self._asking >= self._width:
            return False
        self._asking += 1
        return True

    def leave(self, now: float, *, is_good: bool) -> None:
        """One has asked: with a usable answer, or with none."""
        self._asking -= 1
        self._last = now
        self._width = min(self._widest, self._width * 2) if is_good else 1
