"""Published ViT weights from a local file into our `VisionTransformer`.

Reads what timm (and DeiT, MAE, DINO) and DINOv2 publish: their names are ours, but for extra tokens. Position embeddings are
resized to our token grid, and patch kernels to our patch side.

Letters: d token width, T position entries, p and q patch sides before and after.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sensors.tensor_files import read_tensors

from .vit import Block, VisionTransformer

_NESTS = ("model", "state_dict")  # where DeiT's, MAE's and other files keep their weights
_REGISTERS = ("register_tokens", "reg_token")
_MAX_PATCH_PX = 64  # published ones have 8 to 32
# What torch makes of a damaged file.
_FAULTS = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
_EXAMPLE = "blocks.0.attn.qkv.weight"


@dataclass(frozen=True)
class WeightsReport:
    """What of a weights file went where. Names are the network's, but for `unexpected`."""

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]  # of the network: as initialised
    unexpected: tuple[str, ...]  # of the file: ignored
    resized: tuple[str, ...]  # among `loaded`, with the old and the new size
    notes: tuple[str, ...] = ()  # anything else that was not loaded as it stood

    def __str__(self) -> str:
        new = [name for name in self.missing if name.startswith(("neck", "conv_stem."))]
        absent = [name for name in self.missing if name not in new]
        lines = [
            f"{self.source}: {len(self.loaded)} tensors loaded, {len(self.missing)} of the network stay as initialised"
        ]
        lines += [f"  resized: {what}" for what in self.resized]
        lines += [f"  note: {note}" for note in self.notes]
        if new:
            lines.append(f"  new layers, which no published ViT has: {_families(new)}")
        if absent:
            lines.append(f"  missing in the file: {_families(absent)}")
        if self.unexpected:
            lines.append(f"  ignored in the file: {_families(self.unexpected)}")
        return "\n".join(lines)


def load_vit_weights(vit: VisionTransformer, path: str | Path) -> WeightsReport:
    """Copy the weights in `path` (.safetensors, or .pth / .pt / .bin of tensors alone) into `vit`, all or nothing.

    Nothing in the file is executed. `vit` is not changed where an error is raised.

    Raises:
        ValueError: the file is missing or unreadable, holds no ViT of timm's or DINOv2's names, or one of another width or depth.
    """
    path = Path(path)
    state, own = _read(path), dict(vit.state_dict())
    _check_size(vit, state, path)
    resized: list[str] = []
    notes: list[str] = []
    if any(name.endswith("ls1.gamma") for name in state) and not any(name.endswith("ls1.gamma") for name in own):
        raise ValueError(
            f"{path}: expected a ViT without layer scale, got one with it. Set layer_scale=true of the camera modality"
        )
    if "patch_embed.proj.weight" in state and "patch_embed.proj.weight" in own:
        state["patch_embed.proj.weight"] = _fit_patch(state["patch_embed.proj.weight"], own, resized, path)
    if "pos_embed" in state:
        state["pos_embed"] = _fit_positions(state, vit.grid_size, resized, path)
    heads = cast(Block, vit.blocks[0]).attn.heads
    if vit.pos_embed.shape[-1] != 64 * heads:
        notes.append(
            f"this network has {heads} heads of {vit.pos_embed.shape[-1] // heads} channels; published ViTs have 64 a head. "
            "Files do not record it: set heads of the camera modality to what the weights were trained with"
        )
    faults = [
        f"{name}: expected {list(own[name].shape)}, got {list(value.shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    if faults:
        raise ValueError(
            f"{path}: {'; '.join(faults[:4])}. Choose weights of this network's kind of ViT, or change its config"
        )
    fitting = {name: value for name, value in state.items() if name in own}
    vit.load_state_dict(fitting, strict=False)
    return WeightsReport(
        source=str(path),
        loaded=tuple(name for name in own if name in fitting),
        missing=tuple(name for name in own if name not in fitting),
        unexpected=tuple(sorted(name for name in state if name not in own)),
        resized=tuple(resized),
        notes=tuple(notes),
    )


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of the file."""
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; expected ViT weights as .safetensors, .pth or .pt: download them beforehand"
        )
    try:
        if path.suffix == ".safetensors":
            content: object = read_tensors(path)
        else:
            _check_unpacked(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _FAULTS as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{path}: not readable as weights ({reason}). Expected a whole .safetensors file, or a torch file that holds "
            "tensors alone; save the state_dict of anything else by itself"
        ) from error
    for nest in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
    tensors = content.items() if isinstance(content, Mapping) else ()
    state = {name: value for name, value in tensors if isinstance(name, str) and isinstance(value, Tensor)}
    for name, value in state.items():
        if value.layout is not torch.strided or value.is_quantized or value.nbytes > value.untyped_storage().nbytes():
            raise ValueError(
                f"{path}: {name}: expected a tensor whose numbers are all there, got one that repeats or packs them"
            )
    if not any(re.match(r"blocks\.\d{1,3}\.", name) for name in state):
        found = ", ".join(name[:100] for name in list(state)[:3]) or "no tensors"
        raise ValueError(f"{path}: no ViT named as by timm or DINOv2: expected names like {_EXAMPLE}, got {found}")
    return state


def _check_unpacked(path: Path) -> None:
    """ValueError for an archive that holds more than its file has bytes; torch packs nothing."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError("its members are compressed, or lie in each other")


def _check_size(vit: VisionTransformer, state: Mapping[str, Tensor], path: Path) -> None:
    """ValueError where the file's ViT has another width or depth than `vit`."""
    dim, depth = vit.pos_embed.shape[-1], len(vit.blocks)
    got_depth = 1 + max(int(match[1]) for name in state if (match := re.match(r"blocks\.(\d{1,3})\.", name)))
    norm = next((state[name] for name in state if re.match(r"blocks\.\d+\.norm1\.weight", name)), None)
    got_dim = dim if norm is None or norm.ndim != 1 else norm.shape[0]
    if (got_dim, got_depth) != (dim, depth):
        raise ValueError(
            f"{path}: expected a ViT of width {dim} and depth {depth}, got width {got_dim} and depth {got_depth}. "
            f"Set dim={got_dim} and depth={got_depth} of the camera modality, or choose weights of the network's size"
        )


def _fit_patch(kernel: Tensor, own: Mapping[str, Tensor], resized: list[str], path: Path) -> Tensor:
    """The patch kernel [d, 3, p, p] at the network's patch side."""
    expected = own["patch_embed.proj.weight"].shape
    side = kernel.shape[-1] if kernel.ndim == 4 and kernel.shape[2] == kernel.shape[3] else 0
    if kernel.ndim != 4 or kernel.shape[:2] != expected[:2] or not 0 < side <= _MAX_PATCH_PX:
        raise ValueError(
            f"{path}: patch_embed.proj.weight: expected {list(expected)} (or another patch side), got {list(kernel.shape)}: "
            "choose weights of a ViT on RGB pictures"
        )
    old, new = kernel.shape[-1], expected[-1]
    if old == new:
        return kernel
    resized.append(f"patch_embed.proj.weight: {old} x {old} px -> {new} x {new} px")
    return resize_patch_kernel(kernel, new)


def resize_patch_kernel(kernel: Tensor, side: int) -> Tensor:
    """[d, c, p, p] -> [d, c, q, q], such that a patch enlarged from p to q pixels gives the tokens that it gave before.

    The pseudo-inverse of bicubic resizing, as in FlexiViT (Beyer et al., CVPR 2023).
    """
    old = kernel.shape[-1]
    basis = torch.eye(old * old, dtype=torch.double).view(old * old, 1, old, old)
    enlarge = F.interpolate(basis, size=(side, side), mode="bicubic", antialias=True).flatten(1)  # [p * p, q * q]
    back = torch.linalg.pinv(enlarge)  # [q * q, p * p]
    return (kernel.double().flatten(2) @ back.T).unflatten(-1, (side, side)).to(kernel.dtype)


def _fit_positions(state: Mapping[str, Tensor], grid: tuple[int, int], resized: list[str], path: Path) -> Tensor:
    """[1, 1 + h * w, d]: the class token's entry (zero where the file has none), then one for each token of our grid."""
    positions = state["pos_embed"].float()
    if positions.ndim != 3 or positions.shape[0] != 1:
        raise ValueError(
            f"{path}: pos_embed: expected [1, T, d], got {list(positions.shape)}: choose weights of a plain ViT"
        )
    total = positions.shape[1]
    registers = next((state[name].shape[1] for name in _REGISTERS if name in state and state[name].ndim == 3), 0)
    extra = 1 + registers + ("dist_token" in state)
    old = next((p for leading in (1, 0, extra) if (p := _grid_of(total - leading, grid)) is not None), None)
    if old is None:
        raise ValueError(
            f"{path}: pos_embed: expected a square grid of positions, or {grid[0]} x {grid[1]}, with at most {extra} entries "
            f"before it, got {total} entries: choose weights trained on square pictures"
        )
    leading = total - old[0] * old[1]
    entry = positions[:, :1] if leading else torch.zeros_like(positions[:, :1])
    patches = positions[:, leading:]
    if old != grid:
        resized.append(f"pos_embed: {old[0]} x {old[1]} -> {grid[0]} x {grid[1]} tokens")
        image = patches.transpose(1, 2).unflatten(2, old)
        image = F.interpolate(image, size=grid, mode="bicubic", antialias=True)
        patches = image.flatten(2).transpose(1, 2)
    return torch.cat([entry, patches], dim=1)


def _grid_of(tokens: int, own_grid: tuple[int, int]) -> tuple[int, int] | None:
    """(h, w) of so many tokens: our own grid, or a square; None where they are neither."""
    if tokens == own_grid[0] * own_grid[1]:
        return own_grid
    side = math.isqrt(max(tokens, 0))
    return (side, side) if tokens > 0 and side * side == tokens else None


def _families(names: tuple[str, ...] | list[str]) -> str:
    """`names` in short: numbered blocks together, at most eight."""
    short = list(dict.fromkeys(re.sub(r"^blocks\.\d+\.", "blocks.*.", name) for name in names))
    return ", ".join(short[:8]) + (f" and {len(short) - 8} more" if len(short) > 8 else "")
