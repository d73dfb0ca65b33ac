"""What holds for all tests."""

import jax
import pytest


def pytest_configure(config):
    """Most of the fast tests' time is compilation, so they compile without optimisation; the slow ones run what users run."""
    jax.config.update("jax_disable_most_optimizations", config.getoption("markexpr") == "not slow")


@pytest.fixture(autouse=True, scope="module")
def _programs_are_forgotten():
    """Each compiled program holds pieces of memory, of which a process may have only so many (vm.max_map_count)."""
    yield
    jax.clear_caches()
