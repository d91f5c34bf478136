"""What each way to fuse promises beyond the common interface: its formula, whom it can hear, and whom it trusts.

Letters: B samples, C channels, M modalities, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fusion import (
    Absent,
    BEVFeatures,
    ChannelWeightFusion,
    CrossAttentionFusion,
    FusedBEV,
    Fuser,
    GatedFusion,
    JointFusion,
    LatentFusion,
    MeanFusion,
)
from fusion.fusers.tokens import attend, pooled_tokens
from tests.fusion.grids import CHANNELS, SHAPE, random_features
from tests.fusion.kinds import FUSERS

BASE = {"camera": 8, "lidar": 8}
Given = Mapping[str, BEVFeatures | None]


def seeded(fuser: type[Fuser], *arguments: object, **options: object) -> Fuser:
    torch.manual_seed(0)
    return fuser(*arguments, **options)


def moved_cells(fuser: Fuser, features: Given, changed: Given) -> Tensor:
    """[X, Y] bool of fused cells of sample 0 that differ between the two."""
    difference = fuser(features).features[0] - fuser(changed).features[0]
    return difference.detach().abs().amax(0) > 0


def with_one_cell_changed(features: Given, name: str, x: int, y: int) -> Given:
    sensed = features[name]
    assert sensed is not None
    changed = sensed.features.clone()
    changed[0, :, x, y] += 5 * torch.randn(8, generator=torch.Generator().manual_seed(1))
    return {**features, name: replace(sensed, features=changed)}


# Channel-normalised weights


@pytest.mark.parametrize("absent", ["mask", "null"])
def test_channel_weights_are_a_softmax_over_those_who_count(absent: Absent) -> None:
    fuser = seeded(ChannelWeightFusion, CHANNELS, 8, absent=absent)
    assert isinstance(fuser, ChannelWeightFusion)
    for weight in fuser.weight.values():
        nn.init.normal_(weight)
    features = random_features()
    tokens, coverage = fuser.tokens(features)
    expected = torch.zeros(2, *SHAPE, 8)
    share = torch.zeros(2, 3, *SHAPE)
    for b, x, y in torch.cartesian_prod(torch.arange(2), torch.arange(SHAPE[0]), torch.arange(SHAPE[1])).tolist():
        who = [m for m in range(3) if absent != "mask" or coverage[m, b, x, y] > 0]
        weight = fuser.weight.stacked()[who].softmax(0)  # [M, C]
        expected[b, x, y] = (weight * tokens[who, b, x, y]).sum(0)
        share[b, who, x, y] = weight.mean(-1)
    fused = fuser(features)
    torch.testing.assert_close(fused.features, expected.permute(0, 3, 1, 2))
    torch.testing.assert_close(fused.attention, share)


def test_equal_channel_weights_are_the_mean() -> None:
    """Which is where they start."""
    features = random_features()
    expected = seeded(MeanFusion, CHANNELS, 8)(features)
    torch.testing.assert_close(seeded(ChannelWeightFusion, CHANNELS, 8)(features).features, expected.features)


# Latents


@pytest.mark.parametrize("masked", [False, True])
def test_pooling_is_the_mean_of_the_cells_that_count(masked: bool) -> None:
    features = random_features()
    tokens = torch.stack([f.features.permute(0, 2, 3, 1) for f in features.values() if f])
    coverage = torch.stack([f.coverage for f in features.values() if f])
    mean, covered = pooled_tokens(tokens, coverage, 2, masked=masked)
    assert mean.shape == (2, 3, 3, 3, 8)
    for m in range(3):
        for i in range(3):
            for j in range(3):
                cells = tokens[m, 0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten(0, 1)
                counts = coverage[m, 0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten() > 0
                chosen = cells[counts] if masked else cells
                expected = chosen.mean(0) if len(chosen) else torch.zeros(8)
                torch.testing.assert_close(mean[0, m, i, j], expected)
                assert covered[0, m, i, j] == counts.any()


def test_attending_is_torchs_attention_and_tells_its_weights() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 2, 5, 4), torch.randn(2, 2, 6, 4), torch.randn(2, 2, 6, 4)
    seen = torch.tensor([[True] * 6, [True, False, True, False, False, True]])
    attended, weight = attend(query, key, value, seen)
    expected = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None, None])
    torch.testing.assert_close(attended, expected)
    torch.testing.assert_close(weight.sum(-1), torch.ones(2, 2, 5))
    nothing, weight = attend(query, key, value, torch.zeros_like(seen))
    assert not nothing.any()
    assert not weight.any()


@pytest.mark.parametrize("fuser_class", [LatentFusion, JointFusion])
def test_a_cell_hears_of_what_a_sensor_says_anywhere(fuser_class: type[Fuser]) -> None:
    """Which attention to its own cell or neighbourhood does not give."""
    fuser = seeded(fuser_class, CHANNELS, 8, heads=2, pool=2)
    features = random_features()
    moved = moved_cells(fuser, features, with_one_cell_changed(features, "lidar", 0, 0))
    assert moved.all()
    near = seeded(CrossAttentionFusion, CHANNELS, 8, heads=2, neighbourhood=3)
    assert moved_cells(near, features, with_one_cell_changed(features, "lidar", 0, 0)).sum() == 4


@pytest.mark.parametrize("fuser_class", [LatentFusion, JointFusion])
def test_a_masked_sensor_is_given_no_share_on_the_coarse_grid_either(fuser_class: type[Fuser]) -> None:
    fuser = seeded(fuser_class, CHANNELS, 8, heads=2, absent="mask")
    fused = fuser(random_features() | {"camera": None})
    assert not fused.attention[:, 0].any()
    torch.testing.assert_close(fused.attention.sum(1), torch.ones(2, *SHAPE))
    assert not fuser({}, grid_shape=SHAPE, batch_size=2).attention.any()


def test_what_cells_attend_to_does_not_grow_with_the_grid() -> None:
    fuser = seeded(LatentFusion, CHANNELS, 8, heads=2, latents=5)
    assert isinstance(fuser, LatentFusion)
    counts = []
    fuser.summary_norm.register_forward_hook(lambda _, given, __: counts.append(given[0].shape[1]))
    for cells in (8, 24):
        fuser({}, grid_shape=(cells, cells), batch_size=1)
    assert counts == [3 * 5, 3 * 5]


# Joint self-attention


@pytest.mark.parametrize("absent", ["null", "mask"])
def test_joint_attention_is_torchs_encoder_layer(absent: Absent) -> None:
    fuser = seeded(JointFusion, CHANNELS, 8, heads=2, pool=2, absent=absent)
    assert isinstance(fuser, JointFusion)
    peer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=8, dropout=0.0, batch_first=True, norm_first=True)
    peer.self_attn.in_proj_weight.data = fuser.query_key_value.weight.data
    peer.self_attn.in_proj_bias.data = fuser.query_key_value.bias.data
    norm, first, _, second = fuser.token_feed_forward
    for theirs, ours in (
        (peer.self_attn.out_proj, fuser.attention_out), (peer.norm1, fuser.attention_norm), (peer.norm2, norm),
        (peer.linear1, first), (peer.linear2, second),
    ):  # fmt: skip
        theirs.load_state_dict(ours.state_dict())
    coarse = torch.randn(2, 3, 2, 2, 8)
    covered = torch.rand(2, 3, 2, 2) < 0.5
    covered[:, 0] = True
    nn.init.zeros_(fuser.position.weight)  # the peer knows of no places
    for embedding in fuser.modality.values():
        nn.init.zeros_(embedding)
    got = fuser._converse(coarse, covered if absent == "mask" else None)
    padding = ~covered.flatten(1) if absent == "mask" else None
    expected = peer(coarse.flatten(1, 3), src_key_padding_mask=padding)
    torch.testing.assert_close(got.flatten(1, 3), expected, rtol=1e-4, atol=1e-5)


# Gated addition


def radar_added(neighbourhood: int = 1) -> tuple[Fuser, GatedFusion]:
    base = seeded(CrossAttentionFusion, BASE, 8, heads=2)
    return base, GatedFusion(base, {"radar": 8}, 8, modalities=list(CHANNELS), heads=2, neighbourhood=neighbourhood)


def assert_same_but_for_who_is_named(got: FusedBEV, expected: FusedBEV) -> None:
    assert torch.equal(got.features, expected.features)
    assert torch.equal(got.attention[:, :2], expected.attention)
    assert not got.attention[:, 2].any()


@pytest.mark.parametrize("neighbourhood", [1, 3])
def test_an_added_sensor_changes_not_a_bit_at_first_and_none_ever_when_it_is_gone(neighbourhood: int) -> None:
    base, fuser = radar_added(neighbourhood)
    features = random_features()
    expected = base({name: features[name] for name in BASE})
    assert_same_but_for_who_is_named(fuser(features), expected)
    nn.init.constant_(fuser.added.attention_gate, 1.0)
    nn.init.constant_(fuser.added.feed_forward_gate, 1.0)
    radar = features["radar"]
    assert radar is not None
    gone = fuser(features | {"radar": None})
    assert_same_but_for_who_is_named(gone, expected)
    assert torch.equal(gone.coverage, expected.coverage)
    blind = fuser(features | {"radar": BEVFeatures(radar.features * torch.nan, torch.zeros_like(radar.coverage))})
    assert_same_but_for_who_is_named(blind, expected)
    with_radar = fuser(features).features
    reached = (radar.coverage > 0)[:, None].expand_as(with_radar)
    assert torch.equal(with_radar[~reached], expected.features[~reached]), (
        "cells that it does not see stay as they were"
    )
    assert (with_radar != expected.features).any(1)[radar.coverage > 0].all()


def test_closed_gates_learn_and_then_let_the_rest_learn() -> None:
    base, fuser = radar_added()
    base.requires_grad_(requires_grad=False)
    features = random_features()

    def learning() -> set[str]:
        fuser.zero_grad()
        fuser(features).features.square().sum().backward()
        return {n for n, p in fuser.named_parameters() if p.grad is not None and p.grad.any()}

    assert learning() == {"added.attention_gate", "added.feed_forward_gate"}
    nn.init.constant_(fuser.added.attention_gate, 0.1)
    assert {"added.out.weight", "added.key_value.weight", "added.nothing", "added.query.weight"} <= learning()
    assert not any(name.startswith("base.") for name in learning())


def test_the_share_of_an_added_sensor_opens_with_its_gate() -> None:
    _, fuser = radar_added()
    features = random_features()
    radar = features["radar"]
    assert radar is not None
    shares = []
    for gate in (0.0, 0.2, 2.0):
        nn.init.constant_(fuser.added.attention_gate, gate)
        attention = fuser(features).attention
        torch.testing.assert_close(attention.sum(1), torch.ones(2, *SHAPE))
        shares.append(attention[:, 2][radar.coverage > 0])
    assert not shares[0].any()
    assert (shares[1] > 0).all()
    assert (shares[2] > shares[1]).all()


def test_a_sensor_is_added_once() -> None:
    base = seeded(CrossAttentionFusion, CHANNELS, 8, heads=2)
    with pytest.raises(ValueError, match="radar is a modality of the base already"):
        GatedFusion(base, {"radar": 8}, 8, modalities=list(CHANNELS), heads=2)
    base = seeded(CrossAttentionFusion, BASE, 8, heads=2)
    with pytest.raises(
        ValueError, match=r"of the base \(camera, lidar\) and the added ones \(radar\), got camera, radar"
    ):
        GatedFusion(base, {"radar": 8}, 8, modalities=["camera", "radar"], heads=2)


def test_what_does_not_fit_the_base_is_refused_when_it_is_built() -> None:
    """And not when the new sensor appears."""
    base = seeded(CrossAttentionFusion, BASE, 8, heads=2)
    for channels in (4, 16):
        with pytest.raises(ValueError, match=f"out_channels: expected 8, as many as the base gives, got {channels}"):
            GatedFusion(base, {"radar": 8}, channels, modalities=list(CHANNELS), heads=2)

    class Own(Fuser):
        modalities = ("camera", "lidar")
        in_channels = BASE

    with pytest.raises(ValueError, match="base: expected a Fuser that says its out_channels, got Own: set it there"):
        GatedFusion(Own(), {"radar": 8}, 8, modalities=list(CHANNELS))


class Sum(Fuser):
    """A user's own, of nothing that is ours."""

    modalities, in_channels, out_channels = ("camera", "lidar"), BASE, 8

    def forward(self, features: Given, *, grid_shape: tuple[int, int] | None = None, batch_size: int = 1) -> FusedBEV:
        there = [f for f in features.values() if f is not None]
        coverage = torch.stack([f.coverage for f in there]).amax(0)
        grid = torch.stack([f.features * f.coverage[:, None] for f in there]).sum(0)
        return FusedBEV(grid, torch.full((len(grid), 2, *grid.shape[2:]), 0.5), coverage)


def test_a_sensor_is_added_to_a_fuser_of_the_users_own() -> None:
    torch.manual_seed(0)
    base = Sum()
    fuser = GatedFusion(base, {"radar": 8}, 8, modalities=list(CHANNELS), heads=2)
    features = random_features()
    assert_same_but_for_who_is_named(fuser(features), base({name: features[name] for name in BASE}))


def test_every_fuser_says_what_it_takes_and_gives() -> None:
    for kind, build in FUSERS.items():
        fuser = build({"camera": 5, "lidar": 8, "radar": 3})
        assert fuser.in_channels == {"camera": 5, "lidar": 8, "radar": 3}, kind
        assert list(fuser.in_channels) == list(fuser.modalities)
        assert fuser.out_channels == 8
