"""What can be wrong with a camera's calibration as logs carry it; with where sensors stand: `sensors.checks.calibration`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sensors.calibration import CalibrationError, Float64, intrinsics_fault, rigid_fault
from sensors.camera.rectification import distortion_fault
from sensors.checks.calibration import Findings, check_pinhole
from sensors.logs.messages import CameraInfo
from sensors.replay.readings import lens_of, rectified_intrinsics

_BASELINE_M = 5.0  # between two cameras that P's fourth column ties together
_AGREE = 0.01  # relative difference of focal lengths, share of the picture for the principal point
_RECTIFIED_ALREADY = "set `rectified: true` in the mapping where the pictures are rectified"


def check_camera_info(
    info: CameraInfo, topic: str, picture_px: tuple[int, int] | None, *, rectified: bool = True
) -> Findings:
    """The intrinsics of a camera that came on `topic`, and whether they are those of a picture of (height, width).

    Of pictures that are not `rectified`, `info` is as `sensors.replay.readings.unrectified` gives it.
    """
    if fault := _matrices_fault(info, picture_px, rectified) or (None if rectified else _lens_fault(info)):
        return Findings(refused=(f"{topic}: {fault}",))
    name, size_px = "P" if info.P.any() else "K", (info.height_px, info.width_px)
    seen = check_pinhole(rectified_intrinsics(info), size_px, f"{topic}: {name}")
    flagged = _doubtful_rectification(info)
    if rectified and info.D.any() and not info.P.any():
        flagged.append("P is all 0 and D is not: K, which holds before rectification, is used of rectified pictures")
    return seen + Findings(flagged=tuple(f"{topic}: {text}" for text in flagged))


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
    if refused := check_pinhole(matrix, (info.height_px, info.width_px), name).refused:
        return refused[0]
    if info.P.any():
        shift_m = float(np.linalg.norm(np.linalg.solve(matrix, info.P[:, 3])))
        if shift_m > _BASELINE_M:
            return f"P: expected a baseline below {_BASELINE_M:g} m in its fourth column, got {shift_m:.3g} m (millimetres?)"
        if info.K.any() and (info.K[0, 0] <= 0 or not 0.5 < matrix[0, 0] / info.K[0, 0] < 2):
            return f"P and K disagree: focal lengths of {matrix[0, 0]:g} and {info.K[0, 0]:g} px"
    return None


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


def _equal(a: Float64, b: Float64) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-6, atol=1e-9)
