"""What a model is measured on: a subset of its sensors, and what was done to what they deliver.

"camera+lidar" is a subset on clean data, "fog-3" every sensor that the model has in fog of severity 3, "lidar+radar.fog-3" both.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from robustbev import PerceptionModel
from sensors.corruptions import CORRUPTIONS, Corruption, CorruptionError
from sensors.health.monitor import HealthMode
from training.data.loader import build_loader
from training.evaluation.config import subset_name
from training.evaluation.subsets import predict_subsets, score
from training.files.atomic import write_json
from training.robustness.corrupted import Change
from training.runs.config import RunConfig
from training.tasks.detection.result import SubsetResult
from training.tasks.detection.rules import Rules
from training.tasks.predictions import Progress

if TYPE_CHECKING:
    from training.tasks.detection.official import OfficialEvaluation

CLEAN = "clean"
ALL = "all"  # the sensors that the model has
_CONDITION = re.compile(r"([a-z_]+)-(\d+)")


@dataclass(frozen=True, order=True)
class Case:
    """One subset of the sensors under one corruption; "clean" has severity 0.

    Raises:
        ValueError: there is no such corruption or severity; the message lists those there are.
    """

    subset: str = ALL
    corruption: str = CLEAN
    severity: int = 0

    def __post_init__(self) -> None:
        if self.subset != ALL:
            object.__setattr__(self, "subset", "+".join(name.strip() for name in self.subset.split("+")))
        if self.corruption != CLEAN:
            Corruption(self.corruption, self.severity)
        elif self.severity != 0:
            raise ValueError(f"clean data has severity 0, got {self.severity}")

    @property
    def condition(self) -> str:
        """Corruption and severity as in "fog-3", or "clean"."""
        return CLEAN if self.corruption == CLEAN else f"{self.corruption}-{self.severity}"

    @property
    def name(self) -> str:
        """As `parse_case` reads it."""
        if self.subset == ALL:
            return self.condition
        return self.subset if self.corruption == CLEAN else f"{self.subset}.{self.condition}"

    def of(self, modalities: Iterable[str]) -> Case:
        """The case of a model that has these modalities, in its words: every sensor means those.

        Raises:
            ValueError: it names a modality that the model does not have.
        """
        names = tuple(modalities)
        return replace(
            self, subset="+".join(names) if self.subset == ALL else subset_name(self.subset.split("+"), names)
        )

    def possible(self, modalities: Collection[str]) -> bool:
        """Whether a model that has these modalities has all that the case names."""
        return self.subset == ALL or set(self.subset.split("+")) <= set(modalities)


def parse_case(text: str) -> Case:
    """The case of a name: a subset, a corruption with its severity, or both joined by a dot; "clean" is every sensor of a model.

    Raises:
        ValueError: for any other text; the message lists what there is.
    """
    subset, dot, condition = text.strip().rpartition(".")
    if not dot:
        is_subset = "+" in condition or (condition.isidentifier() and condition not in (CLEAN, *CORRUPTIONS))
        subset, condition = (condition, CLEAN) if is_subset else (ALL, condition)
    if condition == CLEAN:
        return Case(subset)
    match = _CONDITION.fullmatch(condition)
    if match is None:
        raise ValueError(
            f"case {text!r}: expected a subset of the sensors as in lidar+radar, a corruption and its severity as in "
            f"fog-3, or both as in lidar+radar.fog-3; corruptions are {', '.join(CORRUPTIONS)}, severities 1 to 5"
        )
    return Case(subset, match[1], int(match[2]))


def grouped(cases: Iterable[Case]) -> dict[str, list[Case]]:
    """Condition -> its cases, in the order of first appearance, each once: one encoding serves them all."""
    groups: dict[str, list[Case]] = {}
    for case in dict.fromkeys(cases):
        groups.setdefault(case.condition, []).append(case)
    return groups


def evaluate_cases(
    model: PerceptionModel,
    config: RunConfig,
    cases: Sequence[Case],
    out_dir: Path,
    *,
    seed: int = 0,
    health: HealthMode = "off",
    monitor: Path | None = None,
    progress: Progress | None = None,
) -> dict[Case, SubsetResult]:
    """Measure the model in every case on `config.data.nuscenes.val_split`, by the devkit's DetectionEval.

    Cases that differ only in the subset share one pass over the (corrupted) data and one encoding.

    Args:
        model: on the device it shall run on.
        config: its data and evaluation settings decide samples, loader, thresholds and processes.
        out_dir: gets cases.json, and a folder `<condition>/<subset>` a case with submission and metrics_summary.json.
        seed: of the corruptions.
        health: "act" replaces sensors that look sick by their null embeddings, "report" and "off" leave data as it is.
        monitor: the fitted monitor that "act" asks; None: where `robustbev health --fit` puts it.

    Returns:
        case -> figures, in the order given; cases with modalities that the model does not have are left out.

    Raises:
        CorruptionError: a corruption changed nothing that a case's sensors deliver, in no frame of the whole run.
        ValueError: the model has the modalities of none of the cases; or see `training.evaluation.subsets.evaluate_subsets`.
    """
    kinds = {name: modality.kind for name, modality in model.config.modalities.items()}
    meant = {case: case.of(kinds) for case in cases if case.possible(kinds)}
    if not meant:
        asked = ", ".join(case.name for case in cases)
        raise ValueError(f"evaluation: the model has only {', '.join(kinds)}, and {asked} need other modalities")
    distinct = list(dict.fromkeys(meant.values()))
    for case in distinct:
        _check_touches(case, kinds)
    figures: dict[Case, SubsetResult] = {}
    groups = grouped(distinct)
    for number, group in enumerate(groups.values()):
        group_progress = None if progress is None else _Part(progress, number, len(groups), len(figures), len(distinct))
        figures |= _evaluate_group(model, config, group, out_dir, seed, health, monitor, group_progress)
    results = {case: figures[as_meant] for case, as_meant in meant.items()}
    write_json(out_dir / "cases.json", {case.name: result.to_json() for case, result in results.items()})
    return results


def _check_touches(case: Case, kinds: Mapping[str, str]) -> None:
    """What a corruption cannot reach would be measured clean under its name."""
    touched = () if case.corruption == CLEAN else CORRUPTIONS[case.corruption].modalities
    if case.corruption != CLEAN and not set(touched) & {kinds[name] for name in case.subset.split("+")}:
        raise CorruptionError(
            f"{case.name}: {case.corruption} changes {' and '.join(touched)}, of which {case.subset} has nothing: the "
            "figures would be those of clean data. Leave this case out"
        )


def _evaluate_group(
    model: PerceptionModel,
    config: RunConfig,
    group: Sequence[Case],
    out_dir: Path,
    seed: int,
    health: HealthMode,
    monitor: Path | None,
    progress: Progress | None,
) -> dict[Case, SubsetResult]:
    """Cases of one condition: one pass over the data, one encoding, then every subset scored."""
    first, settings = group[0], config.evaluation
    corruption = None if first.corruption == CLEAN else Corruption(first.corruption, first.severity, seed)
    change = (
        None if corruption is None and health != "act" else Change(corruption, health, config.data.workers, monitor)
    )
    loader = build_loader(
        config.data,
        model.config,
        config.data.nuscenes.val_split,
        batch_size=settings.batch_size,
        train=False,
        alter=change,
        device=next(model.parameters()).device,
    )
    subsets = [case.subset for case in group]
    expected = list(loader.reader.tokens)[: settings.limit]
    with loader:
        predictions = predict_subsets(
            model, loader.epoch(0), subsets, limit=settings.limit, progress=progress, total=len(expected)
        )
    if change is not None:
        change.check([case.name for case in group])
    reader = loader.reader
    rules = settings.rules(model.config.classes, reader.config.class_map, model.config.grid.bev().radius_m)
    official = _official(reader.root, reader.config.version, tuple(expected), rules, reader.config.reference_channel)
    folder = out_dir / first.condition
    results = score(predictions, model.config, reader, official, folder, settings, progress)
    return {case: results[case.subset] for case in group}


@lru_cache(maxsize=2)  # the devkit takes seconds to load its tables, and many cases share them
def _official(
    root: Path, version: str, tokens: tuple[str, ...], rules: Rules, reference_channel: str
) -> OfficialEvaluation:
    from training.tasks.detection.official import OfficialEvaluation, open_tables

    return OfficialEvaluation(open_tables(root, version), tokens, rules, reference_channel, "fast")


@dataclass
class _Part:
    """Tells of one group's progress as a part of the whole."""

    progress: Progress
    group: int
    groups: int
    scored: int
    cases: int

    def __call__(self, what: str, done: int, total: int | None) -> None:
        if what == "score":
            self.progress(what, self.scored + done, self.cases)
        else:
            self.progress(what, self.group * (total or 0) + done, None if total is None else self.groups * total)
