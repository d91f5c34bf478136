"""Fog and snow, for cameras and LiDAR at once; radar is not affected. Conventions as in `sensors.corruptions.camera`.

Letters: H and W pixels, h and w coarse pixels, P points.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensors.calibration import apply, inverse_rigid
from sensors.camera.depth import depth_targets
from sensors.corruptions.camera import Image, change_images, normal_noise, present_cameras, trail
from sensors.corruptions.lidar import Points, change_points
from sensors.frames import CameraImage, History, SensorFrame

Float32 = NDArray[np.float32]

# MultiCorrupt (Beemelmanns et al., 2024), severities 1 to 3, for LiDAR; 4 and 5 are ours. Extinction and backscatter per metre;
# the sight (meteorological optical range) is 3 / extinction: 150, 100, 50, 30 and 20 m.
FOG_EXTINCTION = (0.02, 0.03, 0.06, 0.1, 0.15)
FOG_BACKSCATTER = (0.008, 0.008, 0.05, 0.05, 0.05)
# MultiCorrupt's pictures: mean of the noise that makes flakes, its threshold, and how much of the picture stays.
SNOW_FLAKES = ((0.3, 0.9), (0.4, 0.85), (0.5, 0.8), (0.55, 0.8), (0.6, 0.8))
SNOW_CLEAR = (0.9, 0.85, 0.8, 0.72, 0.65)
# Ours: the published tables of flakes take seconds a sweep. Per metre.
SNOW_EXTINCTION = (0.004, 0.008, 0.015, 0.025, 0.04)
SNOW_FLAKE_HITS = (0.003, 0.008, 0.015, 0.03, 0.06)

_FAR_M = 200.0  # where neither LiDAR nor ground says how far a pixel is, it is sky
_BANKS = np.float32(0.3)  # fog is so much denser and thinner from place to place
_FLAKE_SPREAD = np.float32(0.2)  # published is 0.3 between which pictures are interpolated, which takes a third of it
_COARSE = 36  # coarse pixels across a picture
_LEAST_INTENSITY = 1.0  # of 255: weaker returns are not seen
_FLAKE_RANGE_M = 4.0  # mean range at which a flake answers: near ones outshine far ones by the square of the range
_SNOW_REACH_M = 40.0  # a ray meets no more flakes that answer beyond
# LiDAR of Hahner et al. (2021): half-power pulse width 20 ns, the receiver begins to see the beam at 0.9 m, all of it at 1 m, and
# a hard target has a differential reflectivity of 1e-6 / pi.
_PULSE_S, _LIGHT_MPS = 2e-8, 2.998e8
_OVERLAP_M = (0.9, 1.0)
_TARGET_REFLECTIVITY = 1e-6 / np.pi


def fog(frame: SensorFrame, severity: int, random: np.random.Generator, history: History) -> SensorFrame | None:
    """Fog of one and the same extinction for cameras (Koschmieder's law) and LiDAR (Hahner et al., 2021, simplified).

    Pictures fade with distance, which comes from the LiDAR points on them, else from flat ground, else is far; where MultiCorrupt
    lays a fractal cloud over the whole picture, banks of fog here alter the extinction.
    """
    s = severity - 1
    changed = foggy_pictures(frame, FOG_EXTINCTION[s], random) if present_cameras(frame) else frame
    if changed.lidar is None:
        return changed
    return change_points(changed, lambda points: foggy_points(points, FOG_EXTINCTION[s], FOG_BACKSCATTER[s], random))


def foggy_pictures(frame: SensorFrame, extinction: float, random: np.random.Generator) -> SensorFrame:
    """The frame with fog in its pictures; the colour of the fog is that of the brightest parts, so that nights stay nights."""
    assert frame.cameras is not None
    newest = {sweep.channel: sweep for sweep in reversed(frame.lidar or ())}
    clouds = [apply(sweep.reference_T_lidar, sweep.points[:, :3]) for sweep in newest.values()]
    cloud = np.concatenate([np.zeros((0, 3), np.float32), *clouds])
    points = np.ascontiguousarray(cloud[np.isfinite(cloud).all(axis=1)].T)
    pictures = [camera.image for camera in frame.cameras if camera is not None]
    white = float(np.percentile(np.concatenate([image[::7, ::7].ravel() for image in pictures]), 95))
    banks = random.standard_normal((len(frame.cameras), 4, 7), dtype=np.float32)
    cameras = tuple(
        replace(camera, image=_hazy(camera, points, extinction, white, banks[n])) if camera is not None else None
        for n, camera in enumerate(frame.cameras)
    )
    return replace(frame, cameras=cameras)


def _hazy(camera: CameraImage, points_m: Float32, extinction: float, white: float, banks: Float32) -> Image:
    import cv2

    height, width = camera.image.shape[:2]
    depth_m = _coarse_depth(camera, points_m)
    density = np.clip(cv2.resize(banks, depth_m.shape[::-1], interpolation=cv2.INTER_CUBIC), -2, 2) * _BANKS
    passes: NDArray[Any] = np.exp(-np.float32(extinction) * (1 + np.maximum(density, -0.9)) * depth_m)
    passes = cv2.resize(cv2.blur(passes.astype(np.float32), (3, 3)), (width, height))
    grey = np.full_like(camera.image, round(white))
    out: Image = cv2.blendLinear(camera.image, grey, passes, 1 - passes)
    return out


def _coarse_depth(camera: CameraImage, points_m: Float32) -> Float32:
    """[h, w] metres: of the nearest LiDAR point, else of flat ground at height 0 of the reference frame, else far."""
    height, width = camera.image.shape[:2]
    stride = max(1, round(width / _COARSE))
    rows, columns = -(-height // stride), -(-width // stride)
    camera_T_reference = inverse_rigid(camera.reference_T_camera)
    pixels_T_reference = camera.intrinsics @ camera_T_reference[:3]
    covering = (rows * stride, columns * stride)
    seen = depth_targets(points_m, pixels_T_reference[None], image_size_px=covering, stride_px=stride)[0]
    v, u = np.mgrid[0:rows, 0:columns] * stride + (stride - 1) / 2
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(camera.intrinsics).T
    down = -(rays @ camera.reference_T_camera[2, :3])
    ground = np.where(down > 1e-3, camera.reference_T_camera[2, 3] / np.maximum(down, 1e-3), _FAR_M)
    return np.where(seen > 0, seen, np.clip(ground, 1.0, _FAR_M)).astype(np.float32)


def foggy_points(points: Points, extinction: float, backscatter: float, random: np.random.Generator) -> Points:
    """A sweep in fog (Hahner et al., "Fog Simulation on Real LiDAR Point Clouds", 2021).

    The return of a target at range r fades by exp(-2 extinction r). Where the fog before it answers more strongly, that is what
    is seen, a few metres from the sensor, scattered by a beta distribution. Returns too weak to be seen are lost. Fog answers
    by the convolution of the pulse with exp(-2 extinction r) / r^2, tabulated once an extinction.
    """
    range_m = np.linalg.norm(points[:, :3], axis=1)
    peak_m, answer = _fog_answers(extinction)
    with np.errstate(invalid="ignore"):
        at = np.clip(np.nan_to_num(range_m) / _TABLE_STEP_M, 0, len(peak_m) - 1).astype(np.int64)
        hard = points[:, 3] * np.exp(-2 * np.float32(extinction) * range_m)
        soft = points[:, 3] * range_m**2 * (backscatter / _TARGET_REFLECTIVITY) * answer[at]
        from_fog = soft > hard
    scattered_m = peak_m[at] + 10 * random.beta(2, 20, len(points)).astype(np.float32)
    foggy = points.copy()
    foggy[:, 3] = np.minimum(np.where(from_fog, soft, hard), 255)
    scale = np.minimum(scattered_m, range_m) / np.maximum(range_m, 0.1)
    foggy[from_fog, :3] *= scale[from_fog, None]
    return foggy[~(foggy[:, 3] < _LEAST_INTENSITY)]


_TABLE_STEP_M = 0.1


@lru_cache(maxsize=16)
def _fog_answers(extinction: float) -> tuple[Float32, Float32]:
    """By range of the target, in steps: range [m] and strength of the strongest answer of the fog before it."""
    range_m = np.arange(0, _FAR_M, _TABLE_STEP_M)
    delay = (np.arange(200) + 0.5) / 200  # of twice the half-power width, which is how long the pulse lasts
    pulse = np.sin(np.pi * delay) ** 2 * (2 * _PULSE_S / 200)
    origin_m = range_m[:, None] - delay * _LIGHT_MPS * _PULSE_S  # where what arrives with this delay was sent back
    near, whole = _OVERLAP_M
    sight = np.clip((origin_m - near) / (whole - near), 0, 1)
    at = np.maximum(origin_m, near)
    answer = (pulse * sight * np.exp(-2 * extinction * at) / at**2).sum(axis=1)
    strongest = np.maximum.accumulate(answer)
    best = np.maximum.accumulate(np.where(answer >= strongest, np.arange(len(answer)), 0))
    return range_m[best].astype(np.float32), strongest.astype(np.float32)


def snow(frame: SensorFrame, severity: int, random: np.random.Generator, history: History) -> SensorFrame | None:
    """Falling snow: streaks and a whiter picture as in MultiCorrupt, and a LiDAR that flakes answer and dim.

    The LiDAR part is a coarse form of LISA (Kilic et al., 2021), a ray at a time without sizes of flakes.
    """
    s = severity - 1
    changed = frame
    if present_cameras(frame):
        mean, threshold = SNOW_FLAKES[s]
        noise = normal_noise(random)
        changed = change_images(
            frame,
            lambda image: _snowy(image, np.clip(mean + _FLAKE_SPREAD * noise, 0, 1), threshold, SNOW_CLEAR[s], random),
        )
    if changed.lidar is None:
        return changed
    return change_points(changed, lambda points: snowy_points(points, SNOW_EXTINCTION[s], SNOW_FLAKE_HITS[s], random))


def _snowy(image: Image, flakes: Float32, threshold: float, clear: float, random: np.random.Generator) -> Image:
    import cv2

    height, width = image.shape[:2]
    start, angle = int(random.integers(len(flakes))), float(np.deg2rad(random.uniform(45, 135)))
    bright = np.where(flakes < threshold, 0, flakes).astype(np.float32)
    small = max(1, round(width / 320))  # a flake is five pixels of 1600
    rows, columns = -(-height // small), -(-width // small)
    layer: NDArray[Any] = np.resize(np.roll(bright, start), (rows, columns))
    layer = cv2.resize(layer, (columns * small, rows * small))[:height, :width]
    layer = trail(layer, 7 / 1600, 15 / 1600, angle)
    falling = cv2.convertScaleAbs(layer + layer[::-1, ::-1], alpha=255)
    pale = cv2.convertScaleAbs(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), alpha=1.5, beta=127.5)
    pale = cv2.max(image, cv2.merge([pale] * 3))
    out: Image = cv2.add(cv2.addWeighted(image, 0.9 * clear, pale, 0.9 * (1 - clear), 0), cv2.merge([falling] * 3))
    return out


def snowy_points(points: Points, extinction: float, hits: float, random: np.random.Generator) -> Points:
    """A sweep in snow: some rays end on a flake near the sensor, of the others far ones are lost, all are dimmer.

    Args:
        extinction: a target at range r is still seen with probability exp(-2 extinction r).
        hits: flakes that answer, a metre of ray.
    """
    range_m = np.linalg.norm(points[:, :3], axis=1)
    draw = random.random((len(points), 2), dtype=np.float32)
    flake_m = random.gamma(2.0, _FLAKE_RANGE_M / 2, len(points)).astype(np.float32) + np.float32(1.0)
    strength = (4 + 30 * random.random(len(points), dtype=np.float32)).round()
    with np.errstate(invalid="ignore"):
        flake = draw[:, 0] < 1 - np.exp(-hits * np.minimum(range_m, _SNOW_REACH_M))
        flake &= flake_m < range_m
        passes = np.exp(-2 * np.float32(extinction) * range_m)
        lost = ~flake & (draw[:, 1] > passes)
    snowy = points.copy()
    snowy[:, 3] = np.where(flake, strength, points[:, 3] * passes)
    snowy[flake, :3] *= (flake_m[flake] / range_m[flake])[:, None]
    return snowy[~lost]
