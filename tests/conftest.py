"""What all tests share."""

from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx


@pytest.fixture(params=[("asyncio", {"use_uvloop": True})], ids=["uvloop"], scope="session")
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """Tests run on uvloop, as the proxy does."""
    return request.param


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[None]:
    """A blocking call of the product's on the event loop fails the test."""
    with blockbuster_ctx("proxy"):
        yield
