"""Every config file: both modes, locked keys, the recipe; slow: three steps of each."""

import runpy

import pytest
import tiny

import lunar_distill_jax as ld
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.runs import start
from lunar_distill_jax.train.config import read_config
from lunar_distill_jax.train.loop import read_history
from lunar_distill_jax.train.options import steps_of

FILES = sorted((tiny.REPOSITORY / "configs").glob("*.py"))
STAGED = ("moonlet", "moonlet_student")  # their modes are stages
RUNS = [p for p in FILES if p.stem not in STAGED and not p.stem.startswith("sweep_")]
SOURCE = "--config.data.source=somewhere"


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_both_modes_can_be_used_and_a_typo_is_answered(path):
    assert f"configs/{path.name}" in path.read_text().split('"""')[1]  # the command
    for mode in ("", ":tiny"):
        config = start.check_run(read_config(f"{path}{mode}", [SOURCE]))
    assert config.steps <= 4
    with pytest.raises(InputError, match="has no key lrr in config.optim: did you mean lr"):
        read_config(str(path), ["--config.optim.lrr=1"])


@pytest.mark.parametrize("path", [p for p in FILES if p not in RUNS], ids=lambda p: p.stem)
def test_the_other_configs_are_tiny_too_or_have_stages(path):
    if path.stem in STAGED:
        with pytest.raises(InputError, match="Unknown stage 'tiny'"):
            read_config(f"{path}:tiny")
        return
    assert start.check_run(read_config(f"{path}:tiny")).steps == 3


def test_there_is_one_recipe_of_the_paper():
    """configs/paper.py is that of the students' own files, but for its batch."""
    own, pod = (
        start.check_run(read_config(str(tiny.REPOSITORY / "configs" / name), [SOURCE]))
        for name in ("lunar_s3_small_decoder.py", "paper.py:s3")
    )
    assert (pod.batch, pod.accumulate) == (256, 16)
    pod.batch, pod.accumulate = own.batch, own.accumulate
    assert pod.to_dict() == own.to_dict()
    sweep = read_config(str(tiny.REPOSITORY / "configs/paper.py:s3-sweep8"))
    rates = [trial["lr"] for trial in sweep.trials]
    assert sweep.mesh.trial == len(rates) == 8 and own.optim.lr in rates


def test_the_paper_s_recipe_in_steps():
    path = tiny.REPOSITORY / "configs/lunar_s2_dinov2.py"
    config = steps_of(start.check_run(read_config(str(path), [SOURCE])), pairs=1600)
    assert (config.steps, config.optim.warmup) == (6000, 500)  # 60 and 5 epochs of 100 steps
    assert (config.batch, config.accumulate, config.init) == (16, 4, "paper")
    assert (config.optim.lr, config.optim.final, config.optim.clip) == (3e-5, 2e-7, 1.0)
    assert (config.optim.weight_decay, config.pipeline.crop) == (0.05, "homography")


def test_the_stages_of_moonlet_can_take_each_other_up():
    path = tiny.REPOSITORY / "configs/moonlet.py"
    stages = runpy.run_path(str(path))["STAGES"]
    configs = [start.check_run(read_config(f"{path}:{stage}")) for stage in stages]
    assert [c.start_from.rpartition("/")[2] for c in configs] == ["", *stages[:-1]]
    # Another set of frozen parameters is another state, which `start_from` refuses.
    assert not any(c.optim.freeze for c in configs) and len({c.optim.kind for c in configs}) == 1


def test_the_decoder_can_be_another():
    config = read_config(
        str(tiny.REPOSITORY / "configs/lunar_slim_s.py"),
        ["--config.decoder.width=192", "--config.decoder.depth=2", "--config.decoder.heads=3"],
    )
    network = start.network_config(start.check_run(config), "slim-s")
    assert (network.decoder.width, network.decoder.depth, network.encoder.width) == (192, 2, 192)


@pytest.mark.slow
@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_three_steps(path, tmp_path):
    (trained,) = start.start(read_config(f"{path}:tiny"), tmp_path).values()
    steps = 4 if path.stem == "synthetic_demo" else 3
    assert [row["step"] for row in read_history(tmp_path)][-1] == steps
    assert ld.load(tmp_path).config == trained.config
    assert (tmp_path / "run.html").is_file() and (tmp_path / "parameters.txt").is_file()
