"""Where frames stand to one another over time, from the transforms that a log sends: a tree, checked where it is used.

A transform that cannot be one does not stop a replay; it makes the lookups that need it fail, by name. Times are nanoseconds of
the messages' stamps. A pose row is (x, y, z, qw, qx, qy, qz), metres.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np

from sensors.calibration import CalibrationError, Float64, inverse_rigid, pose_fault
from sensors.logs.messages import FrameTransform, FrameTransforms

SAME_M, SAME_RAD = 1e-3, 1e-3  # two transforms this near to each other are one
_BASELINE_NS = 100_000_000  # the velocity that a pose is carried on with is taken over about this time
_NAMED = 12  # frames that an error lists


class TransformError(CalibrationError):
    """No transform between two frames at a time, or one that cannot be used. The message names the frames."""


@dataclass
class _Edge:
    """How `child` stood in `parent`: one row that holds always, or rows over time."""

    parent: str
    static: Float64 | None = None  # [7]
    stamps_ns: list[int] = field(default_factory=list)  # ascending
    rows: list[Float64] = field(default_factory=list)
    first: Float64 | None = None  # the first row over time, to see whether later ones differ
    moves: bool = False
    matrix: Float64 | None = None  # [4, 4] of the static row


class TransformTree:
    """Transforms by child frame. Frame ids are taken without a leading slash, as ROS 2 has them.

    `gap_ns`: transforms over time that are further apart are not interpolated, and none is carried further than this, with the
    velocity that it had, beyond the first and the last one known.
    """

    def __init__(self, *, gap_ns: int) -> None:
        self.version = 0  # changes with every static transform, every frame that is new, every fault
        self._paths: dict[tuple[str, str], tuple[int, list[str], list[str]]] = {}  # with the version that they hold for
        self._gap_ns = gap_ns
        self._edges: dict[str, _Edge] = {}
        self._faults: dict[str, str] = {}  # child -> why no lookup may pass it
        self._fault_is_static: dict[str, bool] = {}
        self._changed: dict[str, str] = {}  # child -> how its static transform changed

    def add(self, message: FrameTransforms) -> None:
        """Take in what was sent. What is unsound is kept as the fault of its child; over time it is left out."""
        for transform in message.transforms:
            self._add(transform, static=message.static)

    def reset(self) -> None:
        """Forget everything that depends on time; static transforms stay."""
        self.version += 1
        for child in [child for child, edge in self._edges.items() if edge.static is None]:
            del self._edges[child]
        for edge in self._edges.values():
            edge.stamps_ns, edge.rows, edge.first, edge.moves = [], [], None, False
        for child in [child for child, static in self._fault_is_static.items() if not static]:
            del self._faults[child], self._fault_is_static[child]

    def forget_before(self, time_ns: int) -> None:
        """Drop rows that no lookup from `time_ns` on needs."""
        for edge in self._edges.values():
            # One row before the time to interpolate from, and two in all to carry on with.
            drop = min(bisect_left(edge.stamps_ns, time_ns - _BASELINE_NS) - 1, len(edge.rows) - 2)
            if drop > 0:
                del edge.stamps_ns[:drop], edge.rows[:drop]

    def frames(self) -> tuple[str, ...]:
        """Every frame that was named, sorted."""
        return tuple(sorted({*self._edges, *self._faults, *(edge.parent for edge in self._edges.values())}))

    def lookup(self, target: str, source: str, time_ns: int, *, hold_constant: bool = False) -> Float64:
        """[4, 4] target_T_source at a time.

        `hold_constant`: a transform sent over time that has never changed holds at any time, as mountings do.

        Raises:
            TransformError: a frame is unknown, the two are not connected, the chain has a loop or an unsound transform, or
                nothing is known near enough to the time.
        """
        target, source = _name(target), _name(source)
        down, up = self._path(target, source)
        matrix = self._product(up, time_ns, hold_constant)
        return inverse_rigid(self._product(down, time_ns, hold_constant)) @ matrix if down else matrix

    def is_static(self, target: str, source: str) -> bool:
        """Whether nothing between two frames was sent over time; errors as `lookup`."""
        down, up = self._path(_name(target), _name(source))
        return not any(self._edges[child].rows for child in (*down, *up))

    def changes(self, target: str, source: str) -> tuple[str, ...]:
        """What between two frames did not stay as it was first told; errors as `lookup`."""
        down, up = self._path(_name(target), _name(source))
        found = [self._changed[child] for child in (*down, *up) if child in self._changed]
        moving = [child for child in (*down, *up) if self._edges[child].moves]
        found += [f"transform {self._edges[child].parent!r} -> {child!r} moves during the drive" for child in moving]
        return tuple(found)

    def newest_ns(self, target: str, source: str) -> tuple[int, int] | None:
        """Up to when the transform is known by messages, and their spacing there; None: not sent over time, or unknown."""
        try:
            down, up = self._path(_name(target), _name(source))
        except TransformError:
            return None
        edges = [self._edges[child] for child in (*down, *up) if self._edges[child].rows]
        if not edges:
            return None
        edge = min(edges, key=lambda edge: edge.stamps_ns[-1])
        spacing = edge.stamps_ns[-1] - edge.stamps_ns[-2] if len(edge.rows) > 1 else self._gap_ns
        return edge.stamps_ns[-1], spacing

    def _add(self, transform: FrameTransform, *, static: bool) -> None:
        parent, child = _name(transform.parent), _name(transform.child)
        row = np.array([*transform.translation_m, *transform.rotation_wxyz], np.float64)
        edge = self._edges.get(child)
        if fault := _fault(parent, child, row, edge):
            # One bad pose among many is left out; the newest calibration, if bad, is not replaced by an older one.
            if static or edge is None or not edge.rows or edge.parent != parent:
                self._faults[child], self._fault_is_static[child] = fault, static
                self.version += 1
            return
        if edge is None:
            edge = self._edges[child] = _Edge(parent)
            self.version += 1
        if static:
            self._add_static(edge, child, row)
        else:
            self._add_row(edge, transform.stamp_ns, row)
        if child in self._faults and "two parents" not in self._faults[child]:
            del self._faults[child], self._fault_is_static[child]
            self.version += 1

    def _add_static(self, edge: _Edge, child: str, row: Float64) -> None:
        if edge.static is not None and np.array_equal(edge.static, row):
            return
        if edge.static is not None and (difference := _difference(edge.static, row)):
            self._changed[child] = f"static transform {edge.parent!r} -> {child!r} changed by {difference}"
        edge.static, edge.matrix = row, _matrix(row)
        self.version += 1

    def _add_row(self, edge: _Edge, stamp_ns: int, row: Float64) -> None:
        at = len(edge.stamps_ns)
        if edge.stamps_ns and stamp_ns <= edge.stamps_ns[-1]:
            at = bisect_left(edge.stamps_ns, stamp_ns)
            if edge.stamps_ns[at] == stamp_ns:
                edge.rows[at] = row
                return
        edge.stamps_ns.insert(at, stamp_ns)
        edge.rows.insert(at, row)
        if edge.first is None:
            edge.first = row
        edge.moves = edge.moves or bool(_difference(edge.first, row))

    def _path(self, target: str, source: str) -> tuple[list[str], list[str]]:
        """Children to pass from `target` up to the common ancestor, and from `source` up to it."""
        if target == source:
            return [], []
        known = self._paths.get((target, source))
        if known is None or known[0] != self.version:
            known = self._paths[target, source] = (self.version, *self._find_path(target, source))
        return known[1], known[2]

    def _find_path(self, target: str, source: str) -> tuple[list[str], list[str]]:
        from_target, from_source = self._climb(target), self._climb(source)
        common = next((frame for frame in from_source if frame in from_target), None)
        if common is None:
            known = self.frames()
            for frame in (target, source):
                if frame not in known:
                    raise TransformError(
                        f"no transform between {target!r} and {source!r}: {frame!r} is in no transform. "
                        f"Frames known: {_listed(known)}"
                    )
            raise TransformError(
                f"no transform between {target!r} and {source!r}: they are not connected; {target!r} hangs on "
                f"{from_target[-1]!r}, {source!r} on {from_source[-1]!r}. Frames known: {_listed(known)}"
            )
        down, up = from_target[: from_target.index(common)], from_source[: from_source.index(common)]
        for child in (*down, *up):
            if child in self._faults:
                raise TransformError(f"transform to {source!r} from {target!r}: {self._faults[child]}")
        return down, up

    def _climb(self, frame: str) -> list[str]:
        """The frame and its ancestors."""
        chain = [frame]
        while True:
            if chain[-1] in self._faults and chain[-1] not in self._edges:
                raise TransformError(self._faults[chain[-1]])
            if chain[-1] not in self._edges:
                return chain
            parent = self._edges[chain[-1]].parent
            if parent in chain:
                loop = [*chain[chain.index(parent) :], parent]
                raise TransformError(f"the transforms loop: {' -> '.join(map(repr, reversed(loop)))}")
            chain.append(parent)

    def _product(self, children: list[str], time_ns: int, hold_constant: bool) -> Float64:
        """ancestor_T_child over a chain of children, the lowest first."""
        if not children:
            return np.eye(4)
        matrix = self._at(children[0], time_ns, hold_constant)
        for child in children[1:]:
            matrix = self._at(child, time_ns, hold_constant) @ matrix
        return matrix

    def _at(self, child: str, time_ns: int, hold_constant: bool) -> Float64:
        edge = self._edges[child]
        if not edge.rows or (hold_constant and not edge.moves):
            if edge.rows:
                return _matrix(edge.rows[-1])
            assert edge.matrix is not None, "an edge has a static row or rows over time"
            return edge.matrix
        stamps, at = edge.stamps_ns, bisect_left(edge.stamps_ns, time_ns)
        if at < len(stamps) and stamps[at] == time_ns:
            return _matrix(edge.rows[at])
        if 0 < at < len(stamps) and stamps[at] - stamps[at - 1] <= self._gap_ns:
            before, after = at - 1, at
        else:
            near = min(max(at - 1, 0), len(stamps) - 1)
            if at < len(stamps) and abs(stamps[at] - time_ns) < abs(stamps[near] - time_ns):
                near = at
            if abs(stamps[near] - time_ns) > self._gap_ns:
                raise TransformError(_too_far(edge.parent, child, stamps[near], time_ns, self._gap_ns))
            before, after = self._carried_on(edge, near, time_ns)
        if before == after:
            return _matrix(edge.rows[before])
        share = (time_ns - stamps[before]) / (stamps[after] - stamps[before])
        return _matrix(interpolate(edge.rows[before], edge.rows[after], share))

    def _carried_on(self, edge: _Edge, near: int, time_ns: int) -> tuple[int, int]:
        """The rows whose velocity carries row `near` to a time outside; equal where there is only one."""
        stamps, step = edge.stamps_ns, -1 if time_ns > edge.stamps_ns[near] else 1
        other = near
        while 0 <= other + step < len(stamps) and abs(stamps[other] - stamps[near]) < _BASELINE_NS:
            if abs(stamps[other + step] - stamps[near]) > self._gap_ns:
                break
            other += step
        return min(near, other), max(near, other)


def interpolate(before: Float64, after: Float64, share: float) -> Float64:
    """The pose row [7] at `share` (0..1, or beyond: the same velocity) of the way: straight and at constant turn rate."""
    out = before + share * (after - before)
    first, last = before[3:] / np.linalg.norm(before[3:]), after[3:] / np.linalg.norm(after[3:])
    cosine = float(first @ last)
    if cosine < 0:  # q and -q are one rotation; the short way
        last, cosine = -last, -cosine
    if cosine > 1 - 1e-12:
        mixed = first + share * (last - first)
    else:
        angle = math.acos(min(cosine, 1.0))
        mixed = (math.sin((1 - share) * angle) * first + math.sin(share * angle) * last) / math.sin(angle)
    out[3:] = mixed / np.linalg.norm(mixed)
    return out


def _matrix(row: Float64) -> Float64:
    """`sensors.calibration.transforms` of one row, which for one is six times as slow."""
    x, y, z, qw, qx, qy, qz = row.tolist()
    norm = math.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
    w, i, j, k = qw / norm, qx / norm, qy / norm, qz / norm
    return np.array([
        [1 - 2 * (j * j + k * k), 2 * (i * j - w * k), 2 * (i * k + w * j), x],
        [2 * (i * j + w * k), 1 - 2 * (i * i + k * k), 2 * (j * k - w * i), y],
        [2 * (i * k - w * j), 2 * (j * k + w * i), 1 - 2 * (i * i + j * j), z],
        [0.0, 0.0, 0.0, 1.0],
    ])  # fmt: skip


def _name(frame: str) -> str:
    return frame.removeprefix("/")


def _fault(parent: str, child: str, row: Float64, edge: _Edge | None) -> str | None:
    where = f"transform {parent!r} -> {child!r}"
    if not parent or not child:
        return f"{where}: expected two frame ids, got an empty one"
    if parent == child:
        return f"{where}: expected two frames, got a transform of a frame to itself"
    if edge is not None and edge.parent != parent:
        return f"{child!r} has two parents, {edge.parent!r} and {parent!r}: a frame may have one"
    if np.isfinite(row).all() and not row[3:].any():
        return f"{where}: expected a quaternion (w, x, y, z) of norm 1, got the zero quaternion"
    fault = pose_fault(row)
    return fault and f"{where}: {fault}"


def _difference(a: Float64, b: Float64) -> str:
    """How far two pose rows are apart, in words; empty where they are the same."""
    if np.array_equal(a, b):
        return ""
    shift_m = float(np.linalg.norm(a[:3] - b[:3]))
    cosine = abs(float(a[3:] @ b[3:])) / float(np.linalg.norm(a[3:]) * np.linalg.norm(b[3:]))
    turn_rad = 2 * math.acos(min(cosine, 1.0))
    return f"{shift_m:.3f} m, {math.degrees(turn_rad):.2f} deg" if shift_m > SAME_M or turn_rad > SAME_RAD else ""


def _listed(frames: tuple[str, ...]) -> str:
    more = f" and {len(frames) - _NAMED} more" if len(frames) > _NAMED else ""
    return (", ".join(frames[:_NAMED]) or "none") + more


def _too_far(parent: str, child: str, stamp_ns: int, time_ns: int, gap_ns: int) -> str:
    return (
        f"transform {parent!r} -> {child!r} is not known at {time_ns / 1e9:.3f} s: the nearest is "
        f"{abs(time_ns - stamp_ns) / 1e9:.3f} s {'older' if stamp_ns < time_ns else 'newer'}, more than the {gap_ns / 1e9:g} s "
        "that it is carried on or interpolated over"
    )
