"""Logs and metrics: how they are set up, and the closed set of things that are counted."""

import asyncio
import enum
import logging
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, Literal, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

Logger = structlog.typing.FilteringBoundLogger
Format = Literal["auto", "console", "json"]


class Outcome(enum.StrEnum):
    """Where an answer came from."""

    HIT = "hit"  # the cache, upstream not asked
    REVALIDATED = "revalidated"  # the cache, upstream asked whether the tag still stands for it
    FILL = "fill"  # upstream, on its way into the cache
    JOIN = "join"  # upstream, on its way already when asked for
    STALE = "stale"  # the cache, since upstream does not answer
    DIRECT = "direct"  # upstream, and the cache will not keep it
    REDIRECT = "redirect"  # the bucket, to which the client was sent
    RELAY = "relay"  # upstream: listings are not kept
    LENT = "lent"  # to another replica on the same bucket: as it is here, or on its way in
    LOCAL = "local"  # no content at all
    ERROR = "error"


def set_up_logging(style: Format, level: str, stream: TextIO = sys.stderr) -> Logger:
    """Make the process's logger, and send the standard library's records (aiohttp's, asyncio's) the same way."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_stamping(),
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(style, stream)],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(_threshold(level), logging.WARNING), force=True)
    return make_logger(style, level, stream)


def make_logger(style: Format, level: str, stream: TextIO) -> Logger:
    """A structured logger that writes to `stream`, a line a record.

    `auto` writes for people on a terminal, and JSON everywhere else.
    """
    logger: Logger = structlog.wrap_logger(
        structlog.WriteLogger(stream),
        processors=[*_stamping(), *_rendering(style, stream)],
        wrapper_class=structlog.make_filtering_bound_logger(_threshold(level)),
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return logger


def _stamping() -> list[structlog.typing.Processor]:
    return [structlog.processors.add_log_level, structlog.processors.MaybeTimeStamper(fmt="iso", utc=True)]


def _rendering(style: Format, stream: TextIO) -> list[structlog.typing.Processor]:
    if style == "console" or (style == "auto" and stream.isatty()):
        # Plain tracebacks: the others show local variables, and one of those may be a password.
        plain = structlog.dev.plain_traceback
        return [_escape, structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


def _escape(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What a client or an upstream said must not drive the terminal, nor begin a line of its own."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = value.encode("unicode_escape").decode("ascii")
    return event


def _threshold(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def quiet() -> Logger:
    """A logger that drops everything, for callers that have nowhere to write."""
    logger: Logger = structlog.wrap_logger(structlog.ReturnLogger(), processors=[_drop])
    return logger


def _drop(_logger: Any, _method: str, _event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    raise structlog.DropEvent


class Lines:
    """Lines of the log that are written together once a turn of the event loop is over: one call for all of them."""

    def __init__(self, log: Logger) -> None:
        self.log = log
        bound: Any = log.bind()
        self._write: Callable[[str], None] = bound._logger.msg  # noqa: SLF001  named in structlog's reference
        self._waiting: list[str] = []
        self._second, self._stamp = 0, ""  # of the last line

    def stamp(self) -> str:
        """The time of now, as it stands in every record."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._stamp = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._stamp}.{int((now - second) * 1e6):06d}Z"

    def add(self, line: str) -> None:
        """Write a line soon."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(line)

    def _flush(self) -> None:
        lines, self._waiting = self._waiting, []
        self._write("\n".join(lines))


class Template:
    """A record that is written again and again with other figures: rendered once, its blanks filled in each time.

    That takes a fifth of what the logger takes. A logger that does not write such records writes none here either.
    """

    def __init__(self, lines: Lines, event: str, fields: Mapping[str, object], blanks: Mapping[str, type]) -> None:
        """`blanks`: those of the fields that are filled in, each of them text (`str`) or a number (`float`)."""
        self._lines = lines
        # Nobody who has a say in a field can guess what stands for a blank.
        marks = {
            name: secrets.token_hex(16) if kind is str else secrets.randbits(48) + 0.5
            for name, kind in {**blanks, "timestamp": str}.items()
        }
        self._parts = _rendered(lines.log, event, {**fields, **marks}, [str(mark) for mark in marks.values()])
        self._places = [self._parts.index(str(mark)) for mark in marks.values()] if self._parts else []

    def write(self, *values: str) -> None:
        """Write the record, with these values for its blanks, in their order."""
        if not self._parts:
            return
        parts = self._parts.copy()
        for place, value in zip(self._places, values, strict=False):
            parts[place] = value
        parts[self._places[-1]] = self._lines.stamp()
        self._lines.add("".join(parts))


def _rendered(log: Logger, event: str, fields: Mapping[str, object], marks: Sequence[str]) -> list[str]:
    """A record as it is written, cut at its marks; nothing, if it is not written."""
    bound: Any = log.bind()
    if not bound.is_enabled_for(logging.INFO):
        return []
    try:
        (text,), _ = bound._process_event("info", event, dict(fields))  # noqa: SLF001  so is this
    except structlog.DropEvent:
        return []
    return re.split("(" + "|".join(map(re.escape, marks)) + ")", text)


class Metrics:
    """Everything that is counted; label values come from closed sets only, never from a client.

    With several workers prometheus_client keeps each process's values in files, and the admin listener adds them up:
    it does so when PROMETHEUS_MULTIPROC_DIR is set before the first import, which the supervisor sees to.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "entrepot_requests", "Requests by kind, upstream, status and outcome",
            ["kind", "upstream", "status", "outcome"], registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "entrepot_request_seconds", "Seconds from request to end of answer", ["kind"], registry=registry,
            buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300),
        )  # fmt: skip
        self.client_bytes = Counter(
            "entrepot_client_bytes", "Body bytes sent to clients", ["upstream"], registry=registry
        )
        self.upstream_bytes = Counter(
            "entrepot_upstream_bytes", "Body bytes received from upstream", ["upstream"], registry=registry
        )
        self.upstream_answers = Counter(
            "entrepot_upstream_answers", "Answers of upstream by status, or the error in place of one",
            ["upstream", "method", "status"], registry=registry,
        )  # fmt: skip
        self.sealed_misses = Counter(
            "entrepot_sealed_misses", "What was wanted of a sealed upstream", ["upstream"], registry=registry
        )
        self.rate_limit = Gauge(
            "entrepot_upstream_ratelimit", "Pulls that upstream allows an account in a window",
            ["upstream", "account"], registry=registry, multiprocess_mode="mostrecent",
        )  # fmt: skip
        self.rate_remaining = Gauge(
            "entrepot_upstream_ratelimit_remaining", "Pulls that are left of it", ["upstream", "account"],
            registry=registry, multiprocess_mode="mostrecent",
        )  # fmt: skip
        self.fills = Counter(
            "entrepot_fills", "Downloads of blobs by outcome", ["upstream", "outcome"], registry=registry
        )
        self.fills_active = Gauge(
            "entrepot_fills_active", "Downloads of blobs going on", registry=registry, multiprocess_mode="livesum"
        )
        self.cache_bytes = Gauge(
            "entrepot_cache_bytes", "Bytes of stored blobs", registry=registry, multiprocess_mode="mostrecent"
        )
        self.warmed = Counter(
            "entrepot_warmed_images",
            "Images of [[warm]] that were brought in, or failed",
            ["outcome"],
            registry=registry,
        )
        self.evicted_bytes = Counter("entrepot_evicted_bytes", "Bytes of blobs dropped to make room", registry=registry)
        self.scrubbed_blobs = Counter("entrepot_scrubbed_blobs", "Blobs that scrubs have looked at", registry=registry)
        self.scrubbed_bytes = Counter("entrepot_scrubbed_bytes", "Bytes that scrubs have read", registry=registry)
        self.findings = Counter(
            "entrepot_findings", "What was found damaged or out of place, and what became of it", ["kind", "fate"],
            registry=registry,
        )  # fmt: skip
        self.expired_images = Counter(
            "entrepot_expired_images", "Images that lifecycle policies took out", registry=registry
        )
        self.expired_bytes = Counter(
            "entrepot_expired_bytes", "Bytes of blobs that went with those images", registry=registry
        )
        self.bucket_up = Gauge(
            "entrepot_bucket_up", "Whether the bucket can be read and written, as far as was tried", registry=registry,
            multiprocess_mode="mostrecent",
        )  # fmt: skip
        self.bucket_bytes = Counter(
            "entrepot_bucket_bytes", "Bytes of blobs and records to the bucket (up) and from it (down)", ["direction"],
            registry=registry,
        )  # fmt: skip
        self.bucket_evicted_bytes = Counter(
            "entrepot_bucket_evicted_bytes", "Bytes of blobs that were evicted from the bucket", registry=registry
        )
        self.lent_bytes = Counter(
            "entrepot_lent_bytes", "Bytes of blobs that replicas on one bucket gave each other (in, out)",
            ["direction"], registry=registry,
        )  # fmt: skip
        self.uploads_pending = Gauge(
            "entrepot_uploads_pending", "Files that have yet to get into the bucket", registry=registry,
            multiprocess_mode="livemax",
        )  # fmt: skip
        self.descriptors = Gauge(
            "entrepot_open_descriptors", "Open file descriptors", registry=registry, multiprocess_mode="livesum"
        )
        self.descriptor_limit = Gauge(
            "entrepot_descriptor_limit", "Limit of open file descriptors, per process", registry=registry,
            multiprocess_mode="livemax",
        )  # fmt: skip
