"""LayerNorm by a kernel promises to be torch's, by Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.kernels import devices
from fusion.kernels.norms import SameDtypeNorm, add_norm, kept_relu_norm

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")
from fusion.kernels import triton_norm
from fusion.kernels.triton_norm import TritonLayerNorm


def both(x: Tensor, norm: nn.LayerNorm) -> list[list[Tensor]]:
    """Of the kernel and of torch: the result and the gradients of x, weight and bias, in float32."""
    results = []
    for kernel in (True, False):
        leaves = [t.detach().clone().requires_grad_() for t in (x, norm.weight, norm.bias)]
        if kernel:
            y = TritonLayerNorm.apply(*leaves, norm.eps)  # type: ignore[no-untyped-call]
        else:
            y = F.layer_norm(leaves[0].float(), norm.normalized_shape, leaves[1], leaves[2], norm.eps)
        assert y.dtype == (x.dtype if kernel else torch.float32)
        upward = torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype)
        results.append([y.detach().float(), *(g.float() for g in torch.autograd.grad(y, leaves, upward))])
    return results


def random_norm(channels: int) -> SameDtypeNorm:
    draw, norm = torch.Generator().manual_seed(0), SameDtypeNorm(channels)
    nn.init.normal_(norm.weight, generator=draw)
    nn.init.normal_(norm.bias, generator=draw)
    return norm


@pytest.mark.parametrize("shape", [(70, 64), (2, 5, 6, 24), (1, 1), (3, 256), (0, 8)])
def test_it_is_torchs_and_so_are_the_gradients(shape: tuple[int, ...]) -> None:
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 2
    for got, expected in zip(*both(x, random_norm(shape[-1])), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_program_goes_through_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_norm, "_PROGRAMS", 2)
    monkeypatch.setattr(triton_norm, "_NUMBERS", 128)
    test_it_is_torchs_and_so_are_the_gradients((70, 24))


def test_bfloat16_stays_bfloat16_and_is_summed_in_float32() -> None:
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    for got, expected in zip(*both(x, random_norm(32)), strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


def test_rows_that_do_not_follow_each_other_in_memory() -> None:
    x = torch.randn(2, 16, 5, 7, generator=torch.Generator().manual_seed(1)).permute(0, 2, 3, 1)
    for got, expected in zip(*both(x, random_norm(16)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_gpu_takes_it_for_narrow_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "in_blocks", lambda _: False)
    monkeypatch.setattr(devices, "in_triton", lambda _: True)
    for channels, taken in ((32, True), (512, False)):
        x, norm = torch.randn(4, channels), random_norm(channels)
        got = norm(x)
        assert ("TritonLayerNorm" in got.grad_fn.name()) == taken
        torch.testing.assert_close(got, nn.LayerNorm.forward(norm, x), rtol=1e-4, atol=1e-4)


def test_with_rows_that_are_kept_a_relu_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    x, norm = torch.randn(2, 30, 24, generator=torch.Generator().manual_seed(1)), random_norm(24)
    kept = torch.rand(2, 30, generator=torch.Generator().manual_seed(2)) < 0.6
    results = []
    for by_kernel in (True, False):
        monkeypatch.setattr(devices, "in_triton", lambda _, by_kernel=by_kernel: by_kernel)
        norm.zero_grad()
        leaf = x.clone().requires_grad_()
        y = kept_relu_norm(norm, leaf, kept)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        results.append([y.detach(), leaf.grad, norm.weight.grad, norm.bias.grad])
    for got, expected in zip(*results, strict=True):
        assert got is not None
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert not results[0][0][~kept].any()  # type: ignore[index]


@pytest.mark.parametrize("shape", [(2, 35, 24), (3, 384), (0, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("used", ["both", "sum", "norm"])
def test_a_residual_stream_is_added_to_and_normalised_as_by_torch(
    shape: tuple[int, ...], dtype: torch.dtype, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`used`: which of the two results is, on which the gradients depend; the last block's sum is used by nobody."""
    draw, norm = torch.Generator().manual_seed(1), random_norm(shape[-1])
    stream, delta = torch.randn(shape, generator=draw), torch.randn(shape, generator=draw).to(dtype)
    results = []
    for by_kernel in (True, False):
        monkeypatch.setattr(devices, "in_triton", lambda _, by_kernel=by_kernel: by_kernel)
        norm.zero_grad()
        leaves = stream.clone().requires_grad_(), delta.clone().requires_grad_()
        total, normed = add_norm(norm, *leaves)
        assert ("TritonAddNorm" in total.grad_fn.name()) == by_kernel  # type: ignore[union-attr]
        loss = torch.zeros(())
        for name, result in (("sum", total), ("norm", normed)):
            if used in (name, "both"):
                loss = loss + (result.float() * torch.linspace(-1, 1, result.numel()).view_as(result)).sum()
        loss.backward()
        gradients = [None if p.grad is None else p.grad.clone() for p in (*leaves, norm.weight, norm.bias)]
        results.append([total.detach(), normed.detach(), *gradients])
    for got, expected in zip(*results, strict=True):
        assert (got is None) == (expected is None)
        if got is not None and expected is not None:
            assert got.dtype == expected.dtype
            rtol = 1e-4 if got.dtype == torch.float32 else 2e-2
            torch.testing.assert_close(got, expected, rtol=rtol, atol=1e-4)


def test_the_norm_of_a_stream_is_as_narrow_as_autocast_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "in_triton", lambda _: True)
    norm, stream = random_norm(24), torch.randn(7, 24)
    with torch.autocast("cpu", torch.bfloat16):
        for delta in (None, torch.ones(7, 24, dtype=torch.bfloat16)):
            total, normed = add_norm(norm, stream, delta)
            assert (total.dtype, normed.dtype) == (torch.float32, torch.bfloat16)
            expected = F.layer_norm(total, (24,), norm.weight, norm.bias, norm.eps)
            torch.testing.assert_close(normed.float(), expected.float(), rtol=1e-2, atol=1e-2)
    assert torch.equal(add_norm(norm, stream, None)[0], stream)
