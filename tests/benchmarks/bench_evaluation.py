"""The detection metrics of a submission of 200 boxes a sample: `training.tasks.detection.metrics` against the devkit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from robustbev import NUSCENES_ATTRIBUTES, NUSCENES_CLASSES
from sensors.nuscenes.reader import NuScenesReader
from tests.benchmarks.conftest import Compare
from tests.benchmarks.tables import write_tables
from training.tasks.detection.official import Metrics, OfficialEvaluation, open_tables
from training.tasks.detection.rules import official_rules
from training.tasks.detection.submission import submission, submission_boxes

SCENES, BOXES = 5, 200


def submitted(reader: NuScenesReader) -> dict[str, object]:
    """A quarter of the boxes are near a true one, the others are anywhere around it."""
    random, results = torch.Generator().manual_seed(0), {}
    for i, token in enumerate(reader.tokens):
        truth = reader.boxes(i)
        boxes = truth[torch.randint(len(truth), (BOXES,), generator=random)]
        spread_m = torch.where(torch.rand(BOXES, 1, generator=random) < 0.25, 0.5, 15.0)
        boxes = replace(
            boxes,
            center_m=boxes.center_m + spread_m * torch.randn(BOXES, 3, generator=random),
            yaw_rad=boxes.yaw_rad + 0.2 * torch.randn(BOXES, generator=random),
            score=torch.rand(BOXES, generator=random),
        )
        results[token] = submission_boxes(
            token, boxes, reader.global_T_reference(i), NUSCENES_CLASSES, NUSCENES_ATTRIBUTES
        )
    return submission(results, ("lidar",))


def bench_detection_metrics(tmp_path: Path, compare: Compare) -> None:
    """As the robustness matrix has them: the boxes are in memory, and truth is shared."""
    data = write_tables(tmp_path, SCENES).model_copy(update={"camera_channels": (), "radar_channels": ()})
    reader = NuScenesReader(data, data.train_split, classes=NUSCENES_CLASSES)
    content = submitted(reader)
    path = tmp_path / "results_nusc.json"
    path.write_text(json.dumps(content), "utf-8")
    tables = open_tables(data.root, data.version)

    def official(metrics: Metrics) -> OfficialEvaluation:
        return OfficialEvaluation(tables, reader.tokens, official_rules(54.0), metrics=metrics)

    ours, devkit = official("fast"), official("devkit")
    assert ours.measure(path)[0].mean_ap == devkit.measure(path)[0].mean_ap
    result = compare(
        f"{len(reader):,} samples, {BOXES * len(reader):,} boxes", 3, ours=lambda: ours.measure(path, content),
        ours_from_the_file=lambda: ours.measure(path), devkit=lambda: devkit.measure(path),
    )  # fmt: skip
    assert result.ratio("devkit") >= 20
