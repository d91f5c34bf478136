"""What happens to a model when sensors fail: its subsets, and corruptions by severity."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from robustbev import choose_precision
from robustbev.checkpoints import find_checkpoint
from robustbev.precision import usable_device
from sensors.corruptions import CORRUPTIONS
from sensors.errors import DataRootError
from sensors.nuscenes.index import open_index
from sensors.text import tell
from training.console.progress import Bars
from training.evaluation.config import every_subset
from training.evaluation.subsets import possible_subsets
from training.files.atomic import write_text
from training.files.config_file import to_yaml
from training.robustness.cases import Case, grouped
from training.robustness.config import RobustnessConfig
from training.robustness.report import track_robustness, write_robustness
from training.robustness.results import Figures, Robustness, Subject
from training.robustness.tasks import RobustnessError, Store, Task, fingerprint, run_tasks
from training.runs.config import RunConfig, load_config_of_run
from training.runs.files import run_of
from training.runs.run import absolute_paths
from training.tasks.detection.result import SubsetResult


def run_robustness(checkpoint: Path, config: RobustnessConfig, bars: Bars) -> Robustness:
    """Measure a checkpoint in every subset and under every corruption; write the report; hand it to the run's MLflow.

    What was measured before of this checkpoint is not measured again: a run that was stopped goes on.

    Args:
        checkpoint: a checkpoint of a run, or the run's folder (its newest one).
        config: what to measure, and where.
        bars: shows the tasks that are done.

    Raises:
        CheckpointError: there is no such checkpoint.
        DeviceError: `device` is cuda, and this machine has none.
        RobustnessError: it belongs to no run, or a task died.
        ValueError: see `training.robustness.cases.evaluate_cases`.
    """
    began = time.monotonic()
    if config.use_cuda and config.address is None:
        usable_device("cuda")
    model = _subject(checkpoint, config)
    possible_subsets(model.config.model, config.subsets)  # refuses what it does not have
    tell(f"computing in {_precision(config, model.config)}")
    figures, measured, tasks = _measure(model, config, bars)
    any_result = next(iter(figures.values()))
    nuscenes = model.config.data.nuscenes
    robustness = Robustness(
        config=config,
        out=(config.out or model.files.root / "robustness").absolute(),
        model=model,
        figures=figures,
        data={
            "data id": open_index(nuscenes).meta.data_id,
            "version": nuscenes.version,
            "split": nuscenes.val_split,
            "samples": str(any_result.samples),
            "ranges": any_result.ranges.removeprefix("ranges: "),
        },
        seconds=time.monotonic() - began,
        measured=measured,
        tasks=tasks,
    )
    write_text(robustness.out / "config.yaml", to_yaml(config))
    files = write_robustness(robustness.out, robustness)
    if config.tracking and model.config.tracking.enabled:
        track_robustness(robustness, files)
    return robustness


def _measure(model: Subject, config: RobustnessConfig, bars: Bars) -> tuple[Figures, int, int]:
    """The figures of every case; how many tasks were run now, and how many there are."""
    store = Store(model.files.evaluation / "tasks")  # which comparisons share
    cases = _cases(model, config)
    groups = grouped(cases)
    figures: dict[Case, SubsetResult] = {}
    for group in groups.values():
        figures |= store.read(model.fingerprint, group) or {}
    missing = {name: _task(model, group, config) for name, group in groups.items() if group[0] not in figures}
    finished = len(groups) - len(missing)
    bars("robustness", finished, len(groups))

    def done(condition: str, measured: dict[str, Any]) -> None:
        nonlocal finished
        store.write(model.fingerprint, condition, measured)
        figures.update({case: SubsetResult.from_json(case.subset, measured[case.name]) for case in groups[condition]})
        finished += 1
        bars("robustness", finished, len(groups), condition)

    try:
        run_tasks(missing, config, done, progress=bars)
    except DataRootError as error:
        raise RobustnessError(f"data.nuscenes: {error}") from error
    return {case: figures[case] for case in cases}, len(missing), len(groups)


def _cases(subject: Subject, config: RobustnessConfig) -> list[Case]:
    """All that the model is measured on; first the subsets, which take longest."""
    asked = [Case(subset) for subset in config.subsets or every_subset(subject.modalities)]
    cases = [Case(subject.all_sensors), *(case.of(subject.kinds) for case in asked if case.possible(subject.kinds))]
    cases = list(dict.fromkeys(cases))
    for corruption in config.corruptions:
        if set(CORRUPTIONS[corruption].modalities) & set(subject.kinds.values()):
            cases += [Case(corruption=corruption, severity=severity) for severity in config.severities]
    return cases


def _task(subject: Subject, group: list[Case], config: RobustnessConfig) -> Task:
    run, names = subject.config.model_dump_json(), tuple(case.name for case in group)
    return Task(subject.checkpoint, run, names, config.seed, config.health, _monitor(config), config.use_cuda)


def _monitor(config: RobustnessConfig) -> Path | None:
    """The file of the monitor that acts, None where none does."""
    if config.health != "act":
        return None
    path = config.monitor.expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(
            f"health act: no monitor {path}; `robustbev health --fit` writes one, or give monitor=FILE"
        )
    return path


def _precision(config: RobustnessConfig, measured: RunConfig) -> str:
    """What is computed in, and why; what a cluster's GPUs have is not known here."""
    setting = measured.evaluation.precision
    if config.use_cuda and config.address is not None:
        return f"{setting} (on the GPUs of {config.address})"
    return str(choose_precision(setting, "cuda" if config.use_cuda else "cpu"))


def _subject(path: Path, config: RobustnessConfig) -> Subject:
    """The checkpoint with the data and the evaluation to measure it on."""
    checkpoint = find_checkpoint(path.expanduser()).absolute()
    files = run_of(checkpoint)
    if files is None:
        raise RobustnessError(
            f"{path}: lies in no run's folder, whose config.yaml says on which data it was trained; expected runs/<name>, or a "
            "checkpoint in it"
        )
    trained = absolute_paths(load_config_of_run(files.config))
    limit = trained.evaluation.limit if config.limit is None else config.limit
    evaluation = trained.evaluation.model_copy(update={"limit": limit})
    choice = {k: v for k, v in config.data.nuscenes.model_dump().items() if v is not None}
    data = trained.data.model_copy(update={"nuscenes": trained.data.nuscenes.model_copy(update=choice)})
    measured = absolute_paths(trained.model_copy(update={"data": data, "evaluation": evaluation}))
    data_id = open_index(measured.data.nuscenes).meta.data_id
    precision, _, _ = _precision(config, measured).partition(":")  # figures are of what is computed in, not of why
    key = fingerprint(checkpoint, measured, data_id, seed=config.seed, precision=precision, monitor=_monitor(config))
    kinds = {name: modality.kind for name, modality in trained.model.modalities.items()}
    return Subject(checkpoint, files, measured, key, kinds)
