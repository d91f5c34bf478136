"""What a replay came to: ticks, sensors' states, messages, latencies; as JSON and as tables for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from robustbev.results.result import ResultWriter, TickResult
from sensors.logs.log import Damage
from sensors.logs.messages import LogMessage, Malformed
from sensors.replay.tick import SensorState
from sensors.replay.ticks import MissingPoses
from training.files.table import Cell, Column, Table
from training.replay.play import STAGES, Latencies
from training.replay.truth import ReplayScore


@dataclass
class MessageCount:
    """Counts messages on their way."""

    by_topic: Counter[str] = field(default_factory=Counter)
    malformed: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)  # topic -> what was wrong with its first malformed message

    def __call__(self, messages: Iterator[LogMessage]) -> Iterator[LogMessage]:
        for message in messages:
            self.by_topic[message.topic] += 1
            if isinstance(message.payload, Malformed):
                self.malformed[message.topic] += 1
                self.reasons.setdefault(message.topic, message.payload.reason)
            yield message


@dataclass
class StateCount(ResultWriter):
    """A `ResultWriter` that counts."""

    ticks: int = 0
    not_perceived: int = 0
    resets: int = 0
    without_ego_pose: int = 0
    boxes: int = 0
    first_us: int | None = None
    last_us: int | None = None
    most_waited_us: int = 0
    states: dict[str, Counter[SensorState]] = field(default_factory=dict)  # by channel
    details: dict[str, str] = field(default_factory=dict)  # channel -> why it was first not given
    notes: dict[str, str] = field(
        default_factory=dict
    )  # channel -> what was done with it first, where nothing was wrong
    used: Counter[str] = field(default_factory=Counter)  # channel -> measurements that reached the model
    _newest_us: dict[str, int] = field(default_factory=dict)  # channel -> of the newest measurement counted

    def write(self, result: TickResult) -> None:
        tick = result.tick
        self.ticks += 1
        self.not_perceived += not result.perceived
        self.resets += tick.reset
        self.without_ego_pose += not tick.ego_pose_known
        self.boxes += len(result.boxes)
        self.first_us = tick.time_us if self.first_us is None else self.first_us
        self.last_us = tick.time_us
        self.most_waited_us = max(self.most_waited_us, tick.ready_us - tick.time_us)
        for channel, status in tick.sensors.items():
            self.states.setdefault(channel, Counter())[status.state] += 1
            if status.detail and status.state is SensorState.OK:
                self.notes.setdefault(channel, status.detail)
            elif status.detail:
                self.details.setdefault(channel, f"{status.state}: {status.detail}")

        self._count_used(result)

    def _count_used(self, result: TickResult) -> None:
        """A measurement that several ticks use counts once; one of a sensor that turned out to be absent does not."""
        frame = result.tick.frame
        if result.tick.reset:
            self._newest_us.clear()
        times: dict[str, set[int]] = {}
        for reading in chain(*frame.by_kind.values()):
            times.setdefault(reading.channel, set()).add(reading.time_us)
        for channel, times_us in times.items():
            if not result.tick.sensors[channel].given:
                continue
            newest_us = self._newest_us.get(channel)
            self.used[channel] += sum(newest_us is None or time_us > newest_us for time_us in times_us)
            self._newest_us[channel] = max(times_us if newest_us is None else {*times_us, newest_us})


@dataclass(frozen=True)
class ReplaySummary:
    """One replay of one log under one script of faults."""

    script: str
    log: Path
    counted: StateCount
    messages: MessageCount
    damage: Damage
    latencies: Latencies
    seconds: float  # wall time of all of it
    score: ReplayScore | None = None  # against the log's annotated boxes, where it has any
    topic_of: Mapping[str, str] = field(default_factory=dict)  # channel -> its pictures or points
    outputs: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()  # warnings that belong to the whole
    poses: MissingPoses = field(default_factory=MissingPoses)

    def to_json(self) -> dict[str, Any]:
        """For a file; times in milliseconds."""
        counted = self.counted
        return {
            "script": self.script,
            "log": str(self.log),
            "ticks": counted.ticks,
            "first_us": counted.first_us,
            "last_us": counted.last_us,
            "ticks_without_perception": counted.not_perceived,
            "ticks_without_ego_pose": counted.without_ego_pose,
            "why_without_ego_pose": self.poses.why,
            "poses_left_out": dict(self.poses.left_out),
            "resets": counted.resets,
            "boxes": counted.boxes,
            "most_waited_ms": counted.most_waited_us / 1e3,
            "sensors": {
                channel: {str(state): count for state, count in sorted(states.items())}
                for channel, states in counted.states.items()
            },
            "first_trouble": dict(counted.details),
            "first_note": dict(counted.notes),
            "messages": dict(sorted(self.messages.by_topic.items())),
            "unused": dict(sorted(self.unused().items())),
            "malformed": dict(sorted(self.messages.malformed.items())),
            "malformed_reasons": dict(sorted(self.messages.reasons.items())),
            "truncated_at_byte": self.damage.truncated_at_byte,
            "bad_chunks": self.damage.bad_chunks,
            "bad_records": self.damage.bad_records,
            "bad_files": self.damage.bad_files,
            "latency_ms": {
                stage: dict(zip(("p50", "p95", "p99"), row, strict=True))
                for stage, row in self.latencies.percentiles_ms().items()
            },
            "seconds": self.seconds,
            "ticks_per_second": counted.ticks / self.seconds if self.seconds else None,
            "mean_ap": None if self.score is None else self.score.mean_ap,
            "ticks_with_truth": None if self.score is None else self.score.ticks,
            "outputs": [str(path) for path in self.outputs],
            "notes": list(self.notes),
        }

    def trouble(self) -> list[str]:
        """A line for each kind of damage in the log, for ego poses that are missing and for poses that cannot be."""
        damage, lines = self.damage, []
        if self.poses.ticks:
            lines.append(
                f"{self.poses.ticks} of {self.counted.ticks} ticks have no ego pose, so that no motion is compensated at them: "
                f"{self.poses.why}. {MissingPoses.ADVICE}"
            )
        for edge, count in self.poses.left_out.items():
            lines.append(f"{count} poses of the transform {edge} cannot be and were left out")
        if damage.truncated_at_byte is not None:
            lines.append(f"the log is cut or damaged at byte {damage.truncated_at_byte}: what is whole was replayed")
        if damage.bad_chunks:
            lines.append(f"{damage.bad_chunks} damaged chunks were left out")
        if damage.bad_files:
            lines.append(f"{damage.bad_files} files of the log could not be opened and were left out")
        if damage.bad_records:
            lines.append(f"{damage.bad_records} damaged records were left out")
        return lines

    def tables(self) -> list[Table]:
        """Sensors by state, messages by topic where some are malformed, latencies by stage."""
        return [
            self._sensors(),
            *([self._malformed()] if self.messages.malformed else []),
            self._latencies(),
        ]

    def unused(self) -> dict[str, int]:
        """Topic -> messages of it that no tick used: too late, malformed, or more than the ticks take."""
        counts = self.messages.by_topic
        return {
            topic: counts[topic] - self.counted.used[channel]
            for channel, topic in self.topic_of.items()
            if counts[topic]
        }

    def headline(self) -> str:
        """One line."""
        counted = self.counted
        rate = f", {counted.ticks / self.seconds:.1f} ticks/s" if self.seconds else ""
        blind = f", {counted.not_perceived} without any perception" if counted.not_perceived else ""
        resets = f", {counted.resets} resets after jumps of the clock" if counted.resets else ""
        seen = f", mAP {self.score.mean_ap:.3f}" if self.score is not None and self.score.ticks else ""
        return f"{self.script}: {counted.ticks} {'tick' if counted.ticks == 1 else 'ticks'}{blind}{resets}{seen}{rate}"

    def _sensors(self) -> Table:
        counted = self.counted
        states = [s for s in SensorState if any(counts[s] for counts in counted.states.values())]
        columns = [Column("sensor"), *(Column(name, "d") for name in (*map(str, states), "messages", "used"))]
        columns.append(Column("first trouble, or what was done", wrap=True))
        rows: list[list[Cell]] = []
        for channel, counts in counted.states.items():
            messages = self.messages.by_topic[self.topic_of.get(channel, "")]
            row: list[Cell] = [counts[s] or "" for s in states]
            row += [messages, counted.used[channel]] if messages else ["", ""]
            rows.append([channel, *row, counted.details.get(channel) or counted.notes.get(channel, "")])
        return Table(f"{self.script}: ticks by state of each sensor", columns, rows)

    def _malformed(self) -> Table:
        columns = [Column("topic"), Column("malformed", "d"), Column("of", "d"), Column("the first", wrap=True)]
        rows: list[list[Cell]] = [
            [topic, count, self.messages.by_topic[topic], self.messages.reasons[topic]]
            for topic, count in sorted(self.messages.malformed.items())
        ]
        return Table("malformed messages", columns, rows)

    def _latencies(self) -> Table:
        percentiles = self.latencies.percentiles_ms()
        columns = [Column("stage"), *(Column(name, ".1f") for name in ("p50", "p95", "p99"))]
        rows: list[list[Cell]] = [[stage, *percentiles[stage]] for stage in (*STAGES, "total") if stage in percentiles]
        return Table("latency, ms", columns, rows)
