"""What of a tick is stored for regression, and how two ticks differ. Letters: T boxes, G stored boxes, M modalities."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbev.results.result import TickResult

# All fields of `bev.detection.boxes.Boxes`, as little-endian as they lie on disk.
BOX = np.dtype([
    ("center_m", "<f4", (3,)), ("size_m", "<f4", (3,)), ("yaw_rad", "<f4"), ("velocity_mps", "<f4", (2,)),
    ("label", "<i4"), ("attribute", "<i4"), ("score", "<f4"),
])  # fmt: skip
_UNITS = {"center_m": "m", "size_m": "m", "yaw_rad": "rad", "velocity_mps": "m/s", "score": ""}
_FIGURES = ("center_m", "size_m", "yaw_rad", "velocity_mps", "score")
_DIGEST_BYTES = 8


@dataclass(frozen=True)
class Tolerance:
    """By how much each figure may differ. Boxes are matched by class and the nearest centre, not by their order.

    Attributes:
        share: of a modality's mean attention.
        ignore_score: boxes scored lower, or above it by less than `score`, may come and go: set it to the score from which
            boxes are reported, because there a small change decides whether a box is told of at all.
    """

    score: float = 0.0
    center_m: float = 0.0
    size_m: float = 0.0
    yaw_rad: float = 0.0
    velocity_mps: float = 0.0
    share: float = 0.0
    ignore_score: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"tolerance {name}: expected a number of 0 or more, got {value}")

    @classmethod
    def of_all(cls, value: float, *, ignore_score: float = 0.0) -> Tolerance:
        """The same number for scores, metres, radians, metres a second and shares."""
        return cls(value, value, value, value, value, value, ignore_score)


@dataclass(frozen=True)
class Difference:
    """The first thing that is not as stored."""

    index: int  # of the tick
    time_us: int
    box: int | None  # place in the stored tick; of a box too many, in the new one
    field: str
    expected: str
    got: str

    def __str__(self) -> str:
        box = "" if self.box is None else f", box {self.box}"
        return f"tick {self.index} ({self.time_us} us){box}: {self.field}: expected {self.expected}, got {self.got}"


@dataclass(frozen=True)
class TickRecord:
    """A tick without its boxes."""

    index: int
    time_us: int
    ready_us: int
    reset: bool
    ego_pose_known: bool
    perceived: bool
    sensors: Mapping[str, tuple[str, int | None]]  # channel -> state, age in us
    shares: tuple[float, ...]  # M, mean attention
    attention: str  # digest of the whole grids
    boxes: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> TickRecord:
        """ValueError, KeyError or TypeError where the row is no tick."""
        sensors = {str(name): (str(state), age) for name, (state, age) in row["sensors"].items()}
        return cls(
            **{**row, "sensors": sensors, "shares": tuple(map(float, row["shares"])), "boxes": int(row["boxes"])}
        )


def record(result: TickResult) -> tuple[TickRecord, NDArray[Any]]:
    """A tick's record and its T boxes as records of `BOX`."""
    tick = result.tick
    boxes = np.zeros(len(result.boxes), BOX)
    for name in BOX.names or ():
        boxes[name] = getattr(result.boxes, name).detach().cpu().numpy()
    attention = np.ascontiguousarray(result.attention, "<f4")
    head = TickRecord(
        index=tick.index,
        time_us=tick.time_us,
        ready_us=tick.ready_us,
        reset=tick.reset,
        ego_pose_known=tick.ego_pose_known,
        perceived=result.perceived,
        sensors={channel: (str(status.state), status.age_us) for channel, status in sorted(tick.sensors.items())},
        shares=tuple(result.shares.values()),
        attention=hashlib.blake2b(attention.tobytes(), digest_size=_DIGEST_BYTES).hexdigest(),
        boxes=len(boxes),
    )
    return head, boxes


def compare_tick(
    golden: TickRecord,
    golden_boxes: NDArray[Any],
    tick: TickRecord,
    boxes: NDArray[Any],
    classes: Sequence[str],
    modalities: Sequence[str],
    tolerance: Tolerance | None,
) -> Difference | None:
    """The first difference of two ticks: times, what was perceived, sensors, boxes, attention; None where there is none.

    Within a tolerance, ages and the time at which a tick was ready are not compared: they say how, not what.
    """

    def differs(field: str, expected: object, got: object, box: int | None = None) -> Difference:
        return Difference(tick.index, tick.time_us, box, field, str(expected), str(got))

    plain = ["index", "time_us", "reset", "ego_pose_known", "perceived", *(["ready_us"] if tolerance is None else [])]
    for field in plain:
        if getattr(golden, field) != getattr(tick, field):
            return differs(field, getattr(golden, field), getattr(tick, field))
    for channel in sorted(golden.sensors.keys() | tick.sensors.keys()):
        old, new = golden.sensors.get(channel), tick.sensors.get(channel)
        if old is None or new is None or old[0] != new[0]:
            return differs(
                f"state of {channel}", old[0] if old else "no such sensor", new[0] if new else "no such sensor"
            )
        if tolerance is None and old[1] != new[1]:
            return differs(f"age of {channel}", f"{old[1]} us", f"{new[1]} us")
    if tolerance is None:
        found = _exact_boxes(golden_boxes, boxes, classes)
    else:
        found = _near_boxes(golden_boxes, boxes, classes, tolerance)
    if found is not None:
        place, field, expected, got = found
        return differs(field, expected, got, place)
    for name, old_share, new_share in zip(modalities, golden.shares, tick.shares, strict=True):
        if (tolerance is None and old_share != new_share) or abs(old_share - new_share) > (
            tolerance or Tolerance()
        ).share:
            return differs(f"attention share of {name}", old_share, new_share)
    if tolerance is None and golden.attention != tick.attention:
        return differs("attention (digest of all cells)", golden.attention, tick.attention)
    return None


_Found = tuple[int | None, str, str, str]  # box, field, expected, got


def _exact_boxes(golden: NDArray[Any], boxes: NDArray[Any], classes: Sequence[str]) -> _Found | None:
    """By order, bit for bit."""
    if golden.tobytes() == boxes.tobytes():
        return None
    for place, (old, new) in enumerate(zip(golden, boxes, strict=False)):
        for name in BOX.names or ():
            if old[name].tobytes() != new[name].tobytes():
                return place, name, _shown(name, old[name], classes), _shown(name, new[name], classes)
    place, none = min(len(golden), len(boxes)), "no such box"
    if len(golden) > len(boxes):
        return place, "box", _told(golden[place], classes), none
    return place, "box", none, _told(boxes[place], classes)


def _near_boxes(
    golden: NDArray[Any], boxes: NDArray[Any], classes: Sequence[str], tolerance: Tolerance
) -> _Found | None:
    """Each stored box against the nearest that agrees with it in everything and that no other took."""
    apart = golden["center_m"][:, None].astype(float) - boxes["center_m"].astype(float)  # [G, T, 3]
    distance_m = np.sqrt(np.einsum("gtk,gtk->gt", apart, apart))
    alike = golden["label"][:, None] == boxes["label"]
    agrees = alike & (distance_m <= tolerance.center_m)
    pairs = np.nonzero(agrees)
    agrees[pairs] = [field == "" for field in _off(golden[pairs[0]], boxes[pairs[1]], tolerance)]
    free = np.ones(len(boxes), bool)
    matters = tolerance.ignore_score + (tolerance.score if tolerance.ignore_score else 0.0)
    for place, score in enumerate(golden["score"].tolist()):
        candidates = np.flatnonzero(free & agrees[place])
        if len(candidates):
            free[candidates[distance_m[place, candidates].argmin()]] = False
        elif score >= matters:
            candidates = np.flatnonzero(free & alike[place])
            if not len(candidates):
                return place, "box", _told(golden[place], classes), f"no {_class(golden[place], classes)} left to match"
            nearest = candidates[distance_m[place, candidates].argmin()]
            return _beyond(place, golden[place], boxes[nearest], classes, tolerance)
    extra = np.flatnonzero(free & (boxes["score"] >= matters))
    return (int(extra[0]), "box", "no such box", _told(boxes[extra[0]], classes)) if len(extra) else None


def _beyond(place: int, old: Any, new: Any, classes: Sequence[str], tolerance: Tolerance) -> _Found:
    """In what two boxes of one class do not agree."""
    [name] = _off(np.array([old], BOX), np.array([new], BOX), tolerance)
    limit = f" within {getattr(tolerance, name):g} {_UNITS[name]}".rstrip() if name in _UNITS else ""
    return place, name, _shown(name, old[name], classes) + limit, _shown(name, new[name], classes)


def _off(old: NDArray[Any], new: NDArray[Any], tolerance: Tolerance) -> list[str]:
    """Of P pairs of boxes of one class each: the first field that differs by more than the tolerance, "" for none.

    NaN equals NaN, and nothing else.
    """
    off = np.where(old["attribute"] == new["attribute"], "", "attribute").astype("U16")
    for name in reversed(_FIGURES):
        a, b = (np.asarray(side[name], float).reshape(len(side), math.prod(BOX[name].shape)) for side in (old, new))
        gap = np.where(np.isnan(a) & np.isnan(b), 0.0, np.abs(a - b))
        if name == "yaw_rad":
            gap = np.abs((gap + np.pi) % (2 * np.pi) - np.pi)
        far = np.sqrt((gap**2).sum(axis=1)) if name == "center_m" else gap.max(axis=1)
        off[~(far <= getattr(tolerance, name))] = name
    return [str(name) for name in off]


def _class(box: Any, classes: Sequence[str]) -> str:
    label = int(box["label"])
    return classes[label] if 0 <= label < len(classes) else f"class {label}"


def _told(box: Any, classes: Sequence[str]) -> str:
    x, y, z = (float(v) for v in box["center_m"])
    return f"a {_class(box, classes)} at ({x:.3f}, {y:.3f}, {z:.3f}) m, score {float(box['score']):.4f}"


def _shown(name: str, value: Any, classes: Sequence[str]) -> str:
    if name == "label":
        return f"{value} ({classes[value]})" if 0 <= value < len(classes) else str(value)
    # float32 in as many digits as tell it from its neighbours: two values that differ never read the same.
    shown = [str(v) for v in np.atleast_1d(value)]
    text = shown[0] if len(shown) == 1 else f"({', '.join(shown)})"
    return f"{text} {_UNITS.get(name, '')}".rstrip()
