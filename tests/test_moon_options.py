"""What the Moon's options do, each against a formula or a count; no scene is rendered here."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lunar_distill_jax import moon
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.moon import (
    cameras,
    craters,
    dem,
    morphology,
    options,
    photometry,
    placement,
    shadows,
    terrain,
)

RNG = np.random.default_rng


def test_neukum_s_production_function():
    """Neukum et al. 2001: N(>1 km) = 8.38e-4 T + ... per km^2; table 1's polynomial at 1 km."""
    assert morphology.production(1.0, 1.0) == pytest.approx(8.38e-4, rel=1e-2)
    assert morphology.production(1.0, 3.8) == pytest.approx(
        5.44e-14 * np.exp(6.93 * 3.8) + 8.38e-4 * 3.8, rel=1e-6
    )
    sizes = np.geomspace(0.02, 200, 40)
    counts = [morphology.production(d, 3.5) for d in sizes]
    slopes = np.diff(np.log(counts)) / np.diff(np.log(sizes))
    assert (slopes < -1).all() and slopes.min() > -4.5  # steep below 1 km, flat at tens of km
    assert slopes[np.searchsorted(sizes, 0.3)] < -3 and -1.8 < slopes[np.searchsorted(sizes, 10)]


def test_young_surfaces_have_fewer_craters():
    young, old = (
        np.mean(
            [craters.draw_counts(RNG(s), 384, 0.05, options.Ground(age_ga=age)) for s in range(20)],
            0,
        )
        for age in (1.0, 3.9)
    )
    plain = np.mean([craters.draw_counts(RNG(s), 384, 0.05) for s in range(20)], 0)
    # Large ones are rare on a young surface; the smallest are in equilibrium on any.
    assert young[0] < 0.05 * plain[0] + 0.5 and young.sum() < old.sum()
    assert old[-1] == pytest.approx(plain[-1], rel=0.1)


def test_ragged_rims():
    x = np.linspace(-3, 3, 61)
    round_ = morphology.ragged(x[:, None], x[None], jnp.zeros(4))
    np.testing.assert_allclose(round_, x[:, None] ** 2 + x[None] ** 2, atol=1e-5)
    oval = morphology.ragged(x[:, None], x[None], jnp.array([0.2, 0, 0, 0]))
    assert oval[30, 40] == pytest.approx(1.2, rel=1e-5)  # along x the rim is nearer
    assert oval[40, 30] == pytest.approx(0.8, rel=1e-5)


def test_filled_floors_are_flat_and_walls_untouched():
    depth = -np.linspace(0, 1, 101)
    filled = np.asarray(morphology.fill(jnp.asarray(depth), jnp.float32(-0.6), jnp.float32(0.1)))
    np.testing.assert_allclose(filled[:49], depth[:49], atol=1e-6)
    np.testing.assert_allclose(filled[72:], -0.6, atol=1e-6)
    assert (np.diff(filled) <= 1e-6).all()
    none = morphology.fill(jnp.asarray(depth), jnp.float32(-2), jnp.float32(0.25))
    np.testing.assert_array_equal(none, depth.astype(np.float32))


def stamped(diameter_km, ground, cell=0.1, n=256):
    """One young giant in the middle of a plain: its profile along a row, in km."""
    giants = np.zeros((morphology.GIANTS, 3), np.float32)
    giants[0] = n / 2, n / 2, diameter_km / cell
    add = jax.jit(craters.add_giants, static_argnames="ground")
    heights = add(jnp.zeros((n, n)), jax.random.key(0), giants, cell, ground=ground)
    return np.asarray(heights)[n // 2]


def test_complex_craters_have_floors_and_peaks():
    plain = options.Ground(giants=1.0)
    bowl = stamped(20.0, plain)
    flat = stamped(20.0, dataclasses.replace(plain, complex_shapes=True))
    middle = 128
    assert bowl.argmin() == pytest.approx(middle, abs=3)
    # A peak stands in the middle of a floor that is higher than the bowl.
    assert flat[middle] > flat[middle - 35] + 0.1 and flat.min() > bowl.min() + 0.1
    assert np.ptp(flat[middle - 40 : middle - 30]) < 0.05
    np.testing.assert_allclose(flat[:20], bowl[:20], atol=1e-3)  # the rim's flank is the same
    # Pike 1977: 1.044 D^0.301 = 2.57 km from rim to floor when fresh; this one is a little worn.
    assert 0.5 < flat.max() - flat.min() < 2.6


def test_giants_follow_hartmann():
    """N(>D) = 10^-1.14 D^-1.83 per km^2, counted where every centre is on a huge grid."""
    n, cell, least = 4000, 0.05, 100
    found = np.concatenate(
        [morphology.draw_giants(RNG(s), n, cell, least, 1.0) for s in range(240)]
    )
    found = found[found[:, 2] > 0]
    on = ((found[:, :2] >= 0) & (found[:, :2] < n)).all(1)
    area = 240 * (n * cell) ** 2
    for low, high in ((60.0, 120.0), (120.0, 400.0)):  # km; the smaller ones are cut by GIANTS
        expected = area * 10**-1.14 * (low**-1.83 - high**-1.83)
        counted = (on & (found[:, 2] * cell > low) & (found[:, 2] * cell <= high)).sum()
        assert counted == pytest.approx(expected, rel=0.25)  # 280 and 100 expected
    assert (morphology.draw_giants(RNG(0), n, cell, least, 0.0) == 0).all()


def test_secondaries_lie_in_clusters():
    row, column = jax.random.uniform(jax.random.key(1), (2, 4000)) * 512
    small = jnp.arange(4000) % 2 == 0

    def clumped(row, column):
        """Variance over mean of counts in squares: 1 where places are independent."""
        counts = np.histogram2d(np.asarray(row), np.asarray(column), 16, [[0, 512]] * 2)[0]
        return counts.var() / counts.mean()

    r, c, moved = morphology.cluster(jax.random.key(0), row, column, 512, small, 0.4)
    assert clumped(row, column) < 1.5 and clumped(r[moved], c[moved]) > 3
    assert np.asarray(moved)[1::2].sum() == 0 and 0.35 < np.asarray(moved)[::2].mean() < 0.45
    np.testing.assert_array_equal(r[~moved], row[~moved])


def test_boulders_follow_their_law_and_stand_on_the_ground():
    found = morphology.draw_boulders(RNG(0), 400, 0.0008, 4000.0)  # cells of 0.8 m
    size_m = found[found[:, 2] > 0, 2] * 0.8
    assert size_m.min() >= 2.0
    expected = 4000 * (0.8 * 400 / 1e3) ** 2
    assert len(size_m) == pytest.approx(expected, rel=0.15)
    assert (size_m > 4).mean() == pytest.approx(2**-3.2, rel=0.3)
    heights = np.asarray(
        jax.jit(morphology.add_boulders)(jnp.zeros((400, 400)), found[:, :3], 8e-4)
    )
    assert heights.max() == pytest.approx(0.5 * size_m.max() / 1e3, rel=0.05)
    assert heights.min() == 0
    assert not morphology.draw_boulders(RNG(0), 400, 0.05, 4000.0).any()  # none shows from 30 km


def test_exact_sphere():
    """The drop below the tangent plane, and that it loses no metres in float32."""
    n, cell = 65, 6.0
    x = -192 + 6.0 * np.arange(n)
    r2 = x[None] ** 2 + x[:, None] ** 2
    truth = terrain.MOON_RADIUS_KM - np.sqrt(terrain.MOON_RADIUS_KM**2 - r2)
    exact = terrain.sphere_drop(n, cell, -192.0, -192.0, exact=True)
    np.testing.assert_allclose(exact, truth, rtol=3e-7, atol=1e-7)
    paraboloid = np.asarray(terrain.sphere_drop(n, cell, -192.0, -192.0))
    assert 0.1 < np.abs(paraboloid - truth).max() < 0.2  # km, at 270 km from the middle


# Light and sensor ---------------------------------------------------------------------------------


def test_photometric_laws():
    mu0, mu = jnp.float32(0.4), jnp.float32(0.7)
    assert photometry.lambert(mu0, mu, 0.3) == mu0 and photometry.lambert(mu0, -mu, 0.3) == 0
    # At full Moon McEwen's law is Lommel-Seeliger's.
    assert photometry.mcewen(mu0, mu, jnp.float32(0)) == pytest.approx(
        float(2 * mu0 / (mu0 + mu)), rel=1e-6
    )
    # Hapke by hand at 60 degrees.
    g = np.deg2rad(60)
    surge = 0.12 / (1 + np.tan(g / 2) / 0.126)
    p = (1 - 0.247**2) / (1 - 2 * 0.247 * np.cos(g) + 0.247**2) ** 1.5
    many = [(1 + 2 * m) / (1 + 2 * m * np.sqrt(1 - 0.162)) for m in (0.4, 0.7)]
    value = 0.4 / 1.1 * ((1 + surge) * p + many[0] * many[1] - 1)
    assert photometry.hapke(mu0, mu, jnp.float32(g)) == pytest.approx(value, rel=1e-5)
    for law in photometry.LAWS.values():
        assert law(-mu0, mu, jnp.float32(1)) == 0
        phases = jnp.linspace(0.05, 2, 30)
        bright = law(jnp.full(30, 0.4), jnp.full(30, 0.7), phases)
        assert (jnp.diff(bright) <= 0).all()  # dimmer away from full Moon


def test_the_sun_s_disc_softens_shadows_with_distance():
    """Behind a wall of height h the penumbra is as wide as the disc projected along its shadow."""
    n, cell = 256, 0.01
    heights = jnp.where(jnp.arange(n) < 8, 0.1, 0.0)[None].repeat(n, 0)  # a wall of 100 m, west
    sun = jnp.asarray(photometry.sun_direction(270.0, 5.0), jnp.float32)
    point = np.asarray(jax.jit(shadows.lit_fraction)(heights, cell, sun))[n // 2]
    disc = jax.jit(shadows.lit_by_disc, static_argnames="radius_deg")
    soft = np.asarray(disc(heights, cell, sun, radius_deg=0.5))[n // 2]
    edge = 8 + 0.1 / np.tan(np.deg2rad(5.0)) / cell  # 122
    assert abs(int(np.argmax(point[10:] > 0.5)) + 10 - edge) < 3
    ends = [8 + 0.1 / np.tan(np.deg2rad(5.0 + d)) / cell for d in (0.5, -0.5)]  # 112, 135
    assert (soft[20 : int(ends[0]) - 2] < 0.01).all() and (
        soft[int(ends[1]) + 3 : 200] > 0.99
    ).all()
    middle = soft[int(ends[0]) + 2 : int(ends[1]) - 2]
    assert (np.diff(middle) >= -1e-6).all() and 0.3 < np.interp(edge, np.arange(n), soft) < 0.7


def test_sensor():
    radiance = jnp.asarray(RNG(0).uniform(0.2, 1.0, (2, 64, 64)), jnp.float32)
    expose = jax.jit(photometry.expose, static_argnames="sensor")
    stretched = expose(radiance, options.Sensor(), None)
    assert stretched.min() == 0 and stretched.max() == 255
    flat = jnp.full((1, 64, 64), 0.5).at[0, :4].set(1.0)
    noisy = options.Sensor(exposure="percentile", full_well=10_000, read_noise=15)
    grey = np.asarray(expose(flat, noisy, jax.random.key(0)))[0, 8:].astype(float)
    # 255 is a full well of 10 000 electrons, so the plain holds 5000: sqrt(5000 + 15^2) / 39.2.
    assert grey.mean() == pytest.approx(127, abs=0.2)
    assert grey.std() == pytest.approx(np.hypot(1.84, 0.29), rel=0.05)
    again = np.asarray(expose(flat, noisy, jax.random.key(0)))[0, 8:]
    np.testing.assert_array_equal(again, grey)
    sharp, soft = (
        np.asarray(expose(radiance, options.Sensor(psf_px=p), None)).astype(float)
        for p in (0.3, 1.5)
    )
    assert np.abs(np.diff(sharp)).mean() > 2 * np.abs(np.diff(soft)).mean()


def test_albedo_has_the_spread_asked_for():
    field = np.asarray(
        jax.jit(terrain.reflectance, static_argnums=1)(jax.random.key(0), 128, 0.1, 0.05)
    )
    assert np.log(field).std() == pytest.approx(0.05, rel=1e-3)
    assert abs(np.diff(field)).mean() < 0.2 * field.std()  # in patches, not pixels


# Flight -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trajectory", ["nadir", "oblique", "dynamic"])
def test_levels_are_altitudes(trajectory):
    for levels in ((0.5,), (200.0,)):
        drawn = [cameras.draw_cameras(RNG(s), trajectory, levels) for s in range(12)]
        altitudes = np.array([p.centre[:, 2] for p in drawn if p is not None])
        assert len(altitudes) > 2
        assert altitudes.min() > 0.7 * levels[0] - 0.01
        assert altitudes.max() < 1.3 * (levels[0] + 0.5)


def test_a_moved_pair_stays_over_the_ground():
    heights = RNG(0).uniform(-1, 1, (64, 64))
    over = next(p for s in range(9) if (p := cameras.draw_cameras(RNG(s), "nadir", (30.5,))))
    for s in range(20):
        drawn = cameras.draw_cameras(RNG(s), "oblique", (9.5,))
        if drawn is None or drawn.side > over.side:
            continue
        moved = cameras.move_over(drawn, over, heights, RNG(s))
        assert moved.x0 >= over.x0 - 1e-9 and moved.x0 + moved.side <= over.x0 + over.side + 1e-9
        assert moved.y0 >= over.y0 - 1e-9 and moved.y0 + moved.side <= over.y0 + over.side + 1e-9
        # Seen from each other, the cameras are as before.
        for p in (drawn, moved):
            assert np.linalg.det(p.rotation[0]) == pytest.approx(1)
        np.testing.assert_allclose(
            drawn.rotation[0].T @ (drawn.centre[1] - drawn.centre[0]),
            moved.rotation[0].T @ (moved.centre[1] - moved.centre[0]),
            atol=1e-9,
        )


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: moon.preset("mars"), "preset is 'mars': choose from first, stereolunar, physical"),
        (lambda: options.Ground(filled=2), "ground.filled is 2: give 0 to 1"),
        (lambda: options.Ground(giants=-1), "ground.giants is -1: give 0 or more"),
        (lambda: options.Ground(sphere="flat"), "ground.sphere is 'flat'"),
        (lambda: options.Ground(age_ga=9), "ground.age_ga is 9"),
        (lambda: options.Light(photometry="phong"), "light.photometry is 'phong'"),
        (lambda: options.Sensor(exposure="auto"), "sensor.exposure is 'auto'"),
        (lambda: options.Moon(levels_km=(0.0,)), "moon.levels_km is"),
    ],
)
def test_wrong_options_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


# Real ground --------------------------------------------------------------------------------------


def hills(directions):
    """Metres over the sphere, a smooth function of the direction [P, 3] from the Moon's centre."""
    return 800 * np.sin(400 * directions[:, 0]) * np.cos(300 * directions[:, 1])


def plane_dem(path, n=500, cell=60.0):
    y, x = (np.mgrid[:n, :n] - (n - 1) / 2) * cell
    down = np.full_like(x, -1e3 * terrain.MOON_RADIUS_KM)
    directions = np.stack([x, y, down], -1).reshape(-1, 3)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    np.savez(path, heights=hills(directions).reshape(n, n).astype(np.float32), cell=cell)


def polar_hills(n, cell):
    """The same hills in polar stereographic projection: half metres as LOLA has them, int16."""
    radius = 1e3 * terrain.MOON_RADIUS_KM
    column, row = np.meshgrid(np.arange(n), np.arange(n))
    x, y = (column + 0.5 - n / 2) * cell, (n / 2 - row - 0.5) * cell
    angle, lon = 2 * np.arctan(np.hypot(x, y) / 2 / radius), np.arctan2(x, y)
    directions = np.stack(
        [np.sin(angle) * np.cos(lon), np.sin(angle) * np.sin(lon), -np.cos(angle)], -1
    )
    return np.round(2 * hills(directions.reshape(-1, 3)).reshape(n, n)).astype("int16")


def geotiff_dem(path, n=500, cell=60.0):
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed (extra dem)")
    radius = 1e3 * terrain.MOON_RADIUS_KM
    crs = rasterio.crs.CRS.from_proj4(f"+proj=stere +lat_0=-90 +k=1 +R={radius} +units=m +no_defs")
    profile = dict(
        driver="GTiff", width=n, height=n, count=1, dtype="int16", crs=crs, nodata=-32768
    )
    transform = rasterio.transform.from_origin(-n * cell / 2, n * cell / 2, cell, cell)
    with rasterio.open(path, "w", transform=transform, **profile) as file:
        file.write(polar_hills(n, cell), 1)
        file.scales, file.offsets = (0.5,), (radius,)


LOLA_LABEL = """\
PDS_VERSION_ID = PDS3
RECORD_TYPE = FIXED_LENGTH
RECORD_BYTES = {bytes}
FILE_RECORDS = {n}
^IMAGE = "{image}"
OBJECT = IMAGE
  LINES = {n}
  LINE_SAMPLES = {n}
  SAMPLE_TYPE = LSB_INTEGER
  SAMPLE_BITS = 16
  UNIT = METER
  SCALING_FACTOR = 0.5
  OFFSET = 1737400.
  MISSING_CONSTANT = -32768
END_OBJECT = IMAGE
OBJECT = IMAGE_MAP_PROJECTION
  MAP_PROJECTION_TYPE = "POLAR STEREOGRAPHIC"
  A_AXIS_RADIUS = 1737.4 <KM>
  B_AXIS_RADIUS = 1737.4 <KM>
  C_AXIS_RADIUS = 1737.4 <KM>
  CENTER_LATITUDE = -90.0 <DEG>
  CENTER_LONGITUDE = 0.0 <DEG>
  MAP_SCALE = {cell} <M/PIXEL>
  LINE_PROJECTION_OFFSET = {middle}
  SAMPLE_PROJECTION_OFFSET = {middle}
END_OBJECT = IMAGE_MAP_PROJECTION
END
"""


def pds_dem(path, n=500, cell=60.0):
    """A detached PDS3 label over raw samples, as LOLA's gridded products come."""
    pytest.importorskip("rasterio", reason="rasterio is not installed (extra dem)")
    image = path.with_suffix(".img")
    polar_hills(n, cell).astype("<i2").tofile(image)
    fields = dict(bytes=2 * n, n=n, image=image.name, cell=cell, middle=n / 2 - 0.5)
    path.write_text(LOLA_LABEL.format(**fields).replace("\n", "\r\n"))


@pytest.mark.parametrize(
    "make, name",
    [(plane_dem, "hills.npz"), (geotiff_dem, "hills.tif"), (pds_dem, "hills.lbl")],
)
def test_dem_is_sampled_where_it_lies_on_the_moon(tmp_path, make, name):
    """Every sample of a grid anywhere on the DEM lies on the hills, to a part of the DEM's cell."""
    make(tmp_path / name)
    ground = dem.read_dem(tmp_path / name)
    assert ground.cell_m == pytest.approx(60, rel=1e-3)
    for row, column, heading in ((250, 250, 0.3), (180, 330, 2.0)):
        T = placement.place_at(ground.to_moon(row, column), heading)
        heights = dem.sample_heights(ground, T, 40, 0.2, -4.0, -3.5)
        x, y = np.meshgrid(-4.0 + 0.2 * np.arange(40), -3.5 + 0.2 * np.arange(40))
        points = 1e3 * np.stack([x, y, heights], -1).reshape(-1, 3) @ T[:3, :3].T + T[:3, 3]
        length = np.linalg.norm(points, axis=1)
        error = length - 1e3 * terrain.MOON_RADIUS_KM - hills(points / length[:, None])
        # Bilinear between samples of hills of 11 km: 0.3 m, and steps of half a metre.
        assert np.abs(error).max() < 0.6 and abs(error.mean()) < 0.1
        np.testing.assert_allclose(
            ground.to_map(ground.to_moon(row, column)[None])[0], [row, column], atol=1e-4
        )
    far = placement.place_at(ground.to_moon(250, 250), 0.0)
    assert np.isnan(dem.sample_heights(ground, far, 40, 2.0, -40.0, -40.0)).any()


def test_dems_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="DEM .*no.tif does not exist"):
        dem.read_dem(tmp_path / "no.tif")
    np.savez(tmp_path / "a.npz", heights=np.zeros((20, 20)))
    with pytest.raises(InputError, match="not a readable npz of `heights` and `cell`"):
        dem.read_dem(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", heights=np.zeros((20, 20)), cell=-3)
    with pytest.raises(InputError, match="cell of -3.0 m"):
        dem.read_dem(tmp_path / "b.npz")
    (tmp_path / "c.tif").write_text("no")
    with pytest.raises(InputError, match="needs rasterio|cannot be read"):
        dem.read_dem(tmp_path / "c.tif")
    np.savez(tmp_path / "d.npz", heights=np.zeros((20, 20)), cell=10)
    with pytest.raises(InputError, match="No nadir frame fits on the DEM d .*0.2 km wide"):
        dem.make_dem_scene(dem.read_dem(tmp_path / "d.npz"), 0, "nadir", 64)
