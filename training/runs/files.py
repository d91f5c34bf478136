"""Where a run keeps what, and whether it may go on."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from robustbev.checkpoints import find_checkpoint
from sensors.nuscenes.index import data_id
from training.files.atomic import held, read_note, write_json, write_text
from training.files.config_file import ConfigError, parse_yaml, to_yaml
from training.files.settings import differences
from training.loop.callbacks import Callback
from training.runs.config import FREE_TO_CHANGE, RunConfig, load_config_of_run
from training.tracking.run import outbox_of, sent_of


class RunError(ValueError):
    """A run cannot begin, or cannot go on."""


class RunBusyError(RunError):
    """Another process works on this run."""


@dataclass(frozen=True)
class RunFiles:
    """The folder of one run."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def data(self) -> Path:
        """Which data set the run is trained on, by its id; the path to it may change."""
        return self.root / "data.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def history(self) -> Path:
        """Every step's figures, a JSON line each."""
        return self.root / "history.jsonl"

    @property
    def status(self) -> Path:
        """How far the run is; see `Status`."""
        return self.root / "status.json"

    @property
    def precision(self) -> Path:
        """What the run computes in, and why; see `training.runs.precision`."""
        return self.root / "precision.json"

    @property
    def validation(self) -> Path:
        """Figures of checkpoints while the run trains, a JSON line each."""
        return self.root / "validation.jsonl"

    @property
    def validation_files(self) -> Path:
        """Tables and submissions of the checkpoint that was measured last."""
        return self.root / "validation"

    @property
    def mlflow(self) -> Path:
        """Which run in MLflow this is; see `training.tracking.run.MLflowRun`."""
        return self.root / "mlflow_run.json"

    @property
    def outbox(self) -> Path:
        """What MLflow gets, before it is sent."""
        return outbox_of(self.mlflow)

    @property
    def evaluation(self) -> Path:
        """Figures and submissions of every subset."""
        return self.root / "evaluation"

    @property
    def subsets(self) -> Path:
        """The figures of every subset once more, where a reader of the run looks first."""
        return self.root / "subsets.json"

    @property
    def pictures(self) -> Path:
        return self.root / "pictures"

    @property
    def stop_request(self) -> Path:
        """Workers on other machines stop when this file appears."""
        return self.root / "stop-requested"

    @property
    def failure(self) -> Path:
        """What a worker found wrong with data or configuration, for the process that started it."""
        return self.root / "failure.txt"

    def clear(self) -> None:
        """Remove all that a run writes, and nothing else."""
        for folder in (self.checkpoints, self.validation_files, self.evaluation, self.pictures):
            shutil.rmtree(folder, ignore_errors=True)
        notes = (self.config, self.data, self.history, self.validation, self.status, self.precision, self.subsets)
        for file in (*notes, self.stop_request, self.failure, self.mlflow, self.outbox, sent_of(self.mlflow)):
            file.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; RunBusyError where another one does."""
        self.root.mkdir(parents=True, exist_ok=True)
        with held(self.root / ".lock") as ours:
            if not ours:
                raise RunBusyError(f"{self.root}: another process works on this run; wait for it or use another name=")
            yield

    def progress(self) -> dict[str, Any]:
        """What `Status` wrote last; {} before anything began."""
        return read_note(self.status) if self.status.is_file() else {}

    def data_id(self) -> str | None:
        """The id of the data set that the run is trained on; None of a run that noted none."""
        return read_note(self.data, {"data_id": str | None})["data_id"] if self.data.is_file() else None

    def is_complete(self, config: RunConfig) -> bool:
        """Whether a run of just this configuration has ended here."""
        return bool(self.progress().get("complete")) and not self.differences(config)

    def begin(self, config: RunConfig) -> None:
        """Write the configuration, or make sure that the run which goes on has the same one and the same data.

        Raises:
            RunError: it has others.
        """
        changed = self.differences(config)
        if changed and any(self.checkpoints.glob("step-*")):
            raise RunError(
                f"{self.root}: this run began with another configuration. Take the changes back, choose another name=, "
                "or add --fresh to start over:\n" + "\n".join(changed)
            )
        self.root.mkdir(parents=True, exist_ok=True)
        write_text(self.config, to_yaml(config))
        write_json(self.data, {"data_id": data_id(config.data.nuscenes)})
        self.stop_request.unlink(missing_ok=True)
        self.failure.unlink(missing_ok=True)

    def differences(self, config: RunConfig) -> list[str]:
        """One line for each setting that would make this another run, and one where the data set is not the run's."""
        if not self.config.is_file():
            return []
        then = parse_yaml(self.config.read_text(encoding="utf-8"))
        if not isinstance(then, dict):
            raise ConfigError([f"{self.config}: expected the configuration of a run; remove the file"])
        with contextlib.suppress(ValidationError):  # settings that came into being since then stood at their defaults
            then = RunConfig.model_validate(then).model_dump(mode="json")
        free, changed = FREE_TO_CHANGE, []
        known, current = self.data_id(), data_id(config.data.nuscenes)
        if known is not None and current is not None:
            free = (*free, "data.nuscenes.root")  # the id decides, wherever the data lie
            if known != current:
                changed = [f"data set in {config.data.nuscenes.root}: {known[:16]} then, {current[:16]} now"]
        return changed + [
            f"{name}: {old} then, {new} now"
            for name, (old, new) in differences(then, config.model_dump(mode="json")).items()
            if not any(f"{name}.".startswith(f"{place}.") for place in free)
        ]


class Status(Callback):
    """Keeps `status.json`: steps done, of how many, and whether the run is complete."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._total = self._per_epoch = 0

    def on_start(self, step: int, total_steps: int, steps_per_epoch: int) -> None:
        self._total, self._per_epoch = total_steps, steps_per_epoch
        self.on_end(step, complete=False)

    def on_checkpoint(self, path: Path, step: int) -> None:
        self.on_end(step, complete=False)

    def on_end(self, step: int, complete: bool) -> None:
        progress = {"step": step, "total_steps": self._total, "steps_per_epoch": self._per_epoch, "complete": complete}
        write_json(self._file, progress)


def resolve(
    checkpoint: Path, config: RunConfig | None, out_dir: Path | None, folder: str
) -> tuple[Path, RunFiles | None, RunConfig, Path]:
    """What a command that looks at a checkpoint means: -> the checkpoint, its run, the configuration, where to write.

    Args:
        checkpoint: a checkpoint, or a run's folder (its newest one).
        config: None: the one of its run.
        out_dir: None: `folder` in its run.
        folder: see `out_dir`.

    Raises:
        CheckpointError: there is no such checkpoint.
        ValueError: it belongs to no run, and `config` or `out_dir` is not given.
    """
    checkpoint = find_checkpoint(checkpoint)
    files = run_of(checkpoint)
    if files is not None:
        return checkpoint, files, config or load_config_of_run(files.config), out_dir or files.root / folder
    if config is None or out_dir is None:
        raise ValueError(
            f"{checkpoint}: lies in no run's folder (with its config.yaml); say with --config what to evaluate on, and with "
            "--out where to write"
        )
    return checkpoint, None, config, out_dir


def run_of(checkpoint: Path) -> RunFiles | None:
    """The run that a checkpoint (`<run>/checkpoints/step-...`, or a file in it) belongs to, None where it lies elsewhere."""
    folder = checkpoint.absolute() if checkpoint.is_dir() else checkpoint.absolute().parent
    files = RunFiles(folder.parent.parent)
    return files if files.config.is_file() and files.checkpoints == folder.parent else None
