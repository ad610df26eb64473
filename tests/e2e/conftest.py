"""An upstream and a store for every test."""

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy import exchange, outage

from .harness import Proxy, running, toml
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
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The budgets of questions, scaled down."""
    monkeypatch.setattr(exchange, "STALE_BUDGET", 0.2)
    monkeypatch.setattr(exchange, "BUDGET", 0.3)
    monkeypatch.setattr(outage, "PROBE_BUDGET", 0.2)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many faults of the disk were tried (test_faults.py), of each operation and kind, and how many kills."""
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
