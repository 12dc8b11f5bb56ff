"""python -m lunar_distill_jax VERB, the same as `lunar-distill VERB`."""

import sys

from lunar_distill_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
