"""The names of PyTorch's MASt3R and ours, as one table that is read in both directions.

Every torch name is matched by exactly one rule, or is an alias or unused by name. Layouts are
named, never guessed from a shape: a square matrix looks the same transposed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lunar_distill_jax.convert.torch_zip import shown
from lunar_distill_jax.errors import raise_all


class Layout(NamedTuple):
    """How the `weight` of a torch module is stored here: our name, torch's axes in our order."""

    name: str
    axes: tuple[int, ...]


NORM = Layout("scale", (0,))
LINEAR = Layout("kernel", (1, 0))  # [out, in] -> [in, out]
CONV = Layout("kernel", (2, 3, 1, 0))  # [out, in, kh, kw] -> [kh, kw, in, out]
# [in, out, kh, kw] -> [kh, kw, in, out]; not flipped, as `dpt.Unpatch` reads it like torch.
DECONV = Layout("kernel", (2, 3, 0, 1))


class Rule(NamedTuple):
    """One module: `{i}` and `{j}` stand for the same numbers on both sides."""

    torch: str
    ours: str
    layout: Layout


def _block(torch: str, ours: str, norms: Iterable[str], linears: Mapping[str, str]):
    yield from (Rule(f"{torch}.{n}", f"{ours}/{n}", NORM) for n in norms)
    yield from (Rule(f"{torch}.{t}", f"{ours}/{o}", LINEAR) for t, o in linears.items())


_SELF = {name: name.replace(".", "/") for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
_CROSS = {f"cross_attn.proj{x}": f"cross_attn/{x or 'proj'}" for x in ("q", "k", "v", "")}
_DECODER_NORMS = ("norm1", "norm2", "norm3", "norm_y")
_DPT, _OUR_DPT = "downstream_head{i}.dpt", "head{i}/dpt"

RULES = (
    Rule("patch_embed.proj", "encoder/patch_embed", CONV),
    *_block("enc_blocks.{i}", "encoder/block{i}", ("norm1", "norm2"), _SELF),
    Rule("enc_norm", "encoder/norm", NORM),
    Rule("decoder_embed", "decoder/embed", LINEAR),
    *_block("dec_blocks.{i}", "decoder/view1_block{i}", _DECODER_NORMS, _SELF | _CROSS),
    *_block("dec_blocks2.{i}", "decoder/view2_block{i}", _DECODER_NORMS, _SELF | _CROSS),
    Rule("dec_norm", "decoder/norm", NORM),
    Rule(f"{_DPT}.act_postprocess.{{j}}.0", f"{_OUR_DPT}/project{{j}}", CONV),
    Rule(f"{_DPT}.act_postprocess.0.1", f"{_OUR_DPT}/resize0", DECONV),
    Rule(f"{_DPT}.act_postprocess.1.1", f"{_OUR_DPT}/resize1", DECONV),
    Rule(f"{_DPT}.act_postprocess.3.1", f"{_OUR_DPT}/resize3", CONV),
    *(Rule(f"{_DPT}.scratch.layer{n + 1}_rn", f"{_OUR_DPT}/layer{n}", CONV) for n in range(4)),
    *(
        Rule(f"{_DPT}.scratch.refinenet{n + 1}.{t}", f"{_OUR_DPT}/fusion{n}/{o}", CONV)
        for n in range(4)
        for t, o in (
            ("out_conv", "out"),
            ("resConfUnit2.conv{j}", "unit2/conv{j}"),
            ("resConfUnit1.conv{j}", "unit1/conv{j}"),
        )
        if (n, o) != (3, "unit1/conv{j}")
    ),
    *(Rule(f"{_DPT}.head.{2 * n}", f"{_OUR_DPT}/head{n}", CONV) for n in range(3)),
    *(
        Rule(
            f"downstream_head{{i}}.head_local_features.{fc}",
            f"head{{i}}/local_features/{fc}",
            LINEAR,
        )
        for fc in ("fc1", "fc2")
    ),
    # The coarsest fusion has one input, so its first unit never runs; `Unused` keeps it.
    Rule(f"{_DPT}.scratch.refinenet4.resConfUnit1.conv{{j}}", "unused/head{i}_conv{j}", CONV),
)
BARE = {"mask_token": "unused/mask_token"}  # a parameter of the network itself, stored as it is
# Leftovers of pre-training, and tables that some versions store and all of them can compute.
UNUSED = (r"prediction_head\..+", r"(.+\.)?rope\..+")
ALIASES: tuple[tuple[str, Callable[[re.Match], str]], ...] = (
    (
        r"(.+\.dpt\.scratch\.)layer_rn\.([0-3])\.(weight)",
        lambda m: f"{m[1]}layer{int(m[2]) + 1}_rn.{m[3]}",
    ),
    (
        r"(.+\.dpt\.)act_([1-4])_postprocess\.(.+)",
        lambda m: f"{m[1]}act_postprocess.{int(m[2]) - 1}.{m[3]}",
    ),
)


def _pattern(template: str) -> re.Pattern:
    return re.compile(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(template)))


class Line(NamedTuple):
    """A rule for one parameter, ready to match in either direction."""

    torch: re.Pattern
    ours: re.Pattern
    torch_template: str
    ours_template: str
    axes: tuple[int, ...] | None  # None: as it is


def lines_of(rules: Iterable[Rule], bare: Mapping[str, str]) -> tuple[Line, ...]:
    """A table's lines: weight and bias of each module, and the `bare` parameters as they are."""
    pairs: list[tuple] = [(t, o, None) for t, o in bare.items()]
    for rule in rules:
        pairs.append((f"{rule.torch}.weight", f"{rule.ours}/{rule.layout.name}", rule.layout.axes))
        pairs.append((f"{rule.torch}.bias", f"{rule.ours}/bias", (0,)))
    return tuple(Line(_pattern(t), _pattern(o), t, o, axes) for t, o, axes in pairs)


LINES = lines_of(RULES, BARE)


class Named(NamedTuple):
    """A checkpoint's tensors by the reference's own names, and what became of the other names."""

    tensors: dict[str, np.ndarray]
    aliases: list[str]  # second names, of equal values
    unused: list[str]  # dropped by name
    copied: bool  # dec_blocks2 was absent, and is dec_blocks
    problems: list[str]

    def summary(self) -> str:
        """One line: what of the file was taken, and how."""
        parts = [
            f"{len(self.tensors)} tensors by name",
            f"{len(self.aliases)} second names of them",
        ]
        names = f" ({', '.join(shown(n) for n in self.unused[:8])})" if self.unused else ""
        parts.append(f"{len(self.unused)} not used{names}")
        return ", ".join(parts) + ("; dec_blocks2 is a copy of dec_blocks" if self.copied else "")


def own_names(tensors: Mapping[str, np.ndarray]) -> Named:
    """Sorts out second names and leftovers; an absent second decoder becomes the first's copy."""
    out = Named({}, [], [], not any(n.startswith("dec_blocks2.") for n in tensors), [])
    for name, tensor in tensors.items():
        hits = [target(m) for pattern, target in ALIASES if (m := re.fullmatch(pattern, name))]
        target = hits[0] if hits else name
        if any(re.fullmatch(pattern, name) for pattern in UNUSED):
            out.unused.append(name)
        elif hits and target in tensors:
            out.aliases.append(name)
            if not _same_values(tensor, tensors[target]):
                out.problems.append(
                    f"{shown(name)} is another name of {target} but has other values"
                )
        else:
            out.tensors[target] = tensor
    if out.copied:
        first = [name for name in out.tensors if name.startswith("dec_blocks.")]
        for name in first:
            out.tensors[name.replace("dec_blocks.", "dec_blocks2.", 1)] = out.tensors[name]
    return out


def _same_values(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape == b.shape and a.strides == b.strides and a.dtype == b.dtype:
        if a.__array_interface__["data"] == b.__array_interface__["data"]:
            return True
    return a.dtype == b.dtype and np.array_equal(a, b)


def from_torch(
    named: Named, want: Mapping[str, tuple[int, ...]], path: object
) -> dict[str, np.ndarray]:
    """Returns {our name: view of the tensor in our layout}; names and shapes are those of `want`.

    Raises:
      InputError: names or shapes do not fit; it lists every problem, and names the file `path`.
    """
    return by_table(named.tensors, LINES, want, path, named.problems)


def by_table(
    tensors: Mapping[str, np.ndarray],
    lines: Sequence[Line],
    want: Mapping[str, tuple[int, ...]],
    path: object,
    problems: Iterable[str] = (),
) -> dict[str, np.ndarray]:
    """`from_torch` by any table; `problems` are those that are known already."""
    problems = list(problems)
    out: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    for name, tensor in tensors.items():
        hits = [(line, m) for line in lines if (m := line.torch.fullmatch(name))]
        label = f"{shown(name)} {tensor.shape}"
        if len(hits) != 1:
            problems.append(f"{label}: {len(hits) or 'no'} rules match this name")
            continue
        line, match = hits[0]
        target = line.ours_template.format(**match.groupdict())
        origin[target] = name
        if target not in want:
            problems.append(f"{label}: the architecture has no such tensor")
        elif tensor.shape != (shape := torch_shape(want[target], line.axes)):
            problems.append(f"{label}: expected the shape {shape}")
        else:
            out[target] = tensor if line.axes is None else tensor.transpose(line.axes)
    problems += [f"{torch_name(t, lines)}: missing" for t in want if t not in origin]
    raise_all(problems, f"{path} does not hold the network that it declares")
    return out


def torch_shape(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape in torch of an array whose shape here is `shape`."""
    return shape if axes is None else tuple(shape[i] for i in np.argsort(axes))


def _line_of(name: str, lines: Sequence[Line] = LINES) -> tuple[Line, str] | None:
    """-> (rule, torch name) of one of our names, or None where the reference has no such thing."""
    for line in lines:
        if match := line.ours.fullmatch(name):
            return line, line.torch_template.format(**match.groupdict())
    return None


def torch_name(name: str, lines: Sequence[Line] = LINES) -> str:
    """The reference's name of our parameter; ours where it has none."""
    found = _line_of(name, lines)
    return found[1] if found else name


def to_torch(
    params: Mapping[str, np.ndarray], lines: Sequence[Line] = LINES
) -> dict[str, np.ndarray]:
    """Returns {torch name: view of our array in torch's layout}, with a released file's aliases.

    Raises:
      InputError: the network has parts that the reference code does not have; it names all of them.
    """
    out, problems = {}, []
    for name, array in params.items():
        found = _line_of(name, lines)
        if found is None:
            problems.append(f"{name} {array.shape}")
            continue
        line, torch = found
        out[torch] = array if line.axes is None else array.transpose(np.argsort(line.axes))
    raise_all(problems, "The PyTorch reference has no counterpart of")
    for name in [n for n in out if re.search(r"\.scratch\.layer[1-4]_rn\.", n)]:
        alias = re.sub(r"layer([1-4])_rn", lambda m: f"layer_rn.{int(m[1]) - 1}", name)
        out[alias] = out[name]
    return dict(sorted(out.items(), key=lambda item: _natural(item[0])))


def _natural(name: str) -> list:
    """Sorts block 10 after block 9."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)]
