"""What is asked of the fused grid: the seam between the model and its tasks.

Letters: B samples, C channels, Q channels of measured motion, X and Y cells.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bev.grid import BEVGrid
from fusion.runtime import TensorSpec
from sensors.settings import StrictModel

REFERENCE = "reference: ego at the sample's time, x forward, y left, z up"
CELLS = "cells of the grid, X forward, Y left"


class TaskConfig(StrictModel):
    """What every task's configuration has; `kind` tells them apart."""

    def check(self, classes: tuple[str, ...], attributes: tuple[str, ...]) -> None:
        """ValueError where these settings do not fit the model's classes and attributes; the message begins with the key."""


@dataclass(frozen=True)
class Question:
    """What a task knows of the model that it is asked of."""

    channels: int  # C, of the grid behind the backbone
    motion_channels: int  # Q, of what sensors measure of motion by themselves
    grid: BEVGrid
    classes: tuple[str, ...]
    attributes: tuple[str, ...]


class Task(nn.Module, ABC):
    """A head on the fused grid, and how its logits become an answer. What training asks of it is `training.tasks.task.Task`.

    Logits and outputs are dataclasses of tensors whose first axis is the batch; whatever a head computes in, its logits reach
    `decode` and the losses in float32. An output may say in a class variable `maps` which of its fields are maps [B, X, Y] of the
    grid, each with the two values between which it is drawn: replays and pictures show them.
    """

    @abstractmethod
    def forward(self, features: Tensor, motion: Tensor) -> Any:
        """Logits of [B, C, X, Y] features, and of [B, Q, X, Y] what sensors measure of motion, 0 where they measure nothing."""

    @abstractmethod
    def decode(self, logits: Any, coverage: Tensor) -> Any:
        """The output. Where `coverage` [B, X, Y] is 0 in all of a sample nothing is known, and the output must say so."""

    @abstractmethod
    def interface(self) -> tuple[TensorSpec, ...]:
        """Every field of the output as an exported file has it, in their order; B is the batch's size."""
