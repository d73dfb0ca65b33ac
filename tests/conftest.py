"""What holds for all tests."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _programs_are_forgotten():
    """Each compiled program holds pieces of memory, of which a process may have only so many (vm.max_map_count)."""
    yield
    jax.clear_caches()
