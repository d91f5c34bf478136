"""A Vision Transformer that yields a feature map, with timm's parameter names.

After Dosovitskiy et al. (ICLR 2021); the convolutional stem after Xiao et al. ("Early convolutions help transformers see
better", NeurIPS 2021), which is what lets a small one learn from few pictures.

Letters: I images, H and W pixels, p patch side, d token width, h = H / p, w = W / p.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bev.layers import ConvBlock, ResidualBlock
from fusion.kernels.norms import add_norm


class Attention(nn.Module):
    """Multi-head self-attention over [I, T, d] tokens, through torch's fused kernel."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        # Cut along the last axis: their gradients then come together in one copy, where a stack of them would be copied again.
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if x.device.type == "cpu":
            # torch's bfloat16 kernel on CPU took 4 times as long as its float32 one at 45 tokens.
            with torch.autocast("cpu", enabled=False):
                attended = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
        else:
            attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        on_gpu = x.device.type == "cuda" and not torch.compiler.is_compiling()
        return self.kept_narrow(x) if on_gpu and torch.is_grad_enabled() else self._layers(x)

    def kept_narrow(self, x: Tensor) -> Tensor:
        """`forward` that keeps `x` alone for the backward pass and computes the rest again, which costs little and is wide."""
        y: Tensor = checkpoint(self._layers, x, use_reentrant=False, preserve_rng_state=False)
        return y

    def _layers(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned gain per channel (Touvron et al., ICCV 2021), as in DINOv2."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, layer_scale: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.ls1 = LayerScale(dim) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.ls2 = LayerScale(dim) if layer_scale else nn.Identity()

    def forward(self, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """The residual stream [I, T, d] and what is still to be added to it -> the same; so one kernel adds and normalises."""
        x, normed = add_norm(self.norm1, x, delta)
        x, normed = add_norm(self.norm2, x, self.ls1(self.attn(normed)))
        return x, self.ls2(self.mlp(normed))


class PatchEmbed(nn.Module):
    """Non-overlapping patches, linearly projected: [I, 3, H, W] -> [I, d, h, w]."""

    def __init__(self, dim: int, patch_px: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_px, stride=patch_px)

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type == "cuda" and not torch.compiler.is_compiling():
            return self.product(images)
        return self.proj(images.to(memory_format=torch.channels_last))

    def product(self, images: Tensor) -> Tensor:
        """`forward` as a product of matrices: a GPU's convolution of three channels takes a tenth of the whole network's time."""
        patch_px, weight = self.proj.kernel_size[0], self.proj.weight.flatten(1)
        height, width = (side // patch_px for side in images.shape[2:])
        images = images.to(torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else weight.dtype)
        patches = images.unflatten(3, (width, patch_px)).unflatten(2, (height, patch_px)).permute(0, 2, 4, 1, 3, 5)
        tokens = F.linear(patches.flatten(3).flatten(1, 2), weight, self.proj.bias)
        return tokens.transpose(1, 2).unflatten(2, (height, width))


class ConvStem(nn.Module):
    """Strided convolutions down to a stride of 16: [I, 3, H, W] -> skip [I, c, H / 8, W / 8], [I, d, H / 16, W / 16]."""

    def __init__(self, dim: int, skip_channels: int) -> None:
        super().__init__()
        self.to_8 = nn.Sequential(
            ConvBlock(3, 32, kernel=5, stride=2),
            ConvBlock(32, 48, stride=2),
            ResidualBlock(48),
            ConvBlock(48, skip_channels, stride=2),
            ResidualBlock(skip_channels),
        )
        self.to_16 = nn.Conv2d(skip_channels, dim, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        skip = self.to_8(images)
        return skip, self.to_16(skip)


class VisionTransformer(nn.Module):
    """Pictures and an embedding for every token -> a feature map.

    Args:
        image_size: (H, W) pixels, multiples of the patch.
        stem: "patch" (as published, loads published weights) or "conv" (stride 16, with a finer skip connection).
        feature_stride_px: stride of the output: the patch side or half of it.
        out_channels: channels of the output.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        stem: str,
        patch_px: int,
        dim: int,
        depth: int,
        heads: int,
        layer_scale: bool,
        feature_stride_px: int,
        out_channels: int,
    ) -> None:
        super().__init__()
        height, width = image_size
        self.grid_size = (height // patch_px, width // patch_px)
        self.upsample = patch_px // feature_stride_px
        if stem == "conv":
            skip_channels = 64
            self.conv_stem = ConvStem(dim, skip_channels)
        else:
            skip_channels = 0
            self.patch_embed = PatchEmbed(dim, patch_px)
        self.stem = stem
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + self.grid_size[0] * self.grid_size[1], dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, heads, layer_scale) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        # The neck is not part of the published networks; its name keeps it apart from theirs.
        self.neck_up: nn.Module
        if self.upsample > 1:
            self.neck_up = nn.ConvTranspose2d(dim, out_channels, self.upsample, stride=self.upsample)
        else:
            self.neck_up = nn.Conv2d(dim, out_channels, 1)
        self.neck = nn.Sequential(ConvBlock(out_channels + skip_channels, out_channels), ResidualBlock(out_channels))

    def forward(self, images: Tensor, token_embedding: Tensor) -> Tensor:
        """[I, 3, H, W] normalised pictures, [I, h * w, d] added to the tokens -> [I, out_channels, H / s, W / s]."""
        if self.stem == "conv":
            skip, tokens = self.conv_stem(images.to(memory_format=torch.channels_last))
        else:
            skip, tokens = None, self.patch_embed(images)
        x = tokens.flatten(2).transpose(1, 2) + self.pos_embed[:, 1:] + token_embedding
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
        delta = None
        for block in self.blocks:
            x, delta = block(x, delta)
        grid = add_norm(self.norm, x, delta)[1][:, 1:].transpose(1, 2).unflatten(2, self.grid_size)
        features = self.neck_up(grid)
        if skip is not None:
            features = torch.cat([features, skip.to(features.dtype)], dim=1)
        return self.neck(features)
