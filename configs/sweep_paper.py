r"""The paper's students and its ablations, each with three seeds: 60 trials.

    lunar-distill sweep --config configs/sweep_paper.py --workdir runs/sweep_paper \
        --config.teacher=MAST3R.pth --config.data.source=FOLDER --config.sets.test.source=FOLDER
    lunar-distill sweep --config configs/sweep_paper.py:tiny --workdir runs/tiny

S1 to S4, as published, without SVD initialisation, with a frozen encoder, without the feature loss,
and on ground truth. `:tiny` is 4 trials of 3 steps on rendered ground.
"""

from lunar_distill_jax.train import recipes

METHODS = {
    "paper": {},
    "no-svd": {"init": "fresh"},
    "frozen-encoder": {"optim.freeze": ("encoder/model/.*",)},
    "no-features": {"loss.features": 0.0},
    "ground-truth": {"teacher": "", "init": "fresh", "loss.features": 0.0},
}


def get_config(mode: str = "full"):
    return recipes.lunar("s1", mode, tiny_student="slim-mobile")


def get_sweep(mode: str = "full"):
    tiny = mode == "tiny"
    methods = ("no-svd", "ground-truth") if tiny else METHODS
    for student in ("moonlet-student",) if tiny else ("s1", "s2", "s3", "s4"):
        for method in methods:
            for seed in range(2 if tiny else 3):
                yield {
                    "name": f"{student}-{method}-seed{seed}",
                    "student": student,
                    **METHODS[method],
                    "seed": seed,
                }
