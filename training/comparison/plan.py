"""What a comparison compares: the configuration files times the seeds, checked before anything is trained."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from training.evaluation.subsets import possible_subsets
from training.files.config_file import ConfigError
from training.files.settings import differences, flat
from training.runs.config import RunConfig, load_run_config
from training.runs.files import RunError, RunFiles
from training.tasks.detection.result import SubsetResult

# Figures of models that saw or were judged on different samples, or on different classes, cannot stand in one column.
SAME_DATA = (
    "data.nuscenes.root", "data.nuscenes.version", "data.nuscenes.train_split", "data.nuscenes.val_split",
    "data.nuscenes.class_map", "evaluation.limit", "model.classes",
)  # fmt: skip
# What a model was given to learn from. Augmentation is no budget: schedules of failures are there to be compared.
BUDGET = (
    "epochs", "batch_size", "optim.accumulation", "init_from", "camera_weights", "data.balance",
    "data.min_points", "data.nuscenes.camera_channels", "data.nuscenes.lidar_channels", "data.nuscenes.radar_channels",
    "data.nuscenes.lidar_sweeps", "data.nuscenes.radar_sweeps", "data.nuscenes.radar_filter",
    "evaluation.score_threshold", "evaluation.max_boxes_per_sample",
)  # fmt: skip
SAME_PLACE = ("runs_dir", "tracking.enabled", "tracking.uri", "tracking.experiment")
_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RESERVED = {"seed": "seeds come from --seeds", "name": "name the comparison with --name"}


@dataclass(frozen=True)
class Entry:
    """One row of the comparison."""

    name: str  # the file's stem
    file: Path
    config: RunConfig


@dataclass(frozen=True)
class Job:
    """One row with one seed: a training and its evaluation."""

    entry: str
    seed: int
    config: RunConfig
    cases: tuple[str, ...] = ()  # corruptions to measure beyond the sensor subsets, as "fog-3"
    parent: str | None = None  # MLflow run of the comparison

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def files(self) -> RunFiles:
        return RunFiles(self.config.run_dir)


def split_words(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Words of the command line -> configuration files, settings (`key=value`)."""
    files = [Path(word) for word in words if "=" not in word or Path(word).is_file()]
    return files, [word for word in words if Path(word) not in files]


def read_entries(files: Sequence[Path], settings: Sequence[str] = ()) -> list[Entry]:
    """Read and check the configurations; `settings` are laid over each of them.

    Raises:
        ConfigError: one line for every fault of every file, its name before it; or what keeps the files from standing in one
            table: none given, equal stems, other data, other places for the results.
    """
    if not files:
        raise ConfigError(["expected one or more configuration files to compare, got none"])
    faults = [
        f"{word}: {_RESERVED[key]}, expected a setting that all runs share"
        for word in settings
        if (key := word.partition("=")[0]) in _RESERVED
    ]
    entries: list[Entry] = []
    for file in files:
        try:
            config = load_run_config(file, settings)
        except ConfigError as error:
            faults += [f"{file}: {fault}" for fault in error.faults]
        except FileNotFoundError as error:
            faults.append(str(error))
        else:
            entries.append(Entry(file.stem, file, config))
            if not _STEM.fullmatch(file.stem):
                faults.append(
                    f"{file}: the file's name names its runs; expected letters, digits, '.', '_' and '-' in it"
                )
    if not faults:
        faults = _same_stems(entries) + _unlike(entries)
    if faults:
        raise ConfigError(faults)
    return entries


def _same_stems(entries: Sequence[Entry]) -> list[str]:
    first: dict[str, Entry] = {}
    faults = []
    for entry in entries:
        other = first.setdefault(entry.name, entry)
        if other is not entry:
            faults.append(
                f"{entry.file}: its runs would be called {entry.name!r} like those of {other.file}; rename one file"
            )
    return faults


def _unlike(entries: Sequence[Entry]) -> list[str]:
    faults = []
    for entry in entries[1:]:
        for setting, there, here in _differing(entries[0], entry, SAME_DATA):
            faults.append(
                f"{entry.file}: {setting} is {here}, but {there} in {entries[0].file}; figures on different data cannot be "
                "compared: make them equal, for example by key=value on the command line"
            )
        for setting, there, here in _differing(entries[0], entry, SAME_PLACE):
            faults.append(
                f"{entry.file}: {setting} is {here}, but {there} in {entries[0].file}; one comparison keeps its results in one "
                f"place: give {setting}=... on the command line"
            )
    return faults


def budget_notes(entries: Sequence[Entry]) -> list[str]:
    """One line for each setting by which the rows were not given the same to learn from, or were measured differently."""
    rows = [flat(entry.config.model_dump(mode="json")) for entry in entries]
    notes = []
    for setting in dict.fromkeys(n for entry in entries[1:] for n, _, _ in _differing(entries[0], entry, BUDGET)):
        by_value: dict[str, list[str]] = {}
        for entry, row in zip(entries, rows, strict=True):
            by_value.setdefault(_shown(row.get(setting)), []).append(entry.name)
        shown = "; ".join(f"{value} in {', '.join(names)}" for value, names in by_value.items())
        notes.append(f"not the same budget: {setting} is {shown}")
    return notes


def _differing(first: Entry, second: Entry, settings: Sequence[str]) -> list[tuple[str, str, str]]:
    """(setting, first's value, second's value) of those among `settings`, or below one of them, that differ."""
    old, new = first.config.model_dump(mode="json"), second.config.model_dump(mode="json")
    changes = differences(old, new)
    return [
        (name, _shown(pair[0]), _shown(pair[1]))
        for name, pair in changes.items()
        if any(f"{name}.".startswith(f"{setting}.") for setting in settings)
    ]


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def default_name(entries: Sequence[Entry]) -> str:
    """`compare-` and the folder that holds the files, so that the same command finds its runs again."""
    folders = {entry.file.resolve().parent.name for entry in entries}
    folder = folders.pop() if len(folders) == 1 else ""
    return f"compare-{folder}" if _STEM.fullmatch(folder) else "compare"


def check_name(name: str) -> str:
    """The comparison's name, which names a folder.

    Raises:
        ValueError: it has other characters than a run's name may have.
    """
    if not _STEM.fullmatch(name):
        raise ValueError(f"--name: expected letters, digits, '.', '_' and '-', got {name!r}")
    return name


def plan_jobs(entries: Sequence[Entry], seeds: Sequence[int], name: str, cases: Sequence[str] = ()) -> list[Job]:
    """Every row with every seed; all rows with the first seed come first, so that a table is of use before the end."""
    jobs = []
    for seed in seeds:
        for entry in entries:
            config = entry.config
            update: Mapping[str, Any] = {
                "name": f"{entry.name}-seed{seed}",
                "seed": seed,
                "runs_dir": config.runs_dir / name,
                "runner": config.runner.model_copy(update={"workers": 0}),
                "tracking": config.tracking.model_copy(update={"uri": config.tracker}),
            }
            jobs.append(Job(entry.name, seed, config.model_copy(update=update), tuple(cases)))
    return jobs


def check_runs(jobs: Sequence[Job]) -> None:
    """Make sure that what lies in the runs' folders is of these configurations, before hours are spent on others.

    Raises:
        RunError: a run began with another configuration.
    """
    for job in jobs:
        changed = job.files.differences(job.config)
        if changed and any(job.files.checkpoints.glob("step-*")):
            raise RunError(
                f"{job.files.root}: this run began with another configuration. Take the changes back, choose another --name, or "
                "add --fresh to train all runs anew:\n" + "\n".join(changed)
            )


def columns_of(jobs: Sequence[Job]) -> tuple[str, ...]:
    """What the table measures: sensor subsets in their usual order, then the cases."""
    measured = [subset for job in jobs for subset in possible_subsets(job.config.model, job.config.evaluation.subsets)]
    larger_first = sorted(dict.fromkeys(measured), key=lambda subset: -subset.count("+"))
    return tuple(larger_first) + tuple(dict.fromkeys(case for job in jobs for case in job.cases))


def settings_that_differ(entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
    """Row -> dotted settings in which the rows are not all alike: what is being compared."""
    rows = {entry.name: flat(entry.config.model_dump(mode="json", exclude={"name"})) for entry in entries}
    names = dict.fromkeys(name for row in rows.values() for name in row)
    telling = [n for n in names if len({str(row.get(n)) for row in rows.values()}) > 1]
    return {name: {setting: row.get(setting) for setting in telling} for name, row in rows.items()}


Stop = Callable[[], bool]


@dataclass(frozen=True)
class JobResult:
    """How a job ended, and what it measured."""

    entry: str
    seed: int
    run_dir: Path
    status: Literal["done", "failed", "stopped"]
    message: str = ""  # why it failed
    figures: Mapping[str, SubsetResult] = field(default_factory=dict)  # subset or case -> figures
    parameters: int = 0
    step_ms: float = math.nan  # median wall time of an optimiser step, with the wait for data
    train_seconds: float = math.nan  # all steps together
    step: int = 0  # of the checkpoint that was measured
    mlflow_run_id: str | None = None

    @property
    def name(self) -> str:
        return f"{self.entry}-seed{self.seed}"
