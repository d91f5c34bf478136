"""The configuration of a run: complete and typed here, so that a YAML file says only what differs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from robustbev import ModelConfig, StrictModel
from robustbev.config import DETECTION
from sensors.frames import KINDS
from training.data.dataset import DataConfig
from training.evaluation.config import EvaluationConfig, subset_name
from training.files.config_file import load_config
from training.loop.optim import OptimConfig
from training.loop.step import StepConfig
from training.tracking.run import absolute_uri, default_uri, own_uri

Count = Annotated[int, Field(ge=1)]


class CheckpointConfig(StrictModel):
    """When to write checkpoints. One is always written at the end, and when a run is interrupted."""

    every_epochs: Count | None = 1
    every_steps: Count | None = None
    keep: Count = 2  # how many, the newest


class RunnerConfig(StrictModel):
    """Where the loop runs."""

    workers: Annotated[int, Field(ge=0)] = 0  # 0: in this process, without Ray; otherwise so many Ray Train workers
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA where this machine has it
    address: str | None = None  # of a Ray cluster, as `ray.init` takes it; null: Ray on this machine alone
    cpus_per_worker: Annotated[float, Field(gt=0)] | None = None  # null: this machine's, shared out evenly
    max_failures: Annotated[int, Field(ge=-1)] = 2  # how often a lost worker group starts again; -1: always
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def use_cuda(self) -> bool:
        if self.device != "auto":
            return self.device == "cuda"
        import torch

        return torch.cuda.is_available()


class TrackingConfig(StrictModel):
    """MLflow."""

    enabled: bool = True
    uri: str | None = None  # null: SQLite in `<runs_dir>/mlflow.db`
    experiment: Annotated[str, Field(min_length=1)] = "robustbev"
    every_steps: Count = 20  # metrics are logged as means over so many steps, and over what is left of an epoch
    submissions: bool = False  # `evaluate` hands over the submissions to nuScenes too, hundreds of megabytes a subset


class RunConfig(StrictModel):
    """Everything that decides a training run. Relative paths are relative to the working directory."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    runs_dir: Path = Path("runs")  # the run lies in `<runs_dir>/<name>`
    seed: Annotated[int, Field(ge=0)] = 0
    epochs: Count = 12
    batch_size: Count = 8  # of one worker; an optimiser step sees batch_size x workers x optim.accumulation samples
    init_from: Path | None = None  # a checkpoint whose weights to start from; null: fresh weights
    init_fresh: tuple[str, ...] = ()  # parts of the model (encoders.radar, fuser.added) that init_from may lack
    freeze: tuple[str, ...] = ()  # parts of the model (encoders.camera, fuser.base) that do not learn
    camera_weights: Path | None = None  # published weights of the ViT (timm's or DINOv2's names); null: from scratch
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    step: StepConfig = StepConfig()
    optim: OptimConfig = OptimConfig()
    runner: RunnerConfig = RunnerConfig()
    tracking: TrackingConfig = TrackingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if self.model.rig is not None:
            raise ValueError("model.rig follows from data: name the channels and sweeps in data.nuscenes instead")
        if self.camera_weights is not None and "camera" not in self.model.kinds:
            raise ValueError(
                "camera_weights: no modality of the model is of kind camera, so there is no ViT to load them into"
            )
        known = (*self.model.modalities, *KINDS)  # a base's settings of a modality that is null here do no harm
        if unknown := [name for name in self.step.dropout.modality if name not in known]:
            raise ValueError(
                f"step.dropout.modality names {unknown[0]!r}, expected some of the model's modalities "
                f"{', '.join(self.model.modalities)}; where a base names it, give the whole of step.dropout.modality anew"
            )
        others = [name for name in self.model.tasks if name != DETECTION]
        if unknown := [name for name in self.step.weights.tasks if name not in others]:
            raise ValueError(
                f"step.weights.tasks: expected some of the model's tasks beside {DETECTION} ({', '.join(others) or 'none'}), "
                f"got {unknown[0]!r}; where a base names it, give the whole of step.weights.tasks anew. Losses of {DETECTION} "
                "have weights of their own, as step.weights.heatmap"
            )
        for key in ("subsets", "watch"):
            for subset in getattr(self.evaluation, key):
                try:
                    subset_name(subset.split("+"), tuple(self.model.modalities))
                except ValueError as error:
                    raise ValueError(f"evaluation.{key}: {error}") from error
        if unknown := [name for name in self.evaluation.class_range_m if name not in self.model.classes]:
            raise ValueError(
                f"evaluation.class_range_m names {unknown[0]!r}, expected some of model.classes: "
                f"{', '.join(self.model.classes)}"
            )
        if self.evaluation.best == "NDS" and not self.evaluation.is_official(self.model.classes):
            raise ValueError(
                "evaluation.best: expected mAP, got NDS, which is not defined with classes, ranges or distances of one's own"
            )
        unknown = [name for name in self.data.nuscenes.classes if name not in self.model.classes]
        if unknown:
            raise ValueError(
                f"data.nuscenes.class_map leads to {unknown[0]!r}, expected one of model.classes: "
                f"{', '.join(self.model.classes)}"
            )
        return self

    @property
    def run_dir(self) -> Path:
        return self.runs_dir / self.name

    @property
    def tracker(self) -> str:
        """The address of the MLflow that is to hear of the run."""
        return default_uri(self.runs_dir) if self.tracking.uri is None else absolute_uri(self.tracking.uri)


# What may change when a run goes on: it decides where and how a run is worked on, not what comes out.
FREE_TO_CHANGE: tuple[str, ...] = (
    "name", "runs_dir", "runner", "tracking", "evaluation", "step.precision",
    "data.workers", "data.prefetch", "data.timeout_s", "data.start_method", "data.pin_memory", "data.nuscenes.index_dir",
)  # fmt: skip


def load_run_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in a YAML file with `key=value` overrides; see `config_file.load_config` for what it raises."""
    return load_config(RunConfig, path, overrides)


def load_config_of_run(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that a run left in its folder, but for its tracker: see `own_uri`. `overrides` are the user's."""
    named = load_run_config(path).tracking.uri
    return load_run_config(path, [f"tracking.uri={json.dumps(own_uri(path.parent, named))}", *overrides])
