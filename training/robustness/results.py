"""What `robustbev robustness` measured, and of which model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from training.robustness.cases import CLEAN, Case
from training.robustness.config import RobustnessConfig
from training.runs.config import RunConfig
from training.runs.files import RunFiles
from training.tasks.detection.result import SubsetResult, figure_of, main_figures

Figures = Mapping[Case, SubsetResult]


@dataclass(frozen=True)
class Subject:
    """The model that is measured."""

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
    data: Mapping[str, str] = field(default_factory=dict)  # measured on: data_id, version, split, samples, ranges
    seconds: float = 0.0  # this took, tasks found in the store not counted
    measured: int = 0  # tasks that were run now
    tasks: int = 0

    @property
    def metrics(self) -> dict[str, str]:
        """NDS, which the papers take, where it is defined, then mAP: name -> field of `SubsetResult`."""
        return dict(reversed(main_figures(self.figures.values()).items()))

    def clean(self, metric: str) -> float:
        """The figure with all sensors on clean data; NaN where it was not measured. `metric` is one of `metrics`' fields."""
        return figure_of(self.figures.get(Case(self.model.all_sensors)), metric)

    def matrix(self, metric: str) -> dict[str, dict[int, float]]:
        """Corruption -> severity -> figure of all sensors; corruptions that touch none of the model's sensors are left out."""
        rows: dict[str, dict[int, float]] = {}
        for corruption in self.config.corruptions:
            for severity in self.config.severities:
                result = self.figures.get(Case(corruption=corruption, severity=severity))
                if result is not None:
                    rows.setdefault(corruption, {})[severity] = figure_of(result, metric)
        return rows

    def subsets(self) -> dict[str, SubsetResult]:
        """Subset -> figures on clean data."""
        results = {case.subset: result for case, result in self.figures.items() if case.corruption == CLEAN}
        return {subset: results[subset] for subset in sorted(results, key=lambda subset: -subset.count("+"))}
