"""Where each of a student's parameters came from, for the report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lunar_distill_jax.init.depth import mapped_name, teacher_name
from lunar_distill_jax.init.structured import Configs, head_names

_BLOCK = re.compile(r"decoder/(view[12])_block(\d+)/(.+)/(kernel|bias|scale)")
# Of a decoder block: what a tensor's numbers were made of, beside itself.
_READS = {
    "attn/qkv": ("norm1",),
    "attn/proj": ("attn/qkv",),
    "cross_attn/q": ("norm2",),
    "cross_attn/k": ("norm_y",),
    "cross_attn/v": ("norm_y",),
    "cross_attn/proj": ("cross_attn/v",),
    "mlp/fc1": ("norm3",),
    "mlp/fc2": ("mlp/fc1", "norm3"),
}


def parameter_report(
    how: Mapping[str, str],
    names: Sequence[str],
    sizes: Mapping[str, int],
    configs: Configs,
    notes: Mapping[str, Any],
    left: str,
) -> dict[str, dict[str, Any]]:
    """{student's name: {"how", "numbers", "from": teacher's tensors or modules, "see"}}

    how: {name: what was done} of those initialised; the others are `left`, "given" or "fresh"
    notes: the rest of the report, to whose entries "see" points
    """
    out = {}
    for name in names:
        entry: dict[str, Any] = {"how": how.get(name, left), "numbers": sizes[name]}
        if name in how:
            entry |= _source(name, configs, notes)
        out[name] = entry
    return out


def _source(name: str, configs: Configs, notes: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(notes.get("blocks"), Mapping):  # no `structured` or `calibrated`
        source = mapped_name(name, notes.get("blocks", ()))
        for _, theirs, ours in head_names(configs):
            if source.startswith(f"{ours}/"):
                source = theirs + source[len(ours) :]
                break
        return {"from": [source]}
    if match := _BLOCK.fullmatch(name):
        view, number, module, _ = match.groups()
        block = notes["blocks"][f"{view}_block{number}"]
        part = module.split("/")[0]
        if part.startswith("norm"):
            return {"from": [], "see": "folded into what reads it"}
        modules = (module, *_READS[module])
        used = _blocks_used(block, part)
        return {
            "from": [f"decoder/{view}_block{b}/{m}" for b in used for m in modules],
            "see": f"blocks/{view}_block{number}/{part}",
        }
    if name.startswith("decoder/"):
        return {"from": [name.rpartition("/")[0]]}
    for _, theirs, ours in head_names(configs):
        if name.startswith(f"{ours}/"):
            inner = name[len(ours) + 1 :]
            source = [f"{theirs}/{inner.rpartition('/')[0]}"]
            if re.match(r"dpt/project3|local_features|plane/fc1", inner):
                source.append("decoder/norm")
            if inner.startswith("local_features/fc2"):
                source.append(f"{theirs}/local_features/fc1")
            return {"from": source, "see": f"heads/{ours}"}
    depths = [getattr(c.encoder, "depth", 0) for c in configs]
    return {"from": [teacher_name(name, {"encoder": (depths[1], depths[0]), "decoder": (1, 1)})]}


def _blocks_used(block: Mapping[str, Any], part: str) -> list[int]:
    """The teacher blocks whose heads or units a part of the student's block holds."""
    found = block.get(part, {})
    heads = [pair[0] for head in found.get("heads", []) for pair in head["values"]]
    units = [pair[0] for pair in found.get("units", [])]
    return sorted({*heads, *units}) or list(block.get("teacher_blocks", []))


def summary(parameters: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, int], float]:
    """-> ({how: numbers}, share of all numbers that the teacher gave)"""
    counts: dict[str, int] = {}
    for entry in parameters.values():
        counts[entry["how"]] = counts.get(entry["how"], 0) + entry["numbers"]
    own = sum(n for kind, n in counts.items() if kind.startswith(("fresh", "given")))
    total = max(sum(counts.values()), 1)
    return dict(sorted(counts.items(), key=lambda item: -item[1])), (total - own) / total
