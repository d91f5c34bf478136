"""Modalities can be told apart by their colours, however many there are."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from sensors.palette import MODALITY_COLOURS, OTHER_MODALITY_COLOURS, RGB, modality_rgb

# Machado et al., 2009: no blindness, deuteranopia, protanopia, on linear RGB. Ottosson, 2020: linear RGB -> Oklab.
SEEN_BY = np.array([
    [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
])  # fmt: skip
LMS = np.array([[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]])
LAB = np.array([[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]])


def distance(one: RGB, other: RGB) -> float:
    """In Oklab, for whoever of the three sees it least."""
    linear = ((np.array([one, other]) / 255 + 0.055) / 1.055) ** 2.4
    lab = np.cbrt(np.clip(np.einsum("sij,cj->sci", SEEN_BY, linear), 0, 1) @ LMS.T) @ LAB.T
    return float(np.linalg.norm(lab[:, 0] - lab[:, 1], axis=-1).min())


def test_no_two_modalities_are_closer_than_lidar_and_radar() -> None:
    names = [*MODALITY_COLOURS, *(f"other {k}" for k in range(len(OTHER_MODALITY_COLOURS)))]
    colours = [modality_rgb(name, k) for k, name in enumerate(names)]
    assert len(set(colours)) == 8
    limit = distance(MODALITY_COLOURS["lidar"], MODALITY_COLOURS["radar"])
    assert min(distance(one, other) for one, other in combinations(colours, 2)) >= limit
