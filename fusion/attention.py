"""Cross-attention over the modalities of a cell and its neighbours.

Letters: B samples, C channels, H heads, M modalities, X and Y cells, O offsets of the neighbourhood (1 or 9).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .block_attention import BlockAttention
from .coarse import check_heads
from .features import BEVFeatures, FusedBEV, Fuser
from .named import NamedParameters
from .nulls import Absent, ModalityTokens, present_mean
from .window_attention import window_attention


def neighbour_attention(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, neighbourhood: int
) -> tuple[Tensor, Tensor]:
    """Each cell's query attends to the M tokens of the cells around it.

    Args:
        query: [B, X, Y, H, c].
        key, value: [M, B, X, Y, H, c].
        seen: [M, B, X, Y] bool of tokens that may be attended to, or None for all.
        neighbourhood: 1 or 3, the side of the square of cells around the query's.

    Returns:
        [B, X, Y, H, c] float32 and the attention share of each modality [B, M, X, Y], mean over heads. Where nothing may be
        attended to, both are 0. Cells outside the grid are never attended to.
    """
    if query.device.type == "cpu" and not torch.compiler.is_compiling():
        attended, share = BlockAttention.apply(query, key, value, seen, neighbourhood)  # type: ignore[no-untyped-call]
        return attended, share
    query = query.float() / math.sqrt(query.shape[-1])
    reach = neighbourhood // 2
    offsets = [(i, j) for i in range(-reach, reach + 1) for j in range(-reach, reach + 1)]
    logits = torch.stack([(query * _shift(key, i, j).float()).sum(-1) for i, j in offsets])  # [O, M, B, X, Y, H]
    allowed = _allowed(key, seen, offsets)
    if allowed is not None:
        logits = logits.masked_fill(~allowed[..., None], -math.inf)
    # Softmax by hand over O and M: a cell with nothing to attend to gives 0 and not NaN.
    top = logits.amax(dim=(0, 1)).clamp(min=torch.finfo(torch.float32).min)
    weight = (logits - top).exp()
    weight = weight / weight.sum(dim=(0, 1)).clamp(min=1e-30)
    terms = (
        (weight[o, m, ..., None] * _shift(value[m], i, j).float())
        for o, (i, j) in enumerate(offsets)
        for m in range(key.shape[0])
    )
    attended = sum(terms, start=torch.zeros((), device=query.device))
    return attended, weight.sum(0).mean(-1).transpose(0, 1)


_PIECE = 4096  # cells; what one piece makes on the way stays in a core's cache


def cell_attention(query: Tensor, tokens: Tensor, seen: Tensor | None, key_value: nn.Linear) -> tuple[Tensor, Tensor]:
    """Each cell's query attends to its own M tokens, whose keys and values are never formed.

    Equals `neighbour_attention` with neighbourhood 1 of `key_value(tokens)`. A query's product with a key W t is that of
    W^T query with the token t itself, and a weighted sum of values is the value of the weighted sum of tokens: so each cell
    pays for one projection of each kind and not for M. The bias of the keys shifts all logits of a query alike and drops out.

    Args:
        query: [B, X, Y, H, c].
        tokens: [M, B, X, Y, C].
        seen: [M, B, X, Y] bool of tokens that may be attended to, or None for all.
        key_value: C to 2 * H * c, keys first.

    Returns:
        [B, X, Y, H, c] and the attention share of each modality [B, M, X, Y] float32; both 0 where nothing is seen.
    """
    heads, width = query.shape[-2:]
    key_weight, value_weight = key_value.weight.unflatten(0, (2, heads, width)).unbind(0)  # [H, c, C]
    key_weight = key_weight / math.sqrt(width)
    value_bias = key_value.bias.chunk(2)[1].view(heads, width)
    flat_query, flat_tokens = query.flatten(0, 2), tokens.flatten(1, 3)
    flat_seen = None if seen is None else seen.flatten(1)
    if query.device.type == "cpu" and not torch.compiler.is_compiling():
        query_pieces, token_pieces = flat_query.split(_PIECE), flat_tokens.split(_PIECE, dim=1)
        seen_pieces = [None] * len(query_pieces) if flat_seen is None else flat_seen.split(_PIECE, dim=1)
        pieces = zip(query_pieces, token_pieces, seen_pieces, strict=True)
    else:  # a GPU wants all cells at once; export unrolls no loops
        pieces = zip([flat_query], [flat_tokens], [flat_seen], strict=True)
    results = [_attend_piece(q, t, s, key_weight, value_weight, value_bias) for q, t, s in pieces]
    attended = torch.cat([a for a, _ in results]).view(query.shape)
    share = torch.cat([s for _, s in results], dim=1).view(tokens.shape[:-1])
    return attended, share.transpose(0, 1)


def _float32(device: torch.device) -> AbstractContextManager[object]:
    """No autocast, where the device knows of it."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def _attend_piece(
    query: Tensor, tokens: Tensor, seen: Tensor | None, key_weight: Tensor, value_weight: Tensor, value_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """`cell_attention` of n cells: query [n, H, c], tokens [M, n, C], seen [M, n] -> [n, H, c], [M, n]."""
    asked = torch.bmm(query.transpose(0, 1), key_weight).transpose(0, 1)  # [n, H, C]
    with _float32(query.device):
        by_cell = tokens.transpose(0, 1).float()  # [n, M, C]
        logits = torch.bmm(asked.float(), by_cell.transpose(1, 2))  # [n, H, M]
        if seen is not None:
            logits = logits.masked_fill(~seen.T[:, None], -math.inf)
        top = logits.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
        weight = (logits - top).exp()
        weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-30)
        mixed = torch.bmm(weight, by_cell)  # [n, H, C]
    attended = torch.bmm(mixed.transpose(0, 1), value_weight.transpose(1, 2)).transpose(0, 1)
    anything = weight.sum(-1, keepdim=True)  # 1, or 0 where nothing is seen
    return attended + anything * value_bias, weight.mean(1).T


def _cheap_products(device: torch.device) -> bool:
    """Whether keys and values cost less to form than `cell_attention`'s small products of each cell, which avoid them.

    So it is on a CPU in bfloat16: 15 against 6 ms a sample of 64 x 64 cells, forward and backward on one core.
    """
    return device.type == "cpu" and torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def _only_inference(*tensors: Tensor) -> bool:
    """Whether `window_attention` will do: float32 on a CPU, no gradients wanted, no graph being made."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)


def same_dtype_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """`norm` with its result in the dtype of `x`, summed in float32. On a CPU autocast would widen and narrow every token."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return norm(x)
    with torch.autocast("cpu", enabled=False):
        return norm(x)


def neighbour_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, neighbourhood: int
) -> tuple[Tensor, Tensor]:
    """`neighbour_attention` one cell at a time."""
    samples, x_cells, y_cells, _, width = query.shape
    modalities, reach = key.shape[0], neighbourhood // 2
    out = torch.zeros(query.shape)
    share = torch.zeros(samples, modalities, x_cells, y_cells)
    for b in range(samples):
        for x in range(x_cells):
            for y in range(y_cells):
                xs = slice(max(x - reach, 0), x + reach + 1)
                ys = slice(max(y - reach, 0), y + reach + 1)
                keys, values = key[:, b, xs, ys].flatten(1, 2), value[:, b, xs, ys].flatten(1, 2)  # [M, O, H, c]
                may = None if seen is None else seen[:, b, xs, ys].flatten(1, 2)
                if may is not None and not may.any():
                    continue
                logits = torch.einsum("hc,mohc->hmo", query[b, x, y].float(), keys.float()) / math.sqrt(width)
                if may is not None:
                    logits = logits.masked_fill(~may, -math.inf)
                weight = logits.flatten(1).softmax(-1).view_as(logits)
                out[b, x, y] = torch.einsum("hmo,mohc->hc", weight, values.float())
                share[b, :, x, y] = weight.sum(-1).mean(0)
    return out, share


def _shift(x: Tensor, i: int, j: int) -> Tensor:
    """[.., X, Y, H, c] moved so that cell (x, y) holds what stood at (x + i, y + j); zero beyond the edge."""
    if i == 0 and j == 0:
        return x
    x_cells, y_cells = x.shape[-4], x.shape[-3]
    padded = F.pad(x, (0, 0, 0, 0, max(-j, 0), max(j, 0), max(-i, 0), max(i, 0)))
    return padded.narrow(-4, max(i, 0), x_cells).narrow(-3, max(j, 0), y_cells)


def _allowed(key: Tensor, seen: Tensor | None, offsets: list[tuple[int, int]]) -> Tensor | None:
    """[O, M or 1, B, X, Y] bool of neighbours inside the grid that are seen; None where everything is allowed."""
    if seen is None and len(offsets) == 1:
        return None
    inside = torch.ones(1, *key.shape[1:4], dtype=torch.bool, device=key.device) if seen is None else seen
    cells = inside.float()[..., None, None]
    return torch.stack([_shift(cells, i, j)[..., 0, 0] > 0 for i, j in offsets])


def position_embedding(grid_shape: tuple[int, int], channels: int, device: torch.device | None = None) -> Tensor:
    """[X, Y, channels] float32 sines and cosines of the cell's place in the grid (-1..1), half for each axis."""
    if channels % 4:
        raise ValueError(f"position embedding: channels must be a multiple of 4, got {channels}")
    frequencies = math.pi * 2.0 ** torch.linspace(-1, 4, channels // 4, device=device)
    axes = []
    for cells in grid_shape:
        place = (torch.arange(cells, device=device, dtype=torch.float32) + 0.5) / cells * 2 - 1
        angles = place[:, None] * frequencies
        axes.append(torch.cat([angles.sin(), angles.cos()], dim=-1))
    x_part = axes[0][:, None].expand(-1, grid_shape[1], -1)
    y_part = axes[1][None].expand(grid_shape[0], -1, -1)
    return torch.cat([x_part, y_part], dim=-1)


class CrossAttentionFusion(Fuser):
    """At each cell a query attends to the modality tokens of its neighbourhood.

    The query is the mean of what is present, plus a learned query, plus a position embedding. Every token carries an
    embedding of its modality. An absent modality is a learned null token (`absent="null"`, or `"null_cell"`: one for each
    cell), a zero token (`"zeros"`) or not attended to (`"mask"`).

    Args:
        channels: channels of each modality by name; any number of modalities, any names.
        out_channels: C of the fused grid, a multiple of `heads` and of 4.
        heads: attention heads.
        neighbourhood: 1 (the cell alone) or 3 (3 x 3 cells).
        absent: see above.
        grid_shape: (X, Y), needed by `null_cell` alone.

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
        grid_shape: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        check_heads(out_channels, heads)
        if neighbourhood not in (1, 3):
            raise ValueError(f"neighbourhood: expected 1 or 3, got {neighbourhood}")
        self.tokens = ModalityTokens(channels, out_channels, absent, grid_shape)
        self.modalities = self.tokens.modalities
        self.heads, self.neighbourhood, self.absent = heads, neighbourhood, absent
        self.modality = NamedParameters(self.modalities, torch.randn(len(channels), out_channels) * 0.02)
        self.learned_query = nn.Parameter(torch.zeros(out_channels))
        self.position = nn.Linear(out_channels, out_channels, bias=False)
        self.token_norm = nn.LayerNorm(out_channels)
        self.query_norm = nn.LayerNorm(out_channels)
        self.query = nn.Linear(out_channels, out_channels)
        self.key_value = nn.Linear(out_channels, 2 * out_channels)
        self.out = nn.Linear(out_channels, out_channels)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(out_channels),
            nn.Linear(out_channels, out_channels),
            nn.ReLU(),
            nn.Linear(out_channels, out_channels),
        )

    def forward(
        self,
        features: Mapping[str, BEVFeatures | None],
        *,
        grid_shape: tuple[int, int] | None = None,
        batch_size: int = 1,
    ) -> FusedBEV:
        """As `Fuser.forward`; `attention` is the weight of a modality's tokens, mean over heads, summed over neighbours."""
        tokens, coverage = self.tokens(features, grid_shape, batch_size)  # [M, B, X, Y, C], [M, B, X, Y]
        mean = present_mean(tokens, coverage)
        place = self.position(position_embedding((tokens.shape[2], tokens.shape[3]), tokens.shape[-1], tokens.device))
        asking = self.query_norm(mean + self.learned_query + place)
        attended, share = self._attend(asking, tokens, coverage > 0 if self.absent == "mask" else None)
        fused = mean + attended
        fused = fused + self.feed_forward(fused)
        return FusedBEV(features=fused.permute(0, 3, 1, 2), attention=share, coverage=coverage.amax(0))

    def _attend(self, asking: Tensor, tokens: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, X, Y, C], [M, B, X, Y, C], [M, B, X, Y] -> what each cell draws from tokens [B, X, Y, C], and the shares."""
        if self.neighbourhood == 3 and _only_inference(asking, tokens, *self.key_value.parameters()):
            normed = self.token_norm(tokens) + self.modality.stacked()[:, None, None, None]
            return window_attention(asking, normed, seen, self.heads, self.query, self.key_value, self.out)
        query = self.query(asking).unflatten(-1, (self.heads, -1))
        if self.neighbourhood == 1 and not _cheap_products(tokens.device):
            normed = self.token_norm(tokens) + self.modality.stacked()[:, None, None, None]
            attended, share = cell_attention(query, normed, seen, self.key_value)
        else:
            key, value = self._keys_and_values(tokens)
            attended, share = neighbour_attention(query, key, value, seen, self.neighbourhood)
        return self.out(attended.flatten(-2)), share

    def _keys_and_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[M, B, X, Y, C] -> twice [M, B, X, Y, H, c]: linear in the normed token plus its modality's embedding."""
        normed = same_dtype_norm(self.token_norm, tokens)
        parts = []
        for weight, bias in zip(self.key_value.weight.chunk(2), self.key_value.bias.chunk(2), strict=True):
            # The embedding's product is the same at all cells, so it goes into the bias.
            biases = F.linear(self.modality.stacked(), weight, bias)[:, None]
            cells = normed.flatten(1, 3)
            product = torch.baddbmm(biases.to(cells.dtype), cells, weight.T.to(cells.dtype).expand(len(cells), -1, -1))
            parts.append(product.view(*tokens.shape[:-1], self.heads, -1))
        return parts[0], parts[1]
