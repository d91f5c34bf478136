"""A model's configuration for the results of `replay_results`, and their ticks as scenes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbev import ModelConfig
from robustbev.config import GridConfig
from robustbev.results.result import TickResult
from tests.robustbev.results.replay_results import CLASSES, GRID
from training.pictures.scene.panels import Panel, Scene, channels_there

CONFIG = ModelConfig(
    classes=CLASSES,
    grid=GridConfig(x_min_m=GRID.x_min_m, x_max_m=GRID.x_max_m, y_min_m=GRID.y_min_m, y_max_m=GRID.y_max_m, cell_m=2.0),
)
SIDE_PX = 480  # of a view of the grid's 24 x 24 m


def scene(result: TickResult, **changes: Any) -> Scene:
    frame = result.tick.frame
    fields: dict[str, Any] = {
        "frame": frame,
        "grid": GRID,
        "classes": CLASSES,
        "found": result.boxes,
        "perceived": result.perceived,
        "attention": result.attention,
        "channels": channels_there(CONFIG, frame),
        "camera_channels": ("CAM_FRONT", "CAM_BACK"),
        "sensors": result.tick.sensors,
    }
    return Scene(**(fields | changes))


def drawn(panel: Panel, height_px: int = SIDE_PX, width_px: int = SIDE_PX) -> NDArray[np.uint8]:
    view = np.zeros((height_px, width_px, 3), np.uint8)
    panel.draw(view)
    return view


def from_above(x_m: float, y_m: float) -> tuple[int, int]:
    """(row, column) of a place in a view from above: x up, y to the left."""
    return round((16 - x_m) * SIDE_PX / 24), round((12 - y_m) * SIDE_PX / 24)


def near(pixels: NDArray[np.uint8], colour: tuple[int, int, int], reach: int = 12) -> NDArray[np.bool_]:
    """[H, W]: where this colour is."""
    return (np.abs(pixels.astype(int) - colour) <= reach).all(axis=-1)
