"""The published measures of robustness, as functions of tables of figures.

A figure is any score in 0..1 of which more is better; the papers take NDS, we report NDS and mAP. `Row` is one corruption by
severity, `Matrix` several. What is not defined, because it divides by zero or rests on a figure that is not known, is NaN: a mean
over corruptions of which one is not defined is not defined either.

The papers average over three severities; here it is over those that were measured.

MultiCorrupt: Beemelmanns et al., "MultiCorrupt: A Multi-Modal Robustness Dataset and Benchmark of LiDAR-Camera Fusion for 3D
Object Detection", IV 2024, section "Metrics" of github.com/ika-rwth-aachen/MultiCorrupt. What RoboBEV and Robo3D call resilience
rate (RR, mRR) is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

Row = Mapping[int, float]  # severity -> figure
Matrix = Mapping[str, Row]  # corruption -> severity -> figure


def retention(figure: float, clean: float) -> float:
    """What is left of the figure with all sensors on clean data: figure / clean."""
    return _ratio(figure, clean)


def resistance_ability(row: Row, clean: float) -> float:
    """RA_c = 1/S sum_s MET_{c,s} / MET_clean over the S severities s (MultiCorrupt)."""
    return mean(_ratio(figure, clean) for figure in row.values())


def mean_resistance_ability(matrix: Matrix, clean: float) -> float:
    """The mean, mRA = 1/N sum_c RA_c over the N corruptions c (MultiCorrupt)."""
    return mean(resistance_ability(row, clean) for row in matrix.values())


def mean(figures: Iterable[float]) -> float:
    """The arithmetic mean; NaN of nothing, and where one of them is NaN."""
    values = list(figures)
    return sum(values) / len(values) if values else math.nan


def _ratio(a: float, b: float) -> float:
    return a / b if b != 0 else math.nan
