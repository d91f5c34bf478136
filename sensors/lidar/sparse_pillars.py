"""Submanifold convolution stages on the occupied pillars, before anything dense: by spconv, and by plain torch.

A submanifold convolution (Graham et al., CVPR 2018) computes at occupied cells only and takes empty neighbours as zero.
That equals a dense convolution of a canvas that is zero where empty, read at the occupied cells alone, and is how
`DenseStages` computes it. Both hold the same parameters in torch's layout: a checkpoint of one loads into the other.

Letters: B samples, C channels, K occupied cells of the whole batch, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.kernels.norms import kept_relu_norm
from sensors.extras import remedy


class SubmanifoldBlock(nn.Module):
    """The parameters of one stage: a 3 x 3 convolution, LayerNorm over channels, then ReLU.

    The norm looks at one cell at a time, so that no cell depends on how many others are occupied. Without the bias it would
    forget by what factor all that goes in was scaled.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))  # out, in, X, Y: the layout of nn.Conv2d
        self.bias = nn.Parameter(torch.empty(channels))
        self.norm = nn.LayerNorm(channels)
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        nn.init.uniform_(self.bias, -0.5, 0.5)  # beside sums of about one


class DenseStages(nn.Module):
    """`num_blocks` submanifold stages in plain torch: the reference, and the backend that exports.

    `grid_shape` is (X, Y).
    """

    def __init__(self, channels: int, num_blocks: int, grid_shape: tuple[int, int]) -> None:
        super().__init__()
        self.channels = channels
        self.grid_shape = grid_shape
        self.blocks = nn.ModuleList(SubmanifoldBlock(channels) for _ in range(num_blocks))

    def forward(self, canvas: Tensor, occupied: Tensor) -> Tensor:
        """[B, C, X, Y], [B, X, Y] bool -> [B, C, X, Y], zero where not occupied; float32 but for autocast on a GPU.

        What the canvas holds in cells that are not occupied is not read.
        """
        self._check(canvas, occupied)
        on_cpu = canvas.device.type == "cpu"
        # On a CPU half precision is left to what follows: spconv has none there, and both backends shall agree.
        with torch.autocast("cpu", enabled=False) if on_cpu else nullcontext():
            canvas = canvas.float().masked_fill(~occupied[:, None], 0.0)
            for block in self.stages():
                canvas = F.conv2d(canvas, block.weight, block.bias, padding=1)
                canvas = kept_relu_norm(block.norm, canvas.permute(0, 2, 3, 1), occupied).permute(0, 3, 1, 2)
        return canvas

    def stages(self) -> list[SubmanifoldBlock]:
        """The blocks in order."""
        return cast("list[SubmanifoldBlock]", list(self.blocks))

    def _check(self, canvas: Tensor, occupied: Tensor) -> None:
        expected = (canvas.shape[0], self.channels, *self.grid_shape)
        if canvas.shape != expected or occupied.shape != (expected[0], *self.grid_shape):
            raise ValueError(
                f"sparse stages: expected canvas [B, C, X, Y] = {list(expected)} and occupied [B, X, Y], "
                f"got {list(canvas.shape)} and {list(occupied.shape)}"
            )


class SparseStages(DenseStages):
    """`DenseStages` on spconv: the work grows with the occupied cells, not with the grid. float32; does not export.

    Raises:
        ImportError: spconv is not installed, or cannot be imported.
    """

    def __init__(self, channels: int, num_blocks: int, grid_shape: tuple[int, int]) -> None:
        super().__init__(channels, num_blocks, grid_shape)
        spconv = _import_spconv()
        # One spconv layer serves every block: the weights are passed in, and its indice_key lets all blocks share one
        # rulebook. It stands in a tuple so that its own, unused weight stays out of the state dict.
        self._convolution = (
            spconv.SubMConv2d(channels, channels, 3, padding=1, bias=False, indice_key="pillars").requires_grad_(False),
        )

    def forward(self, canvas: Tensor, occupied: Tensor) -> Tensor:
        """As `DenseStages.forward`."""
        self._check(canvas, occupied)
        index = occupied.nonzero()  # [K, 3] of b, x, y
        if len(index) == 0:
            return super().forward(canvas, occupied)  # spconv takes no empty input; this keeps the graph whole
        _check_device(canvas.device)
        samples = canvas.shape[0]
        b, x, y = index.unbind(1)
        with torch.autocast(canvas.device.type, enabled=False):
            features = canvas.permute(0, 2, 3, 1).float()[b, x, y]  # [K, C]
            # `nonzero` lays its result out by column, and spconv reads indices as if by row.
            rows = index.int().contiguous()
            cells = _import_spconv().SparseConvTensor(features.contiguous(), rows, list(self.grid_shape), samples)
            for block in self.stages():
                cells = self._convolve(cells, block.weight)
                cells = cells.replace_feature(F.relu(block.norm(cells.features + block.bias)))
            dense = features.new_zeros(samples, *self.grid_shape, self.channels)
            dense = dense.index_put((b, x, y), cells.features)
        return dense.permute(0, 3, 1, 2)

    def _convolve(self, cells: Any, weight: Tensor) -> Any:
        """One submanifold convolution with `weight` [out, in, X, Y], which spconv wants as [out, X, Y, in]."""
        convolution = self._convolution[0].train(self.training)
        layout = weight.permute(0, 2, 3, 1).contiguous()
        results: list[Any] = []

        def convolve(features: Tensor, kernel: Tensor) -> Tensor:
            given = cells.replace_feature(features)
            results.append(torch.func.functional_call(convolution, {"weight": kernel}, (given,)))
            out: Tensor = results[-1].features
            return out

        if layout.device.type != "cpu":
            convolve(cells.features, layout)
            return results[-1]
        features = _OnOneThread.apply(cells.features, layout, convolve)  # type: ignore[no-untyped-call]
        return results[-1].replace_feature(features)


class _OnOneThread(torch.autograd.Function):
    """`function(features, kernel)`, forward and backward, on one thread.

    spconv 2.3.8 on CPU scatters from several threads without locks: with two of them some sums came out wrong.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, kernel: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        leaves = features.detach().requires_grad_(), kernel.detach().requires_grad_()
        with _one_thread(), torch.enable_grad():
            output = function(*leaves)
        ctx.graph = leaves, output
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        leaves, output = ctx.graph
        with _one_thread():
            return *torch.autograd.grad(output, leaves, grads[0]), None


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _import_spconv() -> ModuleType:
    """spconv.pytorch, made to run its backward on a machine without a GPU."""
    try:
        import spconv.pytorch as spconv
        from spconv.pytorch import ops
    except ImportError as error:
        raise ImportError(
            f"the spconv backend of the LiDAR encoder cannot be imported ({error}): {remedy(['spconv'], ['spconv'])}, "
            "or set backend=dense of the LiDAR modality"
        ) from error
    if not torch.cuda.is_available():
        # spconv 2.3.8 asks CUDA for its stream in the backward pass of CPU tensors too, and raises where there is none.
        ops.get_current_stream = lambda: 0
    return spconv


def _check_device(device: torch.device) -> None:
    from spconv.cppconstants import CPU_ONLY_BUILD

    if device.type != "cpu" and CPU_ONLY_BUILD:
        raise RuntimeError(
            f"the installed spconv is built for the CPU alone, and the canvas is on {device}; "
            "install the spconv-cu* build of your CUDA, or set backend=dense of the LiDAR modality"
        )
