r"""The demo's distillation by itself: `moonlet` into `moonlet-student` on the synthetic Moon.

    lunar-distill train --config configs/synthetic_demo.py --workdir runs/demo
    lunar-distill train --config configs/synthetic_demo.py:tiny --workdir runs/tiny

`lunar-distill demo` runs the same settings and evaluates the result.
"""

from lunar_distill_jax.demo import get_config

__all__ = ["get_config"]
