"""The two-view decoder: each view has its own blocks and looks at the other's previous layer."""

from __future__ import annotations

import flax.linen as nn

from lunar_distill_jax.models.compute import Compute
from lunar_distill_jax.models.config import DecoderConfig
from lunar_distill_jax.models.layers import DecoderBlock, Dense, LayerNorm, Rope
from lunar_distill_jax.models.rope import rotary_table


class Decoder(nn.Module):
    """tokens of both views: [B, N, E], [B, M, E] -> two lists of depth + 1 token maps.

    A list is [encoder tokens (width E), block 1, ..., block d (width D)]. Only the last entry
    passes the norm that both views share, and the embedded tokens are not in the list.
    """

    config: DecoderConfig
    rope_base: float = 100.0
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, tokens1, tokens2, positions1, positions2):
        c, dtype = self.config, self.compute.dtype
        block = self.compute.block(DecoderBlock)
        embed, norm = Dense(c.width, dtype=dtype, name="embed"), LayerNorm(dtype, name="norm")
        rope1, rope2 = (
            Rope(*rotary_table(p, c.width // c.heads, self.rope_base))
            for p in (positions1, positions2)
        )
        x1, x2 = embed(tokens1), embed(tokens2)
        layers1, layers2 = [tokens1], [tokens2]
        for i in range(c.depth):
            sizes = c.heads, c.mlp_ratio, self.compute, c.rotary_cross
            block1, block2 = (block(*sizes, name=f"view{v}_block{i}") for v in (1, 2))
            # Both from the previous pair: neither view sees the other's new tokens.
            x1, x2 = block1(x1, x2, rope1, rope2), block2(x2, x1, rope2, rope1)
            layers1.append(x1)
            layers2.append(x2)
        layers1[-1], layers2[-1] = norm(x1), norm(x2)
        return layers1, layers2
