"""Wrong calibration on the way: transforms that say a sensor sits where it does not.

Which frame a sensor measures in is learned from the mapping or from its messages. A mount that was sent before, as static ones
are, is sent again with the fault when the fault begins (or the frame is learned), and as it was when the fault ends.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sensors.calibration import pose_fault, transforms
from sensors.logs.mapping.mapping import CameraTopics, LogMapping
from sensors.logs.messages import FrameTransform, FrameTransforms, LogMessage, Other, SceneBoxes
from sensors.replay.faults.kinds import Fault, Shift

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class _Sent:
    """A transform of the log as it came."""

    topic: str
    static: bool
    transform: FrameTransform


class ShiftedMounts:
    """All shifts of a replay; called with every message, in order. Sensors that share a frame shift together."""

    def __init__(
        self,
        shifts: Sequence[tuple[Fault, Collection[str]]],
        mapping: LogMapping,
        touched: Counter[Fault],
    ) -> None:
        self._shifts = shifts
        self._touched = touched
        sensors = mapping.by_channel.items()
        self._frame_of = {channel: _plain(where.frame) for channel, where in sensors if where.frame}
        # A camera's axes are those that its calibration names; of the pictures some logs say another frame.
        self._teachers = {
            where.info if isinstance(where, CameraTopics) else where.data: channel for channel, where in sensors
        }
        self._sent: dict[str, _Sent] = {}  # child -> its last transform
        self._now: dict[str, tuple[Fault, ...]] = {}  # frame -> what shifts it at the moment

    def __call__(self, message: LogMessage, elapsed_ns: int) -> list[LogMessage]:
        if not self._shifts:
            return [message]
        self._learn(message)
        before, self._now = self._now, self._shifted(elapsed_ns)
        out = [
            replace(message, topic=sent.topic, payload=FrameTransforms((self._altered(sent.transform),), sent.static))
            for frame in sorted(before.keys() | self._now.keys())
            if before.get(frame) != self._now.get(frame) and (sent := self._sent.get(frame)) is not None
        ]
        payload = message.payload
        if isinstance(payload, FrameTransforms):
            self._sent |= {_plain(t.child): _Sent(message.topic, payload.static, t) for t in payload.transforms}
            moved = tuple(map(self._altered, payload.transforms))
            if any(new is not old for new, old in zip(moved, payload.transforms, strict=True)):
                message = replace(message, payload=replace(payload, transforms=moved))
        return [*out, message]

    def _learn(self, message: LogMessage) -> None:
        channel = self._teachers.get(message.topic)
        if channel is None or channel in self._frame_of:
            return
        frame = getattr(message.payload, "frame_id", "")
        if frame and not isinstance(message.payload, Other | SceneBoxes):
            self._frame_of[channel] = _plain(frame)

    def _shifted(self, elapsed_ns: int) -> dict[str, tuple[Fault, ...]]:
        """Frame -> the faults that hold, in their order; a frame of several sensors has each fault once."""
        now: dict[str, tuple[Fault, ...]] = {}
        for fault, channels in self._shifts:
            if fault.holds_at(elapsed_ns):
                for frame in {self._frame_of[channel] for channel in channels if channel in self._frame_of}:
                    now[frame] = (*now.get(frame, ()), fault)
        return now

    def _altered(self, transform: FrameTransform) -> FrameTransform:
        """The transform with the errors of its child frame; one that is no pose stays for the replay to refuse."""
        frame = _plain(transform.child)
        pose = np.array([*transform.translation_m, *transform.rotation_wxyz], float)
        if frame not in self._now or pose_fault(pose):
            return transform
        for fault in self._now[frame]:
            turn, shift_m = _error(fault, frame)
            pose[:3] += transforms(pose)[:3, :3] @ shift_m
            pose[3:] = _product(pose[3:], turn)
            self._touched[fault] += 1
        x, y, z, qw, qx, qy, qz = pose.tolist()
        return replace(transform, translation_m=(x, y, z), rotation_wxyz=(qw, qx, qy, qz))


def _error(fault: Fault, frame: str) -> tuple[Float64, Float64]:
    """A turn [4] (quaternion w x y z) about any axis and a shift [3] in any direction, the same for the whole replay."""
    assert isinstance(fault.action, Shift)
    text = f"0/{fault.action}/{frame}"
    entropy = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
    axis, direction = (v / np.linalg.norm(v) for v in random.standard_normal((2, 3)))
    half = np.deg2rad(fault.action.angle_deg) / 2
    return np.array([np.cos(half), *(np.sin(half) * axis)]), fault.action.distance_m * direction


def _product(a: Float64, b: Float64) -> Float64:
    """The quaternion that turns by b, then by a."""
    w, u = a[0] * b[0] - a[1:] @ b[1:], a[0] * b[1:] + b[0] * a[1:] + np.cross(a[1:], b[1:])
    return np.array([w, *u])


def _plain(frame: str) -> str:
    """Some ROS tools write a slash before a frame's name."""
    return frame.removeprefix("/")
