"""What `robustbev robustness` measures, and where it does so."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from robustbev import StrictModel
from sensors.corruptions import MULTICORRUPT
from sensors.health.monitor import HealthMode
from training.robustness.cases import Case

Severity = Annotated[int, Field(ge=1, le=5)]


class NuScenesChoice(StrictModel):
    """Another data set, or another part of it, than the run was evaluated on; null is the run's own."""

    root: Path | None = None
    version: str | None = None
    val_split: str | None = None


class DataChoice(StrictModel):
    """The data to measure on."""

    nuscenes: NuScenesChoice = NuScenesChoice()


class RobustnessConfig(StrictModel):
    """The matrix corruption x severity, the subsets, and who does the work.

    Relative paths are relative to the working directory.
    """

    corruptions: tuple[str, ...] = MULTICORRUPT  # of all the sensors that the model has
    severities: Annotated[tuple[Severity, ...], Field(min_length=1)] = (1, 3, 5)
    subsets: tuple[str, ...] = ()  # on clean data; none: as `EvaluationConfig.subsets`
    seed: Annotated[int, Field(ge=0)] = 0  # of the corruptions
    limit: Annotated[int, Field(ge=1)] | None = None  # only the first so many samples of the split
    health: HealthMode = "off"  # act: sensors that look sick are replaced by their null embeddings
    monitor: Path = Path("runs/health.json")  # of act: what `robustbev health --fit` wrote
    data: DataChoice = DataChoice()

    out: Path | None = None  # null: `robustness` in the run's folder
    jobs: Annotated[int, Field(ge=0)] | None = None
    """Ray tasks at a time; null: one a CPU, or `tasks_per_gpu` a GPU; 0: without Ray."""
    address: str | None = None  # of a Ray cluster, as `ray.init` takes it; null: Ray on this machine alone
    max_retries: Annotated[int, Field(ge=0)] = 3  # how often a task whose process or machine died is run again
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA where this machine has it
    tasks_per_gpu: Annotated[int, Field(ge=1)] = 4  # that share one GPU, and the CPUs that load for it
    tracking: bool = True  # figures and report go into the MLflow of the checkpoint's run, if that is tracked

    @field_validator("corruptions")
    @classmethod
    def _known(cls, corruptions: tuple[str, ...]) -> tuple[str, ...]:
        for name in corruptions:
            Case(corruption=name, severity=1)
        return tuple(dict.fromkeys(corruptions))

    @field_validator("health", mode="before")
    @classmethod
    def _off(cls, health: object) -> object:
        return "off" if health is False else health  # YAML takes a bare off for false

    @field_validator("severities")
    @classmethod
    def _in_order(cls, severities: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(severities)))

    @property
    def use_cuda(self) -> bool:
        if self.device != "auto":
            return self.device == "cuda"
        import torch

        return torch.cuda.is_available()
