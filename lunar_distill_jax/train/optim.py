"""AdamW or Muon by name: which parameters train, how fast, which decay; the rate is an argument."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax

from lunar_distill_jax.errors import InputError

OPTIMISERS = ("adamw", "muon")


@dataclasses.dataclass(frozen=True)
class OptimSettings:
    """The paper's recipe by default: AdamW with betas (0.9, 0.95), decay of matrices, clipping.

    warmup, steps, final: the learning rate goes 0 -> peak over `warmup` steps, then falls as a half
                          cosine to `final` at `steps`; the peak is an array of the state
    weight_decay: of tensors of two or more dimensions
    clip:        largest global norm of a gradient
    kind:        "adamw"; or "muon", which makes the steps of matrices orthogonal (Jordan et al.
                 2024), as long as Adam's are (RMS 0.2, Liu et al. 2025); the rest is left to AdamW
    eps:         of Adam
    ema:         decay of the running mean of the parameters; 0: none is kept
    freeze:      patterns of parameter names that do not train: nothing is differentiated for them
    multipliers: (pattern, factor of the learning rate), the first that matches; else 1
    """

    steps: int
    warmup: int = 0
    final: float = 0.0
    weight_decay: float = 0.05
    clip: float = 1.0
    kind: str = "adamw"
    eps: float = 1e-8
    ema: float = 0.0
    freeze: tuple[str, ...] = ()
    multipliers: tuple[tuple[str, float], ...] = ()

    def __post_init__(self):
        if self.kind not in OPTIMISERS:
            raise InputError(f"optim.kind is {self.kind!r}: choose from {', '.join(OPTIMISERS)}.")


# No computation reads the one; a basis is given (`losses.features.in_basis`).
KINDS = ("vectors", "matrices", "orthogonal")
# Neither reads tokens nor writes them: no basis of theirs is as good as another.
ADAM_OF_MUON = (
    r".*(stem|patch_embed|head2|plane|local_features/fc2|desc_fine|correspondence|projector).*"
)
NEVER_TRAINED = (r"unused/.*", r"bases/.*")


def learning_rate(step, peak, *, final: float, warmup: int, steps: int):
    """0 -> peak over `warmup` steps, then a half cosine to `final` at `steps`."""
    warmup = min(warmup, steps - 1)
    done = jnp.clip((step - warmup) / max(steps - warmup, 1), 0.0, 1.0)
    falling = final + (peak - final) * (1 + jnp.cos(jnp.pi * done)) / 2
    return jnp.where(step < warmup, peak * step / max(warmup, 1), falling)


def frozen_names(names: Collection[str], patterns: Sequence[str]) -> set[str]:
    """The names that one of the patterns matches as a whole, and those that never train.

    Raises:
      InputError: a pattern matches no name, or is no regular expression.
    """
    frozen = {n for n in names for p in NEVER_TRAINED if re.fullmatch(p, n)}
    for pattern in patterns:
        frozen |= matching_names(names, pattern, "freeze")
    if not set(names) - frozen:
        raise InputError(f"freeze {', '.join(patterns)} leaves no parameter to train.")
    return frozen


def factors(names: Collection[str], multipliers: Sequence[tuple[str, float]]) -> dict[str, float]:
    """{name: factor of its learning rate}; the first pattern that matches as a whole counts.

    Raises:
      InputError: a pattern matches no name, or is no regular expression.
    """
    out: dict[str, float] = {}
    for pattern, factor in multipliers:
        for name in matching_names(names, pattern, "multipliers"):
            out.setdefault(name, factor)
    return {name: out.get(name, 1.0) for name in names}


def matching_names(names: Collection[str], pattern: str, setting: str) -> set[str]:
    try:
        found = {n for n in names if re.fullmatch(pattern, n)}
    except re.error as e:
        raise InputError(f"optim.{setting} has {pattern!r}, no regular expression: {e}.") from e
    if not found:
        first = ", ".join(sorted(names)[:3])
        raise InputError(
            f"optim.{setting} has {pattern!r}, which matches no parameter: it must match a whole "
            f"name, such as {first} (`lunar-distill info MODEL --json` counts the parts)."
        )
    return found


def global_norm(tree: Any) -> Any:
    """The Euclidean norm of all numbers of a tree; its vectors as one, see `make_optimizer`."""
    leaves = jax.tree.leaves(tree)
    parts = [x for x in leaves if x.ndim > 1]
    vectors = [x.reshape(-1) for x in leaves if x.ndim <= 1]
    parts += [jnp.concatenate(vectors)] if vectors else []
    return jnp.sqrt(sum(jnp.sum(x * x) for x in parts))


def clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """optax.clip_by_global_norm by one factor, which XLA fuses with what follows; not by quotients,
    which it keeps for each parameter.
    """

    def clip(updates, params):
        del params
        factor = jnp.minimum(1.0, largest / global_norm(updates))
        return jax.tree.map(lambda g: factor * g, updates)

    return optax.stateless(clip)


def _kind(name: str, dimensions: int, optimiser: str) -> str:
    if dimensions < 2:
        return "vectors"
    if optimiser == "muon" and not re.fullmatch(ADAM_OF_MUON, name):
        return "orthogonal"
    return "matrices"


def _rows_and_columns(tree):
    """A kernel [..., C_in, C_out] as the matrix of all that goes in and what comes out."""

    def numbers(p):
        inputs = tuple(range(p.ndim - 1))
        return optax.contrib.MuonDimensionNumbers(inputs, (p.ndim - 1,))

    return jax.tree.map(numbers, tree)


def _as_long_as_adams(updates, params):
    """Orthogonal steps brought to an RMS of 0.2, about that of Adam's, so that rates carry over."""
    del params
    return jax.tree.map(lambda u: u * (0.2 * jnp.sqrt(1.0 * max(_matrix_sides(u)))), updates)


def _matrix_sides(x) -> tuple[int, int]:
    return math.prod(x.shape[:-1]), x.shape[-1]


def make_optimizer(settings: OptimSettings) -> optax.GradientTransformation:
    """Gradients -> directions, to be taken `learning_rate` times backwards. Trees: nested dicts."""

    def scale_by_name(updates, params):
        del params
        flat: dict[str, Any] = flax.traverse_util.flatten_dict(updates, sep="/")
        by_name = factors(flat, settings.multipliers)
        flat = {name: u * by_name[name] for name, u in flat.items()}
        return flax.traverse_util.unflatten_dict(flat, sep="/")

    adam = optax.scale_by_adam(b1=0.9, b2=0.95, eps=settings.eps)
    kinds = {
        # A network has hundreds of biases and norms. As one vector they are one operation of the
        # program instead of hundreds, which XLA is slow to compile; and they do not decay.
        "vectors": optax.flatten(adam),
        "matrices": optax.chain(adam, optax.add_decayed_weights(settings.weight_decay)),
        "orthogonal": optax.chain(
            optax.contrib.scale_by_muon(weight_dimension_numbers=_rows_and_columns),
            optax.stateless(_as_long_as_adams),
            optax.add_decayed_weights(settings.weight_decay),
        ),
    }

    def labels(tree):
        flat = flax.traverse_util.flatten_dict(tree, sep="/")
        out = {name: _kind(name, p.ndim, settings.kind) for name, p in flat.items()}
        return flax.traverse_util.unflatten_dict(out, sep="/")

    return optax.chain(
        clip_by_global_norm(settings.clip),
        optax.partition(kinds, labels),
        optax.stateless(scale_by_name) if settings.multipliers else optax.identity(),
    )
