"""Regression by replay: what a replay gave is stored, and a later one is held against it.

`golden.safetensors` holds a row of `ticks` and of `shares` a tick and a row of `boxes` a box, tick after tick in the order in
which they were found; its metadata say what the numbers stand for. Equal results give equal bytes. Nothing here depends on how
fast a replay ran. Letters: T ticks, S sensors, M modalities, N boxes, G stored boxes of a tick, B new ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from robustbev.results.result import ResultWriter, TickResult
from robustbev.weights import write_whole
from sensors.documents import parse_json, short
from sensors.replay.tick import SensorState
from sensors.settings import StrictModel

FILE = "golden.safetensors"
_LARGEST_BYTES, _LARGEST_HEADER_BYTES = 2**30, 2**20
_TICK = ("index", "time_us", "reset", "ego_pose_known", "perceived", "ready_us", "boxes")
_BOX = (
    "x_m", "y_m", "z_m", "width_m", "length_m", "height_m", "yaw_rad", "vx_mps", "vy_mps", "label", "attribute", "score",
)  # fmt: skip
_YAW, _LABEL, _ATTRIBUTE, _SCORE = map(_BOX.index, ("yaw_rad", "label", "attribute", "score"))
_STATES = tuple(SensorState)


class GoldenError(ValueError):
    """A folder that holds no golden outputs, or damaged ones, or has them already."""


class _Names(StrictModel):
    """What the numbers stand for."""

    version: Literal[2] = 2
    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    modalities: tuple[str, ...]
    sensors: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """7 + 2 S + 1, of `ticks`."""
        states, ages = (f"state of {name}" for name in self.sensors), (f"age of {name} in us" for name in self.sensors)
        return (*_TICK, *states, *ages, "attention (digest of all cells)")


class GoldenWriter:
    """Stores results in a folder, all at once at `close`.

    Args:
        folder: made where it is not there.
        replace: whether golden outputs that it has may be replaced.

    Raises:
        GoldenError: it has some, and they may not.
        OSError: it cannot be made.
    """

    def __init__(self, folder: Path, *, replace: bool = False) -> None:
        self._path = folder / FILE
        if self._path.exists() and not replace:
            raise GoldenError(f"{folder}: golden outputs are there already; remove them, or choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        self._names: _Names | None = None
        self._rows: list[tuple[NDArray[Any], ...]] = []

    def write(self, result: TickResult) -> None:
        self._names = _names(result)
        self._rows.append(_row(result))

    def close(self) -> None:
        """Write the file; GoldenError where there was no tick."""
        if self._names is None:
            self.abort()
            raise GoldenError(f"{self._path.parent}: expected at least one tick to store, got none")
        ticks, shares, boxes = zip(*self._rows, strict=True)
        arrays = {"ticks": np.stack(ticks), "shares": np.stack(shares), "boxes": np.concatenate(boxes)}
        write_whole(self._path, save(arrays, {"golden": json.dumps(self._names.model_dump())}))

    def abort(self) -> None:
        with suppress(OSError):  # it has something in it
            self._path.parent.rmdir()


class GoldenComparison(ResultWriter):
    """Holds results against stored ones, as a `ResultWriter` that writes nothing.

    Args:
        folder: of a `GoldenWriter`.
        tolerance: 0: equal bit for bit, box by box. Otherwise boxes are matched one to one within a class, whatever their order,
            and each number of theirs and each modality's share may differ by so much; when a tick was ready, ages and the
            attention cell by cell are not compared: they say how, not what.
        min_score: with a tolerance, boxes scored lower, or above it by less than the tolerance, may come and go.

    Raises:
        GoldenError: there is nothing sound to compare with.
    """

    def __init__(self, folder: Path, tolerance: float = 0.0, min_score: float = 0.0) -> None:
        self._stored, self._ticks, self._shares, self._boxes = _read(folder)
        self._tolerance, self._min_score = tolerance, min_score
        self._count = 0
        self.difference: str | None = None  # the first; final after `close`

    def write(self, result: TickResult) -> None:
        if self.difference is None:
            difference = next(self._differences(result), None)
            self.difference = difference and f"tick {result.tick.index} ({result.tick.time_us} us): {difference}"
        self._count += 1

    def close(self) -> None:
        if self.difference is None and self._count < len(self._ticks):
            index, time_us, *_ = self._ticks[self._count].tolist()
            self.difference = f"tick {index} ({time_us} us): expected {len(self._ticks)} ticks, got the end before it"

    def _differences(self, result: TickResult) -> Iterator[str]:
        names, number = _names(result), self._count
        for key, expected in self._stored:
            if getattr(names, key) != expected:
                yield f"{key}: expected {', '.join(expected)}, got {', '.join(getattr(names, key))}"
        if number >= len(self._ticks):
            yield f"expected {len(self._ticks)} ticks, got one more"
        row, shares, boxes = _row(result)
        stored = self._ticks[number]
        *ticks, attention = zip(names.columns, stored.tolist(), row.tolist(), strict=True)
        for field, old, new in ticks:
            unlike_in_how = self._tolerance > 0 and field.startswith(("ready_us", "age of"))
            if old != new and field != "boxes" and not unlike_in_how:
                yield f"{field}: expected {_shown(field, old)}, got {_shown(field, new)}"
        if self._tolerance > 0:
            yield from _near(self._boxes[number], boxes, names.classes, self._tolerance, self._min_score)
        else:
            yield from _exact(self._boxes[number], boxes, names.classes)
        for name, old, new in zip(names.modalities, self._shares[number].tolist(), shares.tolist(), strict=True):
            if not abs(old - new) <= self._tolerance:
                yield f"attention share of {name}: expected {old}, got {new}"
        if self._tolerance == 0 and attention[1] != attention[2]:
            yield "{}: expected {:x}, got {:x}".format(*attention)


def _names(result: TickResult) -> _Names:
    return _Names(
        classes=result.classes,
        attributes=result.attributes,
        modalities=result.modalities,
        sensors=tuple(sorted(result.tick.sensors)),
    )


def _row(result: TickResult) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float32]]:
    """-> its row of `ticks`, of `shares` [M], and boxes [B, 12]."""
    tick, boxes = result.tick, result.boxes
    sensors = [status for _, status in sorted(tick.sensors.items())]
    attention = hashlib.blake2b(np.ascontiguousarray(result.attention, "<f4").tobytes(), digest_size=7).digest()
    row = [
        *(tick.index, tick.time_us, tick.reset, tick.ego_pose_known, result.perceived, tick.ready_us, len(boxes)),
        *(_STATES.index(status.state) for status in sensors),
        *(-1 if status.age_us is None else status.age_us for status in sensors),
        int.from_bytes(attention),
    ]
    last = torch.stack([boxes.label.float(), boxes.attribute.float(), boxes.score], dim=1)
    table = torch.cat([boxes.center_m, boxes.size_m, boxes.yaw_rad[:, None], boxes.velocity_mps, last], dim=1)
    return np.array(row, np.int64), np.array([float(share.mean()) for share in result.attention]), table.numpy()


def _read(folder: Path) -> tuple[_Names, NDArray[np.int64], NDArray[np.float64], list[NDArray[np.float32]]]:
    """What the numbers stand for, `ticks`, `shares` [T, M], and the boxes [G, 12] of each tick."""
    path = folder / FILE
    if not path.is_file():
        raise GoldenError(
            f"{folder}: expected golden outputs of a replay, got no {FILE} there; record them (anew, where they are of an "
            "earlier version) with --write-golden"
        )
    try:
        with path.open("rb") as start:
            header_bytes = int.from_bytes(start.read(8), "little")
        if path.stat().st_size > _LARGEST_BYTES or header_bytes > _LARGEST_HEADER_BYTES:
            raise ValueError("more than any replay's")
        with safe_open(path, "numpy") as file:
            names = _Names.model_validate(parse_json((file.metadata() or {}).get("golden", "{}")))
            ticks, shares, boxes = map(file.get_tensor, ("ticks", "shares", "boxes"))
        got = [(array.dtype, array.shape[1:]) for array in (ticks, shares, boxes)]
        expected = [
            (np.int64, (len(names.columns),)),
            (np.float64, (len(names.modalities),)),
            (np.float32, (len(_BOX),)),
        ]
        counts = ticks[:, _TICK.index("boxes")].tolist()
        if got != expected or len(shares) != len(ticks) or min(counts) < 0 or sum(counts) != len(boxes):
            raise ValueError("arrays that do not fit each other")
    except (SafetensorError, OSError, ValueError, IndexError, OverflowError) as error:
        raise GoldenError(f"{path}: no readable golden outputs ({short(str(error))}); record them anew") from error
    return names, ticks, shares, np.split(boxes, np.cumsum(counts)[:-1])


def _exact(stored: NDArray[Any], boxes: NDArray[Any], classes: tuple[str, ...]) -> Iterator[str]:
    """By order, bit for bit: -0 is not 0, and a NaN equals itself."""
    both = min(len(stored), len(boxes))
    for place, column in np.argwhere(stored[:both].view(np.int32) != boxes[:both].view(np.int32)):
        yield f"box {place}: {_BOX[column]}: expected {_short(stored[place, column])}, got {_short(boxes[place, column])}"
    if len(stored) > both:
        yield f"box {both}: expected {_told(stored[both], classes)}, got no such box"
    if len(boxes) > both:
        yield f"box {both}: expected no such box, got {_told(boxes[both], classes)}"


def _near(
    stored: NDArray[Any], boxes: NDArray[Any], classes: tuple[str, ...], tolerance: float, min_score: float
) -> Iterator[str]:
    """What is left over once as many as can be are paired that agree within the tolerance. NaN agrees with NaN alone."""
    from scipy.optimize import linear_sum_assignment

    old, new = stored[:, None].astype(float), boxes[None].astype(float)
    gap = np.where(np.isnan(old) & np.isnan(new), 0.0, np.abs(old - new))  # [G, B, 12]
    gap[..., _YAW] = np.abs((gap[..., _YAW] + np.pi) % (2 * np.pi) - np.pi)
    limit = np.full(len(_BOX), tolerance)
    limit[[_LABEL, _ATTRIBUTE]] = 0.0
    beyond = ~(gap <= limit)
    pairs = [(g, b) for g, b in zip(*linear_sum_assignment(beyond.any(-1)), strict=True) if not beyond[g, b].any()]
    matters = min_score + tolerance if min_score else 0.0
    left = np.setdiff1d(np.arange(len(boxes)), [b for _, b in pairs])
    for place in np.setdiff1d(np.nonzero(stored[:, _SCORE] >= matters), [g for g, _ in pairs]):
        alike = left[boxes[left, _LABEL] == stored[place, _LABEL]]
        if len(alike):
            nearest = alike[gap[place, alike, :3].sum(-1).argmin()]
            column = beyond[place, nearest].argmax()
            expected = f"{_short(stored[place, column])} within {limit[column]:g}"
            yield f"box {place}: {_BOX[column]}: expected {expected}, got {_short(boxes[nearest, column])}"
        yield f"box {place}: expected {_told(stored[place], classes)}, got no such box"
    for place in left[boxes[left, _SCORE] >= matters]:
        yield f"box {place}: expected no such box, got {_told(boxes[place], classes)}"


def _shown(field: str, value: int) -> str:
    known = field.startswith("state of") and 0 <= value < len(_STATES)
    return str(_STATES[value]) if known else str(value)


def _short(value: float) -> str:
    """In as many digits as tell it from its neighbours."""
    return np.format_float_positional(value, trim="-")


def _told(box: NDArray[Any], classes: tuple[str, ...]) -> str:
    name = dict(enumerate(classes)).get(box[_LABEL].item(), "box of no known class")
    x, y, z = box[:3].tolist()
    return f"a {name} at ({x:.3f}, {y:.3f}, {z:.3f}) m, score {box[_SCORE]:.4f}"
