"""A student's decoder from the teacher's weights alone, in one basis of the residual stream."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lunar_distill_jax.init import basis
from lunar_distill_jax.init.assemble import (
    StudentHead,
    attention_tensors,
    mlp_tensors,
    plain_norms,
    silent_block,
)
from lunar_distill_jax.init.depth import segments
from lunar_distill_jax.init.gaussian import Units, covariance, gelu_units
from lunar_distill_jax.init.groups import k_medoids, map_gram, overlap_distance
from lunar_distill_jax.init.moments import DecoderMoments, Moments, decoder_moments
from lunar_distill_jax.init.pooling import pool
from lunar_distill_jax.init.tree import Affine, Flat, attention_heads, below, dense
from lunar_distill_jax.init.units import candidate_units, readout, select_units, sketch
from lunar_distill_jax.models.config import StereoConfig

THREADS = min(4, os.cpu_count() or 1)  # blocks at a time: each needs some hundred MB at full size
NORMS = ("norm1", "norm2", "norm3", "norm_y")


@dataclasses.dataclass(frozen=True)
class Decoder:
    """What the decoder's initialisation found, for the heads and the report.

    E: [s, d]; directions: [d, d - 1]; moments: of the teacher's tokens; tensors: {name: array}
    of the blocks; notes: {student block: where its parts came from}
    """

    E: np.ndarray
    directions: np.ndarray
    moments: DecoderMoments
    segments: list[range]
    tensors: Flat
    notes: dict[str, Any]

    @property
    def full(self) -> bool:
        """The student's stream is the teacher's: E is the identity."""
        return self.E.shape[0] == self.E.shape[1]

    def reading(self, key: tuple[int, int, str]) -> Affine:
        """The teacher's normalised tokens at a norm, guessed from the student's: [s, d]."""
        return reading(self.E, self.directions, self.moments.norms[key])


def reading(E: np.ndarray, directions: np.ndarray, z: Moments) -> Affine:
    """z_teacher ~ z_student @ kernel + bias, for a student whose stream is E x: [s, d].

    The student's norm restores the length that the projection takes away; on average that is
    undone. Outside the basis the mean is the best guess.
    """
    s, d = E.shape
    kept = basis.retained(z.second, directions)[min(s, d) - 1]
    outside = z.mean - E.T @ (E @ z.mean)
    return Affine(np.sqrt(kept * d / s) * E, outside)


def structured_decoder(
    teacher: Mapping[str, np.ndarray],
    fresh: Mapping[str, np.ndarray],
    configs: tuple[StereoConfig, StereoConfig],
    on_block: Callable[[], object] = lambda: None,
) -> Decoder:
    """The blocks of both stacks; `fresh` are the student's own tensors.

    configs: teacher's and student's; on_block: called after each student block
    """
    theirs, ours = configs[0].decoder, configs[1].decoder
    moments = decoder_moments(teacher, theirs.depth, theirs.heads, configs[0].encoder.width)
    total = np.add.reduce([basis.unit(z.second) for z in moments.norms.values()])
    directions = basis.principal_directions(total)
    E = basis.encoding(directions, ours.width)
    made = Decoder(E, directions, moments, segments(configs[1].hooks, configs[0].hooks), {}, {})

    def fit(task: tuple[int, int]) -> tuple[Flat, dict[str, Any]]:
        i, view = task
        own = below(fresh, f"decoder/view{view}_block{i}/")
        if not made.segments[i]:
            return silent_block(own), {"silent": True}
        names = [(b, f"decoder/view{view}_block{b}/") for b in made.segments[i]]
        sources = [(b, below(teacher, name)) for b, name in names]
        return _block(made, view, sources, own, (theirs.heads, ours.heads))

    tasks = [(i, view) for i in range(len(made.segments)) for view in (1, 2)]
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:  # numpy lets go of the lock
        for (i, view), (tensors, notes) in zip(tasks, pool.map(fit, tasks), strict=True):
            at = f"view{view}_block{i}"
            made.tensors.update({f"decoder/{at}/{name}": a for name, a in tensors.items()})
            made.notes[at] = {"teacher_blocks": list(made.segments[i]), **notes}
            on_block()
    return made


def _block(
    made: Decoder,
    view: int,
    sources: Sequence[tuple[int, Flat]],
    fresh: Flat,
    counts: tuple[int, int],
) -> tuple[Flat, dict[str, Any]]:
    tensors = plain_norms(NORMS, len(made.E))
    notes = {}
    for kind in ("attn", "cross_attn"):
        # Of the segment's first block: later ones ask for what has not been written yet.
        part, notes[kind] = _attention(made, view, kind, sources[:1], fresh, counts)
        tensors |= part
    part, notes["mlp"] = _mlp(made, view, sources, fresh)
    return tensors | part, notes


def student_moment(E: np.ndarray, z: Moments) -> np.ndarray:
    """Second moment [s, s] of the student's normalised tokens, if the teacher's are like `z`."""
    return len(E) * basis.unit(E @ z.second @ E.T)


def _attention(made: Decoder, view, kind, sources, fresh, counts):
    """Heads are grouped by the overlap of what they write: without activations nothing is known of
    where they look. Queries and keys are the leading head's."""
    asks, answers = ("norm1", "norm1") if kind == "attn" else ("norm2", "norm_y")
    heads = [h for b, block in sources for h in attention_heads(block, kind, counts[0], b)]
    queries = {b: made.reading((view, b, asks)) for b, _ in sources}
    memories = {b: made.reading((view, b, answers)) for b, _ in sources}
    values = [h.value.after(memories[h.block]) for h in heads]
    outputs = [h.output @ made.E.T for h in heads]
    moment = np.mean(
        [student_moment(made.E, made.moments.norms[view, b, answers]) for b, _ in sources], axis=0
    )
    root = np.linalg.cholesky(moment + 1e-9 * np.trace(moment) / len(moment) * np.eye(len(moment)))
    gram = map_gram(outputs, [root.T @ v.kernel for v in values])
    groups = k_medoids(overlap_distance(gram), np.diag(gram).copy(), counts[1])
    size = len(made.E) // counts[1]
    bias = sum((made.E @ block[f"{kind}/proj/bias"] for _, block in sources), np.zeros(len(made.E)))
    chosen, notes = [], []
    for group in groups:
        lead = heads[group[0]]
        value, output, constant, share = pool(
            [values[i] for i in group], [outputs[i] for i in group], moment, size
        )
        bias = bias + constant
        query, key = lead.query.after(queries[lead.block]), lead.key.after(memories[lead.block])
        chosen.append(StudentHead(query, key, value, output))
        notes.append(
            {
                "query_key": [lead.block, lead.index],
                "values": [[heads[i].block, heads[i].index] for i in group],
                "energy_kept": share,
            }
        )
    return attention_tensors(kind, chosen, bias, fresh, counts[1]), {"heads": notes}


def _mlp(made: Decoder, view, sources, fresh):
    zs = [made.moments.norms[view, b, "norm3"] for b, _ in sources]
    reads = [dense(block, "mlp/fc1", "norm3") for _, block in sources]
    writes = [dense(block, "mlp/fc2") for _, block in sources]
    mean = np.mean([z.mean for z in zs], axis=0)
    cov = np.mean([z.cov for z in zs], axis=0)
    count = fresh["mlp/fc1/bias"].shape[0]
    read = Affine(
        np.concatenate([r.kernel for r in reads], 1), np.concatenate([r.bias for r in reads])
    )
    write = np.concatenate([w.kernel @ made.E.T for w in writes])
    constant = made.E @ np.add.reduce([w.bias for w in writes])
    kept, kernel, bias, condition = refit_units(
        read, write, constant, Moments(mean, cov), made.E.T @ made.E, count
    )
    student = [r.after(reading(made.E, made.directions, z)) for r, z in zip(reads, zs, strict=True)]
    student_read = Affine(
        np.concatenate([r.kernel for r in student], 1)[:, kept],
        np.concatenate([r.bias for r in student])[kept],
    )
    spare = count - len(kept)
    if spare > 0:  # more units than the teacher has: they write nothing yet
        own = fresh["mlp/fc1/kernel"][:, len(kept) :]
        student_read = Affine(
            np.concatenate([student_read.kernel, own], 1), np.pad(student_read.bias, (0, spare))
        )
        kernel = np.pad(kernel, ((0, spare), (0, 0)))
    width = len(reads[0].bias)
    notes = {
        "units": [[sources[j // width][0], int(j % width)] for j in kept],
        "condition": condition,
    }
    return mlp_tensors(student_read, Affine(kernel, bias)), notes


def refit_units(
    read: Affine, write: np.ndarray, constant: np.ndarray, z: Moments, P: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Which of a layer's GELU units to keep for Gaussian tokens, and how to read the outputs.

    read: [d, m] of the teacher's tokens, write: [m, s], constant: [s]; z: moments of the tokens
    P: [d, d] projects the tokens on what the student sees of them
    -> (units [k], kernel [k, s], bias [s], condition number)
    """
    full = gelu_units(read.kernel, read.bias, z.mean, z.cov)
    seen_bias = read.bias + (z.mean - P @ z.mean) @ read.kernel
    score = full.variance * np.einsum("ms,ms->m", write, write)
    candidates = candidate_units(score, count)
    seen = gelu_units(P @ read.kernel[:, candidates], seen_bias[candidates], z.mean, z.cov)
    S = covariance(seen, seen, z.cov, same=True)
    X = cross_covariance(full, seen, z.cov, candidates)
    narrow = write.astype(X.dtype)
    picks = select_units(S, X @ sketch(narrow), count)
    kept = candidates[picks]
    kernel, condition = readout(S[np.ix_(picks, picks)], X[picks] @ narrow, write[kept])
    bias = constant + full.mean @ write - seen.mean[picks] @ kernel
    return kept, kernel, bias, condition


def cross_covariance(full: Units, seen: Units, cov: np.ndarray, own: np.ndarray) -> np.ndarray:
    """[m_seen, m_full] between what the student's units see and the teacher's units.

    own: the teacher's unit of each of the student's; where the two agree, so does their variance
    beyond the expansion.
    """
    out = covariance(seen, full, cov)
    rest = [np.maximum(u.variance - (u.coefficients[:, 1:] ** 2).sum(1), 0) for u in (seen, full)]
    rows = np.arange(len(own))
    matched = np.sqrt(rest[0] * rest[1][own])
    # The remainder is of high order: it survives only where the correlation is 1.
    r = np.einsum("im,im->m", seen.readers, cov @ full.readers[:, own])
    r = np.clip(r / (seen.deviation * full.deviation[own]), 0, 1)
    out[rows, own] += (matched * r**16).astype(out.dtype)
    return out
