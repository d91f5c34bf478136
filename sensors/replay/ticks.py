"""From the messages of a log to one tick after another of a virtual clock.

- Ticks come at t0 + i / `tick_hz`, through gaps too, up to the last message: t0 is the stamp of the reference LiDAR's first
  measurement, else of the first of any sensor, in the log as it is; what `alter_messages` does to it moves no tick.
- At a tick every sensor gives the measurement that came so far whose stamp is nearest, if it is within the tolerance.
- A tick is ready when nothing nearer is to be expected of any sensor that was heard of lately, and the ego pose is in; after the
  time-out at the latest. Nothing in it depends on what comes later, nor on how fast the replay runs.
- When the clock jumps, everything that depends on time is forgotten once. The ticks go on from the first message after the jump.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from sensors.camera.images import DecodeSize
from sensors.logs.log import Log, LogWarning
from sensors.logs.mapping.file import check_mapping
from sensors.logs.mapping.mapping import LogMapping
from sensors.replay.channels import Channels, Source, sources, wanted_topics
from sensors.replay.clock import SECOND_NS, Measurement, Window, first_measurement, tick_rate_hz, window
from sensors.replay.config import ReplayConfig
from sensors.replay.playback import AlterMessages, Playback
from sensors.replay.rig import Rig
from sensors.replay.tick import Tick
from sensors.replay.transforms import TransformError


@dataclass
class MissingPoses:
    """Ticks at which the global frame that the mapping names had no transform to the ego's."""

    ADVICE: ClassVar[str] = (
        "Name in the mapping a global_frame that the log moves the ego in, best by one transform, or null for none; "
        "ego_pose_gap_s=SECONDS bridges poses that come seldom"
    )
    ticks: int = 0
    why: str = ""  # at the first of them
    left_out: dict[str, int] = field(default_factory=dict)  # transform -> its poses that cannot be, of all frames


def ticks(
    log: Log,
    mapping: LogMapping,
    channels: Channels,
    config: ReplayConfig,
    *,
    start_s: float | None = None,
    duration_s: float | None = None,
    loop: int = 1,
    alter_messages: AlterMessages | None = None,
    decode: DecodeSize | None = None,
    poses: MissingPoses | None = None,
) -> Iterator[Tick]:
    """One tick after another of `loop` passes through the log, or through `duration_s` seconds of it from `start_s` on.

    `alter_messages` takes and gives messages in the order of their times; it is called anew for each pass. Where it takes
    some out, time goes on as in the log. `decode` lets JPEGs be decoded at a reduced scale. `poses` takes why ticks have no
    ego pose where the mapping names a global frame, and in the end how many poses could not be used; the first such tick and
    the first such pose are told as LogWarnings too.

    Raises:
        LogError: the log is empty, the mapping does not fit it, or a start or duration is outside of it.
    """
    if loop < 1:
        raise ValueError(f"expected at least 1 pass through the log, got loop {loop}")
    part = window(log, start_s, duration_s)
    check_mapping(mapping, log)
    source_of = sources(channels, mapping, config)
    topics = wanted_topics(log, source_of)
    begin_ns, shift_ns = _begin(log, source_of, channels, part, config)
    rig, poses = Rig(mapping, gap_ns=round(config.ego_pose_gap_s * SECOND_NS)), poses or MissingPoses()
    poses.left_out = rig.tree.left_out
    replay = Playback(
        source_of,
        rig,
        channels,
        config,
        hz=tick_rate_hz(log, source_of, config, part),
        log_hz=_rates_hz(log, source_of),
        decode=decode,
    )
    for lap in range(loop):
        replay.begin(begin_ns, shift_ns, reset=lap > 0)
        for tick in replay.run(part.messages(log, topics), alter_messages):
            if not tick.ego_pose_known and mapping.global_frame is not None:
                _note_missing_pose(poses, tick, rig, mapping.global_frame, mapping.ego_frame, log)
            yield tick


def _note_missing_pose(poses: MissingPoses, tick: Tick, rig: Rig, global_frame: str, ego_frame: str, log: Log) -> None:
    poses.ticks += 1
    if poses.ticks > 1:
        return
    try:
        rig.tree.lookup(global_frame, ego_frame, tick.time_us * 1000)
        poses.why = f"the transform between {global_frame!r} and {ego_frame!r} came too late"
    except TransformError as error:
        poses.why = str(error)
    warnings.warn(
        f"{log.path}: no ego pose at tick {tick.index}, so that no motion is compensated: {poses.why}. {MissingPoses.ADVICE}",
        LogWarning,
        stacklevel=3,
    )


def _begin(
    log: Log, found: Mapping[str, Source], channels: Channels, part: Window, config: ReplayConfig
) -> tuple[int, int]:
    """When the first tick is, and what lies between the log's clock and that of the stamps."""
    first = first_measurement(log, found, channels, part)
    if first is None:
        span = log.span_ns()
        assert span is not None, "a log without messages was refused"
        return part.start_ns or span[0], 0
    message, source = first
    assert isinstance(message.payload, Measurement)
    stamp_ns = message.payload.stamp_ns + source.offset_ns
    off_ns = message.log_time_ns - stamp_ns
    if abs(off_ns) <= config.jump_s * SECOND_NS:
        return stamp_ns, 0
    warnings.warn(
        f"{log.path}: {source.topic}: its first stamp is {off_ns / SECOND_NS:.3f} s before the log's time; "
        "the replay follows the stamps",
        LogWarning,
        stacklevel=3,
    )
    return stamp_ns, off_ns


def _rates_hz(log: Log, found: Mapping[str, Source]) -> dict[str, float]:
    """Channel -> messages a second in the whole log, where its index counts them."""
    span = log.span_ns()
    counts = {topic.name: topic.count for topic in log.topics()}
    seconds = (span[1] - span[0]) / SECOND_NS if span else 0.0
    known = {channel: counts.get(source.topic) for channel, source in found.items()}
    return {channel: (count - 1) / seconds for channel, count in known.items() if count and seconds > 0}
