"""What a run can say of the model that it trained."""

from __future__ import annotations

from robustbev import ModelCard, SubsetFigures
from sensors.nuscenes.config import NuScenesConfig
from training.evaluation.tables import Results
from training.runs.config import RunConfig

_SIMULATED = "The data are simulated: the figures compare subsets of sensors, and are no forecast for a road."


def card_of(config: RunConfig, results: Results | None = None, step: int | None = None) -> ModelCard:
    """The card of a run's model; without results it has no figures.

    Args:
        config: the run's.
        results: measured on the run's own validation split.
        step: optimiser steps that these weights have learned for.
    """
    nuscenes = config.data.nuscenes
    figures = tuple(SubsetFigures(r.subset, r.mean_ap, r.nds) for r in (results or {}).values())
    steps = "" if step is None else f"{step} optimiser steps, "
    started = "" if config.init_from is None else f", from the weights of {config.init_from.name}"
    how = f"{steps}batches of {config.batch_size}, seed {config.seed}{started}"
    return ModelCard(
        name=f"RobustBEV {config.name}",
        trained_on=f"{nuscenes.version}, split {nuscenes.train_split} ({how}).",
        evaluated_on=_evaluated_on(nuscenes, results) if results else "",
        figures=figures,
        limits=(_SIMULATED,) if _is_simulated(nuscenes) else (),
    )


def _evaluated_on(nuscenes: NuScenesConfig, results: Results) -> str:
    first = next(iter(results.values()))
    return f"{first.samples} keyframes of {nuscenes.version}, split {nuscenes.val_split} ({first.ranges})"


def _is_simulated(nuscenes: NuScenesConfig) -> bool:
    return (nuscenes.root / "simulation.json").is_file()  # which `robustbev simulate` leaves
