"""How hard hypothesis tries here; no deadline, because no test may depend on the speed of the machine."""

from hypothesis import settings

settings.register_profile("oci", max_examples=60, deadline=None)
settings.load_profile("oci")
