"""Distillation: with all sensors the model knows more; what it then says teaches what it says with some of them.

Letters: B samples, K classes, X and Y cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_CENTER = 0.9999  # what `focal_loss` takes for a centre


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, use: Tensor | None = None, *, gamma: float = 2.0
) -> Tensor:
    """Quality focal loss towards the teacher's heatmap, where teacher or truth says something: -> scalar per true centre.

    With the teacher's probability y as the soft label and s the student's: sum of w |y - s|^gamma BCE(s, y) over all cells,
    with w = max(y, truth), over the number of true centres. It is 0 where both agree; open ground, where w is small, is
    left to the focal loss. Quality focal loss: Li et al., "Generalized Focal Loss", NeurIPS 2020; foreground weights by the
    truth's Gaussians as in BEVDistill (Chen et al., ICLR 2023).

    Args:
        student_logits: [B, K, X, Y] heatmap logits of a subset of the sensors.
        teacher_logits: [B, K, X, Y] of all sensors; no gradient reaches them.
        target: [B, K, X, Y] true heatmap, 1 at centres.
        use: [B] bool leaves samples out, such as those whose student saw all that the teacher saw.
        gamma: how much less what nearly agrees counts.
    """
    student, teacher = student_logits.float(), teacher_logits.detach().float().sigmoid()
    entropy = F.binary_cross_entropy_with_logits(student, teacher, reduction="none")
    distance = (teacher - student.sigmoid()).abs()
    loss = torch.maximum(teacher, target) * distance**gamma * entropy
    center = (target >= _CENTER).float()
    if use is not None:
        weight = use.float()[:, None, None, None]
        loss, center = loss * weight, center * weight
    return loss.sum() / center.sum().clamp(min=1.0)
