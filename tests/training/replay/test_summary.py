"""A replay's summary counts what came, what was used and what was wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from bev.detection.boxes import Boxes
from robustbev.results.result import TickResult
from sensors.logs.log import Damage
from sensors.logs.messages import LogMessage, Malformed, Other
from sensors.replay.tick import Tick
from sensors.replay.ticks import MissingPoses
from tests.small_replay import noise_tick
from training.replay.play import STAGES, Latencies
from training.replay.summary import MessageCount, ReplaySummary, StateCount


def result(tick: Tick, *, perceived: bool = True) -> TickResult:
    return TickResult(
        tick, perceived, Boxes.empty(), Boxes.empty(), ("camera",), np.zeros((1, 2, 2), np.float32), ("car",), (), {}
    )


def messages() -> Iterator[LogMessage]:
    for n in range(5):
        yield LogMessage("/lidar_top", n, n, Other("points", b""))
    yield LogMessage("/lidar_top", 5, 5, Malformed("PointCloud2", "expected 16 bytes a point, got 3"))
    yield LogMessage("/radar", 6, 6, Other("points", b""))


def summary(ticks: list[Tick]) -> ReplaySummary:
    counted, came = StateCount(), MessageCount()
    for tick in ticks:
        counted.write(result(tick, perceived=bool(tick.frame.lidar)))
    assert len(list(came(messages()))) == 7
    latencies = Latencies({stage: [0.01 * (n + 1) for n in range(len(ticks))] for stage in STAGES})
    topics = {"LIDAR_TOP": "/lidar_top", "RADAR_0": "/radar"}
    return ReplaySummary(
        "clean", Path("drive.mcap"), counted, came, Damage(bad_chunks=2), latencies, 2.0, topic_of=topics
    )


def test_files_that_were_left_out_are_called_files() -> None:
    damaged = replace(summary([noise_tick(0)]), damage=Damage(bad_files=2))
    assert damaged.trouble() == ["2 files of the log could not be opened and were left out"]
    assert damaged.to_json()["bad_files"] == 2


def test_ticks_without_an_ego_pose_are_counted_with_why_and_what_to_do() -> None:
    left_out = {"'map' -> 'base_link'": 3}
    told = replace(summary([noise_tick(0), noise_tick(1)]), poses=MissingPoses(2, "'map' is in no transform", left_out))
    assert told.to_json()["poses_left_out"] == left_out
    assert told.trouble()[1] == "3 poses of the transform 'map' -> 'base_link' cannot be and were left out"
    assert told.to_json()["why_without_ego_pose"] == "'map' is in no transform"
    line = told.trouble()[0]
    assert line.startswith(
        "2 of 2 ticks have no ego pose, so that no motion is compensated at them: 'map' is in no transform. "
    )
    assert "global_frame" in line
    assert "null for none" in line
    assert not any("ego pose" in line for line in summary([noise_tick(0)]).trouble())


def test_a_measurement_used_by_two_ticks_counts_once() -> None:
    first, second = noise_tick(0), noise_tick(1)
    assert first.frame.lidar is not None
    assert second.frame.lidar is not None
    again = replace(second, frame=replace(second.frame, lidar=(*second.frame.lidar, *first.frame.lidar)))
    told = summary([first, again])
    assert told.counted.used["LIDAR_TOP"] == 2
    assert told.unused()["/lidar_top"] == 4


def test_the_figures_stand_in_the_json_and_the_tables() -> None:
    told = summary([noise_tick(0), noise_tick(1, ("camera",)), noise_tick(2, reset=True)])
    told.counted.details["LIDAR_TOP"] = "malformed: expected 16 bytes"
    told.counted.notes["CAM_FRONT"] = "rectified here by plumb_bob, 449 x 152 of 640 x 360 px"
    content = json.loads(json.dumps(told.to_json()))
    assert (content["ticks"], content["resets"], content["ticks_without_perception"]) == (3, 1, 1)
    assert content["sensors"]["LIDAR_TOP"] == {"missing": 1, "ok": 2}
    assert content["first_trouble"] == {"LIDAR_TOP": "malformed: expected 16 bytes"}
    assert content["first_note"] == {"CAM_FRONT": "rectified here by plumb_bob, 449 x 152 of 640 x 360 px"}
    assert content["malformed"] == {"/lidar_top": 1}
    assert content["malformed_reasons"]["/lidar_top"].startswith("expected 16 bytes")
    assert content["bad_chunks"] == 2
    assert content["most_waited_ms"] == 20
    assert content["ticks_per_second"] == 1.5
    assert content["latency_ms"]["model"]["p50"] == 20
    assert content["latency_ms"]["total"]["p50"] == 100
    assert told.headline().startswith("clean: 3 ticks, 1 without any perception, 1 resets")
    assert told.trouble() == ["2 damaged chunks were left out"]
    titles = [str(table.title) for table in told.tables()]
    assert len(titles) == 3
