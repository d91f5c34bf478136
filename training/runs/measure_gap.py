"""Measures the gap between the modalities of a run's model."""

from __future__ import annotations

from pathlib import Path

from training.data.loader import build_loader
from training.evaluation.gap import GapReport, collect, measure
from training.pictures.gap import write_gap
from training.runs.config import RunConfig
from training.runs.evaluate import load_model
from training.runs.files import resolve
from training.tasks.predictions import Progress
from training.tracking.sending import log_report


def measure_gap(
    checkpoint: Path,
    config: RunConfig | None = None,
    *,
    out_dir: Path | None = None,
    progress: Progress | None = None,
) -> tuple[GapReport, Path]:
    """Measure a saved model on the validation split of its run, write the report, and hand it to the run's MLflow.

    Args:
        checkpoint: a checkpoint, or a run's folder (its newest one).
        config: what to measure on; None: the configuration of the run. `evaluation.limit` and `evaluation.batch_size` hold.
        out_dir: gets gap.json, gap.md and gap.png; None: `gap` in the run's folder.
        progress: is told the samples done.

    Returns:
        The report, and the folder that it was written to.

    Raises:
        CheckpointError: there is no such checkpoint.
        ValueError: the model has one modality only; or see `run_files.resolve`.
    """
    checkpoint, files, config, out_dir = resolve(checkpoint, config, out_dir, "gap")
    model = load_model(checkpoint, config)
    if len(model.config.modalities) < 2:
        raise ValueError(
            f"{checkpoint}: a gap lies between two modalities, and the model has only {', '.join(model.config.modalities)}"
        )
    settings, split = config.evaluation, config.data.nuscenes.val_split
    with build_loader(
        config.data, model.config, split, batch_size=settings.batch_size, train=False, device=model.device
    ) as loader:
        objects, cells, samples = collect(
            model, loader.epoch(0), loader.reader, limit=settings.limit, min_points=config.data.min_points,
            seed=config.seed, progress=progress,
        )  # fmt: skip
    alignment = model.alignment
    trained = () if alignment is None else alignment.pairs
    report = GapReport(
        checkpoint=str(checkpoint),
        split=split,
        samples=samples,
        mode=None if alignment is None else alignment.mode,
        temperature=None if alignment is None else 1 / float(alignment.scale.detach()),
        objects=measure(objects, trained),
        cells=measure(cells, trained),
    )
    paths = write_gap(out_dir, report, objects)
    if files is not None and config.tracking.enabled:
        log_report(files.mlflow, checkpoint, report.figures(), {"gap": paths})
    return report, out_dir
