"""What a replay knows of where its sensors stand and how its cameras see, kept up to date from the log.

Frames: `ego` is the mapping's ego frame, `global` its global frame. Times are nanoseconds of the messages' stamps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sensors.calibration import CalibrationError, Float64
from sensors.camera.rectification import Lens, distortion_doubt
from sensors.checks.calibration import Findings, check_mount, check_rig
from sensors.logs.mapping.mapping import LogMapping, called_rectified, is_rectified
from sensors.logs.messages import CameraInfo, FrameTransforms
from sensors.replay.calibration_checks import check_camera_info, check_frame_ids, info_difference
from sensors.replay.channels import Source
from sensors.replay.readings import frame_T_camera, lens_of, rectified_intrinsics, unrectified
from sensors.replay.transforms import TransformError, TransformTree


@dataclass(frozen=True)
class Mounting:
    """A sensor on the vehicle at one time. A camera's frame is the one in which its rectified intrinsics hold."""

    ego_T_sensor: Float64  # [4, 4]
    intrinsics: Float64 | None  # [3, 3] px of the full picture; None for points
    flagged: tuple[str, ...]
    lens: Lens | None = None  # by which its pictures are to be rectified; None: they are, or are points
    note: str = ""  # what the lens does, no doubt and so no state


class Rig:
    """Transforms and camera calibrations of a log so far.

    `gap_ns`: see `TransformTree`.
    """

    def __init__(self, mapping: LogMapping, *, gap_ns: int) -> None:
        self.tree = TransformTree(gap_ns=gap_ns)
        self._ego, self._global = mapping.ego_frame, mapping.global_frame
        self._infos: dict[str, CameraInfo] = {}
        self._version = 0  # counts whatever came about any camera
        self._versions: dict[str, int] = {}  # counts a camera's different calibrations
        self._changed: dict[str, str] = {}
        self._broken: dict[str, str] = {}  # channel -> why its newest calibration cannot be read
        self._frames: dict[str, str] = {}  # camera -> frame of its calibration
        self._poses: dict[str, Float64] = {}  # camera -> its newest ego_T_camera
        self._alike: dict[str, tuple[str, ...]] = {}
        self._mountings: dict[str, tuple[object, Mounting]] = {}  # by channel, the last one where nothing moves
        self._found: dict[tuple[str, str], tuple[object, Findings]] = {}  # what was looked at last, and what was found

    def take_transforms(self, message: FrameTransforms) -> None:
        self.tree.add(message)

    def take_info(self, channel: str, info: CameraInfo) -> None:
        """A camera's calibration as it is from now on."""
        if self._broken.pop(channel, None) is not None:
            self._version += 1
        before = self._infos.get(channel)
        if before is not None:
            difference = info_difference(before, info)
            if not difference:
                return  # the one that was looked at stays, and with it what was found
            self._changed[channel] = f"{channel}: its calibration changed during the drive ({difference})"
        self._infos[channel] = info
        self._versions[channel] = self._versions.get(channel, 0) + 1
        self._version += 1
        self._frames[channel] = info.frame_id

    def take_broken_info(self, channel: str, reason: str) -> None:
        """A camera's calibration that cannot be read; the one before it, if any, holds on."""
        if self._broken.get(channel) != reason:
            self._broken[channel] = reason
            self._version += 1

    def reset(self) -> None:
        """Forget what depends on time. Static transforms and calibrations stay."""
        self.tree.reset()

    def ego_pose(self, time_ns: int) -> Float64 | None:
        """[4, 4] global_T_ego; None where the log does not say."""
        if self._global is None:
            return None
        try:
            return self.tree.lookup(self._global, self._ego, time_ns)
        except TransformError:
            return None

    def newest_pose_ns(self) -> tuple[int, int] | None:
        """Up to when ego poses have come, and their spacing; None: none have, or none are told over time."""
        return None if self._global is None else self.tree.newest_ns(self._global, self._ego)

    @property
    def has_global(self) -> bool:
        """Whether the mapping names a global frame."""
        return self._global is not None

    def mounting(self, source: Source, frame_id: str, time_ns: int, picture_px: tuple[int, int] | None) -> Mounting:
        """Where the sensor of a measurement stands. `picture_px` (height, width) is the size of a camera's picture.

        Raises:
            CalibrationError: no calibration, or one that cannot be; the message says which and why.
        """
        key = (self.tree.version, self._version, frame_id, picture_px)
        before = self._mountings.get(source.channel)
        if before is not None and before[0] == key:
            return before[1]
        if source.modality == "camera":
            mounting = self._camera(source, frame_id, time_ns, picture_px)
            frame = source.frame or self._infos[source.channel].frame_id
        else:
            mounting = self._points(source, frame_id, time_ns)
            frame = source.frame or frame_id
        if self.tree.is_static(self._ego, frame):
            self._mountings[source.channel] = (key, mounting)
        return mounting

    def alike(self, channel: str) -> tuple[str, ...]:
        """What is doubtful about a camera's newest pose beside those of the others."""
        return self._alike.get(channel, ())

    def _points(self, source: Source, frame_id: str, time_ns: int) -> Mounting:
        frame = source.frame or frame_id
        ego_T_sensor = self.tree.lookup(self._ego, frame, time_ns, hold_constant=True)
        findings = self._look(
            source, "mount", ego_T_sensor.tobytes(), lambda: check_mount(source.channel, source.modality, ego_T_sensor)
        )
        _refuse(findings)
        return Mounting(ego_T_sensor, None, (*findings.flagged, *self.tree.changes(self._ego, frame)))

    def _camera(self, source: Source, frame_id: str, time_ns: int, picture_px: tuple[int, int] | None) -> Mounting:
        channel, info = source.channel, self._infos.get(source.channel)
        if info is None:
            why = self._broken.get(channel, "none came so far")
            raise CalibrationError(f"{channel}: no calibration on {source.info_topic}: {why}")
        topic, key = source.info_topic or "", (self._versions[channel], picture_px)
        rectified = is_rectified(info, source.topic, source.rectified)
        info = info if rectified else unrectified(info)
        findings = self._look(
            source,
            "info",
            key,
            lambda: check_camera_info(info, topic, picture_px, rectified=rectified) + _doubt(source, topic, info),
        )
        if source.frame is None:
            findings += check_frame_ids(channel, frame_id, info.frame_id, self._frames)
        _refuse(findings)
        frame = source.frame or info.frame_id
        ego_T_camera = self.tree.lookup(self._ego, frame, time_ns, hold_constant=True) @ frame_T_camera(info)
        findings += self._look(
            source, "mount", ego_T_camera.tobytes(), lambda: check_mount(channel, "camera", ego_T_camera)
        )
        _refuse(findings)
        self._note_pose(channel, ego_T_camera)
        changed = (self._changed[channel],) if channel in self._changed else ()
        broken = (
            (f"{topic}: its newest message cannot be read, the one before holds",) if channel in self._broken else ()
        )
        flagged = (*findings.flagged, *changed, *broken, *self.tree.changes(self._ego, frame))
        lens = None if rectified else lens_of(info)
        if lens is None:
            return Mounting(ego_T_camera, rectified_intrinsics(info), flagged)
        return Mounting(ego_T_camera, lens.intrinsics, flagged, lens, _note(lens, info))

    def _look(self, source: Source, what: str, key: object, check: Callable[[], Findings]) -> Findings:
        """The findings of a check, made anew only where what it looks at has changed."""
        before = self._found.get((source.channel, what))
        if before is not None and before[0] == key:
            return before[1]
        findings = check()
        self._found[source.channel, what] = (key, findings)
        return findings

    def _note_pose(self, channel: str, pose: Float64) -> None:
        if not np.array_equal(self._poses.get(channel, ()), pose):
            self._poses[channel] = pose
            self._alike = check_rig(self._poses)


def _doubt(source: Source, topic: str, info: CameraInfo) -> Findings:
    """Of a lens that may be one after all, unless the mapping or the pictures' name says that they are rectified."""
    sure = called_rectified(source.topic) if source.rectified is None else source.rectified
    doubt = None if sure else distortion_doubt(info.distortion_model, info.D)
    return Findings(flagged=(f"{topic}: {doubt}",) if doubt else ())


def _note(lens: Lens, info: CameraInfo) -> str:
    (height, width), (full_height, full_width) = lens.rectified_size_px, lens.size_px
    unnamed = "" if info.distortion_model.strip() else f" (the model of {info.D.size} coefficients: none is named)"
    return f"rectified here by {lens.model}{unnamed}, {width} x {height} of {full_width} x {full_height} px"


def _refuse(found: Findings) -> None:
    if found.refused:
        raise CalibrationError("; ".join(found.refused))
