"""A drive log as a data set in nuScenes' format: what replays synchronise, written as keyframes, sweeps and annotated objects."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sensors.calibration import apply, inverse_rigid
from sensors.checks.frame import readings_of
from sensors.frames import LidarSweep, RadarSweep, SensorFrame
from sensors.logs.log import LogError
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.write import Annotation, write_nuscenes
from sensors.replay.channels import Channels
from sensors.replay.config import ReplayConfig
from sensors.replay.tick import Tick
from sensors.replay.ticks import ticks
from training.files.names import file_name
from training.replay.log_source import LogSource
from training.replay.setup import boxes_of, mapping_of
from training.replay.truth import AnnotatedTracks

KEYFRAME_HZ, SCENE_KEYFRAMES = 2.0, 40  # nuScenes': scenes of 20 s
SPLIT = "all"


def write_data_set(source: LogSource, mapping_file: Path | None, out: Path, say: Callable[[str], None]) -> None:
    """Write every mapped sensor of a log, twice a second, with the sweeps between; the scenes are one split, `all`.

    A sensor that is late, silent, broken or not calibrated at a keyframe is absent there, as in a replay. Of a log that has
    annotated boxes what no two annotated instants enclose is left out: without boxes it would teach that nothing is there.

    Raises:
        FileExistsError: `out` holds something.
        LogError: the mapping does not fit, a channel's name cannot be a folder's, or there is no keyframe.
    """
    log, mapping, usual = source.log, mapping_of(mapping_file, source, say), NuScenesConfig()
    of_kind = {kind: tuple(channels) for kind, channels in mapping.by_kind.items()}
    names = [*of_kind["lidar"], *of_kind["camera"], *of_kind["radar"]]
    channels = Channels(of_kind["camera"], of_kind["lidar"], of_kind["radar"], reference=names[0])
    if strange := [name for name in names if file_name(name) != name]:
        raise LogError(
            f"mapping: expected channels that can be names of folders, got {strange[0]!r}: name it otherwise"
        )
    sweeps = {"lidar_sweeps": usual.lidar_sweeps, "radar_sweeps": usual.radar_sweeps}
    config = ReplayConfig(tick_hz=KEYFRAME_HZ, **sweeps)
    boxes = boxes_of(log, mapping)
    truth = AnnotatedTracks(boxes) if boxes else None
    scenes: list[str] = []
    gave: set[str] = set()
    written = keyframes = 0
    with write_nuscenes(out, {}, {SPLIT: scenes}) as writer:  # the split's scenes are known at the end
        for tick in ticks(log, mapping, channels, config):
            if tick.reset or keyframes == SCENE_KEYFRAMES:
                keyframes = 0
            annotations = _annotations(truth, tick)
            frame = _with_points(tick.frame)
            if annotations is None or not any(frame.by_kind.values()):
                continue
            if not keyframes:
                scenes.append(f"{file_name(log.path.stem)}-{len(scenes):03d}")
            writer.frame(scenes[-1], frame, annotations, tick.ego_T_sensor)
            keyframes, written = keyframes + 1, written + 1
            gave |= {reading.channel for reading in readings_of(frame)}
        if not written:
            where = " where its boxes are known" if truth else ""
            raise LogError(f"{log.path}: expected a sensor that gives anything of use{where}, got none: no keyframe")
    say(f"{written} keyframes, {len(scenes)} scene(s) in {out}{'' if truth else ', without boxes: the log has none'}")
    settings = {"root": out, "version": "v1.0-own", "train_split": SPLIT, "val_split": SPLIT}
    settings |= {f"{kind}_channels": f"[{','.join(c for c in of if c in gave)}]" for kind, of in of_kind.items()}
    settings["reference_channel"] = next(name for name in names if name in gave)
    say("to read it: " + shlex.join(f"data.nuscenes.{key}={value}" for key, value in settings.items()))


def _annotations(truth: AnnotatedTracks | None, tick: Tick) -> list[Annotation] | None:
    """In the ego frame at the tick; None where the log has truth, and none is known here."""
    if truth is None:
        return []
    annotated = truth.at(tick.time_us)
    if annotated is None:
        return None
    reference_T_global = inverse_rigid(tick.frame.global_T_reference)
    found = []
    for box, center_m, heading in annotated:
        x, y, _ = reference_T_global[:3, :3] @ heading
        center = apply(reference_T_global, center_m[None])[0].tolist()
        found.append(Annotation(box.id, box.category, center, box.size_m, float(np.arctan2(y, x)), box.attribute))
    return found


def _with_points(frame: SensorFrame) -> SensorFrame:
    """Without the LiDARs and radars of which a sweep holds no finite point: they are absent."""
    kept: dict[str, Any] = {}
    for kind in ("lidar", "radar"):
        sweeps: Sequence[LidarSweep | RadarSweep] = getattr(frame, kind) or ()
        empty = {one.channel for one in sweeps if not np.isfinite(one.points[:, :3]).all(axis=1).any()}
        kept[kind] = tuple(one for one in sweeps if one.channel not in empty) or None
    return replace(frame, **kept)
