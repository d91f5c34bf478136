"""Cross-attention promises shares that tell whom it trusted, and one function on every device."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from fusion import BEVFeatures, CrossAttentionFusion
from fusion.fusers.cross_attention import position_embedding
from fusion.kernels import devices
from fusion.kernels.blocks import BlockAttention
from fusion.nulls import trusted_mean
from tests.fusion.grids import CHANNELS, SHAPE, random_features
from tests.fusion.kinds import FUSERS


def test_position_embeddings_tell_cells_apart() -> None:
    embedding = position_embedding((24, 16), 32)
    assert embedding.shape == (24, 16, 32)
    distance = torch.cdist(embedding.flatten(0, 1), embedding.flatten(0, 1))
    assert (distance + torch.eye(24 * 16) > 1e-2).all()
    with pytest.raises(ValueError, match="multiple of 4, got 30"):
        position_embedding((2, 2), 30)


@pytest.mark.parametrize("neighbourhood", [1, 3])
@pytest.mark.parametrize("absent", ["null", "zeros", "mask"])
def test_attention_of_the_fuser_sums_to_one_over_modalities(neighbourhood: int, absent: str) -> None:
    torch.manual_seed(0)
    fuser = CrossAttentionFusion(CHANNELS, 8, heads=2, neighbourhood=neighbourhood, absent=absent)  # type: ignore[arg-type]
    features = random_features()
    lidar = features["lidar"]
    assert lidar is not None
    fused = fuser(features)
    torch.testing.assert_close(fused.attention.sum(1), torch.ones(2, *SHAPE))
    assert fused.attention.shape == (2, 3, *SHAPE)
    # Nobody anywhere: with a mask there is nothing to trust.
    nobody = {"lidar": BEVFeatures(lidar.features, torch.zeros(2, *SHAPE))}
    total = fuser(nobody).attention.sum(1)
    torch.testing.assert_close(total, torch.zeros(2, *SHAPE) if absent == "mask" else torch.ones(2, *SHAPE))


@pytest.mark.parametrize("neighbourhood", [1, 3])
@pytest.mark.parametrize("absent", ["null", "mask"])
def test_what_a_sensor_says_weighs_as_much_as_the_cell_listens_to_it(neighbourhood: int, absent: str) -> None:
    """With what is attended to and the feed-forward silenced, the mean by shares of those present is left."""
    torch.manual_seed(0)
    fuser = CrossAttentionFusion(CHANNELS, 8, heads=2, neighbourhood=neighbourhood, absent=absent)  # type: ignore[arg-type]
    for parameter in (*fuser.out.parameters(), *fuser.feed_forward[-1].parameters()):
        torch.nn.init.zeros_(parameter)
    features = random_features() | {"camera": None}
    fused = fuser(features)
    tokens, coverage = fuser.tokens(features)
    expected = torch.zeros_like(fused.features)
    for b, x, y in torch.cartesian_prod(torch.arange(2), torch.arange(SHAPE[0]), torch.arange(SHAPE[1])).tolist():
        present = [m for m in (1, 2) if coverage[m, b, x, y] > 0]
        share = fused.attention[b, present, x, y]
        expected[b, :, x, y] = (share / share.sum()) @ tokens[present, b, x, y]
    torch.testing.assert_close(fused.features, expected)


def test_a_sensor_that_a_cell_ignores_adds_nothing_to_it_and_a_lone_one_all() -> None:
    tokens = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    share = torch.tensor([1.0, 1e-9]).view(1, 2, 1, 1)
    both, second = torch.ones(2, 1, 1, 1), torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    torch.testing.assert_close(trusted_mean(tokens, both, share), tokens[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trusted_mean(tokens, second, share), tokens[1])
    assert not trusted_mean(tokens, torch.zeros(2, 1, 1, 1), share).any()


def test_a_masked_modality_is_given_no_attention() -> None:
    torch.manual_seed(0)
    fused = CrossAttentionFusion(CHANNELS, 8, heads=2, absent="mask")(random_features() | {"camera": None})
    assert not fused.attention[:, 0].any()
    covered = random_features()["radar"]
    assert covered is not None
    assert not fused.attention[:, 2][covered.coverage == 0].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_channels": 10, "heads": 2}, "multiple of heads"),
        ({"out_channels": 8, "heads": 3}, "multiple of heads"),
        ({"out_channels": 8, "heads": 2, "neighbourhood": 2}, "expected 1 or 3, got 2"),
        ({"out_channels": 8, "heads": 2, "absent": "nothing"}, "expected null, zeros, mask, got 'nothing'"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrossAttentionFusion(CHANNELS, **arguments)  # type: ignore[arg-type]


def test_a_fuser_needs_a_modality() -> None:
    with pytest.raises(ValueError, match="at least one modality"):
        CrossAttentionFusion({}, 8, heads=2)


@pytest.mark.parametrize("kind", ["attention null", "attention 3 x 3 null", "attention 3 x 3 mask", "gated 3 x 3 null"])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_way_of_other_devices_is_the_same_function(
    kind: str, bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU takes all cells at once: here it is taken on the CPU, and gives what the blocks give, forward and backward."""
    torch.manual_seed(0)
    fuser, features = FUSERS[kind](CHANNELS), random_features() | {"camera": None}

    def outcome() -> list[Tensor]:
        fuser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            fused = fuser(features)
            with torch.no_grad():
                inferred = fuser(features)
        (fused.features.float().square().mean() + fused.attention.square().mean()).backward()
        gradients = [p.grad for p in fuser.parameters() if p.grad is not None]
        return [*vars(inferred).values(), *(t.detach() for t in vars(fused).values()), *gradients]

    expected = outcome()
    monkeypatch.setattr(devices, "in_blocks", lambda device: False)
    other = Mock(side_effect=AssertionError("a CPU's way"))
    monkeypatch.setattr(BlockAttention, "apply", other)
    tolerance = 0.1 if bfloat16 else 1e-4
    for got, wanted in zip(outcome(), expected, strict=True):
        scale = max(1e-3, float(wanted.abs().max()))
        torch.testing.assert_close(got.float() / scale, wanted.float() / scale, rtol=tolerance, atol=tolerance / 2)
