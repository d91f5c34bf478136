"""Lenses by the formulas of their papers, without OpenCV, and pictures of dots as such lenses show them. Letters: P dots."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]
DARK, BRIGHT = 20, 250


def distorted(model: str, coefficients: ArrayLike, rays: Float64) -> Float64:
    """[P, 2] where rays (x, y, 1) [P, 2] come to lie at focal length 1.

    Brown (1966, 1971) with the rational radial part of Claus and Fitzgibbon (2005); Kannala and Brandt (2006) for fisheyes.
    """
    x, y = rays.T
    r2 = x * x + y * y
    if model in ("equidistant", "fisheye", "kannala_brandt"):
        k1, k2, k3, k4 = np.asarray(coefficients)
        angle = np.arctan(np.sqrt(r2))
        bent = angle * (1 + k1 * angle**2 + k2 * angle**4 + k3 * angle**6 + k4 * angle**8)
        return rays * (bent / np.maximum(np.sqrt(r2), 1e-12))[:, None]
    k1, k2, p1, p2, k3, k4, k5, k6 = np.pad(np.asarray(coefficients, float), (0, 8 - np.size(coefficients)))
    radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    tangential = np.stack([2 * p1 * x * y + p2 * (r2 + 2 * x * x), p1 * (r2 + 2 * y * y) + 2 * p2 * x * y], axis=1)
    shown: Float64 = rays * radial[:, None] + tangential
    return shown


def pixels(K: Float64, points: Float64) -> Float64:
    """[P, 2] px of points [P, 2] at focal length 1."""
    return points @ K[:2, :2].T + K[:2, 2]


def dots(size_px: tuple[int, int], centers_px: Float64, sigma_px: float = 2.0) -> NDArray[np.uint8]:
    """[H, W, 3] bright dots on a dark ground, about whole and half pixels alike."""
    height, width = size_px
    image = np.full(size_px, float(DARK))
    for u, v in centers_px:
        left, top = max(0, int(u) - 9), max(0, int(v) - 9)
        rows, columns = np.arange(top, min(height, top + 20)), np.arange(left, min(width, left + 20))
        squared = (rows[:, None] - v) ** 2 + (columns[None] - u) ** 2
        image[np.ix_(rows, columns)] += (BRIGHT - DARK) * np.exp(-squared / (2 * sigma_px**2))
    return np.repeat(image.clip(0, 255).round().astype(np.uint8)[..., None], 3, axis=2)


def center_of_dot(image: NDArray[np.uint8], near_px: Float64, reach_px: int) -> Float64:
    """[2] px: the middle of the brightness around a place; NaN where there is no dot."""
    u, v = np.rint(near_px).astype(int)
    top, left = max(0, v - reach_px), max(0, u - reach_px)
    part = image[top : v + reach_px + 1, left : u + reach_px + 1, 0].astype(float)
    weight = np.where(part > DARK + 30, part - DARK, 0.0)
    if not weight.any():
        return np.full(2, np.nan)
    columns, rows = np.meshgrid(left + np.arange(part.shape[1]), top + np.arange(part.shape[0]))
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


def apart(points_px: Float64, least_px: float) -> NDArray[np.int64]:
    """The rows of points that keep this distance from those before them that do."""
    kept: list[int] = []
    for i, point in enumerate(points_px):
        if not kept or np.linalg.norm(points_px[kept] - point, axis=1).min() > least_px:
            kept.append(i)
    return np.array(kept, np.int64)
