"""Light and weather of a scene: what each sensor makes of it is read off one small record."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sensors.simulation.config import SimulationConfig
from sensors.simulation.shapes.mesh import Array


@dataclass(frozen=True, slots=True)
class Weather:
    """sun_direction [3] points to the sun; sun and ambient are linear light on a white surface; extinction_per_m is the
    optical extinction (visibility of about 3 / extinction), seen by cameras and, on the way there and back, the LiDAR.
    """

    night: bool
    rain: bool
    fog: bool
    sun_direction: Array
    sun: float
    ambient: float
    extinction_per_m: float
    sky_zenith: Array
    haze: Array

    def words(self) -> list[str]:
        """How nuScenes' scene descriptions would put it."""
        return [word for word, on in (("Night", self.night), ("rain", self.rain), ("fog", self.fog)) if on]


def draw_weather(rng: np.random.Generator, config: SimulationConfig) -> Weather:
    """Independent draws of night, rain and fog, and a sun to go with them."""
    night = bool(rng.random() < config.night_probability)
    rain = bool(rng.random() < config.rain_probability)
    fog = bool(rng.random() < config.fog_probability)
    azimuth, elevation = float(rng.uniform(-np.pi, np.pi)), float(np.radians(rng.uniform(28, 65)))
    sun_direction = np.array(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    )
    overcast = rain or fog or rng.random() < 0.3
    if night:
        sun, ambient, zenith, haze = 0.0, 0.035, np.array([0.004, 0.006, 0.014]), np.array([0.02, 0.019, 0.022])
    elif overcast:
        grey = float(rng.uniform(0.45, 0.75))
        sun, ambient, zenith, haze = 0.08, float(rng.uniform(0.65, 0.85)), np.full(3, grey), np.full(3, grey * 0.95)
    else:
        sun, ambient = float(rng.uniform(0.75, 1.0)), float(rng.uniform(0.35, 0.5))
        zenith, haze = np.array([0.16, 0.32, 0.68]) * rng.uniform(0.8, 1.1), np.array([0.62, 0.70, 0.80])
    extinction = 0.0015 + 0.006 * rain + (float(rng.uniform(0.02, 0.045)) if fog else 0.0)
    return Weather(
        night, rain, fog, sun_direction, sun, ambient, extinction, zenith.astype(np.float32), haze.astype(np.float32)
    )
