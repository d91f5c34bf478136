"""Tokens and means by a GPU's kernels promise what their plain twins give, by Triton's interpreter.

Letters: B samples, C channels, M modalities, X and Y cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from unittest.mock import Mock

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fusion import BEVFeatures, ModalityTokens, nulls
from fusion.fusers.cross_attention import axis_embedding, placed, placed_by_axes
from fusion.kernels import devices
from fusion.kernels.tokens import blended_tokens
from fusion.nulls import present_mean, trusted_mean

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")
from fusion.kernels import triton_means, triton_tokens
from fusion.kernels.triton_means import TritonMean
from fusion.kernels.triton_position import axis_embeddings_by_triton

EXAMPLES = settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.generate])  # to shrink takes minutes
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CHANNELS = st.sampled_from([4, 7, 8, 24, 128, 192])
SIDES = st.integers(1, 7)


def close(got: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    """To a few roundings of `dtype`, relative to the largest number of each."""
    for ours, theirs in zip(got, expected, strict=True):
        scale = max(1e-3, float(theirs.abs().max())) if theirs.numel() else 1.0
        tolerance = max(1e-5, 4 * torch.finfo(dtype).eps)
        torch.testing.assert_close(ours.double() / scale, theirs.double() / scale, rtol=tolerance, atol=tolerance)


def on_a_gpu(yes: bool) -> pytest.MonkeyPatch:
    patch = pytest.MonkeyPatch()
    if yes:
        patch.setattr(devices, "in_triton", lambda _: True)
    return patch


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    result = function(*leaves)
    upward = torch.linspace(-1, 1, result.numel()).view_as(result).to(result.dtype)
    return [result.detach(), *torch.autograd.grad(result, leaves, upward)]


def coverages(generator: torch.Generator, *shape: int) -> Tensor:
    """Nothing, by half and all."""
    return torch.randint(0, 3, shape, generator=generator) / 2


@EXAMPLES
@given(
    st.integers(1, 4), st.integers(0, 3), SIDES, SIDES, CHANNELS, st.sampled_from(DTYPES), st.booleans(), st.booleans()
)
def test_means_are_the_plain_ones_and_so_are_their_gradients(
    m: int, b: int, x: int, y: int, c: int, dtype: torch.dtype, trusted: bool, each: bool
) -> None:
    draw = torch.Generator().manual_seed(m + 10 * x + 100 * y)
    tokens = torch.randn(m, b, x, y, c, generator=draw).to(dtype)
    plus = torch.randn(*(b,) * each, x, y, c, generator=draw).to(dtype)
    share = 0.05 + torch.rand(b, m, x, y, generator=draw)  # of sums near 0 gradients are differences of great numbers
    share *= torch.rand(b, m, x, y, generator=draw) > 0.2
    coverage = coverages(draw, m, b, x, y)

    def mean(tokens: Tensor, plus: Tensor, *share: Tensor) -> Tensor:
        return trusted_mean(tokens, coverage, share[0], plus) if share else present_mean(tokens, coverage, plus)

    inputs = (tokens, plus, *[share] * trusted)
    expected = with_gradients(mean, *(tensor.double() for tensor in inputs))  # in float32 its own gradients are noise
    patch = on_a_gpu(True)
    got = with_gradients(mean, *inputs)
    patch.undo()
    assert [tensor.dtype for tensor in got] == [dtype] * 3 + [torch.float32] * trusted
    close(got, expected, dtype)


def test_a_mean_reads_nothing_of_what_weighs_nothing() -> None:
    draw = torch.Generator().manual_seed(0)
    coverage = coverages(draw, 3, 2, 4, 5)
    coverage[:, 0, 0] = 0
    tokens = torch.randn(3, 2, 4, 5, 8, generator=draw).masked_fill(coverage[..., None] == 0, math.nan)
    share = torch.rand(2, 3, 4, 5, generator=draw)
    clean = tokens.nan_to_num(0.0)
    for trusted in (False, True):

        def mean(tokens: Tensor, *share: Tensor) -> Tensor:
            result: Tensor = TritonMean.apply(tokens, coverage, share[0] if share else None, None)  # type: ignore[no-untyped-call]
            return result

        got, expected = (with_gradients(mean, t, *[share] * trusted) for t in (tokens, clean))
        for ours, theirs in zip(got, expected, strict=True):
            assert torch.equal(ours, theirs)
        assert not got[0][0, 0].any()
        assert not got[1].masked_select(coverage[..., None] == 0).any()


def test_a_mean_keeps_tokens_only_for_the_gradient_of_a_share() -> None:
    tokens, coverage = torch.randn(2, 1, 3, 3, 4, requires_grad=True), torch.ones(2, 1, 3, 3)
    share = torch.rand(1, 2, 3, 3)
    for learns in (False, True):
        mean = TritonMean.apply(tokens, coverage, share.clone().requires_grad_(learns), None)  # type: ignore[no-untyped-call]
        assert any(saved is not None and saved.shape == tokens.shape for saved in mean.grad_fn.saved_tensors) == learns


def outcome(
    module: ModalityTokens, features: dict[str, BEVFeatures | None], by_kernel: bool, autocast: bool
) -> list[Tensor]:
    """Tokens, coverage, and the gradients of grids and parameters."""
    leaves = {name: f.features.detach().clone().requires_grad_() for name, f in features.items() if f is not None}
    given = {name: None if f is None else BEVFeatures(leaves[name], f.coverage) for name, f in features.items()}
    patch = on_a_gpu(by_kernel)
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        tokens, coverage = module(given, (3, 2))
    patch.undo()
    upward = torch.linspace(-1, 1, tokens.numel()).view_as(tokens).to(tokens.dtype)
    wanted = [*leaves.values(), *module.parameters()]
    if not tokens.requires_grad:  # everybody is absent, and nothing is learned of that
        return [tokens, coverage]
    gradients = torch.autograd.grad(tokens, wanted, upward, allow_unused=True, materialize_grads=True)
    return [tokens.detach(), coverage, *gradients]


@EXAMPLES
@given(st.data(), st.integers(1, 4), SIDES, SIDES, CHANNELS, st.sampled_from(["null", "zeros"]))
def test_tokens_are_the_plain_ones_and_so_are_their_gradients(
    data: st.DataObject, m: int, x: int, y: int, c: int, absent: str
) -> None:
    """Of grids of any dtype, in any order in memory, projected or not, some absent; NaN where nothing is covered."""
    torch.manual_seed(m + 10 * x + 100 * y)
    autocast = data.draw(st.booleans())
    names = [f"sensor {i}" for i in range(m)]
    inputs = {name: data.draw(st.sampled_from([c, 5])) for name in names}
    module = ModalityTokens(inputs, c, absent)  # type: ignore[arg-type]
    samples = data.draw(st.integers(1, 3))
    features: dict[str, BEVFeatures | None] = {}
    for name in names:
        features[name] = None
        if data.draw(st.booleans()):
            covered = coverages(torch.default_generator, samples, x, y)
            grid = torch.randn(samples, inputs[name], x, y).masked_fill(covered[:, None] == 0, math.nan)
            grid = grid.to(data.draw(st.sampled_from(DTYPES[:2] if autocast else DTYPES)))
            if data.draw(st.booleans()):
                grid = grid.to(memory_format=torch.channels_last)
            features[name] = BEVFeatures(grid, covered)
    expected = outcome(module, features, by_kernel=False, autocast=autocast)
    got = outcome(module, features, by_kernel=True, autocast=autocast)
    assert [tensor.dtype for tensor in got] == [tensor.dtype for tensor in expected]
    assert torch.equal(got[1], expected[1])
    coarsest = max((tensor.dtype for tensor in got), key=lambda dtype: torch.finfo(dtype).eps)
    close(got, expected, torch.bfloat16 if autocast else coarsest)


def test_absent_and_blind_are_the_same_to_the_bit_and_the_blind_learn_nothing() -> None:
    torch.manual_seed(0)
    module = ModalityTokens({"a": 8, "b": 8}, 8, "null")
    a = BEVFeatures(torch.randn(2, 8, 3, 4), torch.ones(2, 3, 4))
    blind = BEVFeatures(torch.full((2, 8, 3, 4), math.nan), torch.zeros(2, 3, 4))
    absent = outcome(module, {"a": a, "b": None}, by_kernel=True, autocast=False)
    stale = outcome(module, {"a": a, "b": blind}, by_kernel=True, autocast=False)
    assert not stale.pop(3).any()
    for ours, theirs in zip(stale, absent, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(absent[0][0], a.features.permute(0, 2, 3, 1))
    assert torch.equal(absent[0][1], module.null.stacked()[1].expand(2, 3, 4, -1))


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.float64, torch.bfloat16])
def test_coverage_is_made_sound_whatever_it_is(kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a GPU would have to be waited for, values are not looked at."""
    monkeypatch.setattr(nulls, "_check_values", lambda *_: None)
    module = ModalityTokens({"a": 4}, 4, "null")
    coverage = torch.tensor([[[0.0, 1.0, 0.5]], [[math.nan, -1.0, math.inf]]])
    if not kind.is_floating_point:
        coverage = coverage.nan_to_num(0.0, 1.0, 0.0) > 0
    patch = on_a_gpu(True)
    tokens, sound = module({"a": BEVFeatures(torch.ones(2, 4, 1, 3), coverage.to(kind))})
    patch.undo()
    assert torch.equal(sound[0, 1, 0], torch.tensor([0.0, 0.0, 1.0]))
    assert tokens.isfinite().all()


def test_a_program_goes_through_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for kernels in (triton_tokens, triton_means):
        monkeypatch.setattr(kernels, "_NUMBERS", 32)
    monkeypatch.setattr(triton_tokens, "_PROGRAMS", 2)
    torch.manual_seed(0)
    module = ModalityTokens({"a": 8}, 8, "null")
    features: dict[str, BEVFeatures | None] = {"a": BEVFeatures(torch.randn(1, 8, 5, 3), torch.rand(1, 5, 3))}
    got, expected = (outcome(module, features, by_kernel=k, autocast=False) for k in (True, False))
    close(got, expected, torch.float32)
    coverage = torch.ones(1, 1, 5, 3)
    mean = TritonMean.apply(torch.ones(1, 1, 5, 3, 8), coverage, None, None)  # type: ignore[no-untyped-call]
    assert torch.equal(mean, torch.ones(1, 5, 3, 8))


def test_a_coverage_that_learns_and_wide_numbers_go_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "in_triton", lambda _: True)
    monkeypatch.setattr(triton_tokens.TritonTokens, "apply", Mock(side_effect=AssertionError("it does not fit")))
    monkeypatch.setattr(TritonMean, "apply", Mock(side_effect=AssertionError("it does not fit")))
    features, coverage = torch.randn(1, 4, 2, 3), torch.rand(1, 2, 3, requires_grad=True)
    ModalityTokens({"a": 4}, 4, "zeros")({"a": BEVFeatures(features, coverage)})[0].sum().backward()
    assert coverage.grad is not None
    wide = ModalityTokens({"a": 4}, 4, "null").double()
    tokens, seen = wide({"a": BEVFeatures(features, coverage.detach())})
    assert present_mean(tokens, seen).dtype == torch.float64


@pytest.mark.parametrize(("shape", "channels"), [((5, 7), 8), ((31, 18), 128), ((3, 2), 4), ((1, 1), 192)])
def test_places_are_the_plain_ones_and_so_is_what_they_teach(shape: tuple[int, int], channels: int) -> None:
    both = axis_embeddings_by_triton(shape, channels, torch.device("cpu"))
    plain = torch.cat([axis_embedding(cells, channels) for cells in shape])
    torch.testing.assert_close(both, plain, rtol=0, atol=3e-5)
    torch.manual_seed(0)
    position, query = nn.Linear(channels, channels, bias=False), torch.randn(channels)
    results = []
    for by_axes in (True, False):
        query.requires_grad_()
        result = placed_by_axes(position, query, shape) if by_axes else placed(position, shape) + query
        upward = torch.linspace(-1, 1, result.numel()).view_as(result)
        results.append([result.detach(), *torch.autograd.grad(result, [position.weight, query], upward)])
    close(results[0], results[1], torch.float16)


def test_the_plain_blend_of_nothing_is_the_stand_ins() -> None:
    tokens, coverage = blended_tokens([None], [None], [torch.ones(4)], (2, 1, 3), torch.bfloat16)
    assert torch.equal(tokens, torch.ones(1, 2, 1, 3, 4, dtype=torch.bfloat16))
    assert not coverage.any()
