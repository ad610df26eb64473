"""What is counted of each request, and the one line of log that it leaves."""

from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web
from cachetools import LRUCache
from prometheus_client import Counter, Histogram

from proxy.telemetry import Lines, Logger, Metrics, Outcome, Template

LONGEST = 160  # characters of a client's words in its line of the log
REMEMBERED = 2048  # kinds of requests, all but client and time alike, whose lines are not rendered anew


@dataclass(slots=True)
class Record:
    """What there will be to say of a request: filled in as it becomes known."""

    kind: str = "other"
    upstream: str = ""
    repository: str = ""
    reference: str = ""
    outcome: Outcome = Outcome.ERROR
    error: str | None = None
    status: int = 499  # 499: the client left before there was an answer
    sent: int = 0  # bytes of the body


@dataclass(frozen=True, slots=True)
class Tally:
    """What is counted of one answer each time that it is given, looked up once, and its line of the log."""

    requests: Counter
    seconds: Histogram
    bytes: Counter
    line: Template
    sent: int

    def count(self, client: str, seconds: float) -> None:
        """It was given once more."""
        self.requests.inc()
        self.seconds.observe(seconds)
        if self.sent:
            self.bytes.inc(self.sent)
        self.line.write(client, str(round(seconds, 4)))


class AccessLog:
    """Where the records of requests go."""

    def __init__(self, metrics: Metrics, log: Logger) -> None:
        self._metrics = metrics
        self._log = log
        self._lines = Lines(log)
        self._tallies: LRUCache[tuple[object, ...], Tally | None] = LRUCache(REMEMBERED)

    def write(self, request: web.BaseRequest, record: Record, seconds: float) -> None:
        """Count a request, and write its line."""
        told, client = _told(request, record), request.remote or ""
        key = tuple(told.values())
        if key in self._tallies:  # it was like this before: rendering a line takes five times as long as filling it in
            self._tally(key, told, record).count(client, seconds)
            return
        self._tallies[key] = None
        requests, took, sent = self._counters(record)
        requests.inc()
        took.observe(seconds)
        sent.inc(record.sent)
        self._log.info("request", client=client, **told, seconds=round(seconds, 4))

    def tally(self, request: web.BaseRequest, record: Record) -> Tally:
        """What will be counted of the same request when it comes again, and gets the same answer."""
        told = _told(request, record)
        return self._tally(tuple(told.values()), told, record)

    def _tally(self, key: tuple[object, ...], told: Mapping[str, object], record: Record) -> Tally:
        tally = self._tallies.get(key)
        if tally is None:
            fields, blanks = {"client": "", **told, "seconds": 0.0}, {"client": str, "seconds": float}
            line = Template(self._lines, "request", fields, blanks)
            tally = self._tallies[key] = Tally(*self._counters(record), line, record.sent)
        return tally

    def _counters(self, record: Record) -> tuple[Counter, Histogram, Counter]:
        metrics = self._metrics
        is_lent = record.outcome is Outcome.LENT
        return (
            metrics.requests.labels(record.kind, record.upstream, record.status, record.outcome.value),
            metrics.seconds.labels(record.kind),
            metrics.lent_bytes.labels("out") if is_lent else metrics.client_bytes.labels(record.upstream),
        )


def _told(request: web.BaseRequest, record: Record) -> dict[str, object]:
    error = {} if record.error is None else {"error": record.error[:LONGEST]}
    return {
        "method": request.method,
        "kind": record.kind,
        "upstream": record.upstream,
        "repository": record.repository,
        "reference": record.reference,
        "status": record.status,
        "outcome": record.outcome.value,
        "bytes": record.sent,
        "agent": request.headers.get("User-Agent", "")[:LONGEST],
        **error,
    }
