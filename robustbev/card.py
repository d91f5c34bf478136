"""The model card: what whoever is handed the weights must know of them (Mitchell et al., "Model Cards", FAT* 2019)."""

from __future__ import annotations

from dataclasses import dataclass

from robustbev.config import ModelConfig
from sensors.camera.config import CameraConfig
from sensors.lidar.config import LidarConfig
from sensors.text import markdown

NOT_CERTIFIED = (
    "Research software, not safety-certified: no functional-safety standard (ISO 26262, ISO 21448, UL 4600) was applied. It "
    "must not be what keeps people from harm."
)
_LIMITS = (
    "It knows only the classes above, only within the grid, and only sensors like those that it was trained with.",
    "A score is a ranking, not a probability: it was not calibrated.",
    "Where `coverage` is 0 it knows nothing: no box there does not mean that nothing is there.",
    "It tells that a sensor is lost when it is told so. Of a sensor that lies it may believe a part: watch the health of the "
    "sensors (`sensors.health.monitor`).",
)


@dataclass(frozen=True)
class SubsetFigures:
    """What the model reached with some of its sensors."""

    subset: str  # "camera+lidar"
    mean_ap: float  # nuScenes' mAP, 0..1
    nds: float | None  # nuScenes detection score, 0..1; None: not defined for these classes


@dataclass(frozen=True)
class ModelCard:
    """What the weights cannot tell of themselves. What is not known stays empty, and the card says so."""

    name: str = "RobustBEV model"
    trained_on: str = ""  # which data, how much of it, how long
    evaluated_on: str = ""  # which data the figures hold for
    figures: tuple[SubsetFigures, ...] = ()
    limits: tuple[str, ...] = ()  # beyond those that every model has

    def markdown(self, config: ModelConfig) -> str:
        """The card of a model with this configuration."""
        grid = config.grid
        sections = [
            f"# {markdown(self.name)}",
            f"Finds objects in bird's-eye view with any subset of {markdown(', '.join(config.modalities))}.",
            f"**{NOT_CERTIFIED}**",
            "## Use",
            '```python\nimport robustbev\n\nmodel = robustbev.load("this-folder")  # runs nothing that is in the files\n'
            "detections = model.perceive(frame)  # a sensors.frames.SensorFrame of numpy arrays\n```",
            "## What goes in and what comes out",
            "\n".join(_rig(config)),
            f"Boxes of {markdown(', '.join(config.classes))}, for x {grid.x_min_m:g} to {grid.x_max_m:g} m (forward) and y "
            f"{grid.y_min_m:g} to {grid.y_max_m:g} m (left), in cells of {grid.cell_m:g} m.",
            "## Training data",
            markdown(self.trained_on) or "Not stated.",
            "## What it reaches with which sensors",
            self._table(),
            "## Limits",
            "\n".join(f"- {limit}" for limit in (*_LIMITS, *map(markdown, self.limits))),
        ]
        return "\n\n".join(sections) + "\n"

    def _table(self) -> str:
        if not self.figures:
            return "Not evaluated. `robustbev evaluate --checkpoint ...` measures every subset and writes the figures here."
        scored = all(f.nds is not None for f in self.figures)
        rows = [
            f"| {markdown(f.subset).replace('+', ' + ')} | {f.mean_ap:.3f} |" + (f" {f.nds:.3f} |" if scored else "")
            for f in self.figures
        ]
        who = "the official nuScenes evaluation" if scored else "nuScenes' formulas"
        caption = f"Measured on {markdown(self.evaluated_on)}, by {who}." if self.evaluated_on else ""
        head = ["| sensors | mAP | NDS |", "|---|---:|---:|"] if scored else ["| sensors | mAP |", "|---|---:|"]
        return "\n".join([*head, *rows, "", caption]).rstrip()


def _rig(config: ModelConfig) -> list[str]:
    if config.rig is None:
        return ["- sensors: not stated"]
    rig = config.rig
    lines = []
    for name, modality in config.modalities.items():
        match modality:
            case CameraConfig():
                how = f"{modality.image_width_px} x {modality.image_height_px} px to the network"
            case LidarConfig():
                how = _sweeps(rig.lidar_sweeps)
            case _:
                how = _sweeps(rig.radar_sweeps)
        lines.append(f"- {name} ({how}): {markdown(', '.join(config.channels_of(name, rig))) or 'none'}")
    return lines


def _sweeps(count: int) -> str:
    return "one sweep" if count == 1 else f"up to {count} sweeps each"
