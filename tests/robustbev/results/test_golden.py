"""Golden outputs: equal results pass, the first thing that differs is named, and damaged files are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bev.detection.boxes import Boxes
from robustbev.results.golden import (
    GoldenComparison,
    GoldenError,
    GoldenWriter,
    compare_golden,
    open_golden,
    write_golden,
)
from robustbev.results.golden_compare import Difference, Tolerance
from robustbev.results.result import TickResult
from sensors.frames import SensorFrame
from sensors.replay.tick import SensorState, SensorStatus, Tick

CLASSES, ATTRIBUTES = ("car", "pedestrian"), ("vehicle.moving", "vehicle.parked")
BEGIN_US = 1_600_000_000_000_000


def some_boxes(count: int, seed: int = 0) -> Boxes:
    """Boxes 4 m and more apart, sorted by score; one in three has no velocity and no attribute."""
    random = np.random.default_rng(seed)
    known = torch.arange(count) % 3 != 0
    velocity = torch.from_numpy(random.normal(0, 3, (count, 2))).float()
    return Boxes(
        center_m=torch.tensor([[5.0 * n, -3.0 * n, 0.5] for n in range(count)]).reshape(count, 3),
        size_m=torch.from_numpy(random.uniform(0.5, 5, (count, 3))).float(),
        yaw_rad=torch.from_numpy(random.uniform(-3.1, 3.1, count)).float(),
        velocity_mps=torch.where(known[:, None], velocity, torch.nan),
        label=torch.arange(count) % 2,
        attribute=torch.where(known, torch.arange(count) % 2, -1),
        score=torch.linspace(0.9, 0.2, count),
    )


def result(index: int, boxes: Boxes | None = None, *, state: SensorState = SensorState.OK) -> TickResult:
    time_us = BEGIN_US + 100_000 * index
    sensors = {
        "LIDAR_TOP": SensorStatus("LIDAR_TOP", "lidar", state, 20_000),
        "CAM_FRONT": SensorStatus("CAM_FRONT", "camera", SensorState.MISSING, None, "nothing came"),
    }
    frame = SensorFrame(f"tick-{index}", time_us, None, None, None, np.eye(4))
    attention = np.random.default_rng(index).dirichlet((1, 1), (4, 6)).astype(np.float32)
    return TickResult(
        tick=Tick(index, time_us, time_us + 20_000, frame, sensors, True),
        perceived=True,
        boxes=some_boxes(index % 4, index) if boxes is None else boxes,
        candidates=Boxes.empty(),
        modalities=("camera", "lidar"),
        attention=np.moveaxis(attention, -1, 0),
        classes=CLASSES,
        attributes=ATTRIBUTES,
    )


def drive(ticks: int = 6) -> Iterator[TickResult]:
    return (result(n) for n in range(ticks))


def altered(at: int, change: Callable[[TickResult], TickResult], ticks: int = 6) -> Iterator[TickResult]:
    return (change(r) if r.tick.index == at else r for r in drive(ticks))


def with_box(field: str, box: int, value: float | list[float]) -> Callable[[TickResult], TickResult]:
    def change(r: TickResult) -> TickResult:
        values = getattr(r.boxes, field).clone()
        values[box] = torch.tensor(value, dtype=values.dtype)
        return replace(r, boxes=replace(r.boxes, **{field: values}))

    return change


def with_ghost(r: TickResult) -> TickResult:
    parts = [(getattr(r.boxes, f.name), getattr(some_boxes(4)[3:], f.name)) for f in fields(Boxes)]
    return replace(r, boxes=Boxes(*(torch.cat(pair) for pair in parts)))


def with_tick(**values: Any) -> Callable[[TickResult], TickResult]:
    return lambda r: replace(r, tick=replace(r.tick, **values))


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    write_golden(drive(), tmp_path / "golden", {"log": "drive.mcap"})
    return tmp_path / "golden"


def test_equal_results_are_equal_bytes_and_pass_bit_for_bit(golden: Path, tmp_path: Path) -> None:
    write_golden(drive(), tmp_path / "again", {"log": "drive.mcap"})
    assert {p.name: p.read_bytes() for p in golden.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()
    }
    assert compare_golden(golden, drive()) is None
    assert open_golden(golden).meta == {"log": "drive.mcap"}
    assert {p.name for p in tmp_path.iterdir()} == {"golden", "again"}


def test_ticks_without_any_box_pass_too(tmp_path: Path) -> None:
    blind = [replace(result(n, Boxes.empty()), perceived=False) for n in range(3)]
    write_golden(blind, tmp_path / "golden")
    assert compare_golden(tmp_path / "golden", blind) is None
    assert compare_golden(tmp_path / "golden", blind, tolerance=Tolerance()) is None


@pytest.mark.parametrize(
    ("change", "field", "box"),
    [
        (with_box("center_m", 1, [5.0, -3.0, np.nextafter(np.float32(0.5), np.float32(1))]), "center_m", 1),
        (with_box("size_m", 2, [1.0, 2.0, 3.0]), "size_m", 2),
        (with_box("yaw_rad", 0, 0.25), "yaw_rad", 0),
        (with_box("velocity_mps", 0, [0.0, 0.0]), "velocity_mps", 0),
        (with_box("label", 1, 0), "label", 1),
        (with_box("attribute", 1, -1), "attribute", 1),
        (with_box("score", 2, 0.2000001), "score", 2),
        (lambda r: replace(r, boxes=r.boxes[:2]), "box", 2),
        (with_ghost, "box", 3),
        (lambda r: replace(r, perceived=False), "perceived", None),
        (lambda r: replace(r, attention=np.roll(r.attention, 1, axis=1)), "attention", None),
        (lambda r: replace(r, attention=r.attention[::-1]), "attention", None),
        (with_tick(time_us=BEGIN_US), "time_us", None),
        (with_tick(ready_us=BEGIN_US), "ready_us", None),
        (with_tick(reset=True), "reset", None),
        (with_tick(ego_pose_known=False), "ego_pose_known", None),
        (lambda r: result(3, state=SensorState.STALE), "state of LIDAR_TOP", None),
        (lambda r: replace(r, classes=("car", "cyclist")), "classes", None),
        (lambda r: replace(r, modalities=("camera", "radar")), "modalities", None),
    ],
)
def test_the_first_tick_box_and_field_that_differ_are_named(
    golden: Path, change: Callable[[TickResult], TickResult], field: str, box: int | None
) -> None:
    difference = compare_golden(golden, altered(3, change))
    assert difference is not None
    assert (difference.index, difference.box) == (3, box)
    assert difference.field.startswith(field)
    assert difference.expected != difference.got


def test_a_difference_reads_as_one_line(golden: Path) -> None:
    difference = compare_golden(golden, altered(3, with_box("yaw_rad", 1, 0.25)))
    stored = str(np.float32(some_boxes(3, 3).yaw_rad[1]))
    assert str(difference) == f"tick 3 ({BEGIN_US + 300_000} us), box 1: yaw_rad: expected {stored} rad, got 0.25 rad"


def test_minus_zero_and_another_nan_are_other_bits(tmp_path: Path) -> None:
    zero = with_box("yaw_rad", 0, 0.0)(result(1))
    write_golden([zero], tmp_path / "golden")
    assert compare_golden(tmp_path / "golden", [with_box("yaw_rad", 0, -0.0)(zero)]) is not None
    assert compare_golden(tmp_path / "golden", [zero]) is None


def test_missing_and_extra_ticks_are_differences(golden: Path) -> None:
    fewer, more = compare_golden(golden, drive(4)), compare_golden(golden, drive(7))
    none = compare_golden(golden, [])
    assert fewer == Difference(4, BEGIN_US + 400_000, None, "tick", "6 ticks", "the end after 4")
    assert more == Difference(6, BEGIN_US + 600_000, None, "tick", "6 ticks", "one more")
    assert none is not None
    assert none.got == "the end after 0"


def test_as_a_writer_it_keeps_the_first_difference_and_lets_the_replay_go_on(golden: Path) -> None:
    comparison = GoldenComparison(golden)
    for each in altered(2, with_box("score", 0, 0.1)):
        comparison.write(each)
    comparison.close()
    assert comparison.difference is not None
    assert (comparison.difference.index, comparison.difference.field) == (2, "score")


LIMITS = Tolerance(score=0.01, center_m=0.05, size_m=0.05, yaw_rad=0.02, velocity_mps=0.1, share=0.01)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.permutations(range(4)))
def test_within_the_tolerance_figures_may_move_and_boxes_change_places(
    tmp_path_factory: pytest.TempPathFactory, seed: int, order: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("golden") / "golden"
    boxes, random = some_boxes(4), np.random.default_rng(seed)

    def moved(values: torch.Tensor, by: float) -> torch.Tensor:
        return values + torch.from_numpy(random.uniform(-by, by, values.shape)).float()

    near = Boxes(
        moved(boxes.center_m, 0.02), moved(boxes.size_m, 0.04),
        moved(boxes.yaw_rad, 0.015) + 2 * math.pi * int(random.integers(-1, 2)), moved(boxes.velocity_mps, 0.09),
        boxes.label, boxes.attribute, moved(boxes.score, 0.009),
    )  # fmt: skip
    write_golden([result(0, boxes)], folder)
    assert compare_golden(folder, [result(0, near[torch.tensor(order)])], tolerance=LIMITS) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("center_m", [5.0, -3.0, 0.6]),
        ("size_m", [9.0, 9.0, 9.0]),
        ("yaw_rad", 3.0),
        ("velocity_mps", [math.nan, math.nan]),
        ("score", 0.99),
        ("attribute", 0),
    ],
)
def test_beyond_the_tolerance_the_field_is_named_with_its_limit(
    golden: Path, field: str, value: float | list[float]
) -> None:
    difference = compare_golden(golden, altered(3, with_box(field, 1, value)), tolerance=LIMITS)
    assert difference is not None
    assert (difference.index, difference.box, difference.field) == (3, 1, field)
    assert ("within" in difference.expected) == (field != "attribute")


def test_within_a_tolerance_a_lost_box_a_ghost_and_a_changed_state_are_still_differences(golden: Path) -> None:
    lost = compare_golden(golden, altered(3, lambda r: replace(r, boxes=r.boxes[:2])), tolerance=LIMITS)
    ghost = compare_golden(golden, altered(3, with_ghost), tolerance=LIMITS)
    state = compare_golden(golden, altered(3, lambda r: result(3, state=SensorState.LATE)), tolerance=LIMITS)
    assert lost is not None
    assert (lost.box, lost.field, lost.expected[:5]) == (2, "box", "a car")
    assert ghost is not None
    assert (ghost.box, ghost.field, ghost.expected) == (3, "box", "no such box")
    assert state is not None
    assert (state.expected, state.got) == ("ok", "late")


def test_boxes_near_the_least_score_may_come_and_go(golden: Path) -> None:
    without_last = altered(3, lambda r: replace(r, boxes=r.boxes[:2]))  # its score is 0.2
    assert compare_golden(golden, without_last, tolerance=replace(LIMITS, ignore_score=0.195)) is None
    without_last = altered(3, lambda r: replace(r, boxes=r.boxes[:2]))
    assert compare_golden(golden, without_last, tolerance=replace(LIMITS, ignore_score=0.18)) is not None


def test_a_tolerance_is_a_number_of_zero_or_more() -> None:
    assert Tolerance.of_all(0.1).velocity_mps == 0.1
    for value in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="tolerance yaw_rad: expected a number of 0 or more"):
            Tolerance(yaw_rad=value)


# --- files --------------------------------------------------------------------------------------------------------------


def test_nothing_is_left_behind_where_a_replay_ends_in_an_error(tmp_path: Path) -> None:
    def broken() -> Iterator[TickResult]:
        yield result(0)
        raise OSError("the log has gone")

    with pytest.raises(OSError, match="the log has gone"):
        write_golden(broken(), tmp_path / "golden")
    with pytest.raises(GoldenError, match="expected at least one tick"):
        write_golden([], tmp_path / "golden")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    writer = GoldenWriter(tmp_path / "deep" / "golden")
    writer.write(result(0))
    assert not (tmp_path / "deep" / "golden").exists()
    writer.close()
    assert open_golden(tmp_path / "deep" / "golden").ticks == 1


def test_golden_outputs_are_replaced_only_where_that_is_asked_for(golden: Path, tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match="golden outputs are there already"):
        write_golden(drive(2), golden)
    assert open_golden(golden).ticks == 6
    write_golden(drive(2), golden, replace=True)
    assert open_golden(golden).ticks == 2
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "thesis.tex").write_text("dear to someone")
    with pytest.raises(GoldenError, match="holds something else"):
        write_golden(drive(2), tmp_path / "else", replace=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["else", "golden"]


def test_every_flipped_byte_of_the_data_and_every_cut_is_refused(golden: Path) -> None:
    for name in ("ticks.jsonl", "boxes.bin"):
        whole = (golden / name).read_bytes()
        for at in range(0, len(whole), 37):
            (golden / name).write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
            with pytest.raises(GoldenError, match=r"expected SHA-256 .* damaged: write them anew"):
                open_golden(golden)
        for cut in (0, len(whole) // 2, len(whole) - 1):
            (golden / name).write_bytes(whole[:cut])
            with pytest.raises(GoldenError, match="damaged"):
                open_golden(golden)
        (golden / name).unlink()
        with pytest.raises(GoldenError, match="got no file"):
            open_golden(golden)
        (golden / name).write_bytes(whole)
    assert compare_golden(golden, drive()) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda head: "{", "expected JSON"),
        (lambda head: "[]", "expected the format 'robustbev golden'"),
        (lambda head: json.dumps({**head, "format": "other"}), "expected the format"),
        (lambda head: json.dumps({**head, "version": 2}), "expected version 1 of the format, got 2"),
        (lambda head: json.dumps({**head, "boxes": 1}), "expected 1 boxes"),
        (lambda head: json.dumps({k: v for k, v in head.items() if k != "classes"}), "damaged"),
    ],
)
def test_a_foreign_or_damaged_head_is_refused_in_one_line(
    golden: Path, change: Callable[[dict[str, Any]], str], told: str
) -> None:
    head = golden / "golden.json"
    head.write_text(change(json.loads(head.read_text())))
    with pytest.raises(GoldenError) as error:
        compare_golden(golden, drive())
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_golden_outputs_says_how_to_write_them(tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match="write them with --write-golden"):
        compare_golden(tmp_path, drive())
