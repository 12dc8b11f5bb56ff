"""The method `calibrated`: the student's parts are fitted, in closed form, to what the teacher does
on pairs of images; no label and no gradient is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lunar_distill_jax import api
from lunar_distill_jax.init import basis
from lunar_distill_jax.init.activations import normalise
from lunar_distill_jax.init.assemble import silent_block
from lunar_distill_jax.init.calibrated_block import Fitting, fit_block
from lunar_distill_jax.init.calibrated_heads import fit_heads
from lunar_distill_jax.init.calibration import (
    Backend,
    Network,
    batches,
    check_images,
    encoder_tokens,
    float32,
    network,
)
from lunar_distill_jax.init.decoder import Decoder
from lunar_distill_jax.init.depth import segments
from lunar_distill_jax.init.moments import DecoderMoments, Moments
from lunar_distill_jax.init.regression import Pairs
from lunar_distill_jax.init.structured import Configs, embed, last_norm, same_tokens
from lunar_distill_jax.init.tree import Affine, Flat, below, dense, flatten
from lunar_distill_jax.models.rope import grid_positions

VIEWS = (1, 2)


def calibrated(
    teacher_network: api.Stereo,
    student_network: api.Stereo,
    images: Sequence[np.ndarray],
    on_step: Callable[[int], object] = lambda count: None,
    backend: Backend | None = None,
) -> tuple[Flat, dict[str, str], dict[str, Any], Decoder]:
    """-> as `structured`, of a student whose encoder is the one that it will have

    images: both views of the calibration pairs, two of [P, H, W, 3] in [-1, 1]
    on_step: called with the number of steps done, of `steps` in all
    """
    check_images(images)
    backend = backend or Backend.default()
    configs = (teacher_network.config, student_network.config)
    teacher, student = flatten(teacher_network.params), flatten(student_network.params)
    theirs, ours = networks((teacher_network, student_network), images, on_step)
    stitch = dense(below(teacher, "decoder/"), "embed")
    theirs.start(stitch.kernel, stitch.bias)
    moments = measure(backend, theirs)
    on_step(1)
    total = np.add.reduce([basis.unit(z.second) for z in moments.norms.values()])
    directions = basis.principal_directions(total)
    E = basis.encoding(directions, configs[1].decoder.width)
    runs = segments(configs[1].hooks, configs[0].hooks)
    made = Decoder(E, directions, moments, runs, {}, {})

    same = same_tokens(teacher, student)
    start = embed(teacher, student, made, same)
    first = Affine(start["decoder/embed/kernel"], start["decoder/embed/bias"])
    pairs = Pairs(first.kernel.shape[0], len(E))
    for rows, held in batches(len(images[0])):
        for view in VIEWS:
            target = theirs.stream[view][rows] @ E.T.astype(np.float32)
            pairs.add(ours.tokens[view][rows], target, held)
    fit = pairs.fit(first if same else None)
    tensors = {"decoder/embed/kernel": fit.layer.kernel, "decoder/embed/bias": fit.layer.bias}
    how = dict.fromkeys(tensors, "stitched")
    notes: dict[str, Any] = {"stitching": fit.notes(), "blocks": made.notes}
    ours.start(fit.layer.kernel, fit.layer.bias)
    on_step(1)

    for i, run in enumerate(runs):
        fresh = {v: below(student, f"decoder/view{v}_block{i}/") for v in VIEWS}
        own: dict[int, dict[str, Any]] = {v: {"teacher_blocks": list(run)} for v in VIEWS}
        if len(run):
            priors = {
                (v, b, norm): made.reading((v, b, norm))
                for v in VIEWS
                for b in run
                for norm in ("norm1", "norm2", "norm3")
            }
            f = Fitting(backend, theirs, ours, E, run, i, fresh, priors, own)
            blocks = fit_block(f)
        else:
            blocks = {v: float32(silent_block(fresh[v])) for v in VIEWS}
        for view in VIEWS:
            ours.blocks[view, i] = blocks[view]
            at = f"decoder/view{view}_block{i}"
            tensors |= {f"{at}/{name}": array for name, array in blocks[view].items()}
            how |= {f"{at}/{name}": "calibrated" for name in blocks[view]}
            made.notes[f"view{view}_block{i}"] = own[view]
        on_step(1)

    last, last_how = last_norm(teacher, made)
    tensors |= last
    how |= last_how
    theirs.start(stitch.kernel, stitch.bias)
    ours.start(fit.layer.kernel, fit.layer.bias)
    heads, head_how, notes["heads"] = fit_heads(
        backend, theirs, ours, made, same, (teacher, {**student, **tensors}), configs, on_step
    )
    return {**student, **tensors, **heads}, how | head_how, notes, made


def steps(configs: Configs, pairs: int) -> int:
    """How many steps `calibrated` counts: pairs read by two encoders, and stages."""
    return 2 * pairs + configs[1].decoder.depth + 4


def networks(
    both: tuple[api.Stereo, api.Stereo], images, on_step: Callable[[int], object]
) -> tuple[Network, Network]:
    """Both networks with their encoders' tokens of the pairs; the student has no blocks yet."""
    positions = grid_positions(*(side // 16 for side in images[0].shape[1:3]))
    depths = (both[0].config.decoder.depth, 0)
    theirs, ours = (
        network(one.config, flatten(one.params), encoder_tokens(one, images, on_step), positions, n)
        for one, n in zip(both, depths, strict=True)
    )
    return theirs, ours


def measure(backend: Backend, theirs: Network) -> DecoderMoments:
    """Moments of the teacher's tokens at every norm, and means of its stream, on the pairs that are
    not held out."""
    depth = theirs.config.decoder.depth
    sums: dict[tuple[int, int, str], list] = {}
    stream: dict[tuple[int, int], list] = {}

    def add(key, z) -> None:
        z = np.asarray(z).reshape(-1, z.shape[-1])
        if key not in sums:
            sums[key] = [0, 0.0, 0.0]
        entry = sums[key]
        entry[0] += len(z)
        entry[1] = entry[1] + z.sum(0, dtype=np.float64)
        entry[2] = entry[2] + (z.T @ z).astype(np.float64)

    for rows, held in batches(len(theirs.tokens[1])):
        if held:
            continue
        blocks = backend.run(theirs, range(depth), rows)
        for i, both in enumerate(blocks):
            for view in VIEWS:
                part = both[view]
                add((view, i, "norm1"), part.attn.asks)
                add((view, i, "norm2"), part.cross_attn.asks)
                add((view, i, "norm3"), part.mlp.asks)
                entry = stream.setdefault((view, i + 1), [0, 0.0])
                entry[0] += part.out.shape[0] * part.out.shape[1]
                entry[1] = entry[1] + np.asarray(part.out).sum((0, 1), dtype=np.float64)
        for view in VIEWS:
            add((view, depth, "norm"), normalise(backend.xp, blocks[-1][view].out))
    norms = {}
    for key, (count, first, second) in sums.items():
        mean = first / count
        norms[key] = Moments(mean, second / count - np.outer(mean, mean))
    for view in VIEWS:
        for i in range(depth):
            norms[view, i, "norm_y"] = norms[3 - view, i, "norm1"]
    nothing = np.zeros((0, 0))
    means = {key: Moments(total / count, nothing) for key, (count, total) in stream.items()}
    width = theirs.stream[1].shape[-1]
    both = np.concatenate([theirs.stream[v].reshape(-1, width) for v in VIEWS])
    for view in VIEWS:
        means[view, 0] = Moments(both.mean(0, dtype=np.float64), np.cov(both.T.astype(np.float64)))
    return DecoderMoments(norms, means)
