"""The published formulas, on tables small enough to reckon by hand."""

import math

import pytest

from training.robustness import metrics as metrics

CLEAN = 0.5
MATRIX = {"fog": {1: 0.4, 3: 0.3, 5: 0.2}, "dark": {1: 0.5, 3: 0.5, 5: 0.35}}


def test_retention() -> None:
    assert metrics.retention(0.3, 0.4) == pytest.approx(0.75)


def test_resistance_ability() -> None:
    # fog: 0.4/0.5 = 0.8, 0.6, 0.4 -> 0.6; dark: 1, 1, 0.7 -> 0.9; mean 0.75
    assert metrics.resistance_ability(MATRIX["fog"], CLEAN) == pytest.approx(0.6)
    assert metrics.resistance_ability(MATRIX["dark"], CLEAN) == pytest.approx(0.9)
    assert metrics.mean_resistance_ability(MATRIX, CLEAN) == pytest.approx(0.75)


def test_what_divides_by_zero_is_not_defined() -> None:
    assert math.isnan(metrics.retention(0.0, 0.0))
    assert math.isnan(metrics.mean_resistance_ability(MATRIX, 0.0))
    assert math.isnan(metrics.mean_resistance_ability({}, CLEAN))
    assert metrics.resistance_ability({1: 0.0, 3: 0.0}, CLEAN) == 0.0  # nothing left is a figure, not a gap
