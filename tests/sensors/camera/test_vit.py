"""The picture network promises one answer by whichever way a device computes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sensors.camera.vit import Mlp, PatchEmbed


def test_patches_by_a_product_of_matrices_are_those_of_the_convolution() -> None:
    embed, images = PatchEmbed(dim=12, patch_px=8), torch.randn(2, 3, 24, 40, requires_grad=True)
    results = []
    for patches in (embed, embed.product):
        tokens = patches(images)
        assert tokens.shape == (2, 12, 3, 5)
        results.append((tokens, *torch.autograd.grad(tokens.square().sum(), (images, *embed.parameters()))))
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_wide_layers_that_are_computed_again_teach_the_same() -> None:
    mlp, tokens = Mlp(8, 32), torch.randn(3, 5, 8, requires_grad=True)
    gradients, kept = [], []
    for answer in (mlp._layers, mlp.kept_narrow):
        loss = answer(tokens).square().sum()
        gradients.append(torch.autograd.grad(loss, (tokens, *mlp.parameters())))
        with kept_sizes() as sizes:
            answer(tokens)
        kept.append(sizes)
    for got, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert max(kept[0]) == 3 * 5 * 32
    assert max(kept[1], default=0) <= 3 * 5 * 8


@contextmanager
def kept_sizes() -> Iterator[list[int]]:
    """How many numbers each tensor has that the backward pass will read."""
    sizes: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield sizes
