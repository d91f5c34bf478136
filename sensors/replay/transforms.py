"""Where frames stand to one another over time, from the transforms that a log sends, checked where they are used.

A transform that cannot be one does not stop a replay; it makes the lookups that need it fail, by name. Times are nanoseconds of
the messages' stamps. A pose row is (x, y, z, qw, qx, qy, qz), metres.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from sensors.calibration import CalibrationError, Float64, inverse_rigid, pose_fault
from sensors.logs.log import LogWarning
from sensors.logs.messages import FrameTransform, FrameTransforms
from sensors.motion.poses import apart, difference, in_words, pose_matrix
from sensors.motion.trajectory import PoseTrack

_AGREE_M, _AGREE_RAD = 0.05, 0.01  # ways this near are one: stamps of moving frames never meet, and cells are larger
_NAMED = 12  # frames or transforms that a message lists


class TransformError(CalibrationError):
    """No transform between two frames at a time, or one that cannot be used. The message names the frames."""


@dataclass(eq=False)
class _Edge:
    """How `child` stood in `parent`: one row that holds always, or rows over time."""

    parent: str
    child: str
    static: Float64 | None = None  # [7]
    track: PoseTrack = field(default_factory=PoseTrack)
    first: Float64 | None = None  # the first row over time, to see whether later ones differ
    moves: bool = False
    matrix: Float64 | None = None  # [4, 4] of the static row

    def __str__(self) -> str:
        return f"{self.parent!r} -> {self.child!r}"

    def other(self, frame: str) -> str:
        """The frame at its other end."""
        return self.parent if self.child == frame else self.child


_Way: TypeAlias = "tuple[_Edge, ...]"  # from one frame to another, each edge from either of its ends


class TransformTree:
    """Transforms by the two frames that they are between. Frame ids are taken without a leading slash, as ROS 2 has them.

    ROS wants a tree, logs do not always hold one: a lookup goes along the transforms in either direction, and so a frame may
    have several parents, or a global frame stand in that of the ego. Where several ways lead to a frame they must agree; only a
    transform between the two frames themselves, if it is the only one, wins over ways around it.

    `gap_ns`: transforms over time that are further apart are not interpolated, and none is carried further than this, with the
    velocity that it had, beyond the first and the last one known.
    """

    def __init__(self, *, gap_ns: int) -> None:
        self.version = 0  # changes with every static transform, every edge that is new, every fault
        self.left_out: dict[str, int] = {}  # transform -> its unsound poses over time
        self._ways: dict[tuple[str, str], tuple[int, tuple[_Way, ...]]] = {}  # with the version that they hold for
        self._gap_ns = gap_ns
        self._edges: dict[tuple[str, str], _Edge] = {}  # by parent and child
        self._at_frame: dict[str, list[_Edge]] = {}  # that begin or end at a frame
        self._faults: dict[tuple[str, str], tuple[str, bool]] = {}  # parent, child -> why no lookup may pass it; static
        self._changed: dict[tuple[str, str], str] = {}  # how a static transform changed, or is sent over time too
        self._apart: dict[tuple[str, str], str] = {}  # target, source -> how a way around first disagreed
        self._told: set[tuple[str, str]] = set()  # edges whose child's parents were looked at

    def add(self, message: FrameTransforms) -> None:
        """Take in what was sent. What is unsound is kept as the fault of its child; over time it is left out.

        Told once, as a LogWarning: a frame that gets another parent, a transform that is static and over time and differs, one
        of which poses are unsound.
        """
        for transform in message.transforms:
            self._add(transform, static=message.static)

    def reset(self) -> None:
        """Forget everything that depends on time; static transforms stay."""
        self.version += 1
        for edge in list(self._edges.values()):
            edge.track, edge.first, edge.moves = PoseTrack(), None, False
            if edge.static is None:
                del self._edges[edge.parent, edge.child]
                for frame in (edge.parent, edge.child):
                    self._at_frame[frame].remove(edge)
        self._faults = {key: (fault, static) for key, (fault, static) in self._faults.items() if static}

    def forget_before(self, time_ns: int) -> None:
        """Drop rows that no lookup from `time_ns` on needs."""
        for edge in self._edges.values():
            edge.track.forget_before(time_ns)

    def frames(self) -> tuple[str, ...]:
        """Every frame that was named, sorted."""
        return tuple(sorted({frame for pair in self._edges for frame in pair} | {child for _, child in self._faults}))

    def lookup(self, target: str, source: str, time_ns: int, *, hold_constant: bool = False) -> Float64:
        """[4, 4] target_T_source at a time.

        `hold_constant`: a transform sent over time that has never changed holds at any time, as mountings do.

        Raises:
            TransformError: a frame is unknown, the two are not connected, on the way is an unsound transform, ways between them
                disagree, or nothing is known near enough to the time.
        """
        target, source = _name(target), _name(source)
        ways = self._find_ways(target, source)
        known: list[tuple[_Way, Float64]] = []
        for way in ways:
            try:
                known.append((way, self._product(way, source, time_ns, hold_constant)))
            except TransformError:  # not known at this time
                if way is ways[-1] and not known:
                    raise
        (way, matrix), *others = known
        for other, second in others:
            shift_m, turn_rad = apart(matrix, second)
            if shift_m > _AGREE_M or turn_rad > _AGREE_RAD:
                self._disagree(target, source, in_words(shift_m, turn_rad), way, other)
        return matrix

    def is_static(self, target: str, source: str) -> bool:
        """Whether nothing between two frames was sent over time; errors as `lookup`."""
        return not any(edge.track.rows for way in self._find_ways(_name(target), _name(source)) for edge in way)

    def changes(self, target: str, source: str) -> tuple[str, ...]:
        """What between two frames is not as in a tree, or did not stay as it was first told; errors as `lookup`."""
        key = _name(target), _name(source)
        way, *_ = self._find_ways(*key)
        doubts = [fault for edge in way if (fault := self._several_parents(edge.child))]
        doubts += [self._apart[key]] if key in self._apart else []
        doubts += [self._changed[edge.parent, edge.child] for edge in way if (edge.parent, edge.child) in self._changed]
        doubts += [f"transform {edge} moves during the drive" for edge in way if edge.moves]
        return tuple(doubts)

    def newest_ns(self, target: str, source: str) -> tuple[int, int] | None:
        """Up to when the transform is known by messages, and their spacing there; None: not sent over time, or unknown."""
        try:
            way, *_ = self._find_ways(_name(target), _name(source))
        except TransformError:
            return None
        stamps = [edge.track.stamps_ns for edge in way if edge.track.rows]
        if not stamps:
            return None
        slowest = min(stamps, key=lambda of_edge: of_edge[-1])
        return slowest[-1], slowest[-1] - slowest[-2] if len(slowest) > 1 else self._gap_ns

    def _add(self, transform: FrameTransform, *, static: bool) -> None:
        parent, child = key = _name(transform.parent), _name(transform.child)
        row = np.array([*transform.translation_m, *transform.rotation_wxyz], np.float64)
        edge = self._edges.get(key)
        if fault := _fault(parent, child, row):
            if not static:
                self._count_left_out(f"{parent!r} -> {child!r}", fault)
            # One bad pose among many is left out; the newest calibration, if bad, is not replaced by an older one.
            if static or edge is None or not edge.track.rows:
                self._faults[key] = fault, static
                self.version += 1
            return
        if edge is None:
            edge = self._edges[key] = _Edge(parent, child)
            for frame in key:
                self._at_frame.setdefault(frame, []).append(edge)
            self.version += 1
            self._tell_parents(key)
        if static:
            self._add_static(edge, row)
        else:
            self._add_row(edge, transform.stamp_ns, row)
        if edge.static is not None and edge.first is not None and key not in self._changed:
            self._tell_both(edge, edge.static, row if not static else edge.first)
        if self._faults.pop(key, None) is not None:
            self.version += 1

    def _disagree(self, target: str, source: str, difference: str, way: _Way, other: _Way) -> None:
        """Two transforms between the same two frames, or two ways around, leave nothing to choose by."""
        text = f"ways between {target!r} and {source!r} differ by {difference}: {_told(way)}, and {_told(other)}"
        if len(other) == 1:
            raise TransformError(f"two {text}. Record the log with one of them")
        if len(way) > 1:
            raise TransformError(
                f"two {text}. Name in the mapping frames between which the log sends a transform, or record it with one way"
            )
        if (target, source) not in self._apart:
            self._apart[target, source] = f"{text}; the transform between the two themselves is taken"
            warnings.warn(f"transforms: {self._apart[target, source]}", LogWarning, stacklevel=3)

    def _count_left_out(self, edge: str, fault: str) -> None:
        self.left_out[edge] = self.left_out.get(edge, 0) + 1
        if self.left_out[edge] == 1:
            warnings.warn(f"transforms: {fault}; such poses are left out", LogWarning, stacklevel=4)

    def _tell_both(self, edge: _Edge, static: Float64, row: Float64) -> None:
        if change := difference(static, row):
            text = f"transform {edge} is sent as static and over time, {change} apart; the one over time is taken"
            self._changed[edge.parent, edge.child] = text
            warnings.warn(f"transforms: {text}", LogWarning, stacklevel=4)

    def _several_parents(self, child: str) -> str:
        parents = tuple(repr(edge.parent) for edge in self._at_frame[child] if edge.child == child)
        if len(parents) < 2:
            return ""
        if len(parents) == 2:
            return f"{child!r} has two parents, {parents[0]} and {parents[1]}"
        return f"{child!r} has {len(parents)} parents, {_listed(parents)}"

    def _tell_parents(self, edge: tuple[str, str]) -> None:
        if edge in self._told:  # before a reset
            return
        self._told.add(edge)
        if fault := self._several_parents(edge[1]):
            text = f"transforms: {fault}, where ROS has one; of these the one on the shortest way to the wanted frame is taken"
            warnings.warn(text, LogWarning, stacklevel=4)

    def _add_static(self, edge: _Edge, row: Float64) -> None:
        if edge.static is not None and np.array_equal(edge.static, row):
            return
        if edge.static is not None and (change := difference(edge.static, row)):
            self._changed[edge.parent, edge.child] = f"static transform {edge} changed by {change}"
        edge.static, edge.matrix = row, pose_matrix(row)
        self.version += 1

    def _add_row(self, edge: _Edge, stamp_ns: int, row: Float64) -> None:
        if not edge.track.add(stamp_ns, row):
            return
        if edge.first is None:
            edge.first = row
        edge.moves = edge.moves or bool(difference(edge.first, row))

    def _find_ways(self, target: str, source: str) -> tuple[_Way, ...]:
        """The shortest way from `source` to `target`, and through each other transform the shortest that passes it."""
        if target == source:
            return ((),)
        known = self._ways.get((target, source))
        if known is None or known[0] != self.version:
            from_source, from_target = self._came_by(source), self._came_by(target)
            if target not in from_source:
                raise self._no_way(target, source)
            way = _trace(from_source, target)
            if fault := self._fault_on(way):
                raise TransformError(f"transform to {source!r} from {target!r}: {fault}")
            ways = {way: None}  # in order, each once
            for edge in self._edges.values():
                for near, far in ((edge.parent, edge.child), (edge.child, edge.parent)):
                    if near in from_source and edge not in way:
                        other = (*_trace(from_source, near), edge, *reversed(_trace(from_target, far)))
                        if _is_simple(other, source) and not self._fault_on(other):
                            ways[other] = None
            known = self._ways[target, source] = (self.version, tuple(ways))
        return known[1]

    def _came_by(self, start: str) -> dict[str, _Edge | None]:
        """Frame -> the last transform of the shortest way to it from `start`, of all that there is a way to."""
        came_by: dict[str, _Edge | None] = {start: None}
        frames = deque([start])
        while frames:
            frame = frames.popleft()
            for edge in self._at_frame.get(frame, ()):
                if (beyond := edge.other(frame)) not in came_by:
                    came_by[beyond] = edge
                    frames.append(beyond)
        return came_by

    def _fault_on(self, way: _Way) -> str:
        children = {edge.child for edge in way}
        return next((fault for (_, child), (fault, _) in self._faults.items() if child in children), "")

    def _no_way(self, target: str, source: str) -> TransformError:
        """Why two frames are not connected."""
        roots = [self._climb(frame) for frame in (target, source)]
        known = self.frames()
        for frame in (target, source):
            if frame not in known:
                return TransformError(
                    f"no transform between {target!r} and {source!r}: {frame!r} is in no transform. "
                    f"Frames known: {_listed(known)}"
                )
        return TransformError(
            f"no transform between {target!r} and {source!r}: they are not connected; {target!r} hangs on {roots[0]!r}, "
            f"{source!r} on {roots[1]!r}. Frames known: {_listed(known)}"
        )

    def _climb(self, frame: str) -> str:
        """The last of a frame's ancestors; TransformError where they loop, or one is unsound."""
        chain = [frame]
        while True:
            parents = [edge.parent for edge in self._at_frame.get(chain[-1], ()) if edge.child == chain[-1]]
            if not parents:
                for (_, child), (fault, _) in self._faults.items():
                    if child == chain[-1]:
                        raise TransformError(fault)
                return chain[-1]
            if parents[0] in chain:
                loop = [*chain[chain.index(parents[0]) :], parents[0]]
                raise TransformError(f"the transforms loop: {' -> '.join(map(repr, reversed(loop)))}")
            chain.append(parents[0])

    def _product(self, way: _Way, source: str, time_ns: int, hold_constant: bool) -> Float64:
        """target_T_source along a way."""
        matrix, frame = None, source
        for edge in way:
            step = self._at(edge, time_ns, hold_constant)
            step = step if edge.child == frame else inverse_rigid(step)
            matrix, frame = step if matrix is None else step @ matrix, edge.other(frame)
        return np.eye(4) if matrix is None else matrix

    def _at(self, edge: _Edge, time_ns: int, hold_constant: bool) -> Float64:
        rows = edge.track.rows
        if not rows:
            assert edge.matrix is not None, "an edge has a static row or rows over time"
            return edge.matrix
        if hold_constant and not edge.moves:
            return pose_matrix(rows[-1])
        pose = edge.track.at(time_ns, self._gap_ns)
        if pose is None:
            raise TransformError(f"transform {edge} {edge.track.why_not(time_ns, self._gap_ns)}")
        return pose


def _trace(came_by: Mapping[str, _Edge | None], frame: str) -> _Way:
    """The way to a frame from where `came_by` starts."""
    way: list[_Edge] = []
    while (last := came_by[frame]) is not None:
        way.append(last)
        frame = last.other(frame)
    return tuple(reversed(way))


def _is_simple(way: _Way, frame: str) -> bool:
    """Whether a way from a frame passes none twice."""
    passed = [frame]
    for edge in way:
        passed.append(edge.other(passed[-1]))
    return len(set(passed)) == len(passed)


def _name(frame: str) -> str:
    return frame.removeprefix("/")


def _fault(parent: str, child: str, row: Float64) -> str | None:
    where = f"transform {parent!r} -> {child!r}"
    if not parent or not child:
        return f"{where}: expected two frame ids, got an empty one"
    if parent == child:
        return f"{where}: expected two frames, got a transform of a frame to itself"
    if np.isfinite(row).all() and not row[3:].any():
        return f"{where}: expected a quaternion (w, x, y, z) of norm 1, got the zero quaternion"
    fault = pose_fault(row)
    return fault and f"{where}: {fault}"


def _told(way: _Way) -> str:
    return ", ".join(str(edge) for edge in way[: -_NAMED - 1 : -1]) + (" ..." if len(way) > _NAMED else "")


def _listed(frames: tuple[str, ...]) -> str:
    more = f" and {len(frames) - _NAMED} more" if len(frames) > _NAMED else ""
    return (", ".join(frames[:_NAMED]) or "none") + more
