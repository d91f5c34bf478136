"""The losses, as plain functions of logits and targets.

Letters: B samples, K classes, M boxes, N cameras, D depth bins, h and w feature pixels, X and Y cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..lift.table import DepthBins
from .head import (
    AXIS,
    HEADING,
    HEIGHT,
    OFFSET,
    SIZE,
    VELOCITY,
    VELOCITY_UNIT_MPS,
    DetectionLogits,
    at_cells,
)
from .targets import DetectionTargets

_SLOW_MPS = 1.0  # below this error the loss of a velocity is quadratic
_HEADING_SHARPNESS = 4.0  # so that predictions of about one, as all others are, can be sure


def focal_loss(
    logits: Tensor,
    target: Tensor,
    use: Tensor | None = None,
    *,
    alpha: float = 2.0,
    beta: float = 4.0,
    balance: float = 0.0,
) -> Tensor:
    """Penalty-reduced focal loss of CornerNet (Law and Deng, ECCV 2018): [B, K, X, Y] twice -> scalar per true centre.

    `use` [B] bool leaves samples out. With n_k centres of class k among them, what is said of class k weighs n_k^-balance, on
    the mean of all centres 1: with 0 every object counts the same, with 1 every class.
    """
    logits = logits.float()
    probability = logits.sigmoid()
    center = (target >= 0.9999).float()
    positive = center * (1 - probability) ** alpha * F.logsigmoid(logits)
    negative = (1 - center) * (1 - target) ** beta * probability**alpha * F.logsigmoid(-logits)
    if use is not None:
        weight = use.float()[:, None, None, None]
        positive, negative, center = positive * weight, negative * weight, center * weight
    of_class = (positive + negative).sum((0, 2, 3))  # [K]
    count = center.sum((0, 2, 3))
    of_class_weight = count.clamp(min=1.0) ** -balance
    return -(of_class_weight * of_class).sum() / (of_class_weight * count).sum().clamp(min=1.0)


def regression_losses(logits: DetectionLogits, targets: DetectionTargets) -> dict[str, Tensor]:
    """At the cells of true centres, by part: L1, of velocities Huber's loss, cross-entropy of headings and attributes.

    Each is a mean over what is known.
    """
    found = logits.regressed(targets.cell, targets.label)  # [B, M, 12]
    error = (found - targets.regression).abs()
    # Most things stand still. Under L1 they hold the head to "nothing moves" until it can tell them from what does, for half of a
    # short training or for good; under Huber's loss a small error costs little.
    slow = error[..., VELOCITY]
    huber = F.smooth_l1_loss(slow, torch.zeros_like(slow), beta=_SLOW_MPS / VELOCITY_UNIT_MPS, reduction="none")
    error = torch.cat([error[..., : VELOCITY.start], huber], dim=-1) * targets.known
    count = targets.known.sum((0, 1)).clamp(min=1.0)
    per_channel = error.sum((0, 1)) / count
    # The one true direction against its opposite: a sigmoid of how far the prediction points that way.
    ahead = (found[..., HEADING] * targets.regression[..., HEADING]).sum(-1)
    turned = (F.softplus(-_HEADING_SHARPNESS * ahead) * targets.known[..., HEADING.start]).sum() / count[HEADING.start]
    attribute_logits = at_cells(logits.attributes.float(), targets.cell).flatten(0, 1)
    attribute = targets.attribute.flatten()
    entropy = F.cross_entropy(attribute_logits, attribute, ignore_index=-1, reduction="none")
    return {
        "offset": per_channel[OFFSET].sum(),
        "height": per_channel[HEIGHT].sum(),
        "size": per_channel[SIZE].sum(),
        "yaw": per_channel[AXIS].sum(),
        "heading": turned,
        "velocity": per_channel[VELOCITY].sum(),
        "attribute": entropy.sum() / (attribute >= 0).sum().clamp(min=1),
    }


def depth_loss(depth_logits: Tensor, depth_m: Tensor, bins: DepthBins, use: Tensor) -> Tensor:
    """Cross-entropy of the depth bins [B, N, h, w, D] where LiDAR gave a depth [B, N, h, w] (0 or NaN: none).

    Depth supervision as in BEVDepth (Li et al., AAAI 2023). `use` [B, N] bool: cameras that took part in this step.
    """
    index = bins.index(depth_m)
    known = ((index >= 0) & use[..., None, None]).float()
    entropy = F.cross_entropy(depth_logits.float().flatten(0, 3), index.clamp(min=0).flatten(), reduction="none")
    return (entropy * known.flatten()).sum() / known.sum().clamp(min=1.0)
