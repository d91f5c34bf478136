"""What can be wrong with where sensors stand and how cameras see: refused where it cannot be, flagged where it is hardly meant.

Only what is certain is refused. A camera frame is x right, y down, z forward; ego is x forward, y left, z up, its origin on the
ground. Replays and the ROS node look at every calibration that comes, `PerceptionModel.perceive` at the first of each sensor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from sensors.calibration import Float64, FloatArray, inverse_rigid, rigid_fault
from sensors.frames import CameraImage, LidarSweep, SensorFrame
from sensors.motion.poses import LINK_T_OPTICAL, SAME_M, SAME_RAD

REACH_M = 20.0  # no sensor of a road vehicle is further from the middle of its rear axle
_FRESH_US = 200_000  # in which even a fast vehicle does not move beyond a sensor's reach
_FOCAL_SHARES = (0.1, 20.0)  # focal length over the width: fields of view from 157 to 3 degrees
_OFF_CENTRE = (
    0.07  # share of the sides by which a principal point is off the middle, mean of both; a cut moves it along one
)
_OFF_EACH = 0.04
_SIDEWAYS = 0.2  # sine of the 11.5 degrees by which a camera may look past what its name says
_STEEP = 0.7  # sine of 44 degrees up or down: the z axis of a camera's link, not its optical one
_STRAIGHT_RAD = math.radians(45)


@dataclass(frozen=True)
class Findings:
    """`refused`: why it cannot be used. `flagged`: what is doubtful and used all the same."""

    refused: tuple[str, ...] = ()
    flagged: tuple[str, ...] = ()

    def __add__(self, other: Findings) -> Findings:
        return Findings(self.refused + other.refused, self.flagged + other.flagged)

    def __bool__(self) -> bool:
        return bool(self.refused or self.flagged)

    def hinting(self, hint: str) -> Findings:
        """The same, each with what it may come from."""
        return Findings(
            tuple(f"{text} {hint}" for text in self.refused), tuple(f"{text} {hint}" for text in self.flagged)
        )


def check_frame_calibration(frame: SensorFrame, channels: Collection[str]) -> dict[str, Findings]:
    """What is wrong with the calibration of each of these sensors that has a fresh reading, by channel; their readings are sound.

    Poses hold the vehicle's motion since a reading, so that older ones say little of where a sensor stands.
    """
    findings: dict[str, Findings] = {}
    cameras: dict[str, Float64] = {}
    for reading in itertools.chain(*frame.by_kind.values()):
        if reading.channel not in channels or reading.channel in findings:
            continue
        if abs(int(frame.time_us) - int(reading.time_us)) > _FRESH_US:
            continue
        channel = reading.channel
        if isinstance(reading, CameraImage):
            cameras[channel] = np.asarray(reading.reference_T_camera, np.float64)
            seen = check_pinhole(reading.intrinsics, reading.image.shape[:2], f"{channel}: intrinsics")
            findings[channel] = seen + check_mount(channel, "camera", cameras[channel])
        elif isinstance(reading, LidarSweep):
            findings[channel] = check_mount(channel, "lidar", reading.reference_T_lidar)
        else:
            findings[channel] = check_mount(channel, "radar", reading.reference_T_radar)
    for channel, alike in check_rig(cameras).items():
        findings[channel] += Findings(flagged=alike)
    return findings


def check_pinhole(intrinsics: FloatArray, picture_px: tuple[int, ...], name: str) -> Findings:
    """Invertible intrinsics [3, 3] px, called `name`, beside the (height, width) of their picture."""
    size = np.array([picture_px[1], picture_px[0]])
    focal, centre = np.array([intrinsics[0, 0], intrinsics[1, 1]]), intrinsics[:2, 2]
    if (centre < -0.5 * size).any() or (centre > 1.5 * size).any():
        text = f"{name}: expected a principal point near the picture of {size[0]} x {size[1]} px, got {centre.tolist()}"
        return Findings(refused=(text,))
    doubts = []
    off = (centre + 0.5) / size - 0.5
    if abs(off.mean()) > _OFF_CENTRE and ((off > _OFF_EACH).all() or (off < -_OFF_EACH).all()):
        whole = np.round(2 * centre + 1).astype(int)
        doubts.append(
            f"principal point {np.round(centre, 1).tolist()} is that of a picture of {whole[0]} x {whole[1]} px, not of "
            f"{size[0]} x {size[1]} (intrinsics of another resolution?)"
        )
    elif (centre < 0).any() or (centre > size).any():
        doubts.append(f"principal point {centre.tolist()} lies outside the picture of {size[0]} x {size[1]} px")
    if not _FOCAL_SHARES[0] < focal[0] / size[0] < _FOCAL_SHARES[1]:
        doubts.append(f"focal length {focal[0]:g} px makes little sense for a picture {size[0]} px wide")
    if not 0.5 < focal[0] / focal[1] < 2:
        doubts.append(f"focal lengths {focal[0]:g} and {focal[1]:g} px: pixels are not nearly square")
    if abs(intrinsics[0, 1]) > 0.05 * focal[0] or abs(intrinsics[1, 0]) > 0.05 * focal[0]:
        doubts.append(f"skew of {intrinsics[0, 1]:g}, {intrinsics[1, 0]:g} px")
    return Findings(flagged=tuple(f"{name}: {doubt}" for doubt in doubts))


def check_mount(channel: str, modality: str, ego_T_sensor: FloatArray) -> Findings:
    """Where a sensor stands on the vehicle and where it looks, a camera's by its name, too; and what would explain it."""
    if fault := rigid_fault(ego_T_sensor):
        return Findings(refused=(f"{channel}: {fault}",))
    findings = _mount(channel, modality, ego_T_sensor)
    if findings and not _mount(channel, modality, inverse_rigid(ego_T_sensor)):
        return findings.hinting("(the inverse would be sound: is it sensor_T_ego?)")
    steep = abs(ego_T_sensor[2, 2]) > _STEEP
    if findings and modality == "camera" and steep and not _mount(channel, modality, ego_T_sensor @ LINK_T_OPTICAL):
        return findings.hinting("(with optical axes it would be sound: sensors.motion.poses.LINK_T_OPTICAL)")
    return findings


def check_rig(cameras: Mapping[str, Float64]) -> dict[str, tuple[str, ...]]:
    """Channel -> what is doubtful about its pose [4, 4] beside those of the other cameras."""
    out: dict[str, tuple[str, ...]] = {}
    for (a, pose_a), (b, pose_b) in itertools.combinations(cameras.items(), 2):
        cosine = (np.trace(pose_a[:3, :3].T @ pose_b[:3, :3]) - 1) / 2
        near = np.linalg.norm(pose_a[:3, 3] - pose_b[:3, 3]) < SAME_M
        if near and math.acos(float(np.clip(cosine, -1, 1))) < SAME_RAD:
            out[a] = (*out.get(a, ()), f"{a}: has the same pose as {b}")
            out[b] = (*out.get(b, ()), f"{b}: has the same pose as {a}")
    return out


def _mount(channel: str, modality: str, ego_T_sensor: FloatArray) -> Findings:
    position = ego_T_sensor[:3, 3]
    far_m = float(np.linalg.norm(position))
    if far_m > REACH_M:
        maybe = " (millimetres?)" if far_m > 5 * REACH_M else ""
        text = f"{channel}: expected a sensor within {REACH_M:g} m of the ego frame, got {far_m:.1f} m{maybe}"
        return Findings(refused=(text,))
    flagged = []
    if position[2] < -0.5:
        flagged.append(f"{channel}: stands {-position[2]:.2f} m below the ego frame's ground")
    if modality == "lidar" and ego_T_sensor[2, 2] < -0.5:
        flagged.append(f"{channel}: hangs upside down (its z axis points down)")
    if modality != "camera":
        return Findings(flagged=tuple(flagged))
    return Findings(flagged=tuple(flagged)) + _look(channel, ego_T_sensor)


def _look(channel: str, ego_T_camera: FloatArray) -> Findings:
    """Where the optical axis points, against the words of the channel's name."""
    forward, left, up = ego_T_camera[:3, 2].tolist()
    words = set(channel.upper().replace("-", "_").split("_"))
    front, back = "FRONT" in words, bool(words & {"BACK", "REAR"})
    azimuth_deg = math.degrees(math.atan2(left, forward))
    looks = f"{channel}: looks to azimuth {azimuth_deg:.0f} deg (0 ahead, 90 left)"
    if abs(up) > _STEEP:
        angle_deg = math.degrees(math.asin(min(abs(up), 1.0)))
        where = f"{'up' if up > 0 else 'down'} by {angle_deg:.0f} deg"
        return Findings(flagged=(f"{channel}: looks {where}: is its frame optical, z forward?",))
    wrong = [
        (front and forward < -_SIDEWAYS, "backwards"),
        (back and forward > _SIDEWAYS, "forwards"),
        ("LEFT" in words and left < -_SIDEWAYS, "to the right"),
        ("RIGHT" in words and left > _SIDEWAYS, "to the left"),
    ]
    refused = [f"{looks}: {where}, against its name (cameras swapped?)" for is_so, where in wrong if is_so]
    if refused:
        return Findings(refused=tuple(refused))
    flagged = []
    if ego_T_camera[2, 1] > 0.5:
        flagged.append(f"{channel}: hangs upside down (its y axis points up)")
    if not words & {"LEFT", "RIGHT"} and (front or back):
        ahead = math.atan2(abs(left), forward if front else -forward)
        if ahead > _STRAIGHT_RAD:
            flagged.append(f"{looks}, far from straight {'ahead' if front else 'back'}")
    elif words & {"LEFT", "RIGHT"} and abs(left) < _SIDEWAYS:
        flagged.append(f"{looks}, hardly to the {'left' if 'LEFT' in words else 'right'}")
    return Findings(flagged=tuple(flagged))
