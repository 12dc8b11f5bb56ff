"""The method `calibrated`: the student's parts are fitted, in closed form, to what the teacher does
on pairs of images; no label and no gradient is needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lunar_distill_jax import api
from lunar_distill_jax.init import basis
from lunar_distill_jax.init.activations import normalise
from lunar_distill_jax.init.assemble import silent_block
from lunar_distill_jax.init.calibrated_block import Fitting, fit_block
from lunar_distill_jax.init.calibrated_heads import fit_heads
from lunar_distill_jax.init.calibration import (
    VIEWS,
    Backend,
    Network,
    float32,
    network,
    read_tokens,
    token_pixels,
)
from lunar_distill_jax.init.decoder import Decoder
from lunar_distill_jax.init.depth import segments
from lunar_distill_jax.init.moments import DecoderMoments, Moments
from lunar_distill_jax.init.pictures import Pictures
from lunar_distill_jax.init.regression import Pairs
from lunar_distill_jax.init.store import Store
from lunar_distill_jax.init.structured import Configs, embed, last_norm, same_tokens
from lunar_distill_jax.init.tree import Affine, Flat, below, flatten, layer_of
from lunar_distill_jax.models.rope import grid_positions


def calibrated(
    teacher_network: api.Stereo,
    student_network: api.Stereo,
    pictures: Pictures,
    on_step: Callable[[int], object] = lambda count: None,
    backend: Backend | None = None,
    store: Store | None = None,
) -> tuple[Flat, dict[str, str], dict[str, Any], Decoder]:
    """-> as `structured`, of a student whose encoder is the one that it will have

    on_step: called with the number of steps done, of `steps` in all
    store:   keeps activations between passes; by default in memory. One in a folder goes on after
             the last batch of encoder tokens, or the last block, that an earlier run has done.
    """
    clock = time.monotonic()
    seconds: dict[str, float] = {}

    def lap(stage: str) -> None:
        nonlocal clock
        now = time.monotonic()
        seconds[stage], clock = round(now - clock, 3), now

    backend, store = backend or Backend.default(), store or Store()
    both = teacher_network, student_network
    configs = (teacher_network.config, student_network.config)
    teacher, student = flatten(teacher_network.params), flatten(student_network.params)
    tokens, grid = read_tokens(both, pictures, store, on_step)
    depths = (configs[0].decoder.depth, 0)  # the student has no blocks yet
    theirs, ours = (
        network(config, flat, found, grid_positions(*grid), depth)
        for config, flat, found, depth in zip(
            configs, (teacher, student), tokens, depths, strict=True
        )
    )
    lap("encoders")
    stitch = layer_of(teacher, "decoder/embed")
    theirs.start(stitch.kernel, stitch.bias, store, "start/theirs")
    moments = _kept_moments(backend, theirs, store)
    on_step(1)
    lap("moments")
    total = np.add.reduce([basis.unit(z.second) for z in moments.norms.values()])
    directions = basis.principal_directions(total)
    E = basis.encoding(directions, configs[1].decoder.width)
    runs = segments(configs[1].hooks, configs[0].hooks)
    made = Decoder(E, directions, moments, runs, {}, {})

    same = same_tokens(teacher, student)
    start = embed(teacher, student, made, same)
    first = Affine(start["decoder/embed/kernel"], start["decoder/embed/bias"])
    pairs = Pairs(first.kernel.shape[0], len(E))
    for rows, held in theirs.batches():
        for view in VIEWS:
            target = theirs.stream[view][rows] @ E.T.astype(np.float32)
            pairs.add(ours.tokens[view][rows], target, held)
    fit = pairs.fit(first if same else None)
    tensors = {"decoder/embed/kernel": fit.layer.kernel, "decoder/embed/bias": fit.layer.bias}
    how = dict.fromkeys(tensors, "stitched")
    notes: dict[str, Any] = {"stitching": fit.notes(), "blocks": made.notes}
    ours.start(fit.layer.kernel, fit.layer.bias, store, "start/ours")
    on_step(1)
    lap("stitching")

    for i, run in enumerate(runs):
        fresh = {v: below(student, f"decoder/view{v}_block{i}/") for v in VIEWS}
        if found := store.load(f"block{i}"):
            blocks, own = _split(found[0]), {v: found[1][str(v)] for v in VIEWS}
            if len(run) and store.load(f"block{i + 1}") is None:
                for net, name in ((theirs, "theirs"), (ours, "ours")):
                    net.stream = {v: store.open(f"block{i}/{name}/{v}") for v in VIEWS}
        else:
            own = {v: {"teacher_blocks": list(run)} for v in VIEWS}
            if len(run):
                priors = {
                    (v, b, norm): made.reading((v, b, norm))
                    for v in VIEWS
                    for b in run
                    for norm in ("norm1", "norm2", "norm3")
                }
                f = Fitting(backend, theirs, ours, E, run, i, fresh, priors, own, store)
                blocks = fit_block(f)
            else:
                blocks = {v: float32(silent_block(fresh[v])) for v in VIEWS}
            joint = {f"{v}:{name}": a for v in VIEWS for name, a in blocks[v].items()}
            store.save(f"block{i}", joint, own)
            if len(run):  # the streams are those of this block from here on
                store.drop(("tokens/", f"block{i}/theirs/", f"block{i}/ours/"))
        for view in VIEWS:
            ours.blocks[view, i] = blocks[view]
            at = f"decoder/view{view}_block{i}"
            tensors |= {f"{at}/{name}": array for name, array in blocks[view].items()}
            how |= {f"{at}/{name}": "calibrated" for name in blocks[view]}
            made.notes[f"view{view}_block{i}"] = own[view]
        on_step(1)
    lap("blocks")

    last, last_how = last_norm(teacher, made)
    tensors |= last
    how |= last_how
    theirs.start(stitch.kernel, stitch.bias, store, "heads/theirs")
    ours.start(fit.layer.kernel, fit.layer.bias, store, "heads/ours")
    heads, head_how, notes["heads"] = fit_heads(
        backend, theirs, ours, made, same, (teacher, {**student, **tensors}), configs, on_step
    )
    lap("heads")
    notes["calibration"] = {
        "pairs": pictures.count,
        "size": [token_pixels(configs[0]) * side for side in grid],
        "seconds": seconds,
        "activations_mb": round(store.peak_bytes / 1e6, 1),
        "activations_on": "disk" if store.on_disk else "memory",
    }
    return {**student, **tensors, **heads}, how | head_how, notes, made


def steps(configs: Configs, pairs: int) -> int:
    """How many steps `calibrated` counts: pairs read by the encoders, and stages."""
    return pairs + configs[1].decoder.depth + 4


def _split(joint: Mapping[str, np.ndarray]) -> dict[int, Flat]:
    """{"view:name": array} -> {view: {name: array}}"""
    blocks: dict[int, Flat] = {view: {} for view in VIEWS}
    for key, array in joint.items():
        view, _, name = key.partition(":")
        blocks[int(view)][name] = array
    return blocks


def _kept_moments(backend: Backend, theirs: Network, store: Store) -> DecoderMoments:
    """`measure`, or what an earlier run has found by it."""
    if found := store.load("moments"):
        tables: tuple[dict, dict] = {}, {}
        for key, array in found[0].items():
            where, at, what = key.split(":")
            names = tuple(int(p) if p.isdigit() else p for p in at.split("/"))
            tables[where == "stream"].setdefault(names, {})[what] = array
        return DecoderMoments(*({k: Moments(**m) for k, m in table.items()} for table in tables))
    moments = measure(backend, theirs)
    store.save(
        "moments",
        {
            f"{where}:{'/'.join(map(str, key))}:{what}": getattr(m, what)
            for where in ("norms", "stream")
            for key, m in getattr(moments, where).items()
            for what in ("mean", "cov")
        },
    )
    return moments


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

    width = theirs.stream[1].shape[-1]
    start: list = [0, 0.0, np.zeros((width, width))]  # of both views, alike for either
    for rows, held in theirs.batches():
        for view in VIEWS:
            x = theirs.stream[view][rows].reshape(-1, width).astype(np.float64)
            start[0], start[1], start[2] = (
                start[0] + len(x),
                start[1] + x.sum(0),
                start[2] + x.T @ x,
            )
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
    mean = start[1] / start[0]
    for view in VIEWS:
        means[view, 0] = Moments(mean, start[2] / start[0] - np.outer(mean, mean))
    return DecoderMoments(norms, means)
