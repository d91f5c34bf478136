"""A replay's boxes as a nuScenes detection submission."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robustbev.results.result import ResultWriter, TickResult
from sensors.logs.log import LogWarning
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.index import open_index
from training.files.atomic import write_json
from training.tasks.detection.rules import CLASS_RANGE_M
from training.tasks.detection.submission import MAX_BOXES_PER_SAMPLE, submission, submission_boxes

TOLERANCE_US = 50_000


def scene_samples(config: NuScenesConfig, scene: str) -> dict[str, int]:
    """Token -> time in us of the samples of a scene, in order of time; ValueError for a scene that is not there."""
    index = open_index(config)
    if scene not in index.meta.scenes:
        known = ", ".join(index.meta.scenes[:8]) + (", ..." if len(index.meta.scenes) > 8 else "")
        raise ValueError(f"{config.root} {config.version}: no scene {scene!r}; scenes there: {known}")
    rows = np.flatnonzero(index.arrays.sample_scene == index.meta.scenes.index(scene))
    times_us = {index.arrays.sample_token[row].decode(): int(index.arrays.sample_time_us[row]) for row in rows}
    return dict(sorted(times_us.items(), key=lambda sample: sample[1]))


class SubmissionWriter(ResultWriter):
    """A `ResultWriter`: every sample gets the boxes of the tick nearest to it, if that is within 50 ms.

    A sample without such a tick, and one at which nothing was perceived, has no boxes: the format has no word for "not
    known". How many there are is a LogWarning at `close`.

    Args:
        path: the JSON file, which appears whole at `close`.
        samples: token -> time in us, of every sample that the submission has to answer; of the log's own clock.
        max_boxes, score_threshold: as `training.tasks.detection.submission.submission_boxes`.

    Raises:
        ValueError: there is no sample.
    """

    def __init__(
        self,
        path: Path,
        samples: Mapping[str, int],
        *,
        tolerance_us: int = TOLERANCE_US,
        max_boxes: int = MAX_BOXES_PER_SAMPLE,
        score_threshold: float = 0.0,
    ) -> None:
        if not samples:
            raise ValueError(f"{path}: a nuScenes submission answers samples, and this log has none; leave it out")
        self._path = path
        self._tokens = np.array(list(samples))
        self._times_us = np.array(list(samples.values()), np.int64)
        self._tolerance_us = tolerance_us
        self._max_boxes = max_boxes
        self._score_threshold = score_threshold
        self._rows: dict[str, list[dict[str, Any]]] = {str(token): [] for token in self._tokens}
        self._gap_us: dict[str, int] = {}  # token -> from its tick
        self._blind: set[str] = set()
        self._used: set[str] = set()  # kinds of sensors of which the model was given anything

    def write(self, result: TickResult) -> None:
        self._used |= {status.modality for status in result.tick.sensors.values() if status.given}
        gaps_us = np.abs(self._times_us - result.tick.time_us)
        for n in np.flatnonzero(gaps_us <= self._tolerance_us):
            token, gap_us = str(self._tokens[n]), int(gaps_us[n])
            if gap_us < self._gap_us.get(token, self._tolerance_us + 1):
                self._answer(token, gap_us, result)

    def _answer(self, token: str, gap_us: int, result: TickResult) -> None:
        self._rows[token] = submission_boxes(
            token,
            result.candidates,
            result.tick.frame.global_T_reference,
            result.classes,
            result.attributes,
            max_boxes=self._max_boxes,
            score_threshold=self._score_threshold,
            official=set(result.classes) <= set(CLASS_RANGE_M),
        )
        self._gap_us[token] = gap_us
        (self._blind.discard if result.perceived else self._blind.add)(token)

    def close(self) -> None:
        write_json(self._path, submission(self._rows, sorted(self._used)), indent=None)
        unanswered = self._rows.keys() - self._gap_us.keys()
        for samples, why in ((unanswered, "no tick is near them"), (self._blind, "nothing was perceived there")):
            if samples:
                text = f"{self._path}: {len(samples)} of {len(self._rows)} samples have no box because {why}, as {min(samples)}"
                warnings.warn(f"{text}: the format has no word for not known", LogWarning, stacklevel=2)
