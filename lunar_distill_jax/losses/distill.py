"""The training objective: a table of weights over the losses, for a teacher or ground truth."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lunar_distill_jax.losses import correspondence, features, matching, points, relief
from lunar_distill_jax.losses.reduce import Mean
from lunar_distill_jax.losses.settings import OF_THE_FLOW, LossSettings
from lunar_distill_jax.losses.targets import Targets
from lunar_distill_jax.types import Prediction


def loss_terms(
    predictions: tuple[Prediction, Prediction],
    extras: Mapping[str, Any],
    targets: Targets,
    on: Collection[str],
    settings: LossSettings,
    *,
    hooks: tuple[int, ...] = (),
    key: Any = None,
    bad_match: Any = None,
) -> dict[str, Mean]:
    """{term: its means} of the terms in `on`; the others cost nothing.

    extras: the losses' own parameters: "projector" {"kernel": [D_s, D_t]} where "features" is on
            and the widths differ, "bases" {"0", "1", ...: [D_t, D_s]} where "hooks" is on,
            "correspondence" those of `correspondence.parameters`
    hooks:  which of the student's decoder layers meet the teacher's
    key:    random key of the step, for the losses that look at a part of the tokens or entries
    bad_match: `matching.bad_loss` of the whole batch, where this is a part of it
    """
    s, terms = settings, {}
    conf = tuple(p.conf for p in predictions)
    if {"points", "confidence", "gradient", "relief", "sobel"} & set(on):
        own, given, valid = points.align(
            tuple(p.pts3d for p in predictions),
            targets.points,
            targets.valid,
            s.points,
            targets.is_metric,
        )
        error, mask = points.errors(own, given, valid, s.points, targets.sky)
        if "points" in on:
            if s.points.weighting == "confidence":
                terms["points"] = points.confidence_weighted(
                    error, conf, mask, alpha=s.points.alpha
                )
            elif s.points.weighting == "teacher":
                terms["points"] = points.teacher_weighted(error, targets.conf, mask)
            else:
                terms["points"] = points.mean_error(error, mask)
        if "confidence" in on:
            terms["confidence"] = points.confidence_difference(conf, targets.conf, mask)
        views = tuple(zip(own, given, valid, strict=True))
        for name, term in (
            ("gradient", relief.gradient_difference),
            ("relief", relief.relief_difference),
        ):
            if name in on:
                terms[name] = term(*views[0]) + term(*views[1])
        if "sobel" in on:
            terms["sobel"] = relief.sobel_difference(*views[0], across=s.across)
            terms["sobel"] += relief.sobel_difference(*views[1], across=s.across)

    tokens = given_tokens = ()
    if {"features", "relational"} & set(on):
        tokens = tuple(p.features["encoder"].astype(jnp.float32) for p in predictions)
        given_tokens = tuple(t.astype(jnp.float32) for t in targets.tokens)
    if "features" in on:
        projected = tokens
        if "projector" in extras:
            projected = tuple(t @ extras["projector"]["kernel"] for t in tokens)
        sides = tuple(zip(projected, given_tokens, strict=True))
        if s.feature_kind == "mixed":
            means = (features.mixed(*side) for side in sides)
        else:
            means = (features.cosine_margin(*side, margin=s.margin) for side in sides)
        one, two = means
        terms["features"] = 0.5 * (one + two)
    if "relational" in on:
        chosen = _some_tokens(key, tokens, s.relational_tokens)
        terms["relational"] = features.relational(
            *(t[:, i] for t, i in zip(tokens, chosen, strict=True)),
            *(t[:, i] for t, i in zip(given_tokens, chosen, strict=True)),
            temperature=s.relational_temperature,
        )
    if "hooks" in on:
        terms["hooks"] = _hook_terms(predictions, targets, extras["bases"], hooks)

    desc = tuple(p.desc for p in predictions)
    if "matching" in on:
        desc_conf = tuple(p.desc_conf for p in predictions)
        order = _shuffled_entries(key, targets, s)
        terms["matching"] = matching.matching(
            desc, desc_conf, targets.pixels, targets.matched, s.matching, order, bad_match
        )
    if "descriptors" in on:
        terms["descriptors"] = matching.divergence(
            desc,
            targets.desc,
            targets.pixels,
            temperature=s.descriptor_temperature,
            block=s.matching.block,
        )
    if flow_terms := [t for t in OF_THE_FLOW if t in on]:
        heads = extras.get("correspondence", {})
        terms |= correspondence.terms(predictions, heads, targets.flow, flow_terms)
    return terms


def match_losses(
    predictions: tuple[Prediction, Prediction], targets: Targets, settings: LossSettings, key: Any
):
    """The loss of every entry of the term "matching", with partner or not: [B, M]."""
    order = _shuffled_entries(key, targets, settings)
    desc = tuple(p.desc for p in predictions)
    return matching.losses(desc, targets.pixels, settings.matching, order)


def objective(
    terms: Mapping[str, Mean],
    weights: Mapping[str, Any],
    counts: Mapping[str, Any] | None = None,
):
    """-> (the weighted sum of the terms [], {term: value []}).

    counts: {term: its means' counts over the whole batch}, where `terms` are of a part of it: the
            losses of the parts then add up to that of the whole
    """
    values = {k: m.value(counts and counts[k]) for k, m in terms.items()}
    return sum(weights[k] * v for k, v in values.items()), values


def _shuffled_entries(key, targets: Targets, settings: LossSettings):
    """How the entries of "matching" go into groups, alike in all samples: int [B, M], or None."""
    if settings.matching.groups == 1:
        return None
    batch, count = targets.matched.shape
    shuffle = jax.random.permutation(jax.random.fold_in(key, 1), count)
    return jnp.broadcast_to(shuffle, (batch, count))


def _some_tokens(key, tokens, count: int):
    """Which tokens of each view to relate: `count` of them, or all where there are fewer."""
    chosen = []
    for view, t in enumerate(tokens):
        n = t.shape[1]
        drawn = jax.random.permutation(jax.random.fold_in(key, 2 + view), n)[:count]
        chosen.append(drawn if n > count else jnp.arange(n))
    return chosen


def _hook_terms(predictions, targets, bases, hooks) -> Mean:
    layers = [i for i in hooks if i]  # 0 is the encoder's output, "features" is about that
    means = [
        features.in_basis(
            p.features["decoder"][layer - 1].astype(jnp.float32),
            teacher[k].astype(jnp.float32),
            bases[str(k)],
        )
        for p, teacher in zip(predictions, targets.decoder, strict=True)
        for k, layer in enumerate(layers)
    ]
    return 1 / len(layers) * sum(means[1:], means[0])
