"""Can this machine run this configuration? One answer a question: libraries, data, index, device, memory, disk, workers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sensors.extras import missing, remedy, require
from training.data.handover import shared_memory_fault
from training.doctor.machine import GIB, Answer, Machine

if TYPE_CHECKING:
    from robustbev import ModelConfig
    from robustbev.precision import Arithmetic
    from training.runs.config import RunConfig

_STATE_BYTES = 16  # a parameter in float32: weight, gradient, and AdamW's two moments
_AVERAGE_BYTES = 4  # and its running mean
_CHECKPOINT_BYTES = 12  # weight and moments on disk


def check_config(path: Path, settings: Sequence[str], machine: Machine) -> list[Answer]:
    """What speaks for and against running a configuration here.

    Raises:
        FileNotFoundError, ConfigError: there is no such configuration, or it is none.
        MissingExtraError: reading it takes a library that is not there.
    """
    require("robustbev doctor --config", "cli", "yaml")
    from training.runs.config import load_run_config

    run = load_run_config(path, settings)
    answers = [_libraries(run), *_data(run), _model(run), _device(run, machine)]
    return [*answers, _memory(run, machine), _disk(run), _workers(run, machine)]


def _libraries(run: RunConfig) -> Answer:
    wanted = ["data", "train"]
    if run.model.dense() != run.model:
        wanted.append("spconv")
    absent = {extra: missing(extra) for extra in wanted if missing(extra)}
    if absent:
        names = [name for names in absent.values() for name in names]
        return Answer("libraries", False, f"without {', '.join(names)}: {remedy(list(absent), names)}")
    return Answer("libraries", True, f"of the extras {', '.join(wanted)}")


def _data(run: RunConfig) -> list[Answer]:
    """Data set, index, channels, splits and truth, as far as can be known: the first that is not there ends it."""
    from sensors.errors import DataRootError, SensorDataError
    from sensors.nuscenes.arrays import check_root
    from sensors.nuscenes.channels import check_channels
    from sensors.nuscenes.index import find_index, open_index
    from sensors.nuscenes.reader import NuScenesReader
    from sensors.nuscenes.summary import check_truth

    config = run.data.nuscenes
    try:
        tables = check_root(config)
        found = find_index(config)
    except DataRootError as error:
        return [Answer("data", False, str(error))]
    data = Answer("data", True, str(tables))
    if found is None:
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
    said = ", ".join(f"{count} keyframes in {split}" for split, count in counts.items())
    notes = [Answer("tables", True, line) for line in index.meta.notes]
    index_answer = Answer("index", True, f"{said}; {found}")
    return [data, index_answer, *notes, truth, *(Answer("sweeps", True, line) for line in old)]


def _model(run: RunConfig) -> Answer:
    from training.data.dataset import rig_of, with_rig

    model, channels = run.model, run.data.nuscenes.channels()
    try:
        with_rig(model, run.data)
    except ValueError as error:
        return Answer("modalities", False, str(error))
    used: list[str] = []
    for name, modality in model.modalities.items():
        if not channels[modality.kind]:
            return Answer(
                "modalities", False,
                f"model.modalities.{name} is there, but data.nuscenes.{modality.kind}_channels is empty: set "
                f"model.modalities.{name}=null, or name its channels",
            )  # fmt: skip
        count = len(model.channels_of(name, rig_of(run.data, model)))
        if not count:
            return Answer(
                "modalities", False,
                f"model.modalities.{name} has no {modality.kind} of its own: name its channels, or set "
                f"model.modalities.{name}=null",
            )  # fmt: skip
        sensors = f"{count} {modality.kind}{'s' if count != 1 else ''}"
        used.append(sensors if name == modality.kind else f"{name} ({sensors})")
    if run.camera_weights is not None and not run.camera_weights.is_file():
        return Answer(
            "modalities", False,
            f"camera_weights: no file {run.camera_weights}; get it (see the README), or set camera_weights=null",
        )  # fmt: skip
    return Answer("modalities", True, ", ".join(used))


def _device(run: RunConfig, machine: Machine) -> Answer:
    gpus, wanted = len(machine.gpus), max(1, run.runner.workers)
    if not run.runner.use_cuda:
        slow = " (slow: this model is large for a CPU)" if parameters(run.model) > 10**7 else ""
        return Answer("device", True, f"the CPU{slow}, in {_precision(run, machine.arithmetic)}")
    if not gpus:
        return Answer("device", False, "runner.device=cuda, and torch has no GPU here: set runner.device=cpu")
    if run.runner.address is None and wanted > gpus:
        return Answer(
            "device", False,
            f"runner.workers={wanted} need a GPU each, and there are {gpus}: set runner.workers={gpus}, or runner.address to "
            "a Ray cluster",
        )  # fmt: skip
    least = min(machine.gpus, key=lambda gpu: gpu.arithmetic.bfloat16)
    return Answer("device", True, f"{wanted} of {gpus} GPUs, in {_precision(run, least.arithmetic)}")


def _precision(run: RunConfig, arithmetic: Arithmetic) -> str:
    chosen = arithmetic.choose(run.step.precision, training=True)
    return f"{chosen}; {chosen.warning}" if chosen.warning else str(chosen)


def _memory(run: RunConfig, machine: Machine) -> Answer:
    """What is known to be needed, against what is free. Activations, which take the most, are known only once it runs."""
    count = parameters(run.model)
    needed = count * (_STATE_BYTES + (_AVERAGE_BYTES if run.optim.ema_decay is not None else 0))
    cuda = run.runner.use_cuda and machine.gpus
    free = min(gpu.free_bytes for gpu in machine.gpus) if cuda else machine.available_bytes
    workers = 1 if cuda else max(1, run.runner.workers)
    said = (
        f"{count / 1e6:.1f} M parameters: {workers * needed / GIB:.2f} GiB for weights, gradients, optimiser and average, "
        f"of {free / GIB:.1f} GiB free; activations come on top, in proportion to batch_size={run.batch_size}"
    )
    return Answer("memory", workers * needed < free, said)


def _disk(run: RunConfig) -> Answer:
    """Room for the checkpoints that are kept, and the one being written."""
    needed = parameters(run.model) * _CHECKPOINT_BYTES * (run.runner.checkpoint.keep + 1)
    folder = run.run_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    said = f"{needed / GIB:.2f} GiB for {run.runner.checkpoint.keep + 1} checkpoints, of {free / GIB:.1f} GiB free in {folder}"
    return Answer("disk", needed < free, said)


def _workers(run: RunConfig, machine: Machine) -> Answer:
    """More processes than cores wait for each other, which is slow and no obstacle."""
    fault = shared_memory_fault(machine.shared_memory_bytes) if run.data.workers else None
    if fault is not None:
        return Answer("workers", False, fault)
    ranks = max(1, run.runner.workers)
    processes = ranks * (1 + run.data.workers)
    said = f"{ranks} that train and {ranks * run.data.workers} that load, on {machine.cores} cores"
    if run.runner.address is None and processes > machine.cores + ranks:
        fitting = max(0, machine.cores // ranks - (1 if run.runner.use_cuda else 0))
        said += f": more than there are cores; data.workers={fitting} may be faster"
    return Answer("workers", True, said)


def parameters(model: ModelConfig) -> int:
    """Of the model that a configuration describes; nothing is allocated for it."""
    import torch

    import robustbev

    with torch.device("meta"):  # another backend computes the same with as many, and may not be installed
        return sum(parameter.numel() for parameter in robustbev.build(model.dense()).parameters())
