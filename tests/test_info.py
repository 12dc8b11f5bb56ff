"""Parameters and MACs against counts by hand."""

import json

import pytest

from lunar_distill_jax import cli
from lunar_distill_jax.models.accounting import mac_counts, parameter_counts
from lunar_distill_jax.models.zoo import architecture


def attention_macs(tokens, memory, width):
    """Scores and weighted sums, without the projections."""
    return 2 * tokens * memory * width


def expected_macs(c, height, width):
    """The teacher's layers, written down from their definition; an image has n tokens."""
    h, w = height // 16, width // 16
    n, e, d = h * w, c.encoder.width, c.decoder.width
    block = 4 * n * e * e + attention_macs(n, n, e) + 2 * n * e * int(e * c.encoder.mlp_ratio)
    encoder = n * 16 * 16 * 3 * e + c.encoder.depth * block
    block = 8 * n * d * d + 2 * attention_macs(n, n, d) + 2 * n * d * int(d * c.decoder.mlp_ratio)
    decoder = n * e * d + c.decoder.depth * block
    hidden = int(c.head.desc_ratio * (e + d))
    local = n * hidden * ((e + d) + (c.head.desc + 1) * 256)
    return {"encoder": 2 * encoder, "decoder": 2 * decoder, "local_features": 2 * local} | {
        "dpt": 2 * dpt_macs(c, h, w)
    }


def dpt_macs(c, h, w):
    half = -(-h // 2) * -(-w // 2)
    grids = (16 * h * w, 4 * h * w, h * w, half)
    widths, p = c.head.layers, c.head.width
    tokens = (c.encoder.width, *3 * [c.decoder.width])
    macs = sum(h * w * t * x for t, x in zip(tokens, widths, strict=True))
    macs += h * w * (16 * widths[0] ** 2 + 4 * widths[1] ** 2) + half * 9 * widths[3] ** 2
    macs += sum(9 * g * x * p for g, x in zip(grids, widths, strict=True))
    units = (4, 4, 4, 2)  # convolutions of a fusion; the coarsest has one unit
    macs += sum(9 * g * p * p * u + g * p * p for g, u in zip(grids, units, strict=True))
    macs += 64 * h * w * 9 * p * (p // 2) + 256 * h * w * (9 * (p // 2) * c.head.last)
    return macs + 256 * h * w * c.head.last * 4


@pytest.mark.parametrize("name, size", [("test", (48, 80)), ("mast3r", (384, 512))])
def test_macs_equal_a_count_by_hand(name, size):
    config = architecture(name)
    assert mac_counts(config, *size) == expected_macs(config, *size)


def test_parameters_of_the_teacher_s_parts():
    """The published table: enc_norm and patch embedding are the encoder's, both heads together."""
    counts = parameter_counts(architecture("mast3r"))
    assert counts["encoder"] == 787_456 + 302_309_376 + 2_048
    assert counts["decoder"] == 787_200 + 2 * 113_439_744 + 1_536
    assert counts["local_features"] == 2 * 58_733_824
    assert sum(counts.values()) == 688_638_856
    assert counts["unused"] == 2_361_088


def test_info_of_an_architecture(capsys):
    assert cli.main(["info", "test", "--size", "48x80"]) == 0
    text = capsys.readouterr().out
    assert "1 MAC = 2 FLOP" in text and "48 x 80 pair" in text and "licence: unknown" in text
    assert cli.main(["info", "test", "--size", "48x80", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    macs = expected_macs(architecture("test"), 48, 80)
    assert facts["macs"] == {**macs, "total": sum(macs.values())}
    assert facts["size"] == [48, 80] and facts["bytes"] is None


@pytest.mark.parametrize("size", ["48", "48x81", "0x16", "ax16", "-16x16"])
def test_sizes_that_do_not_fit_are_refused(size, capsys):
    assert cli.main(["info", "test", f"--size={size}"]) == 2
    assert "multiples of 16" in capsys.readouterr().err


def test_unknown_models_are_refused(capsys):
    assert cli.main(["info", "nothing"]) == 2
    assert "There is no model nothing" in capsys.readouterr().err
