"""An upstream and a store for every test."""

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
