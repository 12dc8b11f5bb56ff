"""Two photographs in, a surface out; unrelated ones are refused."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import tiny
import trimesh
from PIL import Image
from scipy import ndimage

import lunar_distill_jax as ld
from lunar_distill_jax import cli, geometry
from lunar_distill_jax.data.images import read_depth
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.reconstruction import files, run
from lunar_distill_jax.reconstruction.overlap import Overlap, overlap
from lunar_distill_jax.report.reconstruction import write_reconstruction
from lunar_distill_jax.types import Prediction

SAMPLES = tiny.REPOSITORY.parent / "shared" / "samples" / "stereolunar"


def ground(seed: int, side: int = 420) -> np.ndarray:
    """Craters in noise, as seen from above: uint8 [side, side]."""
    rng = np.random.default_rng(seed)
    relief = sum(
        ndimage.gaussian_filter(rng.normal(size=(side, side)), s) * s for s in (1.5, 4, 10)
    )
    shaded = np.gradient(relief, axis=1)
    return np.clip(128 + 40 * shaded / shaded.std(), 0, 255).astype(np.uint8)


def photograph(seed: int, degrees=0.0, zoom=1.0, size=(240, 320), at=(210, 210)) -> np.ndarray:
    """A camera turned and zoomed over the ground: uint8 [H, W, 3]."""
    c, s = np.cos(np.radians(degrees)) / zoom, np.sin(np.radians(degrees)) / zoom
    matrix = np.array([[c, -s], [s, c]])
    offset = np.array(at) - matrix @ (np.array(size) / 2)
    grey = ndimage.affine_transform(
        ground(seed).astype(float), matrix, offset, output_shape=size, order=1, mode="mirror"
    )
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, 2)


# Overlap ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees, zoom, at", [(0, 1.0, (230, 190)), (137, 0.85, (205, 215))])
def test_views_of_one_ground_overlap_and_their_patches_meet(degrees, zoom, at):
    one, two = photograph(0), photograph(0, degrees, zoom, (320, 240), at)
    found = overlap(one, two)
    assert found.probability > 0.9 and found.agreement > 0.4
    # Where the ground of each patch is, by the way the pictures were made.
    c, s = np.cos(np.radians(degrees)) / zoom, np.sin(np.radians(degrees)) / zoom
    there = (found.pixels2[:, ::-1] - [160, 120]) @ np.array([[c, -s], [s, c]]).T + at
    here = found.pixels1[:, ::-1] - [120, 160] + 210
    # Half a pixel of the 160 that are compared is one of these; seen 1.3.
    assert np.median(np.linalg.norm(here - there, axis=1)) < 2


def test_views_of_different_ground_do_not_overlap():
    found = overlap(photograph(0), photograph(1))
    assert found.probability < 0.1 and found.patches > 20


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"the real sample frames are absent ({SAMPLES})")
def test_overlap_of_real_frames():
    scenes = {
        name: [
            np.asarray(Image.open(path).convert("RGB"))
            for path in sorted((SAMPLES / f"{name}_baseline_sample/paire1").glob("*.jpg"))[:2]
        ]
        for name in ("Nadir", "Dynamic")
    }
    assert overlap(*scenes["Dynamic"]).probability > 0.5  # turned by 119 degrees, half shared
    assert overlap(scenes["Nadir"][0], scenes["Dynamic"][1]).probability < 0.1  # seen 0.08


# Geometry -----------------------------------------------------------------------------------------


@pytest.fixture
def exact(monkeypatch, tmp_path):
    """A network that is always right about a pair whose cameras have one focal length."""
    made = tiny.plane_pair(3, size=(48, 64), holes=0)
    K = np.array([[70.0, 0, 31.5], [0, 70, 23.5], [0, 0, 1]])
    depth = [
        np.full(made.depth_m.shape[1:], 1e4) * (1 + 0.05 * np.sin(made.image[v, ..., 0] / 40))
        for v in (0, 1)
    ]
    T_cam1_cam2 = geometry.relative_pose(made.T_world_cam)
    own = [geometry.backproject(d, K) for d in depth]
    paths = []
    for view in (0, 1):
        paths.append(tmp_path / f"view{view}.png")
        Image.fromarray(made.image[view]).resize((128, 96)).save(paths[-1])

    def predict(stereo, image1, image2, turns):
        first = 0 if np.array_equal(image1, predict.frames[0]) else 1
        T = T_cam1_cam2 if first == 0 else geometry.inverse(T_cam1_cam2)
        # Of noise: no matches to speak of, so that the points alone decide.
        desc = np.random.default_rng(0).normal(size=(2, 48, 64, 8))
        ones = np.ones((48, 64))
        points = [own[first] / 1e4, geometry.transform(T, own[1 - first]) / 1e4]
        return [Prediction(p, ones + v, desc[v], ones) for v, p in enumerate(points)]

    frame = run.framing.frame

    def framed(picture, size, **kind):
        image, where = frame(picture, size, **kind)
        predict.frames = [*getattr(predict, "frames", []), image]
        return image, where

    at = np.array([[20.0, 30.0], [90.0, 60.0]])
    laid = Overlap(0.6, 0.99, 40, at, at, np.ones(2))
    monkeypatch.setattr(run, "overlap", lambda one, two: laid)  # it takes a second, and is no part
    monkeypatch.setattr(run, "_predict", predict)
    monkeypatch.setattr(run.framing, "frame", framed)
    return paths, T_cam1_cam2, depth


def test_cameras_of_exact_points_are_found(exact):
    paths, T_cam1_cam2, depth = exact
    stereo = ld.build(tiny.CONFIG)
    baseline = float(np.linalg.norm(T_cam1_cam2[:3, 3]))
    made = run.reconstruct(stereo, *paths, size=64, baseline_m=baseline)
    T = geometry.inverse(T_cam1_cam2)
    np.testing.assert_allclose(made.T_cam2_cam1[:3, :3], T[:3, :3], atol=1e-9)  # seen 2e-12
    np.testing.assert_allclose(made.T_cam2_cam1[:3, 3], T[:3, 3], atol=1e-6 * baseline)
    for view, z in zip(made.views, depth, strict=True):
        np.testing.assert_allclose(view.K[0, 0], 70, rtol=1e-6)
        # The photograph is twice the frame: f doubles, and its middle is its middle.
        np.testing.assert_allclose(view.K_photograph[0], [140, 0, 63.5], rtol=1e-6)
        np.testing.assert_allclose(view.depth, z, rtol=1e-6)
        on = view.on_photograph(view.depth)
        assert on.shape == (96, 128) and np.isfinite(on).all()
    assert made.unit == "m" and made.matches.explained < 0.2  # random descriptors
    assert "only" in made.doubt or "points explain" in made.doubt
    # Without a scale the model's unit stays; an altitude fixes it too.
    free = run.reconstruct(stereo, *paths, size=64)
    assert free.unit == "unit"
    np.testing.assert_allclose(free.T_cam2_cam1[:3, 3] * 1e4, T[:3, 3], rtol=1e-6)
    high = run.reconstruct(stereo, *paths, size=64, altitude_m=5000.0)
    plane = files.terrain(high).frame.T_local_cam1
    assert plane[2, 3] == pytest.approx(5000, rel=0.05)  # the plane of both views, not of one


def test_the_page_and_the_files_of_a_scaled_scene(exact, tmp_path):
    paths, *_ = exact
    made = run.reconstruct(ld.build(tiny.CONFIG), *paths, size=64, baseline_m=900.0)
    ground = files.terrain(made)
    out = tmp_path / "out"
    out.mkdir()
    files.write(made, ground, out)
    cloud = trimesh.load(out / "points.ply")
    np.testing.assert_allclose(
        cloud.vertices[:3072], made.views[0].points_cam1.reshape(-1, 3), 1e-5
    )
    assert (cloud.colors[:3072, :3] == made.views[0].image.reshape(-1, 3)).all()
    scene = trimesh.load(out / "surface.glb")
    mesh = scene.geometry["view1"]
    assert len(mesh.faces) == 2 * 47 * 63
    assert (mesh.face_normals[:, 2] > 0).mean() > 0.99  # faces look at the camera
    depth = read_depth(out / "depth2.exr")
    np.testing.assert_allclose(depth, made.views[1].on_photograph(made.views[1].depth), rtol=1e-6)
    facts = json.loads((out / "camera.json").read_text())
    assert facts["unit"] == "m" and facts["baseline"] == pytest.approx(900)
    header, *rows = (out / "matches.csv").read_text().splitlines()
    assert header == "x1,y1,x2,y2,conf,source" and len(rows) >= len(made.matches.conf)
    tif = Image.open(out / "dem.tif")
    np.testing.assert_array_equal(np.flipud(np.asarray(tif)), ground.height.astype(np.float32))
    assert tif.tag_v2[files.PIXEL_SCALE][0] == ground.grid.cell_m
    page = out / "report.html"
    write_reconstruction(page, made, ground, names=("a<b", "b"), facts={}, command="x <y>")
    text = page.read_text()
    assert "a&lt;b" in text and "x &lt;y&gt;" in text and "http" not in text.split("<body>")[1]


# Doubt --------------------------------------------------------------------------------------------


def answered(explained=0.9, matches=80, conf=(3.0, 3.0), overlap=0.99, exact=False):
    """A reconstruction of which only what it says about itself is real."""
    found = run.Matches(*(np.zeros((matches, 2)),) * 2, np.ones(matches), explained)
    views = tuple(
        run.View(*(None,) * 4, depth=None, conf=np.full((2, 2), value), K=None) for value in conf
    )
    laid = Overlap(0.6, overlap, 40, *(np.zeros((9, 2)),) * 2, np.ones(9))
    return run.Reconstruction(views, np.eye(4), found, laid, "m", exact)


@pytest.mark.parametrize(
    "what, message",
    [
        ({}, ""),
        ({"explained": 0.0}, "the model's points explain 0% of its 80 matches"),
        ({"explained": 0.49}, "points explain 49%"),
        ({"matches": 20}, "only 20 of the model's descriptors match"),
        ({"conf": (3.0, 1.0)}, "sure of nothing in view 2 (median confidence 1.00"),
        ({"conf": (1.05, 3.0)}, "sure of nothing in view 1"),
        ({"overlap": 0.1, "explained": 0.1}, "probability of overlap 0.10"),
        ({"overlap": 0.1, "explained": 0.1, "exact": True}, ""),
    ],
)
def test_what_the_model_contradicts_is_doubted(what, message):
    doubt = answered(**what).doubt
    assert message in doubt and bool(doubt) == bool(message)


def test_the_same_picture_twice_is_refused(tmp_path):
    picture = Image.fromarray(photograph(0))
    names = ("one.png", "copy.png", "again.jpg", "larger.png")
    for name in names[:3]:
        picture.save(tmp_path / name)
    picture.resize((640, 480)).save(tmp_path / names[3])
    stereo = ld.build(tiny.CONFIG)
    for other in names:
        with pytest.raises(InputError, match=f"{other} are the same picture"):
            run.reconstruct(stereo, tmp_path / "one.png", tmp_path / other, size=64)


@pytest.mark.parametrize("size", [(20000, 10), (10, 20000), (1, 1200)])
def test_strips_are_refused(size, tmp_path):
    Image.effect_noise(size, 60).save(tmp_path / "strip.png")
    Image.fromarray(photograph(0)).save(tmp_path / "one.png")
    with pytest.raises(InputError, match="strip.png is .* times as long as wide: cut out"):
        run.reconstruct(ld.build(tiny.CONFIG), tmp_path / "one.png", tmp_path / "strip.png")


# Command line -------------------------------------------------------------------------------------


@pytest.fixture
def portraits(tmp_path):
    """Two portrait photographs of different sizes and of different ground."""
    for i, size in enumerate([(160, 100), (200, 150)]):
        Image.fromarray(photograph(i, size=size)).save(tmp_path / f"p{i}.jpg")
    return tmp_path / "p0.jpg", tmp_path / "p1.jpg"


def test_unrelated_photographs_are_refused_unless_forced(portraits, tmp_path, capsys):
    ld.save(ld.build(tiny.CONFIG, 3), tmp_path / "tiny.safetensors")
    out = tmp_path / "out"
    command = ["reconstruct", *map(str, portraits), "--model", str(tmp_path / "tiny.safetensors")]
    command += ["--size", "64", "--out", str(out)]
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert "do not seem to show the same ground (probability of overlap 0.0" in said
    assert "Traceback" not in said and not out.exists()
    assert cli.main([*command, "--force"]) == 0
    names = {"points.ply", "surface.glb", "matches.csv", "camera.json", "dem.tif", "slope.tif"}
    names |= {f"{kind}{view}.exr" for kind in ("depth", "confidence") for view in (1, 2)}
    assert {path.name for path in out.iterdir()} == names | {"report.html"}
    # Depth lies on the photographs, which were cut to multiples of 16.
    assert read_depth(out / "depth1.exr").shape == (160, 100)
    done = capsys.readouterr()
    assert "(UNRELIABLE)\nOpen" in done.out
    assert f"do not believe pose, scale and surface of {out}: the photographs" in done.err
    facts = json.loads((out / "camera.json").read_text())
    assert not facts["reliable"] and "do not seem to show the same ground" in facts["doubt"]
    page = (out / "report.html").read_text()
    assert page.index("Do not believe pose, scale") < page.index("<figure")


@pytest.mark.parametrize(
    "change, message",
    [
        (["--size", "8"], "--size is 8: give at least 16"),
        (["--baseline", "5", "--altitude", "5"], "give one of them"),
        (["--baseline", "-5"], "The baseline is -5: give a positive number"),
        (["--focal", "0"], "The focal length is 0: give a positive number"),
        (["--focal", "1", "2", "3"], "--focal has 3 numbers"),
    ],
)
def test_wrong_numbers_are_one_sentence(portraits, tmp_path, capsys, change, message):
    assert (
        cli.main(["reconstruct", *map(str, portraits), "--out", str(tmp_path / "o"), *change]) == 2
    )
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "o").exists()


def test_a_full_folder_is_refused_before_the_work(portraits, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "reconstruct", None)
    command = ["reconstruct", *map(str, portraits), "--out", str(tmp_path)]
    assert cli.main(command) == 2
    assert f"The output folder {tmp_path} is not empty" in capsys.readouterr().err


def test_folders_are_paired_by_name(portraits, tmp_path, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    assert cli.main(["reconstruct", str(one), str(two)]) == 2
    assert "holds 0 photographs" in capsys.readouterr().err
    assert cli.main(["reconstruct", str(one), str(portraits[0])]) == 2
    assert "is a folder and" in capsys.readouterr().err


def test_fuzzed_photographs_raise_nothing_but_input_error(portraits, tmp_path):
    """Headers with random bytes: 1000 in all; a rare one still decodes."""
    rng = np.random.default_rng(0)
    kinds = {}
    for suffix in (".jpg", ".png", ".tif", ".webp", ".bmp"):
        path = tmp_path / f"good{suffix}"
        Image.open(portraits[0]).resize((40, 30)).save(path)
        kinds[suffix] = path.read_bytes()
    refused = 0
    for i in range(1000):
        suffix, data = list(kinds.items())[i % len(kinds)]
        broken = bytearray(data)
        for at in rng.integers(0, min(len(data), 200), rng.integers(1, 12)):
            broken[at] = rng.integers(256)
        path = tmp_path / f"fuzz{suffix}"
        path.write_bytes(broken[: rng.integers(8, len(broken))] if i % 3 == 0 else broken)
        try:
            run.images.read_photograph(path)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 300


# Browser ------------------------------------------------------------------------------------------

TURN = """
window.addEventListener("error", e => { document.body.dataset.errors = e.message; });
window.requestAnimationFrame = f => setTimeout(f, 16);  // virtual time brings no frames
const look = () => {
  const drawn = document.querySelector(".stage canvas"), copy = document.createElement("canvas");
  copy.width = copy.height = 64;
  copy.getContext("2d").drawImage(drawn, 0, 0, 64, 64);
  return [...new Uint32Array(copy.getContext("2d").getImageData(0, 0, 64, 64).data.buffer)];
};
setTimeout(() => {
  const before = look(), canvas = document.querySelector(".stage canvas");
  document.body.dataset.colours = new Set(before).size;
  const at = (type, x) => canvas.dispatchEvent(new PointerEvent(
    type, { pointerId: 1, clientX: x, clientY: 100, buttons: 1, bubbles: true }));
  canvas.setPointerCapture = () => {};  // no real pointer is down
  at("pointerdown", 100); at("pointermove", 220); at("pointerup", 220);
  setTimeout(() => {
    const after = look();
    document.body.dataset.changed = before.filter((p, i) => p !== after[i]).length;
  }, 1500);
}, 3000);
"""


@pytest.mark.slow
def test_a_drag_turns_the_cloud_in_a_browser(exact, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on this machine")
    paths, *_ = exact
    made = run.reconstruct(ld.build(tiny.CONFIG), *paths, size=64)
    page = tmp_path / "report.html"
    write_reconstruction(page, made, files.terrain(made), names="ab", facts={}, command="")
    page.write_text(page.read_text().replace("</body>", f"<script>{TURN}</script></body>"))
    command = [browser, "--headless", "--no-sandbox", "--use-angle=swiftshader"]
    command += ["--enable-unsafe-swiftshader", "--no-first-run", "--disable-sync", "--disable-quic"]
    command += ["--disable-background-networking", "--disable-component-update"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=9000"]
    command += ["--dump-dom", page.as_uri()]
    dom = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True).stdout
    assert "data-errors" not in dom
    assert int(re.search(r'data-colours="(\d+)"', dom)[1]) > 50
    assert int(re.search(r'data-changed="(\d+)"', dom)[1]) > 200  # of 4096 pixels
