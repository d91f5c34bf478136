"""Scoring without the devkit: what a submission says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from training.tasks.detection.official import OfficialEvaluation
from training.tasks.detection.result import SubsetResult
from training.tasks.detection.scoring import Scoring
from training.tasks.predictions import Predictions


class _NoSamples:
    tokens = ()

    def evaluate(self, subset: str, *_: Any) -> SubsetResult:
        return SubsetResult(subset, 0.0, 0.0, {}, {}, "", 0)


def test_a_submission_names_the_kinds_of_its_modalities(tmp_path: Path) -> None:
    kinds = {"camera": "camera", "lidar_top": "lidar", "lidar_rear": "lidar"}
    scoring = Scoring(
        cast(OfficialEvaluation, _NoSamples()), {}, {"lidar_top+lidar_rear": Predictions()}, tmp_path,
        classes=(), attributes=(), kinds=kinds, max_boxes=1, score_threshold=0.0,
    )  # fmt: skip
    scoring.score("lidar_top+lidar_rear")
    meta = json.loads((tmp_path / "lidar_top+lidar_rear" / "results_nusc.json").read_text(encoding="utf-8"))["meta"]
    assert [name for name in ("use_camera", "use_lidar", "use_radar") if meta[name]] == ["use_lidar"]
