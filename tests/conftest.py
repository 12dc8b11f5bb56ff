"""Settings of every test; pytest imports this file before any test module imports jax."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # after the platform is set
import pytest

jax.config.update("jax_default_matmul_precision", "highest")

# Compiled programs are kept between tests and runs: most of the time of this suite is XLA's.
CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture
def strict_ranks():
    """Arrays of different rank do not broadcast silently."""
    with jax.numpy_rank_promotion("raise"):
        yield
