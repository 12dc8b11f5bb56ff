"""Settings of every test; pytest imports this file before any test module imports jax."""

import contextlib
import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # after the platform is set
import pytest

jax.config.update("jax_default_matmul_precision", "highest")

# Most of the time of this suite is XLA's: it compiles without its costly passes (`optimized`
# turns them on again) and keeps compiled programs between tests and runs.
jax.config.update("jax_disable_most_optimizations", True)
CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@contextlib.contextmanager
def optimized(yes: bool = True):
    """XLA compiles as it does for users: for numbers in their last digits."""
    jax.config.update("jax_disable_most_optimizations", not yes)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def strict_ranks():
    """Arrays of different rank do not broadcast silently."""
    with jax.numpy_rank_promotion("raise"):
        yield


# Files of few and long tests first: two workers then end at about the same time.
LONG = ("test_step", "test_notebooks", "test_demo", "test_train", "test_train_lives", "test_golden")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(s) if (s := item.path.stem) in LONG else len(LONG))
