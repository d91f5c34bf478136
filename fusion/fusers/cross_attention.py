"""Cross-attention over the modalities of a cell and its neighbours.

Letters: B samples, C channels, H heads, M modalities, X and Y cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import devices
from ..kernels.cells import cell_attention
from ..kernels.means import means_by_triton
from ..kernels.neighbours import by_triton, neighbour_attention
from ..kernels.norms import SameDtypeNorm
from ..named import NamedParameters
from ..nulls import Absent, present_mean, trusted_mean
from .tokens import TokenFuser, check_heads, feed_forward


def _cheap_products(query: Tensor) -> bool:
    """Whether keys and values cost less to form than `cell_attention`'s small products of each cell, which avoid them.

    So it is on a CPU in bfloat16: 15 against 6 ms a sample of 64 x 64 cells, forward and backward on one core. And so it is on a
    GPU where a kernel reads them: `cell_attention` takes 0.8 ms there for 180 x 180 cells, and a kernel a tenth of that.
    """
    return by_triton(query) or (devices.in_blocks(query.device) and devices.autocasts(query.device))


def position_embedding(grid_shape: tuple[int, int], channels: int, device: torch.device | None = None) -> Tensor:
    """[X, Y, channels] float32 sines and cosines of the cell's place in the grid (-1..1), half for each axis."""
    if channels % 4:
        raise ValueError(f"position embedding: channels must be a multiple of 4, got {channels}")
    x_axis, y_axis = (axis_embedding(cells, channels, device) for cells in grid_shape)
    return torch.cat(
        [x_axis[:, None].expand(-1, grid_shape[1], -1), y_axis[None].expand(grid_shape[0], -1, -1)], dim=-1
    )


def axis_embedding(cells: int, channels: int, device: torch.device | None = None) -> Tensor:
    """[cells, channels / 2] float32 sines and cosines of places along one axis, by which `position_embedding` knows it."""
    frequencies = math.pi * 2.0 ** torch.linspace(-1, 4, channels // 4, device=device)
    place = (torch.arange(cells, device=device, dtype=torch.float32) + 0.5) / cells * 2 - 1
    angles = place[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def placed(position: nn.Linear, grid_shape: tuple[int, int]) -> Tensor:
    """[X, Y, C]: `position` of each cell's embedding."""
    return devices.projected(position, position_embedding(grid_shape, position.in_features, position.weight.device))


def placed_by_axes(position: nn.Linear, query: Tensor, grid_shape: tuple[int, int]) -> Tensor:
    """[X, Y, C]: `placed` plus `query` [C], on a GPU: the sum of what stands for x and what for y, [X, C] and [Y, C].

    An embedding [X, Y, C] is never formed, nor its product with the weight.
    """
    from ..kernels.triton_position import axis_embeddings_by_triton  # Triton is there on machines with a GPU alone

    weight = position.weight
    embeddings = axis_embeddings_by_triton(grid_shape, position.in_features, weight.device)
    of_x, of_y = (
        F.linear(axis.to(weight.dtype), part)
        for axis, part in zip(embeddings.split(grid_shape), weight.chunk(2, dim=1), strict=True)
    )
    return (of_x + query.to(of_x.dtype))[:, None] + of_y


class CrossAttentionFusion(TokenFuser):
    """At each cell a query attends to the modality tokens of its neighbourhood.

    The query is the mean of what is present, plus a learned query, plus a position embedding. Every token carries an embedding
    of its modality. What the query draws from them is added to the mean of what is present, each modality weighed by its share
    of the attention: a weak or new sensor dilutes a strong one only as far as the cell listens to it. An absent modality is a
    learned null token (`absent="null"`), a zero token (`"zeros"`) or not attended to
    (`"mask"`).

    Args:
        channels: channels of each modality by name; any number of modalities, any names.
        out_channels: C of the fused grid [B, C, X, Y], a multiple of `heads` and of 4.
        heads: attention heads.
        neighbourhood: 1 (the cell alone) or 3 (3 x 3 cells).
        absent: see above.

    Raises:
        ValueError: an argument out of its range, or, in `forward`, features that do not fit (says expected and got).

    Source: scaled dot-product attention (Vaswani et al., NeurIPS 2017), where the sequence of a cell is its modalities; position
    embedding by Fourier features (Tancik et al., NeurIPS 2020).
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        out_channels: int,
        *,
        heads: int = 4,
        neighbourhood: int = 1,
        absent: Absent = "null",
    ) -> None:
        check_heads(out_channels, heads)
        if neighbourhood not in (1, 3):
            raise ValueError(f"neighbourhood: expected 1 or 3, got {neighbourhood}")
        super().__init__(channels, out_channels, absent)
        self.heads, self.neighbourhood = heads, neighbourhood
        self.modality = NamedParameters(self.modalities, torch.randn(len(channels), out_channels) * 0.02)
        self.learned_query = nn.Parameter(torch.zeros(out_channels))
        self.position = nn.Linear(out_channels, out_channels, bias=False)
        self.token_norm = SameDtypeNorm(out_channels)
        self.query_norm = SameDtypeNorm(out_channels)
        self.query = nn.Linear(out_channels, out_channels)
        self.key_value = nn.Linear(out_channels, 2 * out_channels)
        self.out = nn.Linear(out_channels, out_channels)
        self.feed_forward = feed_forward(out_channels)

    def _fuse(self, tokens: Tensor, coverage: Tensor) -> tuple[Tensor, Tensor]:
        """See `TokenFuser._fuse`; the share is the weight of a modality's tokens, mean over heads, summed over neighbours."""
        asking = self.query_norm(self._asking(tokens, coverage))
        attended, share = self._attend(asking, tokens, coverage > 0 if self.absent == "mask" else None)
        fused = trusted_mean(tokens, coverage, share, plus=attended)
        return fused + self.feed_forward(fused), share

    def _asking(self, tokens: Tensor, coverage: Tensor) -> Tensor:
        """[M, B, X, Y, C], [M, B, X, Y] -> [B, X, Y, C]: the mean of what is present, the learned query and the place."""
        grid_shape = (tokens.shape[2], tokens.shape[3])
        if means_by_triton(tokens):
            return present_mean(tokens, coverage, plus=placed_by_axes(self.position, self.learned_query, grid_shape))
        return present_mean(tokens, coverage) + self.learned_query + placed(self.position, grid_shape)

    def _attend(self, asking: Tensor, tokens: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, X, Y, C], [M, B, X, Y, C], [M, B, X, Y] -> what each cell draws from tokens [B, X, Y, C], and the shares."""
        query = self.query(asking).unflatten(-1, (self.heads, -1))
        if self.neighbourhood == 1 and not _cheap_products(query):
            normed = self.token_norm(tokens) + self.modality.stacked()[:, None, None, None]
            attended, share = cell_attention(query, normed, seen, self.key_value)
        else:
            key, value = self._keys_and_values(tokens)
            attended, share = neighbour_attention(query, key, value, seen, self.neighbourhood)
        return devices.projected(self.out, attended.flatten(-2)), share

    def _keys_and_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[M, B, X, Y, C] -> twice [M, B, X, Y, H, c]: linear in the normed token plus its modality's embedding."""
        normed = self.token_norm(tokens)
        parts = []
        for weight, bias in zip(self.key_value.weight.chunk(2), self.key_value.bias.chunk(2), strict=True):
            # The embedding's product is the same at all cells, so it goes into the bias.
            biases = F.linear(self.modality.stacked(), weight, bias)[:, None]
            cells = normed.flatten(1, 3)
            product = torch.baddbmm(biases.to(cells.dtype), cells, weight.T.to(cells.dtype).expand(len(cells), -1, -1))
            parts.append(product.view(*tokens.shape[:-1], self.heads, -1))
        return parts[0], parts[1]
