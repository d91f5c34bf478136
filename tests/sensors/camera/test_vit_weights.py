"""Published weights promise: what fits is loaded, what is resized keeps its meaning, and the report says what became of the rest.

The files are made here under timm's and DINOv2's names; no published file is downloaded.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from sensors.camera.vit import VisionTransformer
from sensors.camera.vit_weights import load_vit_weights, resize_patch_kernel

DIM, DEPTH, HEADS = 64, 2, 1
State = dict[str, Tensor]


def vit(
    image_size: tuple[int, int] = (64, 64),
    *,
    patch_px: int = 16,
    layer_scale: bool = False,
    stem: str = "patch",
    heads: int = HEADS,
) -> VisionTransformer:
    return VisionTransformer(
        image_size=image_size, stem=stem, patch_px=patch_px, dim=DIM, depth=DEPTH, heads=heads, layer_scale=layer_scale,
        feature_stride_px=patch_px // 2, out_channels=8,
    )  # fmt: skip


def published(
    *, dim: int = DIM, depth: int = DEPTH, patch_px: int = 16, tokens: int = 16, gamma: bool = False, extra: int = 1
) -> State:
    """The tensors that timm and DINOv2 both name so, with `extra` entries before the positions of `tokens` patches."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return 0.1 * torch.randn(*shape, generator=generator)

    state = {
        "cls_token": noise(1, 1, dim),
        "pos_embed": noise(1, extra + tokens, dim),
        "patch_embed.proj.weight": noise(dim, 3, patch_px, patch_px),
        "patch_embed.proj.bias": noise(dim),
        "norm.weight": noise(dim),
        "norm.bias": noise(dim),
    }
    for i in range(depth):
        for name, shape in {
            "norm1": (dim,), "norm2": (dim,), "attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim),
            "mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim),
        }.items():  # fmt: skip
            state[f"blocks.{i}.{name}.weight"] = noise(*shape)
            state[f"blocks.{i}.{name}.bias"] = noise(shape[0])
        if gamma:
            state[f"blocks.{i}.ls1.gamma"] = noise(dim)
            state[f"blocks.{i}.ls2.gamma"] = noise(dim)
    return state


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(content: object, name: str = "vit.pth") -> Path:
        path = tmp_path / name
        if name.endswith(".safetensors"):
            safetensors.torch.save_file(content, path)  # type: ignore[arg-type]
        else:
            torch.save(content, path)
        return path

    return write


@pytest.mark.parametrize("name", ["vit.safetensors", "vit.pth", "vit.pt"])
def test_every_published_tensor_arrives_and_the_neck_is_new(write: Callable[..., Path], name: str) -> None:
    network, state = vit(), published()
    state |= {"head.weight": torch.zeros(1000, DIM), "head.bias": torch.zeros(1000)}
    neck_up = network.neck_up
    assert isinstance(neck_up, torch.nn.ConvTranspose2d | torch.nn.Conv2d)
    before = neck_up.weight.clone()
    report = load_vit_weights(network, write(state, name))
    for key, value in network.state_dict().items():
        if not key.startswith("neck"):
            assert torch.equal(value, state[key]), key
    assert torch.equal(neck_up.weight, before)
    assert set(report.loaded) == set(state) - {"head.weight", "head.bias"}
    assert set(report.unexpected) == {"head.weight", "head.bias"}
    assert all(key.startswith("neck") for key in report.missing)
    assert report.resized == ()
    assert report.notes == ()
    text = str(report)
    assert f"{len(report.loaded)} tensors loaded" in text
    assert "new layers, which no published ViT has: neck" in text
    assert "ignored in the file: head.bias, head.weight" in text
    assert "missing in the file" not in text


@pytest.mark.parametrize("nest", ["model", "state_dict"])
def test_weights_may_lie_beside_other_things_of_a_training(write: Callable[..., Path], nest: str) -> None:
    network, state = vit(), published()
    report = load_vit_weights(network, write({nest: state, "optimizer": {"state": {0: torch.zeros(3)}}, "epoch": 300}))
    assert set(report.loaded) == set(state)
    assert torch.equal(network.state_dict()["blocks.1.attn.qkv.weight"], state["blocks.1.attn.qkv.weight"])
    assert report.unexpected == ()


def test_positions_are_resized_to_the_grid_and_the_class_keeps_its_own(write: Callable[..., Path]) -> None:
    network, state = vit((64, 176)), published(tokens=14 * 14)
    report = load_vit_weights(network, write(state))
    assert report.resized == ("pos_embed: 14 x 14 -> 4 x 11 tokens",)
    assert "resized: pos_embed: 14 x 14 -> 4 x 11 tokens" in str(report)
    assert torch.equal(network.pos_embed[:, 0], state["pos_embed"][:, 0])
    image = state["pos_embed"][:, 1:].view(1, 14, 14, DIM).permute(0, 3, 1, 2)
    expected = F.interpolate(image, size=(4, 11), mode="bicubic", antialias=True).permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(network.pos_embed[:, 1:].detach(), expected)


def test_resized_positions_keep_up_up_and_left_left(write: Callable[..., Path]) -> None:
    """A ramp to the right in one channel and downward in another remain that on a wider, lower grid."""
    state = published(tokens=64)
    down, right = torch.meshgrid(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 8), indexing="ij")
    state["pos_embed"][0, 1:, 0], state["pos_embed"][0, 1:, 1] = right.flatten(), down.flatten()
    network = vit((64, 176))
    load_vit_weights(network, write(state))
    grid = network.pos_embed[0, 1:].detach().view(4, 11, DIM)
    assert (grid[:, 1:, 0] > grid[:, :-1, 0]).all()
    assert (grid[1:, :, 1] > grid[:-1, :, 1]).all()


@pytest.mark.parametrize(("extra", "registers"), [(0, 0), (0, 4), (1, 4), (5, 4), (2, 0)])
def test_class_register_and_distillation_entries_are_told_from_patches(
    write: Callable[..., Path], extra: int, registers: int
) -> None:
    """timm's register models have no entry for them, DINOv2's one for the class, some one for each; DeiT has two."""
    state = published(extra=extra)
    if registers:
        state["register_tokens" if extra else "reg_token"] = torch.zeros(1, registers, DIM)
    if extra == 2:
        state["dist_token"] = torch.zeros(1, 1, DIM)
    network = vit()
    report = load_vit_weights(network, write(state))
    assert torch.equal(network.pos_embed[:, 1:], state["pos_embed"][:, extra:])
    expected = state["pos_embed"][:, :1] if extra else torch.zeros(1, 1, DIM)
    assert torch.equal(network.pos_embed[:, :1], expected)
    assert {name for name in report.unexpected if "token" in name} == set(state) & {
        "register_tokens",
        "reg_token",
        "dist_token",
    }


def test_a_patch_kernel_of_14_serves_patches_of_16(write: Callable[..., Path]) -> None:
    network, state = vit(), published(patch_px=14, tokens=37 * 37)
    state["mask_token"] = torch.zeros(1, DIM)
    report = load_vit_weights(network, write(state))
    assert report.resized == ("patch_embed.proj.weight: 14 x 14 px -> 16 x 16 px", "pos_embed: 37 x 37 -> 4 x 4 tokens")
    assert report.unexpected == ("mask_token",)
    patches = torch.randn(5, 3, 14, 14, generator=torch.Generator().manual_seed(2))
    larger = F.interpolate(patches, size=(16, 16), mode="bicubic", antialias=True)
    torch.testing.assert_close(
        network.patch_embed.proj(larger).detach(),
        F.conv2d(patches, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("side", [8, 12])
def test_a_smaller_patch_answers_alike_to_what_it_can_show(side: int) -> None:
    kernel = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    kernel = F.avg_pool2d(kernel, 5, 1, 2)  # smooth, as trained kernels mostly are
    smaller = resize_patch_kernel(kernel, side)
    assert smaller.shape == (4, 3, side, side)
    flat = torch.ones(1, 3, 16, 16)
    torch.testing.assert_close(F.conv2d(flat[..., :side, :side], smaller), F.conv2d(flat, kernel), rtol=0.05, atol=0.5)


def test_layer_scale_is_loaded_where_the_network_has_it(write: Callable[..., Path]) -> None:
    network, state = vit(layer_scale=True), published(gamma=True)
    assert load_vit_weights(network, write(state)).notes == ()
    assert torch.equal(network.state_dict()["blocks.1.ls2.gamma"], state["blocks.1.ls2.gamma"])


def test_a_convolutional_stem_takes_the_blocks_and_says_that_it_is_new(write: Callable[..., Path]) -> None:
    network, state = vit(stem="conv"), published()
    report = load_vit_weights(network, write(state))
    assert torch.equal(network.state_dict()["blocks.0.mlp.fc1.bias"], state["blocks.0.mlp.fc1.bias"])
    assert set(report.unexpected) == {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert "conv_stem." in str(report)


def test_what_the_file_lacks_is_named(write: Callable[..., Path]) -> None:
    state = {name: v for name, v in published().items() if not name.startswith("norm.") and "qkv.bias" not in name}
    report = load_vit_weights(vit(), write(state))
    assert {"norm.weight", "norm.bias", "blocks.0.attn.qkv.bias"} <= set(report.missing)
    assert "missing in the file: blocks.*.attn.qkv.bias, norm.weight, norm.bias" in str(report)


def test_half_precision_files_become_float32(write: Callable[..., Path]) -> None:
    network = vit((64, 176))
    load_vit_weights(network, write({name: v.half() for name, v in published(patch_px=14).items()}))
    assert all(p.dtype == torch.float32 for p in network.parameters())


def test_heads_that_no_published_vit_has_are_remarked_on(write: Callable[..., Path]) -> None:
    """A file does not say how many heads it was trained with; the wrong number loads and sees nothing."""
    report = load_vit_weights(vit(heads=4), write(published()))
    assert "4 heads of 16 channels; published ViTs have 64 a head" in str(report)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (published(gamma=True), "expected a ViT without layer scale, got one with it. Set layer_scale=true"),
        (published(dim=128), "expected a ViT of width 64 and depth 2, got width 128 and depth 2. Set dim=128"),
        (published(depth=5), "got width 64 and depth 5. Set dim=64 and depth=5 of the camera modality, or choose"),
        (published(depth=1), "got width 64 and depth 1"),
        (published(tokens=14), "pos_embed: expected a square grid of positions, or 4 x 4, .* got 15 entries: choose"),
        (published() | {"pos_embed": torch.zeros(3)}, r"pos_embed: expected \[1, T, d\], got \[3\]"),
        (
            published() | {"patch_embed.proj.weight": torch.zeros(DIM, 1, 16, 16)},
            r"expected \[64, 3, 16, 16\] .* got \[64, 1, 16, 16\]: choose weights of a ViT on RGB",
        ),
        (
            published() | {"blocks.0.mlp.fc1.weight": torch.zeros(7, DIM)},
            r"blocks.0.mlp.fc1.weight: expected \[256, 64\], got \[7, 64\]\. Choose",
        ),
        ({"layer1.0.conv1.weight": torch.zeros(3)}, "no ViT named as by timm or DINOv2: .* got layer1.0.conv1.weight"),
        ({}, "got no tensors"),
        ({f"module.{name}": value for name, value in published().items()}, "like blocks.0.attn.qkv.weight, got module"),
    ],
    ids=range(11),
)  # fmt: skip
def test_what_does_not_fit_is_refused_and_changes_nothing(
    write: Callable[..., Path], state: State, message: str
) -> None:
    network = vit()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    path = write(state)
    with pytest.raises(ValueError, match=message) as error:
        load_vit_weights(network, path)
    assert str(path) in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Config:
    """A stranger's class in a checkpoint."""


@pytest.mark.filterwarnings("ignore:.*pickle protocol")
@pytest.mark.parametrize("name", ["vit.safetensors", "vit.pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x00" * 5000, pickle.dumps({"a": Path("/")})])
def test_an_unreadable_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: (not readable as weights|no ViT named)"):
        load_vit_weights(vit(), path)


@pytest.mark.parametrize("name", ["vit.safetensors", "vit.pth"])
def test_a_truncated_file_is_named(write: Callable[..., Path], name: str) -> None:
    path = write(published(), name)
    data = path.read_bytes()
    for part in (0.3, 0.99):
        path.write_bytes(data[: int(part * len(data))])
        with pytest.raises(ValueError, match=f"{name}: not readable as weights"):
            load_vit_weights(vit(), path)


def test_a_torch_file_with_more_than_tensors_is_refused_and_not_run(write: Callable[..., Path]) -> None:
    path = write({"model": published(), "args": Config()})
    with pytest.raises(ValueError, match=r"not readable as weights .* save the state_dict of anything else by itself"):
        load_vit_weights(vit(), path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.pth: no such file; expected ViT weights"):
        load_vit_weights(vit(), tmp_path / "nowhere.pth")
