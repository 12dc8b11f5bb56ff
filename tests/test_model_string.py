"""The architecture that a checkpoint declares: parsed, never evaluated."""

import json
import math
import pathlib

import pytest

from lunar_distill_jax.convert.model_string import (
    architecture_arguments,
    config_arguments,
    format_model_string,
    parse_model_string,
)
from lunar_distill_jax.convert.torch_file import Checkpoint
from lunar_distill_jax.errors import InputError

RELEASED = (
    "AsymmetricMASt3R(pos_embed='RoPE100', patch_embed_cls='ManyAR_PatchEmbed', "
    "img_size=(512, 512), head_type='catmlp+dpt', output_mode='pts3d+desc24', "
    "depth_mode=('exp', -inf, inf), conf_mode=('exp', 1, inf), enc_embed_dim=1024, enc_depth=24, "
    "enc_num_heads=16, dec_embed_dim=768, dec_depth=12, dec_num_heads=12, two_confs=True, "
    "desc_conf_mode=('exp', 0, inf))"
)


def of_string(text):
    return architecture_arguments(Checkpoint(pathlib.Path("m.pth"), {}, model_string=text))


def of_config(config):
    return architecture_arguments(Checkpoint(pathlib.Path("hub"), {}, config=config))


def test_released_string():
    got = of_string(RELEASED)
    assert got["depth_mode"] == ("exp", -math.inf, math.inf)
    assert got["img_size"] == (512, 512) and got["enc_depth"] == 24 and got["two_confs"] is True
    # What the string leaves out.
    assert (got["landscape_only"], got["desc_mode"], got["mlp_ratio"]) == (True, "norm", 4.0)
    assert format_model_string(parse_model_string(RELEASED)) == RELEASED


def test_other_spellings_of_the_same():
    text = RELEASED.replace("-inf", "float('-inf')").replace("(512, 512)", "512")
    text = text.replace("('exp', 0, inf)", "['exp', 0, float('inf')]")
    assert of_string(f"  {text}\n") == of_string(RELEASED)


def test_json_gives_the_same():
    text = json.dumps(parse_model_string(RELEASED) | {"desc_mode": "norm"})
    assert "-Infinity" in text
    assert of_config(json.loads(text)) == of_string(RELEASED)


def test_unknown_arguments_are_all_named():
    with pytest.raises(InputError, match="unknown arguments: heads, enc_deph; known are conf_mode"):
        parse_model_string(RELEASED.replace("enc_depth", "enc_deph").replace("head_type", "heads"))
    with pytest.raises(InputError, match=r"config\.json has unknown arguments: width"):
        config_arguments({"width": 3})


@pytest.mark.parametrize(
    "text, match",
    [
        ("AsymmetricCroCo3DStereo(enc_depth=1)", "class AsymmetricCroCo3DStereo; only Asym"),
        ("__import__('os').system('true')", "is not a call such as"),
        ("AsymmetricMASt3R(__import__('os').system('true'))", "is not a call such as"),
        ("AsymmetricMASt3R(enc_depth=__import__('os').system('true'))", "argument enc_depth"),
        ("AsymmetricMASt3R(enc_depth=float('1e3'))", "argument enc_depth"),
        ("AsymmetricMASt3R(enc_depth=-'a')", "argument enc_depth"),
        ("AsymmetricMASt3R(enc_depth=b'a')", "argument enc_depth"),
        ("AsymmetricMASt3R(enc_depth=2**9**9)", "argument enc_depth"),
        ("AsymmetricMASt3R(**{'enc_depth': 1})", "not data"),
        ("AsymmetricMASt3R(enc_depth=1, enc_depth=2)", "'enc_depth' in a way"),
        ("AsymmetricMASt3R(enc_depth=1", "is not Python"),
        ("AsymmetricMASt3R(enc_depth=" + "(" * 300, "is not Python"),
        ("AsymmetricMASt3R(enc_depth=" + "-" * 4000 + "1)", "model string"),
        ("AsymmetricMASt3R(enc_depth=" + "9" * 4050, "is not Python"),
        ("A(" + " " * 5000, "5002 characters"),
        ("a\0b", "is not Python"),
        ("AsymmetricMASt3R", "is not a call"),
    ],
)
def test_text_that_is_not_data(text, match):
    with pytest.raises(InputError, match=match):
        parse_model_string(text)


@pytest.mark.parametrize(
    "old, new, match",
    [
        ("enc_depth=24, ", "", r"^m\.pth: The architecture lacks enc_depth"),
        ("enc_depth=24", "enc_depth=2.5", "enc_depth='2.5', expected a positive integer"),
        ("enc_depth=24", "enc_depth=True", "enc_depth='True', expected a positive integer"),
        ("dec_num_heads=12", "dec_num_heads=-1", "dec_num_heads='-1', expected a positive"),
        ("(512, 512)", "(512, 512, 3)", "img_size=.* expected one or two"),
        ("(512, 512)", "'512'", "img_size=.* expected one or two"),
        ("'RoPE100'", "100", "pos_embed='100', expected a text"),
        ("('exp', 1, inf)", "('exp', 1)", "conf_mode=.*expected .name, low, high"),
        ("two_confs=True", "two_confs=1", "two_confs='1', expected True or False"),
    ],
)
def test_values_of_the_wrong_kind(old, new, match):
    assert old in RELEASED
    with pytest.raises(InputError, match=match):
        of_string(RELEASED.replace(old, new))


def test_all_wrong_values_are_named_at_once():
    text = RELEASED.replace("enc_depth=24", "enc_depth=0").replace("dec_depth=12", "dec_depth='a'")
    with pytest.raises(InputError, match="enc_depth='0'.*; dec_depth='a'"):
        of_string(text)
