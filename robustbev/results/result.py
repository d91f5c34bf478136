"""What a replay gives, tick by tick, and who listens.

Letters: T boxes, M modalities, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bev.detection.boxes import Boxes
from robustbev.perception import TaskMap
from sensors.points import SensorUse
from sensors.replay.tick import Tick


@dataclass(frozen=True)
class TickResult:
    """What the model made of a tick. Nothing in it depends on how fast the machine was."""

    tick: Tick
    perceived: bool  # False: no sensor covers any cell. `boxes` is empty then, and does not mean "nothing there"
    boxes: Boxes  # [T] on the CPU, reference frame, sorted by score; one class a place
    candidates: Boxes  # [T or more] of every class, as evaluations measure them
    modalities: tuple[str, ...]  # M
    attention: NDArray[np.float32]  # [M, X, Y] share of each modality or, where it does not see, of its null
    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    trust: Mapping[
        str, float
    ]  # modality -> its share of the attention as `Detections.trust`, 0 of one that does not see
    maps: Mapping[str, TaskMap] = field(default_factory=dict)  # of the other tasks, by TASK/FIELD
    sensors: Mapping[str, SensorUse] = field(default_factory=dict)
    """What became of each sensor, by channel, as `Detections.sensors`; how it stands from tick to tick is in `tick.sensors`."""

    @property
    def null_share(self) -> float:
        """What the nulls of those that do not see got, as `Detections.null_share`."""
        return max(0.0, 1 - sum(self.trust.values()))


# What was really there at the tick of a result, in its reference frame; None where it is not known.
TruthAt: TypeAlias = Callable[[TickResult], Boxes | None]


class ResultWriter(Protocol):
    """Takes results in order. What it writes lies under its final name only after `close`; `abort` leaves nothing behind.

    Who writes no file inherits both, which do nothing.
    """

    def write(self, result: TickResult) -> None: ...

    def close(self) -> None:
        return

    def abort(self) -> None:
        return
