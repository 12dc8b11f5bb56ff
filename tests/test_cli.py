"""The command line in-process: bad input is one sentence, exit code 2, and nothing half-written."""

import pathlib
import re
import shutil

import numpy as np
import OpenEXR
import pytest
import tiny
from PIL import Image

import lunar_distill_jax as ld
from lunar_distill_jax import cli
from lunar_distill_jax.data.write import write_frame, write_stereolunar
from lunar_distill_jax.train import workdir

CONFIG = """\
from lunar_distill_jax import demo

def get_config(mode="tiny"):
    config = demo.get_config(mode)
    config.teacher, config.student = {teacher!r}, "test"
    config.encoder, config.init, config.calibration = "", "inherit", 0
    config.data.update(source={data!r}, size=32, kept="")
    config.pipeline.on, config.augment = False, True
    config.loss.update(features=0.3, matching=0.0)
    return config
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "net.safetensors"
    ld.save(ld.build(tiny.CONFIG, 0), path)
    return path


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Two pairs of different geometry, on disk."""
    root = tmp_path_factory.mktemp("frames") / "moon"
    write_stereolunar([tiny.plane_pair(i) for i in range(2)], root)
    return root


@pytest.fixture
def data(frames, tmp_path):
    """A copy to damage; the frame im_00001 is view 2 of the first pair."""
    shutil.copytree(frames, tmp_path / "moon")
    return tmp_path / "moon"


@pytest.fixture
def config(model, data, tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(CONFIG.format(teacher=str(model), data=str(data)))
    return path


def refused(capsys, arguments, *messages):
    """Runs, and checks that all there is to read is one clear sentence."""
    capsys.readouterr()
    assert cli.main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.endswith("\n"), (out, err)
    assert err.startswith(f"lunar-distill {arguments[0]}: ") and "Traceback" not in err
    for message in messages:
        assert message in err, err


def tree(folder):
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


# Damaged data -------------------------------------------------------------------------------------


def remove_image(scene):
    (scene / "im_00001.jpg").unlink()


def remove_depth(scene):
    (scene / "im_00001.exr").unlink()


def remove_frame(scene):
    for path in scene.glob("im_00001.*"):
        path.unlink()


def truncate_image(scene):
    path = scene / "im_00001.jpg"
    path.write_bytes(path.read_bytes()[:400])


def drop_key(scene):
    path = scene / "im_00001.npz"
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files if key != "cam2world"}
    np.savez(path, **arrays)


def remove_camera(scene):
    (scene / "im_00001.npz").unlink()


def enlarge_view_2(scene):
    write_frame(scene / "im_00001", tiny.plane_pair(0, size=(48, 48)), 1, half_depth=True)


def enlarge_image(scene):
    with Image.open(scene / "im_00001.jpg") as image:
        image.resize((48, 48)).save(scene / "im_00001.jpg")


def blacken(scene):
    Image.new("RGB", (32, 32)).save(scene / "im_00001.jpg")


def empty_depth(scene):
    header = {"compression": OpenEXR.PIZ_COMPRESSION, "type": OpenEXR.scanlineimage}
    depth = np.full((32, 32), np.inf, np.float16)
    OpenEXR.File(header, {"Y": depth}).write(str(scene / "im_00001.exr"))


def nan_depth(scene):
    header = {"compression": OpenEXR.PIZ_COMPRESSION, "type": OpenEXR.scanlineimage}
    depth = np.full((32, 32), 1e4, np.float16)
    depth[3, 4] = np.nan
    OpenEXR.File(header, {"Y": depth}).write(str(scene / "im_00001.exr"))


def change_camera(scene, **changes):
    arrays = dict(np.load(scene / "im_00001.npz")) | changes
    np.savez(scene / "im_00001.npz", **arrays)


def wrong_K(scene):
    change_camera(scene, intrinsics=np.eye(4))


def skewed_pose(scene):
    change_camera(scene, cam2world=np.diag([1.0, 1.1, 1.0, 1.0]))


def enlarge_both_views(scene):
    for view in range(2):
        pair = tiny.plane_pair(0, size=(48, 48))
        write_frame(scene / f"im_0000{view}", pair, view, half_depth=True)


def empty_split(scene):
    path = scene.parents[1] / "split.npz"
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"pairs": arrays["pairs"][:0]})


def zip_folder(scene):
    root = scene.parents[1]
    archive = shutil.make_archive(str(root), "zip", root)
    shutil.rmtree(root)
    pathlib.Path(archive).rename(root)


DAMAGE = [
    (remove_image, "im_00001.jpg does not exist"),
    (remove_depth, "im_00001.exr does not exist"),
    (remove_frame, "im_00001 has no camera file"),
    (truncate_image, "im_00001.jpg (400 bytes) cannot be decoded"),
    (drop_key, "im_00001.npz has no key 'cam2world' (found ['intrinsics']"),
    (remove_camera, "im_00001 has no camera file"),
    (enlarge_view_2, "have different sizes (im_00000.jpg is 32x32, im_00001.jpg is 48x48"),
    (enlarge_image, "is 48x48 but its depth file im_00001.exr is 32x32"),
    (blacken, "im_00001.jpg is all black"),
    (empty_depth, "im_00001.exr has no valid pixel"),
    (nan_depth, "im_00001.exr has 1 nan of 1024 pixels"),
    (wrong_K, "im_00001.npz is float64 [4, 4], expected finite numbers [3, 3]"),
    (skewed_pose, "im_00001.npz is not a rigid pose (determinant 1.1"),
    (enlarge_both_views, "is 32x32 but {tmp}/moon/Nadir/paire1/im_00000.jpg of the same folder"),
    (empty_split, "split.npz lists no pairs (found 0 rows"),
    (zip_folder, "moon is a zip archive, expected a folder: unpack it"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[d.__name__ for d, _ in DAMAGE])
@pytest.mark.parametrize("verb", ["evaluate", "train", "cache", "init", "describe"])
def test_damaged_data(verb, damage, message, model, data, config, tmp_path, capsys):
    damage(data / "Nadir/paire1")
    before = tree(tmp_path)
    arguments = {
        "evaluate": ["--model", model, "--data", data, "--out", tmp_path / "out", "--size", "32"],
        "train": ["--config", config, "--workdir", tmp_path / "out"],
        "cache": ["--config", config, "--out", tmp_path / "out"],
        "init": ["--teacher", model, "--student", "test", "--method", "calibrated",
                 "--calibration", data, "--out", tmp_path / "out.safetensors"],
        "describe": [data, "--out", tmp_path / "out.png", "--size", "32"],
    }[verb]  # fmt: skip
    refused(capsys, [verb, *arguments], message.format(tmp=tmp_path))
    assert {k: v for k, v in tree(tmp_path).items() if "__pycache__" not in k.parts} == before


# Wrong arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "{tmp}/none"], "none does not exist: give a folder that holds"),
        (["--data", "{tmp}/experiment.py"], "experiment.py is a file"),
        (["--model", "{tmp}/none.safetensors"], "There is no model"),
        (["--model", "moonlett"], "There is no model moonlett: give the path"),
        (["--model", "mast3rr"], "There is no model mast3rr"),
        (["--model", "{tmp}/experiment.py"], "is not a complete safetensors file"),
        (["--size", "40"], "The size is 40 pixels: give a multiple of 16"),
        (["--size", "16"], "The size is 16 pixels: give a multiple of 16, 32 or more"),
        (["--data", "synthetic", "--geometries", "0"], "number of geometries is 0: give 1 or"),
        (["--data", "synthetic:mars"], "The preset is 'mars': choose from first, stereolunar"),
        (["--data", "synthetic", "--seed", "-1"], "seed of the synthetic scenes is -1"),
        (["--data", "synthetic", "--seed", "499999"], "--seed 499999 with 36 geometries"),
        (["--out", "{tmp}/experiment.py/out"], "Cannot write to the output folder"),
        (["--out", "{tmp}/experiment.py"], "Cannot write to the output folder"),
    ],
)
def test_evaluate_with_wrong_arguments(flags, message, model, data, config, tmp_path, capsys):
    before = tree(tmp_path)
    given = {"--model": model, "--data": data, "--out": tmp_path / "out", "--size": "32"}
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    given.update(zip(flags[::2], flags[1::2], strict=True))
    refused(capsys, ["evaluate", *(x for pair in given.items() for x in pair)], message)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config", "{tmp}/none.py"], "There is no config file"),
        (["--config", "{tmp}/experiment.py:huge"], "Unknown mode 'huge'"),
        (["--config.nope=1"], "experiment.py has no key nope in config: there is accumulate"),
        (["--config.optim.lrr=1"], "has no key lrr in config.optim: did you mean lr?"),
        (["--config.seed.x=1"], "has no key x in config.seed: there is none."),
        (["--config.steps=many"], "cannot be used: flag --config.steps=many: invalid literal"),
        (["--confg.steps=3"], "Cannot read '--confg.steps=3'"),
        (["--config.steps=0"], "config.steps is 0: give 1 or more"),
        (["--config.seed=-1"], "config.seed is -1: give 0 or more"),
        (["--config.teacher="], "there is no teacher to imitate: set it to 0"),
        (["--config.teacher={tmp}/none.pth"], "none.pth"),
        (["--config.student=tests"], "no architecture 'tests': did you mean 'test'?"),
        (["--config.data.size=40"], "The size is 40 pixels"),
        (["--config.data.source={tmp}/none"], "none does not exist"),
        (["--config.data.source=synthetic:mars"], "The preset is 'mars': choose from first, st"),
        (["--workdir", "{tmp}/experiment.py/out"], "Cannot write to the output folder"),
    ],
)
def test_train_with_wrong_arguments(flags, message, config, tmp_path, capsys):
    before = tree(tmp_path)
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    given = ["--config", str(config), "--workdir", str(tmp_path / "out")]
    refused(capsys, ["train", *given, *flags], message)
    assert {k: v for k, v in tree(tmp_path).items() if "__pycache__" not in k.parts} == before


def test_unknown_key_of_the_shipped_config(capsys, tmp_path):
    shipped = tiny.REPOSITORY / "configs/synthetic_demo.py"
    arguments = ["train", "--config", shipped, "--workdir", tmp_path / "out"]
    refused(capsys, [*arguments, "--config.nope=1"], "synthetic_demo.py has no key nope")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(mode=None):\n    return {}\n", "returned dict, expected a ConfigDict"),
        ("def get_config(mode=None):\n    1 / 0\n", "cannot be used: ZeroDivisionError: division"),
        ("def get_config(:\n", "cannot be used: SyntaxError: invalid syntax"),
    ],
)
def test_config_file_that_is_no_config(text, message, tmp_path, capsys):
    path = tmp_path / "wrong.py"
    path.write_text(text)
    arguments = ["train", "--config", path, "--workdir", tmp_path / "out"]
    refused(capsys, arguments, message)
    assert not (tmp_path / "out").exists()


def test_demo_into_a_folder_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(capsys, ["demo", "--workdir", tmp_path / "file/out"], "Cannot write to the output")
    assert tree(tmp_path) == {(tmp_path / "file").relative_to(tmp_path): b"mine"}


# {name} is a path in the test's folder; `files` says what lies there.
TRAIN = "train --config {experiment.py} --workdir {out}"
CACHE = "cache --config {experiment.py} --out {out}"
RECONSTRUCT = "reconstruct {one.png} {two.png} --out {out}"
INIT = "init --teacher {net} --student test --out {out.safetensors}"
EVALUATE = "evaluate --model {net} --data {moon} --size 32 --out {out}"
WRONG = [
    ("demo --workdir {file}", "Cannot write to the output folder"),
    ("demo --tiny --workdir {out} --data {none}", "none does not exist"),
    ("render --out {out} --pairs 0", "--pairs is '0': give a whole number of 1 or more"),
    ("render --out {out} --pairs many", "--pairs is 'many'"),
    ("render --out {out} --pairs 1 --size 31", "--size is '31': give a whole number of 32"),
    ("render --out {out} --pairs 1 --seed -1", "--seed is '-1'"),
    ("render --out {out} --pairs 1 --trajectory up", "--trajectory is 'up': choose nadir"),
    ("render --out {out} --pairs 1 --preset mars", "The preset is 'mars'"),
    ("render --out {out} --pairs 1 --sun 9", "--sun is '9': give presets"),
    ("render --out {out} --pairs 1 --sun 10,95", "--sun is '10,95'"),
    ("render --out {out} --pairs 1 --levels a,b", "--levels is 'a,b': give altitudes in km"),
    ("render --out {out} --pairs 1 --dem {none.tif}", "none.tif"),
    ("render --out {moon} --pairs 1", "moon is not empty: give a new one"),
    ("render --out {file}/out --pairs 1", "Cannot write to the output folder"),
    ("export moonlet-small {file}/o --format stablehlo", "Cannot write to the output folder"),
    ("export {none} {out} --format stablehlo", "There is no model"),
    ("validate {none}", "none does not exist"),
    ("validate {file}", "file is a file"),
    ("validate {empty}", "empty"),
    ("validate {moon} --report {file}/r.json", "Cannot write to the output folder"),
    ("describe {none} --out {out.png}", "none does not exist"),
    ("describe synthetic:mars --out {out.png}", "The preset is 'mars'"),
    ("describe {moon} --out {out.jpg}", "give the name of a .png file"),
    ("describe {moon} --out {file}/out.png", "Cannot write to the output folder"),
    ("describe {moon} --out {out.png} --pairs 0", "--pairs is 0: give 1 or more"),
    ("describe {moon} --out {out.png} --size 8", "--size is '8': give pixels of 16 or more"),
    ("describe {moon} --out {out.png} --lighting dark", "dark"),
    ("describe {moon} --out {out.png} --turn over", "over"),
    (INIT + " --method paper --teacher {none}", "There is no model"),
    (INIT + " --method paper --student nobody", "no architecture 'nobody'"),
    (INIT + " --method paper --student {none.json}", "Cannot read"),
    (INIT + " --method paper --student {experiment.json}", "is not JSON"),
    (INIT + " --method paper --out {out.pth}", "a weight file of ours ends in .safetensors"),
    (INIT + " --method paper --out {file}/o.safetensors", "Cannot write to the output folder"),
    (INIT + " --method paper --calibration {moon}", "the method paper reads no images"),
    (INIT + " --method paper --workdir {out}", "the method paper keeps no activations"),
    (INIT + " --method calibrated --calibration {none}", "none does not exist"),
    (CACHE + " --config {none.py}", "There is no config file"),
    (CACHE + " --config.nope=1", "has no key nope"),
    (CACHE + " --config.teacher=", "names no teacher"),
    (CACHE + " --config.teacher={none}", "There is no model"),
    (CACHE + " --config.data.source={none}", "none does not exist"),
    (CACHE + " --out {file}/out", "Cannot write to the output folder"),
    (TRAIN + " --config.workers=2", "did you mean pipeline.workers?"),
    (TRAIN + " --config.optim.beta=2", "has no key beta in config.optim"),
    (TRAIN + " --config.teacher={none}", "There is no model"),
    (TRAIN + " --config.encoder={none}", "There is no model"),
    (TRAIN + " --config.init=luck", "There is no init 'luck'"),
    (TRAIN + " --config.best_by=luck", "luck"),
    (TRAIN + " --config.start_from={none}", "none"),
    (TRAIN + " --config.pipeline.workers=many", "many"),
    (TRAIN + " --processes 2", "--processes and --process need --coordinator"),
    ("sweep --config {none.py} --workdir {out}", "There is no config file"),
    ("sweep --config {experiment.py} --workdir {out}", "get_sweep"),
    ("sweep --config {experiment.py} --workdir {out} --workers 0", "--workers is 0: give 1"),
    (EVALUATE + " --baselines luck", "There is no baseline 'luck'"),
    (EVALUATE + " --baselines none plane", "There is no baseline 'none'"),
    (EVALUATE + " --model {file}", "is not a complete safetensors file"),
    (EVALUATE + " --model s1@nobody", "no encoder 'nobody'"),
    (RECONSTRUCT + " --model {none}", "There is no model"),
    (RECONSTRUCT + " --out {moon}", "moon is not empty"),
    (RECONSTRUCT + " --baseline 0", "The baseline is 0: give a positive number"),
    (RECONSTRUCT + " --altitude nan", "The altitude is nan"),
    (RECONSTRUCT + " --size 8", "--size is 8"),
    ("reconstruct {one.png} {none.png} --out {out}", "There is no photograph"),
    ("reconstruct {one.png} {file} --out {out}", "cannot be decoded"),
    ("reconstruct {one.png} {one.png} --out {out}", "are the same picture"),
    ("reconstruct {one.png} {moving.gif} --out {out}", "is an animation of 2 pictures"),
    ("reconstruct {one.png} {strip.png} --out {out}", "times as long as wide"),
    ("reconstruct {one.png} {deep.tif} --out {out}", "holds numbers from 0 to 1000"),
    ("reconstruct {one.png} {black.png} --out {out}", "is all black"),
    ("reconstruct {one.png} {moon} --out {out}", "is a folder and"),
    ("convert {none.pth} {out.safetensors}", "none.pth"),
    ("convert {file} {out.safetensors}", "is not a complete safetensors file"),
    ("convert {net} {out.pth}", "a weight file of ours ends in .safetensors"),
    ("convert {net} {moon}", "moon exists already"),
    ("convert {net} {file}/out.safetensors", "Cannot write to the output folder"),
    ("convert s9 {out.safetensors} --encoder-weights {file}", "no architecture 's9'"),
    ("info nobody", "There is no model nobody"),
    ("info slim-s@nobody", "no encoder 'nobody'"),
    ("info moonlet --size 100", "--size is '100': expected HEIGHTxWIDTH"),
    ("info moonlet --family", "leave out moonlet"),
    ("info moonlet --list", "leave out moonlet"),
    ("info --family --plot {file}/f.png", "Cannot write to the output folder"),
]


@pytest.fixture(scope="module")
def things(model, frames, tmp_path_factory):
    """A folder with one of each thing that a command can be given, good or bad."""
    root = tmp_path_factory.mktemp("things")
    shutil.copytree(frames, root / "moon")
    shutil.copy(model, root / "net")
    (root / "empty").mkdir()
    for name in ("file", "experiment.json"):
        (root / name).write_text("this is neither a model nor a picture nor a table")
    text = CONFIG.format(teacher=str(root / "net"), data=str(root / "moon"))
    (root / "experiment.py").write_text(text)
    noise = [Image.effect_noise((64, 48), 40 + i) for i in range(2)]
    for picture, name in zip(noise, ("one.png", "two.png"), strict=True):
        picture.save(root / name)
    noise[0].save(root / "moving.gif", save_all=True, append_images=noise[1:])
    Image.effect_noise((20000, 10), 40).save(root / "strip.png")
    Image.fromarray(np.arange(1001, dtype=np.uint16)[None].repeat(90, 0)).save(root / "deep.tif")
    Image.new("L", (64, 48)).save(root / "black.png")
    return root


@pytest.mark.parametrize(("command", "message"), WRONG, ids=[command for command, _ in WRONG])
def test_wrong_input_is_one_sentence(command, message, things, capsys):
    before = {k: v for k, v in tree(things).items() if "__pycache__" not in k.parts}
    words = [re.sub(r"\{(.+?)\}", lambda m: str(things / m[1]), w) for w in command.split()]
    refused(capsys, words, message)
    assert {k: v for k, v in tree(things).items() if "__pycache__" not in k.parts} == before


def test_debug_shows_the_traceback(tmp_path):
    arguments = ["--debug", "evaluate", "--model", str(tmp_path / "none"), "--data", "synthetic"]
    with pytest.raises(ld.api.InputError, match="There is no model"):
        cli.main(arguments)


# Help ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", cli.VERBS, ids=lambda verb: verb.__name__.rpartition(".")[2])
def test_help_shows_an_example(verb, capsys):
    name = verb.__name__.rpartition(".")[2]
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "example" in text and f"\n  lunar-distill {name} " in text


@pytest.mark.parametrize("arguments", [[], ["dance"], ["demo", "--fast"], ["evaluate"]])
def test_wrong_command_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


# Order of work ------------------------------------------------------------------------------------


def finished(config, tmp_path, capsys):
    """A run of two steps that is at its end -> its command."""
    command = ["train", "--config", str(config), "--workdir", str(tmp_path / "run")]
    command += ["--config.steps=2", "--config.tensorboard=False"]
    command += ["--config.optim.multipliers=()"]
    assert cli.main(command) == 0
    capsys.readouterr()
    return command


def test_a_finished_run_says_so_before_anything_is_read(config, data, tmp_path, capsys):
    command = finished(config, tmp_path, capsys)
    before = tree(tmp_path / "run")
    shutil.rmtree(data)  # none of it is needed
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    assert f"The run in {tmp_path / 'run'} is finished: all of its 2 steps are done.\n" == err
    assert out == f"Wrote {tmp_path / 'run'}/student.safetensors\n"
    assert tree(tmp_path / "run") == before
    # Other settings are refused as early.
    refused(capsys, [*command, "--config.steps=3"], "was begun with steps = 2, and now it is 3")


def test_a_workdir_in_use_is_refused_before_anything_is_read(config, data, tmp_path, capsys):
    command = finished(config, tmp_path, capsys)
    shutil.rmtree(data)
    with workdir.locked(tmp_path / "run"):
        refused(capsys, command, "is in use by process", "wait until that run ends")
