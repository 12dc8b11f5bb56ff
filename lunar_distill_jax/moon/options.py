"""What kind of Moon: its ground, its light, its sensor, who flies over it; and three presets.

`FIRST` is the Moon that the embedded teacher was trained on; it never changes. `STEREOLUNAR` is
tuned to measure like StereoLunar's frames, `PHYSICAL` is the same ground under a finite sun with
cast shadows, Hapke's photometry and a sensor that counts electrons.
"""

from __future__ import annotations

import dataclasses

from lunar_distill_jax.errors import InputError


def _choose(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{name} is {value!r}: choose from {', '.join(known)}.")


def _between(name: str, value: float, least: float, most: float | None) -> None:
    if not (least <= value and (most is None or value <= most)):
        limit = f"{least} or more" if most is None else f"{least} to {most}"
        raise InputError(f"{name} is {value}: give {limit}.")


@dataclasses.dataclass(frozen=True)
class Ground:
    """Terrain. Slopes are bidirectional RMS rises per run.

    relief_slope, texture_slope: of the fractal relief at 500 m, and of the fine texture cell to
                    cell (`terrain.fractal`)
    density:        crater count relative to Trask's equilibrium (`craters.expected_count`)
    age_ga:         the craters of a surface of this age (Neukum's production function), where they
                    are fewer than in equilibrium; None: equilibrium
    giants:         craters too large for a stamp, up to three times the side of the grid, at
                    `giants` times Hartmann's saturation; 0: none
    irregular:      how far rims depart from circles, RMS of each harmonic, relative
    filled:         share of the craters above 1 km whose floor is flat with debris
    complex_shapes: flat floors and central peaks above 15 km (Pike 1977)
    secondaries:    share of the craters below 1 km that lie in chains and clusters
    boulders:       boulders of 2 m and more per km^2, N(>D) ~ D^-3.2; shown from two cells on
    sphere:         "paraboloid", or "exact": for frames hundreds of kilometres wide
    """

    relief_slope: float = 0.145
    texture_slope: float = 0.048
    density: float = 1.7
    age_ga: float | None = None
    giants: float = 0.0
    irregular: float = 0.0
    filled: float = 0.0
    complex_shapes: bool = False
    secondaries: float = 0.0
    boulders: float = 0.0
    sphere: str = "paraboloid"

    def __post_init__(self):
        _choose("ground.sphere", self.sphere, ("paraboloid", "exact"))
        _between("ground.filled", self.filled, 0, 1)
        _between("ground.secondaries", self.secondaries, 0, 1)
        _between("ground.irregular", self.irregular, 0, 0.15)
        for name in ("relief_slope", "texture_slope", "density", "giants", "boulders"):
            _between(f"ground.{name}", getattr(self, name), 0, None)
        if self.age_ga is not None:
            _between("ground.age_ga", self.age_ga, 0, 4.5)


@dataclasses.dataclass(frozen=True)
class Light:
    """photometry: "lommel-seeliger", "hapke", "mcewen" or "lambert" (`photometry`)
    cast_shadows:  StereoLunar has none
    sun_radius_deg: 0: a point; 0.267: the true sun, whose penumbra grows with distance
    albedo:         spread of the ground's reflectance (log-normal, patches of kilometres); 0: one
    """

    photometry: str = "lommel-seeliger"
    cast_shadows: bool = False
    sun_radius_deg: float = 0.0
    albedo: float = 0.0

    def __post_init__(self):
        known = ("lommel-seeliger", "hapke", "mcewen", "lambert")
        _choose("light.photometry", self.photometry, known)
        _between("light.sun_radius_deg", self.sun_radius_deg, 0, 5)
        _between("light.albedo", self.albedo, 0, 1)


@dataclasses.dataclass(frozen=True)
class Sensor:
    """psf_px:     sigma of the point spread function, pixels
    exposure:      "stretch": each frame from its darkest to its brightest pixel, as StereoLunar
                   does; "percentile": from black to the brightest 0.5 %, which saturate
    full_well:     electrons of the brightest grey level, for shot noise; 0: no noise
    read_noise:    electrons, RMS
    """

    psf_px: float = 0.6
    exposure: str = "stretch"
    full_well: float = 0.0
    read_noise: float = 0.0

    def __post_init__(self):
        _choose("sensor.exposure", self.exposure, ("stretch", "percentile"))
        _between("sensor.psf_px", self.psf_px, 0.1, 5)
        _between("sensor.full_well", self.full_well, 0, None)
        _between("sensor.read_noise", self.read_noise, 0, None)


@dataclasses.dataclass(frozen=True)
class Moon:
    """levels_km: altitudes above the ground from which a trajectory draws one."""

    ground: Ground = Ground()
    light: Light = Light()
    sensor: Sensor = Sensor()
    levels_km: tuple[float, ...] = tuple(3.5 + 3.0 * i for i in range(10))

    def __post_init__(self):
        if not self.levels_km or min(self.levels_km) <= 0 or max(self.levels_km) > 400:
            raise InputError(
                f"moon.levels_km is {self.levels_km}: give altitudes above 0, up to 400 km."
            )


FIRST = Moon()
STEREOLUNAR = Moon(
    ground=Ground(
        relief_slope=0.15,
        texture_slope=0.042,
        giants=0.8,
        irregular=0.05,
        filled=0.3,
        complex_shapes=True,
        secondaries=0.25,
    ),
    # The grid's own smoothing does the rest of StereoLunar's 0.6.
    sensor=Sensor(psf_px=0.42),
)
PHYSICAL = dataclasses.replace(
    STEREOLUNAR,
    ground=dataclasses.replace(STEREOLUNAR.ground, boulders=30.0, sphere="exact"),
    light=Light("hapke", cast_shadows=True, sun_radius_deg=0.267, albedo=0.05),
    sensor=Sensor(psf_px=0.42, exposure="percentile", full_well=30e3, read_noise=20.0),
)
PRESETS = {"first": FIRST, "stereolunar": STEREOLUNAR, "physical": PHYSICAL}


def preset(name: str) -> Moon:
    """The Moon of that name.

    Raises:
      InputError: there is none.
    """
    _choose("The preset", name, tuple(PRESETS))
    return PRESETS[name]
