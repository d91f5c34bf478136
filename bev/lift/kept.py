"""Lift tables that are kept while a calibration stays.

Letters: B samples, N cameras.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from .table import LiftTable, build_lift_table


class KeptTables:
    """`build_lift_table`, whose last tables are kept: of the same calibration, to the bit, the same table comes back.

    For CPUs, and for several threads at a time. What is kept is `most` tables, the least lately asked for goes first. A table is
    shared by all who asked for it: read it, do not write to it.
    """

    def __init__(self, most: int = 4) -> None:
        self._most, self._tables, self._lock = most, OrderedDict[Any, LiftTable](), Lock()

    def __deepcopy__(self, memo: object) -> KeptTables:
        return KeptTables(self._most)

    def __reduce__(self) -> tuple[type[KeptTables], tuple[int]]:
        return KeptTables, (self._most,)

    def __len__(self) -> int:
        return len(self._tables)

    def __call__(self, intrinsics: Tensor, reference_T_camera: Tensor, present: Tensor, **of: Any) -> LiftTable:
        """Arguments and errors as of `build_lift_table`: [B, N, 3, 3], [B, N, 4, 4] and [B, N] bool on the CPU."""
        given = (intrinsics, reference_T_camera, present)
        key = (*(tensor.numpy().tobytes() for tensor in given), present.shape, *sorted(of.items()))
        with self._lock:
            if key in self._tables:
                self._tables.move_to_end(key)
                return self._tables[key]
        with torch.inference_mode(False):  # who trains on a batch may be given the table that `perceive` made
            table = build_lift_table(*(tensor.clone() for tensor in given), **of)
        with self._lock:
            self._tables[key] = table
            if len(self._tables) > self._most:
                self._tables.popitem(last=False)
        return table
