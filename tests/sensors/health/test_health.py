"""Sick sensors are told from healthy ones, and what is done about it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2")

from sensors.calibration import transforms
from sensors.frames import SensorFrame
from sensors.health.fault_model import HealthModelError, fit_model
from sensors.health.measure import measure
from sensors.health.monitor import HealthAct, HealthMonitor, HealthReport, sick_sensors, without_sick
from tests.sensors.health.health_world import FAILURES, K, World, failing, small_monitor
from training.health.samples import changed_sensors

UNSEEN = 77


@pytest.fixture(scope="module")
def monitor() -> HealthMonitor:
    return small_monitor()


@pytest.fixture(scope="module")
def world() -> World:
    return World(UNSEEN)


def test_healthy_sensors_score_low(monitor: HealthMonitor, world: World) -> None:
    report = monitor.score(world.frame(4), world.frame(3))
    assert set(report.scores) == {"CAM_FRONT", "CAM_LEFT", "CAM_RIGHT", "LIDAR_TOP", "radar"}
    assert max(report.scores.values()) < 0.5
    assert set(report.reasons.values()) == {"healthy"}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_raises_the_score_of_its_sensor_and_not_of_others(
    name: str, monitor: HealthMonitor, world: World
) -> None:
    kind, fault = FAILURES[name]
    frame, before, sick = failing(world, K, name)
    report = monitor.score(frame, before)
    assert {report.kinds[sensor] for sensor in sick} == {kind}
    assert min(report.scores[sensor] for sensor in sick) > 0.5
    sound = [score for sensor, score in report.scores.items() if sensor not in sick]
    assert max(sound, default=0) < min(report.scores[sensor] for sensor in sick)
    likeliest = {max(report.faults[sensor], key=lambda f: report.faults[sensor][f]) for sensor in sick}
    if fault not in ("delayed", "frozen"):  # which of the two it is, is for the previous frame to say
        assert likeliest == {fault}


def test_a_reason_names_the_fault_and_a_measurement(monitor: HealthMonitor, world: World) -> None:
    frame, before, _ = failing(world, K, "lidar_noise")
    reason = monitor.score(frame, before).reasons["LIDAR_TOP"]
    assert reason.startswith("noisy (")
    assert any(name in reason for name in monitor.models["lidar"].names)


def test_without_a_past_nothing_is_said_of_the_past(monitor: HealthMonitor, world: World) -> None:
    sensors = measure(world.frame(3), None).sensors
    assert not {"equal_share", "ego_moved", "late"} & set(sensors["CAM_FRONT"])
    assert not {"repeated", "on_previous"} & (set(sensors["LIDAR_TOP"]) | set(sensors["radar"]))
    assert max(monitor.score(world.frame(3), None).scores.values()) < 0.6


def test_a_parked_vehicle_sees_the_same_but_never_equal_data() -> None:
    parked = World(3, speed_mps=0.0)
    standing = measure(parked.frame(2), parked.frame(1)).sensors
    assert standing["CAM_FRONT"]["equal_share"] < 0.5
    assert standing["LIDAR_TOP"]["repeated"] == standing["radar"]["repeated"] == 0
    stuck = replace(parked.frame(2), cameras=parked.frame(1).cameras, lidar=parked.frame(1).lidar)
    frozen = measure(stuck, parked.frame(1)).sensors
    assert frozen["CAM_FRONT"]["equal_share"] == frozen["LIDAR_TOP"]["repeated"] == 1
    assert frozen["radar"]["repeated"] == 0


def test_measuring_leaves_the_frame_alone_and_repeats(world: World) -> None:
    frame, before = world.frame(4), world.frame(3)
    assert frame.lidar is not None
    points = frame.lidar[0].points.copy()
    first, second = measure(frame, before), measure(frame, before)
    assert first == second
    np.testing.assert_array_equal(frame.lidar[0].points, points)


def test_absent_and_empty_sensors_are_no_trouble(monitor: HealthMonitor, world: World) -> None:
    frame, before = world.frame(4), world.frame(3)
    assert frame.cameras is not None
    assert frame.lidar is not None
    assert frame.radar is not None
    less = replace(frame, cameras=(None, *frame.cameras[1:]), lidar=None)
    assert set(monitor.score(less, before).scores) == {"CAM_LEFT", "CAM_RIGHT", "radar"}
    empty = replace(
        frame,
        lidar=(replace(frame.lidar[0], points=np.zeros((0, 5), np.float32)),),
        radar=(replace(frame.radar[0], points=np.zeros((0, 6), np.float32)),),
    )
    report = monitor.score(empty, before)
    assert report.reasons["LIDAR_TOP"] == report.reasons["radar"] == "silent (1.00): no points at all"
    cut = without_sick(empty, report, 0.5)
    assert cut.lidar is None  # missing, where it would have said that nothing is there
    assert cut.radar is None
    assert monitor.score(replace(frame, cameras=None, lidar=None, radar=None), None).scores == {}


def test_rings_may_be_unknown(monitor: HealthMonitor, world: World) -> None:
    def ringless(frame: SensorFrame) -> SensorFrame:
        assert frame.lidar is not None
        points = frame.lidar[0].points.copy()
        points[:, 4] = -1
        return replace(frame, lidar=(replace(frame.lidar[0], points=points),))

    known = measure(world.frame(4), world.frame(3)).sensors["LIDAR_TOP"]
    unknown = measure(ringless(world.frame(4)), ringless(world.frame(3))).sensors["LIDAR_TOP"]
    assert unknown["points"] == known["points"]
    assert unknown["fill"] == pytest.approx(known["fill"], abs=0.25)


@pytest.mark.parametrize("dead", ["LIDAR_FRONT", "LIDAR_REAR"])
def test_of_two_lidars_each_is_looked_at(monitor: HealthMonitor, world: World, dead: str) -> None:
    """Both see the whole street here; one of them got stuck."""

    def twice(frame: SensorFrame) -> SensorFrame:
        assert frame.lidar is not None
        (sweep,) = frame.lidar
        turned = sweep.points * np.array(
            [-1, -1, 1, 1, 1], np.float32
        )  # of a LiDAR that is mounted the other way round
        pose = sweep.reference_T_lidar @ transforms([0, 0, 0, 0, 0, 0, 1])
        rear = replace(sweep, channel="LIDAR_REAR", points=turned, reference_T_lidar=pose)
        return replace(frame, lidar=(replace(sweep, channel="LIDAR_FRONT"), rear))

    frame, before = twice(world.frame(K)), twice(world.frame(K - 1))
    sound = monitor.score(frame, before)
    assert {name for name, kind in sound.kinds.items() if kind == "lidar"} == {"LIDAR_FRONT", "LIDAR_REAR"}
    assert max(sound.scores.values()) < 0.5
    assert frame.lidar is not None
    assert before.lidar is not None
    stuck = tuple(old if now.channel == dead else now for now, old in zip(frame.lidar, before.lidar, strict=True))
    failing_frame = replace(frame, lidar=stuck)
    assert changed_sensors(frame, failing_frame) == {dead}
    report = monitor.score(failing_frame, before)
    lidars = {name: report.scores[name] for name in ("LIDAR_FRONT", "LIDAR_REAR")}
    assert max(lidars, key=lambda name: lidars[name]) == dead
    assert lidars[dead] > 0.5
    assert min(lidars.values()) < 0.5
    cut = without_sick(failing_frame, report, {"camera": 1.1, "lidar": 0.5, "radar": 1.1})
    assert [sweep.channel for sweep in cut.lidar or ()] == [name for name in lidars if name != dead]
    silent = replace(
        frame, lidar=tuple(replace(s, points=s.points[:0]) if s.channel == dead else s for s in frame.lidar)
    )
    assert monitor.score(silent, before).reasons[dead] == "silent (1.00): no points at all"


def report_of(**faults: tuple[str, float]) -> HealthReport:
    found = {sensor: {fault: p} for sensor, (fault, p) in faults.items()}
    kinds = {s: {"LIDAR": "lidar", "RADAR": "radar"}.get(s.partition("_")[0].upper(), "camera") for s in faults}
    return HealthReport({s: p for s, (_, p) in faults.items()}, dict.fromkeys(faults, ""), found, kinds)


def test_what_is_wrong_is_left_out_and_what_is_poor_stays(world: World) -> None:
    frame = world.frame(2)
    report = report_of(
        CAM_LEFT=("black", 0.9), LIDAR_TOP=("thinned", 1.0), radar=("delayed", 0.7), CAM_FRONT=("frozen", 0.4)
    )
    assert sick_sensors(report, 0.5) == {"CAM_LEFT", "radar"}
    cut = without_sick(frame, report, {"camera": 0.5, "lidar": 0.5, "radar": 0.8})
    assert [camera is None for camera in cut.cameras or ()] == [False, True, False]
    assert cut.lidar is frame.lidar
    assert cut.radar is frame.radar
    assert without_sick(frame, report, 0.5, faults=frozenset({"thinned"})).lidar is None


def test_all_cameras_wrong_is_an_absent_modality(world: World) -> None:
    report = report_of(CAM_FRONT=("black", 1.0), CAM_LEFT=("black", 1.0), CAM_RIGHT=("black", 1.0))
    assert without_sick(world.frame(2), report, 0.5).cameras is None
    assert without_sick(world.frame(2), report_of(), 0.5) is world.frame(2)


def test_acting_after_a_failure_sees_what_was_delivered_before(monitor: HealthMonitor, world: World) -> None:
    def stuck(frame: SensorFrame) -> SensorFrame:
        return replace(frame, lidar=world.frame(0).lidar)  # delivers keyframe 0 for ever

    def delivered(n: int) -> SensorFrame | None:
        earlier = world.history(4)(n)
        return None if earlier is None else stuck(earlier)

    assert HealthAct(monitor)(stuck(world.frame(4)), delivered).lidar is None
    clean = HealthAct(monitor)(world.frame(4), world.history(4))
    assert clean.lidar is not None
    assert all(camera is not None for camera in clean.cameras or ())


def test_parameters_go_through_their_file(monitor: HealthMonitor, world: World, tmp_path: Path) -> None:
    path = tmp_path / "health.json"
    path.write_text(json.dumps(monitor.to_json()))
    again = HealthMonitor.load(path)
    frame, before, _ = failing(world, K, "camera_misaligned")
    assert again.score(frame, before).scores == pytest.approx(monitor.score(frame, before).scores, abs=1e-3)
    assert again.thresholds == monitor.thresholds


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "expected format 'robustbev-health' version 1, got 'robustbev-health' version 2"),
        ({"format": "x"}, "got 'x' version 1"),
        ({"thresholds": {}}, "damaged health parameters"),
        ({"models": {"lidar": {"measurements": ["points"]}}}, "missing"),
        ({"models": 3}, "damaged health parameters"),
    ],
)
def test_a_file_that_is_none_says_so(
    change: dict[str, object], said: str, monitor: HealthMonitor, tmp_path: Path
) -> None:
    path = tmp_path / "health.json"
    path.write_text(json.dumps(monitor.to_json() | change))
    with pytest.raises(HealthModelError, match=r"robustbev health --fit") as error:
        HealthMonitor.load(path)
    assert said in str(error.value)


def test_no_file_and_no_json_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"robustbev health --fit --out"):
        HealthMonitor.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(HealthModelError, match="expected a JSON file"):
        HealthMonitor.load(tmp_path / "bad.json")


def test_a_measurement_that_was_not_made_counts_for_nothing() -> None:
    random = np.random.default_rng(0)
    healthy = [{"a": v, "b": v} for v in random.normal(0, 1, 50)]
    sick = [{"a": v, "b": v} for v in random.normal(6, 1, 50)]
    labels = ["healthy"] * 50 + ["bad"] * 50
    model = fit_model(healthy + sick, labels, np.ones(100))
    both, one, none = model.probabilities([{"a": 6.0, "b": 6.0}, {"a": 6.0}, {}])[:, 1]
    assert both > one > none
    assert model.probabilities([{"a": 0.0, "b": 0.0}])[0, 0] > 0.9
    assert model.causes({"a": 6.0}, "bad") == ["a 6"]
    with pytest.raises(ValueError, match="no healthy sensor"):
        fit_model(sick, ["bad"] * 50, np.ones(50))
