"""A sensor health monitor for a data set: fitted on training drives with seeded failures, judged on drives it has not seen."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sensors.corruptions import Corruption
from sensors.frames import History, SensorFrame
from sensors.health.fault_model import HEALTHY, FaultModel, fit_model
from sensors.health.monitor import SENSOR_KINDS, WRONG, HealthAct, HealthMonitor
from sensors.nuscenes.reader import NuScenesReader
from training.data.dataset import Past, open_reader
from training.health.samples import FAULT_OF, MOVING_M, HealthSample, draw_corruptions, measure_sample
from training.runs.config import RunConfig

Progress = Callable[[str, int, int | None], None]
_Item = TypeVar("_Item")
Float64 = NDArray[np.float64]

DEFAULT_MONITOR = Path("runs/health.json")  # where `robustbev health --fit` puts it, and evaluation looks for it
FALSE_ALARMS = 0.005  # healthy sensors taken for wrong, a sensor and frame
_FOLDS = 2  # thresholds come from scores of drives that the scoring parameters have not seen
_LEAST_THRESHOLD = 0.5  # below that the likeliest is that nothing is wrong
_FEWEST = 10  # samples below which no AUROC is given
_STREAM = 1  # of random numbers: failures to fit on are not those to judge by


class HealthAlter:
    """`HealthAct` with the monitor of a file; see `HealthMonitor.load` for what it raises."""

    def __init__(self, path: Path = DEFAULT_MONITOR) -> None:
        self.path = path
        self._act = HealthAct(HealthMonitor.load(path))

    def __call__(self, frame: SensorFrame, history: History) -> SensorFrame:
        return self._act(frame, history)


def fit_monitor(
    config: RunConfig,
    *,
    scenes: int = 28,
    clean_scenes: int = 56,
    failures_per_frame: int = 11,
    seed: int = 0,
    progress: Progress | None = None,
) -> HealthMonitor:
    """Fit a monitor on drives of the training split.

    Args:
        config: which data, and which sensors of it.
        scenes: drives, spread over the split, whose frames are measured with failures.
        clean_scenes: further ones measured without, for what is normal.
        failures_per_frame: seeded draws of corruption and severity for each frame of `scenes`.
        seed: of the failures.
        progress: told of "measure" and "fit".

    Raises:
        ValueError: the split has no samples.
    """
    split = config.data.nuscenes.train_split
    reader = open_reader(config.data, config.model, split)
    by_scene = _by_scene(reader)
    if not by_scene:
        raise ValueError(f"health: split {split!r} of {config.data.nuscenes.root} has no samples to fit on")
    chosen = _spread(list(by_scene), scenes + clean_scenes)
    with_failures = set(_spread(chosen, scenes))
    samples = measure_drives(
        Past(reader),
        [i for scene in chosen for i in by_scene[scene]],
        lambda i: (
            draw_corruptions(reader.tokens[i], tuple(FAULT_OF), failures_per_frame, seed + _STREAM)
            if reader.scene_name(i) in with_failures
            else []
        ),
        progress,
        lasting=True,
    )
    about = {"root": str(config.data.nuscenes.root), "split": split, "scenes": len(chosen), "seed": seed}
    return fit_samples(samples, about, progress)


def measure_drives(
    drive: Past,
    indices: Sequence[int],
    failures: Callable[[int], Sequence[Corruption]],
    progress: Progress | None = None,
    *,
    lasting: bool = False,
) -> list[HealthSample]:
    """Every sample clean, and under each of its failures; with `lasting`, in every other sample a wrong pose is the scene's."""
    measured: list[HealthSample] = []
    for done, i in enumerate(indices, 1):
        for case in (None, *failures(i)):
            same_all_along = lasting and i % 2 == 0 and case is not None and FAULT_OF[case.name] == "misaligned"
            measured += measure_sample(drive, i, case, lasting=same_all_along)
        if progress is not None:
            progress("measure", done, len(indices))
    return measured


def fit_samples(
    samples: Sequence[HealthSample], about: Mapping[str, Any], progress: Progress | None = None
) -> HealthMonitor:
    """Fit on measured samples: parameters on all of them, thresholds by cross-validation over drives."""
    models, thresholds = {}, {}
    kinds = [kind for kind in SENSOR_KINDS if any(s.kind == kind for s in samples)]
    for done, kind in enumerate(kinds):
        of_kind = [s for s in samples if s.kind == kind]
        models[kind] = _fit(of_kind)
        thresholds[kind] = _threshold(of_kind)
        if progress is not None:
            progress("fit", done + 1, len(kinds))
    return HealthMonitor(models, thresholds, {**about, "samples": len(samples), "false_alarms": FALSE_ALARMS})


def score_samples(model: FaultModel, samples: Sequence[HealthSample]) -> tuple[Float64, Float64]:
    """Scores [S] and probabilities of being wrong [S], as `HealthReport` has them."""
    if not samples:
        return np.zeros(0), np.zeros(0)
    p = model.probabilities([s.measured for s in samples])
    wrong = [n for n, fault in enumerate(model.faults) if fault in WRONG]
    return 1 - p[:, 0], p[:, wrong].sum(axis=1)


def _fit(samples: Sequence[HealthSample]) -> FaultModel:
    """Healthy and sick sensors weigh the same, and so do the faults; healthy ones in failing frames half of the healthy."""
    groups = [(s.fault, s.fault == HEALTHY and s.corruption != "") for s in samples]
    sizes = Counter(groups)
    faults = len({fault for fault, _ in sizes}) - 1
    share = {group: 1 / max(faults, 1) if group[0] != HEALTHY else 0.5 for group in sizes}
    weights = np.array([share[group] / sizes[group] for group in groups])
    return fit_model([s.measured for s in samples], [s.fault for s in samples], weights)


def _threshold(samples: Sequence[HealthSample]) -> float:
    """Where clean sensors, scored by parameters fitted on other drives, are taken for wrong at the wanted rate."""
    fold = [zlib.crc32(s.scene.encode()) % _FOLDS for s in samples]
    wrong = []
    for n in range(_FOLDS):
        apart = [s for s, k in zip(samples, fold, strict=True) if k == n and s.corruption == ""]
        rest = [s for s, k in zip(samples, fold, strict=True) if k != n]
        if apart and any(s.fault == HEALTHY for s in rest):
            wrong.append(score_samples(_fit(rest), apart)[1])
    if not wrong:
        return _LEAST_THRESHOLD
    limit = float(np.quantile(np.concatenate(wrong), 1 - FALSE_ALARMS, method="higher"))
    return min(max(limit, _LEAST_THRESHOLD), 0.999)


@dataclass(frozen=True)
class HealthFigure:
    """How well one kind of sensor is told to have one failure. NaN where there are too few samples."""

    failure: str  # corruption
    severity: int
    kind: str  # camera, lidar, radar
    fault: str
    sick: int  # samples
    auroc: float  # sick sensors against the same in clean frames
    moving: float  # the same, only with a vehicle that moved since a previous frame
    others: float  # sick sensors against sound ones of their kind in the same frames
    acted: float  # share of the sick that `act` leaves out
    named: float  # share of the sick whose likeliest fault is the right one

    @property
    def name(self) -> str:
        return f"{self.kind}: {self.failure}"


@dataclass(frozen=True)
class HealthFigures:
    """All figures, and what healthy sensors suffer: share taken for wrong by kind of sensor, in clean frames."""

    figures: tuple[HealthFigure, ...]
    false_alarms: Mapping[str, float]
    clean: Mapping[str, int]  # sensors looked at
    frames: int
    split: str

    def mean(self, severity: int, field: str = "auroc") -> float:
        """Mean over failures and kinds of sensor; NaN where there is none."""
        values = [getattr(f, field) for f in self.figures if f.severity == severity]
        known = [v for v in values if math.isfinite(v)]
        return float(np.mean(known)) if known else math.nan


def judge_monitor(
    monitor: HealthMonitor,
    config: RunConfig,
    *,
    failures: Sequence[str] = tuple(FAULT_OF),
    severities: Sequence[int] = (3,),
    limit: int | None = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> HealthFigures:
    """Measure a monitor on the validation split.

    Args:
        monitor: fitted on other drives.
        config: which data.
        failures: names of corruptions, of those that a monitor can be asked about (`FAULT_OF`).
        severities: of each.
        limit: samples with failures, drawn from the split; None: all. Clean frames are all looked at.
        seed: of the failures.
        progress: told of "judge".

    Raises:
        ValueError: an unknown failure, or the split is empty.
    """
    unknown = [name for name in failures if name not in FAULT_OF]
    if unknown:
        raise ValueError(f"health: unknown failure {unknown[0]!r}, expected one of {', '.join(FAULT_OF)}")
    split = config.data.nuscenes.val_split
    reader = open_reader(config.data, config.model, split)
    if not len(reader):
        raise ValueError(f"health: split {split!r} of {config.data.nuscenes.root} has no samples to judge on")
    count = len(reader) if limit is None else min(limit, len(reader))
    failing = set(np.random.default_rng(seed).permutation(len(reader))[:count].tolist())
    cases = [Corruption(name, severity, seed) for severity in severities for name in failures]

    def judged(_: str, done: int, total: int | None) -> None:  # a bar of its own, after that of fitting
        if progress is not None:
            progress("judge", done, total)

    samples = measure_drives(Past(reader), range(len(reader)), lambda i: cases if i in failing else [], judged)
    return judge_samples(monitor, samples, len(reader), split)


def judge_samples(monitor: HealthMonitor, samples: Sequence[HealthSample], frames: int, split: str) -> HealthFigures:
    """The figures of measured samples."""
    figures: list[HealthFigure] = []
    false_alarms, clean_counts = {}, {}
    for kind, model in monitor.models.items():
        of_kind = [s for s in samples if s.kind == kind]
        scores, wrong = score_samples(model, of_kind)
        named = (
            [model.faults[n] for n in 1 + model.probabilities([s.measured for s in of_kind])[:, 1:].argmax(axis=1)]
            if of_kind
            else []
        )
        clean = np.array([s.corruption == "" for s in of_kind], bool)
        moving = np.array([s.moved_m >= MOVING_M for s in of_kind], bool)
        if clean.any():
            false_alarms[kind] = float((wrong[clean] >= monitor.thresholds[kind]).mean())
            clean_counts[kind] = int(clean.sum())
        for failure, severity in sorted({(s.corruption, s.severity) for s in of_kind if s.corruption}):
            here = np.array([(s.corruption, s.severity) == (failure, severity) for s in of_kind], bool)
            sick = here & np.array([s.fault != HEALTHY for s in of_kind], bool)
            if not sick.any():
                continue
            fault = next(s.fault for s, is_sick in zip(of_kind, sick, strict=True) if is_sick)
            figures.append(
                HealthFigure(
                    failure=failure,
                    severity=severity,
                    kind=kind,
                    fault=fault,
                    sick=int(sick.sum()),
                    auroc=auroc(scores[sick], scores[clean]),
                    moving=auroc(scores[sick & moving], scores[clean & moving]),
                    others=auroc(scores[sick], scores[here & ~sick]),
                    acted=float((wrong[sick] >= monitor.thresholds[kind]).mean()),
                    named=float(np.mean([name == fault for name, is_sick in zip(named, sick, strict=True) if is_sick])),
                )
            )
    return HealthFigures(tuple(figures), false_alarms, clean_counts, frames, split)


def auroc(sick: Float64, sound: Float64) -> float:
    """Probability that a sick sensor scores above a sound one, ties counting half (Mann and Whitney); NaN below 10 of either."""
    if min(len(sick), len(sound)) < _FEWEST:
        return math.nan
    ordered = np.sort(sound)
    below = np.searchsorted(ordered, sick, side="left")
    up_to = np.searchsorted(ordered, sick, side="right")
    return float((0.5 * (below + up_to)).mean() / len(sound))


def _by_scene(reader: NuScenesReader) -> dict[str, list[int]]:
    scenes: dict[str, list[int]] = {}
    for i in range(len(reader)):
        scenes.setdefault(reader.scene_name(i), []).append(i)
    return scenes


def _spread(items: Sequence[_Item], count: int) -> list[_Item]:
    """At most `count` of the items, evenly spread over them."""
    if count >= len(items):
        return list(items)
    return [items[int((n + 0.5) * len(items) / count)] for n in range(count)]
