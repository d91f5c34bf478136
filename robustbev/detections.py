"""What a model sees in one frame, in plain numpy.

Letters: M modalities, T boxes, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensors.points import SensorUse

Float32 = NDArray[np.float32]


class NoPerceptionError(ValueError):
    """The boxes were asked for where no sensor saw anything: nothing is known, which is not "nothing is there"."""


@dataclass(frozen=True)
class Detection:
    """One object: an upright box in the reference frame (x forward, y left, z up)."""

    name: str  # of its class
    score: float  # 0..1
    center_m: tuple[float, float, float]
    size_m: tuple[float, float, float]  # width, length, height
    yaw_rad: float  # from +x to +y
    velocity_mps: tuple[float, float]  # over ground
    attribute: str | None


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes in the reference frame (x forward, y left, z up), by falling score, who was used and whom the model trusted.

    `perceived` is False where no sensor covers any cell. Then nothing is known: the arrays are empty, and `len`, `bool` and
    iteration raise NoPerceptionError, so that nobody takes it for an empty road.
    """

    token: str  # of the frame
    time_us: int  # of the frame
    perceived: bool
    classes: tuple[str, ...]  # what `label` indexes
    attributes: tuple[str, ...]  # what `attribute` indexes
    center_m: Float32  # [T, 3]
    size_m: Float32  # [T, 3] width, length, height; length lies along the heading
    yaw_rad: Float32  # [T] from +x to +y
    velocity_mps: Float32  # [T, 2] over ground
    label: NDArray[np.int64]  # [T]
    attribute: NDArray[np.int64]  # [T], -1 is none
    score: Float32  # [T] 0..1
    modalities: tuple[str, ...]  # M names, in the order of `attention`
    attention: Float32  # [M, X, Y] share of each modality or, where it does not see, of its null, 0..1; x counts forward, y left
    coverage: Float32  # [X, Y] 0..1, 0 where no sensor sees: no box there means nothing
    outputs: Mapping[str, Mapping[str, NDArray[Any]]]
    """Of the other tasks by name, each field of the output without its batch axis; empty where nothing was perceived."""
    sensors: Mapping[str, SensorUse]
    """By channel, every sensor of the rig that is of one of the modalities: used, or absent and why."""
    trust: dict[str, float]
    """Each modality's mean share of the attention over the cells that any sensor covers, as far as it covers them itself.

    With `null_share` they sum to 1; 0 of a modality that is absent.
    """
    null_share: float  # what the nulls of those that do not see got instead; 1 where nothing was perceived

    def __len__(self) -> int:
        self._must_have_perceived()
        return len(self.score)

    def __iter__(self) -> Iterator[Detection]:
        self._must_have_perceived()
        for i in range(len(self.score)):
            attribute = int(self.attribute[i])
            yield Detection(
                name=self.classes[int(self.label[i])],
                score=float(self.score[i]),
                center_m=_floats(self.center_m[i]),
                size_m=_floats(self.size_m[i]),
                yaw_rad=float(self.yaw_rad[i]),
                velocity_mps=_floats(self.velocity_mps[i]),
                attribute=None if attribute < 0 else self.attributes[attribute],
            )

    def _must_have_perceived(self) -> None:
        if not self.perceived:
            raise NoPerceptionError(
                "no sensor covers any cell of the grid, so nothing is known, which is not the same as nothing being there: "
                "ask `.perceived` before the boxes"
            )


def _floats(row: Float32) -> Any:
    return tuple(float(value) for value in row)
