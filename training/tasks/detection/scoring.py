"""From what a model found to figures, several subsets of the sensors at a time.

Letters: K boxes.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sensors.processes import run_each
from training.files.atomic import write_json
from training.tasks.detection.result import SubsetResult
from training.tasks.detection.submission import submission, submission_boxes
from training.tasks.predictions import Predictions, Progress

if TYPE_CHECKING:
    from training.tasks.detection.official import OfficialEvaluation


@dataclass
class Scoring:
    """All that is needed to score one subset, in this process or in a forked one."""

    official: OfficialEvaluation
    poses: Mapping[str, NDArray[np.float64]]  # token -> [4, 4] global_T_reference
    predictions: dict[str, Predictions]
    out_dir: Path
    classes: Sequence[str]
    attributes: Sequence[str]
    kinds: Mapping[str, str]  # modality -> its kind of sensors
    max_boxes: int
    score_threshold: float

    def score(self, subset: str) -> SubsetResult:
        path = self.out_dir / subset / "results_nusc.json"
        predictions = self.predictions[subset]
        rows = {
            token: submission_boxes(
                token,
                predictions.boxes[token],
                self.poses[token],
                self.classes,
                self.attributes,
                max_boxes=self.max_boxes,
                score_threshold=self.score_threshold,
                official=self.official.rules.official,
            )
            for token in self.official.tokens
        }
        content = submission(rows, {self.kinds[name] for name in subset.split("+")})
        write_json(path, content, indent=None)
        result = self.official.evaluate(subset, path, predictions.no_perception, content)
        return replace(result, boxes=sum(len(boxes) for boxes in rows.values()))

    def run(self, subsets: Sequence[str], processes: int, progress: Progress | None) -> dict[str, SubsetResult]:
        """Score the subsets, several at a time where processes can be forked.

        Forked children share the loaded tables and ground truth without a copy. They only read small CPU tensors and run numpy
        and the devkit, so that neither torch's thread pools nor an accelerator's state matters to them.
        """
        results: dict[str, SubsetResult] = {}
        processes = min(processes, len(subsets), os.cpu_count() or 1)
        if processes == 1 or "fork" not in multiprocessing.get_all_start_methods():
            for subset in subsets:
                results[subset] = self.score(subset)
                _report(progress, results, subsets)
            return results
        global _forked
        _forked = self
        try:
            for number, result in run_each(_score_forked, [(subset,) for subset in subsets], processes, "fork"):
                results[subsets[number]] = result
                _report(progress, results, subsets)
        finally:
            _forked = None
        return results


_forked: Scoring | None = None  # what a forked child inherits; set only while `Scoring.run` runs


def _score_forked(subset: str) -> SubsetResult:
    assert _forked is not None
    return _forked.score(subset)


def _report(progress: Progress | None, results: dict[str, SubsetResult], subsets: Sequence[str]) -> None:
    if progress is not None:
        progress("score", len(results), len(subsets))
