"""Corrupted frames on their way to the network, and whether they were corrupted at all."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path

import torch

from sensors.corruptions import Corruption, CorruptionError, corrupt
from sensors.frames import History, SensorFrame
from sensors.health.monitor import HealthMode
from training.health.fit import DEFAULT_MONITOR, HealthAlter


class Change:
    """What happens to a frame before it is prepared: the corruption, then what sensor health makes of it.

    Loader workers call it, each in its own process; `_seen` lies in memory that they share with the parent, a row a worker, so
    that no two write to the same place.
    """

    def __init__(
        self, corruption: Corruption | None, health: HealthMode, workers: int, monitor: Path | None = None
    ) -> None:
        self._corruption = corruption
        self._health = HealthAlter(monitor or DEFAULT_MONITOR) if health == "act" else None
        # [worker, counts of frames: all, those that the corruption should have changed and did not, those that it changed];
        # row 0 is the parent's
        self._seen = torch.zeros(workers + 1, 3, dtype=torch.long).share_memory_()

    def __call__(self, frame: SensorFrame, history: History) -> SensorFrame:
        altered = self._corrupted(frame, history)
        worker = torch.utils.data.get_worker_info()
        row = self._seen[0 if worker is None else worker.id + 1]
        # `corrupt` returns the frame itself where there is nothing to corrupt in it.
        row += torch.tensor([True, altered is None, altered is not None and altered is not frame])
        if self._health is None:
            return altered or frame
        return self._health(altered or frame, self._delivered(history))

    def _corrupted(self, frame: SensorFrame, history: History) -> SensorFrame | None:
        """None where the corruption should have changed something and did not: one such frame must not end a run of hours."""
        if self._corruption is None:
            return frame
        try:
            return corrupt(frame, self._corruption, history)
        except CorruptionError:
            return None

    def _delivered(self, history: History) -> History:
        """The past as a monitor saw it: corrupted as well."""

        def delivered(n: int) -> SensorFrame | None:
            frame = history(n)
            return None if frame is None else self._corrupted(frame, lambda more: history(n + more)) or frame

        return delivered

    def check(self, cases: Collection[str]) -> None:
        """Raise CorruptionError where what was measured, under the names of these cases, is clean data in disguise.

        Warns of single frames that should have changed and did not.
        """
        if self._corruption is None:
            return
        frames, refused, changed = self._seen.sum(dim=0).tolist()
        if not changed:
            raise CorruptionError(
                f"{', '.join(cases)}: {self._corruption.name} changed nothing, in none of {frames} frames; the figures would be "
                "those of clean data. Leave it out"
            )
        if refused:
            warnings.warn(
                f"{self._corruption} changed nothing in {refused} of {frames} frames, though it should", stacklevel=2
            )
