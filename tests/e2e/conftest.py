"""An upstream and a store for every test."""

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import moto.s3.models
import pytest
from botocore.loaders import create_loader
from botocore.retries.standard import ExponentialBackoff

from proxy.handlers import Handlers
from proxy.stores import durable, s3_access, s3_clients, s3_uploads, uploads
from tests.buckets import TestBucket

from .faulty_bucket import FaultyBucket
from .harness import Clock, Proxy, running, toml
from .upstream import FakeRegistry


@pytest.fixture
async def upstream() -> AsyncIterator[FakeRegistry]:
    """A registry that is right until told otherwise."""
    async with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where the proxy under test keeps its cache."""
    return tmp_path / "cache"


@pytest.fixture
async def proxy(upstream: FakeRegistry, store: Path) -> AsyncIterator[Proxy]:
    """A proxy in front of the upstream, as docker.io and the default, with defaults otherwise."""
    async with running(toml(upstream.url), store) as one:
        yield one


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the requests that went the ordinary way."""
    paths: list[str] = []
    dispatch = Handlers._dispatch

    async def counted(self: Handlers, request: Any, *rest: Any) -> Any:
        paths.append(request.path)
        return await dispatch(self, request, *rest)

    monkeypatch.setattr(Handlers, "_dispatch", counted)
    return paths


@pytest.fixture
def pauses_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which storage and token services are left alone for a while."""
    return Clock(monkeypatch, "proxy.pauses")


@pytest.fixture
async def faulty(bucket: TestBucket) -> AsyncIterator[FaultyBucket]:
    """In front of the bucket: right until told otherwise."""
    async with FaultyBucket(bucket.url) as one:
        yield one


@pytest.fixture
def hurried_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries at a bucket that follow at once, and parts of uploads scaled down; botocore reads its descriptions once."""
    for module, name, value in (
        (s3_uploads, "PART", 100_000), (durable, "FIRST_REST", 0.01), (durable, "LONGEST_REST", 0.05),
        (uploads, "FIRST_WAIT", 0.01), (uploads, "LONGEST_WAIT", 0.05), (moto.s3.models, "S3_UPLOAD_PART_MIN_SIZE", 1),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda _self, _context: 0.0)
    loader = create_loader()
    monkeypatch.setattr(s3_clients, "create_loader", lambda: loader)


@pytest.fixture
def impatient_bucket(hurried_bucket: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket that is silent is given up soon: on a busy machine also one that is not, so only where that is borne."""
    for module, name, value in ((s3_access, "STALL", 0.6), (s3_clients, "CONNECT", 0.3), (durable, "PATIENCE", 0.6)):
        monkeypatch.setattr(module, name, value)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many faults of the disk and of the bucket were tried, of each kind, and how many kills."""
    reports = [report for found in terminalreporter.stats.values() for report in found if hasattr(report, "when")]
    noted = [one for report in reports if report.when == "call" for one in report.user_properties]
    for name, value in noted:
        if name == "kills":
            terminalreporter.write_line(str(value))
    points = [str(value).split() for name, value in noted if name == "fault"]
    if points:
        tried = Counter((operation, fault) for operation, _, fault in points)
        terminalreporter.section(f"{len(points)} faults of the disk")
        for operation in sorted({operation for operation, _ in tried}):
            faults = ", ".join(f"{fault} {count}" for (of, fault), count in sorted(tried.items()) if of == operation)
            terminalreporter.write_line(f"{operation:10}{faults}")
    requests = [str(value).split() for name, value in noted if name == "bucket"]
    if requests:
        terminalreporter.section(f"{len(requests)} faults of the bucket")
        for lasts, when in ((False, "once"), (True, "from then on")):
            kinds = Counter(fault for number, fault in requests if number.endswith("+") == lasts)
            listed = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
            terminalreporter.write_line(f"{when:14}{listed}")
