"""The losses, as plain functions of logits and targets.

Letters: B samples, K classes, M boxes, N cameras, D depth bins, h and w feature pixels, X and Y cells.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from bev.heads import DetectionLogits, at_cells
from bev.lift import DepthBins
from bev.targets import DetectionTargets


def focal_loss(
    logits: Tensor, target: Tensor, use: Tensor | None = None, *, alpha: float = 2.0, beta: float = 4.0
) -> Tensor:
    """Penalty-reduced focal loss of CornerNet (Law and Deng, ECCV 2018): [B, K, X, Y] twice -> scalar per true centre.

    `use` [B] bool leaves samples out.
    """
    logits = logits.float()
    probability = logits.sigmoid()
    center = (target >= 0.9999).float()
    positive = center * (1 - probability) ** alpha * F.logsigmoid(logits)
    negative = (1 - center) * (1 - target) ** beta * probability**alpha * F.logsigmoid(-logits)
    if use is not None:
        weight = use.float()[:, None, None, None]
        positive, negative, center = positive * weight, negative * weight, center * weight
    return -(positive.sum() + negative.sum()) / center.sum().clamp(min=1.0)


def regression_losses(logits: DetectionLogits, targets: DetectionTargets) -> dict[str, Tensor]:
    """L1 at the cells of true centres by part, and cross-entropy of the attributes; each a mean over known values."""
    found = at_cells(logits.regression.float(), targets.cell)  # [B, M, 10]
    error = (found - targets.regression).abs() * targets.known
    count = targets.known.sum((0, 1)).clamp(min=1.0)
    per_channel = error.sum((0, 1)) / count
    attribute_logits = at_cells(logits.attributes.float(), targets.cell).flatten(0, 1)
    attribute = targets.attribute.flatten()
    entropy = F.cross_entropy(attribute_logits, attribute, ignore_index=-1, reduction="none")
    return {
        "offset": per_channel[0:2].sum(),
        "height": per_channel[2],
        "size": per_channel[3:6].sum(),
        "yaw": per_channel[6:8].sum(),
        "velocity": per_channel[8:10].sum(),
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
