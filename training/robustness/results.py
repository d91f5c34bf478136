"""What `robustbev robustness` measured, and of which models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from training.robustness.cases import CLEAN, Case
from training.robustness.config import RobustnessConfig
from training.robustness.metrics import Matrix
from training.runs.config import RunConfig
from training.runs.files import RunFiles
from training.tasks.detection.result import SubsetResult, figure_of, main_figures

Figures = Mapping[Case, SubsetResult]


@dataclass(frozen=True)
class Subject:
    """A model to be measured."""

    name: str  # "model", "baseline", or the subset of a specialist
    checkpoint: Path  # absolute
    files: RunFiles
    config: RunConfig  # data and evaluation as they are measured, absolute paths
    fingerprint: str
    kinds: Mapping[str, str]  # modality -> the kind of its sensors

    @property
    def modalities(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.kinds)

    @property
    def all_sensors(self) -> str:
        """The subset of everything that it has an encoder for."""
        return "+".join(self.modalities)


@dataclass(frozen=True)
class Robustness:
    """What was found."""

    config: RobustnessConfig
    out: Path
    model: Subject
    figures: Figures
    baseline: Subject | None = None
    baseline_figures: Figures = field(default_factory=dict)
    specialists: Mapping[str, SubsetResult] = field(
        default_factory=dict
    )  # by subset, of the model trained for it alone
    data: Mapping[str, str] = field(
        default_factory=dict
    )  # what was measured on: data_id, version, split, samples, ranges
    seconds: float = 0.0  # this took, tasks found in the store not counted
    measured: int = 0  # tasks that were run now
    tasks: int = 0

    @property
    def metrics(self) -> dict[str, str]:
        """NDS, which the papers take, where it is defined, then mAP: name -> field of `SubsetResult`."""
        return dict(reversed(main_figures(self.figures.values()).items()))

    def clean(self, metric: str, *, baseline: bool = False) -> float:
        """The figure with all sensors on clean data; NaN where it was not measured. `metric` is one of `metrics`' fields."""
        subject, figures = self._of(baseline)
        return figure_of(figures.get(Case(subject.all_sensors)), metric)

    def matrix(self, metric: str, *, baseline: bool = False) -> dict[str, dict[int, float]]:
        """Corruption -> severity -> figure of all sensors; corruptions that touch none of the model's sensors are left out."""
        _, figures = self._of(baseline)
        rows: dict[str, dict[int, float]] = {}
        for corruption in self.config.corruptions:
            for severity in self.config.severities:
                found = figures.get(Case(corruption=corruption, severity=severity))
                if found is not None:
                    rows.setdefault(corruption, {})[severity] = figure_of(found, metric)
        return rows

    def subsets(self, *, baseline: bool = False) -> dict[str, SubsetResult]:
        """Subset -> figures on clean data."""
        _, figures = self._of(baseline)
        results = {case.subset: result for case, result in figures.items() if case.corruption == CLEAN}
        return {subset: results[subset] for subset in sorted(results, key=lambda subset: -subset.count("+"))}

    def compared(self, metric: str) -> tuple[Matrix, Matrix]:
        """The matrices of model and baseline, of the corruptions that both were measured under."""
        model, baseline = self.matrix(metric), self.matrix(metric, baseline=True)
        common = [name for name in model if name in baseline]
        return {name: model[name] for name in common}, {name: baseline[name] for name in common}

    def _of(self, baseline: bool) -> tuple[Subject, Figures]:
        if not baseline:
            return self.model, self.figures
        assert self.baseline is not None
        return self.baseline, self.baseline_figures
