"""Every subset of the sensors, measured by the official nuScenes evaluation, or by its formulas for classes of one's own.

Letters: B samples, K boxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bev.detection.boxes import Boxes
from robustbev import ModelConfig, Perception, PerceptionModel
from robustbev.config import DETECTION
from sensors.batch import map_tensors
from sensors.nuscenes.reader import NuScenesReader
from training.data.batch import TrainingBatch
from training.evaluation.config import EvaluationConfig, every_subset, subset_name
from training.evaluation.tables import write_report
from training.tasks.assembly import training_tasks
from training.tasks.detection.result import SubsetResult
from training.tasks.detection.scoring import Scoring
from training.tasks.predictions import Predictions, Progress
from training.tasks.task import TrainingTask

if TYPE_CHECKING:
    from training.tasks.detection.official import OfficialEvaluation


def possible_subsets(config: ModelConfig, subsets: Sequence[str]) -> tuple[str, ...]:
    """The subsets in the model's words, each once; every one that is measured where none is named.

    Raises:
        ValueError: one names a modality that the model does not have.
    """
    names = tuple(config.modalities)
    try:
        return tuple(dict.fromkeys(subset_name(subset.split("+"), names) for subset in subsets)) or every_subset(names)
    except ValueError as error:
        raise ValueError(f"evaluation: subsets: {error}") from None


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
    tasks = {name: task for name, task in training_tasks(model.config).items() if name != DETECTION}
    done = 0
    try:
        for batch in _limited(batches, limit):
            size = batch.sensors.batch_size
            features = model.encode(batch.sensors.to(device))
            for subset in subsets:
                kept = {name: f if name in subset.split("+") else None for name, f in features.items()}
                _collect(predictions[subset], batch, model.perceive_features(kept, size), tasks, limit)
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


def _collect(
    predictions: Predictions,
    batch: TrainingBatch,
    perception: Perception,
    tasks: Mapping[str, TrainingTask],
    limit: int | None,
) -> None:
    perceived = perception.perceived.tolist()
    outputs = map_tensors(perception.outputs, lambda tensor: tensor.cpu())
    for i, token in enumerate(batch.tokens):
        if limit is not None and len(predictions.boxes) >= limit:
            return
        if token in predictions.boxes:  # a sampler that pads the last batch hands a sample out twice
            continue
        # "No perception" stays apart from "nothing there": the submission is empty either way, the record is not.
        predictions.boxes[token] = outputs[DETECTION][i] if perceived[i] else Boxes.empty()
        if not perceived[i]:
            predictions.no_perception.append(token)
        for name, task in tasks.items():
            output = map_tensors(outputs[name], itemgetter(i))
            truth = batch.truth[name][i] if name in batch.truth else None
            predictions.measured.setdefault(name, {})[token] = task.measure(output, truth, perceived[i])


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
        subset -> figures, in the order of `config.subsets`.

    Raises:
        ValueError: a sample of the split is missing from the batches, or a box is not finite.
    """
    subsets = possible_subsets(model.config, config.subsets)
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
    """Figures of what was found with each subset; see `evaluate_subsets`. `out_dir` gets a folder a subset."""
    from training.tasks.detection.official import OfficialEvaluation, open_tables  # the devkit takes seconds to import

    expected = list(reader.tokens)[: config.limit]
    predicted = next(iter(predictions.values())).boxes
    tokens = [token for token in reader.tokens if token in predicted]
    if len(tokens) < len(expected):
        missing = next(token for token in expected if token not in predicted)
        raise ValueError(
            f"evaluation: the batches held {len(tokens)} of {len(expected)} samples, {missing} is missing; evaluate with a "
            "loader that drops none and with one rank"
        )
    nusc = open_tables(reader.root, reader.config.version)
    rules = config.rules(model.classes, reader.config.class_map, model.grid.bev().radius_m)
    official = OfficialEvaluation(nusc, tokens, rules, reader.config.reference_channel, config.metrics)
    return score(predictions, model, reader, official, out_dir, config, progress)


def score(
    predictions: dict[str, Predictions],
    model: ModelConfig,
    reader: NuScenesReader,
    official: OfficialEvaluation,
    out_dir: Path,
    config: EvaluationConfig,
    progress: Progress | None = None,
) -> dict[str, SubsetResult]:
    """Figures of every task from what was found with each subset in the samples of `official`."""
    scoring = Scoring(
        official,
        {token: reader.global_T_reference(i) for i, token in enumerate(reader.tokens)},
        predictions,
        out_dir,
        classes=model.classes,
        attributes=model.attributes,
        kinds={name: modality.kind for name, modality in model.modalities.items()},
        max_boxes=config.max_boxes_per_sample,
        score_threshold=config.score_threshold,
    )
    results = scoring.run(tuple(predictions), config.processes, progress)
    tasks = training_tasks(model)
    for subset, prediction in predictions.items():
        measured = {name: [of[token] for token in official.tokens] for name, of in prediction.measured.items()}
        figures = {
            name: {key: float(value) for key, value in tasks[name].figures(of).items()} for name, of in measured.items()
        }
        results[subset] = replace(results[subset], tasks=figures)
    return {subset: results[subset] for subset in predictions}
