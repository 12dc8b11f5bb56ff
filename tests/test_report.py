"""The page: self-contained, escaped, true to its numbers; its figures and its packed clouds."""

import base64
import dataclasses
import io
import json
import re
import shutil
import subprocess
import zlib

import numpy as np
import pytest
from parsed import Page
from PIL import Image

from lunar_distill_jax import geometry
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.report import Shown, cloud, curves, figures, maps, tables, write_report
from lunar_distill_jax.types import PointMaps, StereoPair

SIZE = 24


def make_scene(name="scene/one", tilt_deg=0.0, moon_centred=False) -> StereoPair:
    """A plane 30 km under camera 1, tilted about x by `tilt_deg`, seen twice.

    The world is camera 1's own or, with camera 1 looking straight down, the Moon's.
    """
    K = np.array([[30.0, 0, (SIZE - 1) / 2], [0, 30.0, (SIZE - 1) / 2], [0, 0, 1]])
    T_cam1_cam2 = np.eye(4)
    T_cam1_cam2[:3, 3] = [2000.0, 0, 0]
    T_world_cam1 = np.eye(4)
    if moon_centred:  # the camera looks down from the pole: its z axis points to the centre
        T_world_cam1[:3, :3] = np.diag([1.0, -1.0, -1.0])
        T_world_cam1[:3, 3] = [0, 0, 1_737_400 + 30_000]
    rays = geometry.pixel_rays(K, SIZE, SIZE)
    depth = 30_000 / (1 - np.tan(np.radians(tilt_deg)) * rays[..., 1])
    image = np.random.default_rng(0).integers(0, 255, (2, SIZE, SIZE, 1), np.uint8)
    return StereoPair(
        name=name,
        geometry="one",
        trajectory="nadir",
        image=np.repeat(image, 3, -1),
        depth_m=np.stack([depth, depth]).astype(np.float32),
        valid=np.ones((2, SIZE, SIZE), bool),
        K=np.stack([K, K]),
        T_world_cam=np.stack([T_world_cam1, T_world_cam1 @ T_cam1_cam2]),
    )


def without(pair: StereoPair, mask: np.ndarray) -> StereoPair:
    """`pair` with the pixels of `mask` [2, H, W] invalid."""
    return dataclasses.replace(
        pair, valid=pair.valid & ~mask, depth_m=np.where(mask, 0, pair.depth_m).astype(np.float32)
    )


def predict(pair: StereoPair, scale=0.01, noise=0.0) -> PointMaps:
    """The ground truth in another unit, with relative noise."""
    rng = np.random.default_rng(1)
    points = geometry.pointmaps_cam1(pair) * scale
    points = points * (1 + noise * rng.standard_normal(points.shape[:3]))[..., None]
    conf = 1 + rng.random(points.shape[:3])
    return PointMaps(points.astype(np.float32), conf.astype(np.float32))


def write(tmp_path, **options) -> tuple[str, Page]:
    path = tmp_path / "report.html"
    write_report(path, **{"title": "T", "lead": "L", "metrics": {}} | options)
    text = path.read_text()
    return text, Page(text)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    pair = make_scene(tilt_deg=10)
    numbers = {"abs_rel": 0.0123, "point_error_pct": 4.567, "relief_corr": -0.25, "odd_key": 7.0}
    shown = Shown(
        pair,
        {"teacher": predict(pair, noise=0.001), "student_after": predict(pair, noise=0.01)},
        {"teacher": numbers, "student_after": {"abs_rel": 0.2}},
    )
    folder = tmp_path_factory.mktemp("report")
    metrics = {"teacher": numbers, "student_after": {"abs_rel": 0.2}, "baseline_plane": numbers}
    return write(
        folder,
        title="Moon <script>alert(1)</script>",
        lead='Lead & "quotes" <b>',
        metrics=metrics,
        by_trajectory={"nadir": metrics, "<i>odd</i>": metrics},
        intervals={"teacher": {"abs_rel": (0.011, 0.0135)}},
        history=[{"step": i, "loss": 2.0 / (i + 1), "a<b": 1.0, "lr": 0.1} for i in range(50)],
        shown=[shown, Shown(make_scene("pair </script><p>"), {}, {})],
        facts={"seed": "0", "<u>": "x" * 99 + "<u>"},
        command="lunar-distill demo --workdir '<d>'",
        pictures_dir=folder / "pictures",
    ), folder


def test_page_is_self_contained(full):
    (text, page), _ = full
    assert not page.open  # every element is closed, in order
    assert page.addresses
    assert all(a.startswith(("data:", "#")) for a in page.addresses)
    assert not re.search(r"@import|url\(", text)
    assert not re.search(r"""(src|href|fetch)\s*[=(]\s*["']?https?:""", text)


def test_text_is_escaped(full):
    (text, page), _ = full
    assert page.tags.count("script") == 3  # data, cloud.js, viewer.js
    assert text.count("</script>") == 3
    assert not {"b", "u"} & set(page.tags)
    assert page.tags.count("i") == 0
    for words in (
        "Moon <script>alert(1)</script>",
        'Lead & "quotes" <b>',
        "--workdir '<d>'",
        "a<b",
    ):
        assert words in page.text
    assert "<i>odd</i>" in page.text and "pair </script><p>" in page.text


def test_table_shows_the_numbers_given(full):
    (_, page), _ = full
    for number in ("0.0123", "4.57", "−0.250", "7", "0.2000", "0.0110 to 0.0135", "oracle"):
        assert number in page.words, number
    assert "odd key" in page.words


def test_best_value_leaves_oracles_and_missing_values_out():
    metrics = {
        "a": {"abs_rel": 0.2, "relief_corr": 0.1, "conf_mean": 2.0},
        "b": {"abs_rel": 0.1, "relief_corr": float("nan"), "conf_mean": 3.0},
        "c": {"relief_corr": 0.1},
        "baseline_plane": {"abs_rel": 0.01, "relief_corr": 1.0},
    }
    assert tables.best_models(metrics, "abs_rel") == {"b"}
    assert tables.best_models(metrics, "relief_corr") == {"a", "c"}
    assert tables.best_models(metrics, "conf_mean") == set()
    assert tables.best_models({"a": {"abs_rel": 0.1}}, "abs_rel") == set()


def test_pictures_are_exported(full):
    _, folder = full
    names = {p.name for p in (folder / "pictures").iterdir()}
    assert "pair1_view1_depth_teacher.png" in names and "pair2_view2_photo.png" in names
    assert not any(name.startswith(".") for name in names)


@pytest.mark.parametrize("options", [{}, {"metrics": {"model": {"abs_rel": float("nan")}}}])
def test_page_without_training_or_pairs(tmp_path, options):
    _, page = write(tmp_path, **options)
    assert "svg" not in page.tags and "canvas" not in page.tags


def test_one_model_and_no_valid_pixels(tmp_path):
    pair = make_scene()
    blind = without(pair, np.ones_like(pair.valid))
    nan = PointMaps(
        np.full((2, SIZE, SIZE, 3), np.nan, np.float32), np.full((2, SIZE, SIZE), np.nan)
    )
    shown = [
        Shown(pair, {"model": predict(pair)}, {"model": {"abs_rel": float("inf")}}),
        Shown(blind, {"model": predict(pair)}, {"model": {}}),
        Shown(pair, {"model": nan}, {}),
    ]
    text, page = write(tmp_path, metrics={"model": {"abs_rel": 0.1}}, shown=shown)
    assert page.tags.count("section") == 1 + 1 + 3  # results, viewer, pairs
    assert "NaN" not in text.split('id="cloud-data">')[1].split("</script>")[0]


def test_failure_leaves_nothing_behind(tmp_path):
    pair = make_scene()
    with pytest.raises(ValueError):
        wrong = PointMaps(np.zeros((2, 3, 3, 3), np.float32), np.ones((2, 3, 3), np.float32))
        write(tmp_path, shown=[Shown(pair, {"model": wrong}, {})], pictures_dir=tmp_path / "p")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        write_report(tmp_path / "file" / "report.html", title="", lead="", metrics={})


def test_paint_has_the_size_of_the_map_and_masks_what_is_not_known():
    values = np.linspace(0, 10, 15).reshape(3, 5)
    values[1, 2] = np.nan
    values[0, 0], values[2, 4] = -99, 99  # clipped to the ends
    scale = figures.Scale("m", "cividis", 0.0, 10.0)
    picture = Image.open(io.BytesIO(figures.paint(values, scale, "title")))
    assert picture.size == (5, 3)
    assert picture.info["Scale"] == "cividis, 0 to 10 m"
    rgba = np.asarray(picture.convert("RGBA"))
    assert (rgba[..., 3] == np.where(np.isfinite(values), 255, 0)).all()
    assert (rgba[0, 0, :3] == figures.palette("cividis")[0]).all()
    assert (rgba[2, 4, :3] == figures.palette("cividis")[-1]).all()


def test_scale_in_other_units_and_logarithmic():
    km = figures.Scale("km", "cividis", 20.0, 40.0, factor=1e-3)
    assert km.fraction(np.array([20e3, 30e3, 50e3])).tolist() == [0, 0.5, 1]
    log = figures.Scale("%", "magma", 0.1, 10.0, log=True)
    assert log.ticks == pytest.approx((0.1, 1, 10))
    assert log.fraction(np.array([0.0, 1.0])).tolist() == pytest.approx([0, 0.5])


def test_slope_of_a_tilted_plane_is_its_tilt():
    pair = make_scene(tilt_deg=12, moon_centred=True)
    truth, _ = maps.surfaces(pair, {})
    # Over 12 km from the axis the vertical of the Moon turns by at most 0.6 degrees.
    np.testing.assert_allclose(truth.slope_deg[0], 12, atol=0.6)
    level, _ = maps.surfaces(make_scene(tilt_deg=12), {})
    np.testing.assert_allclose(level.slope_deg[0], 0, atol=2.0)  # the plane is the vertical's


def test_alignment_takes_out_the_scale_and_error_is_in_percent_of_depth():
    pair = make_scene(tilt_deg=10)
    _, models = maps.surfaces(pair, {"exact": predict(pair, scale=0.003)})
    assert models["exact"].error_pct.max() < 1e-3
    np.testing.assert_allclose(models["exact"].depth_m, pair.depth_m, rtol=1e-5)
    moved = geometry.pointmaps_cam1(pair)
    moved[0, 0, 0] *= 1.05  # 5 % along its ray
    _, models = maps.surfaces(pair, {"m": PointMaps(moved, np.ones((2, SIZE, SIZE)))})
    ray = geometry.pixel_rays(pair.K[0], SIZE, SIZE)[0, 0]
    assert models["m"].error_pct[0, 0, 0] == pytest.approx(5 * np.linalg.norm(ray), rel=1e-4)


def test_thinning_keeps_the_geometry():
    pair = make_scene(tilt_deg=10)
    small, _ = maps.thin(pair, {}, 10)
    assert small.depth_m.shape == (2, 8, 8)
    np.testing.assert_allclose(
        geometry.pointmaps_cam1(small), geometry.pointmaps_cam1(pair)[:, ::3, ::3], rtol=1e-9
    )


def unpack(source: dict, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """What assets/cloud.js does: (points [2, H, W, 3] in km, conf [2, H, W])."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(source["data"])), np.uint8)
    planes = raw.reshape(7, 2, height, width).astype(np.int64)
    code = planes[1::2] + 256 * planes[2::2]
    q = ((code >> 1) ^ -(code & 1)).cumsum(2).cumsum(3) % 65536
    return np.moveaxis(q, 0, -1) * source["step"] + source["lo"], planes[0]


def test_packing_round_trip_within_half_a_quantum():
    rng = np.random.default_rng(3)
    points = rng.normal(size=(2, 7, 9, 3)) * [20, 5, 0.1]
    conf = rng.integers(0, 256, (2, 7, 9)).astype(np.uint8)
    packed = json.loads(json.dumps(cloud.pack(points, conf)))
    found, found_conf = unpack(packed, 7, 9)
    assert (found_conf == conf).all()
    error = np.abs(found - points)[conf > 0] / packed["step"]
    assert error.max() <= 0.5 + 1e-6


def test_clouds_on_the_page_stand_on_the_terrain(full):
    (text, _), _ = full
    data = json.loads(re.search(r'id="cloud-data">(.*?)</script>', text, re.S)[1])
    first = data["pairs"][0]
    points, conf = unpack(first["sources"]["ground_truth"], SIZE, SIZE)
    assert (conf == 255).all()
    assert np.ptp(points[0, ..., 2]) < 0.01  # a plane has no height above itself, km
    assert points[..., :2].mean((0, 1, 2)) == pytest.approx([0, 0], abs=1e-3)
    assert np.ptp(points[0, ..., 0]) == pytest.approx(23, rel=0.2)  # 23 px of 1 km, tilted
    assert set(first["sources"]) == {"ground_truth", "teacher", "student_after"}


def test_loss_curves_are_logarithmic_only_above_zero():
    assert curves.loss_curves([]) == ""
    assert curves.loss_curves([{"step": 1, "lr": 0.1}]) == ""
    rows = [{"step": i, "loss": 10.0 ** (-i / 20)} for i in range(60)]
    assert "logarithmic" in curves.loss_curves(rows)
    assert ">0.01</text>" in curves.loss_curves(rows)
    below = [{"step": i, "loss": 1.0 - i} for i in range(5)]
    assert "logarithmic" not in curves.loss_curves(below)
    assert "<polyline" in curves.loss_curves([{"step": 3, "loss": 1.0}])
    counted = [{**row, "lr": 1e-3, "skipped": 0} for row in rows]
    assert curves.loss_curves(counted) == curves.loss_curves(rows)
    assert "nan" not in curves.loss_curves([*rows, {"step": 60, "loss": float("nan")}])


COUNT_COLOURS = """
setInterval(() => {
  const drawn = document.querySelector(".stage canvas"), copy = document.createElement("canvas");
  copy.width = copy.height = 200;
  copy.getContext("2d").drawImage(drawn, 0, 0, 200, 200);
  const pixels = new Uint32Array(copy.getContext("2d").getImageData(0, 0, 200, 200).data.buffer);
  document.body.dataset.colours = new Set(pixels).size;
}, 500);
"""


@pytest.mark.slow
def test_a_browser_draws_the_cloud(full, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on this machine")
    (text, _), _ = full
    page = tmp_path / "report.html"
    page.write_text(text.replace("</body>", f"<script>{COUNT_COLOURS}</script></body>"))
    command = [browser, "--headless", "--no-sandbox", "--use-angle=swiftshader"]
    command += ["--enable-unsafe-swiftshader", "--no-first-run", "--disable-sync", "--disable-quic"]
    command += ["--disable-background-networking", "--disable-component-update"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000"]
    command += ["--dump-dom", page.as_uri()]
    dom = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True).stdout
    assert re.search(r'class="stills" hidden', dom)  # WebGL works, so the still pictures have gone
    assert int(re.search(r'data-colours="(\d+)"', dom)[1]) > 50
