"""Charts: they are there, need no display, are not blank."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from robustbev import NUSCENES_CLASSES
from sensors.frames import KINDS
from training.evaluation.config import every_subset
from training.pictures.charts import subset_chart, training_curves
from training.tasks.detection.result import TP_ERRORS, SubsetResult

SUBSETS = every_subset(KINDS)


def _pixels(path: Path) -> NDArray[np.uint8]:
    """The picture, having checked that it is one and not blank."""
    image = cv2.imread(str(path))
    assert image is not None, path
    assert min(image.shape[:2]) > 300
    assert image.std() > 8
    assert not list(path.parent.glob(".*"))
    return np.asarray(image, np.uint8)


def _results(scale: float = 1.0) -> dict[str, SubsetResult]:
    return {
        subset: SubsetResult(
            subset, scale * (0.6 - 0.05 * k), scale * 0.6, dict.fromkeys(TP_ERRORS.values(), 0.3),
            dict.fromkeys(NUSCENES_CLASSES, 0.5), "ranges: official", 10,
        )
        for k, subset in enumerate(SUBSETS)
    }  # fmt: skip


def test_charts_of_an_evaluation(tmp_path: Path) -> None:
    _pixels(subset_chart(tmp_path / "chart.png", _results()))
    zero = {"radar": dataclasses.replace(_results()["radar"], mean_ap=0.0, nds=0.0)}
    _pixels(subset_chart(tmp_path / "zero.png", zero))


def test_curves_of_a_training_run(tmp_path: Path) -> None:
    history = [
        {
            "step": i + 1,
            "loss": 2 / (i + 1),
            "parts": {"heatmap": 1 / (i + 1), "late": 0.1} if i > 20 else {},
            "lr": 1e-3,
        }
        for i in range(60)
    ]
    _pixels(training_curves(tmp_path / "curves.png", history))
    _pixels(training_curves(tmp_path / "one.png", history[:1]))
    with pytest.raises(ValueError, match="empty"):
        training_curves(tmp_path / "none.png", [])


def test_pictures_need_no_display_and_leave_no_global_figure() -> None:
    """Neither charts nor the frames of a film."""
    code = (
        "import sys; from training.pictures.drawing import new_figure; new_figure(1, 1).add_subplot(); "
        "from tests.robustbev.results.replay_results import result; from training.pictures.film import FramePainter; "
        "from tests.training.pictures.scene.scenes import CONFIG; FramePainter(CONFIG).paint(result()); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment["MPLBACKEND"] = "TkAgg"  # what a desktop may have set
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_only_png_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PNG"):
        subset_chart(tmp_path / "chart.jpg", _results())
    assert not list(tmp_path.iterdir())
