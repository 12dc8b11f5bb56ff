"""The small sweep of the tests: its config file, its teacher, and the table that it leaves."""

import csv

import lunar_distill_jax as ld

CONFIG = """
from lunar_distill_jax.train.options import data_block, run_config

def get_config(mode="full"):
    c = run_config()
    c.teacher, c.student = {teacher!r}, "test"
    c.steps, c.batch, c.augment = 3, 2, False
    c.loss.points = 1.0
    c.optim.update(lr=1e-3)
    c.mesh.data = 1
    c.data = data_block(source="synthetic", size=32, geometries=3)
    c.sets = {{"unseen": data_block(source="synthetic", size=32, geometries=2, seed=100)}}
    c.evaluate_every, c.log_every, c.checkpoint_every = 2, 1, 2
    c.tensorboard = False
    c.sweep.update(most={most}, latency=False, heartbeat=2)
    return c

def get_sweep():
    for ratio in {ratios}:
        for relief in (0.0, 1.0):
            for seed in (0, 1):
                yield {{"decoder.mlp_ratio": ratio, "loss.relief": relief, "seed": seed}}
"""


def write_teacher(path):
    ld.save(ld.build("test", 5).replace(meta={"licence": "of this test"}), path)
    return str(path)


def config_file(folder, teacher, ratios=(0.0,), most=2):
    path = folder / "small.py"
    path.write_text(CONFIG.format(teacher=teacher, ratios=ratios, most=most))
    return str(path)


def table(workdir):
    with open(workdir / "results.csv") as file:
        return list(csv.DictReader(file))
