"""`robustbev show`: pictures of one sample, what the sensors saw and, with a checkpoint, what the model made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from robustbev import ModelConfig, Perception, PerceptionModel
from robustbev.checkpoints import find_checkpoint
from robustbev.perception import TaskMap
from sensors.corruptions import Corruption, CorruptionError, corrupt
from sensors.frames import History, SensorFrame
from sensors.nuscenes.reader import NuScenesReader
from training.data.dataset import Alter, DataConfig, NuScenesDataset, Past, collate_samples, open_reader
from training.data.sampling import SampleKey
from training.evaluation.config import every_subset
from training.evaluation.subsets import possible_subsets
from training.files.names import file_name
from training.loop.history import read_history
from training.pictures.charts import training_curves
from training.pictures.scene.canvas import save
from training.pictures.scene.page import page, sheet
from training.pictures.scene.panels import Scene, above, cameras, channels_there, legend, maps
from training.runs.config import RunConfig, load_config_of_run
from training.runs.evaluate import load_model
from training.runs.files import RunFiles
from training.tasks.assembly import training_tasks
from training.tracking.run import MLflowRun
from training.tracking.sending import send_now

SHOWN_SCORE = 0.3


def show(
    config: RunConfig,
    out_dir: Path,
    *,
    checkpoint: Path | None = None,
    split: str | None = None,
    sample: str | int = 0,
    subset: str | None = None,
    score: float = SHOWN_SCORE,
    corruption: Corruption | None = None,
) -> list[Path]:
    """Write the pictures of one sample; -> their paths.

    Without a checkpoint: boxes of the truth, points and pictures as they are. LiDAR points that slide off the objects, or
    boxes beside them, show wrong calibration, times or poses. With one: what it found, whom its fusion trusted, and
    what is left of it with every other subset of its sensors.

    Args:
        config: the data to look at; with a checkpoint, the classes and the grid are the checkpoint's own.
        split: None is the validation split.
        sample: a token, or a position in the split.
        subset: the sensors that the model is given; None is all it has.
        score: found boxes scored lower are not drawn.
        corruption: what the sensors of this sample suffer.

    Raises:
        ValueError: no such sample, or the model lacks a sensor of the subset.
        CorruptionError: the corruption changes nothing in this sample.
    """
    split = config.data.nuscenes.val_split if split is None else split
    if checkpoint is None:
        return show_truth(_scene(config.data, config.model, split, sample, corruption), out_dir, corruption)
    model = load_model(find_checkpoint(checkpoint), config)
    scene = _scene(config.data, model.config, split, sample, corruption)
    (wanted,) = possible_subsets(model.config, ["+".join(model.config.modalities) if subset is None else subset])
    others = [name for name in every_subset(tuple(model.config.modalities)) if name != wanted]
    perceptions, truth_maps = perceive_sample(
        model, config.data, split, scene.frame.token, [wanted, *others], alter=corruption
    )
    return show_found(scene, perceptions, wanted, out_dir, corruption, score, truth_maps)


def show_run(
    run_dir: Path, config: RunConfig | None = None, *, sample: str | int | None = None, score: float = SHOWN_SCORE
) -> list[Path]:
    """Training curves, and pictures of one validation sample under every subset, into the run's folder; -> their paths.

    The run's MLflow gets them too. `config` is the run's, None: as it left it. Without a sample the liveliest one is shown: most
    classes, then most boxes.
    """
    files = RunFiles(run_dir)
    config = config or load_config_of_run(files.config)
    checkpoint = find_checkpoint(run_dir)
    if sample is None:
        counts = open_reader(config.data, config.model, config.data.nuscenes.val_split).class_counts()
        sample = int(((counts > 0).sum(axis=1) * 1000 + counts.sum(axis=1)).argmax())
    paths = show(config, files.pictures, sample=sample)
    paths += show(config, files.pictures, checkpoint=checkpoint, sample=sample, score=score)
    history = read_history(files.history)
    if history:
        paths.append(training_curves(files.pictures / "training.png", history, f"Training of {config.name}"))
    tracked = MLflowRun.open(files.mlflow, config.tracker) if config.tracking.enabled else None
    if tracked is not None:
        tracked.outbox.files(paths, "pictures")
        send_now(tracked)
    return paths


def show_truth(scene: Scene, out_dir: Path, corruption: Corruption | None = None) -> list[Path]:
    """Pictures of data alone."""
    stem, title, note = _stem(scene, corruption), "What the sensors saw, and the truth", _note(scene, corruption)
    columns, pictures = cameras(scene)
    depth = cameras(scene, depth=True)[1] if scene.frame.lidar else []
    paths = [save(out_dir / f"{stem}_truth.png", page(scene, depth, title=title, note=note))]
    if scene.frame.cameras:
        drawn = sheet([*pictures, *depth], columns, title=title, note=note)
        paths.append(save(out_dir / f"{stem}_truth_cameras.png", drawn))
    return paths


def show_found(
    scene: Scene,
    perceptions: dict[str, Perception],
    subset: str,
    out_dir: Path,
    corruption: Corruption | None = None,
    score: float = SHOWN_SCORE,
    truth_maps: Mapping[str, NDArray[np.float32]] = MappingProxyType({}),
) -> list[Path]:
    """Pictures of what a model found.

    Args:
        perceptions: subset -> what the model perceived of this one sample, B = 1, on the CPU.
        subset: the one to show in full; the others are shown from above.
        corruption: what the sensors suffer.
        truth_maps: [X, Y] to be shown beside `Perception.maps` of the same names.
    """
    scenes = {
        name: replace(
            scene,
            found=(shown := perception.shown(0))[shown.score >= score],
            perceived=bool(perception.perceived[0]),
            attention=perception.fused.attention[0].float().numpy(),
            coverage=perception.fused.coverage[0].float().numpy(),
            task_maps=_with_truth(perception.maps(0), truth_maps),
            given=tuple(name.split("+")),
        )
        for name, perception in perceptions.items()
    }
    full, note = scenes[subset], _note(scene, corruption, f"score at least {score:g}")
    title = f"What the model found with {' + '.join(full.present) or 'no sensor at all'}"
    stem = f"{_stem(scene, corruption)}_{subset}"
    paths = [save(out_dir / f"{stem}.png", page(full, maps(full), title=title, note=note, status=full.count))]
    columns, pictures = cameras(full)
    if scene.frame.cameras:
        drawn = sheet(pictures, columns, title=title, note=f"{note} · {full.count}")
        paths.append(save(out_dir / f"{stem}_cameras.png", drawn))
    drawn = sheet(maps(full), len(maps(full)), title=f"Whom the fusion trusts, given {_plus(subset)}")
    paths.append(save(out_dir / f"{stem}_attention.png", drawn))
    ordered = [name for name in every_subset(tuple(scene.channels)) if name in scenes]
    if len(ordered) > 1:
        panels = [above(scenes[name], _plus(name), scenes[name].count) for name in ordered]
        drawn = sheet(
            panels,
            min(4, len(panels)),
            title="The same instant with every subset of the sensors",
            note=note,
            marks=legend(list(scenes.values())),
            width_px=2240,
        )
        paths.append(save(out_dir / f"{_stem(scene, corruption)}_subsets.png", drawn))
    return paths


def _with_truth(maps: Mapping[str, TaskMap], truth: Mapping[str, NDArray[np.float32]]) -> dict[str, TaskMap]:
    """Each map, and behind it what is true."""
    shown = {}
    for name, task_map in maps.items():
        shown[name] = task_map
        if name in truth:
            shown[f"{name}, truth"] = replace(task_map, values=truth[name])
    return shown


def _plus(subset: str) -> str:
    return subset.replace("+", " + ")


def _stem(scene: Scene, corruption: Corruption | None) -> str:
    """What the names of a scene's pictures begin with; corrupted ones do not replace those of the clean data."""
    return file_name(f"{scene.frame.token}_{corruption}" if corruption else scene.frame.token)


def _note(scene: Scene, *words: object) -> str:
    words = (f"sample {scene.frame.token}", f"{scene.truths_inside} true boxes", *words)
    return " · ".join(str(word) for word in words if word is not None)


def _scene(data: DataConfig, model: ModelConfig, split: str, sample: str | int, corruption: Corruption | None) -> Scene:
    """The sample as its sensors saw it, pictures in full size, newest sweeps only; truth with at least one point."""
    nuscenes = data.nuscenes.model_copy(update={"lidar_sweeps": 1, "radar_sweeps": 1})
    reader = NuScenesReader(nuscenes, split, classes=model.classes, attributes=model.attributes)
    index = _position(reader, sample)
    frame = reader.frame(index)
    if corruption is not None:
        frame = _corrupted(frame, corruption, Past(reader).history(index))
    return Scene(
        frame=frame,
        grid=model.grid.bev(),
        classes=model.classes,
        truth=reader.boxes(index)[reader.num_points(index) > 0],
        channels=channels_there(model, frame),
        camera_channels=nuscenes.camera_channels,
    )


def _corrupted(frame: SensorFrame, corruption: Corruption, history: History) -> SensorFrame:
    changed = corrupt(frame, corruption, history)
    if changed is frame:
        raise CorruptionError(
            f"{corruption} changes nothing in sample {frame.token}: expected its sensors present, a keyframe before it where old "
            "data is delivered, and that the draw does not spare it. Choose another --sample"
        )
    return changed


def _position(reader: NuScenesReader, sample: str | int) -> int:
    if isinstance(sample, str) and (sample in reader.tokens or not sample.isdigit()):
        return reader.index_of(sample)
    index = int(sample)
    if not 0 <= index < len(reader):
        raise ValueError(f"sample {index}: split {reader.split!r} has samples 0 to {len(reader) - 1}, or give a token")
    return index


@torch.inference_mode()
def perceive_sample(
    model: PerceptionModel,
    data: DataConfig,
    split: str,
    token: str,
    subsets: Sequence[str],
    *,
    alter: Alter | None = None,
) -> tuple[dict[str, Perception], dict[str, NDArray[np.float32]]]:
    """Subset -> what the model perceives of one sample (B = 1), perhaps altered, on the CPU; and the truth of its tasks' maps."""
    dataset = NuScenesDataset(data, model.config, split, train=False, seed=0, alter=alter)
    sample = dataset[SampleKey(epoch=0, index=dataset.reader.index_of(token), visit=0)]
    device = next(model.parameters()).device
    features = model.encode(collate_samples([sample], dataset.preparation).sensors.to(device))
    perceptions = {}
    for subset in subsets:
        kept = {name: f if name in subset.split("+") else None for name, f in features.items()}
        perceptions[subset] = model.perceive_features(kept, 1).to("cpu")
    truth = {
        f"{task}/{name}": values.numpy()
        for task, asked in training_tasks(model.config).items()
        for name, values in asked.truth_maps(sample.truth.get(task)).items()
    }
    return perceptions, truth
