"""How hard hypothesis tries here."""

import pytest
from hypothesis import settings

settings.register_profile("oci", settings.get_profile("any machine"), max_examples=40)
settings.load_profile("oci")


@pytest.fixture(autouse=True)
def no_blocking_calls() -> None:
    """Nothing here runs on an event loop, and the watch over it costs more than most of these tests."""
