"""How a network is computed: its speed and memory, not what it is."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.attention import KINDS

DTYPES = ("float32", "bfloat16")
_REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "blocks": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Compute:
    """Settings of a run; no weight file holds them.

    dtype:     of encoder and decoder. Parameters, norms, softmax and the heads are float32 in any
               case, as in the reference under automatic mixed precision.
    attention: formulation of the attention, see `models.attention.attention`
    remat:     what the backward pass computes again for want of memory: "none"; "dots", all of a
               transformer block but its matrix products; "blocks", all of it

    Raises:
      InputError: a value that there is not.
    """

    dtype: str = "float32"
    attention: str = "auto"
    remat: str = "none"

    def __post_init__(self):
        for name, choices in (("dtype", DTYPES), ("attention", KINDS), ("remat", tuple(_REMAT))):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"compute.{name} is {getattr(self, name)!r}: choose from {', '.join(choices)}."
                )

    def block(self, module: type[nn.Module]) -> type[nn.Module]:
        """The class of a transformer block, with this `remat`."""
        if self.remat == "none":
            return module
        return nn.remat(module, policy=_REMAT[self.remat])
