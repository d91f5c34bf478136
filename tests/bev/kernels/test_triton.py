"""The kernels for GPUs promise what their plain twins do, by Triton's interpreter, which runs them on a CPU.

Letters: P points, F features of a point, C channels, T boxes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bev.detection.suppression import greedy_suppression, greedy_suppression_reference
from bev.lift.table import LiftTable, lift_splat, lift_splat_reference, pixel_rays, visible_cells
from bev.pillars import linear_max, linear_max_reference
from tests.bev.lift.test_table import (
    BINS,
    GRID,
    IMAGE,
    STRIDE,
    Z_RANGE_M,
    Rig,
    assert_same_entries,
    random_rig,
    table_of,
)
from tests.bev.test_fast_gradients import gradients
from tests.tiny_model import camera_pose

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")
from bev.kernels import launch
from bev.kernels import lift as lift_kernel
from bev.kernels import motion as motion_kernel
from bev.kernels import pillars as pillar_kernel
from bev.kernels import points as point_kernel
from bev.kernels import sectors as sector_kernel
from bev.kernels import suppression as suppression_kernel

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(params=[True, False], ids=["compact", "padded"])
def table(request: pytest.FixtureRequest) -> LiftTable:
    """Of two samples with two cameras each, one of which is absent; large cells, for the interpreter goes through each."""
    present = torch.tensor([[True, False], [True, True]])
    return table_of(random_rig(cameras=2), present, (2, 2), by_camera=request.param, grid=GRID.coarser(4))


def lift_inputs(channels: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(2, 2, 3, 5, channels, generator=draw), torch.rand(2, 2, 3, 5, BINS.count, generator=draw)


@pytest.mark.parametrize("samples", [(1, 1), (2, 3)])
def test_the_table_of_the_lift(samples: tuple[int, int]) -> None:
    rig = random_rig(cameras=2)
    present = torch.tensor([[True, False], [False, True]])
    for here in (None, present):
        assert_same_entries(table_of(rig, here, samples, by_camera=True), table_of(rig, here, samples, by_camera=False))


@pytest.mark.parametrize(("height_m", "inside"), [(Z_RANGE_M[0], True), (Z_RANGE_M[1], False)])
def test_heights_are_half_open(height_m: float, inside: bool) -> None:
    rig = random_rig(samples=1, cameras=1)
    rig.intrinsics[..., 1, 2] = 11.5  # the middle row of feature pixels looks along the horizon
    rig.reference_T_camera[:] = camera_pose(0.3, height_m)
    tables = [table_of(rig, by_camera=by_camera) for by_camera in (True, False)]
    assert_same_entries(*tables)
    assert bool(((tables[0].entry // BINS.count // 5) == 1).any()) == inside


def test_an_absent_cameras_calibration_may_hold_anything() -> None:
    rig = random_rig(samples=1, cameras=2)
    rig.intrinsics[0, 1], rig.reference_T_camera[0, 1] = float("nan"), float("inf")
    table = table_of(rig, torch.tensor([[True, False]]), by_camera=False)
    alone = table_of(Rig(rig.intrinsics[:, :1], rig.reference_T_camera[:, :1]), by_camera=False)
    assert torch.equal(table.offsets, alone.offsets)
    assert not table.visible[0, 1].any()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.booleans())
def test_cells_that_cameras_see_and_rays_along_which_they_look(seed: int, some: bool) -> None:
    rig = random_rig(seed)
    present = torch.tensor([[True, False, True], [True, True, False]]) if some else None
    of: dict[str, Any] = {"image_size": IMAGE, "grid": GRID, "heights_m": (0.0, 1.5)}
    seen = lift_kernel.see_cells(rig.intrinsics, rig.reference_T_camera, present, **of)
    close = [visible_cells(rig.intrinsics + shift, rig.reference_T_camera, **of) for shift in _to_all_sides(1e-3)]
    certain = (torch.stack(close) == close[0]).all(0)  # no rounding at the picture's edge
    assert certain.float().mean() > 0.99
    here = torch.ones(2, 3, dtype=torch.bool) if present is None else present
    assert torch.equal(seen[certain], (close[0] & here[..., None, None])[certain])
    rays = lift_kernel.look_along(rig.intrinsics, rig.reference_T_camera, image_size=IMAGE, stride=STRIDE)
    expected = plain_rays(rig)
    torch.testing.assert_close(rays, expected, rtol=1e-5, atol=1e-6)


def _to_all_sides(px: float) -> list[Tensor]:
    """Shifts [3, 3] of intrinsics: none, and by so many pixels."""
    shifts = torch.zeros(5, 3, 3)
    for i, (u, v) in enumerate([(px, px), (px, -px), (-px, px), (-px, -px)]):
        shifts[i + 1, 0, 2], shifts[i + 1, 1, 2] = u, v
    return list(shifts)


def plain_rays(rig: Rig) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bev.lift.table.in_triton", lambda _: False)
        return pixel_rays(rig.intrinsics, rig.reference_T_camera, image_size=IMAGE, stride=STRIDE)


@pytest.mark.parametrize("channels", [5, 16, 40])
def test_the_lift_and_its_gradients(table: LiftTable, channels: int) -> None:
    context, depth = lift_inputs(channels)
    fast = gradients(lambda c, d: lift_splat(c, d, table), context, depth)
    plain = gradients(lambda c, d: lift_splat_reference(c, d, table), context, depth)
    for got, expected in zip(fast, plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_the_lift_in_pieces_of_any_size(table: LiftTable, monkeypatch: pytest.MonkeyPatch) -> None:
    for tile in ("CELL", "PIXEL"):
        monkeypatch.setattr(lift_kernel, tile, replace(getattr(lift_kernel, tile), entries=8))
    assert (table.offsets[1:] - table.offsets[:-1]).max() > 16, "a cell in several pieces"
    test_the_lift_and_its_gradients(table, 5)


def test_the_lift_takes_bfloat16_and_sums_in_float32(table: LiftTable) -> None:
    context, depth = lift_inputs(8)
    got = gradients(lambda c, d: lift_splat(c, d, table), context.bfloat16(), depth)
    expected = gradients(lambda c, d: lift_splat_reference(c, d, table), context.bfloat16().float(), depth)
    assert [t.dtype for t in got] == [torch.float32, torch.bfloat16, torch.float32]
    torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[1].float(), expected[1], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(got[2], expected[2], rtol=1e-5, atol=1e-5)


def crowded_points(count: int, features: int, rows: int) -> tuple[Tensor, Tensor]:
    """Points with ties, rows without points and rows whose points are all below zero."""
    draw = torch.Generator().manual_seed(1)
    points = torch.randn(count, features, generator=draw)
    row = torch.randint(0, rows - 3, (count,), generator=draw)
    tied = count // 4
    points[tied : 2 * tied], row[tied : 2 * tied] = points[:tied], row[:tied]
    return points, row


@pytest.mark.parametrize(("count", "features", "channels"), [(150, 11, 63), (33, 5, 6), (64, 3, 16), (1, 2, 1)])
def test_the_maximum_of_pillars_and_its_gradients(count: int, features: int, channels: int) -> None:
    points, rows = crowded_points(count, features, 12)
    draw = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(channels, features, generator=draw), torch.randn(channels, generator=draw) - 1
    fast = gradients(lambda p, w, b: linear_max(p, w, b, rows, 12), points, weight, bias)
    plain = gradients(lambda p, w, b: linear_max_reference(p, w, b, rows, 12), points, weight, bias)
    for got, expected in zip(fast, plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert not fast[0][9:].any(), "rows without points"


def test_a_program_goes_through_several_blocks_of_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pillar_kernel, "_PROGRAMS", 2)
    test_the_maximum_of_pillars_and_its_gradients(150, 11, 63)


def test_where_no_point_is_above_zero_nobody_learns() -> None:
    """A point at zero itself is none that is above."""
    inputs = torch.zeros(3, 2), torch.ones(4, 2), torch.zeros(4)
    rows = torch.tensor([0, 0, 1])
    assert not any(t.any() for t in gradients(lambda p, w, b: linear_max(p, w, b, rows, 2), *inputs))


def test_no_point_at_all_is_an_empty_canvas() -> None:
    rows = torch.zeros(0, dtype=torch.long)
    inputs = torch.zeros(0, 3), torch.ones(2, 3), torch.ones(2)
    got = gradients(lambda p, w, b: linear_max(p, w, b, rows, 4), *inputs)
    assert [tuple(t.shape) for t in got] == [(4, 2), (0, 3), (2, 3), (2,)]
    assert not any(t.any() for t in got)


@pytest.mark.parametrize("boxes", [1, 7, 60])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_suppression(boxes: int, share: float) -> None:
    draw = torch.Generator().manual_seed(boxes)
    close = torch.rand(3, boxes, boxes, generator=draw) < share
    for matrix in (close, close | close.transpose(1, 2)):
        assert torch.equal(greedy_suppression(matrix), greedy_suppression_reference(matrix))


def test_no_box_at_all_is_none() -> None:
    assert greedy_suppression(torch.zeros(2, 0, 0, dtype=torch.bool)).shape == (2, 0)
    assert greedy_suppression(torch.zeros(0, 5, 5, dtype=torch.bool)).shape == (0, 5)


def test_a_kernel_runs_on_the_device_of_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of itself Triton takes the current device, which need not be the model's."""
    entered: list[object] = []
    given = torch.zeros(3)

    @contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        entered.append(tensor)
        yield
        entered.append(None)

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *tensors, **named: entered.append((grid, *tensors, named))

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    launch(Kernel(), (2, 3), given, 5, C=1)
    launch(Kernel(), (2, 0), given)
    assert entered == [given, ((2, 3), given, 5, {"C": 1}), None]
    for kernel in (lift_kernel, motion_kernel, pillar_kernel, point_kernel, sector_kernel, suppression_kernel):
        assert "[(" not in inspect.getsource(kernel), "launched past `launch`"


def test_a_cpu_never_asks_for_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    from bev.kernels import in_triton

    assert not in_triton(torch.device("cpu"))
    assert in_triton(torch.device("cuda")), "installed here, see pyproject.toml"
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    assert not in_triton(torch.device("cuda"))
