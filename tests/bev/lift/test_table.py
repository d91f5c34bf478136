"""The lift promises: what a pixel says at a depth lands in the cell it looks at, added up exactly as the plain way does."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from bev.grid import BEVGrid
from bev.lift.table import (
    DepthBins,
    Frustums,
    LiftTable,
    build_lift_table,
    feature_pixels,
    frustum_cells,
    inverse,
    lift_splat,
    lift_splat_reference,
    visible_cells,
)
from tests.tiny_model import camera_pose

GRID = BEVGrid(-8, 8, -6, 6, 1)
BINS = DepthBins(1.0, 9.5, 7)
IMAGE, STRIDE = (24, 40), 8
Z_RANGE_M = (-1.0, 3.0)


@dataclass(frozen=True)
class Rig:
    intrinsics: Tensor  # [B, N, 3, 3]
    reference_T_camera: Tensor  # [B, N, 4, 4]


def random_rig(seed: int = 0, samples: int = 2, cameras: int = 3) -> Rig:
    """Cameras that look in any direction, tilted and rolled a little, each with its own lens."""
    generator = torch.Generator().manual_seed(seed)
    intrinsics = torch.eye(3).repeat(samples, cameras, 1, 1)
    intrinsics[..., 0, 0] = 20 + 20 * torch.rand(samples, cameras, generator=generator)
    intrinsics[..., 1, 1] = 20 + 20 * torch.rand(samples, cameras, generator=generator)
    intrinsics[..., :2, 2] = torch.tensor([20.0, 12.0]) + 4 * torch.rand(samples, cameras, 2, generator=generator)
    yaws = 2 * math.pi * torch.rand(samples, cameras, generator=generator)
    poses = torch.stack([torch.stack([camera_pose(yaw.item()) for yaw in row]) for row in yaws])
    tilt = torch.linalg.qr(torch.eye(3) + 0.1 * torch.randn(samples, cameras, 3, 3, generator=generator))[0]
    tilt = tilt * tilt.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    poses[..., :3, :3] = poses[..., :3, :3] @ tilt
    return Rig(intrinsics, poses)


def table_of(
    rig: Rig,
    present: Tensor | None = None,
    samples: tuple[int, int] = (1, 1),
    *,
    by_camera: bool | None = None,
    grid: BEVGrid = GRID,
) -> LiftTable:
    return build_lift_table(
        rig.intrinsics, rig.reference_T_camera, present,
        image_size=IMAGE, stride=STRIDE, bins=BINS, grid=grid, z_range_m=Z_RANGE_M, samples=samples, by_camera=by_camera,
    )  # fmt: skip


def random_features(rig: Rig, channels: int = 5, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pixels = (*rig.intrinsics.shape[:2], IMAGE[0] // STRIDE, IMAGE[1] // STRIDE)
    context = torch.randn(*pixels, channels, generator=generator)
    return context, torch.randn(*pixels, BINS.count, generator=generator).softmax(-1)


def offsets_of(count: int, span: float) -> list[float]:
    """`count` places that share a span evenly, from its middle."""
    return [span * ((i + 0.5) / count - 0.5) for i in range(count)]


def brute_force(rig: Rig, samples: tuple[int, int]) -> tuple[Counter[tuple[int, int]], set[int]]:
    """(entry, flat cell) by a loop in double precision, and the entries of points too near to an edge to tell."""
    pairs: Counter[tuple[int, int]] = Counter()
    unsure: set[int] = set()
    shape = (*rig.intrinsics.shape[:2], IMAGE[0] // STRIDE, IMAGE[1] // STRIDE, BINS.count)
    width_m = (BINS.max_m - BINS.min_m) / BINS.count
    inverse, pose = torch.linalg.inv(rig.intrinsics.double()), rig.reference_T_camera.double()
    for entry, (b, n, row, column, k) in enumerate(itertools.product(*map(range, shape))):
        for across_px in offsets_of(samples[0], STRIDE):
            # The middle of pixels 0..7 of a stride of 8 is 3.5, pixel centres being whole numbers.
            pixel = torch.tensor([column * 8 + 3.5 + across_px, row * 8 + 3.5, 1.0], dtype=torch.double)
            ray = pose[b, n, :3, :3] @ (inverse[b, n] @ pixel)
            for along_m in offsets_of(samples[1], width_m):
                depth_m = BINS.min_m + (k + 0.5) * width_m + along_m
                x_m, y_m, z_m = (ray * depth_m + pose[b, n, :3, 3]).tolist()
                x, y = x_m + 8, y_m + 6
                edges = [x - round(x), y - round(y), z_m - Z_RANGE_M[0], z_m - Z_RANGE_M[1]]
                if min(map(abs, edges)) < 1e-4:
                    unsure.add(entry)
                elif 0 <= x < 16 and 0 <= y < 12 and Z_RANGE_M[0] <= z_m < Z_RANGE_M[1]:
                    pairs[entry, (b * 16 + math.floor(x)) * 12 + math.floor(y)] += 1
    return pairs, unsure


def pairs_of(table: LiftTable) -> Counter[tuple[int, int]]:
    lengths = table.offsets[1:] - table.offsets[:-1]
    cell = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return Counter(zip(table.entry.tolist(), cell.tolist(), strict=True))


@pytest.mark.parametrize("samples", [(1, 1), (2, 3)])
def test_the_table_is_what_a_loop_over_pixels_and_bins_gives(samples: tuple[int, int]) -> None:
    rig = random_rig()
    expected, unsure = brute_force(rig, samples)
    got = pairs_of(table_of(rig, samples=samples))
    assert len(expected) > 100
    assert len(unsure) < 10

    def sure(pairs: Counter[tuple[int, int]]) -> dict[tuple[int, int], int]:
        return {(entry, cell): count for (entry, cell), count in pairs.items() if entry not in unsure}

    assert sure(got) == sure(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lift_splat_agrees_with_its_reference_and_so_do_the_gradients(dtype: torch.dtype) -> None:
    rig = random_rig()
    table = table_of(rig, samples=(1, 2))
    outputs, gradients = [], []
    for splat in (lift_splat, lift_splat_reference):
        context, depth = (tensor.to(dtype).requires_grad_() for tensor in random_features(rig))
        output = splat(context, depth, table)
        assert output.shape == (2, 5, *GRID.shape)
        assert output.dtype == torch.float32
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        outputs.append(output.detach())
        gradients.append((context.grad, depth.grad))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
    for ours, plain in zip(*gradients, strict=True):
        assert ours is not None
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("needs", ["context", "depth"])
def test_one_input_may_go_without_a_gradient(needs: str) -> None:
    rig = random_rig()
    context, depth = random_features(rig)
    leaf = context if needs == "context" else depth
    leaf.requires_grad_()
    lift_splat(context, depth, table_of(rig)).square().sum().backward()
    ours, leaf.grad = leaf.grad, None
    lift_splat_reference(context, depth, table_of(rig)).square().sum().backward()
    torch.testing.assert_close(ours, leaf.grad)


def test_mass_is_kept() -> None:
    """Every table entry's probability arrives in the grid once."""
    rig = random_rig()
    table = table_of(rig)
    context, depth = random_features(rig, channels=1)
    canvas = lift_splat(torch.ones_like(context), depth, table)
    torch.testing.assert_close(canvas.sum(), depth.flatten()[table.entry].sum())


def test_the_same_input_gives_the_same_bits() -> None:
    rig = random_rig()
    context, depth = random_features(rig)
    assert torch.equal(lift_splat(context, depth, table_of(rig)), lift_splat(context, depth, table_of(rig)))


def test_an_absent_camera_leaves_no_entry_whatever_its_calibration_says() -> None:
    rig = random_rig()
    present = torch.tensor([[True, False, True], [False, True, True]])
    expected = table_of(rig, present)
    pixels = (IMAGE[0] // STRIDE) * (IMAGE[1] // STRIDE) * BINS.count
    seen = {(entry // pixels // 3, entry // pixels % 3) for entry, _ in pairs_of(expected)}
    assert seen == {(0, 0), (0, 2), (1, 1), (1, 2)}
    assert not expected.visible[~present].any()
    for stale in (math.nan, math.inf, 0.0):
        garbage = Rig(
            torch.where(present[..., None, None], rig.intrinsics, stale),
            torch.where(present[..., None, None], rig.reference_T_camera, stale),
        )
        got = table_of(garbage, present)
        assert all(torch.equal(getattr(got, name), getattr(expected, name)) for name in LiftTable.__dataclass_fields__)


def test_nobody_present_lifts_to_zero_with_gradients_of_zero() -> None:
    rig = random_rig()
    table = table_of(rig, torch.zeros(2, 3, dtype=torch.bool))
    context, depth = random_features(rig)
    context.requires_grad_()
    depth.requires_grad_()
    canvas = lift_splat(context, depth, table)
    canvas.sum().backward()
    for tensor in (canvas, context.grad, depth.grad):
        assert tensor is not None
        assert not tensor.any()


@pytest.mark.parametrize("samples", [(1, 1), (2, 3)])
def test_the_table_is_the_same_made_camera_by_camera_or_at_once(samples: tuple[int, int]) -> None:
    """A GPU's way and a processor's: every field, to the order of the entries, but for what falls nowhere."""
    rig = random_rig()
    present = torch.tensor([[True, False, True], [True, True, True]])
    one, other = (table_of(rig, present, samples, by_camera=by_camera) for by_camera in (True, False))
    assert_same_entries(one, other)
    frustums = 2 * 3 * 3 * 5 * samples[0] * BINS.count * samples[1]
    assert len(other.entry) == len(other.pixel_entry) == len(other.pixel_cell) == frustums > len(one.entry)


def assert_same_entries(compact: LiftTable, padded: LiftTable) -> None:
    inside = padded.pixel_cell < len(padded.offsets) - 1
    counts = torch.nn.functional.pad(inside.cumsum(0), (1, 0))[padded.pixel_offsets.long()]
    expected = {
        "entry": padded.entry[: len(compact.entry)], "offsets": padded.offsets, "visible": padded.visible,
        "pixel_entry": padded.pixel_entry[inside], "pixel_cell": padded.pixel_cell[inside], "pixel_offsets": counts.int(),
    }  # fmt: skip
    for name, theirs in expected.items():
        mine = getattr(compact, name)
        assert mine.dtype == getattr(padded, name).dtype == (torch.bool if name == "visible" else torch.int32)
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("lift", [lift_splat, lift_splat_reference])
def test_what_a_padded_table_goes_on_with_changes_nothing(lift: Callable[..., Tensor]) -> None:
    rig = random_rig()
    tables = [table_of(rig, samples=(2, 2), by_camera=by_camera) for by_camera in (True, False)]
    results = []
    for table in tables:
        draw = torch.Generator().manual_seed(0)
        context = torch.randn(2, 3, 3, 5, 4, generator=draw).requires_grad_()
        depth = torch.rand(2, 3, 3, 5, BINS.count, generator=draw).requires_grad_()
        canvas = lift(context, depth, table)
        (canvas * torch.linspace(-1, 1, canvas.numel()).view_as(canvas)).sum().backward()
        results.append((canvas.detach(), context.grad, depth.grad))
    for mine, theirs in zip(*results, strict=True):
        assert mine is not None
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


def test_a_batch_whose_entries_int32_cannot_number_is_refused() -> None:
    rig = random_rig()
    many = Rig(rig.intrinsics[:1].expand(2**21, -1, -1, -1), rig.reference_T_camera[:1].expand(2**21, -1, -1, -1))
    with pytest.raises(ValueError, match=r"75,497,472,000 points in depth bins and .* use smaller batches"):
        build_lift_table(
            many.intrinsics, many.reference_T_camera, image_size=IMAGE, stride=STRIDE, bins=DepthBins(1.0, 9.5, 800),
            grid=GRID, z_range_m=Z_RANGE_M,
        )  # fmt: skip


def test_the_inverse_of_intrinsics_and_of_affine_poses() -> None:
    rig = random_rig()
    stretched = rig.reference_T_camera @ torch.diag(torch.tensor([1.05, -0.95, 1.05, 1.0]))
    for matrix in (rig.intrinsics, stretched):
        torch.testing.assert_close(inverse(matrix), torch.linalg.inv(matrix), atol=1e-5, rtol=1e-5)


def test_a_mirrored_reference_mirrors_the_grid() -> None:
    """BEV augmentation lives in reference_T_camera: a flip there must flip features and visibility."""
    rig = random_rig()
    mirror = torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0]))
    context, depth = random_features(rig)
    plain, mirrored = table_of(rig), table_of(replace(rig, reference_T_camera=mirror @ rig.reference_T_camera))
    torch.testing.assert_close(lift_splat(context, depth, mirrored), lift_splat(context, depth, plain).flip(-1))
    assert torch.equal(mirrored.visible, plain.visible.flip(-1))


def test_a_scaled_reference_scales_the_places() -> None:
    rig = random_rig()
    scale = torch.diag(torch.tensor([1.25, 1.25, 1.25, 1.0]))
    wide = BEVGrid(-10, 10, -7.5, 7.5, 1.25)
    of = Frustums(IMAGE, STRIDE, BINS, GRID, Z_RANGE_M)
    plain = frustum_cells(rig.intrinsics, rig.reference_T_camera, of)
    of = replace(of, grid=wide, z_range_m=(-1.25, 3.75))
    scaled = frustum_cells(rig.intrinsics, scale @ rig.reference_T_camera, of)
    assert (plain == scaled).float().mean() > 0.999  # all but entries on an edge


def test_visible_cells_are_those_whose_middle_projects_into_the_picture() -> None:
    rig = random_rig()
    visible = visible_cells(rig.intrinsics, rig.reference_T_camera, image_size=IMAGE, grid=GRID, heights_m=(0.0, 1.0))
    assert visible.any()
    assert not visible.all()
    centers = GRID.centers_m().double()
    for b, n in ((0, 0), (0, 1), (1, 2)):
        camera_T_reference = torch.linalg.inv(rig.reference_T_camera[b, n].double())
        for ix, iy in torch.cartesian_prod(torch.arange(16), torch.arange(12)).tolist():
            expected = False
            margin = math.inf
            for height_m in (0.0, 1.0):
                point = torch.tensor([*centers[ix, iy].tolist(), height_m, 1.0], dtype=torch.double)
                pixel = rig.intrinsics[b, n].double() @ (camera_T_reference @ point)[:3]
                depth_m = pixel[2].item()
                if depth_m <= 0.1:
                    continue
                u, v = (pixel[:2] / depth_m).tolist()
                # Pixel 0 reaches from -0.5 to 0.5.
                inside = (u + 0.5, IMAGE[1] - 0.5 - u, v + 0.5, IMAGE[0] - 0.5 - v)
                expected |= min(inside) >= 0
                margin = min(margin, *map(abs, inside))
            if margin > 1e-3:
                assert visible[b, n, ix, iy].item() == expected, (b, n, ix, iy)


def test_a_camera_sees_ahead_and_not_behind() -> None:
    intrinsics = torch.tensor([[[[20.0, 0, 19.5], [0, 20, 11.5], [0, 0, 1]]]])
    visible = visible_cells(intrinsics, camera_pose(0.0)[None, None], image_size=IMAGE, grid=GRID)[0, 0]
    assert visible[14, 5:7].all()
    assert not visible[:8].any()


def test_feature_pixels_stand_in_the_middle_of_what_they_cover() -> None:
    pixels = feature_pixels((16, 32), 8)
    assert pixels.shape == (2, 4, 3)
    assert pixels[0, 0].tolist() == [3.5, 3.5, 1.0]
    assert pixels[1, 3].tolist() == [27.5, 11.5, 1.0]
    with pytest.raises(ValueError, match=r"16 x 30 px .* stride 8"):
        feature_pixels((16, 30), 8)


def test_depth_bins_are_half_open_and_know_no_nan() -> None:
    bins = DepthBins(1.0, 9.0, 4)
    assert bins.centers_m().tolist() == [2.0, 4.0, 6.0, 8.0]
    assert bins.index(bins.centers_m()).tolist() == [0, 1, 2, 3]
    just_below_max = torch.nextafter(torch.tensor(9.0), torch.tensor(0.0))
    depth_m = torch.tensor([1.0, 2.999, 3.0, just_below_max, 9.0, 0.999, 0.0, -4.0, math.nan, math.inf, -math.inf])
    assert bins.index(depth_m).tolist() == [0, 0, 1, 3, -1, -1, -1, -1, -1, -1, -1]


def test_fine_depth_bins_never_leave_their_range() -> None:
    bins = DepthBins(1.0, 54.0, 118)
    depth_m = torch.linspace(0.9, 54.1, 100_001)
    index = bins.index(depth_m)
    assert index.max() == 117
    inside = index >= 0
    assert ((bins.centers_m()[index[inside]] - depth_m[inside]).abs() <= bins.width_m / 2 + 1e-4).all()


@pytest.mark.parametrize("numbers", [(0.0, 10.0, 4), (5.0, 5.0, 4), (6.0, 5.0, 4), (1.0, 5.0, 1), (math.nan, 5.0, 4)])
def test_impossible_depth_bins_are_refused(numbers: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match="depth bins: expected 0 < min_m < max_m"):
        DepthBins(*numbers)
