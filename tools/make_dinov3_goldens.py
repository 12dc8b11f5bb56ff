r"""Writes tests/goldens/dinov3.npz: activations of `transformers`' DINOv3 with random weights.

For developers, in an environment of its own, as neither torch nor transformers is ours:

    python -m venv /tmp/dinov3 && /tmp/dinov3/bin/pip install torch==2.13.0 transformers==5.23.0
    /tmp/dinov3/bin/python tools/make_dinov3_goldens.py

Weights and images are formulas (tests/goldens/recipe.py), so the file holds activations only:

    {model}/shapes             JSON {tensor name in a saved checkpoint: shape}
    {model}/{HxW}/{layer}      channels last, layers named as in our networks; HxW of the image
    parameters                 JSON {size: parameters of the real one, counted on the meta device}
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open

GOLDENS = pathlib.Path(__file__).parents[1] / "tests" / "goldens"
sys.path.insert(0, str(GOLDENS.parent))

from goldens import dinov3_cases as cases  # noqa: E402  (found through the path above)


def vit(width, depth, heads, gated, registers):
    config = transformers.DINOv3ViTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",
        num_register_tokens=registers,
    )
    return transformers.DINOv3ViTModel(config).eval()


def convnext(widths, depths):
    config = transformers.DINOv3ConvNextConfig(hidden_sizes=list(widths), depths=list(depths))
    return transformers.DINOv3ConvNextModel(config).eval()


def saved_names(model) -> dict[str, str]:
    """{name in the model: name in the file that it writes}, told apart by their values."""
    state = model.state_dict()
    with torch.no_grad():
        for i, tensor in enumerate(state.values()):
            tensor.fill_(i)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with safe_open(f"{folder}/model.safetensors", "np") as file:
            by_value = {int(file.get_tensor(n).flat[0]): n for n in file.keys()}
    return {name: by_value[i] for i, name in enumerate(state)}


def fill(model) -> dict[str, tuple[int, ...]]:
    """Gives a model the weights of the recipe; returns the shapes by their names in a file."""
    names, shapes = saved_names(model), {}
    for name, tensor in model.state_dict().items():
        shapes[names[name]] = tuple(tensor.shape)
        tensor.copy_(torch.from_numpy(cases.weight(names[name], tensor.shape)))
    return shapes


def layers_of(model) -> dict[str, torch.nn.Module]:
    """{our name: module whose output is stored}"""
    if isinstance(model, transformers.DINOv3ViTModel):
        blocks = {f"block{i}": block for i, block in enumerate(model.model.layer)}
        patches = {"patch_embed": model.embeddings.patch_embeddings, "rope": model.rope_embeddings}
        return {**patches, **blocks, "norm": model.norm}
    out = {}
    for i, stage in enumerate(model.model.stages):
        out[f"down{i}"] = stage.downsample_layers[-1]
        out |= {f"stage{i}_block{j}": block for j, block in enumerate(stage.layers)}
    return out | {"norm": model.layer_norm}


def channels_last(x) -> np.ndarray:
    if isinstance(x, tuple):  # cosines and sines
        return torch.stack(x).numpy()
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).contiguous().numpy()


def activations(model, image) -> dict[str, np.ndarray]:
    out = {}
    hooks = [
        module.register_forward_hook(
            lambda _module, _inputs, y, name=name: out.__setitem__(name, channels_last(y))
        )
        for name, module in layers_of(model).items()
    ]
    model(torch.from_numpy(image))
    for hook in hooks:
        hook.remove()
    return out


def parameters() -> dict[str, int]:
    with torch.device("meta"):
        models = {name: vit(*sizes) for name, sizes in cases.PUBLISHED_VIT.items()}
        models |= {name: convnext(*sizes) for name, sizes in cases.PUBLISHED_CONVNEXT.items()}
    return {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", default=str(GOLDENS / "dinov3.npz"))
    path = parser.parse_args().out
    arrays: dict[str, Any] = {"versions": np.array([torch.__version__, transformers.__version__])}
    arrays["parameters"] = np.array(json.dumps(parameters()))
    models = {name: vit(*sizes) for name, sizes in cases.VIT.items()}
    models |= {name: convnext(*sizes) for name, sizes in cases.CONVNEXT.items()}
    for name, model in models.items():
        arrays[f"{name}/shapes"] = np.array(json.dumps(fill(model)))
        for height, width in cases.SIZES:
            found = activations(model, cases.image(height, width))
            arrays |= {f"{name}/{height}x{width}/{layer}": y for layer, y in found.items()}
    np.savez_compressed(path, **arrays)
    print(f"{path}: {len(arrays)} arrays, {pathlib.Path(path).stat().st_size} bytes")


if __name__ == "__main__":
    main()
