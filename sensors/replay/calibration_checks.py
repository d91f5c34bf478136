"""What can be wrong with a calibration that came with a log: refused where it cannot be, flagged where it is hardly meant.

Only what is certain is refused. A camera frame is x right, y down, z forward; ego is x forward, y left, z up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sensors.calibration import CalibrationError, Float64, intrinsics_fault, rigid_fault
from sensors.camera.rectification import distortion_fault
from sensors.logs.messages import CameraInfo
from sensors.poses import SAME_M, SAME_RAD
from sensors.replay.readings import lens_of, rectified_intrinsics

REACH_M = 20.0  # no sensor of a road vehicle is further from the middle of its rear axle
_BASELINE_M = 5.0  # between two cameras that P's fourth column ties together
_AGREE = 0.01  # relative difference of focal lengths, share of the picture for the principal point
_FOCAL_SHARES = (0.1, 20.0)  # focal length over the width: fields of view from 157 to 3 degrees
_SIDEWAYS = 0.2  # sine of the 11.5 degrees by which a camera may look past what its name says
_RECTIFIED_ALREADY = "set `rectified: true` in the mapping where the pictures are rectified"
_STRAIGHT_RAD = math.radians(45)


@dataclass(frozen=True)
class Findings:
    """`refused`: why it cannot be used. `flagged`: what is doubtful and used all the same."""

    refused: tuple[str, ...] = ()
    flagged: tuple[str, ...] = ()

    def __add__(self, other: Findings) -> Findings:
        return Findings(self.refused + other.refused, self.flagged + other.flagged)


def check_camera_info(
    info: CameraInfo, topic: str, picture_px: tuple[int, int] | None, *, rectified: bool = True
) -> Findings:
    """The intrinsics of a camera that came on `topic`, and whether they are those of a picture of (height, width).

    Of pictures that are not `rectified`, `info` is as `sensors.replay.readings.unrectified` gives it.
    """
    if fault := _matrices_fault(info, picture_px, rectified) or (None if rectified else _lens_fault(info)):
        return Findings(refused=(f"{topic}: {fault}",))
    flagged = [*_doubtful_intrinsics(info), *_doubtful_rectification(info)]
    if rectified and info.D.any() and not info.P.any():
        flagged.append("P is all 0 and D is not: K, which holds before rectification, is used of rectified pictures")
    return Findings(flagged=tuple(f"{topic}: {text}" for text in flagged))


def check_mount(channel: str, modality: str, ego_T_sensor: Float64) -> Findings:
    """Where a sensor stands on the vehicle and where it looks; a camera's by its name, too."""
    if fault := rigid_fault(ego_T_sensor):
        return Findings(refused=(f"{channel}: {fault}",))
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


def check_frame_ids(channel: str, picture: str, info: str, frames: Mapping[str, str]) -> Findings:
    """The frame ids of a picture and its calibration; `frames` holds every camera's by its own calibration."""
    picture, info = picture.removeprefix("/"), info.removeprefix("/")
    if picture == info:
        return Findings()
    whose = sorted(other for other, frame in frames.items() if other != channel and frame.removeprefix("/") == picture)
    if whose:
        text = (
            f"{channel}: its pictures carry frame {picture!r}, which is {whose[0]}'s; its calibration carries {info!r}"
        )
        return Findings(refused=(f"{text} (cameras swapped?)",))
    return Findings(
        flagged=(f"{channel}: its pictures carry frame {picture!r}, its calibration {info!r}, which is used",)
    )


def info_difference(before: CameraInfo, after: CameraInfo) -> str:
    """What differs between two calibrations of a camera; empty where none of it matters."""
    names = [name for name in "KRPD" if not _equal(getattr(before, name), getattr(after, name))]
    if before.D.any() and before.distortion_model != after.distortion_model:
        names.append("distortion_model")
    if (before.width_px, before.height_px) != (after.width_px, after.height_px):
        names.append("size")
    if before.frame_id != after.frame_id:
        names.append("frame_id")
    return ", ".join(names)


def _matrices_fault(info: CameraInfo, picture_px: tuple[int, int] | None, rectified: bool) -> str | None:
    """Why these intrinsics cannot be; the first that is found."""
    if info.width_px <= 0 or info.height_px <= 0:
        return f"expected the picture's size in CameraInfo, got {info.width_px} x {info.height_px} px"
    if picture_px is not None and picture_px != (info.height_px, info.width_px):
        height, width = picture_px
        return (
            f"expected pictures of {info.width_px} x {info.height_px} px as CameraInfo says, got {width} x {height} px: "
            "its intrinsics, with its roi and binning, belong to another size"
        )
    for name, shape in (("K", (3, 3)), ("R", (3, 3)), ("P", (3, 4))):
        matrix = np.asarray(getattr(info, name))
        if matrix.shape != shape:
            return f"expected {name} of {shape[0]} x {shape[1]}, got shape {matrix.shape}"
        if not np.isfinite(matrix).all():
            return f"expected finite numbers in {name}, got {matrix.tolist()}"
    if not np.isfinite(info.D).all():
        return f"expected finite numbers in D, got {info.D.tolist()}"
    if not info.K.any() and not info.P.any():
        if rectified:
            return "expected K or P, got both all 0: this camera is not calibrated"
        return f"expected K of pictures that are not rectified, got all 0. Correct K, or {_RECTIFIED_ALREADY} by P"
    matrix, name = rectified_intrinsics(info), "P" if info.P.any() else "K"
    if fault := intrinsics_fault(matrix):
        return f"{name}: {fault}"
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        return f"{name}: expected positive focal lengths, got {matrix[0, 0]:g} and {matrix[1, 1]:g} px"
    turned = np.eye(4)
    turned[:3, :3] = info.R
    if info.R.any() and (fault := rigid_fault(turned)):
        return f"R: {fault}"
    return _geometry_fault(info, matrix, name)


def _geometry_fault(info: CameraInfo, matrix: Float64, name: str) -> str | None:
    """Sound matrices that no camera of this picture has."""
    size = np.array([info.width_px, info.height_px])
    centre = matrix[:2, 2]
    if (centre < -0.5 * size).any() or (centre > 1.5 * size).any():
        return f"{name}: expected a principal point near the picture of {size[0]} x {size[1]} px, got {centre.tolist()}"
    if info.P.any():
        shift_m = float(np.linalg.norm(np.linalg.solve(matrix, info.P[:, 3])))
        if shift_m > _BASELINE_M:
            return f"P: expected a baseline below {_BASELINE_M:g} m in its fourth column, got {shift_m:.3g} m (millimetres?)"
        if info.K.any() and (info.K[0, 0] <= 0 or not 0.5 < matrix[0, 0] / info.K[0, 0] < 2):
            return f"P and K disagree: focal lengths of {matrix[0, 0]:g} and {info.K[0, 0]:g} px"
    return None


def _doubtful_intrinsics(info: CameraInfo) -> list[str]:
    matrix, size = rectified_intrinsics(info), np.array([info.width_px, info.height_px])
    focal, centre, doubts = np.array([matrix[0, 0], matrix[1, 1]]), matrix[:2, 2], []
    if (centre < 0).any() or (centre > size).any():
        doubts.append(f"principal point {centre.tolist()} lies outside the picture of {size[0]} x {size[1]} px")
    if not _FOCAL_SHARES[0] < focal[0] / size[0] < _FOCAL_SHARES[1]:
        doubts.append(f"focal length {focal[0]:g} px makes little sense for a picture {size[0]} px wide")
    if not 0.5 < focal[0] / focal[1] < 2:
        doubts.append(f"focal lengths {focal[0]:g} and {focal[1]:g} px: pixels are not nearly square")
    if abs(matrix[0, 1]) > 0.05 * focal[0] or abs(matrix[1, 0]) > 0.05 * focal[0]:
        doubts.append(f"skew of {matrix[0, 1]:g}, {matrix[1, 0]:g} px")
    return doubts


def _lens_fault(info: CameraInfo) -> str | None:
    """Why pictures cannot be rectified by this calibration."""
    if fault := distortion_fault(info.distortion_model, info.D):
        return f"D: {fault}. Correct D, or {_RECTIFIED_ALREADY}"
    try:
        lens_of(info)
    except CalibrationError as error:
        return f"{error}. Correct the calibration, or {_RECTIFIED_ALREADY}"
    return None


def _doubtful_rectification(info: CameraInfo) -> list[str]:
    matrix, size, doubts = rectified_intrinsics(info), np.array([info.width_px, info.height_px]), []
    if info.P.any() and info.K.any() and not info.D.any():
        focal = abs(matrix[0, 0] / info.K[0, 0] - 1)
        centre = np.abs((matrix[:2, 2] - info.K[:2, 2]) / size).max()
        if focal > _AGREE or centre > _AGREE:
            doubts.append(f"P and K disagree without distortion: {matrix.tolist()} and {info.K.tolist()}; P is used")
    if not info.R.any():
        doubts.append("R is all 0: taken as no rotation")
    return doubts


def _look(channel: str, ego_T_camera: Float64) -> Findings:
    """Where the optical axis points, against the words of the channel's name."""
    forward, left, up = ego_T_camera[:3, 2].tolist()
    words = set(channel.upper().replace("-", "_").split("_"))
    front, back = "FRONT" in words, bool(words & {"BACK", "REAR"})
    azimuth_deg = math.degrees(math.atan2(left, forward))
    looks = f"{channel}: looks to azimuth {azimuth_deg:.0f} deg (0 ahead, 90 left)"
    if abs(up) > 0.7:
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


def _equal(a: Float64, b: Float64) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-6, atol=1e-9)
