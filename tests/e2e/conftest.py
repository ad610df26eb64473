"""An upstream and a store for every test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

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
