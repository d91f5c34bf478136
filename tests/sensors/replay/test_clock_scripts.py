"""Whatever a log does to its clocks: one output per tick, state forgotten once per jump, nothing fused beyond its tolerance."""

from __future__ import annotations

import dataclasses
import itertools
import random
import warnings
from collections.abc import Callable, Sequence

import pytest

from sensors.frames import LidarSweep, RadarSweep
from sensors.logs.log import LogWarning
from sensors.logs.messages import CameraInfo, FrameTransforms, LogMessage, PointCloud
from sensors.replay.tick import SensorState, Tick
from sensors.replay.ticks import ticks
from tests.sensors.replay.drive import (
    CHANNELS,
    CONFIG,
    LATENCY_NS,
    MAPPING,
    MS,
    START_NS,
    MemoryLog,
    altered,
    calibrations,
    drive,
    later,
    since_s,
)

HOUR_NS = 3600 * 1_000_000_000
SECOND_NS = 1_000_000_000
TOLERANCE_US, TIMEOUT_US, STEP_US = 150_000, 100_000, 100_000
N_CALIBRATIONS = len(calibrations())
Messages = list[LogMessage]


def moved(messages: Messages, log_ns: int, stamp_ns: int, segment: int = 1) -> Messages:
    """The drive again at other times, without what was latched; its points say that they are of a later segment."""
    return [mark(later(message, log_ns, stamp_ns), segment) for message in messages[N_CALIBRATIONS:]]


def mark(message: LogMessage, segment: int) -> LogMessage:
    payload = message.payload
    if not isinstance(payload, PointCloud):
        return message
    points = payload.points.copy()
    points["y"][0] = segment
    return dataclasses.replace(message, payload=dataclasses.replace(payload, points=points))


def from_second(second: float, log_ns: int, stamp_ns: int) -> Messages:
    """From a second of the drive on, the times of the log and of the stamps are moved."""
    whole = drive(4.0)
    return [m for m in whole if since_s(m) < second] + [
        mark(later(m, log_ns, stamp_ns), 1) for m in whole if since_s(m) >= second
    ]


def one_sensor(channel: str, log_ns: int, stamp_ns: int, from_s: float = -1.0) -> Messages:
    return altered(drive(4.0), [channel], lambda m: later(m, log_ns, stamp_ns) if since_s(m) >= from_s else m)


def stamped(change: Callable[[int], int], channels: tuple[str, ...]) -> Messages:
    """The stamps of some sensors as a function of themselves, in nanoseconds since the drive's begin."""

    def changed(message: LogMessage) -> LogMessage:
        stamp_ns = message.payload.stamp_ns  # type: ignore[union-attr]
        return later(message, 0, change(stamp_ns - START_NS) + START_NS - stamp_ns)

    return altered(drive(4.0), channels, changed)


def without_stamps(channels: tuple[str, ...]) -> Messages:
    return altered(
        drive(4.0), channels, lambda m: later(m, 0, -m.payload.stamp_ns)  # type: ignore[union-attr]
    )  # fmt: skip


def gap(begin_s: float, seconds: float, drive_s: float) -> Messages:
    return [m for m in drive(drive_s) if since_s(m) < begin_s or since_s(m) >= begin_s + seconds]


def swapped_neighbours() -> Messages:
    whole = drive(4.0)
    head, rest = whole[:N_CALIBRATIONS], whole[N_CALIBRATIONS:]
    return head + [m for n in range(0, len(rest), 3) for m in reversed(rest[n : n + 3])]


def jittered() -> Messages:
    dice = random.Random(0)
    late = [later(m, dice.randrange(0, 60) * MS, 0) for m in drive(4.0)[N_CALIBRATIONS:]]
    return calibrations() + sorted(late, key=lambda m: m.log_time_ns)


def twice(change: Callable[[LogMessage], LogMessage] = lambda m: m) -> Messages:
    whole = drive(4.0)
    return whole[:N_CALIBRATIONS] + [copy for m in whole[N_CALIBRATIONS:] for copy in (m, change(m))]


EVERY = ("CAM_FRONT", "CAM_BACK", "LIDAR_TOP", "RADAR_FRONT")
# name -> messages, resets, ticks, what of the radar may be given: "all", "none", "some"
SCRIPTS: dict[str, tuple[Callable[[], Messages], int, int, str]] = {
    "as it was": (lambda: drive(4.0), 0, 41, "all"),
    "loop": (lambda: drive(2.0) + moved(drive(2.0), 0, 0), 1, 42, "some"),
    "loop, twice": (lambda: drive(2.0) + moved(drive(2.0), 0, 0) + moved(drive(2.0), 0, 0, 2), 2, 63, "some"),
    "an hour on": (lambda: from_second(2.0, HOUR_NS, HOUR_NS), 1, 41, "some"),
    "an hour back": (lambda: from_second(2.0, -HOUR_NS, -HOUR_NS), 1, 41, "some"),
    "an hour on, stamps stay": (lambda: from_second(2.0, HOUR_NS, 0), 1, 41, "some"),
    "an hour back, stamps stay": (lambda: from_second(2.0, -HOUR_NS, 0), 1, 41, "some"),
    "stamps an hour on": (lambda: from_second(2.0, 0, HOUR_NS), 1, 42, "some"),
    "stamps an hour back": (lambda: from_second(2.0, 0, -HOUR_NS), 1, 42, "some"),
    "one sensor's stamps an hour on": (lambda: one_sensor("RADAR_FRONT", 0, HOUR_NS), 0, 41, "none"),
    "one sensor's stamps an hour back": (lambda: one_sensor("RADAR_FRONT", 0, -HOUR_NS), 0, 41, "none"),
    "one stamp an hour on": (
        lambda: altered(
            drive(4.0), ["RADAR_FRONT"], lambda m: later(m, 0, HOUR_NS) if 1.98 < since_s(m) < 2.05 else m
        ), 0, 41, "all",
    ),
    "every message twice": (twice, 0, 41, "all"),
    "every stamp twice": (lambda: twice(lambda m: mark(m, 1)), 0, 41, "all"),
    "skew 50 ms ahead": (lambda: one_sensor("RADAR_FRONT", 0, 50 * MS), 0, 41, "all"),
    "skew 50 ms behind": (lambda: one_sensor("RADAR_FRONT", 0, -50 * MS), 0, 41, "all"),
    "skew 140 ms behind": (lambda: one_sensor("RADAR_FRONT", 0, -140 * MS), 0, 41, "all"),
    "skew 200 ms ahead": (lambda: one_sensor("RADAR_FRONT", 0, 200 * MS), 0, 41, "none"),
    "skew 300 ms behind": (lambda: one_sensor("RADAR_FRONT", 0, -300 * MS), 0, 41, "none"),
    "skew 1 s ahead": (lambda: one_sensor("RADAR_FRONT", 0, SECOND_NS), 0, 41, "none"),
    "skew 1 s behind": (lambda: one_sensor("RADAR_FRONT", 0, -SECOND_NS), 0, 41, "none"),
    "skew 2 s ahead": (lambda: one_sensor("RADAR_FRONT", 0, 2 * SECOND_NS), 0, 41, "none"),
    "skew 2 s behind": (lambda: one_sensor("RADAR_FRONT", 0, -2 * SECOND_NS), 0, 41, "none"),
    "the reference skewed by 2 s in mid-drive": (lambda: one_sensor("LIDAR_TOP", 0, 2 * SECOND_NS, 2.0), 0, 41, "all"),
    "a clock that drifts": (lambda: stamped(lambda t: int(t * 0.97), ("RADAR_FRONT",)), 0, 41, "all"),
    "a clock that stands": (lambda: stamped(lambda t: min(t, SECOND_NS), ("RADAR_FRONT",)), 0, 41, "some"),
    "a gap of half a second": (lambda: gap(1.0, 0.5, 4.0), 0, 41, "some"),
    "a gap of four seconds": (lambda: gap(1.0, 4.0, 7.0), 0, 71, "some"),
    "a gap of ten seconds": (lambda: gap(1.0, 10.0, 14.0), 1, 41, "some"),
    "no stamps from one sensor": (lambda: without_stamps(("RADAR_FRONT",)), 0, 41, "all"),
    "no stamps at all": (lambda: without_stamps(EVERY), 0, 41, "all"),
    "messages out of order": (swapped_neighbours, 0, 41, "all"),
    "messages with jitter": (jittered, 0, 41, "all"),
    "recorded anew a day later": (lambda: [later(m, 24 * HOUR_NS, 0) for m in drive(4.0)], 0, 41, "all"),
}  # fmt: skip


def replay(messages: Messages) -> tuple[list[Tick], list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = list(ticks(MemoryLog(messages), MAPPING, CHANNELS, CONFIG))
    return out, [str(w.message) for w in caught if issubclass(w.category, LogWarning)]


def hold_tolerances(tick: Tick) -> None:
    """What is in a tick is within its tolerance by its stamp, and came before the tick was ready."""
    assert 0 <= tick.ready_us - tick.time_us <= TIMEOUT_US
    for status in tick.sensors.values():
        assert not status.given or (status.age_us is not None and abs(status.age_us) <= TOLERANCE_US), status
    for camera in tick.frame.cameras or ():
        assert camera is None or abs(camera.time_us - tick.time_us) <= TOLERANCE_US
    found: list[Sequence[LidarSweep | RadarSweep]] = [tick.frame.lidar or (), tick.frame.radar or ()]
    for sweeps in found:
        for k, sweep in enumerate(sweeps):
            assert abs(sweep.time_us - tick.time_us) <= TOLERANCE_US + (STEP_US * 2 if k else 0)
        times = [sweep.time_us for sweep in sweeps]
        assert times == sorted(times, reverse=True)
        assert len(set(times)) == len(times)


@pytest.mark.parametrize("name", SCRIPTS)
def test_ticks_go_on_and_state_is_reset_once(name: str) -> None:
    script, resets, count, radar = SCRIPTS[name]
    out, told = replay(script())
    assert [tick.index for tick in out] == list(range(len(out)))
    assert sum(tick.reset for tick in out) == resets
    assert sum("forgotten" in text for text in told) == resets
    assert len(out) == pytest.approx(count, abs=0 if resets == 0 else 2 * resets)
    for before, after in itertools.pairwise(out):
        assert after.reset or after.time_us - before.time_us == STEP_US
    for tick in out:
        hold_tolerances(tick)
    given = [tick.sensors["RADAR_FRONT"].given for tick in out]
    assert {"all": all(given), "none": not any(given), "some": (any(given) and not all(given)) or resets > 0}[radar], (
        given
    )
    for tick in out[2:]:  # the other sensors go their way
        if resets == 0 and "gap" not in name and "reference" not in name:
            assert all(tick.sensors[channel].given for channel in ("CAM_FRONT", "CAM_BACK", "LIDAR_TOP"))


@pytest.mark.parametrize(
    "name", [name for name, script in SCRIPTS.items() if script[1] and not name.startswith("a gap")]
)
def test_nothing_from_before_a_jump_is_fused_after_it(name: str) -> None:
    out, _ = replay(SCRIPTS[name][0]())
    segment = 0
    for tick in out:
        segment += tick.reset
        both: list[LidarSweep | RadarSweep] = [*(tick.frame.lidar or ()), *(tick.frame.radar or ())]
        for sweep in both:
            assert int(sweep.points[0, 1]) == segment


@pytest.mark.parametrize("name", [name for name, script in SCRIPTS.items() if script[1]])
def test_after_a_jump_every_sensor_is_back_within_three_ticks(name: str) -> None:
    out, _ = replay(SCRIPTS[name][0]())
    for at in [i for i, tick in enumerate(out) if tick.reset]:
        assert all(status.given for status in out[at + 3].sensors.values())
        assert out[at + 3].ego_pose_known


def test_a_later_message_of_the_same_stamp_replaces_the_first() -> None:
    out, _ = replay(SCRIPTS["every stamp twice"][0]())
    for tick in out:
        assert tick.frame.lidar is not None
        assert {int(sweep.points[0, 1]) for sweep in tick.frame.lidar} == {1}


def test_a_skew_is_told_by_name() -> None:
    ahead, _ = replay(SCRIPTS["skew 50 ms ahead"][0]())
    assert ahead[10].sensors["RADAR_FRONT"].state is SensorState.FLAGGED
    assert "0.045 s ahead" in ahead[10].sensors["RADAR_FRONT"].detail
    far, _ = replay(SCRIPTS["skew 2 s ahead"][0]())
    assert far[10].sensors["RADAR_FRONT"].state is SensorState.STALE
    assert "1.995 s ahead" in far[10].sensors["RADAR_FRONT"].detail
    behind, _ = replay(SCRIPTS["skew 2 s behind"][0]())
    assert behind[30].sensors["RADAR_FRONT"].state is SensorState.LATE
    hour, _ = replay(SCRIPTS["one sensor's stamps an hour back"][0]())
    assert "3600.005 s after its stamps" in hour[30].sensors["RADAR_FRONT"].detail


def test_a_missing_stamp_is_flagged_and_the_log_time_used() -> None:
    out, _ = replay(SCRIPTS["no stamps from one sensor"][0]())
    status = out[10].sensors["RADAR_FRONT"]
    assert status.state is SensorState.FLAGGED
    assert "no stamp" in status.detail
    assert status.age_us == -14_000 - LATENCY_NS // 1000


def test_static_transforms_and_calibrations_outlive_a_jump() -> None:
    messages = SCRIPTS["an hour on"][0]()
    latched = [m for m in messages if isinstance(m.payload, CameraInfo | FrameTransforms) and m.topic != "/tf"]
    assert len(latched) == N_CALIBRATIONS  # told once, before the jump
    out, _ = replay(messages)
    assert all(status.given for status in out[-1].sensors.values())


def test_a_warning_names_where_and_how_far() -> None:
    _, told = replay(SCRIPTS["an hour on"][0]())
    assert len(told) == 1
    assert "forward by 3600." in told[0]
    assert "\n" not in told[0]


def test_stamps_on_another_clock_are_followed_and_told_once() -> None:
    out, told = replay(SCRIPTS["recorded anew a day later"][0]())
    assert len(told) == 1
    assert "86400.005 s before the log's time" in told[0]
    assert out[0].time_us == START_NS // 1000
