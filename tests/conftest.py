"""Settings for all tests."""

from hypothesis import settings

# A shared or busy machine is no reason to fail; the same examples every time, so that a failure can be repeated.
settings.register_profile("mixq", deadline=None, derandomize=True)
settings.load_profile("mixq")
