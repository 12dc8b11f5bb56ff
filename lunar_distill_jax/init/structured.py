"""The method `structured`: from the teacher's weights alone, exact where the student has room."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lunar_distill_jax.init.assemble import plain_norms
from lunar_distill_jax.init.decoder import THREADS, Decoder, structured_decoder
from lunar_distill_jax.init.depth import teacher_name
from lunar_distill_jax.init.heads import (
    TokenMaps,
    dense_head,
    local_features,
    plane_names,
    plane_reader,
)
from lunar_distill_jax.init.moments import encoder_moments
from lunar_distill_jax.init.tree import Affine, Flat, below, layer_of, norm_of
from lunar_distill_jax.models.config import StereoConfig

Configs = tuple[StereoConfig, StereoConfig]  # the teacher's, the student's


def inherited_encoder(
    teacher: Mapping[str, np.ndarray], fresh: Mapping[str, np.ndarray], configs: Configs
) -> Flat:
    """The student's encoder where the teacher's has all of its tensors but for the depth, else {}.

    Blocks keep their relative depth, as in `inherit`.
    """
    depths = [getattr(c.encoder, "depth", 0) for c in configs]
    if not all(depths):
        return {}
    mapped = {"encoder": (depths[1], depths[0]), "decoder": (1, 1)}
    out = {}
    for name, own in fresh.items():
        if name.startswith("encoder/"):
            source = teacher.get(teacher_name(name, mapped))
            if source is None or source.shape != own.shape:
                return {}
            out[name] = np.array(source)
    return out


def same_tokens(teacher: Mapping[str, np.ndarray], student: Mapping[str, np.ndarray]) -> bool:
    """Whether both encoders end in the same norm: then the student's tokens imitate the teacher's
    channel by channel."""
    names = ("encoder/norm/scale", "encoder/norm/bias")
    return all(
        n in teacher and n in student and np.array_equal(teacher[n], student[n]) for n in names
    )


def structured(
    teacher: Mapping[str, np.ndarray],
    student: Mapping[str, np.ndarray],
    configs: Configs,
    on_block: Callable[[], object] = lambda: None,
) -> tuple[Flat, dict[str, str], dict[str, Any], Decoder]:
    """-> (the student's tensors, {name: how} of those initialised, notes, the decoder's basis)

    teacher, student: {name: array}; what is not initialised stays as in `student`
    on_block: called after each of the student's decoder blocks
    """
    made = structured_decoder(teacher, student, configs, on_block)
    same = same_tokens(teacher, student)
    tensors, how = dict(made.tensors), {name: "structured" for name in made.tensors}
    start = embed(teacher, student, made, same)
    tensors |= start
    how |= {name: "projected" if same else "fresh, scaled" for name in start}
    last, last_how = last_norm(teacher, made)
    tensors |= last
    how |= last_how

    encoder = encoder_moments(teacher, configs[0].encoder.width)
    norm = norm_of(teacher, "decoder/norm")
    notes: dict[str, Any] = {"blocks": made.notes, "heads": {}}

    def fit(names: tuple[int, str, str]) -> tuple[Flat, dict[str, str], dict[str, Any]]:
        view, source, name = names
        head, own = below(teacher, f"{source}/"), below(student, f"{name}/")
        maps = token_maps(made, view, same, encoder.mean, norm, configs)
        parts, part_how, part_notes = dense_head(head, own, maps)
        z = made.moments.norms[view, configs[0].decoder.depth, "norm"]
        features, feature_notes = local_features(
            head, norm, maps.joint, (encoder, z), (same, made.E), own
        )
        planes = {k: head[k] for k in plane_names(own) if k in head}
        if planes and not made.full:
            planes |= plane_reader(head, z.through(norm), maps.last)
        parts |= features | planes
        part_how |= {k: "units selected, outputs refitted" for k in features}
        part_how |= {k: "projected" for k in planes}
        return parts, part_how, {**part_notes, "local_features": feature_notes}

    heads = head_names(configs)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for (_, _, name), (parts, part_how, told) in zip(heads, pool.map(fit, heads), strict=True):
            notes["heads"][name] = told
            tensors |= {f"{name}/{k}": v for k, v in parts.items()}
            how |= {f"{name}/{k}": v for k, v in part_how.items()}
    return {**student, **tensors}, how, notes, made


def head_names(configs: Configs) -> list[tuple[int, str, str]]:
    """(view, the teacher's name, the student's) of each of the student's heads; a student's shared
    head takes after the first view's."""
    views = (1,) if configs[1].head.shared else (1, 2)

    def name(config: StereoConfig, view: int) -> str:
        return "head" if config.head.shared else f"head{view}"

    return [(view, name(configs[0], view), name(configs[1], view)) for view in views]


def with_head_names(teacher: Mapping[str, np.ndarray], configs: Configs) -> Flat:
    """The teacher's tensors, those of its heads also under the names of the student's heads, where
    one of the two has a shared head."""
    out = dict(teacher)
    for _, source, name in head_names(configs):
        if source != name:
            n = len(source)
            out |= {name + k[n:]: v for k, v in teacher.items() if k.startswith(f"{source}/")}
    return out


def embed(
    teacher: Mapping[str, np.ndarray],
    student: Mapping[str, np.ndarray],
    made: Decoder,
    same: bool,
) -> Flat:
    """The layer between encoder and decoder; where the tokens are others, a fresh one, scaled so
    that the stream starts as large as the teacher's."""
    start = made.moments.stream[1, 0]
    if same:
        layer = layer_of(teacher, "decoder/embed")
        kernel, bias = layer.kernel @ made.E.T, made.E @ layer.bias
    else:
        own = np.asarray(student["decoder/embed/kernel"], np.float64)
        size = np.trace(made.E @ start.cov @ made.E.T)
        kernel, bias = own * np.sqrt(size / max(np.sum(own**2), 1e-300)), made.E @ start.mean
    return {"decoder/embed/kernel": kernel, "decoder/embed/bias": bias}


def last_norm(teacher: Mapping[str, np.ndarray], made: Decoder) -> tuple[Flat, dict[str, str]]:
    """The norm after the last block: the teacher's where the basis is the teacher's own."""
    names = ("decoder/norm/scale", "decoder/norm/bias")
    if made.full:
        return {k: np.array(teacher[k]) for k in names}, dict.fromkeys(names, "copied")
    return plain_norms(["decoder/norm"], len(made.E)), dict.fromkeys(names, "folded")


def token_maps(
    made: Decoder, view: int, same: bool, encoder_mean: np.ndarray, norm: Affine, configs: Configs
) -> TokenMaps:
    """What the basis says of the teacher's tokens; `same`: the encoders' tokens are alike."""
    e, (s, d) = len(encoder_mean), made.E.shape
    depths = [c.decoder.depth for c in configs]
    width = configs[1].encoder.width
    encoder = Affine(np.eye(e), np.zeros(e)) if same else Affine(np.zeros((width, e)), encoder_mean)
    last = Affine(np.eye(d), np.zeros(d))
    if not made.full:
        last = norm.after(made.reading((view, depths[0], "norm")))

    def place(index: int, depth: int) -> str:
        return "encoder" if index == 0 else "last" if index == depth else "stream"

    hooks, unknown = [], []
    for i, (theirs, ours) in enumerate(zip(configs[0].hooks, configs[1].hooks, strict=True)):
        kind = place(theirs, depths[0])
        if kind != place(ours, depths[1]):
            mean = made.moments.stream[view, theirs].mean if theirs else encoder_mean
            hooks.append(Affine(np.zeros((s if ours else width, len(mean))), mean))
            unknown.append(i)
        elif kind == "stream":
            mean = made.moments.stream[view, theirs].mean
            hooks.append(Affine(made.E, mean - made.E.T @ (made.E @ mean)))
        else:
            hooks.append(encoder if kind == "encoder" else last)
            if kind == "encoder" and not same:
                unknown.append(i)
    joint = np.zeros((len(encoder.kernel) + s, e + d))
    joint[: len(encoder.kernel), :e], joint[len(encoder.kernel) :, e:] = encoder.kernel, last.kernel
    bias = np.concatenate([encoder.bias, last.bias])
    return TokenMaps(tuple(hooks), Affine(joint, bias), last, tuple(unknown))
