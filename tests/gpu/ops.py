"""Every fast op on this device against its plain twin, forward and backward, and how fast it is.

Letters: N cameras, h and w feature pixels, D depth bins, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import robustbev
from bev import motion, pillars
from bev.detection.suppression import greedy_suppression, greedy_suppression_reference
from bev.lift import table as lift_tables
from bev.lift.table import LiftTable, lift_splat, lift_splat_reference
from bev.motion import point_drift, point_velocity
from bev.pillars import PillarEncoder, linear_max, linear_max_reference
from fusion import BEVFeatures, CrossAttentionFusion
from fusion.fusers.cross_attention import placed, placed_by_axes
from fusion.kernels.cells import cell_attention
from fusion.kernels.neighbours import neighbour_attention, neighbour_attention_reference
from fusion.kernels.sums import weighted_sum_reference
from fusion.kernels.tokens import blended_by_triton, blended_tokens
from fusion.nulls import present_mean, trusted_mean
from robustbev import CameraConfig, LidarConfig, ModelConfig
from robustbev.export.example import random_batch
from tests.gpu.measure import device_ms, peak_mib, relative_error, shares, with_gradients

# Relative error that rounding explains: a sum of some hundred float32 values in another order; a bfloat16 has eight bits.
LIMITS = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
Op = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """An op and its twin, with the least that must be moved and computed for `inputs`."""

    fast: Op
    plain: Op
    inputs: tuple[Tensor, ...]
    num_bytes: float
    operations: float
    equal_on: tuple[Tensor, ...] | None = None  # smaller input to compare on, where the twin loops over cells


def check(case: Case, device: torch.device) -> dict[str, Any]:
    """Errors of output and gradients, milliseconds of both ways, memory, and shares of what the device can do.

    Raises:
        ValueError: the op differs from its twin by more than rounding.
    """
    dtype, compared = case.inputs[0].dtype, case.equal_on or case.inputs
    got, expected = with_gradients(case.fast, *compared), with_gradients(case.plain, *compared)
    errors = [relative_error(mine, theirs) for mine, theirs in zip(got, expected, strict=True)]
    if not max(errors) <= LIMITS[dtype]:
        raise ValueError(
            f"expected errors of output and gradients of at most {LIMITS[dtype]:g} in {dtype}, got {errors}"
        )
    figures: dict[str, Any] = {"errors": errors}
    for name, op in [("", case.fast), *([] if case.equal_on else [("plain_", case.plain)])]:
        with torch.no_grad():
            figures[f"{name}forward_ms"] = device_ms(lambda op=op: op(*case.inputs), device)  # type: ignore[misc]
        figures[f"{name}both_ways_ms"] = device_ms(lambda op=op: with_gradients(op, *case.inputs), device)  # type: ignore[misc]
        figures[f"{name}both_ways_peak_mib"] = peak_mib(lambda op=op: with_gradients(op, *case.inputs), device)  # type: ignore[misc]
    return figures | shares(figures["forward_ms"], case.num_bytes, case.operations, device, dtype)


def lift_case(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Case:
    """The lift of one sample of six cameras."""
    table, context, depth = lift_inputs(config, device)
    channels, entries = context.shape[-1], int(table.offsets[-1])
    cells = table.visible.shape[0] * config.grid.bev().num_cells
    inside = replace(table, entry=table.entry[:entries])  # the twin would add up what falls nowhere, too
    return Case(
        lambda c, d: lift_splat(c, d, table),
        lambda c, d: lift_splat_reference(c, d, inside),
        (context.to(dtype), depth.to(dtype)),
        num_bytes=4 * (entries + table.offsets.numel() + context.numel() + depth.numel() + cells * channels),
        operations=2 * entries * channels,
    )


def lift_peer(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    """BEVPoolv2's method on the same inputs, equal to ours.

    Raises:
        ValueError: another sum.
    """
    from tests.gpu.peers import bevpool_v2  # needs Triton

    table, context, depth = lift_inputs(config, device)
    expected = lift_splat(context, depth, table).permute(0, 2, 3, 1).flatten(0, 2)
    error = relative_error(bevpool_v2(context, depth, table), expected)
    if not error <= LIMITS[torch.float32]:
        raise ValueError(f"expected our sums, got an error of {error:.2e}")
    return {"forward_ms": device_ms(lambda: bevpool_v2(context, depth, table), device), "error": error}


def lift_inputs(config: ModelConfig, device: torch.device) -> tuple[LiftTable, Tensor, Tensor]:
    """Table, context [1, N, h, w, C] and depth [1, N, h, w, D]."""
    model = robustbev.build(config).to(device)
    cameras = random_batch(model, {"camera": 6, "lidar": 1, "radar": 1}, batch_size=1).to(device).part("camera")
    assert cameras is not None
    table = model.encoder("camera").table(cameras.intrinsics, cameras.reference_T_camera, cameras.present)
    camera = config.of_kind(CameraConfig)["camera"]
    height, width = (side // camera.feature_stride_px for side in camera.image_size)
    context = torch.randn(1, 6, height, width, camera.context_channels, device=device)
    return table, context, torch.randn(1, 6, height, width, camera.depth_bins.count, device=device).softmax(-1)


def lift_table(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    """How long the table of one sample of six cameras takes on the device, equal to a CPU's.

    Raises:
        ValueError: another number of entries than rounding at the edges of cells explains.
    """
    model = robustbev.build(config)
    cameras, encoder = (
        random_batch(model, {"camera": 6, "lidar": 1, "radar": 1}, batch_size=1).part("camera"),
        model.encoder("camera"),
    )
    assert encoder is not None
    assert cameras is not None
    given = cameras.intrinsics, cameras.reference_T_camera, cameras.present
    moved = tuple(tensor.to(device) for tensor in given)
    table = encoder.table(*moved)
    entries, expected = int(table.offsets[-1]), int(encoder.table(*given).offsets[-1])
    if not abs(entries - expected) <= 1e-4 * expected:
        raise ValueError(f"expected a table of {expected} entries, as on the CPU, got {entries}")
    fullest = int((table.offsets[1:] - table.offsets[:-1]).max())
    return {
        "forward_ms": device_ms(lambda: encoder.table(*moved), device),
        "entries": entries,
        "of_the_fullest_cell": fullest,
    }


def suppression(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    """Greedy suppression of one sample's boxes on the device against the loop over boxes.

    Raises:
        ValueError: another box stays.
    """
    count = config.detection.max_boxes
    draw = torch.Generator().manual_seed(0)
    close = (torch.rand(1, count, count, generator=draw) < 3 / count).to(device)
    if not torch.equal(greedy_suppression(close), greedy_suppression_reference(close)):
        raise ValueError("expected those boxes to stay that a loop over them leaves")
    return {
        "forward_ms": device_ms(lambda: greedy_suppression(close), device),
        "plain_forward_ms": device_ms(lambda: greedy_suppression_reference(close), device),
    }


@contextmanager
def in_plain_torch() -> Iterator[None]:
    """The plain twins of what places points and cameras, on whichever device."""
    with ExitStack() as stack:
        for module in (motion, pillars, lift_tables):
            stack.enter_context(patch.object(module, "in_triton", lambda _: False))
        yield


def _both(op: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, Tensor, dict[str, float]]:
    """What an op gives, what its twin gives, and milliseconds of both."""
    got, times = op(), {"forward_ms": device_ms(op, device)}
    with in_plain_torch():
        return got, op(), times | {"plain_forward_ms": device_ms(op, device)}


@torch.no_grad()
def points(config: ModelConfig, device: torch.device, count: int) -> dict[str, Any]:
    """Pillars and drift of a LiDAR's points, a tenth of them padding, against plain torch.

    Raises:
        ValueError: they differ by more than rounding, or in more than one cell of 10,000.
    """
    grid, lidar = config.grid.bev(), config.of_kind(LidarConfig)["lidar"]
    encoder = PillarEncoder((0.02, 0.02, 0.5, 1.0, 5.0), lidar.pillar_channels, grid, (-3.0, 5.0)).to(device)
    draw = torch.Generator().manual_seed(0)
    given = torch.randn(1, count, 5, generator=draw) * torch.tensor(
        [0.4 * grid.x_max_m, 0.4 * grid.y_max_m, 1.0, 1.0, 0.0]
    )
    given[..., 4] = (
        torch.randint(0, 10, (1, count), generator=draw) / 16
    )  # ages of ten sweeps, of which no variance lies at the least
    given = given.to(device)
    used = torch.full((1,), count * 9 // 10, device=device)
    figures: dict[str, Any] = {}
    for name, op in (
        ("pillars", lambda: encoder(given, used)[0]),
        ("drift", lambda: point_drift(given, given[..., 4], used, grid, (-3.0, 5.0))),
        ("velocity", lambda: point_velocity(given, given[..., 3:5], used, grid, (-3.0, 5.0))),
    ):
        got, expected, times = _both(op, device)
        apart = 1 - float(((got - expected).abs() <= 1e-3).float().mean())
        if not apart <= 1e-4:
            raise ValueError(
                f"{name}: expected what plain torch gives, got another number in {apart:.2%} of all places"
            )
        figures |= {f"{name}_{key}": value for key, value in (times | {"apart": apart}).items()}
    return figures


@torch.no_grad()
def geometry(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    """The cells that six cameras see, in the table of the lift, and rays of their tokens, against plain torch.

    Raises:
        ValueError: they differ by more than rounding at the edges of pictures.
    """
    model = robustbev.build(config)
    cameras = random_batch(model, {"camera": 6, "lidar": 1, "radar": 1}, batch_size=1).to(device).part("camera")
    encoder = model.to(device).encoder("camera")
    assert cameras is not None
    rig = cameras.intrinsics, cameras.reference_T_camera
    figures: dict[str, Any] = {}
    for name, op in (
        ("table", lambda: encoder.table(*rig, cameras.present).visible.float()),
        ("rays", lambda: encoder.rays(*rig)),
    ):
        got, expected, times = _both(op, device)
        apart = 1 - float(((got - expected).abs() <= 1e-5).float().mean())
        if not apart <= 1e-4:
            raise ValueError(
                f"{name}: expected what plain torch gives, got another number in {apart:.2%} of all places"
            )
        figures |= {f"{name}_{key}": value for key, value in (times | {"apart": apart}).items()}
    return figures


def pillars_case(config: ModelConfig, device: torch.device, points: int, *, crowded: bool) -> Case:
    """Points scattered over the fine grid of the LiDAR encoder; crowded: most of them near the vehicle, as a LiDAR's are."""
    rows_count, channels, columns = (
        4 * config.grid.bev().num_cells,
        config.of_kind(LidarConfig)["lidar"].pillar_channels,
        10,
    )
    place = torch.rand(points, device=device) ** (4 if crowded else 1)
    rows = (place * rows_count).long().clamp(max=rows_count - 1)
    inputs = (
        torch.randn(points, columns, device=device),
        torch.randn(channels, columns, device=device) / columns**0.5,
        torch.randn(channels, device=device),
    )
    return Case(
        lambda x, w, b: linear_max(x, w, b, rows, rows_count),
        lambda x, w, b: linear_max_reference(x, w, b, rows, rows_count),
        inputs,
        num_bytes=4 * (points * columns + rows_count * channels) + 8 * points,
        operations=2 * points * columns * channels,
    )


def attention_case(config: ModelConfig, device: torch.device, dtype: torch.dtype, neighbourhood: int) -> Case:
    """Attention over three modalities and the cells around, some tokens unseen."""
    heads, channels, modalities = 8, config.channels, 3

    def tokens(x: int, y: int) -> tuple[Tensor, ...]:
        draw = torch.Generator(device).manual_seed(0)
        query, key, value = (
            torch.randn(*lead, 1, x, y, heads, channels // heads, generator=draw, device=device)
            for lead in ((), (modalities,), (modalities,))
        )
        return (
            query.to(dtype),
            key.to(dtype),
            value.to(dtype),
            torch.rand(modalities, 1, x, y, generator=draw, device=device),
        )

    cells = config.grid.bev().num_cells
    return Case(
        lambda q, k, v, seen: neighbour_attention(q, k, v, seen > 0.2, neighbourhood),
        lambda q, k, v, seen: neighbour_attention_reference(q, k, v, seen > 0.2, neighbourhood),
        tokens(*config.grid.bev().shape),
        num_bytes=dtype.itemsize * cells * channels * (2 + 2 * modalities),
        operations=4 * cells * channels * modalities * neighbourhood**2,
        equal_on=tokens(12, 10),
    )


def cell_attention_case(config: ModelConfig, device: torch.device) -> Case:
    """Attention of a cell to its own tokens, whose keys and values are never formed."""
    heads, channels, modalities = 8, config.channels, 3
    key_value = nn.Linear(channels, 2 * channels).to(device).requires_grad_(False)

    def tokens(x: int, y: int) -> tuple[Tensor, ...]:
        draw = torch.Generator(device).manual_seed(0)
        query = torch.randn(1, x, y, heads, channels // heads, generator=draw, device=device)
        token = torch.randn(modalities, 1, x, y, channels, generator=draw, device=device)
        return query, token, torch.rand(modalities, 1, x, y, generator=draw, device=device)

    def plain(query: Tensor, tokens: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        key, value = (part.unflatten(-1, (heads, -1)) for part in key_value(tokens).chunk(2, -1))
        return neighbour_attention_reference(query, key, value, seen > 0.2, 1)

    cells = config.grid.bev().num_cells
    return Case(
        lambda q, t, seen: cell_attention(q, t, seen > 0.2, key_value),
        plain,
        tokens(*config.grid.bev().shape),
        num_bytes=4 * cells * channels * (2 + modalities),
        operations=4 * cells * channels * (channels + modalities * heads),
        equal_on=tokens(12, 10),
    )


def tokens_case(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Case:
    """Three modalities' grids, as encoders leave them in memory, blended with what stands for their absence."""
    x, y = config.grid.bev().shape
    channels, modalities = config.channels, 3
    draw = torch.Generator(device).manual_seed(0)
    coverage = torch.rand(modalities, 1, x, y, generator=draw, device=device)
    coverage = (2 * coverage - 0.5).clamp(0, 1)  # a quarter of each sees nothing
    grids = [torch.randn(1, channels, x, y, generator=draw, device=device).to(dtype) for _ in range(modalities)]
    nulls = [torch.randn(channels, generator=draw, device=device) for _ in range(modalities)]

    def fast(*inputs: Tensor) -> Tensor:
        way = blended_by_triton if device.type == "cuda" else blended_tokens
        return way(inputs[:modalities], coverage.unbind(), inputs[modalities:], (1, x, y), dtype)[0]

    def plain(*inputs: Tensor) -> Tensor:
        seen = [
            torch.where(cover[:, None] > 0, grid, 0.0)
            for cover, grid in zip(coverage, inputs[:modalities], strict=True)
        ]
        return blended_tokens(seen, coverage.unbind(), inputs[modalities:], (1, x, y), dtype)[0]

    last = [grid.to(memory_format=torch.channels_last) for grid in grids]
    return Case(
        fast,
        plain,
        (*last, *nulls),
        num_bytes=2 * dtype.itemsize * modalities * x * y * channels,
        operations=3 * modalities * x * y * channels,
    )


def mean_case(config: ModelConfig, device: torch.device, dtype: torch.dtype, *, trusted: bool) -> Case:
    """The mean of three modalities' tokens, and something added; trusted: by their shares of the attention."""
    x, y = config.grid.bev().shape
    channels, modalities = config.channels, 3
    draw = torch.Generator(device).manual_seed(0)
    coverage = (torch.rand(modalities, 1, x, y, generator=draw, device=device) > 0.2).float()
    share = torch.rand(1, modalities, x, y, generator=draw, device=device).softmax(1)
    tokens = torch.randn(modalities, 1, x, y, channels, generator=draw, device=device).to(dtype)
    plus = torch.randn(1, x, y, channels, generator=draw, device=device).to(dtype)

    def fast(tokens: Tensor, plus: Tensor, *share: Tensor) -> Tensor:
        return trusted_mean(tokens, coverage, share[0], plus) if share else present_mean(tokens, coverage, plus)

    def plain(tokens: Tensor, plus: Tensor, *share: Tensor) -> Tensor:
        weight = coverage * share[0].transpose(0, 1) if share else coverage
        weight = weight / weight.sum(0).clamp(min=1e-6)
        return weighted_sum_reference(tokens, weight) + plus

    return Case(
        fast,
        plain,
        (tokens, plus, *[share] * trusted),
        num_bytes=dtype.itemsize * (modalities + 2) * x * y * channels,
        operations=2 * modalities * x * y * channels,
    )


def place_case(config: ModelConfig, device: torch.device) -> Case:
    """The place of each cell in the grid, projected, plus a query."""
    shape, channels = config.grid.bev().shape, config.channels
    position = nn.Linear(channels, channels, bias=False).to(device)
    weight = position._parameters.pop("weight")  # a plain attribute then, so that its gradient is compared, too
    assert weight is not None

    def fast(query: Tensor, weight: Tensor) -> Tensor:
        position.weight = weight
        return placed_by_axes(position, query, shape) if device.type == "cuda" else query + placed(position, shape)

    def plain(query: Tensor, weight: Tensor) -> Tensor:
        position.weight = weight
        return query + placed(position, shape)

    return Case(
        fast,
        plain,
        (torch.randn(channels, device=device), weight.detach()),
        num_bytes=4 * shape[0] * shape[1] * channels,
        operations=2 * (shape[0] + shape[1]) * channels**2,
    )


def fuser_ms(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The whole fuser, 1 x 1 and 3 x 3, forward and both ways."""
    x, y = config.grid.bev().shape
    channels = config.channels
    features = {
        name: BEVFeatures(
            torch.randn(1, channels, x, y, device=device), (torch.rand(1, x, y, device=device) > 0.2).float()
        )
        for name in ("camera", "lidar", "radar")
    }
    figures: dict[str, Any] = {}
    for neighbourhood in (1, 3):
        fuser = CrossAttentionFusion(dict.fromkeys(features, channels), channels, heads=8, neighbourhood=neighbourhood)
        fuser = fuser.to(device)

        def both_ways(fuser: nn.Module = fuser) -> None:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                fused = fuser(features).features
            fused.float().square().mean().backward()

        name = f"{neighbourhood}x{neighbourhood}"
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            figures[f"{name}_forward_ms"] = device_ms(lambda fuser=fuser: fuser(features), device)  # type: ignore[misc]
        figures[f"{name}_both_ways_ms"] = device_ms(both_ways, device)
        figures[f"{name}_both_ways_peak_mib"] = peak_mib(both_ways, device)
    return figures
