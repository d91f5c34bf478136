"""Distillation promises: nothing where student and teacher agree, nothing to the teacher, and silence about open ground."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from training.tasks.detection.distillation import distillation_loss


def logit(*probabilities: float) -> Tensor:
    """[1, 1, 1, Y] logits."""
    return torch.tensor(probabilities).logit().view(1, 1, 1, -1)


def heatmap(*values: float) -> Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


def test_two_cells_by_hand() -> None:
    """A centre that the teacher sees (0.9) and the student half (0.5), and a slope: truth 0.5, teacher 0.2, student 0.6."""
    at_center = 1.0 * 0.4**2 * -(0.9 * math.log(0.5) + 0.1 * math.log(0.5))
    at_slope = 0.5 * 0.4**2 * -(0.2 * math.log(0.6) + 0.8 * math.log(0.4))
    found = distillation_loss(logit(0.5, 0.6), logit(0.9, 0.2), heatmap(1.0, 0.5))
    assert found.item() == pytest.approx(at_center + at_slope, rel=1e-5)


def test_it_is_counted_per_centre_and_a_sample_can_be_left_out() -> None:
    student, teacher, target = logit(0.5, 0.6), logit(0.9, 0.2), heatmap(1.0, 0.5)
    one = distillation_loss(student, teacher, target)
    student, teacher, target = (torch.cat([t, t]) for t in (student, teacher, target))
    torch.testing.assert_close(distillation_loss(student, teacher, target), one)
    torch.testing.assert_close(distillation_loss(student, teacher, target, torch.tensor([True, False])), one)
    assert distillation_loss(student, teacher, target, torch.tensor([False, False])) == 0


def test_agreement_costs_nothing_and_pulls_nowhere() -> None:
    student = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = distillation_loss(student, student.detach().clone(), torch.rand(2, 3, 4, 5))
    loss.backward()
    assert loss == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_the_student_alone_learns_and_towards_the_teacher() -> None:
    student, teacher = logit(0.3, 0.8).requires_grad_(), logit(0.9, 0.2).requires_grad_()
    distillation_loss(student, teacher, heatmap(1.0, 0.5)).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad[..., 0] < 0 < student.grad[..., 1]


def test_open_ground_is_left_to_the_focal_loss() -> None:
    """A false alarm of the student, where neither truth nor teacher says a thing, costs next to nothing here."""
    target = heatmap(1.0, 0.0)
    quiet = distillation_loss(logit(0.5, 0.01), logit(0.9, 0.001), target)
    alarm = distillation_loss(logit(0.5, 0.9), logit(0.9, 0.001), target)
    assert alarm - quiet < 0.003


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite(dtype: torch.dtype) -> None:
    student = torch.tensor([-80.0, 80.0], dtype=dtype).view(1, 1, 1, 2).requires_grad_()
    loss = distillation_loss(student, -student, torch.zeros(1, 1, 1, 2))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
