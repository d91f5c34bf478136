"""What happens to a model when sensors fail: its subsets, corruptions by severity, against specialists and a baseline."""

from __future__ import annotations

import time
from collections.abc import Mapping
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
from training.evaluation.config import every_subset, subset_name
from training.evaluation.subsets import possible_subsets
from training.files.atomic import write_text
from training.files.config_file import to_yaml
from training.robustness.cases import Case, grouped
from training.robustness.config import RobustnessConfig
from training.robustness.report import track_robustness, write_robustness
from training.robustness.results import Figures, Robustness, Subject
from training.robustness.tasks import RobustnessError, Store, Task, fingerprint, run_tasks
from training.runs.config import RunConfig, load_config_of_run, load_run_config
from training.runs.files import run_of
from training.runs.run import absolute_paths
from training.tasks.detection.result import SubsetResult


def run_robustness(checkpoint: Path, config: RobustnessConfig, bars: Bars) -> Robustness:
    """Measure a checkpoint in every subset and under every corruption; write the report; hand it to the run's MLflow.

    What was measured before, of this checkpoint or of the baseline, is not measured again: a run that was stopped goes on.

    Args:
        checkpoint: a checkpoint of a run, or the run's folder (its newest one).
        config: what to measure, and where.
        bars: shows the tasks that are done.

    Raises:
        CheckpointError: there is no such checkpoint.
        DeviceError: `device` is cuda, and this machine has none.
        RobustnessError: it belongs to no run, the baseline or a specialist was trained on another data set, or a task died.
        ValueError: see `training.robustness.cases.evaluate_cases`.
    """
    began = time.monotonic()
    if config.use_cuda and config.address is None:
        usable_device("cuda")
    model = _subject("model", checkpoint, config, None)
    possible_subsets(model.config.model, config.subsets)  # refuses what it does not have
    specialised = {subset_name(name.split("+"), model.modalities): path for name, path in config.specialists.items()}
    others = {subset: _subject(subset, path, config, model) for subset, path in specialised.items()}
    baseline = None if config.baseline is None else _subject("baseline", config.baseline, config, model)
    tell(f"computing in {_precision(config, model.config)}")
    out = (config.out or model.files.root / "robustness").absolute()
    figures, measured, tasks = _measure(model, baseline, others, config, out, bars)
    specialists = {}
    for subset, subject in others.items():
        specialists[subset] = figures[subject.name][Case(subset)]
    any_result = next(iter(figures["model"].values()))
    nuscenes = model.config.data.nuscenes
    robustness = Robustness(
        config=config,
        out=out,
        model=model,
        figures=figures["model"],
        baseline=baseline,
        baseline_figures=figures.get("baseline", {}),
        specialists=specialists,
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
    write_text(out / "config.yaml", to_yaml(config))
    files = write_robustness(out, robustness)
    if config.tracking and model.config.tracking.enabled:
        track_robustness(robustness, files)
    return robustness


def _measure(
    model: Subject,
    baseline: Subject | None,
    specialists: Mapping[str, Subject],
    config: RobustnessConfig,
    out: Path,
    bars: Bars,
) -> tuple[dict[str, Figures], int, int]:
    """Subject -> its figures; how many tasks were run now, and how many there are."""
    subjects = [model, *([] if baseline is None else [baseline]), *specialists.values()]
    cases_of = {subject.name: _cases(subject, config, specialist=subject.name in specialists) for subject in subjects}
    folders = [
        folder for s in subjects for folder in (s.files.root / "robustness", s.files.evaluation)
    ]  # of comparisons
    store = Store(out / "tasks", [folder / "tasks" for folder in folders])
    figures_of: dict[str, dict[Case, SubsetResult]] = {subject.name: {} for subject in subjects}
    missing: dict[str, Task] = {}
    origin: dict[str, Subject] = {}
    total = 0
    for subject in subjects:
        for condition, group in grouped(cases_of[subject.name]).items():
            total += 1
            known = store.read(subject.fingerprint, group)
            if known is not None:
                figures_of[subject.name] |= known
                continue
            key = f"{subject.name} {condition}"
            origin[key], missing[key] = subject, _task(subject, group, config)
    finished = total - len(missing)
    bars("robustness", finished, total)

    def done(key: str, figures: dict[str, Any]) -> None:
        nonlocal finished
        subject, task = origin[key], missing[key]
        store.write(subject.fingerprint, task.condition, figures)
        cases = [case for case in cases_of[subject.name] if case.condition == task.condition]
        figures_of[subject.name] |= {case: SubsetResult.from_json(case.subset, figures[case.name]) for case in cases}
        finished += 1
        bars("robustness", finished, total, key)

    try:
        run_tasks(missing, config, done, progress=bars)
    except DataRootError as error:
        raise RobustnessError(f"data.nuscenes: {error}") from error
    return (
        {name: {case: figures[case] for case in cases_of[name]} for name, figures in figures_of.items()},
        len(missing),
        total,
    )


def _cases(subject: Subject, config: RobustnessConfig, *, specialist: bool) -> list[Case]:
    """All that a subject is measured on; first the subsets, which take longest."""
    if specialist:
        return [Case(subject.name)]
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


def _subject(name: str, path: Path, config: RobustnessConfig, model: Subject | None) -> Subject:
    """A checkpoint with the data and the evaluation to measure it on; those of `model` where it is given."""
    checkpoint = find_checkpoint(path.expanduser()).absolute()
    files = run_of(checkpoint)
    if files is None:
        raise RobustnessError(
            f"{path}: lies in no run's folder, whose config.yaml says on which data it was trained; expected runs/<name>, or a "
            "checkpoint in it"
        )
    trained = absolute_paths(load_config_of_run(files.config))
    choice = {k: v for k, v in config.data.nuscenes.model_dump().items() if v is not None}
    if model is None:
        limit = trained.evaluation.limit if config.limit is None else config.limit
        evaluation = trained.evaluation.model_copy(update={"limit": limit})
    else:
        _check_same_data(name, path, trained, load_run_config(model.files.config))
        # Which subsets are measured is not the run's to say; another model may lack their sensors.
        evaluation = model.config.evaluation.model_copy(update={"subsets": (), "watch": ()})
        model_data = model.config.data.nuscenes
        choice = {"root": model_data.root, "version": model_data.version, "val_split": model_data.val_split}
    nuscenes = trained.data.nuscenes.model_copy(update=choice)
    data = trained.data.model_copy(update={"nuscenes": nuscenes})
    measured = absolute_paths(trained.model_copy(update={"data": data, "evaluation": evaluation}))
    data_id = open_index(measured.data.nuscenes).meta.data_id
    precision, _, _ = _precision(config, measured).partition(":")  # figures are of what is computed in, not of why
    print_ = fingerprint(checkpoint, measured, data_id, seed=config.seed, precision=precision, monitor=_monitor(config))
    kinds: dict[str, str] = {name: modality.kind for name, modality in trained.model.modalities.items()}
    subject = Subject(name, checkpoint, files, measured, print_, kinds)
    if model is not None and name != "baseline" and not set(name.split("+")) <= set(subject.modalities):
        raise RobustnessError(f"specialists.{name}: {path} has only {', '.join(subject.modalities)}")
    return subject


def _check_same_data(name: str, path: Path, theirs: RunConfig, ours: RunConfig) -> None:
    """Two models can be compared where they were trained and judged on the same parts of the same data."""
    key = name if name == "baseline" else f"specialists.{name}"
    try:
        expected, got = _identity(ours), _identity(theirs)
    except DataRootError as error:
        raise RobustnessError(
            f"{key}: whether {path} was trained on the same data set cannot be told, because one of the two is not here: {error}"
        ) from error
    faults = [f"{what}: expected {expected[what]}, got {got[what]}" for what in expected if expected[what] != got[what]]
    if faults:
        raise RobustnessError(
            f"{key}: {path} belongs to another data set, and figures of two data sets cannot be compared ({'; '.join(faults)}). "
            "Give a run that was trained on the data of the checkpoint"
        )


def _identity(config: RunConfig) -> dict[str, str]:
    nuscenes = config.data.nuscenes
    return {
        "version": nuscenes.version,
        "train split": nuscenes.train_split,
        "val split": nuscenes.val_split,
        "data id": open_index(nuscenes).meta.data_id,
    }
