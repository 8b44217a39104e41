"""Settings for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from mixq.turns import LOCKS

# A shared or busy machine is no reason to fail; the same examples every time, so that a failure can be repeated.
settings.register_profile("mixq", deadline=None, derandomize=True)
settings.load_profile("mixq")


@pytest.fixture(scope="session", autouse=True)
def _turns_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test waits for other mixq processes of this host that time, nor they for a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOCKS, str(tmp_path_factory.mktemp("locks")))
        yield
