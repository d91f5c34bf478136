"""Do the configured channels exist in this data set, and are they what the configuration takes them for?"""

from __future__ import annotations

import difflib

from sensors.errors import DataRootError
from sensors.nuscenes.arrays import IndexMeta
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.index import NuScenesIndex


def check_channels(config: NuScenesConfig, index: NuScenesIndex) -> None:
    """A channel without a keyframe in some sample is absent there; one that the tables do not know at all is a slip.

    Raises:
        DataRootError: a channel, or `reference_channel`, is not in the sensor table, or is there as another modality. Every fault
            is told, with the nearest channel that exists.
    """
    faults = [*_modality_faults(config, index.meta), *_unknown_channels(config, index.meta)]
    if faults:
        raise DataRootError(f"{config.root} {config.version}: {'; '.join(faults)}. {_there(index.meta)}")


def check_modalities(config: NuScenesConfig, index: NuScenesIndex) -> None:
    """The channels that the data set has are what the configuration takes them for; others may be missing.

    Raises:
        DataRootError: a channel is there as another modality.
    """
    faults = _modality_faults(config, index.meta)
    if faults:
        raise DataRootError(f"{config.root} {config.version}: {'; '.join(faults)}. {_there(index.meta)}")


def _modality_faults(config: NuScenesConfig, meta: IndexMeta) -> list[str]:
    modality_of = dict(zip(meta.channels, meta.modalities, strict=True))
    return [
        f"data.nuscenes.{modality}_channels: {channel} is a {modality_of[channel]} there, expected a {modality}"
        + _nearest(channel, [name for name in meta.channels if modality_of[name] == modality])
        for modality, channels in config.channels().items()
        for channel in channels
        if modality_of.get(channel, modality) != modality
    ]


def _unknown_channels(config: NuScenesConfig, meta: IndexMeta) -> list[str]:
    modality_of = dict(zip(meta.channels, meta.modalities, strict=True))
    faults = []
    for modality, channels in config.channels().items():
        known = [name for name in meta.channels if modality_of[name] == modality]
        unknown = [channel + _nearest(channel, known) for channel in channels if channel not in modality_of]
        if unknown:
            faults.append(
                f"data.nuscenes.{modality}_channels: expected {modality} channels of the data set, got {', '.join(unknown)}"
            )
    reference = config.reference_channel
    if reference not in modality_of and reference not in config.lidar_channels:
        near = _nearest(reference, list(meta.channels))
        faults.append(f"data.nuscenes.reference_channel: expected a channel of the data set, got {reference}{near}")
    return faults


def _nearest(channel: str, names: list[str]) -> str:
    near = difflib.get_close_matches(channel, names, n=1, cutoff=0.0)
    return f" (the nearest is {near[0]})" if near else ""


def _there(meta: IndexMeta) -> str:
    groups = []
    for modality in ("camera", "lidar", "radar"):
        names = [name for name, kind in zip(meta.channels, meta.modalities, strict=True) if kind == modality]
        groups.append(f"{modality} {', '.join(names) or 'none'}")
    return f"Channels there: {'; '.join(groups)}. Correct the names, or leave out what this vehicle does not have"
