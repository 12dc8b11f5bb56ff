"""The architecture that a checkpoint declares, read as data.

A `.pth` says it as Python text, `AsymmetricMASt3R(enc_depth=24, ...)`, which is parsed and never
evaluated; a Hugging Face folder says it as JSON. Both become the same dictionary.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from typing import Any

from lunar_distill_jax.convert.torch_file import Checkpoint
from lunar_distill_jax.convert.torch_zip import shown
from lunar_distill_jax.errors import InputError

CLASS = "AsymmetricMASt3R"
MAX_TEXT = 4096  # characters; the released strings have 400
_REQUIRED = (  # the released files always give these
    *("pos_embed", "head_type", "output_mode", "depth_mode", "conf_mode"),
    *("enc_embed_dim", "enc_depth", "enc_num_heads", "dec_embed_dim", "dec_depth", "dec_num_heads"),
)
_DEFAULTS: dict[str, Any] = {  # what the class takes where the file is silent
    "patch_embed_cls": "PatchEmbedDust3R",
    "img_size": (224, 224),
    "patch_size": 16,
    "mlp_ratio": 4.0,
    "norm_im2_in_dec": True,
    "landscape_only": True,
    "two_confs": False,
    "desc_mode": "norm",
    "desc_conf_mode": None,
}
_TRAINING_ONLY = ("freeze", "mask_ratio")  # known to the class, of no effect on what it computes


def parse_model_string(text: str) -> dict[str, Any]:
    """Returns the keyword arguments of "AsymmetricMASt3R(...)"; the text is never evaluated.

    Raises:
      InputError: the text is no such call, or has unknown arguments; it names all of them.
    """
    if len(text) > MAX_TEXT:
        raise InputError(
            f"The model string has {len(text)} characters, at most {MAX_TEXT} expected."
        )
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as e:
        raise InputError(f"The model string {text[:80]!r} is not Python ({e}).") from e
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args):
        raise InputError(
            f"The model string {text[:80]!r} is not a call such as {CLASS}(enc_depth=24)."
        )
    if call.func.id != CLASS:
        raise InputError(
            f"The model is of the class {call.func.id[:80]}; only {CLASS} is supported."
        )
    out: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in out:
            raise InputError(
                f"The model string gives {keyword.arg or '**'!r} in a way that is not data."
            )
        out[keyword.arg] = _literal(keyword.value, keyword.arg)
    _require_known(out, "model string")
    return out


def config_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keyword arguments in a Hugging Face `config.json`; its lists become tuples.

    Raises:
      InputError: it has unknown arguments; the message names all of them.
    """
    _require_known(config, "config.json")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}


def architecture_arguments(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns every argument that shapes the network, defaults filled in, types checked.

    The wiring is the file's own: `patch_embed_cls` and `landscape_only` are as trained.

    Raises:
      InputError: the checkpoint declares no architecture, or one that is incomplete or unknown.
    """
    try:
        if checkpoint.model_string is not None:
            given = parse_model_string(checkpoint.model_string)
        elif checkpoint.config is not None:
            given = config_arguments(checkpoint.config)
        else:
            raise InputError(
                "it does not say its architecture (no args.model, no config.json): give a released "
                ".pth, or a folder with config.json and model.safetensors."
            )
        missing = [name for name in _REQUIRED if name not in given]
        if missing:
            raise InputError(
                f"The architecture lacks {', '.join(missing)}: add what it was trained with."
            )
        full = {**_DEFAULTS, **given}
        problems = [p for name in full if (p := _problem(name, full[name]))]
        if problems:
            raise InputError(f"The architecture has {'; '.join(problems)}.")
    except InputError as e:
        raise InputError(f"{checkpoint.path}: {e}") from e
    if isinstance(full["img_size"], int):
        full["img_size"] = (full["img_size"],) * 2
    return {name: full[name] for name in (*_REQUIRED, *_DEFAULTS)}


def format_model_string(arguments: Mapping[str, Any]) -> str:
    """Returns the text that `parse_model_string` reads, and the reference code evaluates."""
    return f"{CLASS}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


def _require_known(arguments: Mapping[str, Any], place: str) -> None:
    known = {*_REQUIRED, *_DEFAULTS, *_TRAINING_ONLY}
    unknown = [shown(name, 60) for name in arguments if name not in known]
    if unknown:
        raise InputError(
            f"The {place} has unknown arguments: {', '.join(unknown)}; known are "
            f"{', '.join(sorted(known))}."
        )


def _literal(node: ast.expr, name: str) -> Any:
    """Returns the value of a constant, a tuple, a list (as a tuple), inf or float('inf')."""
    match node:
        case ast.Constant(value=str() | bool() | int() | float() | None as value):
            return value
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return tuple(_literal(element, name) for element in elements)
        case ast.Name(id="inf"):
            return math.inf
        case ast.Call(
            func=ast.Name(id="float"),
            args=[ast.Constant(value="inf" | "-inf" as text)],
            keywords=[],
        ):
            return float(text)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = _literal(operand, name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return -value
    raise InputError(
        f"The argument {name} of the model string is not a number, a text, inf or a tuple of them."
    )


def _problem(name: str, value: Any) -> str:
    """Returns what is wrong with one argument, or nothing."""

    def positive(v):
        return type(v) is int and 0 < v <= 2**20

    def mode(v):
        numbers = v[1:] if isinstance(v, tuple) and len(v) == 3 and isinstance(v[0], str) else ()
        return len(numbers) == 2 and all(type(n) in (int, float) and n == n for n in numbers)

    kind, good = "a text", isinstance(value, str)
    if name.endswith(("_dim", "_depth", "_heads", "patch_size")):
        kind, good = "a positive integer", positive(value)
    elif name == "img_size":
        pair = value if isinstance(value, tuple) else (value, value)
        kind, good = "one or two positive integers", len(pair) == 2 and all(map(positive, pair))
    elif name in ("mlp_ratio", "mask_ratio"):
        kind, good = "a positive number", type(value) in (int, float) and 0 < value < 1024
    elif name in ("norm_im2_in_dec", "landscape_only", "two_confs"):
        kind, good = "True or False", isinstance(value, bool)
    elif name in ("depth_mode", "conf_mode", "desc_conf_mode"):
        optional = name == "desc_conf_mode" and value is None
        kind, good = "(name, low, high)", optional or mode(value)
    return "" if good else f"{name}={str(value)[:60]!r}, expected {kind}"
