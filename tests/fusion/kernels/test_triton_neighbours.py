"""`TritonAttention` promises what its plain twin gives. Here Triton's interpreter runs it on a CPU (see tests/conftest.py).

Letters: B samples, H heads, M modalities, X and Y cells.
"""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from fusion import CrossAttentionFusion
from fusion.fusers import cross_attention as attention
from fusion.kernels import devices, neighbours
from fusion.kernels.blocks import BlockAttention
from fusion.kernels.neighbours import neighbour_attention, neighbour_attention_reference
from tests.fusion.grids import CHANNELS, SHAPE, random_features
from tests.fusion.kernels.test_neighbours import Attend, random_tokens, seen_masks

pytest.importorskip("triton", reason="Triton is for Linux alone")
from fusion.kernels import triton_neighbours
from fusion.kernels.triton_neighbours import Tile, TritonAttention, fits

ROOT = Path(__file__).resolve().parents[3]
NAN = float("nan")


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN in results until they are written: a cell that is left out shows."""
    monkeypatch.setattr(triton_neighbours, "_empty", lambda query, *shape: torch.full(shape, NAN))
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **named: torch.full_like(tensor, NAN, **named))


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes a quarter of a second for each."""
    use_tile(Tile(8, 8, 1), monkeypatch)


def use_tile(tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_neighbours, "_TILES", dict.fromkeys(triton_neighbours._TILES, tile))


def few_tokens(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One sample, two modalities, and which of them is seen where."""
    query, key, value = random_tokens(dtype=dtype)
    some = seen_masks()["some"]
    assert some is not None
    return query[:1], key[:2, :1], value[:2, :1], some[:2, :1]


def outcome(
    way: Attend, inputs: tuple[Tensor, Tensor, Tensor], seen: Tensor | None, side: int, of: str = "attended and share"
) -> tuple[Tensor, ...]:
    """Both outputs and the gradients of a weighted sum of those named."""
    query, key, value = leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    attended, share = way(query, key, value, seen, side)
    outputs = {"attended": attended, "share": share}
    loss = torch.zeros((), requires_grad=True)
    for name, output in outputs.items():
        if name in of:
            loss = loss + (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum()
    loss.backward()
    gradients = (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)
    return attended.detach(), share.detach(), *gradients


def assert_agree(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float = 1e-5) -> None:
    for ours, plain in zip(got, expected, strict=True):
        torch.testing.assert_close(ours.float(), plain.float(), rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("mask", ["no mask", "some", "none", "all"])
def test_it_agrees_with_its_reference_and_so_do_the_gradients(side: int, mask: str) -> None:
    query, key, value = random_tokens()
    seen = seen_masks()[mask]
    if mask != "some":  # of fewer, for the interpreter's sake
        query, key, value, _ = few_tokens()
        seen = None if seen is None else seen[:2, :1]
    inputs = query, key, value
    got = outcome(TritonAttention.apply, inputs, seen, side)
    assert_agree(got, outcome(neighbour_attention_reference, inputs, seen, side))
    if mask == "none":
        assert not any(tensor.any() for tensor in got)


@pytest.mark.parametrize("tile", [(2, 4), (4, 2), (1, 16)])
def test_tiles_of_any_shape_give_the_same(tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them divides the grid."""
    *inputs, seen = few_tokens()
    query, key, value = (tensor[..., :3, :5, :, :] for tensor in inputs)
    seen = seen[:1, ..., :3, :5]
    expected = outcome(neighbour_attention_reference, (query, key[:1], value[:1]), seen, 3)
    use_tile(Tile(*tile, warps=1), monkeypatch)
    assert_agree(outcome(TritonAttention.apply, (query, key[:1], value[:1]), seen, 3), expected)


@pytest.mark.parametrize(("side", "dtype"), [(1, torch.float16), (1, torch.bfloat16), (3, torch.bfloat16)])
def test_half_precision_is_summed_in_float32(side: int, dtype: torch.dtype) -> None:
    *inputs, seen = few_tokens(dtype)
    query, key, value = inputs
    got = outcome(TritonAttention.apply, (query, key, value), seen, side)
    assert [tensor.dtype for tensor in got] == [dtype, torch.float32] + [dtype] * 3
    expected = outcome(neighbour_attention_reference, (query.float(), key.float(), value.float()), seen, side)
    torch.testing.assert_close(got[0].float(), expected[0], rtol=torch.finfo(dtype).eps, atol=1e-6)  # rounded once
    assert_agree(got[1:2], expected[1:2])
    assert_agree(got[2:], expected[2:], 5e-3)  # the gradient that comes in is rounded, too


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("of", ["attended", "share"])
def test_an_output_that_nothing_hangs_on_needs_no_gradient(side: int, of: str) -> None:
    query, key, value, seen = few_tokens()
    got = outcome(TritonAttention.apply, (query, key, value), seen, side, of)
    assert_agree(got, outcome(neighbour_attention_reference, (query, key, value), seen, side, of))


def test_views_of_larger_tensors_will_do() -> None:
    """Keys and values that come out of one projection, a sample of a larger batch, a mask laid out in another order."""
    query, keys, values = random_tokens()
    both = torch.stack([keys, values], dim=-2).flatten(-2)
    key, value = both.unflatten(-1, (2, -1)).unbind(-2)
    seen = seen_masks()["some"]
    assert seen is not None
    views = query[1:], key[:, 1:], value[:, 1:]
    turned = seen.transpose(2, 3).contiguous().transpose(2, 3)[:, 1:]
    assert not any(tensor.is_contiguous() for tensor in (*views[1:], turned))
    got = outcome(TritonAttention.apply, views, turned, 1)
    assert_agree(got, outcome(neighbour_attention_reference, (query[1:], keys[:, 1:], values[:, 1:]), seen[:, 1:], 1))


def test_nothing_outside_the_grid_and_nothing_hidden_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in memory before and after the grid nor at what may not be attended to: NaN would spread from there."""
    query, key, value, seen = few_tokens()
    expected = outcome(neighbour_attention_reference, (query, key, value), seen, 3)

    def within_nan(tensor: Tensor) -> Tensor:
        guard = torch.full((tensor[0].numel(),), NAN)
        whole = torch.cat([guard, tensor.flatten(), guard])
        return whole[len(guard) : -len(guard)].view(tensor.shape)

    hidden = ~seen[..., None, None]
    guarded = within_nan(query), within_nan(key.masked_fill(hidden, NAN)), within_nan(value.masked_fill(hidden, NAN))
    assert all(tensor.is_contiguous() for tensor in guarded)
    assert_agree(outcome(TritonAttention.apply, guarded, seen, 3), expected)


def test_large_logits_do_not_overflow() -> None:
    query, key, value, _ = few_tokens()
    attended, share = TritonAttention.apply(query * 1e4, key * 1e4, value, None, 3)  # type: ignore[no-untyped-call]
    assert attended.isfinite().all()
    torch.testing.assert_close(share.sum(1), torch.ones(1, *SHAPE))


def test_what_only_a_gradient_needs_is_not_kept_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value, seen = few_tokens()
    expected = outcome(TritonAttention.apply, (query, key, value), seen, 1)[:2]
    made = Mock(side_effect=triton_neighbours._empty)
    monkeypatch.setattr(triton_neighbours, "_empty", made)
    with torch.no_grad():
        got = TritonAttention.apply(query, key, value, seen, 1)  # type: ignore[no-untyped-call]
    assert all(torch.equal(ours, other) for ours, other in zip(got, expected, strict=True))
    assert [call.args[1:] for call in made.call_args_list if call.args[1:] != (0,)] == [got[1].shape]


def test_it_fits_heads_and_channels_that_are_powers_of_two() -> None:
    shape = 1, 4, 4
    assert all(fits(torch.empty(*shape, *sides)) for sides in ((8, 16), (1, 1), (4, 64), (1, 1024)))
    assert not any(fits(torch.empty(*shape, *sides)) for sides in ((6, 16), (8, 24), (8, 0), (32, 64)))
    assert fits(torch.empty(*shape, 8, 16, dtype=torch.bfloat16))
    assert not fits(torch.empty(*shape, 8, 16, dtype=torch.float64))
    assert not fits(torch.empty(1, 2**13, 2**13, 4, 8, device="meta"))


@pytest.mark.parametrize("side", [1, 3])
def test_a_gpu_takes_it_wherever_it_fits(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value, seen = few_tokens()
    expected = neighbour_attention(query, key, value, seen, side)
    odd, odd_key, odd_value = (tensor[..., :3] for tensor in (query, key, value))
    without = neighbour_attention(odd, odd_key, odd_value, seen, side)
    monkeypatch.setattr(devices, "in_triton", lambda device: True)
    monkeypatch.setattr(devices, "in_blocks", lambda device: False)
    monkeypatch.setattr(neighbours, "shifted_attention", Mock(side_effect=AssertionError("the way of graphs")))
    assert_agree(neighbour_attention(query, key, value, seen, side), expected)
    monkeypatch.undo()
    monkeypatch.setattr(devices, "in_triton", lambda device: True)
    monkeypatch.setattr(TritonAttention, "apply", Mock(side_effect=AssertionError("it does not fit")))
    assert_agree(neighbour_attention(odd, odd_key, odd_value, seen, side), without)


def test_a_gpu_is_not_asked_for_triton_where_a_graph_is_made_or_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert devices.in_triton(cuda)
    assert not devices.in_triton(cpu)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not devices.in_triton(cuda)
    monkeypatch.undo()
    monkeypatch.setattr(devices, "_has_triton", lambda: False)
    assert not devices.in_triton(cuda)


@pytest.mark.parametrize(
    ("side", "absent", "bfloat16"), [(1, "null", False), (1, "mask", True), (3, "null", True), (3, "mask", False)]
)
def test_the_fuser_is_the_same_function_on_a_gpu(
    side: int, absent: str, bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It forms keys and values there whatever the neighbourhood, and takes none of a CPU's ways."""
    torch.manual_seed(0)
    fuser = CrossAttentionFusion(CHANNELS, 8, heads=2, neighbourhood=side, absent=absent)  # type: ignore[arg-type]
    features = random_features(batch_size=1) | {"camera": None}

    def run(*, autocast: bool) -> list[Tensor]:
        fuser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            fused = fuser(features)
        (fused.features.float().square().mean() + fused.attention.square().mean()).backward()
        return [
            *(t.detach() for t in vars(fused).values()),
            *(p.grad for p in fuser.parameters() if p.grad is not None),
        ]

    expected = run(autocast=False)
    monkeypatch.setattr(devices, "in_triton", lambda device: True)
    monkeypatch.setattr(devices, "in_blocks", lambda device: False)
    other = Mock(side_effect=AssertionError("another way"))
    monkeypatch.setattr(BlockAttention, "apply", other)
    for module, name in [
        (attention, "cell_attention"),
        (neighbours, "shifted_attention"),
    ]:
        monkeypatch.setattr(module, name, other)
    tolerance = 0.1 if bfloat16 else 1e-4
    for got, wanted in zip(run(autocast=bfloat16), expected, strict=True):
        assert (got - wanted).norm() <= tolerance * wanted.norm() + 1e-5  # by norms: rounding may turn a ReLU
