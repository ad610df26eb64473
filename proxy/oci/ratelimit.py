"""How much an upstream still allows: what its headers say of it, and what follows for us. Times are unix seconds."""

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

_QUANTITY = re.compile(r" *([0-9]{1,12}) *(?:[;,].*)?", re.ASCII | re.DOTALL)
_WINDOW = re.compile(r";\s*w=([0-9]{1,9})\b", re.ASCII)
_SOURCE = re.compile(r"[\x21-\x7e]{1,128}", re.ASCII)
DAY = 86400.0
SLACK = 60.0  # seconds that a clock may have been ahead when something was seen
SHORTEST_PAUSE = 1.0  # seconds, even if "Retry-After: 0" comes with a 429
FIRST_PAUSE = 30.0  # seconds, when a 429 does not say for how long; doubling ...
LONGEST_PAUSE = 600.0  # ... up to this
PLENTY = 0.5  # of the limit left is no reason to ask less often
MOST_STRETCH = 64.0
SAMPLES = 64


def as_utc(moment: float) -> str:
    """A time as logs and the API write it."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class Allowance:
    """What an upstream says of its limit: `remaining` of `limit` pulls in a window of so many seconds."""

    limit: int
    remaining: int
    window: float | None = None  # seconds
    source: str | None = None  # who is counted: an address or an account, in upstream's words

    @property
    def left(self) -> float:
        """The part of the limit that is left, 0 to 1."""
        return min(1.0, self.remaining / self.limit) if self.limit > 0 else 0.0


def parse(headers: Mapping[str, str]) -> Allowance | None:
    """Read `ratelimit-limit`, `ratelimit-remaining` and `docker-ratelimit-source`; None where they say nothing.

    `headers` must find names in any case. Docker Hub writes "100;w=21600", GitLab a bare number.
    """
    limit, remaining = headers.get("ratelimit-limit", ""), headers.get("ratelimit-remaining", "")
    most, left = _QUANTITY.fullmatch(limit), _QUANTITY.fullmatch(remaining)
    if most is None or left is None:
        return None
    window = _WINDOW.search(limit) or _WINDOW.search(remaining)
    source = headers.get("docker-ratelimit-source", "")
    return Allowance(
        int(most[1]),
        int(left[1]),
        float(window[1]) if window is not None and int(window[1]) else None,
        source if _SOURCE.fullmatch(source) else None,
    )


@dataclass(frozen=True, slots=True)
class State:
    """What is known of one credential's budget: what its processes tell each other, and what survives a restart."""

    allowance: Allowance | None = None
    seen: float = 0.0  # when upstream said so
    paused_until: float = 0.0  # nothing is asked before
    metadata_paused_until: float = 0.0  # nothing but blobs is asked before
    refusals: int = 0  # answers of 429 in a row
    empty_at: float | None = None  # when nothing will be left, at the rate of late; None: no time soon
    paused_at: float = 0.0  # when the last pause began

    def merged(self, other: "State", now: float) -> "State":
        """What two processes know together: the later word on the allowance, the longer pause.

        What a clock that was ahead has left is no word at all.
        """
        newer = max((self, other), key=lambda one: one.seen if one.seen <= now + SLACK else -1.0)
        one, another = self.possible(now), other.possible(now)
        return replace(
            newer,
            paused_until=max(one.paused_until, another.paused_until),
            metadata_paused_until=max(one.metadata_paused_until, another.metadata_paused_until),
            paused_at=max(one.paused_at, another.paused_at),
        )

    def possible(self, now: float) -> "State":
        """Without the pauses that began in the future, or end too far off: the clock was ahead when they did."""
        if self.paused_at > now + SLACK:
            return replace(self, paused_until=0.0, metadata_paused_until=0.0, paused_at=0.0)
        return replace(
            self,
            paused_until=self.paused_until if self.paused_until - now <= DAY else 0.0,
            metadata_paused_until=self.metadata_paused_until if self.metadata_paused_until - now <= DAY else 0.0,
        )


class Budget:
    """What one credential may ask of one upstream. Advice only: whoever asks looks here first, and tells what came."""

    __slots__ = ("_reserve", "_samples", "state")

    def __init__(self, reserve: float = 0.1, state: State | None = None) -> None:
        """`reserve`: the part of the limit, 0 to 1, that is kept for images that are not cached yet."""
        self.state = state or State()
        self._reserve = reserve
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES)

    def answered(self, allowance: Allowance | None, now: float) -> None:
        """Upstream answered, and not with 429. A pause goes on: the answer may be to what was asked before it."""
        if self.state.refusals and not self.pause(now, is_blob=False):
            self.state = replace(self.state, refusals=0)
        if allowance is None:
            return
        self.state = replace(self.state, allowance=allowance, seen=now)
        if self._samples and allowance.remaining > self._samples[-1][1]:
            self._samples.clear()  # the window has moved on, or it is another one
        if not self._samples or allowance.remaining < self._samples[-1][1]:
            self._samples.append((now, allowance.remaining))
        self.state = replace(self.state, empty_at=self._forecast(allowance, now))

    def refused(self, wait: float | None, *, is_blob: bool, allowance: Allowance | None, now: float) -> float:
        """Upstream answered 429, asking us to wait (seconds, None if it does not say). Returns the pause in seconds.

        A wait that it asks for holds for everything. Without one, what is known is only that it counts something:
        blobs, which nobody counts with pulls, may go on until one of them is refused.
        """
        refusals = self.state.refusals + 1
        pause = min(FIRST_PAUSE * 2.0 ** min(refusals - 1, 16), LONGEST_PAUSE) if wait is None else wait
        until = now + max(pause, SHORTEST_PAUSE)
        self.state = replace(self.state.possible(now), refusals=refusals, paused_at=now)
        if wait is not None or is_blob:
            self.state = replace(self.state, paused_until=max(self.state.paused_until, until))
        else:
            longer = max(self.state.metadata_paused_until, until)
            self.state = replace(self.state, metadata_paused_until=longer)
        if allowance is not None:
            self.state = replace(self.state, allowance=allowance, seen=now)
        return until - now

    def pause(self, now: float, *, is_blob: bool) -> float:
        """Seconds for which nothing of the kind may be asked; 0 if it may now. A clock that jumped back counts not."""
        state = self.state.possible(now)
        until = state.paused_until if is_blob else max(state.paused_until, state.metadata_paused_until)
        return max(0.0, until - now)

    def allowance(self, now: float) -> Allowance | None:
        """What upstream said, unless its window is over since."""
        known = self.state.allowance
        # Not for longer than a day: who lifts its limit says so by saying nothing more.
        if known is None or not 0 <= now - self.state.seen < min(known.window or LONGEST_PAUSE, DAY):
            return None
        return known

    def is_low(self, now: float) -> bool:
        """Whether what is left is to be kept for images that are not cached yet."""
        known = self.allowance(now)
        return known is not None and known.remaining <= self._reserve * known.limit

    def stretch(self, now: float) -> float:
        """By which factor, from 1 up, answers are to be believed for longer: the less is left, the longer."""
        known = self.allowance(now)
        if known is None or known.left >= PLENTY:
            return 1.0
        return min(MOST_STRETCH, (PLENTY / known.left) ** 2) if known.left > 0 else MOST_STRETCH

    def _forecast(self, known: Allowance, now: float) -> float | None:
        (began, then), (ended, left) = self._samples[0], self._samples[-1]
        if ended <= began or then <= left:
            return None
        empty = now + known.remaining * (now - began) / (then - left)
        return empty if empty - now < (known.window or DAY) else None
