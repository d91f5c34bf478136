"""Golden outputs: equal results pass, the first thing that differs is named, and damaged files are refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bev.detection.boxes import Boxes
from robustbev.results.golden import FILE, GoldenComparison, GoldenError, GoldenWriter
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
        trust={},
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


def write_golden(results: Iterable[TickResult], folder: Path, *, replace: bool = False) -> None:
    writer = GoldenWriter(folder, replace=replace)
    for each in results:
        writer.write(each)
    writer.close()


def compare_golden(folder: Path, results: Iterable[TickResult], *limits: float) -> str | None:
    comparison = GoldenComparison(folder, *limits)
    for each in results:
        comparison.write(each)
    comparison.close()
    return comparison.difference


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    write_golden(drive(), tmp_path / "golden")
    return tmp_path / "golden"


def test_equal_results_are_equal_bytes_and_pass_bit_for_bit(golden: Path, tmp_path: Path) -> None:
    write_golden(drive(), tmp_path / "again")
    assert (golden / FILE).read_bytes() == (tmp_path / "again" / FILE).read_bytes()
    assert compare_golden(golden, drive()) is None
    assert [p.name for p in golden.iterdir()] == [FILE]


def test_ticks_without_any_box_pass_too(tmp_path: Path) -> None:
    blind = [replace(result(n, Boxes.empty()), perceived=False) for n in range(3)]
    write_golden(blind, tmp_path / "golden")
    assert compare_golden(tmp_path / "golden", blind) is None
    assert compare_golden(tmp_path / "golden", blind, 0.01) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            with_box("center_m", 1, [5.0, -3.0, np.nextafter(np.float32(0.5), np.float32(1))]),
            "box 1: z_m: expected 0.5,",
        ),
        (with_box("size_m", 2, [1.0, 2.0, 3.0]), "box 2: width_m"),
        (with_box("yaw_rad", 0, 0.25), "box 0: yaw_rad"),
        (with_box("velocity_mps", 0, [0.0, 0.0]), "box 0: vx_mps: expected nan, got 0"),
        (with_box("label", 1, 0), "box 1: label: expected 1, got 0"),
        (with_box("attribute", 1, -1), "box 1: attribute: expected 1, got -1"),
        (with_box("score", 2, 0.2000001), "box 2: score: expected 0.2, got 0.2000001"),
        (
            lambda r: replace(r, boxes=r.boxes[:2]),
            "box 2: expected a car at (10.000, -6.000, 0.500) m, score 0.2000, got no",
        ),
        (with_ghost, "box 3: expected no such box, got a pedestrian at"),
        (lambda r: replace(r, perceived=False), "perceived: expected 1, got 0"),
        (lambda r: replace(r, attention=np.roll(r.attention, 1, axis=1)), "attention (digest of all cells)"),
        (lambda r: replace(r, attention=r.attention[::-1]), "attention share of camera"),
        (with_tick(time_us=BEGIN_US), "time_us"),
        (with_tick(ready_us=BEGIN_US), "ready_us"),
        (with_tick(reset=True), "reset"),
        (with_tick(ego_pose_known=False), "ego_pose_known"),
        (lambda r: result(3, state=SensorState.STALE), "state of LIDAR_TOP: expected ok, got stale"),
        (lambda r: replace(r, classes=("car", "cyclist")), "classes: expected car, pedestrian, got car, cyclist"),
        (lambda r: replace(r, modalities=("camera", "radar")), "modalities"),
    ],
)
def test_the_first_tick_box_and_field_that_differ_are_named(
    golden: Path, change: Callable[[TickResult], TickResult], said: str
) -> None:
    difference = compare_golden(golden, altered(3, change))
    assert difference is not None
    assert difference.startswith("tick 3 (")
    assert f"us): {said}" in difference


def test_a_difference_reads_as_one_line_and_later_ones_do_not_count(golden: Path) -> None:
    changed = altered(3, with_box("yaw_rad", 1, 0.25))
    difference = compare_golden(golden, (with_ghost(r) if r.tick.index == 4 else r for r in changed))
    stored = str(np.float32(some_boxes(3, 3).yaw_rad[1]))
    assert difference == f"tick 3 ({BEGIN_US + 300_000} us): box 1: yaw_rad: expected {stored}, got 0.25"


def test_minus_zero_and_another_nan_are_other_bits(tmp_path: Path) -> None:
    zero = with_box("yaw_rad", 0, 0.0)(result(1))
    write_golden([zero], tmp_path / "golden")
    assert compare_golden(tmp_path / "golden", [with_box("yaw_rad", 0, -0.0)(zero)]) is not None
    assert compare_golden(tmp_path / "golden", [zero]) is None


def test_missing_and_extra_ticks_are_differences(golden: Path) -> None:
    assert (
        compare_golden(golden, drive(4)) == f"tick 4 ({BEGIN_US + 400_000} us): expected 6 ticks, got the end before it"
    )
    assert compare_golden(golden, drive(7)) == f"tick 6 ({BEGIN_US + 600_000} us): expected 6 ticks, got one more"
    assert compare_golden(golden, []) is not None


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.permutations(range(4)))
def test_within_the_tolerance_figures_may_move_and_boxes_change_places(
    tmp_path_factory: pytest.TempPathFactory, seed: int, order: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("golden") / "golden"
    boxes, random = some_boxes(4), np.random.default_rng(seed)

    def moved(values: torch.Tensor) -> torch.Tensor:
        return values + torch.from_numpy(random.uniform(-0.04, 0.04, values.shape)).float()

    near = Boxes(
        moved(boxes.center_m), moved(boxes.size_m), moved(boxes.yaw_rad) + 2 * math.pi * int(random.integers(-1, 2)),
        moved(boxes.velocity_mps), boxes.label, boxes.attribute, moved(boxes.score),
    )  # fmt: skip
    write_golden([result(0, boxes)], folder)
    late = replace(result(0, near[torch.tensor(order)]), attention=result(0).attention + np.float32(0.01))
    assert compare_golden(folder, [with_tick(ready_us=BEGIN_US)(late)], 0.05) is None


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("center_m", [5.0, -3.0, 0.6], "z_m: expected 0.5 within 0.05, got 0.6"),
        ("size_m", [9.0, 9.0, 9.0], "width_m"),
        ("yaw_rad", 3.0, "yaw_rad"),
        ("velocity_mps", [math.nan, math.nan], "vx_mps"),
        ("score", 0.99, "score"),
        ("attribute", 0, "attribute: expected 1 within 0, got 0"),
    ],
)
def test_beyond_the_tolerance_the_field_is_named_with_its_limit(
    golden: Path, field: str, value: float | list[float], said: str
) -> None:
    difference = compare_golden(golden, altered(3, with_box(field, 1, value)), 0.05)
    assert difference is not None
    assert f"us): box 1: {said}" in difference


def test_within_a_tolerance_a_lost_box_a_ghost_and_a_changed_state_are_still_differences(golden: Path) -> None:
    lost = compare_golden(golden, altered(3, lambda r: replace(r, boxes=r.boxes[:2])), 0.05)
    ghost = compare_golden(golden, altered(3, with_ghost), 0.05)
    state = compare_golden(golden, altered(3, lambda r: result(3, state=SensorState.LATE)), 0.05)
    assert "box 2: expected a car" in str(lost)
    assert "box 3: expected no such box" in str(ghost)
    assert "expected ok, got late" in str(state)


def test_boxes_near_the_least_score_may_come_and_go(golden: Path) -> None:
    def without_last() -> Iterator[TickResult]:
        return altered(3, lambda r: replace(r, boxes=r.boxes[:2]))  # its score is 0.2

    assert compare_golden(golden, without_last(), 0.01, 0.195) is None
    assert compare_golden(golden, without_last(), 0.01, 0.18) is not None


# --- files --------------------------------------------------------------------------------------------------------------


def test_the_file_is_not_there_before_it_is_whole_nor_where_a_replay_fails(tmp_path: Path) -> None:
    writer = GoldenWriter(tmp_path / "golden")
    writer.write(result(0))
    assert not (tmp_path / "golden" / FILE).exists()
    writer.abort()
    with pytest.raises(GoldenError, match="expected at least one tick"):
        write_golden([], tmp_path / "golden")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        GoldenWriter(tmp_path / "file")


def test_golden_outputs_are_replaced_only_where_that_is_asked_for(golden: Path) -> None:
    with pytest.raises(GoldenError, match="golden outputs are there already"):
        write_golden(drive(2), golden)
    assert compare_golden(golden, drive()) is None
    write_golden(drive(2), golden, replace=True)
    assert compare_golden(golden, drive(2)) is None


def test_what_is_cut_or_does_not_fit_is_refused_in_one_line(golden: Path) -> None:
    whole = (golden / FILE).read_bytes()
    text = whole.replace(b"sensors", b"sonsers")
    more = whole.replace(b"LIDAR_TOP", b'A\\",\\"B\\"'.ljust(9)[:9])
    for content in (b"", whole[: len(whole) // 2], whole[:-1], whole + b"x", text, more, whole.replace(b"I64", b"F64")):
        (golden / FILE).write_bytes(content)
        with pytest.raises(GoldenError, match=f"{FILE}: no readable golden outputs .* record them anew") as error:
            GoldenComparison(golden)
        assert "\n" not in str(error.value)


def test_where_there_are_none_or_old_ones_it_is_said_how_to_record_them(tmp_path: Path) -> None:
    (tmp_path / "golden.json").write_text("{}")
    with pytest.raises(
        GoldenError, match=r"record them \(anew, where they are of an earlier version\) with --write-golden"
    ):
        GoldenComparison(tmp_path)
