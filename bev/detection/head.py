"""Detection from the grid, after CenterPoint (Yin et al., CVPR 2021): a heatmap per class and, at each cell, one box.

Letters: B samples, C channels, K classes, A attributes, T top-scoring boxes, X and Y cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..grid import BEVGrid
from ..layers import ConvBlock
from .boxes import Boxes
from .suppression import circle_nms

# Regressed at the cell of the centre: offset in the cell (cells), height of the centre (m), log size (w, l, h in m), the axis
# along which the box lies (sin and cos of twice the yaw), which way along it (sin and cos of the yaw, of any length: on which
# side of the axis they lie counts alone), velocity (in units of VELOCITY_UNIT_MPS). Where front and back look alike, sin and
# cos of the yaw average out to nothing; the axis does not. Of what stands in one cell, place and size are told once, which way it
# looks and moves for each class: the same shift of points from sweep to sweep is a walker, or noise on the side of a bus.
OFFSET, HEIGHT, SIZE, AXIS, HEADING, VELOCITY = (
    slice(0, 2), slice(2, 3), slice(3, 6), slice(6, 8), slice(8, 10), slice(10, 12)
)  # fmt: skip
REGRESSION_CHANNELS = 12  # of a box
MOTION = slice(AXIS.start, VELOCITY.stop)
# Speeds in m/s are ten times as large as the other values, and short trainings never got there: they said "stands still".
VELOCITY_UNIT_MPS = 5.0
_PRIOR = (
    0.05  # start value of every heatmap cell, so that the focal loss does not begin with a flood of false positives
)


@dataclass(frozen=True)
class DetectionLogits:
    """What the head says of every cell."""

    heatmap: Tensor  # [B, K, X, Y] logits
    regression: Tensor  # [B, 6 + 6 K, X, Y]: offset, height and size, then `MOTION` of class 0, of class 1 ...
    attributes: Tensor  # [B, A, X, Y] logits

    def chunk(self, count: int) -> tuple[DetectionLogits, ...]:
        """`count` equal parts of the batch."""
        parts = (t.chunk(count) for t in (self.heatmap, self.regression, self.attributes))
        return tuple(DetectionLogits(*part) for part in zip(*parts, strict=True))

    def regressed(self, cell: Tensor, label: Tensor) -> Tensor:
        """[B, T, 12] float32 of boxes of the classes `label` at the flat cells, both [B, T]."""
        values = at_cells(self.regression.float(), cell)
        size = MOTION.stop - MOTION.start
        channel = MOTION.start + size * label[..., None] + torch.arange(size, device=label.device)
        return torch.cat([values[..., : MOTION.start], values.gather(2, channel)], dim=2)


class DetectionHead(nn.Module):
    """[B, C, X, Y] features -> `DetectionLogits`. Which way a box looks and moves has a 3 x 3 branch of its own.

    There all classes have common weights, to which each adds its own: what is rare learns from the rest. The branch also sees
    what sensors measure of motion by themselves, `motion_channels` of it; in training without any these weights stay 0.
    """

    def __init__(self, channels: int, num_classes: int, num_attributes: int, motion_channels: int = 0) -> None:
        super().__init__()
        self.motion_channels, seen = motion_channels, channels + motion_channels
        self.shared = ConvBlock(channels, channels)
        self.heatmap = nn.Sequential(ConvBlock(channels, channels, kernel=1), nn.Conv2d(channels, num_classes, 1))
        self.boxes = nn.Sequential(
            ConvBlock(channels, channels, kernel=1), nn.Conv2d(channels, SIZE.stop + num_attributes, 1)
        )
        self.motion = ConvBlock(seen, channels)
        self.motion_of_all = nn.Conv2d(seen, MOTION.stop - MOTION.start, 1)
        self.motion_of_class = nn.Conv2d(seen, (MOTION.stop - MOTION.start) * num_classes, 1)
        nn.init.zeros_(self.motion_of_class.weight)
        nn.init.zeros_(_bias(self.motion_of_class))
        for layer in (self.motion[0], self.motion_of_all):
            assert isinstance(layer, nn.Conv2d)
            nn.init.zeros_(layer.weight[:, channels:])
        _start_at_prior(self.heatmap[-1])

    def forward(self, features: Tensor, motion: Tensor | None = None) -> DetectionLogits:
        """`motion` [B, `motion_channels`, X, Y], 0 where nothing is measured; None: nowhere."""
        shared = self.shared(features)
        boxes = self.boxes(shared)
        return DetectionLogits(
            heatmap=self.heatmap(shared),
            regression=torch.cat([boxes[:, : SIZE.stop], self._motion(shared, motion)], dim=1),
            attributes=boxes[:, SIZE.stop :],
        )

    def _motion(self, shared: Tensor, measured: Tensor | None) -> Tensor:
        if measured is None:
            measured = shared.new_zeros(shared.shape[0], self.motion_channels, *shared.shape[2:])
        measured = measured.to(shared.dtype)
        if shared.device.type == "cuda":  # where what lies in one order is joined in wide pieces
            measured = measured.contiguous(memory_format=torch.channels_last)
        learned = self.motion(torch.cat([shared, measured], dim=1))
        every, each = self.motion_of_all, self.motion_of_class
        classes = each.out_channels // every.out_channels
        weight = each.weight + every.weight.repeat(classes, 1, 1, 1)
        bias = _bias(each) + _bias(every).repeat(classes)
        return F.conv2d(torch.cat([learned, measured], dim=1), weight, bias)


class HeatmapHead(nn.Sequential):
    """The auxiliary head of one modality: [B, C, X, Y] -> [B, K, X, Y] heatmap logits. Used in training only."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(ConvBlock(channels, channels, kernel=1), nn.Conv2d(channels, num_classes, 1))
        _start_at_prior(self[-1])


def _start_at_prior(layer: nn.Module) -> None:
    nn.init.constant_(_bias(layer), math.log(_PRIOR / (1 - _PRIOR)))


def _bias(layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    return layer.bias


def decode(
    logits: DetectionLogits,
    grid: BEVGrid,
    *,
    max_boxes: int,
    nms_radius_m: Tensor | None = None,
    allowed: Tensor | None = None,
) -> Boxes:
    """The `max_boxes` highest peaks as `Boxes` [B, T], sorted by score; a suppressed box has score 0.

    A peak is a cell that none of the four beside it exceeds. (Diagonal neighbours may both be peaks: two pedestrians 0.8 m
    apart are, on cells of that length, and the flanks of one object's peak are not.) `nms_radius_m` [K] then suppresses a
    box when a better one of its class lies within that radius (circle NMS; NaN: see `suppression.near`). `allowed` [K, A] bool
    says which attributes a class can have; None: all.
    """
    heatmap = logits.heatmap.float().sigmoid()
    along_x = F.max_pool2d(heatmap, (3, 1), stride=1, padding=(1, 0))
    along_y = F.max_pool2d(heatmap, (1, 3), stride=1, padding=(0, 1))
    peaks = torch.where(heatmap == torch.maximum(along_x, along_y), heatmap, 0.0)
    score, index = peaks.flatten(1).topk(min(max_boxes, peaks[0].numel()), dim=1)
    label, cell = index // grid.num_cells, index % grid.num_cells
    boxes = boxes_at(logits, cell, grid, label=label, score=score, allowed=allowed)
    if nms_radius_m is None:
        return boxes
    kept = circle_nms(boxes, nms_radius_m.to(score.device))
    score, order = torch.where(kept, score, 0.0).sort(dim=1, descending=True, stable=True)
    return Boxes(
        center_m=_gather(boxes.center_m, order),
        size_m=_gather(boxes.size_m, order),
        yaw_rad=boxes.yaw_rad.gather(1, order),
        velocity_mps=_gather(boxes.velocity_mps, order),
        label=boxes.label.gather(1, order),
        attribute=boxes.attribute.gather(1, order),
        score=score,
    )


def boxes_at(
    logits: DetectionLogits,
    cell: Tensor,
    grid: BEVGrid,
    *,
    label: Tensor,
    score: Tensor,
    allowed: Tensor | None = None,
) -> Boxes:
    """The boxes regressed at the flat cells [B, T]; `allowed` as of `decode`."""
    y_cells = grid.shape[1]
    values = logits.regressed(cell, label)
    corner = torch.stack([cell // y_cells, cell % y_cells], dim=-1).float()
    x_m, y_m = ((corner + values[..., OFFSET]) * grid.cell_m).unbind(-1)
    return Boxes(
        center_m=torch.cat(
            [torch.stack([grid.x_min_m + x_m, grid.y_min_m + y_m], dim=-1), values[..., HEIGHT]], dim=-1
        ),
        size_m=values[..., SIZE].clamp(-4.0, 4.0).exp(),
        yaw_rad=_yaw_rad(values[..., AXIS], values[..., HEADING]),
        velocity_mps=values[..., VELOCITY] * VELOCITY_UNIT_MPS,
        label=label,
        attribute=_attribute(at_cells(logits.attributes.float(), cell), label, allowed),
        score=score,
    )


def _yaw_rad(axis: Tensor, heading: Tensor) -> Tensor:
    """[..., 2] twice -> [...] in -pi..pi: of the two directions of the axis the one that is nearer to the heading.

    An axis shorter than 1 is one that the head is unsure of, as of a pedestrian; so much less it counts beside the heading.
    """
    half_rad = torch.atan2(axis[..., 0], axis[..., 1]) / 2
    along = torch.stack([half_rad.sin(), half_rad.cos()], dim=-1)
    sign = torch.where((heading * along).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    sure = axis.norm(dim=-1, keepdim=True).clamp(max=1.0)
    towards = heading / heading.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    sine, cosine = (sure * sign * along + (1 - sure) * towards).unbind(-1)
    return torch.atan2(sine, cosine)


def _attribute(logits: Tensor, label: Tensor, allowed: Tensor | None) -> Tensor:
    """[B, T] the likeliest of the attributes [B, T, A] that the class can have, -1 where it can have none."""
    if logits.shape[-1] == 0:
        return torch.full_like(label, -1)
    if allowed is None:
        return logits.argmax(-1)
    mine = allowed.to(logits.device)[label]
    return torch.where(mine.any(-1), logits.masked_fill(~mine, -math.inf).argmax(-1), -1)


def at_cells(maps: Tensor, cell: Tensor) -> Tensor:
    """[B, C, X, Y] at flat cells [B, T] -> [B, T, C]."""
    flat = maps.flatten(2)
    return flat.gather(2, cell[:, None].expand(-1, flat.shape[1], -1)).transpose(1, 2)


def _gather(values: Tensor, order: Tensor) -> Tensor:
    return values.gather(1, order[..., None].expand_as(values))
