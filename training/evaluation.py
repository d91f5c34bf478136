"""Every subset of the sensors, measured by the official nuScenes evaluation.

Letters: B samples, K boxes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field, field_validator

from bev.boxes import Boxes
from robustbev import NUSCENES_CLASSES, ModelConfig, Perception, PerceptionModel, StrictModel
from robustbev.precision import PrecisionSetting
from sensors.batch import MODALITIES
from sensors.nuscenes import NuScenesReader
from sensors.nuscenes_index import data_id
from training.batch import TrainingBatch
from training.report import Results, SubsetResult, write_report, write_subsets
from training.scoring import Predictions, Progress, Scoring
from training.submission import MAX_BOXES_PER_SAMPLE

if TYPE_CHECKING:
    from training.config import RunConfig
    from training.run_files import RunFiles

SUBSETS = (
    "camera+lidar+radar", "camera+lidar", "camera+radar", "lidar+radar", "camera", "lidar", "radar",
)  # fmt: skip


class EvaluationConfig(StrictModel):
    """Which subsets to measure, and how much of what the model finds is handed to the official evaluation."""

    subsets: Annotated[tuple[str, ...], Field(min_length=1)] = SUBSETS
    every_epochs: Annotated[int, Field(ge=1)] | None = None
    """While a run trains, measure a checkpoint after so many epochs and at the end, and keep the best one; null: never."""
    watch: tuple[str, ...] = ()  # the subsets measured then; none: all sensors that the model has, together
    best: Literal["mAP", "NDS"] = "mAP"  # the best checkpoint has the highest mean of this over `watch`
    score_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.01
    max_boxes_per_sample: Annotated[int, Field(ge=1, le=MAX_BOXES_PER_SAMPLE)] = 200
    batch_size: Annotated[int, Field(ge=1)] = 8
    limit: Annotated[int, Field(ge=1)] | None = None  # only the first so many samples of the split
    processes: Annotated[int, Field(ge=1)] = 2  # subsets are scored in so many processes at a time
    precision: PrecisionSetting = "auto"  # what the model computes in; auto: see `robustbev.choose_precision`
    metrics: Literal["devkit", "fast", "both"] = "devkit"
    """Who computes the figures: nuScenes' devkit; or, the same to the last bit, `training.detection_metrics`; or both, with an
    error where they differ. The robustness matrix takes the fast one instead of the devkit."""

    @field_validator("subsets", "watch")
    @classmethod
    def _in_order(cls, subsets: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(subset_name(subset.split("+")) for subset in subsets))


def subset_name(modalities: Iterable[str]) -> str:
    """("radar", "camera") -> "camera+radar"; ValueError for a name that is no modality, and for none at all."""
    names = [name.strip() for name in modalities]
    unknown = [name for name in names if name not in MODALITIES]
    if unknown or not names:
        got = repr(unknown[0]) if unknown else "nothing"
        raise ValueError(f"expected some of {', '.join(MODALITIES)} joined by '+', got {got}")
    return "+".join(name for name in MODALITIES if name in names)


def possible_subsets(config: ModelConfig, subsets: Sequence[str]) -> tuple[str, ...]:
    """Those subsets all of whose sensors the model has an encoder for.

    Raises:
        ValueError: that is none of them.
    """
    mine = config.modalities
    possible = tuple(subset for subset in subsets if set(subset.split("+")) <= set(mine))
    if not possible:
        raise ValueError(f"evaluation: subsets: the model has only {', '.join(mine)}, got {', '.join(subsets)}")
    return possible


def check_official_classes(classes: Sequence[str]) -> None:
    """ValueError for a class that is none of the ten that the official nuScenes evaluation measures."""
    unknown = [name for name in classes if name not in NUSCENES_CLASSES]
    if unknown:
        raise ValueError(
            f"evaluation: model.classes: expected classes of the official nuScenes evaluation ({', '.join(NUSCENES_CLASSES)}), "
            f"got {', '.join(unknown)}. Lead their categories to one of these in data.nuscenes.class_map; or replay the scenes, "
            "which measures average precision of any classes"
        )


@torch.inference_mode()
def predict_subsets(
    model: PerceptionModel,
    batches: Iterable[TrainingBatch],
    subsets: Sequence[str],
    *,
    limit: int | None = None,
    progress: Progress | None = None,
    total: int | None = None,
) -> dict[str, Predictions]:
    """Run the model once over the batches and fuse every subset from the same encoded features.

    The encoders, which cost most, run once a batch; a modality that a subset lacks is None for the fuser, exactly as when it
    is absent from the batch.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    predictions = {subset: Predictions() for subset in subsets}
    done = 0
    try:
        for batch in _limited(batches, limit):
            size = batch.sensors.batch_size
            features = model.encode(batch.sensors.to(device))
            for subset in subsets:
                kept = {name: f if name in subset.split("+") else None for name, f in features.items()}
                _collect(predictions[subset], batch.tokens, model.perceive_features(kept, size), limit)
            done += size
            if progress is not None:
                progress("perceive", done if limit is None else min(done, limit), total)
    finally:
        model.train(was_training)
    return predictions


def _limited(batches: Iterable[TrainingBatch], limit: int | None) -> Iterator[TrainingBatch]:
    seen = 0
    for batch in batches:
        yield batch
        seen += batch.sensors.batch_size
        if limit is not None and seen >= limit:
            return


def _collect(predictions: Predictions, tokens: Sequence[str], perception: Perception, limit: int | None) -> None:
    perceived = perception.perceived.tolist()
    boxes = perception.boxes.to("cpu")
    for i, token in enumerate(tokens):
        if limit is not None and len(predictions.boxes) >= limit:
            return
        if token in predictions.boxes:  # a sampler that pads the last batch hands a sample out twice
            continue
        # "No perception" stays apart from "nothing there": the submission is empty either way, the record is not.
        predictions.boxes[token] = boxes[i] if perceived[i] else Boxes.empty()
        if not perceived[i]:
            predictions.no_perception.append(token)


def evaluate_subsets(
    model: PerceptionModel,
    batches: Iterable[TrainingBatch],
    reader: NuScenesReader,
    out_dir: Path,
    config: EvaluationConfig,
    progress: Progress | None = None,
) -> dict[str, SubsetResult]:
    """Measure the model under every subset of its sensors, by the devkit's DetectionEval.

    Args:
        batches: the samples of the reader's split, not augmented, in any order.
        reader: where the batches come from; its split, data set and poses are the ones evaluated.
        out_dir: gets subsets.json, table.md, table.csv, and a folder a subset with results_nusc.json and metrics_summary.json.

    Returns:
        subset -> figures, in the order of `config.subsets`; subsets with sensors that the model has no encoder for are left out.

    Raises:
        ValueError: a class is none of the official evaluation's, a sample of the split is missing from the batches, or a box
            is not finite.
    """
    subsets = possible_subsets(model.config, config.subsets)
    check_official_classes(model.config.classes)
    total = len(reader.tokens[: config.limit])
    predictions = predict_subsets(model, batches, subsets, limit=config.limit, progress=progress, total=total)
    results = score_subsets(predictions, model.config, reader, out_dir, config, progress)
    write_report(out_dir, results)
    return results


def score_subsets(
    predictions: dict[str, Predictions],
    model: ModelConfig,
    reader: NuScenesReader,
    out_dir: Path,
    config: EvaluationConfig,
    progress: Progress | None = None,
) -> dict[str, SubsetResult]:
    """Official figures of what was found with each subset; see `evaluate_subsets`. `out_dir` gets a folder a subset."""
    from training.official import OfficialEvaluation, open_tables  # the devkit takes seconds to import

    subsets = tuple(predictions)
    expected = list(reader.tokens)[: config.limit]
    tokens = [token for token in reader.tokens if token in predictions[subsets[0]].boxes]
    if len(tokens) < len(expected):
        missing = next(token for token in expected if token not in predictions[subsets[0]].boxes)
        raise ValueError(
            f"evaluation: the batches held {len(tokens)} of {len(expected)} samples, {missing} is missing; evaluate with a "
            "loader that drops none and with one rank"
        )
    nusc = open_tables(reader.root, reader.config.version)
    official = OfficialEvaluation(
        nusc, tokens, model.grid.bev().radius_m, reader.config.reference_channel, config.metrics
    )
    poses = {token: reader.global_T_reference(i) for i, token in enumerate(reader.tokens)}
    scoring = Scoring(
        official,
        poses,
        predictions,
        out_dir,
        classes=model.classes,
        attributes=model.attributes,
        max_boxes=config.max_boxes_per_sample,
        score_threshold=config.score_threshold,
    )
    found = scoring.run(subsets, config.processes, progress)
    return {subset: found[subset] for subset in subsets}


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
    import robustbev
    from robustbev.checkpoints import step_of
    from training.data import with_rig
    from training.loader import build_loader
    from training.model_card import card_of
    from training.pictures import subset_chart
    from training.run_files import resolve
    from training.sending import log_report

    said, (checkpoint, files, config, out_dir) = out_dir, resolve(checkpoint, config, out_dir, "evaluation")
    other = "" if files is None else _other_data(files, config)
    if other and said is None:
        raise ValueError(
            f"evaluation: {other}; say with --out where to write, so that the run keeps the figures on its own data"
        )
    model = load_model(checkpoint, config)
    settings, split = config.evaluation, config.data.nuscenes.val_split
    with build_loader(
        config.data, model.config, split, batch_size=settings.batch_size, train=False, device=model.nms_radius_m.device
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
        tags = {"evaluation.precision": str(model.precision)}
        log_report(files.mlflow, checkpoint, figures_of(results), kept, tags)
    return results


def load_model(checkpoint: Path, config: RunConfig) -> PerceptionModel:
    """A saved model where and in what precision `config` wants it; prints which. For what it raises see `robustbev.load`."""
    import robustbev

    device = "cuda" if config.runner.use_cuda else "cpu"
    model = robustbev.load(checkpoint, device, precision=config.evaluation.precision)
    print(f"computing in {model.precision}", flush=True)
    return model


def _other_data(files: RunFiles, config: RunConfig) -> str:
    """What of the validation data is not the run's own, in words; empty where all is."""
    from training.config import load_run_config

    own, asked = load_run_config(files.config).data.nuscenes, config.data.nuscenes
    known, found = files.data_id(), data_id(asked)
    if known is not None and found is not None and known != found:
        return f"data.nuscenes.root is {asked.root}, which holds another data set than the run's"
    places: dict[str, tuple[object, object]] = {"val_split": (own.val_split, asked.val_split)}
    if known is None or found is None:
        places |= {"root": (own.root.absolute(), asked.root.absolute()), "version": (own.version, asked.version)}
    return ", ".join(
        f"data.nuscenes.{key} is {new}, and {old} in the run" for key, (old, new) in places.items() if old != new
    )


def figures_of(results: Results, prefix: str = "val") -> dict[str, float]:
    """The figures of every subset under the names that MLflow shows; what is not defined is left out."""
    figures: dict[str, float] = {}
    for subset, result in results.items():
        figures |= {f"{prefix}/{subset}/mAP": result.mean_ap, f"{prefix}/{subset}/NDS": result.nds}
        figures |= {f"{prefix}/{subset}/{name}": value for name, value in result.errors.items() if math.isfinite(value)}
        figures |= {f"{prefix}/{subset}/AP/{name}": value for name, value in result.class_ap.items()}
    return figures
