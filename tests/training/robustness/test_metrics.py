"""The published formulas, on tables small enough to reckon by hand."""

import math

import pytest

from training.robustness import metrics as metrics

CLEAN = 0.5
MATRIX = {"fog": {1: 0.4, 3: 0.3, 5: 0.2}, "dark": {1: 0.5, 3: 0.5, 5: 0.35}}
BASELINE = {"fog": {1: 0.3, 3: 0.2, 5: 0.1}, "dark": {1: 0.6, 3: 0.5, 5: 0.4}}


def test_retention_and_the_gap_to_a_specialist() -> None:
    assert metrics.retention(0.3, 0.4) == pytest.approx(0.75)
    assert metrics.specialist_gap(0.38, 0.40) == pytest.approx(-0.05)
    assert metrics.specialist_gap(0.44, 0.40) == pytest.approx(0.10)


def test_resistance_ability() -> None:
    # fog: 0.4/0.5 = 0.8, 0.6, 0.4 -> 0.6; dark: 1, 1, 0.7 -> 0.9; mean 0.75
    assert metrics.resistance_ability(MATRIX["fog"], CLEAN) == pytest.approx(0.6)
    assert metrics.resistance_ability(MATRIX["dark"], CLEAN) == pytest.approx(0.9)
    assert metrics.mean_resistance_ability(MATRIX, CLEAN) == pytest.approx(0.75)


def test_relative_resistance_ability() -> None:
    # fog: 0.9 / 0.6 - 1 = 0.5; dark: 1.35 / 1.5 - 1 = -0.1; mean 0.2
    assert metrics.relative_resistance_ability(MATRIX["fog"], BASELINE["fog"]) == pytest.approx(0.5)
    assert metrics.relative_resistance_ability(MATRIX["dark"], BASELINE["dark"]) == pytest.approx(-0.1)
    assert metrics.mean_relative_resistance_ability(MATRIX, BASELINE) == pytest.approx(0.2)
    assert metrics.mean_relative_resistance_ability(BASELINE, BASELINE) == 0.0


def test_relative_resistance_ability_agrees_with_the_published_table() -> None:
    """MultiCorrupt's README: BEVFusion has clean NDS 0.714 and RA 0.676 at beams reducing, CMT 0.729 and 0.786; RRA 18.642%."""
    bevfusion = dict.fromkeys((1, 2, 3), 0.676 * 0.714)
    cmt = dict.fromkeys((1, 2, 3), 0.786 * 0.729)
    assert 100 * metrics.relative_resistance_ability(cmt, bevfusion) == pytest.approx(18.642, abs=0.15)


def test_corruption_error() -> None:
    # fog: (0.6 + 0.7 + 0.8) / (0.7 + 0.8 + 0.9) = 2.1 / 2.4; dark: (0.5 + 0.5 + 0.65) / (0.4 + 0.5 + 0.6) = 1.65 / 1.5
    assert metrics.corruption_error(MATRIX["fog"], BASELINE["fog"]) == pytest.approx(0.875)
    assert metrics.corruption_error(MATRIX["dark"], BASELINE["dark"]) == pytest.approx(1.1)
    assert metrics.mean_corruption_error(MATRIX, BASELINE) == pytest.approx(0.9875)
    assert metrics.mean_corruption_error(BASELINE, BASELINE) == 1.0


def test_resilience_rate() -> None:
    # fog: 0.9 / 1.5; dark: 1.35 / 1.5
    assert metrics.resilience_rate(MATRIX["fog"], CLEAN) == pytest.approx(0.6)
    assert metrics.resilience_rate(MATRIX["dark"], CLEAN) == pytest.approx(0.9)
    assert metrics.mean_resilience_rate(MATRIX, CLEAN) == pytest.approx(0.75)


def test_what_divides_by_zero_is_not_defined() -> None:
    zeros = {"fog": {1: 0.0, 3: 0.0, 5: 0.0}, "dark": MATRIX["dark"]}
    perfect = {name: dict.fromkeys(row, 1.0) for name, row in MATRIX.items()}
    assert math.isnan(metrics.retention(0.0, 0.0))
    assert math.isnan(metrics.specialist_gap(0.3, 0.0))
    assert math.isnan(metrics.mean_resistance_ability(MATRIX, 0.0))
    assert math.isnan(metrics.mean_resilience_rate(MATRIX, 0.0))
    assert math.isnan(metrics.mean_relative_resistance_ability(MATRIX, zeros))  # one of two rows is enough
    assert math.isnan(metrics.mean_corruption_error(MATRIX, perfect))
    assert math.isnan(metrics.mean_resistance_ability({}, CLEAN))
    assert metrics.resistance_ability(zeros["fog"], CLEAN) == 0.0  # nothing left is a figure, not a gap


def test_a_baseline_that_was_measured_otherwise_is_not_compared() -> None:
    with pytest.raises(ValueError, match="other severities: expected 1, 3, 5, got 1"):
        metrics.relative_resistance_ability(MATRIX["fog"], {1: 0.3})
    with pytest.raises(ValueError, match="other corruptions: expected fog, dark, got fog"):
        metrics.mean_corruption_error(MATRIX, {"fog": BASELINE["fog"]})
