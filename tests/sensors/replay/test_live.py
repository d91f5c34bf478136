"""Live, messages come when they come: one report a tick whatever they do, and the ticks that a replay of the same drive gives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from robustbev.results.content import Level
from robustbev.results.live_loop import Event, Inbox, LiveLoop, LiveReport
from robustbev.results.result import TickResult
from robustbev.results.ros2.topics import Kind, Ros2Decoder, listened_topics, most_waiting
from sensors.logs.log import LogError, LogWarning
from sensors.logs.mapping.mapping import CameraTopics, LidarTopics, LogMapping
from sensors.logs.messages import EncodedImage, LogMessage, Malformed
from sensors.logs.ros2.encode import ros2_bytes
from sensors.replay.channels import Channels
from sensors.replay.clock import drives_clock
from sensors.replay.live import LiveConfig, LivePlayback
from sensors.replay.tick import SensorState, Tick
from sensors.replay.ticks import ticks
from tests.robustbev.results.replay_results import result
from tests.sensors.camera.test_picture_files import ANIMATED
from tests.sensors.replay.drive import (
    CHANNELS,
    MAPPING,
    MOUNTS,
    MS,
    START_NS,
    TOPIC,
    MemoryLog,
    altered,
    calibrations,
    drive,
    later,
    measurement,
    since_s,
)

CONFIG = LiveConfig(tick_hz=10, lidar_sweeps=3, radar_sweeps=2)
SECOND_NS = 1000 * MS


def playback(mapping: LogMapping = MAPPING, channels: Channels = CHANNELS, **changes: Any) -> LivePlayback:
    return LivePlayback(mapping, channels, CONFIG.model_copy(update=changes))


def drive_through(
    live: LivePlayback, messages: Sequence[LogMessage], *, timer_ms: int = 10, until_ns: int | None = None
) -> list[Tick]:
    """The messages at their log times, with a timer that goes on between them."""
    got: list[Tick] = []
    now_ns: int | None = None
    for message in messages:
        if drives_clock(message):
            while now_ns is not None and now_ns + timer_ms * MS < message.log_time_ns:
                now_ns += timer_ms * MS
                got += live.time_goes_on(now_ns)
            now_ns = message.log_time_ns
        got += live.receive(message)
    while now_ns is not None and until_ns is not None and now_ns < until_ns:
        now_ns += timer_ms * MS
        got += live.time_goes_on(now_ns)
    return got


def same(a: Any, b: Any) -> bool:
    """Equal, arrays to the bit."""
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b, equal_nan=True)
    if is_dataclass(a) and not isinstance(a, type):
        return all(same(getattr(a, part.name), getattr(b, part.name)) for part in fields(a))
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def silenced(messages: Sequence[LogMessage], channel: str, begin_s: float, end_s: float) -> list[LogMessage]:
    return altered(messages, [channel], lambda message: None if begin_s <= since_s(message) < end_s else message)


# --- the same ticks as a replay ---------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    losses=st.lists(st.tuples(st.sampled_from(sorted(MOUNTS)), st.floats(0.2, 1.5), st.floats(0.1, 1.2)), max_size=3),
    delays_ms=st.lists(st.integers(0, 250), min_size=1, max_size=9),
    timer_ms=st.integers(3, 60),
)
def test_ticks_are_those_of_a_replay_whatever_is_lost_or_late(
    losses: list[tuple[str, float, float]], delays_ms: list[int], timer_ms: int
) -> None:
    messages = drive(1.6)
    for channel, begin_s, length_s in losses:
        messages = silenced(messages, channel, begin_s, begin_s + length_s)
    delays = iter(delays_ms * len(messages))
    late = altered(messages, ["CAM_BACK", "RADAR_FRONT"], lambda message: later(message, next(delays) * MS, 0))
    expected = list(ticks(MemoryLog(late), MAPPING, CHANNELS, CONFIG))
    got = drive_through(playback(), late, timer_ms=timer_ms, until_ns=late[-1].log_time_ns + SECOND_NS)
    last_s = (late[-1].log_time_ns - START_NS) / SECOND_NS - 0.4  # behind it a replay knows that nothing more comes
    inner = [tick for tick in expected if tick.time_us < START_NS // 1000 + last_s * 1e6]
    assert len(got) >= len(inner) >= 10
    for a, b in zip(inner, got, strict=False):
        assert same(a, b), f"tick {a.index}"


def test_a_tick_is_given_as_soon_as_the_last_sensor_is_in() -> None:
    """The radar comes last, 19 ms after the tick. No timer is needed for it. At first nobody knows how often sensors send."""
    live, given_at = playback(), {}
    for message in drive(1.0):
        for tick in live.receive(message):
            given_at[tick.index] = message.log_time_ns
    late_ms = [(at_ns - START_NS) // MS - index * 100 for index, at_ns in given_at.items()]
    assert late_ms[2:] == [19] * 9


# --- when nothing or the wrong thing comes ----------------------------------------------------------------------


def test_without_any_message_ticks_come_all_the_same() -> None:
    live = playback()
    got = [tick for n in range(300) for tick in live.time_goes_on(START_NS + n * 10 * MS)]
    assert [tick.index for tick in got] == list(range(len(got)))
    assert len(got) == 30  # up to 2.9 s: nothing was heard of anyone for so long that nobody is waited for
    assert {status.state for tick in got for status in tick.sensors.values()} == {SensorState.MISSING}
    frame = got[-1].frame
    assert [frame.cameras, frame.lidar, frame.radar] == [None, None, None]


def test_when_all_sensors_die_ticks_go_on_and_they_may_come_back() -> None:
    messages = [m for m in drive(6.0) if not drives_clock(m) or not 1.0 <= since_s(m) < 4.0]
    got = drive_through(playback(), messages)
    assert [tick.index for tick in got] == list(range(len(got)))
    states = {tick.index: tick.sensors["LIDAR_TOP"].state for tick in got}
    assert (states[5], states[30], states[50]) == (SensorState.OK, SensorState.MISSING, SensorState.OK)
    assert not any(tick.reset for tick in got)


def test_without_the_reference_ticks_begin_at_the_first_sensor_after_a_second() -> None:
    messages = silenced(drive(2.5), "LIDAR_TOP", -1, 9)
    live, first_at = playback(), None
    for message in messages:
        if list(live.receive(message)) and first_at is None:
            first_at = since_s(message)
    assert first_at is not None
    assert 0.97 <= first_at < 1.1  # the first camera came at -0.025 s
    got = drive_through(playback(), messages)
    assert [tick.time_us for tick in got[:20]] == [START_NS // 1000 - 30_000 + n * 100_000 for n in range(20)]


def test_a_rig_without_lidar_begins_at_once() -> None:
    mapping = MAPPING.model_copy(update={"lidars": {}})
    got = drive_through(playback(mapping), silenced(drive(1.0), "LIDAR_TOP", -1, 9))
    assert got[0].time_us == START_NS // 1000 - 30_000  # the first camera's stamp


def test_garbage_on_a_topic_is_told_and_the_others_go_on() -> None:
    garbage = altered(
        drive(2.0),
        ["RADAR_FRONT"],
        lambda m: m if since_s(m) < 1 else replace(m, payload=Malformed("sensor_msgs/msg/PointCloud2", "got rubbish")),
    )
    got = drive_through(playback(), garbage)
    assert [tick.index for tick in got] == list(range(len(got)))
    status = got[15].sensors["RADAR_FRONT"]
    assert status.state is SensorState.MALFORMED
    assert "got rubbish" in status.detail
    assert got[15].sensors["LIDAR_TOP"].state is SensorState.OK


# --- clocks -----------------------------------------------------------------------------------------------------


def test_messages_before_a_simulated_clock_are_left_but_for_calibrations() -> None:
    live = playback()
    unknown = [replace(message, log_time_ns=0) for message in [*calibrations(), drive(0.1)[5]]]
    assert not [tick for message in unknown for tick in live.receive(message)]
    assert not list(live.time_goes_on(0))
    got = drive_through(live, [m for m in drive(1.0) if drives_clock(m)])
    assert got[3].sensors["CAM_FRONT"].state is SensorState.OK


@pytest.mark.parametrize(("step_s", "how"), [(60.0, "forward by"), (-30.0, "back by")])
def test_a_jump_of_the_clock_resets_once_even_when_nothing_comes(step_s: float, how: str) -> None:
    live = playback()
    before = drive_through(live, drive(1.0))
    now_ns = START_NS + round((1.0 + step_s) * SECOND_NS)
    with pytest.warns(LogWarning, match=how):
        after = list(live.time_goes_on(now_ns))
    after += [tick for n in range(1, 100) for tick in live.time_goes_on(now_ns + n * 10 * MS)]
    indices = [tick.index for tick in [*before, *after]]
    assert indices == list(range(len(indices)))
    assert sum(tick.reset for tick in after) == 1


def test_a_bag_played_in_the_evening_keeps_its_stamps() -> None:
    """Without a simulated clock messages arrive hours after their stamps; ticks are told in the time of the stamps."""
    hours_ns = 9 * 3600 * SECOND_NS
    messages = [later(message, hours_ns, 0) for message in drive(1.0)]
    live = playback()
    with pytest.warns(LogWarning, match="ticks follow the stamps"):
        got = drive_through(live, messages)
    with pytest.warns(LogWarning, match="the replay follows the stamps"):
        expected = list(ticks(MemoryLog(messages), MAPPING, CHANNELS, CONFIG))
    assert got[5].time_us == START_NS // 1000 + 500_000
    assert len(got) >= 9
    assert all(same(a, b) for a, b in zip(got, expected, strict=False))
    # The latency of the first cloud, 5 ms, cannot be told from the clocks' difference.
    assert live.age_ns(got[0], START_NS + hours_ns + 7 * MS) == 2 * MS


# --- settings and topics ----------------------------------------------------------------------------------------


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValidationError, match="max_age_s: expected more than timeout_s"):
        LiveConfig(timeout_s=0.5, max_age_s=0.5)
    with pytest.raises(ValidationError):
        LiveConfig(queue_messages=0)
    with pytest.raises(LogError, match=r"at least one of the model's channels CAM_1, got CAM_FRONT"):
        playback(channels=Channels(("CAM_1",), (), ()))


def test_topics_are_those_of_the_models_channels() -> None:
    channels = Channels(("CAM_FRONT",), ("LIDAR_TOP",), ())
    topics = {topic.name: topic for topic in listened_topics(MAPPING, channels)}
    assert list(topics) == ["/cam_front/image_rect", "/cam_front/camera_info", "/lidar_top", "/tf", "/tf_static"]
    assert topics["/cam_front/image_rect"].type == "sensor_msgs/msg/Image"
    packed = listened_topics(MAPPING, channels, "compressed")[0]
    assert packed.type == "sensor_msgs/msg/CompressedImage"
    named = CameraTopics(image="/front/image/compressed", info="/front/camera_info")
    assert listened_topics(LogMapping(cameras={"CAM_FRONT": named}), channels)[0].type == packed.type
    assert topics["/tf_static"].kind is Kind.STATIC_TRANSFORMS
    most = most_waiting(list(topics.values()), 7)
    assert (most["/lidar_top"], most["/tf_static"]) == (7, 1000)


def test_a_topic_cannot_be_two_things() -> None:
    mapping = LogMapping(
        cameras={"CAM_FRONT": CameraTopics(image="/x", info="/info")}, lidars={"LIDAR_TOP": LidarTopics(points="/x")}
    )
    with pytest.raises(LogError, match="/x is to carry sensor_msgs/msg/Image for CAM_FRONT and sensor_msgs"):
        listened_topics(mapping, CHANNELS)


# --- the queue and the worker -----------------------------------------------------------------------------------


def test_the_oldest_message_of_the_full_topic_is_dropped_and_no_other() -> None:
    inbox = Inbox({"fast": 2, "slow": 2})
    inbox.put(Event(1, "slow", b"s"))
    for n in range(5):
        inbox.put(Event(2 + n, "fast", bytes([n])))
    assert [(event.topic, event.data) for event in inbox.take()] == [
        ("slow", b"s"),
        ("fast", bytes([3])),
        ("fast", bytes([4])),
    ]
    assert inbox.dropped() == {"fast": 3}
    inbox.put(Event(9, "fast", b"x"))
    assert len(inbox.take()) == 1


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3000)), max_size=60))
def test_time_waits_in_steps_that_are_no_jump(parts: list[tuple[bool, int]]) -> None:
    """However long the worker is busy, joining pieces of news hides no time and makes no step longer than they were, or 1 s."""
    inbox, now_ns, told = Inbox({"topic": 100}), 0, []
    for is_message, step_ms in parts:
        now_ns += step_ms * MS
        told.append(now_ns)
        inbox.put(Event(now_ns, "topic" if is_message else None))
    events = inbox.take()
    assert sum(event.topic is not None for event in events) == sum(is_message for is_message, _ in parts)
    times = [event.now_ns for event in events]
    assert times == sorted(times)
    assert times[-1:] == told[-1:]
    longest = max([SECOND_NS, *np.diff(told).tolist()])
    assert all(step <= longest for step in np.diff(times).tolist())


def loop(look: Callable[[Tick], TickResult], reports: list[LiveReport], **changes: Any) -> LiveLoop:
    """A loop over the drive's topics, fed with ROS messages."""
    topics = listened_topics(MAPPING, CHANNELS, "compressed")
    values: dict[str, Any] = {
        "playback": playback(), "decode": Ros2Decoder(topics), "look": look, "publish": reports.append,
        "most": most_waiting(topics, 1000), "max_age_s": 1000.0,
    }  # fmt: skip
    return LiveLoop(**(values | changes))


def seen(tick: Tick) -> TickResult:
    """A result by hand: two boxes, wherever any sensor is given."""
    return replace(result(perceived=any(status.given for status in tick.sensors.values())), tick=tick)


def events(seconds: float) -> Iterator[tuple[str, bytes, int]]:
    """(topic, serialised message, arrival) of a drive."""
    for message in drive(seconds):
        yield message.topic, ros2_bytes(message.payload)[1], message.log_time_ns


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.002)


def test_serialised_messages_give_the_ticks_of_the_drive() -> None:
    reports: list[LiveReport] = []
    live = loop(seen, reports)
    for event in events(1.0):
        live.receive(*event)
        live.work()
    plain = drive_through(playback(), drive(1.0))
    assert all(same(report.tick, tick) for report, tick in zip(reports, plain, strict=True))
    assert all(report.perceived for report in reports)


def test_who_brings_messages_never_waits_for_the_model() -> None:
    """The model hangs; 60 s of messages come meanwhile. They are queued, the oldest dropped and counted."""
    reports: list[LiveReport] = []
    hangs, goes_on = threading.Event(), threading.Event()

    def slow(tick: Tick) -> TickResult:
        hangs.set()
        assert goes_on.wait(600)
        return seen(tick)

    topics = listened_topics(MAPPING, CHANNELS, "compressed")
    live = loop(slow, reports, most=most_waiting(topics, 5), max_age_s=0.5)
    live.start()
    for event in events(0.3):
        live.receive(*event)
    assert hangs.wait(120)
    now_ns = START_NS
    for n in range(4, 604):
        cloud = measurement("LIDAR_TOP", n * 100 * MS, START_NS + n * 100 * MS)
        data, now_ns = ros2_bytes(cloud.payload)[1], cloud.log_time_ns
        live.receive(cloud.topic, data, now_ns)
        live.time_goes_on(now_ns)
    assert not reports  # the model has not come back, and everybody else went on
    goes_on.set()
    wait_for(lambda: bool(reports) and reports[-1].tick.time_us * 1000 >= now_ns - 2 * SECOND_NS)
    assert live.stop()
    assert reports[-1].dropped[TOPIC["LIDAR_TOP"]] >= 590
    indices = [report.tick.index for report in reports]
    assert indices == list(range(len(indices)))  # every tick has its report
    skipped = [report for report in reports if report.result is None]
    assert skipped
    assert "old when its turn came" in skipped[0].problem
    lines = {line.name: line for line in skipped[-1].diagnoses()}
    assert (lines["perception"].level, lines["live"].level) == (Level.ERROR, Level.WARN)
    assert lines["perception"].message.startswith("NO PERCEPTION")
    assert int(dict(lines["live"].values)["messages dropped"]) >= 590


def test_a_model_that_fails_is_reported_and_asked_again() -> None:
    reports: list[LiveReport] = []

    def flaky(tick: Tick) -> TickResult:
        if tick.index == 2:
            raise RuntimeError("CUDA out of memory")
        return seen(tick)

    live = loop(flaky, reports)
    for event in events(0.6):
        live.receive(*event)
    live.work()
    assert [report.result is None for report in reports[:5]] == [False, False, True, False, False]
    assert not reports[2].perceived
    first, *_, last = reports[2].diagnoses()
    assert first.message == "NO PERCEPTION: the model failed: RuntimeError: CUDA out of memory"
    assert dict(last.values)["ticks failed"] == "1"
    assert dict(reports[3].diagnoses()[-1].values)["ticks failed"] == "1"


def test_every_report_tells_of_every_sensor() -> None:
    reports: list[LiveReport] = []
    live = loop(seen, reports)
    for n in range(200):
        live.time_goes_on(START_NS + n * 10 * MS)
    live.work()
    assert reports
    for report in reports:
        lines = report.diagnoses()
        assert [line.name for line in lines] == [
            "perception", *(f"sensors/{channel}" for channel in CHANNELS.modalities()), "live",
        ]  # fmt: skip
        assert lines[0].level is Level.ERROR
        assert lines[0].message.startswith("NO PERCEPTION")


def test_bytes_that_are_no_message_cost_one_sensor() -> None:
    reports: list[LiveReport] = []
    live = loop(seen, reports)
    for topic, data, now_ns in events(2.0):
        broken = topic == TOPIC["LIDAR_TOP"] and now_ns > START_NS + SECOND_NS
        live.receive(topic, data[: len(data) // 3] if broken else data, now_ns)
    live.work()
    assert [report.tick.index for report in reports] == list(range(len(reports)))
    states = {channel: status.state for channel, status in reports[15].tick.sensors.items()}
    assert states.pop("LIDAR_TOP") is SensorState.MALFORMED
    assert set(states.values()) == {SensorState.OK}


@pytest.mark.parametrize("number", range(3))
def test_a_picture_that_nothing_can_decode_costs_one_camera_and_the_loop_goes_on(number: int) -> None:
    avif, claims, late = b"\0\0\0\x1cftypavif", bytearray(ANIMATED), bytearray(ANIMATED)
    claims[16:24] = b"\0\0\x9c\x40\0\0\x75\x30"  # 40,000 x 30,000
    late[-20] ^= 1  # its header is that of the calibration's size, its pixels are broken
    data, says = [(avif, "AVIF"), (bytes(claims), "claims 40000 x 30000"), (bytes(late), "checksum is wrong")][number]
    reports: list[LiveReport] = []
    live = loop(seen, reports)
    for message in drive(2.0):
        payload = message.payload
        if message.topic == TOPIC["CAM_FRONT"] and message.log_time_ns > START_NS + SECOND_NS:
            assert isinstance(payload, EncodedImage)
            payload = replace(payload, data=data, format="png")
        live.receive(message.topic, ros2_bytes(payload)[1], message.log_time_ns)
    live.work()
    assert len(reports) > 15
    sensors = dict(reports[15].tick.sensors)
    front = sensors.pop("CAM_FRONT")
    assert front.state is SensorState.MALFORMED
    assert says in front.detail
    assert {status.state for status in sensors.values()} == {SensorState.OK}


@pytest.mark.parametrize("where", ["decode_picture", "picture_size_px", "radar_points"])
def test_whatever_a_decoder_raises_the_loop_goes_on_without_that_sensor(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("nobody\nexpected this")

    monkeypatch.setattr(f"sensors.replay.assembly.{where}", fails)
    reports: list[LiveReport] = []
    live = loop(seen, reports)
    for topic, data, now_ns in events(2.0):
        live.receive(topic, data, now_ns)
    live.work()
    assert len(reports) > 15
    hit = "RADAR" if where == "radar_points" else "CAM"
    for channel, status in reports[15].tick.sensors.items():
        assert status.state is (SensorState.MALFORMED if channel.startswith(hit) else SensorState.OK), channel
        assert not channel.startswith(hit) or "RuntimeError: nobody expected this" in status.detail
    with pytest.raises(RuntimeError, match="nobody"):  # a replay of the same drive is to say so aloud
        list(ticks(MemoryLog(drive(2.0)), MAPPING, CHANNELS, CONFIG))


def test_a_picture_larger_than_its_calibration_is_never_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sensors.replay.assembly.decode_picture", lambda *_: pytest.fail("decoded"))
    large = simplejpeg.encode_jpeg(np.zeros((4000, 6000, 3), np.uint8))
    messages = [
        replace(message, payload=replace(message.payload, data=large))
        if isinstance(message.payload, EncodedImage)
        else message
        for message in drive(1.0)
    ]
    tick = list(ticks(MemoryLog(messages), MAPPING, CHANNELS, CONFIG))[5]
    assert tick.sensors["CAM_FRONT"].state is SensorState.UNCALIBRATED
    assert "got 6000 x 4000 px" in tick.sensors["CAM_FRONT"].detail


def test_stopping_ends_the_worker_and_forgets_what_waits() -> None:
    reports: list[LiveReport] = []
    asked = threading.Event()

    def slow(tick: Tick) -> TickResult:
        asked.set()
        time.sleep(0.05)
        return seen(tick)

    live = loop(slow, reports)
    live.start()
    for event in events(2.0):
        live.receive(*event)
    assert asked.wait(120)
    assert live.stop()
    count = len(reports)
    assert count < 15
    live.receive(*next(events(0.0)))
    assert live.work() == 0
    assert len(reports) == count
    assert live.failure is None


def test_a_worker_that_cannot_publish_says_why_it_ended() -> None:
    def closed(report: LiveReport) -> None:
        raise RuntimeError("publisher's context is invalid")

    live = loop(seen, [], publish=closed)
    live.start()
    for event in events(0.5):
        live.receive(*event)
    wait_for(lambda: live.failure is not None)
    assert "context is invalid" in str(live.failure)
    assert live.stop()
