"""Can this machine run this configuration? One answer a question: libraries, data, index, channels, truth, device, loading."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from robustbev.precision import choose_precision
from sensors.checks.calibration import check_frame_calibration
from sensors.errors import DataRootError, SensorDataError, SensorDataWarning
from sensors.extras import require
from sensors.nuscenes.arrays import check_root
from sensors.nuscenes.channels import check_channels
from sensors.nuscenes.index import find_index, open_index
from sensors.nuscenes.reader import NuScenesReader
from sensors.nuscenes.summary import check_truth
from training.data.dataset import rig_of, with_rig
from training.data.handover import shared_memory_bytes, shared_memory_fault
from training.doctor.answer import Answer, without

if TYPE_CHECKING:
    from training.runs.config import RunConfig


def check_config(path: Path, settings: Sequence[str], rig: Path | None = None) -> list[Answer]:
    """What speaks for and against running a configuration here; draws its sensors into `rig`, a PNG, where that is given.

    Raises:
        FileNotFoundError, ConfigError: there is no such configuration, or it is none.
        MissingExtraError: reading it takes a library that is not there.
    """
    require("robustbev doctor --config", "cli", "yaml")
    from training.runs.config import load_run_config

    run = load_run_config(path, settings)
    drawn = [] if rig is None else _rig(run, rig)
    return [_libraries(run), *_data(run), _model(run), _device(run), _workers(run), *drawn]


def _libraries(run: RunConfig) -> Answer:
    extras = ["data", "train", *(["spconv"] if run.model.dense() != run.model else [])]
    lacking = without(*extras)
    return Answer("libraries", not lacking, lacking or f"of the extras {', '.join(extras)}")


def _data(run: RunConfig) -> list[Answer]:
    """Data set, index, channels, splits and truth, as far as can be known: the first that is not there ends it."""
    config = run.data.nuscenes
    try:
        tables = check_root(config)
        index_path = find_index(config)
    except DataRootError as error:
        return [Answer("data", False, str(error))]
    data = Answer("data", True, str(tables))
    if index_path is None:
        return [data, Answer("index", True, "not built yet: `robustbev index` or the run itself will do it")]
    try:
        index = open_index(config)
        check_channels(config, index)
        counts = {split: len(index.samples_of_split(split)) for split in (config.train_split, config.val_split)}
        reader = NuScenesReader(config, config.train_split)
        old = reader.left_out_sweeps()
    except (DataRootError, SensorDataError) as error:
        return [data, Answer("index", False, str(error))]
    try:
        truth = Answer("truth", True, str(check_truth(reader, run.data.min_points, run.model.grid.bev())))
    except (DataRootError, SensorDataError) as error:
        truth = Answer("truth", False, str(error))
    keyframes = ", ".join(f"{count} keyframes in {split}" for split, count in counts.items())
    notes = [Answer("tables", True, line) for line in index.meta.notes]
    index_answer = Answer("index", True, f"{keyframes}; {index_path}")
    return [data, index_answer, *notes, truth, *(Answer("sweeps", True, line) for line in old)]


def _rig(run: RunConfig, path: Path) -> list[Answer]:
    """Where the sensors of the first keyframe of training stand and look: as a picture, and what is odd about it."""
    require("robustbev doctor --rig", "train", "matplotlib")
    require("robustbev doctor --rig", "data", "cv2", "simplejpeg")
    from training.pictures.scene.canvas import save
    from training.pictures.scene.rig import draw_rig

    config = run.data.nuscenes
    try:
        frame = NuScenesReader(config, config.train_split).frame(0, motion=False)
        findings = check_frame_calibration(frame, [c for channels in config.channels().values() for c in channels])
    except (DataRootError, SensorDataError) as error:
        return [Answer("rig", False, str(error))]
    answers = [
        Answer("rig", True, f"{', '.join(findings)} of sample {frame.token}, drawn in {save(path, draw_rig(frame))}")
    ]
    for found in findings.values():
        answers += [Answer("rig", False, text) for text in found.refused]
        answers += [Answer("rig", True, text) for text in found.flagged]
    return answers


def _model(run: RunConfig) -> Answer:
    try:
        with warnings.catch_warnings(action="ignore", category=SensorDataWarning):  # of what is answered below
            with_rig(run.model, run.data)
    except ValueError as error:
        return Answer("modalities", False, str(error))
    used: list[str] = []
    for name, modality in run.model.modalities.items():
        count = len(run.model.channels_of(name, rig_of(run.data, run.model)))
        if not count:
            fault = f"model.modalities.{name}: data.nuscenes.{modality.kind}_channels has none for it: set "
            return Answer("modalities", False, f"{fault}model.modalities.{name}=null, or name its channels")
        sensors = f"{count} {modality.kind}{'s' if count != 1 else ''}"
        used.append(sensors if name == modality.kind else f"{name} ({sensors})")
    if run.camera_weights is not None and not run.camera_weights.is_file():
        fault = f"camera_weights: no file {run.camera_weights}; get it (see the README), or set camera_weights=null"
        return Answer("modalities", False, fault)
    return Answer("modalities", True, ", ".join(used))


def _device(run: RunConfig) -> Answer:
    gpus, workers = torch.cuda.device_count(), max(1, run.runner.workers)
    if run.runner.use_cuda and not gpus:
        return Answer("device", False, "runner.device=cuda, and torch has no GPU here: set runner.device=cpu")
    if run.runner.use_cuda and run.runner.address is None and workers > gpus:
        fault = f"runner.workers={workers} need a GPU each, and there are {gpus}: set runner.workers={gpus}, or "
        return Answer("device", False, f"{fault}runner.address to a Ray cluster")
    device = "cuda" if run.runner.use_cuda else "cpu"
    chosen = choose_precision(run.step.precision, device, training=True)
    on = f"{workers} of {gpus} GPUs" if run.runner.use_cuda else "the CPU"
    return Answer("device", True, f"{on}, in {chosen}{f'; {chosen.warning}' if chosen.warning else ''}")


def _workers(run: RunConfig) -> Answer:
    fault = shared_memory_fault(shared_memory_bytes()) if run.data.workers else None
    return Answer("workers", fault is None, fault or f"data.workers={run.data.workers}")
