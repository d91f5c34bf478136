"""From a data set to batches: the samples of a split, prepared, augmented and collated.

Letters: B samples, M boxes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

import robustbev
from bev.detection.boxes import Boxes
from robustbev import ModelConfig, RigConfig, StrictModel
from sensors.camera.prepare import Camera, stack_depth
from sensors.errors import SensorDataWarning
from sensors.frames import Absence, History, Lack, SensorFrame
from sensors.modality import Preparation
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.reader import NuScenesReader
from sensors.points import DroppedPoints
from sensors.prepare import PreparedFrame, collate, prepare
from training.data.augmentation import (
    AugmentationConfig,
    change_boxes,
    change_intensity,
    draw_bev_change,
    draw_image_changes,
)
from training.data.batch import TrainingBatch
from training.data.failures import fail
from training.data.sampling import Balance, SampleKey, sample_random
from training.tasks.assembly import training_tasks

# Changes a frame before it is prepared: a corruption, say. Travels to loader workers, so it must pickle where those are spawned.
Alter = Callable[[SensorFrame, History], SensorFrame]

_BOXES_ROUND_UP = 16
_PAST_KEPT = 8  # keyframes of the past that stay in memory: neighbouring samples ask for the same ones


class DataConfig(StrictModel):
    """What is read, how it is altered, and who does the work."""

    nuscenes: NuScenesConfig = NuScenesConfig()
    augmentation: AugmentationConfig = AugmentationConfig()  # of training samples
    balance: Balance = "none"  # of training samples: cbgs visits rare classes more often
    min_points: Annotated[int, Field(ge=0)] = 1  # LiDAR and radar points that a box must have to be trained on
    lidar_min_range_m: Annotated[float, Field(ge=0)] = 1.0  # nearer points are the vehicle itself
    keep_outside: bool = False  # True: points outside the grid go to the network, which will not use them
    workers: Annotated[int, Field(ge=0)] = 2  # processes a rank that load; 0: in the training process
    prefetch: Annotated[int, Field(ge=1)] = 2  # batches ahead a worker
    timeout_s: Annotated[float, Field(gt=0)] = 300.0  # the longest that a batch is waited for
    start_method: Literal["fork", "spawn", "forkserver"] = "fork"
    pin_memory: bool | None = None  # None: where there is a GPU


def rig_of(config: DataConfig, model: ModelConfig) -> RigConfig:
    """The sensors of the data that this model is given."""
    nuscenes = config.nuscenes
    return RigConfig(
        camera_channels=nuscenes.camera_channels,
        lidar_channels=nuscenes.lidar_channels,
        radar_channels=nuscenes.radar_channels,
        lidar_sweeps=nuscenes.lidar_sweeps,
        radar_sweeps=nuscenes.radar_sweeps,
        lidar_min_range_m=config.lidar_min_range_m,
    ).only(model.kinds)


def with_rig(model: ModelConfig, config: DataConfig) -> ModelConfig:
    """The model's configuration with the rig of the data, where it does not name one yet.

    A SensorDataWarning names a modality without any sensor, which will be absent in every sample.

    Raises:
        ValueError: a modality names a channel that the data do not.
    """
    if model.rig is not None:
        return model
    rig = rig_of(config, model)
    for name, modality in model.modalities.items():
        if missing := model.missing_channels(name, rig):
            raise ValueError(
                f"model.modalities.{name}.channels: {missing}; name one of those, or add it to "
                f"data.nuscenes.{modality.kind}_channels"
            )
        if not model.channels_of(name, rig):
            message = (
                f"model.modalities.{name}: data.nuscenes.{modality.kind}_channels has none for it: it will be absent in every "
                f"sample; set model.modalities.{name}=null, or name its channels"
            )
            warnings.warn(message, SensorDataWarning, stacklevel=1)  # once, whoever asks
    return model.model_copy(update={"rig": rig})


def preparation(config: DataConfig, model: ModelConfig) -> Preparation:
    """What this model wants its data to be like."""
    base = robustbev.preparation(model, rig_of(config, model))
    return replace(base, depth_targets="camera" in model.kinds, keep_outside=config.keep_outside)


def open_reader(config: DataConfig, model: ModelConfig, split: str) -> NuScenesReader:
    """The reader of a split with this model's classes; sensors that the model does not use are not read."""
    nuscenes = config.nuscenes
    update: dict[str, Any] = {}
    if "camera" not in model.kinds:
        update["camera_channels"] = ()
    if "radar" not in model.kinds:
        update["radar_channels"] = ()
    if "lidar" not in model.kinds:  # the keyframe alone, for depth targets
        update.update({"lidar_sweeps": 1} if "camera" in model.kinds else {"lidar_channels": ()})
    image = config.augmentation.image
    decode = robustbev.decode_size(model, 1.0 if image is None else max(1.0, image.zoom[1]))
    return NuScenesReader(
        nuscenes.model_copy(update=update), split, classes=model.classes, attributes=model.attributes, decode=decode
    )


@dataclass(frozen=True)
class TrainingSample:
    """One prepared sample with its truth."""

    frame: PreparedFrame
    boxes: Boxes  # [M]
    token: str
    index: int
    truth: dict[str, Tensor]  # see `TrainingBatch.truth`


class NuScenesDataset(Dataset[TrainingSample]):
    """Samples by `SampleKey`. `train` augments, lets sensors fail and leaves out boxes outside the grid or with too few points.

    `alter` is applied to every frame first. Depth targets are those of the altered frame, but never of a failed one.
    """

    def __init__(
        self,
        config: DataConfig,
        model: ModelConfig,
        split: str,
        *,
        train: bool,
        seed: int,
        alter: Alter | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.train, self.seed, self.alter = config, train, seed, alter
        self.reader = open_reader(config, model, split)
        self.preparation = preparation(config, model)
        self._tasks = training_tasks(model)
        if torch.device(device).type != "cpu":  # a GPU makes a lift table in a fiftieth of the time that a worker takes
            self.preparation = replace(self.preparation, lift_tables=False)
        self.past = Past(self.reader)
        self._unusable: set[str] = set()  # channels that were warned of

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, key: SampleKey) -> TrainingSample:
        frame, boxes = self._frame(key.index), self.reader.boxes(key.index)
        bev_change = image_changes = depth_from = None
        if self.train:
            random = sample_random(self.seed, key)
            augmentation = self.config.augmentation
            if augmentation.failures is not None:
                (apart,) = random.spawn(1)  # failures leave the draws of augmentation as they are
                frame, depth_from = fail(frame, augmentation.failures, apart, key.epoch, self.past.history(key.index))
            if augmentation.intensity is not None:
                (apart,) = random.spawn(1)
                frame = change_intensity(frame, augmentation.intensity, apart)
            if augmentation.bev is not None:
                bev_change = draw_bev_change(augmentation.bev, random)
            if augmentation.image is not None and frame.cameras is not None:
                image_changes = draw_image_changes(augmentation.image, len(frame.cameras), random)
            boxes = boxes[self.reader.num_points(key.index) >= self.config.min_points]
            if bev_change is not None:
                boxes = change_boxes(boxes, bev_change)
            grid = self.preparation.grid
            boxes = boxes[grid.flat_index(boxes.center_m[:, :2]) < grid.num_cells]
        prepared = prepare(
            frame, self.preparation, image_changes=image_changes, bev_change=bev_change, depth_from=depth_from
        )
        if self.alter is None and depth_from is None:  # what is made to fail is no news
            self._warn(frame.token, prepared.absent)
        truth = {name: task.truth(self.reader, key.index, boxes, bev_change) for name, task in self._tasks.items()}
        own = {name: tensor for name, tensor in truth.items() if tensor is not None}
        return TrainingSample(prepared, boxes, frame.token, key.index, own)

    def _warn(self, token: str, absent: Mapping[str, Absence]) -> None:
        """Of the first sample in which a sensor delivers nothing that can be used; in all of them it counts as absent."""
        for channel, absence in absent.items():
            if absence.lack is not Lack.READING and channel not in self._unusable:
                self._unusable.add(channel)
                message = (
                    f"{channel} counts as absent in sample {token}: {absence.reason}; other such samples are not named"
                )
                warnings.warn(message, SensorDataWarning, stacklevel=2)

    def _frame(self, index: int) -> SensorFrame:
        if self.alter is None:
            return self.reader.frame(index)
        return self.alter(self.past.frame(index), self.past.history(index))


class Past:
    """Frames of a reader with what lies before them; the last few stay in memory. None of them travels to a worker."""

    def __init__(self, reader: NuScenesReader) -> None:
        self.reader = reader
        self.frame = lru_cache(_PAST_KEPT)(reader.frame)

    def __reduce__(self) -> tuple[Any, ...]:
        return Past, (self.reader,)

    def history(self, index: int) -> History:
        """The earlier keyframes of a sample's scene, as the sensors delivered them; None before its start."""

        def earlier(n: int) -> SensorFrame | None:
            place: int | None = index
            for _ in range(n):
                place = None if place is None else self.reader.previous(place)
            return None if place is None else self.frame(place)

        return earlier


def collate_samples(samples: list[TrainingSample], preparation: Preparation) -> TrainingBatch:
    """B samples as one batch."""
    boxes, valid = _pad_boxes([sample.boxes for sample in samples])
    dropped = DroppedPoints()
    for sample in samples:
        dropped = dropped + sample.frame.dropped
    return TrainingBatch(
        sensors=collate([sample.frame for sample in samples], preparation),
        boxes=boxes,
        box_valid=valid,
        depth_m=_depth(samples, preparation),
        tokens=tuple(sample.token for sample in samples),
        indices=tuple(sample.index for sample in samples),
        dropped=dropped,
        truth=_truth(samples),
    )


def _truth(samples: list[TrainingSample]) -> dict[str, Tensor]:
    """[B, ...] of each task that has a truth of its own; ValueError where not all samples have it, or not in one shape."""
    stacked = {}
    for name in dict.fromkeys(name for sample in samples for name in sample.truth):
        shapes = [list(sample.truth[name].shape) if name in sample.truth else None for sample in samples]
        if other := [i for i, shape in enumerate(shapes) if shape != shapes[0]]:
            raise ValueError(
                f"truth of task {name}: expected a tensor of one shape for every sample, or None for all, got {shapes[0]} for "
                f"sample {samples[0].token} and {shapes[other[0]]} for {samples[other[0]].token}; mark what is not known in the "
                "tensor itself"
            )
        stacked[name] = torch.stack([sample.truth[name] for sample in samples])
    return stacked


def _pad_boxes(boxes: list[Boxes]) -> tuple[Boxes, Tensor]:
    """[B, M] boxes with zeros behind, and [B, M] which are real."""
    longest = max(1, -(-max(len(b) for b in boxes) // _BOXES_ROUND_UP)) * _BOXES_ROUND_UP
    columns = {}
    for f in fields(Boxes):
        parts = [getattr(b, f.name) for b in boxes]
        column = parts[0].new_zeros((len(boxes), longest, *parts[0].shape[1:]))
        for row, part in zip(column, parts, strict=True):
            row[: len(part)] = part
        columns[f.name] = column
    counts = torch.tensor([len(b) for b in boxes])
    return Boxes(**columns), torch.arange(longest) < counts[:, None]


def _depth(samples: list[TrainingSample], preparation: Preparation) -> dict[str, Tensor]:
    """Of each camera modality of which any sample has depth targets."""
    names = [modality.name for modality in preparation.modalities if isinstance(modality, Camera)]
    stacked = {name: stack_depth([sample.frame.items[name] for sample in samples]) for name in names}
    return {name: depth_m for name, depth_m in stacked.items() if depth_m is not None}
