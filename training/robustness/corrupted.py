"""Corrupted frames on their way to the network, and whether they were corrupted at all."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sensors.corruptions import Corruption, CorruptionError, corrupt
from sensors.frames import KINDS, History, SensorFrame
from sensors.health.monitor import HealthMode
from training.data.dataset import Alter
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
        self._health = _health_alter(monitor) if health == "act" else None
        # [worker, counts of frames: all, those that the corruption should have changed and did not, those in which each
        # kind of sensor changed]; row 0 is the parent's
        self._seen = torch.zeros(workers + 1, 2 + len(KINDS), dtype=torch.long).share_memory_()

    def __call__(self, frame: SensorFrame, history: History) -> SensorFrame:
        altered = self._corrupted(frame, history)
        worker = torch.utils.data.get_worker_info()
        row = self._seen[0 if worker is None else worker.id + 1]
        # `corrupt` returns the frame itself where there is nothing to corrupt in it.
        row += torch.tensor([True, altered is None, *changed_modalities(frame, altered or frame)])
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

    def check(self, cases: Mapping[str, Collection[str]]) -> None:
        """Raise CorruptionError where what was measured is clean data in disguise; `cases`: by the
        name of each case that was measured, the kinds of its sensors.

        Warns of single frames that should have changed and did not.
        """
        if self._corruption is None:
            return
        frames, refused, *changed = self._seen.sum(dim=0).tolist()
        touched = [name for name, count in zip(KINDS, changed, strict=True) if count]
        for name, kinds in cases.items():
            if not set(touched) & set(kinds):
                what = f"it changed only {', '.join(touched)}" if touched else "it changed nothing at all"
                delivered = "+".join(sorted(kinds))
                raise CorruptionError(
                    f"{name}: {self._corruption.name} changed nothing that {delivered} delivers, in none of {frames} frames "
                    f"({what}); the figures would be those of clean data. Leave this case out"
                )
        if refused:
            warnings.warn(
                f"{self._corruption} changed nothing in {refused} of {frames} frames, though it should", stacklevel=2
            )


def _health_alter(monitor: Path | None) -> Alter:

    return HealthAlter(DEFAULT_MONITOR if monitor is None else monitor)


def changed_modalities(before: SensorFrame, after: SensorFrame) -> tuple[bool, bool, bool]:
    """Whether cameras, LiDAR and radar deliver something else after than before."""
    sectors = [getattr(frame, "lidar_sectors", None) for frame in (before, after)]
    return (
        not _same(before.cameras, after.cameras),
        not (_same(before.lidar, after.lidar) and _same(*sectors)),
        not _same(before.radar, after.radar),
    )


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f")
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if is_dataclass(a) and type(a) is type(b):
        return all(_same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return bool(type(a) is type(b) and a == b)
