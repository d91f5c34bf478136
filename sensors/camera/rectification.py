"""Pictures of a lens with distortion made pinhole pictures, by OpenCV.

The rectified picture is chosen so that every pixel of it has one in the source: what the lens does not show is not in it, and so
counts as not seen wherever intrinsics and picture are looked at, without a mask. The axes stay the camera's own.
Pixel centres are at whole numbers; scaled pictures as in `sensors.camera.images`.

Models and the order of their coefficients are OpenCV's:
    pinhole  https://docs.opencv.org/4.x/d9/d0c/group__calib3d.html         k1 k2 p1 p2 [k3 [k4 k5 k6 [s1 s2 s3 s4 [tx ty]]]]
    fisheye  https://docs.opencv.org/4.x/db/d58/group__calib3d__fisheye.html   k1 k2 k3 k4

Letters: A azimuths around the optical axis, N angles from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sensors.calibration import CalibrationError, Float64, intrinsics_fault
from sensors.camera.images import scaled_intrinsics
from sensors.extras import require

# Name, as ROS and Foxglove have it -> how many coefficients it may have, fewest first.
MODELS = {
    "plumb_bob": (4, 5),
    "rational_polynomial": (8, 12, 14),
    "equidistant": (4,),
    "fisheye": (4,),
    "kannala_brandt": (4,),
}
_FISHEYE = frozenset({"equidistant", "fisheye", "kannala_brandt"})
_WIDEST_RAD = np.deg2rad(65.0)  # from the optical axis: beyond it a pinhole picture is mostly its own border
_LEAST_LEFT = 0.25  # of the source's width and height
MOST_COEFFICIENTS = max(count for counts in MODELS.values() for count in counts)
_MOST_PX = 32767  # a side, in OpenCV's fixed-point maps
_RAYS_AT_ONCE = 1 << 14
_AZIMUTHS, _ANGLES = 360, 257  # twice refined: to 65 deg / 256^2
# Of a rig's cameras. A map of 1600 x 900 px takes 9 MB, and a data set whose scenes are calibrated one by one has no end of them.
_KEPT_MAPS = 16


def model_of(model: str, coefficients: ArrayLike) -> str:
    """A model's name as in `MODELS`, whatever its case and spaces; without a name the pinhole model of so many coefficients."""
    by_count = "plumb_bob" if np.size(coefficients) <= max(MODELS["plumb_bob"]) else "rational_polynomial"
    return model.strip().lower() or by_count


def is_fisheye(model: str) -> bool:
    """Whether a model, of whatever case and spaces, is OpenCV's fisheye."""
    return model.strip().lower() in _FISHEYE


def distortion_fault(model: str, coefficients: ArrayLike) -> str | None:
    """What is wrong with a distortion that is not all 0, as "expected ..., got ..."; None where it is sound."""
    model = model_of(model, coefficients)
    values = np.asarray(coefficients, np.float64).ravel()
    if not np.isfinite(values).all():
        return f"expected finite distortion coefficients, got {values.tolist()}"
    if not values.any():
        return None
    if model not in MODELS:
        return f"expected one of the distortion models {', '.join(MODELS)}, got {model!r}"
    if _count(model, values) is None:
        counts = " or ".join(map(str, MODELS[model]))
        return f"expected {counts} distortion coefficients of {model}, got {len(values)}: {values.tolist()}"
    return None


def distortion_doubt(model: str, coefficients: ArrayLike) -> str | None:
    """What is doubtful about pictures that are not called rectified; None where nothing is."""
    name = model_of(model, coefficients)
    if np.any(coefficients) or (name in MODELS and name not in _FISHEYE):
        return None
    why = "which is a fisheye still" if name in _FISHEYE else f"and it is none of {', '.join(MODELS)}"
    return f"the model is {name} and its coefficients are all 0, {why}: pictures are taken to be rectified"


def trimmed(model: str, coefficients: ArrayLike) -> Float64:
    """The coefficients without the zeros behind them that say nothing; [0] where all are 0. `distortion_fault` comes first."""
    values = np.asarray(coefficients, np.float64).ravel()
    return values[: _count(model_of(model, values), values)] if values.any() else np.zeros(0)


@dataclass(frozen=True)
class Lens:
    """A camera whose pictures are not rectified. Hashable: maps are made once for each.

    Raises:
        CalibrationError: an unknown model, coefficients or a matrix that cannot be; "expected ..., got ...".
    """

    model: str  # one of MODELS
    coefficients: tuple[float, ...]
    matrix: tuple[float, ...]  # K, nine numbers by rows, px
    size_px: tuple[int, int]  # height, width of the full picture

    def __post_init__(self) -> None:
        K = np.reshape(self.matrix, (3, 3)) if len(self.matrix) == 9 else np.array(self.matrix)
        fault = distortion_fault(self.model, self.coefficients) or intrinsics_fault(K)
        if fault is None and not (self.K[0, 0] > 0 and self.K[1, 1] > 0):
            fault = f"expected positive focal lengths, got {self.K[0, 0]:g} and {self.K[1, 1]:g} px"
        if fault is None and not 0 < min(self.size_px) <= max(self.size_px) <= _MOST_PX:
            fault = f"expected a picture of 1 to {_MOST_PX} px a side, got {self.size_px[1]} x {self.size_px[0]} px"
        if fault is not None:
            raise CalibrationError(fault)
        # Equal lenses are equal, and share their maps, however many zeros a driver fills up with.
        object.__setattr__(self, "coefficients", tuple(trimmed(self.model, self.coefficients).tolist()))

    @classmethod
    def of(cls, model: str, coefficients: ArrayLike, K: ArrayLike, size_px: tuple[int, int]) -> Lens | None:
        """The lens of a calibration; None where all coefficients are 0 and the picture is a pinhole's as it is.

        Args:
            K: [3, 3] px of the picture as it was taken, `size_px` (height, width) large.

        Raises:
            CalibrationError: as `Lens`, and where too little of the picture would be left.
            MissingExtraError: there is a lens, and OpenCV is not installed.
        """
        values, matrix = np.asarray(coefficients, np.float64).ravel(), np.asarray(K, np.float64).ravel()
        if not values.any():
            return None
        lens = cls(model_of(model, values), tuple(values.tolist()), tuple(matrix.tolist()), size_px)
        _pinhole(lens)
        return lens

    @property
    def K(self) -> Float64:  # noqa: N802
        """[3, 3] px of the picture as it was taken."""
        return np.array(self.matrix, np.float64).reshape(3, 3)

    @property
    def intrinsics(self) -> Float64:
        """[3, 3] px of the rectified picture at full size."""
        return _pinhole(self).matrix()

    @property
    def rectified_size_px(self) -> tuple[int, int]:
        """(height, width) of the rectified picture at full size."""
        return _pinhole(self).size_px

    def rectify(self, image: NDArray[np.uint8], scale: float = 1.0) -> tuple[NDArray[np.uint8], Float64]:
        """The picture [H, W, 3], decoded at `scale`, as a pinhole's with its intrinsics [3, 3]."""
        cv2 = _opencv()
        places, shares = _maps(self, scale)
        # A reduced picture's outermost centres lie up to half a pixel of it within the full one's border.
        rectified = cv2.remap(image, places, shares, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return rectified, scaled_intrinsics(self.intrinsics, scale, scale)


@dataclass(frozen=True)
class _Pinhole:
    """The rectified picture at full size."""

    focal_px: tuple[float, float]  # x, y
    center_px: tuple[float, float]  # x, y
    size_px: tuple[int, int]  # height, width

    def matrix(self) -> Float64:
        (fx, fy), (cx, cy) = self.focal_px, self.center_px
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


@lru_cache(maxsize=256)
def _pinhole(lens: Lens) -> _Pinhole:
    """The largest rectangle of the proportions that the axes have, all of which the lens shows once."""
    right, below, left, above = _reach(lens, np.arange(4) * np.pi / 2).tolist()
    across, down = np.array([right, left, left, right]), np.array([below, below, above, above])
    corners = np.arctan2(down * [1, 1, -1, -1], across * [1, -1, -1, 1])
    azimuth = np.concatenate([np.linspace(-np.pi, np.pi, _AZIMUTHS, endpoint=False), corners])
    cos, sin = np.cos(azimuth), np.sin(azimuth)
    with np.errstate(divide="ignore", invalid="ignore"):
        border = np.minimum(np.where(cos > 0, right, left) / np.abs(cos), np.where(sin > 0, below, above) / np.abs(sin))
        share = _reach(lens, azimuth) / border
    shrunk = min(1.0, float(np.nan_to_num(share).min())) * (1 - 1e-6)
    right, below, left, above = (shrunk * extent for extent in (right, below, left, above))
    (height, width), K = lens.size_px, lens.K
    wide, tall = (left + right) * K[0, 0], (above + below) * K[1, 1]
    zoom = min(1.0, (width - 1) / max(wide, 1e-9), (height - 1) / max(tall, 1e-9))
    size_px = int(tall * zoom + 1e-6) + 1, int(wide * zoom + 1e-6) + 1
    if size_px[1] < _LEAST_LEFT * width or size_px[0] < _LEAST_LEFT * height:
        raise CalibrationError(
            "expected a lens of which a quarter of the picture's width and height can be rectified (else do so before), got "
            f"{size_px[1]} x {size_px[0]} of {width} x {height} px by {lens.model}, D (camera_distortion) "
            f"{list(lens.coefficients)} and K (camera_intrinsic) {lens.K.tolist()}"
        )
    focal = float(K[0, 0] * zoom), float(K[1, 1] * zoom)
    return _Pinhole(focal, (left * focal[0], above * focal[1]), size_px)


def _reach(lens: Lens, azimuth: Float64) -> Float64:
    """[A] tangents of the angles up to which rays in these directions come to lie in the picture, each on a pixel of its own.

    Beyond the angle at which a polynomial turns back, two rays share a pixel, and the lens does not do what it says.
    """
    height, width = lens.size_px
    center = _distorted(lens, np.zeros((1, 1, 2)))
    directions = np.stack([np.cos(azimuth), np.sin(azimuth)], axis=-1)[:, None]
    nearest, furthest = np.zeros(len(azimuth)), np.full(len(azimuth), _WIDEST_RAD)
    at_center = lens.K[:2, :2] @ center[0, 0] + lens.K[:2, 2]
    if not ((at_center >= 0) & (at_center <= [width - 1, height - 1])).all():
        return nearest
    for _ in range(2):
        steps = (furthest - nearest) / (_ANGLES - 1)
        angles = nearest[:, None] + steps[:, None] * np.arange(_ANGLES)
        distorted = _distorted(lens, directions * np.tan(angles)[..., None])
        with np.errstate(over="ignore", invalid="ignore"):
            pixel = distorted @ lens.K[:2, :2].T + lens.K[:2, 2]
            inside = ((pixel >= 0) & (pixel <= [width - 1, height - 1])).all(axis=-1)  # False for NaN
            grows = np.diff(np.linalg.norm(distorted - center, axis=-1), axis=1) > 0
        sound = np.logical_and.accumulate(inside[:, 1:] & grows, axis=1).sum(axis=1)
        nearest = nearest + steps * sound
        furthest = np.minimum(nearest + steps, furthest)
    return np.tan(nearest)


def _distorted(lens: Lens, rays: Float64) -> Float64:
    """[A, N, 2] where rays (x, y, 1) come to lie in the picture at focal length 1."""
    cv2, D, flat = _opencv(), np.array(lens.coefficients), _homogeneous(rays)
    project = cv2.fisheye.projectPoints if lens.model in _FISHEYE else cv2.projectPoints
    # In parts: it gives derivatives too, which take ten times the memory of the points.
    parts = [flat[at : at + _RAYS_AT_ONCE] for at in range(0, len(flat), _RAYS_AT_ONCE)]
    flat = np.concatenate([project(part, np.zeros(3), np.zeros(3), np.eye(3), D)[0].reshape(-1, 2) for part in parts])
    distorted: Float64 = flat.reshape(rays.shape)
    return distorted


def _homogeneous(rays: Float64) -> Float64:
    flat = rays.reshape(-1, 1, 2)
    return np.concatenate([flat, np.ones((*flat.shape[:2], 1))], axis=-1)


@lru_cache(maxsize=_KEPT_MAPS)
def _maps(lens: Lens, scale: float) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
    """Where each pixel of the rectified picture lies in the source, both at `scale`, in OpenCV's fixed point."""
    cv2, D = _opencv(), np.array(lens.coefficients)
    # The last pixel whose centre still lies before the full picture's last centre.
    height, width = (int((side - 0.5) * scale + 0.5) for side in lens.rectified_size_px)
    rectified, source = (scaled_intrinsics(matrix, scale, scale) for matrix in (lens.intrinsics, lens.K))
    make = cv2.fisheye.initUndistortRectifyMap if lens.model in _FISHEYE else cv2.initUndistortRectifyMap
    # At focal length 1, as OpenCV leaves out K's skew.
    x, y = make(np.eye(3), D, np.eye(3), rectified, (width, height), cv2.CV_32FC1)
    u, v = (row[0] * x + row[1] * y + row[2] for row in source[:2].astype(np.float32))
    places, shares = cv2.convertMaps(u, v, cv2.CV_16SC2)
    return places, shares


def _count(model: str, values: Float64) -> int | None:
    """How many of these, not all 0, the model needs: drivers fill up with zeros. None: it never has so many."""
    counts, used = MODELS[model], int(np.flatnonzero(values)[-1]) + 1
    if len(values) not in counts and not used <= counts[-1] < len(values):
        return None
    return next(count for count in counts if count >= used)


def _opencv() -> Any:
    require("rectifying the pictures of a camera with distortion", "replay", "cv2")
    import cv2

    return cv2
