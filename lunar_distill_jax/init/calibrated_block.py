"""One decoder block of a student, fitted part by part to what a run of teacher blocks does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lunar_distill_jax.init.activations import (
    Attention,
    Block,
    cross_attention,
    gelu,
    mlp,
    normalise,
    self_attention,
)
from lunar_distill_jax.init.assemble import StudentHead, attention_tensors, mlp_tensors
from lunar_distill_jax.init.attention_maps import MapDistances
from lunar_distill_jax.init.calibration import VIEWS, Backend, Network, float32
from lunar_distill_jax.init.groups import k_medoids
from lunar_distill_jax.init.pooling import reduced_rank
from lunar_distill_jax.init.regression import Fit, Pairs
from lunar_distill_jax.init.store import Store
from lunar_distill_jax.init.tree import Affine, AttentionHead, Flat, attention_heads, dense
from lunar_distill_jax.init.units import candidate_units, select_units

MAP_PAIRS = 16  # pairs whose attention maps are compared


@dataclasses.dataclass
class Fitting:
    """What the fit of one student block works on.

    E: [s, d]; segment: teacher blocks; at: the student's block; priors: {(view, block, norm)}:
    first guess of the reading of the teacher's normalised tokens from the student's
    """

    backend: Backend
    teacher: Network
    student: Network
    E: np.ndarray
    segment: range
    at: int
    fresh: dict[int, Flat]
    priors: dict[tuple[int, int, str], Affine]
    notes: dict[int, dict[str, Any]]
    store: Store

    def __post_init__(self):
        self.made: dict[int, Flat] = {view: {} for view in VIEWS}
        # The student's stream inside the block, and the teacher's progress in its coordinates.
        self.inner = dict(self.student.stream)
        self.targets: dict[str, dict[int, np.ndarray]] = {}
        self.after: dict[int, np.ndarray] = {}

    def passes(self) -> Iterator[tuple[np.ndarray, bool, list[dict[int, Block]]]]:
        """(rows, held out, the teacher's blocks) over all pairs."""
        for rows, held in self.student.batches():
            yield rows, held, self.backend.run(self.teacher, self.segment, rows)

    def put(self, array: np.ndarray):
        return self.backend.put(array)

    def empty(self, name: str, like: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        """New arrays of both views, in the shapes of others."""
        names = {view: f"block{self.at}/{name}/{view}" for view in VIEWS}
        return {view: self.store.empty(names[view], like[view].shape) for view in VIEWS}

    def move(self, name: str, update: Callable[[int, np.ndarray], Any]) -> None:
        """Adds `update` (view, rows) to the student's stream inside the block."""
        moved = self.empty(name, self.inner)
        for rows, _ in self.student.batches():
            for view in VIEWS:
                moved[view][rows] = self.inner[view][rows] + np.asarray(update(view, rows))
        self.inner = moved


def fit_block(f: Fitting) -> dict[int, Flat]:
    """-> {view: the block's tensors}; both networks' streams move past it."""
    readings = {key: Pairs(*f.E.shape) for key in f.priors}
    heads = {
        (view, kind): [
            h
            for b in f.segment
            for h in attention_heads(_block64(f.teacher, view, b), kind, f.teacher.heads, b)
        ]
        for view in VIEWS
        for kind in ("attn", "cross_attn")
    }
    maps = {key: MapDistances([h.output @ f.E.T for h in group]) for key, group in heads.items()}
    variance = _first_pass(f, readings, maps)

    memory = {}  # of the other view's tokens: what its own first norm was fitted to
    for view in VIEWS:
        for b in f.segment:
            key = (view, b, "norm1")
            memory[key] = readings[key].fit(f.priors[key])
    asks = {k: fit.layer for k, fit in memory.items()}
    _fit_attention(f, "attn", heads, maps, asks, asks)

    _read(f, readings, "norm2", lambda block: block.cross_attn.asks)
    answers = {(v, b, "norm_y"): asks[3 - v, b, "norm1"] for v in VIEWS for b in f.segment}
    asks = {k: readings[k].fit(f.priors[k]).layer for k in readings if k[2] == "norm2"}
    _fit_attention(f, "cross_attn", heads, maps, asks, answers)

    _read(f, readings, "norm3", lambda block: block.mlp.asks)
    asks = {k: readings[k].fit(f.priors[k]).layer for k in readings if k[2] == "norm3"}
    _fit_mlp(f, asks, variance)
    for view in VIEWS:
        f.notes[view]["stream_r2"] = _agreement(f, view)
    f.student.stream, f.teacher.stream = f.inner, f.after
    return f.made


def _block64(network: Network, view: int, block: int) -> Flat:
    return {k: v.astype(np.float64) for k, v in network.blocks[view, block].items()}


def _first_pass(f: Fitting, readings, maps) -> dict[int, np.ndarray]:
    """Targets of the parts, readings of norm1, distances of maps; -> {view: variance of units}."""
    for part in ("attn", "cross_attn", "mlp"):
        f.targets[part] = f.empty(f"target-{part}", f.student.stream)
    f.after = f.empty("theirs", f.teacher.stream)
    sums = {view: [0, 0.0, 0.0] for view in VIEWS}
    E, compared = f.E.T.astype(np.float32), 0
    for rows, held, blocks in f.passes():
        for view in VIEWS:
            z = normalise(f.backend.xp, f.put(f.student.stream[view][rows]))
            parts = [both[view] for both in blocks]
            for b, part in zip(f.segment, parts, strict=True):
                readings[view, b, "norm1"].add(z, part.attn.asks, held)
            progress = f.teacher.stream[view][rows] @ E
            for kind in ("attn", "cross_attn", "mlp"):
                written = sum(np.asarray(getattr(part, kind).update) for part in parts)
                progress = progress + written @ E
                f.targets[kind][view][rows] = progress
            f.after[view][rows] = np.asarray(parts[-1].out)
            for kind in ("attn", "cross_attn"):
                group = maps[view, kind]
                each = [getattr(part, kind) for part in parts]
                group.add_context(np.concatenate([np.asarray(a.context) for a in each], 1))
                if compared < MAP_PAIRS:
                    group.add_maps(np.concatenate([np.asarray(a.weights) for a in each], 1))
            hidden = np.concatenate([np.asarray(part.mlp.hidden) for part in parts], -1)
            hidden = hidden.reshape(-1, hidden.shape[-1])
            sums[view][0] += len(hidden)
            sums[view][1] = sums[view][1] + hidden.sum(0, dtype=np.float64)
            sums[view][2] = sums[view][2] + np.square(hidden).sum(0, dtype=np.float64)
        compared += len(rows)
    return {view: second / n - (first / n) ** 2 for view, (n, first, second) in sums.items()}


def _read(f: Fitting, readings, norm: str, tokens) -> None:
    """Readings of the teacher's tokens at `norm` from the student's inner stream."""
    for rows, held, blocks in f.passes():
        for view in VIEWS:
            z = normalise(f.backend.xp, f.put(f.inner[view][rows]))
            for b, both in zip(f.segment, blocks, strict=True):
                readings[view, b, norm].add(z, tokens(both[view]), held)


def _attend(f: Fitting, view: int, kind: str, rows: np.ndarray) -> Attention:
    """The student's attention with what has been made of its block, on some pairs."""
    xp, x = f.backend.xp, f.put(f.inner[view][rows])
    tensors, grid, heads = f.made[view], f.student.grid, f.student.heads
    if kind == "attn":
        return self_attention(xp, tensors, x, grid, heads)
    y = f.put(f.student.stream[3 - view][rows])
    return cross_attention(xp, tensors, x, y, grid, heads)


def _fit_attention(f: Fitting, kind: str, heads, maps, asks, answers) -> None:
    """Groups by attention maps, queries and keys of each leading head, values and outputs by
    reduced-rank regression, the projection by ridge regression of all that is still missing."""
    width, ours = len(f.E), f.student.heads
    norms = ("norm1", "norm1") if kind == "attn" else ("norm2", "norm_y")
    groups = {}
    silent = Affine(np.zeros((width, width // ours)), np.zeros(width // ours))
    for view in VIEWS:
        own = maps[view, kind]
        groups[view] = k_medoids(own.distance, own.energy, ours)
        leads = [heads[view, kind][group[0]] for group in groups[view]]
        chosen = [
            StudentHead(
                lead.query.after(asks[view, lead.block, norms[0]]),
                lead.key.after(answers[view, lead.block, norms[1]]),
                silent,
                np.zeros((width // ours, width)),
            )
            for lead in leads
        ]
        f.made[view] |= float32(
            attention_tensors(kind, chosen, np.zeros(width), f.fresh[view], ours)
        )
        f.made[view] |= _unit_norms(norms, width)
        f.notes[view][kind] = {"heads": []}
    pairs = {(v, g): Pairs(width, width) for v in VIEWS for g in range(len(groups[v]))}
    outputs = {key: [h.output @ f.E.T for h in group] for key, group in heads.items()}
    for rows, held, blocks in f.passes():
        for view in VIEWS:
            student = _attend(f, view, kind, rows)
            context = f.backend.xp.concatenate(
                [getattr(both[view], kind).context for both in blocks], 1
            )
            for g, group in enumerate(groups[view]):
                target = sum(
                    context[:, i] @ outputs[view, kind][i].astype(np.float32) for i in group
                )
                pairs[view, g].add(student.weights[:, g] @ student.answers, target, held)
    for view in VIEWS:
        _write_values(f, view, kind, groups[view], heads[view, kind], pairs, answers, norms[1])
    _refit_writer(f, kind)


def _unit_norms(norms, width: int) -> Flat:
    out = {}
    for norm in set(norms):
        out[f"{norm}/scale"] = np.ones(width, np.float32)
        out[f"{norm}/bias"] = np.zeros(width, np.float32)
    return out


def _write_values(f: Fitting, view, kind, groups, heads: list[AttentionHead], pairs, answers, norm):
    width, ours = len(f.E), f.student.heads
    size, tensors = width // ours, f.made[view]
    bias = np.zeros(width)
    value = "attn/qkv" if kind == "attn" else "cross_attn/v"
    offset = 2 * width if kind == "attn" else 0
    for g, group in enumerate(groups):
        prior = Affine(np.zeros((width, width)), np.zeros(width))
        for i in group:
            h = heads[i]
            read = h.value.after(answers[view, h.block, norm])
            written = Affine(h.output @ f.E.T, np.zeros(width)).after(read)
            prior = Affine(prior.kernel + written.kernel, prior.bias + written.bias)
        fit = pairs[view, g].fit(prior)
        reader, writer, share = reduced_rank(fit.layer.kernel, pairs[view, g].centred().S, size)
        # The constant of what the cut has lost is the mean's.
        lost = pairs[view, g].centred().mean_in @ (fit.layer.kernel - reader @ writer)
        bias += fit.layer.bias + lost
        at = slice(g * size, (g + 1) * size)
        tensors[f"{kind}/proj/kernel"][at] = writer
        columns = slice(offset + at.start, offset + at.stop)
        used = writer.any(1)
        kernel = tensors[f"{value}/kernel"]
        kernel[:, columns] = np.where(used, reader, kernel[:, columns])
        f.notes[view][kind]["heads"].append(
            {
                "query_key": [heads[group[0]].block, heads[group[0]].index],
                "values": [[heads[i].block, heads[i].index] for i in group],
                "energy_kept": share,
                **fit.notes(),
            }
        )
    tensors[f"{kind}/proj/bias"] += bias.astype(np.float32)


def _refit_writer(f: Fitting, kind: str) -> None:
    """The projection, on the student's own values, to all that its stream still lacks."""
    width = len(f.E)
    pairs = {view: Pairs(width, width) for view in VIEWS}
    for rows, held in f.student.batches():
        for view in VIEWS:
            part = _attend(f, view, kind, rows)
            missing = f.targets[kind][view][rows] - f.inner[view][rows]
            pairs[view].add(_merged(part.context), f.put(missing), held)
    for view in VIEWS:
        tensors = f.made[view]
        old = Affine(
            tensors[f"{kind}/proj/kernel"].astype(np.float64),
            tensors[f"{kind}/proj/bias"].astype(np.float64),
        )
        fit = pairs[view].fit(old)
        _store(tensors, f"{kind}/proj", fit)
        f.notes[view][kind] |= fit.notes()
    f.move(kind, lambda view, rows: _attend(f, view, kind, rows).update)


def _merged(context):
    b, heads, n, size = context.shape
    return context.transpose(0, 2, 1, 3).reshape(b, n, heads * size)


def _store(tensors: Flat, name: str, fit: Fit) -> None:
    tensors[f"{name}/kernel"] = fit.layer.kernel.astype(np.float32)
    tensors[f"{name}/bias"] = fit.layer.bias.astype(np.float32)


def _fit_mlp(f: Fitting, asks, variance: dict[int, np.ndarray]) -> None:
    """Units of all teacher blocks of the segment compete; what reads them is fitted to all that the
    student's stream still lacks."""
    width = len(f.E)
    reads, writes, candidates, pairs = {}, {}, {}, {}
    for view in VIEWS:
        count = f.fresh[view]["mlp/fc1/bias"].shape[0]
        sources = {b: _block64(f.teacher, view, b) for b in f.segment}
        layers = [
            dense(block, "mlp/fc1", "norm3").after(asks[view, b, "norm3"])
            for b, block in sources.items()
        ]
        write = np.concatenate([block["mlp/fc2/kernel"] @ f.E.T for block in sources.values()])
        score = variance[view] * np.einsum("ms,ms->m", write, write)
        chosen = candidate_units(score, count)
        reads[view] = Affine(
            np.concatenate([r.kernel for r in layers], 1)[:, chosen],
            np.concatenate([r.bias for r in layers])[chosen],
        )
        writes[view], candidates[view] = write[chosen], chosen
        pairs[view] = Pairs(len(chosen), width)
    for rows, held in f.student.batches():
        for view in VIEWS:
            z = normalise(f.backend.xp, f.put(f.inner[view][rows]))
            pre = z @ reads[view].kernel.astype(np.float32) + reads[view].bias.astype(np.float32)
            missing = f.targets["mlp"][view][rows] - f.inner[view][rows]
            pairs[view].add(gelu(f.backend.xp, pre), f.put(missing), held)
    for view in VIEWS:
        count = f.fresh[view]["mlp/fc1/bias"].shape[0]
        centred = pairs[view].centred()
        picks = select_units(centred.S, centred.C, count)
        own = pairs[view].take(picks)
        # With no prior constant to speak of, the means decide.
        inner = own.centred()
        start = writes[view][picks]
        prior = Affine(start, inner.mean_out - inner.mean_in @ start)
        fit = own.fit(prior)
        spare = count - len(picks)
        fresh = f.fresh[view]["mlp/fc1/kernel"][:, count - spare :]
        read = Affine(
            np.concatenate([reads[view].kernel[:, picks], fresh], 1),
            np.pad(reads[view].bias[picks], (0, spare)),
        )
        write = Affine(np.pad(fit.layer.kernel, ((0, spare), (0, 0))), fit.layer.bias)
        f.made[view] |= float32(mlp_tensors(read, write)) | _unit_norms(["norm3"], width)
        units = f.teacher.blocks[view, f.segment[0]]["mlp/fc1/bias"].shape[0]
        f.notes[view]["mlp"] = {
            "units": [
                [f.segment[j // units], int(j % units)] for j in candidates[view][picks].tolist()
            ],
            **fit.notes(),
        }

    def update(view: int, rows: np.ndarray):
        return mlp(f.backend.xp, f.made[view], f.put(f.inner[view][rows])).update

    f.move("ours", update)


def _agreement(f: Fitting, view: int) -> float:
    """R2 of the student's stream on the pairs that were held out, if any were."""
    count, width = 0, len(f.E)
    error, first, second = 0.0, np.zeros(width), 0.0
    kinds = {held for _, held in f.student.batches()}
    for rows, held in f.student.batches():
        if held == max(kinds):
            ours, theirs = (
                x[view][rows].astype(np.float64).reshape(-1, width)
                for x in (f.inner, f.targets["mlp"])
            )
            count += len(theirs)
            error += np.square(ours - theirs).sum()
            first += theirs.sum(0)
            second += np.square(theirs).sum()
    return float(1 - error / max(second - first @ first / count, 1e-300))
