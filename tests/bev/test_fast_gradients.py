"""The passes written by hand promise the gradients of their plain twins, through ties, empty rows and unused entries."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bev import pillars
from bev.grid import BEVGrid
from bev.lift.table import DepthBins, build_lift_table, lift_splat, lift_splat_reference
from bev.pillars import linear_max, linear_max_reference, normalised_linear


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The output, and its gradients for an upstream gradient that differs everywhere."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    output = function(*leaves)
    upstream = torch.linspace(-1, 1, output.numel()).view_as(output)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream)]


@pytest.mark.parametrize("piece", [7, 8192])
def test_linear_max_agrees_with_its_reference(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pillars, "_PIECE", piece)
    torch.manual_seed(0)
    # Whole numbers, whose products and sums are exact in any order: so what ties for one ties for the other. None is 0.
    points, weight = (torch.randint(-4, 5, shape).float() for shape in ((100, 5), (6, 5)))
    bias = torch.randint(-4, 5, (6,)) + 0.5
    rows = torch.randint(0, 9, (100,))
    fast = gradients(lambda p, w, b: linear_max(p, w, b, rows, 12), points, weight, bias)
    plain = gradients(lambda p, w, b: linear_max_reference(p, w, b, rows, 12), points, weight, bias)
    for got, expected in zip(fast, plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_normalised_linear_is_linear_and_layer_norm() -> None:
    torch.manual_seed(0)
    linear, norm = nn.Linear(5, 16, bias=False), nn.LayerNorm(16)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    points = torch.randn(50, 5) * torch.logspace(-3, 2, 50)[:, None]
    scaled, weight, bias = normalised_linear(points, linear, norm)
    torch.testing.assert_close(scaled @ weight.T + bias, norm(linear(points)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("samples", [(1, 1), (2, 2)])
def test_the_lift_learns_as_its_reference(samples: tuple[int, int]) -> None:
    torch.manual_seed(0)
    intrinsics = torch.tensor([[20.0, 0.0, 15.5], [0.0, 20.0, 7.5], [0.0, 0.0, 1.0]]).expand(2, 1, 3, 3)
    forward = torch.tensor([[0.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    bins = DepthBins(1.0, 13.0, 8)  # further than the grid, so that some entries fall nowhere
    table = build_lift_table(
        intrinsics, forward.expand(2, 1, 4, 4), image_size=(16, 32), stride=4, bins=bins,
        grid=BEVGrid(-8.0, 8.0, -8.0, 8.0, 1.0), z_range_m=(-2.0, 4.0), samples=samples,
    )  # fmt: skip
    context, depth = torch.randn(2, 1, 4, 8, 6), torch.rand(2, 1, 4, 8, 8)
    fast = gradients(lambda c, d: lift_splat(c, d, table), context, depth)
    plain = gradients(lambda c, d: lift_splat_reference(c, d, table), context, depth)
    for got, expected in zip(fast, plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
