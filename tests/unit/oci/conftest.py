"""How hard hypothesis tries here; no deadline, because no test may depend on the speed of the machine."""

import pytest
from hypothesis import settings

settings.register_profile("oci", max_examples=40, deadline=None)
settings.load_profile("oci")


@pytest.fixture(autouse=True)
def no_blocking_calls() -> None:
    """Nothing here runs on an event loop, and the watch over it costs more than most of these tests."""
