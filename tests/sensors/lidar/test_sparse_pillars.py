"""The sparse stages promise: both backends compute the same, learn the same, and load each other's checkpoints."""

from __future__ import annotations

import builtins
import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from sensors.lidar.sparse_pillars import DenseStages, SparseStages

CHANNELS, BLOCKS, SHAPE = 8, 3, (20, 24)


def pillars(fraction: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    canvas = torch.randn(2, CHANNELS, *SHAPE, generator=generator)
    occupied = torch.rand(2, *SHAPE, generator=generator) < fraction
    return canvas, occupied


@pytest.fixture
def backends() -> tuple[DenseStages, SparseStages]:
    pytest.importorskip("spconv")
    torch.manual_seed(0)
    dense, sparse = DenseStages(CHANNELS, BLOCKS, SHAPE), SparseStages(CHANNELS, BLOCKS, SHAPE)
    for parameter in dense.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    sparse.load_state_dict(dense.state_dict())
    return dense, sparse


@pytest.mark.parametrize("fraction", [0.0, 0.003, 0.1, 0.6, 1.0])
@pytest.mark.parametrize("training", [True, False])
def test_spconv_agrees_with_the_dense_reference(
    backends: tuple[DenseStages, SparseStages], fraction: float, training: bool
) -> None:
    canvas, occupied = pillars(fraction)
    outputs, gradients = [], []
    for stages in backends:
        stages.train(training)
        leaf = canvas.clone().requires_grad_()
        output = stages(leaf, occupied)
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        outputs.append(output.detach())
        gradients.append([leaf.grad, *(parameter.grad for parameter in stages.parameters())])
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    for sparse, dense in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_does_not_know_its_backend(backends: tuple[DenseStages, SparseStages]) -> None:
    dense, sparse = backends
    assert {k: v.shape for k, v in dense.state_dict().items()} == {k: v.shape for k, v in sparse.state_dict().items()}
    dense.load_state_dict(sparse.state_dict())


def test_a_copy_computes_the_same(backends: tuple[DenseStages, SparseStages]) -> None:
    """The running average of the weights in training is kept in such a copy."""
    canvas, occupied = pillars(0.2)
    assert torch.equal(copy.deepcopy(backends[1])(canvas, occupied), backends[1](canvas, occupied))


@pytest.mark.parametrize("backend", [0, 1])
def test_empty_cells_stay_empty_and_are_not_read(backends: tuple[DenseStages, SparseStages], backend: int) -> None:
    stages = backends[backend]
    canvas, occupied = pillars(0.2)
    stale = torch.where(occupied[:, None], canvas, torch.nan)
    output = stages(stale, occupied)
    assert output.masked_select(~occupied[:, None]).abs().sum() == 0
    assert torch.equal(output, stages(canvas, occupied))


def test_bfloat16_autocast_does_not_part_the_backends(backends: tuple[DenseStages, SparseStages]) -> None:
    canvas, occupied = pillars(0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dense, sparse = (stages(canvas.bfloat16(), occupied) for stages in backends)
    assert dense.dtype == sparse.dtype == torch.float32
    torch.testing.assert_close(sparse, dense, rtol=1e-4, atol=1e-4)


def test_one_cell_far_away_changes_nothing_here(backends: tuple[DenseStages, SparseStages]) -> None:
    """Three 3 x 3 stages reach three cells."""
    canvas, occupied = pillars(0.3)
    before = backends[1](canvas, occupied)
    occupied[:, -1] = ~occupied[:, -1]
    after = backends[1](canvas, occupied)
    torch.testing.assert_close(after[:, :, : -1 - BLOCKS], before[:, :, : -1 - BLOCKS])


def test_a_wrong_shape_says_what_was_expected() -> None:
    with pytest.raises(ValueError, match=r"expected canvas .*\[1, 8, 20, 24\].*got \[1, 8, 24, 20\]"):
        DenseStages(CHANNELS, BLOCKS, SHAPE)(torch.zeros(1, 8, 24, 20), torch.zeros(1, 24, 20, dtype=torch.bool))


def test_missing_spconv_names_the_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_spconv(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("spconv"):
            raise ImportError(f"No module named {name!r}")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_spconv)
    with pytest.raises(ImportError, match=r'pip install "robustbev\[spconv\]".*backend=dense'):
        SparseStages(CHANNELS, BLOCKS, SHAPE)
