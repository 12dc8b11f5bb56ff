"""The command line in-process: bad input is one sentence, exit code 2, and nothing half-written."""

import pathlib
import shutil

import numpy as np
import OpenEXR
import pytest
import tiny
from PIL import Image

import lunar_distill_jax as ld
from lunar_distill_jax import cli
from lunar_distill_jax.data.write import write_frame, write_stereolunar

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
