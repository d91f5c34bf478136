"""The published measures of robustness, as functions of tables of figures.

A figure is any score in 0..1 of which more is better; the papers take NDS, we report NDS and mAP. `Row` is one corruption by
severity, `Matrix` several. What is not defined, because it divides by zero or rests on a figure that is not known, is NaN: a mean
over corruptions of which one is not defined is not defined either.

The papers average over three severities; here it is over those that were measured.

MultiCorrupt: Beemelmanns et al., "MultiCorrupt: A Multi-Modal Robustness Dataset and Benchmark of LiDAR-Camera Fusion for 3D
Object Detection", IV 2024, section "Metrics" of github.com/ika-rwth-aachen/MultiCorrupt.
RoboBEV: Xie et al., "Benchmarking and Improving Bird's Eye View Perception Robustness in Autonomous Driving", TPAMI 2025,
docs/RESULTS.md of github.com/Daniel-xsy/RoboBEV. Robo3D: Kong et al., "Robo3D: Towards Robust and Reliable 3D Perception against
Corruptions", ICCV 2023, docs/results of github.com/ldkong1205/Robo3D, the same two measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

Row = Mapping[int, float]  # severity -> figure
Matrix = Mapping[str, Row]  # corruption -> severity -> figure


def retention(figure: float, clean: float) -> float:
    """What is left of the figure with all sensors on clean data: figure / clean."""
    return _ratio(figure, clean)


def specialist_gap(figure: float, specialist: float) -> float:
    """The gap to the model that was trained for this subset alone: figure / specialist - 1, below 0 where that one is better."""
    return _ratio(figure, specialist) - 1


def resistance_ability(row: Row, clean: float) -> float:
    """RA_c = 1/S sum_s MET_{c,s} / MET_clean over the S severities s (MultiCorrupt)."""
    return mean(_ratio(figure, clean) for figure in row.values())


def mean_resistance_ability(matrix: Matrix, clean: float) -> float:
    """The mean, mRA = 1/N sum_c RA_c over the N corruptions c (MultiCorrupt)."""
    return mean(resistance_ability(row, clean) for row in matrix.values())


def relative_resistance_ability(row: Row, baseline: Row) -> float:
    """RRA_c = sum_s MET_{c,s} / sum_s MET_{baseline,c,s} - 1 (MultiCorrupt; its tables give it in percent).

    Raises:
        ValueError: the baseline was measured at other severities.
    """
    _check_same("severities", row, baseline)
    return _ratio(sum(row.values()), sum(baseline.values())) - 1


def mean_relative_resistance_ability(matrix: Matrix, baseline: Matrix) -> float:
    """The mean, mRRA = 1/N sum_c RRA_c (MultiCorrupt): above 0 the model stands corruptions better than the baseline.

    Raises:
        ValueError: the baseline was measured under other corruptions, or at other severities.
    """
    return _mean_against(relative_resistance_ability, matrix, baseline)


def corruption_error(row: Row, baseline: Row) -> float:
    """CE_c = sum_s (1 - NDS_{c,s}) / sum_s (1 - NDS_{baseline,c,s}) (RoboBEV, Robo3D; in percent there): less is better.

    Raises:
        ValueError: the baseline was measured at other severities.
    """
    _check_same("severities", row, baseline)
    return _ratio(sum(1 - figure for figure in row.values()), sum(1 - figure for figure in baseline.values()))


def mean_corruption_error(matrix: Matrix, baseline: Matrix) -> float:
    """The mean, mCE = 1/N sum_c CE_c (RoboBEV, Robo3D): 1 is the baseline itself, less is better.

    Raises:
        ValueError: the baseline was measured under other corruptions, or at other severities.
    """
    return _mean_against(corruption_error, matrix, baseline)


def resilience_rate(row: Row, clean: float) -> float:
    """RR_c = sum_s NDS_{c,s} / (S NDS_clean) over S severities (RoboBEV, Robo3D; S is 3 there).

    Of one table this is RA_c in another order of summation; both are kept because both are published under their names.
    """
    return resistance_ability(row, clean)


def mean_resilience_rate(matrix: Matrix, clean: float) -> float:
    """The mean, mRR = 1/N sum_c RR_c (RoboBEV, Robo3D)."""
    return mean_resistance_ability(matrix, clean)


def mean(figures: Iterable[float]) -> float:
    """The arithmetic mean; NaN of nothing, and where one of them is NaN."""
    values = list(figures)
    return sum(values) / len(values) if values else math.nan


def _ratio(a: float, b: float) -> float:
    return a / b if b != 0 else math.nan


def _mean_against(measure: Callable[[Row, Row], float], matrix: Matrix, baseline: Matrix) -> float:
    _check_same("corruptions", matrix, baseline)
    return mean(measure(row, baseline[name]) for name, row in matrix.items())


def _check_same(what: str, ours: Mapping[str, object] | Row, theirs: Mapping[str, object] | Row) -> None:
    if set(ours) != set(theirs):
        raise ValueError(
            f"the baseline was measured at other {what}: expected {', '.join(map(str, ours))}, "
            f"got {', '.join(map(str, theirs)) or 'none'}; measure both with one configuration"
        )
