"""Whether several connections bring a blob faster than one: tried, measured, and taken back where they do not."""

from dataclasses import dataclass

WORTHWHILE = 8 * 1024 * 1024  # bytes that have to be left of a blob to think about it
SETTLE = 0.6  # seconds after a change that are not measured: connections are made, and get up to their speed
WINDOW = 0.8  # seconds that are
FAST = 50e6  # bytes a second, at which nobody waits for more
GAIN = 0.3  # of what as many more connections could bring at best, for them to be worth it
CALM = 600.0  # seconds that a finding holds
RETIRED = 3600.0  # seconds in which nothing is tried with an upstream that has no parts to give
UNCLEAR = 8  # windows in a row that found no more connections than before, to give an attempt up


@dataclass(frozen=True, slots=True)
class Sample:
    """What came in one window: bytes a second, and by how many connections on average."""

    rate: float
    connections: float

    def is_worth(self, more: "Sample") -> bool:
        """Whether what more connections brought is worth having them."""
        return more.rate >= self.rate * (1 + GAIN * (more.connections / self.connections - 1))


class Pace:
    """How many connections a big blob of one upstream is fetched with: 1, 2, 4 ... `most`.

    Upstreams cap what one connection gets, or do not; only trying tells. There is one attempt at a time for all blobs
    of an upstream, else each would measure what the others do. `now` is in seconds of any clock that only goes forward.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.level = 1
        self.rate = 0.0  # bytes a second, of all connections together
        self.share = 0.0  # bytes a second, of one
        self._open = 0
        self._before = 1  # the level to go back to
        self._baseline: Sample | None = None  # what there was at that level, during an attempt
        self._calm_until = 0.0
        self._unclear = 0
        self._since = self._seen = 0.0
        self._bytes = 0
        self._connected = 0.0  # connection-seconds

    def opened(self, now: float) -> None:
        """A connection has begun to bring a big blob."""
        if not self._open:
            self._give_up()  # what was measured before the pause says little about now
            self._measure(now + SETTLE)
        self._elapse(now)
        self._open += 1

    def closed(self, now: float) -> None:
        """It has ended."""
        self._elapse(now)
        self._open -= 1

    def received(self, count: int, now: float) -> None:
        """So many bytes have come by any of them."""
        self._elapse(now)
        if now <= self._since:
            return
        self._bytes += count
        taken = now - self._since
        if taken >= WINDOW and self._connected:
            self._judge(Sample(self._bytes / taken, self._connected / taken), now)

    def refused(self, now: float) -> None:
        """A part was not to be had: one connection, for a while."""
        self._back_to_one(now + CALM)

    def retire(self, now: float) -> None:
        """Upstream gives no parts, or wrong ones: one connection, for long."""
        self._back_to_one(now + RETIRED)

    def _back_to_one(self, until: float) -> None:
        self.level, self._baseline = 1, None
        self._calm_until = max(self._calm_until, until)

    def _judge(self, sample: Sample, now: float) -> None:
        self.rate, self.share = sample.rate, sample.rate / max(1.0, sample.connections)
        if self.most == 1 or now < self._calm_until:
            self._measure(now)
        elif self._baseline is None:
            self._begin(sample, now)
        elif sample.connections < 1.1 * self._baseline.connections:
            self._wait_for_more(now)
        elif self._baseline.is_worth(sample):
            self._raise(sample, now)
        else:
            self._give_up()
            self._calm_until = now + CALM
            self._measure(now + SETTLE)

    def _begin(self, sample: Sample, now: float) -> None:
        """The finding has lapsed, or there is none yet: see what one connection brings, then try two."""
        if self.level > 1:
            self.level = 1
            self._measure(now + SETTLE)
        else:
            self._raise(sample, now)

    def _raise(self, sample: Sample, now: float) -> None:
        """So far it pays: try twice as many, unless that is more than there may be, or than is of use."""
        if self.level == self.most or sample.rate >= FAST:
            self._baseline = None
            if self.level > 1:
                self._calm_until = now + CALM
            self._measure(now)
            return
        self._before, self._baseline, self._unclear = self.level, sample, 0
        self.level = min(self.most, 2 * self.level)
        self._measure(now + SETTLE)

    def _wait_for_more(self, now: float) -> None:
        """The blobs at hand are too small, or there is no room for more connections."""
        self._unclear += 1
        if self._unclear >= UNCLEAR:
            self._give_up()
            self._calm_until = now + CALM
        self._measure(now)

    def _give_up(self) -> None:
        if self._baseline is not None:
            self.level, self._baseline = self._before, None

    def _measure(self, since: float) -> None:
        self._since, self._bytes, self._connected = since, 0, 0.0
        self._seen = max(self._seen, since)

    def _elapse(self, now: float) -> None:
        if now > self._seen:
            self._connected += self._open * (now - self._seen)
            self._seen = now
