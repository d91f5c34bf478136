"""Which sensors can be trusted: a score for each camera and LiDAR and for the radars, from what each delivers and the others say.

    monitor = HealthMonitor.load("health.json")
    report = monitor.score(frame, previous)
    frame = without_sick(frame, report, monitor.thresholds)

The model then sees a learned null in place of the sick sensor. Parameters come from `robustbev health --fit`. Needs the `data`
extra (OpenCV).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sensors.documents import DocumentError, read_json
from sensors.frames import History, SensorFrame
from sensors.health.fault_model import HEALTHY, FaultModel, HealthModelError
from sensors.health.measure import Measured, Measurements, measure

HealthMode = Literal["off", "report", "act"]
FORMAT, VERSION = "robustbev-health", 1
SENSOR_KINDS = ("camera", "lidar", "radar")
WRONG = frozenset({"silent", "frozen", "black", "misaligned", "delayed"})
"""Faults whose data say what is not so. Others (thinned, noisy, blurred, blinded) say less, still more than nothing."""


@dataclass(frozen=True)
class HealthReport:
    """What the monitor makes of one frame, by sensor that is there: the channel of a camera or LiDAR; "radar", all radars."""

    scores: Mapping[str, float]  # 0 healthy .. 1 sick
    reasons: Mapping[str, str]  # the likeliest fault, and the measurements that speak for it
    faults: Mapping[str, Mapping[str, float]]  # probability of each fault
    kinds: Mapping[str, str]  # camera, lidar or radar

    def wrongness(self, sensor: str, faults: frozenset[str] = WRONG) -> float:
        """Probability that a sensor has one of `faults`."""
        return sum(p for fault, p in self.faults[sensor].items() if fault in faults)


@dataclass(frozen=True)
class HealthMonitor:
    """Scores sensors with fitted parameters. `thresholds`: camera, lidar, radar -> what `without_sick` takes for sick."""

    models: Mapping[str, FaultModel]  # by kind of sensor
    thresholds: Mapping[str, float]
    fitted_on: Mapping[str, Any]  # what the parameters were fitted on, for the record

    def score(self, frame: SensorFrame, previous: SensorFrame | None) -> HealthReport:
        """Score every sensor that is present.

        Args:
            frame: as delivered; sick sensors must still be in it.
            previous: the frame delivered before it in the same drive; None at the start of a drive, where nothing can be told of
                frozen sensors.
        """
        return self.judge(measure(frame, previous))

    def judge(self, measurements: Measurements) -> HealthReport:
        """The report on measurements that were already made."""
        scores, reasons, faults = {}, {}, {}
        for kind, model in self.models.items():
            rows = {name: row for name, row in measurements.sensors.items() if measurements.kinds[name] == kind}
            if not rows:
                continue
            for (name, row), p in zip(rows.items(), model.probabilities(list(rows.values())), strict=True):
                if name in measurements.silent:  # needs no figures: even an empty road answers
                    scores[name], faults[name], reasons[name] = 1.0, {"silent": 1.0}, "silent (1.00): no points at all"
                    continue
                faults[name] = {fault: float(v) for fault, v in zip(model.faults[1:], p[1:], strict=True)}
                scores[name] = float(1 - p[0])
                reasons[name] = _reason(model, row, scores[name], faults[name])
        return HealthReport(scores, reasons, faults, {name: measurements.kinds[name] for name in scores})

    def to_json(self) -> dict[str, Any]:
        """The content of the parameters' file."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "fitted_on": dict(self.fitted_on),
            "thresholds": dict(self.thresholds),
            "models": {kind: model.to_json() for kind, model in self.models.items()},
        }

    @classmethod
    def load(cls, path: Path | str) -> HealthMonitor:
        """Read the parameters' file.

        Raises:
            FileNotFoundError: there is none.
            HealthModelError: it is no such file, of another version, or damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no health parameters there; make them with robustbev health --fit --out {path}"
            )
        again = "make them anew with robustbev health --fit"
        try:
            content = read_json(path)
        except (DocumentError, OSError) as error:
            raise HealthModelError(f"{path}: expected a JSON file of health parameters: {error}; {again}") from None
        header = (content.get("format"), content.get("version")) if isinstance(content, dict) else (None, None)
        if header != (FORMAT, VERSION):
            raise HealthModelError(
                f"{path}: expected format {FORMAT!r} version {VERSION}, got {header[0]!r:.40} version {header[1]!r:.40}; {again}"
            )
        try:
            models = {
                kind: FaultModel.from_json(content["models"][kind])
                for kind in SENSOR_KINDS
                if kind in content["models"]
            }
            thresholds = {kind: float(content["thresholds"][kind]) for kind in models}
            fitted_on = dict(content.get("fitted_on", {}))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise HealthModelError(f"{path}: damaged health parameters: {error}; {again}") from None
        wrong = [f"{kind} {limit}" for kind, limit in thresholds.items() if not 0 <= limit <= 1]
        if wrong or not models:
            expected = "thresholds in 0..1" if wrong else f"models of some of {', '.join(SENSOR_KINDS)}"
            raise HealthModelError(f"{path}: expected {expected}, got {', '.join(wrong) or 'none'}; {again}")
        return cls(models, thresholds, fitted_on)


def sick_sensors(
    report: HealthReport, threshold: float | Mapping[str, float], faults: frozenset[str] = WRONG
) -> frozenset[str]:
    """Names of the sensors that have one of `faults` with at least this probability (one for all, or one a kind of sensor)."""

    def limit(sensor: str) -> float:
        return threshold if isinstance(threshold, int | float) else threshold[report.kinds[sensor]]

    return frozenset(sensor for sensor in report.scores if report.wrongness(sensor, faults) >= limit(sensor))


def without_sick(
    frame: SensorFrame,
    report: HealthReport,
    threshold: float | Mapping[str, float],
    *,
    faults: frozenset[str] = WRONG,
) -> SensorFrame:
    """The frame with its sick sensors absent, which the model answers with their null embeddings.

    Args:
        frame: what was scored.
        report: its report.
        threshold: see `sick_sensors`; `HealthMonitor.thresholds` keeps to the rate of false alarms that it was fitted for.
        faults: which faults make a sensor worse than none.
    """
    sick = sick_sensors(report, threshold, faults)
    if not sick:
        return frame
    cameras = frame.cameras
    if cameras is not None:
        cameras = tuple(None if c is not None and c.channel in sick else c for c in cameras)
    lidar = frame.lidar
    if lidar is not None and any(sweep.channel in sick for sweep in lidar):
        lidar = tuple(sweep for sweep in lidar if sweep.channel not in sick) or None
    return replace(
        frame,
        cameras=cameras if cameras is not None and any(c is not None for c in cameras) else None,
        lidar=lidar,
        radar=None if "radar" in sick else frame.radar,
    )


@dataclass(frozen=True)
class HealthAct:
    """Leaves sick sensors out: an alteration of frames for a loader, applied to what the sensors deliver.

    `history` must give the frames DELIVERED before, failures included: see `after`.
    """

    monitor: HealthMonitor
    threshold: float | Mapping[str, float] | None = None  # None: the monitor's own
    faults: frozenset[str] = WRONG

    def __call__(self, frame: SensorFrame, history: History) -> SensorFrame:
        limits = self.monitor.thresholds if self.threshold is None else self.threshold
        return without_sick(frame, self.monitor.score(frame, history(1)), limits, faults=self.faults)


def _reason(model: FaultModel, row: Measured, score: float, faults: Mapping[str, float]) -> str:
    if not faults or score < 0.5:
        return HEALTHY
    fault = max(faults, key=lambda name: faults[name])
    causes = ", ".join(model.causes(row, fault))
    return f"{fault} ({faults[fault]:.2f})" + (f": {causes}" if causes else "")
