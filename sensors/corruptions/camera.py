"""Pictures and cameras made worse: light, blur, loss. Parameters are shares of the picture's width, so that any size looks alike.

Operations take a frame, a severity 1..5 and a generator, and return a new frame; None where the draw spares this frame. The draw
does not depend on the severity: what a severity hits, the next one hits too. Letters: H and W pixels, N cameras.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensors.frames import History, SensorFrame

Image = NDArray[np.uint8]  # [H, W, 3]
Float32 = NDArray[np.float32]

# MultiCorrupt (Beemelmanns et al., 2024), severities 1 to 3; 4 and 5 are ours, here and below.
BRIGHT = (0.1, 0.3, 0.5, 0.6, 0.7)  # added to the value of HSV
DARK_PEAK = (0.60, 0.40, 0.30, 0.20, 0.12)  # what the brightest pixel comes down to
DARK_PHOTONS = (250.0, 120.0, 50.0, 25.0, 12.0)  # of a white pixel: shot noise
DARK_READ_NOISE = (0.008, 0.018, 0.026, 0.035, 0.045)  # standard deviation, white is 1
MOTION_SIGMA = tuple(px / 1600 for px in (6, 10, 13, 18, 25))  # of the half-Gaussian trail
MOTION_LENGTH = tuple(px / 1600 for px in (31, 31, 31, 45, 65))
MISSING = (0.2, 0.4, 0.6, 0.8, 0.9)  # probability, for each camera by itself
# Ours.
BLUR_SIGMA = (0.002, 0.004, 0.007, 0.011, 0.016)

_NOISE_PERIOD = 65_521  # prime: rows of no usual width repeat at the same place


def present_cameras(frame: SensorFrame) -> list[int]:
    """The places of the cameras that deliver."""
    return [n for n, camera in enumerate(frame.cameras or ()) if camera is not None]


def change_images(
    frame: SensorFrame, change: Callable[[Image], Image], cameras: Sequence[int] | None = None
) -> SensorFrame:
    """The frame with `change` applied to the pictures of some cameras, all by default."""
    assert frame.cameras is not None
    chosen = present_cameras(frame) if cameras is None else cameras
    return replace(
        frame,
        cameras=tuple(
            replace(camera, image=change(camera.image)) if camera is not None and n in chosen else camera
            for n, camera in enumerate(frame.cameras)
        ),
    )


def lose_cameras(frame: SensorFrame, lost: Sequence[int]) -> SensorFrame:
    """The frame without these cameras; without any, the modality is absent."""
    kept = tuple(None if n in lost else camera for n, camera in enumerate(frame.cameras or ()))
    return replace(frame, cameras=kept if any(camera is not None for camera in kept) else None)


def brighten(image: Image, shift: float) -> Image:
    """The value of HSV raised by `shift` (0..1) and cut at white; hue and saturation stay."""
    value = np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2]).astype(np.float32)
    raised = np.minimum(value + 255 * np.float32(shift), 255)
    changed = image * (raised / np.maximum(value, 1))[..., None]
    changed[value == 0] = raised[value == 0, None]  # black has no hue: it turns grey
    return (changed + np.float32(0.5)).astype(np.uint8)


def darken(
    image: Image,
    peak: float,
    photons: float,
    read_noise: float,
    random: np.random.Generator,
    noise: Float32 | None = None,
) -> Image:
    """Low light: the range of the picture squared and brought down to `peak`, with shot noise and read noise.

    The Poisson noise of MultiCorrupt is approximated by a Gaussian of its variance. `noise` are standard normal numbers to use
    again, from a place that `random` draws, because drawing them anew for every camera would cost most of the time.
    """
    import cv2

    if noise is None:
        noise = normal_noise(random)
    level = np.arange(256, dtype=np.float32) / 255
    low, high = float(image.min()) / 255, float(image.max()) / 255
    mean = np.clip((level - low) / max(high - low, 1 / 255), 0, 1) ** 2 * peak
    spread = np.sqrt(mean / photons + read_noise**2)
    drawn = np.resize(np.roll(noise, int(random.integers(len(noise)))), image.shape)
    noisy = cv2.multiply(cv2.LUT(image, 255 * spread), drawn)
    out: Image = cv2.add(noisy, cv2.LUT(image, 255 * mean), dtype=cv2.CV_8U)  # rounds, and stays within 0..255
    return out


def normal_noise(random: np.random.Generator) -> Float32:
    """Standard normal numbers, enough that their repetition is not seen."""
    return random.standard_normal(_NOISE_PERIOD, dtype=np.float32)


def blur(image: Image, sigma: float) -> Image:
    """Out of focus, as a Gaussian whose sigma is a share of the width."""
    import cv2

    out: Any = cv2.GaussianBlur(image, (0, 0), max(0.4, sigma * image.shape[1]))
    return out


def trail(image: NDArray[Any], sigma: float, length: float, angle_rad: float) -> NDArray[Any]:
    """Smeared along a line, fading as a half-Gaussian; `sigma` and `length` are shares of the width."""
    import cv2

    out: NDArray[Any] = cv2.filter2D(image, -1, _trail_kernel(image.shape[1], sigma, length, angle_rad))
    return out


def _trail_kernel(width: int, sigma: float, length: float, angle_rad: float) -> Float32:
    """[K, K] with the line from its middle outwards, sampled finely: at small widths a trail is only a few pixels long."""
    reach = max(1.0, length * width)
    radius = int(np.ceil(reach))
    along = np.linspace(0, reach, 8 * radius + 1)
    weight = np.exp(-(along**2) / (2 * max(0.5, sigma * width) ** 2))
    x, y = radius + along * np.cos(angle_rad), radius + along * np.sin(angle_rad)
    kernel = np.zeros((2 * radius + 2, 2 * radius + 2))
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        share = np.abs(1 - right - (x - column)) * np.abs(1 - down - (y - row))
        np.add.at(kernel, (row + down, column + right), weight * share)
    kernel = kernel[: 2 * radius + 1, : 2 * radius + 1]
    return (kernel / kernel.sum()).astype(np.float32)


def bright(frame: SensorFrame, severity: int, random: np.random.Generator, history: History) -> SensorFrame | None:
    """All pictures over-exposed (MultiCorrupt's brightness)."""
    return change_images(frame, lambda image: brighten(image, BRIGHT[severity - 1]))


def dark(frame: SensorFrame, severity: int, random: np.random.Generator, history: History) -> SensorFrame | None:
    """All pictures in low light, with its noise (MultiCorrupt's darkness)."""
    s, noise = severity - 1, normal_noise(random)
    return change_images(
        frame, lambda image: darken(image, DARK_PEAK[s], DARK_PHOTONS[s], DARK_READ_NOISE[s], random, noise)
    )


def camera_blur(frame: SensorFrame, severity: int, random: np.random.Generator, history: History) -> SensorFrame | None:
    """All cameras out of focus. Severities are ours."""
    return change_images(frame, lambda image: blur(image, BLUR_SIGMA[severity - 1]))


def missing_camera(
    frame: SensorFrame, severity: int, random: np.random.Generator, history: History
) -> SensorFrame | None:
    """Each camera is absent with a probability by severity, as in MultiCorrupt, drawn anew for every frame.

    MultiCorrupt shows a black picture instead, because its detectors know no absence; `camera_black` does that.
    """
    draw = random.random(len(frame.cameras or ()))
    lost = [n for n in present_cameras(frame) if draw[n] < MISSING[severity - 1]]
    return lose_cameras(frame, lost) if lost else None


def single_camera_lost(
    frame: SensorFrame, severity: int, random: np.random.Generator, history: History
) -> SensorFrame | None:
    """As many cameras absent as the severity says, one of the present ones always left. Severities are ours."""
    return lose_cameras(frame, _some(frame, random, severity, leave=1))


def camera_black(
    frame: SensorFrame, severity: int, random: np.random.Generator, history: History
) -> SensorFrame | None:
    """As many cameras as the severity says deliver black pictures and claim to work. Severities are ours."""
    return change_images(frame, np.zeros_like, _some(frame, random, severity, leave=0))


def _some(frame: SensorFrame, random: np.random.Generator, count: int, *, leave: int) -> list[int]:
    """`count` of the present cameras, at least one, with at least `leave` spared where there are more than that."""
    order = random.permutation(len(frame.cameras or ()))
    here = [int(n) for n in order if n in present_cameras(frame)]
    return here[: max(1, min(count, len(here) - leave))]
