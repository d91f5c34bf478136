"""What is in a data set, and whether a configuration can train on it."""

from __future__ import annotations

from typing import Any

from bev.grid import BEVGrid
from sensors.errors import DataRootError
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.index import open_index
from sensors.nuscenes.reader import NuScenesReader, Truth, label_of_category


def describe(config: NuScenesConfig) -> dict[str, Any]:
    """A short summary of the data set: samples per split, channels found and missing, boxes per class, where the index lies."""
    index = open_index(config)
    modality_of = dict(zip(index.meta.channels, index.meta.modalities, strict=True))
    labels = label_of_category(index.meta.categories, config.class_map, config.classes)[index.arrays.box_category]
    configured = [channel for channels in config.channels().values() for channel in channels]
    has_keyframes = dict(zip(index.meta.channels, (index.arrays.keyframe >= 0).sum(axis=0).tolist(), strict=True))
    return {
        "root": str(config.root),
        "version": config.version,
        "data_id": index.meta.data_id,
        "index": str(index.path),
        "scenes": len(index.meta.scenes),
        "samples": len(index.arrays.sample_token),
        "samples_per_split": {split: len(index.samples_of_split(split)) for split in sorted(index.meta.splits)},
        "keyframes_per_channel": {channel: has_keyframes[channel] for channel in modality_of},
        "channels_missing": [channel for channel in configured if not has_keyframes.get(channel)],
        "sweeps": len(index.arrays.data_token) - int((index.arrays.keyframe >= 0).sum()),
        "boxes_per_class": {name: int((labels == i).sum()) for i, name in enumerate(config.classes)},
    }


def check_truth(reader: NuScenesReader, min_points: int, grid: BEVGrid) -> Truth:
    """What training sees of a split.

    Raises:
        DataRootError: not one box; the message says how many were read, and why none is left.
    """
    truth = reader.truth(min_points, grid)
    if not any(truth.per_class.values()):
        config, categories = reader.config, reader.index.meta.categories
        shown = ", ".join(categories[:8]) + (", ..." if len(categories) > 8 else "")
        raise DataRootError(
            f"{config.root} {config.version}: there is nothing to learn from: training would see {truth}. "
            f"Categories there: {shown or 'none'}"
        )
    return truth


def check_trainable(config: NuScenesConfig, min_points: int, grid: BEVGrid) -> Truth:
    """Both splits are there with the channels, and the one to train on has boxes that training sees.

    Raises:
        DataRootError: they are not; of channels see `sensors.nuscenes.channels.check_channels`.
    """
    train, _ = (NuScenesReader(config, split) for split in (config.train_split, config.val_split))
    return check_truth(train, min_points, grid)
