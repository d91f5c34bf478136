"""From measurements to faults: an additive, regularised multinomial logistic regression that a person can read.

Each measurement x enters as z = (x - median) / spread, clipped to what was seen in fitting, and as hinges max(z - k, 0) at its
quartiles, so that too much and too little can both be wrong (a generalised additive model with a linear spline each; Hastie and
Tibshirani, 1986). A measurement that was not made contributes nothing. Class 0 is "healthy", the others are faults.

Letters: S samples, M measurements, F features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

HEALTHY = "healthy"
_KNOTS = (0.02, 0.25, 0.75, 0.98)  # quantiles of the healthy sensors' values
_CLIP = 12.0  # spreads


class HealthModelError(ValueError):
    """Parameters of a health monitor are missing, damaged or of another version."""


@dataclass(frozen=True)
class FaultModel:
    """Parameters of one kind of sensor. Frozen, checked at birth."""

    names: tuple[str, ...]  # M measurements
    faults: tuple[str, ...]  # K classes, "healthy" first
    centre: Float64  # [M]
    spread: Float64  # [M]
    knots: Float64  # [M, 4] in spreads
    weights: Float64  # [K, F], F = 5 M + 1 (the last one is the intercept); row 0 is zero

    def __post_init__(self) -> None:
        m, k = len(self.names), len(self.faults)
        shapes = {"centre": (m,), "spread": (m,), "knots": (m, len(_KNOTS)), "weights": (k, m * (len(_KNOTS) + 1) + 1)}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value.shape != shape or not np.isfinite(value).all():
                raise HealthModelError(f"{name}: expected finite numbers of shape {shape}, got shape {value.shape}")
        if not k or self.faults[0] != HEALTHY or len(set(self.names)) != m or (self.spread <= 0).any():
            raise HealthModelError("expected 'healthy' as the first class, names that differ, and positive spreads")

    def probabilities(self, rows: Sequence[Mapping[str, float]]) -> Float64:
        """[S, K] of rows of measurements."""
        logits = self.features(rows) @ self.weights.T
        logits -= logits.max(axis=1, keepdims=True)
        odds = np.exp(logits)
        return odds / odds.sum(axis=1, keepdims=True)

    def features(self, rows: Sequence[Mapping[str, float]]) -> Float64:
        """[S, F] of rows of measurements."""
        values = np.array([[row.get(name, math.nan) for name in self.names] for row in rows], np.float64)
        values = values.reshape(len(rows), len(self.names))
        z = np.clip((values - self.centre) / self.spread, -_CLIP, _CLIP)
        hinges = np.maximum(z[:, :, None] - self.knots, 0)
        known = np.isfinite(z)
        columns = np.concatenate([z[:, :, None], hinges], axis=2)
        columns = np.where(known[:, :, None], columns, 0) / math.sqrt(len(_KNOTS))
        return np.hstack([columns.reshape(len(rows), -1), np.ones((len(rows), 1))])

    def causes(self, row: Mapping[str, float], fault: str, count: int = 2) -> list[str]:
        """The measurements that speak most for a fault, "name value", strongest first."""
        weights = self.weights[self.faults.index(fault)]
        parts = (self.features([row])[0] * weights)[:-1].reshape(len(self.names), -1).sum(axis=1)
        order = [int(i) for i in np.argsort(-parts)[:count] if parts[i] > 0]
        return [f"{self.names[i]} {row[self.names[i]]:.3g}" for i in order]

    def to_json(self) -> dict[str, Any]:
        """As `from_json` reads it."""
        return {
            "measurements": list(self.names),
            "faults": list(self.faults),
            **{name: np.round(getattr(self, name), 6).tolist() for name in ("centre", "spread", "knots", "weights")},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FaultModel:
        """Raises HealthModelError where something is missing or has another shape."""
        try:
            arrays = {name: np.asarray(content[name], np.float64) for name in ("centre", "spread", "knots", "weights")}
            names, faults = tuple(content["measurements"]), tuple(content["faults"])
        except KeyError as error:
            raise HealthModelError(f"{error} is missing") from None
        except (TypeError, ValueError, OverflowError) as error:
            raise HealthModelError(f"expected lists of numbers: {error}") from None
        if not all(isinstance(name, str) for name in (*names, *faults)):
            raise HealthModelError("expected measurements and faults by their names, got something else")
        return cls(names, faults, **arrays)


def fit_model(
    rows: Sequence[Mapping[str, float]], labels: Sequence[str], weights: Float64, *, penalty: float = 3e-3
) -> FaultModel:
    """Fit by maximum likelihood with an L2 penalty.

    Args:
        rows: measurements of S sensors.
        labels: [S] "healthy" or a fault.
        weights: [S] how much each counts.
        penalty: on the squared weights, in units of the mean log-likelihood.

    Raises:
        ValueError: there is no healthy sensor among them.
    """
    from scipy.optimize import minimize

    healthy = [row for row, label in zip(rows, labels, strict=True) if label == HEALTHY]
    if not healthy:
        raise ValueError("health: nothing to fit: no healthy sensor among the samples")
    names = tuple(dict.fromkeys(name for row in healthy for name in row))
    faults = (HEALTHY, *sorted({label for label in labels if label != HEALTHY}))
    blank = _scaled(healthy, names, faults)
    x = blank.features(rows).astype(np.float32)
    target = np.zeros((len(rows), len(faults)))
    target[np.arange(len(rows)), [faults.index(label) for label in labels]] = 1
    share = (weights / weights.sum())[:, None]
    free = (len(faults) - 1, x.shape[1])

    def loss(flat: Float64) -> tuple[float, Float64]:
        w = np.vstack([np.zeros((1, free[1])), flat.reshape(free)])
        logits = (x @ w.T.astype(np.float32)).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        gradient = ((np.exp(log_p) - target) * share).T.astype(np.float32) @ x
        decay = w.copy()
        decay[:, -1] = 0  # the intercept is free
        value = -float((share * target * log_p).sum()) + 0.5 * penalty * float((decay**2).sum())
        return value, (gradient + penalty * decay)[1:].ravel()

    optimum = minimize(loss, np.zeros(free[0] * free[1]), jac=True, method="L-BFGS-B", options={"maxiter": 150})
    fitted = np.vstack([np.zeros((1, free[1])), optimum.x.reshape(free)])
    return FaultModel(names, faults, blank.centre, blank.spread, blank.knots, fitted)


def _scaled(healthy: Sequence[Mapping[str, float]], names: tuple[str, ...], faults: tuple[str, ...]) -> FaultModel:
    """A model that knows what healthy values are, and no weights yet."""
    values = np.array([[row.get(name, math.nan) for name in names] for row in healthy])
    centre, low, high = np.nanquantile(values, (0.5, 0.1, 0.9), axis=0)
    # A measurement that hardly varies in health (a share of equal pixels) must not blow up at the least change.
    spread = np.maximum(np.maximum(0.5 * (high - low), 0.5 * np.nanstd(values, axis=0)), 0.01)
    knots = (np.nanquantile(values, _KNOTS, axis=0).T - centre[:, None]) / spread[:, None]
    return FaultModel(names, faults, centre, spread, knots, np.zeros((len(faults), len(names) * (len(_KNOTS) + 1) + 1)))
