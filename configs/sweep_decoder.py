r"""How large must a decoder be? Width x depth x heads x MLP ratio of slim-s, three seeds.

    lunar-distill sweep --config configs/sweep_decoder.py --workdir runs/sweep_decoder \
        --config.teacher=MAST3R.pth --config.data.source=FOLDER --config.sets.test.source=FOLDER
    lunar-distill sweep --config configs/sweep_decoder.py:tiny --workdir runs/tiny

`:tiny` varies the embedded teacher's student. Heads have 64 or 32 channels.
"""

from lunar_distill_jax.train import recipes


def get_config(mode: str = "full"):
    c = recipes.lunar("slim-s", mode, tiny_student="moonlet-student")
    c.init = "fresh"
    return c


def get_sweep(mode: str = "full"):
    if mode == "tiny":
        for width in (96, 192):
            yield decoder(width, 1, width // 32, 2, 0)
        return
    for width in (192, 256, 384, 512):
        for depth in (2, 4, 6):
            for heads in (width // 64, width // 32):
                for ratio in (1, 2, 4):
                    for seed in range(3):
                        yield decoder(width, depth, heads, ratio, seed)


def decoder(width: int, depth: int, heads: int, ratio: float, seed: int) -> dict:
    return {
        "name": f"{width}x{depth}-heads{heads}-ratio{ratio}-seed{seed}",
        "decoder.width": width,
        "decoder.depth": depth,
        "decoder.heads": heads,
        "decoder.mlp_ratio": float(ratio),
        "seed": seed,
    }
