"""Faults on messages: what a failing vehicle would have sent, in order of time, the same each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.calibration import transforms
from sensors.logs.mapping.mapping import CameraTopics, LidarTopics, LogMapping, RadarTopics
from sensors.logs.messages import (
    CameraInfo,
    EncodedImage,
    FrameTransform,
    FrameTransforms,
    LogMessage,
    Malformed,
    Other,
    PointCloud,
)
from sensors.replay.faults.kinds import Fault, FaultError
from sensors.replay.faults.messages import alter_messages, check_faults, unused
from sensors.replay.faults.script import parse_fault, parse_faults

MS, S = 10**6, 10**9
BEGIN = 1_600_000_000 * S
MAPPING = LogMapping(
    cameras={
        "CAM_FRONT": CameraTopics(image="/cam_front/image", info="/cam_front/info"),
        "CAM_BACK": CameraTopics(image="/cam_back/image", info="/cam_back/info"),
    },
    lidars={"LIDAR_TOP": LidarTopics(points="/lidar_top")},
    radars={"RADAR_FRONT": RadarTopics(points="/radar_front", frame="radar_mount")},
    truth="/truth",
)
DATA = ("/cam_front/image", "/cam_back/image", "/lidar_top", "/radar_front")
INFO = ("/cam_front/info", "/cam_back/info")
FRAME_OF = {"/cam_front/info": "cam_front", "/cam_back/info": "cam_back", "/lidar_top": "lidar"}
LATENCY = 20 * MS  # from stamp to log time


def cloud(stamp_ns: int, frame: str, content: int) -> PointCloud:
    return PointCloud(stamp_ns, frame, np.array([(content,)], [("x", "<i8")]))


def image(stamp_ns: int, content: int) -> EncodedImage:
    return EncodedImage(stamp_ns, "picture", "jpeg", content.to_bytes(8, "little"))


def info(stamp_ns: int, frame: str) -> CameraInfo:
    return CameraInfo(stamp_ns, frame, 8, 6, "", np.zeros(5), np.eye(3), np.eye(3), np.eye(3, 4))


def mount(child: str, x_m: float = 1.0) -> FrameTransform:
    return FrameTransform(BEGIN, "base_link", child, (x_m, 2.0, 3.0), (0.5, -0.5, 0.5, -0.5))


MOUNTS = FrameTransforms(tuple(map(mount, ("cam_front", "cam_back", "lidar", "radar_mount"))), static=True)


def drive(seconds: float = 3.0, step_ns: int = 100 * MS) -> Iterator[LogMessage]:
    """The mounts, then every sensor's message every step, and odometry; each message's content is its number in time."""
    yield LogMessage("/tf_static", BEGIN, BEGIN, MOUNTS)
    for n in range(round(seconds * S / step_ns)):
        stamp_ns = BEGIN + n * step_ns
        now_ns = stamp_ns + LATENCY
        for topic in (*INFO, *DATA, "/odometry"):
            if topic in INFO:
                payload: object = info(stamp_ns, FRAME_OF[topic])
            elif topic.endswith("image"):
                payload = image(stamp_ns, n)
            elif topic == "/odometry":
                payload = Other("nav", bytes([n % 256]))
            else:
                payload = cloud(stamp_ns, FRAME_OF.get(topic, "as_the_log_says"), n)
            yield LogMessage(topic, now_ns, now_ns - MS, payload)  # type: ignore[arg-type]


def through(*lines: str, messages: Sequence[LogMessage] | None = None) -> list[LogMessage]:
    """A drive with these faults."""
    source = list(drive()) if messages is None else messages
    return list(alter_messages(source, parse_faults(lines), MAPPING, BEGIN))


def of(messages: Sequence[LogMessage], topic: str) -> list[LogMessage]:
    return [message for message in messages if message.topic == topic]


def content(message: LogMessage) -> int:
    payload = message.payload
    if isinstance(payload, EncodedImage):
        return int.from_bytes(payload.data, "little")
    assert isinstance(payload, PointCloud)
    return int(payload.points["x"][0])


def told(messages: Sequence[LogMessage]) -> list[str]:
    """Messages as text, because payloads with arrays do not compare."""
    return [repr(message) for message in messages]


def stamp(message: LogMessage) -> int:
    assert isinstance(message.payload, EncodedImage | PointCloud)
    return message.payload.stamp_ns


def seconds(messages: Sequence[LogMessage]) -> list[float]:
    return [(message.log_time_ns - LATENCY - BEGIN) / S for message in messages]


def test_without_faults_every_message_is_the_one_that_came() -> None:
    clean = list(drive())
    assert all(a is b for a, b in zip(through(messages=clean), clean, strict=True))


def test_drop_takes_what_was_recorded_in_its_window_and_nothing_else() -> None:
    # Recorded 20 ms after 0.5 s, 0.6 s, ...: a window from 520 ms holds the first, one to 920 ms no longer the last.
    faulty = through("lidar_top: drop 520ms..920ms")
    assert seconds(of(faulty, "/lidar_top")) == [n / 10 for n in range(30) if not 5 <= n < 9]
    rest, clean = ([m for m in messages if m.topic != "/lidar_top"] for messages in (faulty, drive()))
    assert told(rest) == told(clean)


@pytest.mark.parametrize(
    ("target", "topics"),
    [
        ("LIDAR_TOP", {"/lidar_top"}),
        ("cam_front", {"/cam_front/image"}),
        ("camera", {"/cam_front/image", "/cam_back/image"}),
        ("Radar", {"/radar_front"}),
        ("all", set(DATA)),
        ("/cam_front/info", {"/cam_front/info"}),
        ("/odometry", {"/odometry"}),
    ],
)
def test_a_target_is_a_channel_a_modality_a_topic_or_all_sensors(target: str, topics: set[str]) -> None:
    left = {message.topic for message in through(f"{target}: drop")}
    assert {"/tf_static", "/odometry", *INFO, *DATA} - left == topics


def test_flicker_sends_in_the_first_part_of_every_period_from_its_start_on() -> None:
    half = through("lidar: flicker 0.4s 1s..")
    assert [content(m) for m in of(half, "/lidar_top")] == [n for n in range(30) if n < 10 or (n - 10) % 4 < 2]
    most = through("lidar: flicker 1s 70%")
    assert [content(m) for m in of(most, "/lidar_top")] == [n for n in range(30) if n % 10 < 7]


def test_freeze_repeats_the_last_content_under_new_stamps() -> None:
    faulty, clean = of(through("cam_front: freeze 1s..2s"), "/cam_front/image"), of(list(drive()), "/cam_front/image")
    assert [content(m) for m in faulty] == [9 if 10 <= n < 20 else n for n in range(30)]
    assert [stamp(m) for m in faulty] == [stamp(m) for m in clean]
    assert [m.log_time_ns for m in faulty] == [m.log_time_ns for m in clean]
    assert {content(m) for m in of(through("cam_front: freeze"), "/cam_front/image")} == {0}


def test_delay_lets_messages_arrive_later_with_their_stamps_and_in_order_of_time() -> None:
    faulty = through("lidar: delay 250ms 1s..2s")
    times = [m.log_time_ns for m in faulty]
    assert times == sorted(times)
    clean = of(list(drive()), "/lidar_top")
    late = {content(m): m for m in of(faulty, "/lidar_top")}
    assert len(late) == len(clean)
    for n, before in enumerate(clean):
        by = 250 * MS if 10 <= n < 20 else 0
        assert late[n].log_time_ns == before.log_time_ns + by
        assert late[n].publish_time_ns == before.publish_time_ns + by
        assert stamp(late[n]) == stamp(before)


def test_delayed_messages_of_the_end_still_come() -> None:
    assert [content(m) for m in of(through("lidar: delay 5s"), "/lidar_top")] == list(range(30))


def test_delay_holds_no_more_than_the_delay_is_long() -> None:
    taken = 0

    def counted() -> Iterator[LogMessage]:
        nonlocal taken
        for message in drive(10):
            taken += 1
            yield message

    late = alter_messages(counted(), parse_faults(["all: delay 1s"]), MAPPING, BEGIN)
    for given_out, _ in enumerate(late, 1):
        assert taken - given_out <= 4 * 11  # four topics, a second at 10 Hz and the instant itself


def test_skew_and_drift_make_stamps_wrong_and_nothing_else() -> None:
    clean = of(list(drive()), "/lidar_top")
    skewed = of(through("lidar: skew -1s"), "/lidar_top")
    assert [stamp(a) - stamp(b) for a, b in zip(skewed, clean, strict=True)] == [-S] * 30
    assert [m.log_time_ns for m in skewed] == [m.log_time_ns for m in clean]
    drifted = of(through("lidar: drift 10ms/s 1s..2s"), "/lidar_top")
    expected = [(m.log_time_ns - BEGIN - S) // 100 if 10 <= n < 20 else 0 for n, m in enumerate(clean)]
    assert [stamp(a) - stamp(b) for a, b in zip(drifted, clean, strict=True)] == expected


def test_a_topic_of_transforms_can_be_skewed_too() -> None:
    [message] = of(through("/tf_static: skew 2s"), "/tf_static")
    assert isinstance(message.payload, FrameTransforms)
    assert {t.stamp_ns for t in message.payload.transforms} == {BEGIN + 2 * S}


def test_rate_thins_each_topic_to_at_most_so_many_a_second() -> None:
    faulty = through("camera: rate 2hz")
    for topic in DATA[:2]:
        assert [content(m) for m in of(faulty, topic)] == [0, 5, 10, 15, 20, 25]
    assert len(of(faulty, "/lidar_top")) == 30


def test_malformed_messages_come_and_say_why_they_cannot_be_read() -> None:
    faulty = of(through("lidar: malformed 1s..2s"), "/lidar_top")
    assert len(faulty) == 30
    broken = [m.payload for m in faulty if isinstance(m.payload, Malformed)]
    assert len(broken) == 10
    assert broken[0].reason.startswith("expected a readable message, got one that a fault has broken (lidar: malformed")


def test_duplicate_sends_everything_twice() -> None:
    twice = through("lidar: duplicate")
    assert [content(m) for m in of(twice, "/lidar_top")] == [n for n in range(30) for _ in "12"]


def test_faults_act_one_after_the_other() -> None:
    thin_then_twice, twice_then_thin = (
        through(*lines) for lines in (("lidar: rate 1hz", "lidar: duplicate"), ("lidar: duplicate", "lidar: rate 1hz"))
    )
    assert len(of(thin_then_twice, "/lidar_top")) == 6
    assert len(of(twice_then_thin, "/lidar_top")) == 3


def test_a_jump_of_the_clock_back_lets_out_what_is_held_before_it() -> None:
    first, again = list(drive(1)), list(drive(1))
    order = through("lidar: delay 300ms", messages=[*first, *again])
    assert len(order) == 2 * len(first)
    assert told(order[: len(first)]) == told(order[len(first) :])


messages_strategy = st.lists(
    st.tuples(st.integers(0, 5 * S), st.sampled_from((*DATA, "/odometry"))), max_size=40
).map(lambda rows: [
    LogMessage(topic, BEGIN + t, BEGIN + t, Other("t", bytes([n])))
    for n, (t, topic) in enumerate(sorted(rows, key=lambda row: row[0]))
])  # fmt: skip
lines_strategy = st.lists(
    st.sampled_from([
        "lidar: delay 300ms 1s..3s", "camera: delay 2s", "all: delay 1ms", "lidar: drop 2s..", "all: rate 3hz",
        "radar: duplicate", "all: flicker 0.7s 30%", "camera: freeze 2s..4s", "cam_back: malformed ..1s",
    ]),
    max_size=4,
)  # fmt: skip


@settings(max_examples=60)
@given(messages_strategy, lines_strategy)
def test_whatever_the_faults_order_by_time_is_kept_and_other_topics_are_untouched(
    messages: list[LogMessage], lines: list[str]
) -> None:
    faulty = through(*lines, messages=messages)
    times = [m.log_time_ns for m in faulty]
    assert times == sorted(times)
    assert of(faulty, "/odometry") == of(messages, "/odometry")
    assert through(*lines, messages=messages) == faulty


# --- shifted mounts ---------------------------------------------------------------------------------------------------


def last_mounts(messages: Sequence[LogMessage]) -> dict[str, FrameTransform]:
    """As a transform tree holds them: the last of each child."""
    sent = [m.payload for m in messages if isinstance(m.payload, FrameTransforms)]
    return {t.child: t for payload in sent for t in payload.transforms}


def pose(transform: FrameTransform) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return transforms([*transform.translation_m, *transform.rotation_wxyz])


def off(transform: FrameTransform) -> tuple[float, float]:
    """How far (m) and by how much turned (degrees) a mount is from where it is."""
    error = np.linalg.inv(pose(mount(transform.child))) @ pose(transform)
    angle = np.arccos(np.clip((np.trace(error[:3, :3]) - 1) / 2, -1, 1))
    return float(np.linalg.norm(error[:3, 3])), float(np.rad2deg(angle))


@pytest.mark.parametrize(
    ("target", "children"),
    [
        ("lidar", {"lidar"}),
        ("cam_front", {"cam_front"}),
        ("camera", {"cam_front", "cam_back"}),
        ("radar_front", {"radar_mount"}),  # as the mapping says, whatever the messages say
        ("all", {"cam_front", "cam_back", "lidar", "radar_mount"}),
    ],
)
def test_shift_moves_the_mounts_of_its_sensors_by_what_it_says(target: str, children: set[str]) -> None:
    mounts = last_mounts(through(f"{target}: shift 0.2m 2deg"))
    for child, transform in mounts.items():
        assert off(transform) == pytest.approx((0.2, 2.0) if child in children else (0.0, 0.0), abs=1e-4)


def test_a_shift_is_known_before_the_message_that_it_spoils_and_undone_after_its_window() -> None:
    altered = through("lidar: shift 0.5m 1s..2s")
    mounts: dict[str, FrameTransform] = {}
    for message in altered:
        if isinstance(message.payload, FrameTransforms):
            mounts |= {t.child: t for t in message.payload.transforms}
        elif message.topic == "/lidar_top":
            wrong = 10 <= content(message) < 20
            assert off(mounts["lidar"])[0] == pytest.approx(0.5 if wrong else 0.0, abs=1e-9)
    times = [m.log_time_ns for m in altered]
    assert times == sorted(times)


def test_directions_are_the_same_each_time_and_differ_between_sensors() -> None:
    one, same = (
        {child: t.translation_m for child, t in last_mounts(through("camera: shift 1m")).items()} for _ in range(2)
    )
    assert one == same
    assert one["cam_front"] != one["cam_back"]


def test_a_sensor_is_off_by_the_same_in_its_own_axes_however_it_is_mounted() -> None:
    errors = []
    for turn in ((1.0, 0.0, 0.0, 0.0), (0.5, -0.5, 0.5, -0.5)):
        there = replace(mount("radar_mount"), rotation_wxyz=turn)
        sent = LogMessage("/tf_static", BEGIN, BEGIN, FrameTransforms((there,), True))
        shifted = last_mounts(through("radar: shift 0.2m 20deg", messages=[sent]))["radar_mount"]
        errors.append(np.linalg.inv(pose(there)) @ pose(shifted))
    assert np.allclose(errors[0], errors[1], atol=1e-9)


def test_mounts_that_come_again_and_again_are_shifted_each_time() -> None:
    moving = [
        LogMessage(
            "/tf", BEGIN + n, BEGIN + n, FrameTransforms((replace(mount("lidar", n), stamp_ns=BEGIN + n),), False)
        )
        for n in range(5)
    ]
    first = LogMessage("/lidar_top", BEGIN, BEGIN, cloud(BEGIN, "/lidar", 0))
    sent = [m.payload for m in through("lidar: shift 0.3m", messages=[first, *moving])]
    gaps = [
        p.transforms[0].translation_m[0] - n for n, p in enumerate(p for p in sent if isinstance(p, FrameTransforms))
    ]
    assert len(gaps) == 5
    assert np.ptp(gaps) < 1e-9
    assert gaps[0] != 0


def test_a_mount_that_is_no_pose_stays_for_the_replay_to_refuse() -> None:
    bad = FrameTransforms((FrameTransform(BEGIN, "base_link", "radar_mount", (1, 2, 3), (0, 0, 0, 0)),), True)
    message = LogMessage("/tf_static", BEGIN, BEGIN, bad)
    assert through("radar: shift 1m", messages=[message]) == [message]


# --- what cannot be, and what never was ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "lidar_tpo: drop",
            "no sensor or topic 'lidar_tpo' in this log; did you mean 'LIDAR_TOP'? Channels: CAM_FRONT",
        ),
        ("sonar: drop", "kinds of sensors: camera, lidar, radar; topics: "),
        ("/odometry: shift 1m", "expected a sensor as target, got the topic /odometry, which is none"),
        ("radar: fog-3", "fog acts on camera and lidar, got a target of radar"),
    ],
)
def test_a_target_that_cannot_be_is_refused_before_the_first_message(line: str, told: str) -> None:
    with pytest.raises(FaultError) as error:
        alter_messages(iter(()), [parse_fault(line)], MAPPING, BEGIN)
    assert told in str(error.value)


def test_where_the_topics_are_known_one_that_is_not_there_is_refused() -> None:
    faults = parse_faults(["/odometry: drop"])
    check_faults(faults, MAPPING)
    check_faults(faults, MAPPING, topics=["/odometry"])
    with pytest.raises(FaultError, match=r"no sensor or topic '/odometry' in this log; did you mean '/odom'"):
        check_faults(faults, MAPPING, topics=["/odom"])


def test_faults_that_touched_nothing_are_told() -> None:
    lines = [
        "lidar: drop 1s..2s", "lidar: drop 50s..", "radar: shift 1m", "/nothing: drop", "/odometry: skew 1s", "camera: fog-3",
    ]  # fmt: skip
    faults, touched = parse_faults(lines), Counter[Fault]()
    list(alter_messages(drive(), faults, MAPPING, BEGIN, touched=touched))
    # Bytes that nobody reads have no stamp to skew; fog acts on frames and is counted there.
    assert [str(fault) for fault in unused(faults, touched)] == [str(parse_fault(lines[n])) for n in (1, 3, 4, 5)]
    assert touched[faults[0]] == 10
