"""What all tests share."""

import gc
from collections.abc import Generator, Iterator

import pytest
from blockbuster import blockbuster_ctx
from botocore.loaders import Loader, create_loader
from hypothesis import HealthCheck, settings

from proxy.files import Tree
from proxy.stores import s3_clients

from . import buckets
from .buckets import KEYS, Server, TestBucket
from .discarding import Discarding

# No test may depend on the speed of the machine: on an empty one hypothesis first computes tables, for seconds.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Thousands of tests are collected, all of which stay: nothing of that is garbage, nor looked at again for some."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(params=[("asyncio", {"use_uvloop": True})], ids=["uvloop"], scope="session")
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """Tests run on uvloop, as the proxy does."""
    return request.param


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[None]:
    """A blocking call of the product's on the event loop fails the test."""
    with blockbuster_ctx("proxy") as detector:
        # To a socket that does not block, of what is in memory.
        detector.functions["os.sendfile"].can_block_in("proxy/files/sending.py", {"send_now"})
        yield


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """An S3 server, for as long as there are tests that want one."""
    with buckets.server() as one:
        yield one


@pytest.fixture(scope="session")
def descriptions() -> Loader:
    """What botocore knows of S3, which takes it a while to read."""
    return create_loader()


@pytest.fixture
def bucket(s3_server: Server, descriptions: Loader, monkeypatch: pytest.MonkeyPatch) -> TestBucket:
    """An empty bucket on it, and in the environment the keys to it and nothing else of this machine's."""
    monkeypatch.setattr(s3_clients, "create_loader", lambda: descriptions)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return s3_server.bucket()


@pytest.fixture
def discarding(monkeypatch: pytest.MonkeyPatch) -> Iterator[Discarding]:
    """One that is slow, until it is told to go on."""
    one = Discarding()
    monkeypatch.setattr(Tree, "_discard_spool", lambda *named: one.discard(*named))  # noqa: PLW0108  else nobody says which tree
    yield one
    one.go_on.set()
