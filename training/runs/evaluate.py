"""Evaluates a checkpoint of a run."""

from __future__ import annotations

import math
from pathlib import Path

import robustbev
from robustbev import PerceptionModel
from robustbev.checkpoints import step_of
from sensors.nuscenes.index import data_id
from sensors.text import tell
from training.data.dataset import with_rig
from training.data.loader import build_loader
from training.evaluation.subsets import evaluate_subsets
from training.evaluation.tables import Results, write_subsets
from training.pictures.charts import subset_chart
from training.runs.config import RunConfig, load_run_config
from training.runs.files import RunFiles, resolve
from training.runs.model_card import card_of
from training.tasks.detection.result import SubsetResult, main_figures
from training.tasks.predictions import Progress
from training.tracking.run import DESCRIPTION_TAG
from training.tracking.sending import log_report


def evaluate_checkpoint(
    checkpoint: Path,
    config: RunConfig | None = None,
    *,
    out_dir: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, SubsetResult]:
    """Measure a saved model on the validation split of its run, and hand the figures to the run's MLflow.

    Args:
        checkpoint: a checkpoint, or a run's folder (its newest one).
        config: what to evaluate on; None: the configuration that the run left beside its checkpoints.
        out_dir: for tables, submissions and the chart; None: `evaluation` in the run's folder. A run's folder gets
            subsets.json too, and the checkpoint's model card the figures, unless `config` names other data than the run's own:
            then nothing but `out_dir` is written.

    Raises:
        CheckpointError: there is no such checkpoint.
        ValueError: it belongs to no run, and `config` or `out_dir` is not given; it is to be measured on other data than its
            run's, and `out_dir` is not given; or see `evaluate_subsets`.
    """
    elsewhere, (checkpoint, files, config, out_dir) = out_dir, resolve(checkpoint, config, out_dir, "evaluation")
    other = "" if files is None else _other_data(files, config)
    if other and elsewhere is None:
        raise ValueError(
            f"evaluation: {other}; say with --out where to write, so that the run keeps the figures on its own data"
        )
    model = load_model(checkpoint, config)
    settings, split = config.evaluation, config.data.nuscenes.val_split
    with build_loader(
        config.data, model.config, split, batch_size=settings.batch_size, train=False, device=model.device
    ) as loader:
        results = evaluate_subsets(model, loader.epoch(0), loader.reader, out_dir, settings, progress)
    subset_chart(out_dir / "subsets.png", results)
    if files is not None and not other:
        write_subsets(files.root / "subsets.json", results)
        folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
        card = card_of(config, results, step_of(folder))
        robustbev.write_card(folder, with_rig(model.config, config.data), card)
        kept = {"evaluation": [out_dir / name for name in ("subsets.json", "table.md", "table.csv", "subsets.png")]}
        # Submissions of all subsets of nuScenes' validation split are gigabytes, and lie in the run's folder anyway.
        names = ["metrics_summary.json", *(["results_nusc.json"] if config.tracking.submissions else [])]
        for subset in results:
            kept[f"evaluation/{subset}"] = [out_dir / subset / name for name in names]
        table = (out_dir / "table.md").read_text(encoding="utf-8")
        tags = {"evaluation.precision": str(model.precision), DESCRIPTION_TAG: table}
        if config.tracking.enabled:
            log_report(files.mlflow, config.tracker, checkpoint, figures_of(results), kept, tags)
    return results


def load_model(checkpoint: Path, config: RunConfig) -> PerceptionModel:
    """A saved model where and in what precision `config` wants it; prints which. For what it raises see `robustbev.load`."""
    device = "cuda" if config.runner.use_cuda else "cpu"
    model = robustbev.load(checkpoint, device, precision=config.evaluation.precision)
    tell(f"computing in {model.precision}")
    return model


def _other_data(files: RunFiles, config: RunConfig) -> str:
    """What of the validation data is not the run's own, in words; empty where all is."""
    own, asked = load_run_config(files.config).data.nuscenes, config.data.nuscenes
    known, current = files.data_id(), data_id(asked)
    if known is not None and current is not None and known != current:
        return f"data.nuscenes.root is {asked.root}, which holds another data set than the run's"
    places: dict[str, tuple[object, object]] = {"val_split": (own.val_split, asked.val_split)}
    if known is None or current is None:
        places |= {"root": (own.root.absolute(), asked.root.absolute()), "version": (own.version, asked.version)}
    return ", ".join(
        f"data.nuscenes.{key} is {new}, and {old} in the run" for key, (old, new) in places.items() if old != new
    )


def figures_of(results: Results) -> dict[str, float]:
    """The figures of every subset under the names that MLflow shows, a measure's subsets together; without those not defined."""
    figures: dict[str, float] = {}
    for subset, result in results.items():
        measures = {name: getattr(result, key) for name, key in main_figures([result]).items()} | dict(result.errors)
        measures |= {f"AP/{name}": value for name, value in result.class_ap.items()}
        measures |= {f"{task}/{name}": value for task, row in result.tasks.items() for name, value in row.items()}
        figures |= {f"val/{name}/{subset}": value for name, value in measures.items() if math.isfinite(value)}
    return figures
