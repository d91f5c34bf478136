"""The losses promise: what their papers say, a mean over what is known, and silence about what is not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bev.detection.head import DetectionLogits
from bev.detection.losses import depth_loss, focal_loss, regression_losses
from bev.detection.targets import DetectionTargets
from bev.lift.table import DepthBins


def random_heatmaps(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(3, 2, 4, 5, generator=generator)
    target = 0.99 * torch.rand(3, 2, 4, 5, generator=generator)
    target[0, 0, 1, 2] = target[0, 1, 3, 3] = target[1, 0, 0, 0] = 1.0
    return logits, target


def naive_focal(logits: Tensor, target: Tensor, samples: list[int]) -> float:
    total, centers = 0.0, 0
    for b in samples:
        for logit, y in zip(logits[b].flatten().tolist(), target[b].flatten().tolist(), strict=True):
            p = 1 / (1 + math.exp(-logit))
            if y == 1:
                centers += 1
                total -= (1 - p) ** 2 * math.log(p)
            else:
                total -= (1 - y) ** 4 * p**2 * math.log(1 - p)
    return total / max(centers, 1)


def test_focal_loss_agrees_with_a_loop() -> None:
    logits, target = random_heatmaps()
    assert focal_loss(logits, target).item() == pytest.approx(naive_focal(logits, target, [0, 1, 2]), rel=1e-4)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_a_rare_class_weighs_more_by_the_power_of_its_count(balance: float) -> None:
    logits, target = random_heatmaps()
    weight = [2.0**-balance, 1.0]  # two centres of the first class, one of the second
    of_class = [naive_focal(logits[:, k : k + 1], target[:, k : k + 1], [0, 1, 2]) for k in range(2)]
    expected = (weight[0] * 2 * of_class[0] + weight[1] * of_class[1]) / (weight[0] * 2 + weight[1])
    assert focal_loss(logits, target, balance=balance).item() == pytest.approx(expected, rel=1e-4)
    nobody = torch.zeros_like(target)
    assert focal_loss(logits, nobody, balance=balance).item() == pytest.approx(naive_focal(logits, nobody, [0, 1, 2]))


def test_focal_loss_leaves_samples_out() -> None:
    logits, target = random_heatmaps()
    use = torch.tensor([True, False, True])
    expected = naive_focal(logits, target, [0, 2])
    assert focal_loss(logits, target, use).item() == pytest.approx(expected, rel=1e-4)
    assert focal_loss(logits, target, torch.zeros(3, dtype=torch.bool)) == 0


def test_focal_loss_of_an_empty_scene_is_finite() -> None:
    logits, _ = random_heatmaps()
    loss = focal_loss(logits, torch.zeros_like(logits))
    assert loss.item() == pytest.approx(naive_focal(logits, torch.zeros_like(logits), [0, 1, 2]), rel=1e-4)


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_focal_loss_and_its_gradient_stay_finite_where_the_head_is_sure(scale: float) -> None:
    logits, target = random_heatmaps()
    logits = (logits * scale).requires_grad_()
    loss = focal_loss(logits, target)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_focal_loss_is_near_zero_for_the_right_answer() -> None:
    _, target = random_heatmaps()
    assert focal_loss(torch.where(target == 1, 20.0, -20.0), target) < 1e-6


def two_boxes() -> tuple[DetectionLogits, DetectionTargets]:
    """A 2 x 3 grid; boxes in cells 1 and 4, and a row of padding at cell 0, where the head says nonsense."""
    regression = torch.full((1, 12, 2, 3), 1e9)
    regression[0, :, 0, 1] = torch.arange(12.0)
    regression[0, :, 1, 1] = 0.0
    attributes = torch.zeros(1, 2, 2, 3)
    attributes[0, 0, 0, 1] = math.log(3)
    target = torch.zeros(1, 3, 12)
    target[0, 0] = 1.0
    target[0, 1] = torch.tensor([0.5, 0.25, 2.0, 1.0, 2.0, 3.0, 0.5, -0.5, 0.6, -0.8, 7.0, 7.0])
    known = torch.ones(1, 3, 12)
    known[0, 1, 10:] = 0  # the second box's velocity is not known
    known[0, 2] = 0
    return (
        DetectionLogits(torch.zeros(1, 1, 2, 3), regression, attributes),
        DetectionTargets(
            heatmap=torch.zeros(1, 1, 2, 3),
            cell=torch.tensor([[1, 4, 0]]),
            regression=target,
            known=known,
            attribute=torch.tensor([[0, 1, -1]]),
            label=torch.zeros(1, 3, dtype=torch.long),
        ),
    )


def test_regression_losses_by_hand() -> None:
    losses = regression_losses(*two_boxes())
    # First box: |0..11 - 1| = 1 0 1 2 3 4 5 6 7 8 9 10. Second box: the absolute targets. The mean of both, but for velocity.
    assert losses["offset"].item() == pytest.approx((1 + 0.5) / 2 + (0 + 0.25) / 2)
    assert losses["height"].item() == pytest.approx((1 + 2) / 2)
    assert losses["size"].item() == pytest.approx((2 + 1 + 3 + 2 + 4 + 3) / 2)
    assert losses["yaw"].item() == pytest.approx((5 + 0.5 + 6 + 0.5) / 2)
    # A heading that points nowhere is as likely right as wrong; the first box's, (8, 9) along (1, 1), is right beyond doubt.
    assert losses["heading"].item() == pytest.approx(math.log(2) / 2)
    assert losses["velocity"].item() == pytest.approx(9 + 10 - 0.2)  # half a metre a second less each, in units of five
    # Softmax of (log 3, 0) is 3/4 for the first box's attribute, of (0, 0) a half for the second's.
    assert losses["attribute"].item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_gradients_go_to_the_cells_of_known_values_alone() -> None:
    logits, targets = two_boxes()
    logits.regression.requires_grad_()
    sum(regression_losses(logits, targets).values(), start=torch.zeros(())).backward()
    gradient = logits.regression.grad
    assert gradient is not None
    used = gradient[0].flatten(1) != 0
    assert used.any(0).tolist() == [False, True, False, False, True, False]
    assert not used[10:, 4].any(), "a velocity that is not known teaches nothing"


def test_no_boxes_and_no_attributes_lose_nothing() -> None:
    logits, targets = two_boxes()
    none = DetectionTargets(
        targets.heatmap, targets.cell[:, :0], targets.regression[:, :0], targets.known[:, :0],
        targets.attribute[:, :0], targets.label[:, :0],
    )  # fmt: skip
    assert all(value == 0 for value in regression_losses(logits, none).values())
    bare = DetectionLogits(logits.heatmap, logits.regression, logits.attributes[:, :0])
    unnamed = replace(targets, attribute=torch.full((1, 3), -1))
    assert regression_losses(bare, unnamed)["attribute"] == 0


def test_depth_loss_is_the_cross_entropy_of_known_depths() -> None:
    bins = DepthBins(1.0, 5.0, 4)
    logits = torch.randn(1, 2, 2, 2, 4, generator=torch.Generator().manual_seed(0))
    depth_m = torch.tensor([[[[1.5, 0.0], [4.99, math.nan]], [[2.0, 5.0], [9.0, 3.5]]]])
    use = torch.tensor([[True, False]])
    expected = -(logits[0, 0, 0, 0].log_softmax(0)[0] + logits[0, 0, 1, 0].log_softmax(0)[3]) / 2
    torch.testing.assert_close(depth_loss(logits, depth_m, bins, use), expected)
    both = depth_loss(logits, depth_m, bins, torch.ones_like(use))
    expected = (2 * expected - logits[0, 1, 0, 0].log_softmax(0)[1] - logits[0, 1, 1, 1].log_softmax(0)[2]) / 4
    torch.testing.assert_close(both, expected)
    assert depth_loss(logits, torch.zeros_like(depth_m), bins, use) == 0
