"""The golden models whose weights are a formula of their torch names (`goldens/recipe.py`)."""

import importlib.util
import pathlib

import lunar_distill_jax.api as ld
from lunar_distill_jax.convert.teacher import network_from_checkpoint
from lunar_distill_jax.convert.torch_file import Checkpoint
from lunar_distill_jax.convert.torch_names import LINES, torch_name, torch_shape
from lunar_distill_jax.models.config import DecoderConfig, EncoderConfig, HeadConfig, StereoConfig
from lunar_distill_jax.models.fresh import parameter_shapes

PART = pathlib.Path(__file__).parent / "goldens"
MODEL_STRING = (
    "AsymmetricMASt3R(pos_embed='RoPE100', patch_embed_cls='ManyAR_PatchEmbed', "
    "img_size=(512, 512), head_type='catmlp+dpt', output_mode='pts3d+desc{}', "
    "depth_mode=('exp', -inf, inf), conf_mode=('exp', 1, inf), "
    "enc_embed_dim={}, enc_depth={}, enc_num_heads={}, "
    "dec_embed_dim={}, dec_depth={}, dec_num_heads={}, "
    "two_confs=True, desc_conf_mode=('exp', 0, inf))"
)
SMALL_HEAD = HeadConfig(width=24, layers=(8, 16, 32, 48), last=12, desc=10)
RECIPES = {  # model -> (encoder, decoder, head, seed, rounded to float16)
    "A": (EncoderConfig(24, 4, 2), DecoderConfig(16, 12, 2), SMALL_HEAD, 11, True),
    "D": (EncoderConfig(128, 6, 4), DecoderConfig(96, 12, 3), HeadConfig(), 14, False),
    "F": (EncoderConfig(1024, 24, 16), DecoderConfig(768, 12, 12), HeadConfig(), 15, False),
}

_spec = importlib.util.spec_from_file_location("recipe", PART / "recipe.py")
assert _spec and _spec.loader
recipe = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recipe)


def recipe_checkpoint(model: str) -> Checkpoint:
    """What torch would load: {torch name: array}, and the string that builds the model."""
    encoder, decoder, head, seed, rounded = RECIPES[model]
    config = StereoConfig(encoder=encoder, decoder=decoder, head=head, keep_unused=True)
    tensors = {}
    for name, shape in parameter_shapes(config).items():
        axes = next(line.axes for line in LINES if line.ours.fullmatch(name))
        name = torch_name(name)
        tensors[name] = recipe.recipe_array(name, torch_shape(shape, axes), seed, rounded)
    sizes = [(part.width, part.depth, part.heads) for part in (encoder, decoder)]
    text = MODEL_STRING.format(head.desc, *sizes[0], *sizes[1])
    return Checkpoint(pathlib.Path(f"recipe_{model}.pth"), tensors, text)


def from_recipe(model: str) -> ld.Stereo:
    return ld.Stereo(*network_from_checkpoint(recipe_checkpoint(model)))
