"""A student's heads fitted to what the teacher's do, on the calibration pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from lunar_distill_jax.init.activations import gelu, normalise
from lunar_distill_jax.init.calibration import VIEWS, Backend, Network
from lunar_distill_jax.init.decoder import Decoder
from lunar_distill_jax.init.heads import (
    TokenMaps,
    dense_head,
    feature_tensors,
    plane_names,
    plane_reader,
    plane_tensors,
)
from lunar_distill_jax.init.regression import Fit, Pairs
from lunar_distill_jax.init.structured import Configs, head_names, token_maps
from lunar_distill_jax.init.tree import Affine, Flat, below, dense, norm_of
from lunar_distill_jax.init.units import candidate_units, select_units


@dataclasses.dataclass(frozen=True)
class Layers:
    """A batch's token maps of one network: {view: [encoder tokens, block 1, ..., the last]}, the
    last one normalised, scaled and shifted."""

    maps: dict[int, list[Any]]

    def joint(self, view: int):
        return np.concatenate([np.asarray(self.maps[view][i]) for i in (0, -1)], -1)


def layers(backend: Backend, net: Network, norm: Flat, rows: np.ndarray) -> Layers:
    """norm: the decoder's last norm, {"scale", "bias"}"""
    blocks = backend.run(net, range(net.config.decoder.depth), rows)
    maps = {}
    for view in VIEWS:
        out = [net.tokens[view][rows], *(both[view].out for both in blocks)]
        last = normalise(backend.xp, out[-1])
        out[-1] = last * norm["scale"].astype(np.float32) + norm["bias"].astype(np.float32)
        maps[view] = out
    return Layers(maps)


def fit_heads(
    backend: Backend,
    theirs: Network,
    ours: Network,
    made: Decoder,
    same: bool,
    flats: tuple[dict[str, np.ndarray], dict[str, np.ndarray]],
    configs: Configs,
    on_step: Callable[[int], object],
) -> tuple[Flat, dict[str, str], dict[str, Any]]:
    """-> (the heads' tensors, {name: how}, notes); both networks' streams are at their start.

    flats: the teacher's tensors, and the student's with its decoder
    """
    teacher, student = flats
    norms = [below(flat, "decoder/norm/") for flat in flats]
    names = head_names(configs)
    views = [view for view, *_ in names]
    encoder_mean = np.mean([theirs.tokens[v].mean((0, 1), dtype=np.float64) for v in VIEWS], axis=0)
    norm = norm_of(teacher, "decoder/norm")
    priors = {v: token_maps(made, v, same, encoder_mean, norm, configs) for v in views}
    planes = {view: _plane(below(teacher, f"{source}/")) for view, source, _ in names}
    pairs = {v: _MapPairs(priors[v], planes[v]) for v in views}

    def both(rows) -> tuple[Layers, Layers]:
        return layers(backend, theirs, norms[0], rows), layers(backend, ours, norms[1], rows)

    hooks = list(zip(configs[0].hooks, configs[1].hooks, strict=True))
    for rows, held in theirs.batches():
        t, s = both(rows)
        for view in views:
            pairs[view].add(t, s, view, hooks, held)
    on_step(1)
    maps, notes = {}, {}
    for view in views:
        maps[view], notes[view] = pairs[view].fit(priors[view])

    features = {
        view: _Features(below(teacher, f"{source}/"), below(student, f"{name}/"), maps[view].joint)
        for view, source, name in names
    }
    for rows, held in theirs.batches():
        t, s = both(rows)
        for view in views:
            features[view].add(backend, t.joint(view), s.joint(view), held)
    on_step(1)

    tensors, how, told = {}, {}, {}
    for view, source, name in names:
        head, own = below(teacher, f"{source}/"), below(student, f"{name}/")
        parts, part_how, channels = dense_head(head, own, maps[view])
        made_features, feature_notes = features[view].fit()
        plane = {k: head[k] for k in plane_names(own) if k in head}
        if plane and not made.full:
            z = made.moments.norms[view, configs[0].decoder.depth, "norm"]
            prior = plane_reader(head, z.through(norm), priors[view].last)
            start = Affine(prior["plane/fc1/kernel"], prior["plane/fc1/bias"])
            fit = pairs[view].plane_fit(start)
            plane |= plane_tensors(fit.layer, len(made.E))
            notes[view]["plane"] = fit.notes()
        parts |= made_features | plane
        part_how |= dict.fromkeys(made_features, "units selected, outputs fitted")
        part_how |= dict.fromkeys(plane, "fitted")
        told[name] = {**channels, **notes[view], "local_features": feature_notes}
        tensors |= {f"{name}/{k}": v for k, v in parts.items()}
        how |= {f"{name}/{k}": v for k, v in part_how.items()}
    return tensors, how, told


def _plane(head: Flat) -> Callable | None:
    """The teacher's pre-activations of the plane from its last tokens, if it has a plane."""
    if "plane/fc1/kernel" not in head:
        return None
    layer = dense(head, "plane/fc1", "plane/norm")
    kernel, bias = layer.kernel.astype(np.float32), layer.bias.astype(np.float32)

    def run(last):
        return normalise(np, np.asarray(last)) @ kernel + bias

    return run


class _MapPairs:
    """Regressions of one view's token maps."""

    def __init__(self, prior: TokenMaps, plane: Callable | None):
        self._hooks = [Pairs(*m.kernel.shape) for m in prior.hooks]
        self._joint = Pairs(*prior.joint.kernel.shape)
        self._last = Pairs(*prior.last.kernel.shape)
        self._run_plane = plane
        self._plane: Pairs | None = None

    def add(self, t: Layers, s: Layers, view: int, hooks, held: bool) -> None:
        for pairs, (theirs, ours) in zip(self._hooks, hooks, strict=True):
            pairs.add(s.maps[view][ours], t.maps[view][theirs], held)
        self._joint.add(s.joint(view), t.joint(view), held)
        self._last.add(s.maps[view][-1], t.maps[view][-1], held)
        if self._run_plane is not None:
            target = self._run_plane(t.maps[view][-1])
            z = normalise(np, np.asarray(s.maps[view][-1]))
            self._plane = self._plane or Pairs(z.shape[-1], target.shape[-1])
            self._plane.add(z, target, held)

    def fit(self, prior: TokenMaps) -> tuple[TokenMaps, dict[str, Any]]:
        hooks = [
            p.fit(None if i in prior.unknown else start)
            for i, (p, start) in enumerate(zip(self._hooks, prior.hooks, strict=True))
        ]
        joint, last = self._joint.fit(prior.joint), self._last.fit(prior.last)
        maps = TokenMaps(tuple(f.layer for f in hooks), joint.layer, last.layer)
        notes = {f"project{i}": f.notes() for i, f in enumerate(hooks)}
        return maps, {**notes, "joint": joint.notes(), "last": last.notes()}

    def plane_fit(self, prior: Affine) -> Fit:
        assert self._plane is not None
        return self._plane.fit(prior)


class _Features:
    """The local features of one view: units are selected, what reads them is fitted."""

    def __init__(self, head: Flat, own: Flat, joint: Affine):
        self._read = dense(head, "local_features/fc1")
        self._write = dense(head, "local_features/fc2")
        self._own = own
        self._student = self._read.after(joint)
        units, outputs = self._write.kernel.shape
        self._fits = own["local_features/fc2/kernel"].shape[1] == outputs
        self._pairs = Pairs(units, outputs) if self._fits else None

    def add(self, backend: Backend, theirs, ours, held: bool) -> None:
        """theirs, ours: [encoder | last] tokens."""
        if self._pairs is None:
            return

        def hidden(layer: Affine, tokens):
            pre = backend.put(tokens) @ layer.kernel.astype(np.float32)
            return gelu(backend.xp, pre + layer.bias.astype(np.float32))

        target = hidden(self._read, theirs) @ self._write.kernel.astype(np.float32)
        self._pairs.add(
            hidden(self._student, ours), target + self._write.bias.astype(np.float32), held
        )

    def fit(self) -> tuple[Flat, dict[str, Any]]:
        if self._pairs is None:
            return {}, {"fresh": "other outputs than the teacher's"}
        centred = self._pairs.centred()
        count = self._own["local_features/fc2/kernel"].shape[0]
        weight = np.einsum("mo,mo->m", self._write.kernel, self._write.kernel)
        alive = candidate_units(np.diag(centred.S) * weight, count)
        picks = select_units(centred.S[np.ix_(alive, alive)], centred.C[alive], count)
        kept = alive[picks]
        own = self._pairs.take(kept)
        start, inner = self._write.kernel[kept], own.centred()
        prior = Affine(start, inner.mean_out - inner.mean_in @ start)
        fit = own.fit(prior)
        tensors = feature_tensors(self._student, kept, fit.layer, self._own)
        return tensors, {"units": kept.tolist(), **fit.notes()}
