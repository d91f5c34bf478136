"""Bad input to `fusion` is a ValueError that says what was expected, what was found and what to do, before any computation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusion import (
    BEVFeatures,
    CrossAttentionFusion,
    JointFusion,
    LatentFusion,
    MeanFusion,
    draw_subsets,
    drop_members,
    drop_modalities,
)

CHANNELS = {"thermal": 4, "odour": 2}


def given(name: str = "thermal", **changes: Any) -> BEVFeatures:
    """Sound features of a sensor, but for what `changes`."""
    return BEVFeatures(**{"features": torch.zeros(1, CHANNELS[name], 3, 2), "coverage": torch.ones(1, 3, 2), **changes})


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"smell": given()}, "unknown modality 'smell'; this fuser was built for thermal, odour: name one of these"),
        (
            {"thermal": torch.zeros(1, 4, 3, 2)},
            r"thermal: expected BEVFeatures\(features, coverage\) of two tensors, got a tensor: say",
        ),
        (
            {"thermal": given(features=torch.zeros(1, 5, 3, 2))},
            r"expected features \[B, 4, X, Y\], got \[1, 5, 3, 2\]: build",
        ),
        (
            {"thermal": given(features=torch.zeros(1, 4, 3, 2).int())},
            r"floating dtype, got torch.int32: use \.float\(\)",
        ),
        ({"thermal": given(coverage=torch.ones(1, 2, 3))}, r"expected coverage \[1, 3, 2\] .* got \[1, 2, 3\]"),
        (
            {"thermal": given(coverage=torch.ones(1, 3, 2, device="meta"))},
            "expected coverage on cpu .* on meta: move them",
        ),
        (
            {"thermal": given(), "odour": BEVFeatures(torch.zeros(1, 2, 3, 3), torch.ones(1, 3, 3))},
            r"odour: features \[1, 2, 3, 3\] and thermal: features \[1, 4, 3, 2\] differ in batch or grid",
        ),
        (
            {"thermal": given(), "odour": BEVFeatures(*(t.to("meta") for t in vars(given("odour")).values()))},
            "odour is on meta, thermal on cpu: move them to one device",
        ),
        (
            {"thermal": BEVFeatures(*(t.to("meta") for t in vars(given()).values()))},
            "features are on meta, the fuser on cpu: move one",
        ),
        ({"thermal": given(coverage=[[1.0]])}, "of two tensors, got BEVFeatures: say where the sensor sees"),
        ({}, r"every modality is absent: give grid_shape=\(X, Y\) and batch_size"),
    ],
)
def test_features_that_do_not_fit(features: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeanFusion(CHANNELS, 8)(features)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MeanFusion({}, 8), "at least one modality, got none"),
        (lambda: MeanFusion({"thermal": 0}, 8), "thermal: expected at least one channel, got 0"),
        (lambda: MeanFusion(CHANNELS, -8), "out_channels: expected at least one channel, got -8"),
        (lambda: MeanFusion(CHANNELS, 8, absent="nothing"), "absent: expected null, .*, got 'nothing'"),  # type: ignore[arg-type]
        (lambda: CrossAttentionFusion(CHANNELS, 8, heads=0), "heads: expected at least 1, got 0"),
        (lambda: CrossAttentionFusion(CHANNELS, 8, neighbourhood=5), "neighbourhood: expected 1 or 3, got 5"),
        (lambda: JointFusion(CHANNELS, 8, pool=0), "pool: expected at least 1, got 0"),
        (lambda: LatentFusion(CHANNELS, 8, latents=0), "latents and pool: expected at least 1, got 0 and 4"),
    ],
)
def test_a_fuser_that_cannot_be_built(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_any_name_will_do_for_a_fuser() -> None:
    names = {"rear.thermal": 2, "": 3, "forward": 1, "ультразвук": 4}
    fuser = CrossAttentionFusion(names, 8)
    fused = fuser({"ультразвук": BEVFeatures(torch.ones(1, 4, 3, 2), torch.ones(1, 3, 2))})
    assert fuser.modalities == tuple(names)
    assert fused.attention.shape == (1, 4, 3, 2)


@pytest.mark.parametrize("count", [1, 2, 11, 40])
def test_any_number_of_modalities(count: int) -> None:
    names = {f"sonar {i}": 1 + i % 3 for i in range(count)}
    sensed = {name: BEVFeatures(torch.randn(2, c, 3, 2), torch.ones(2, 3, 2)) for name, c in names.items()}
    for absent in range(0, count, 7):
        left = {**sensed, f"sonar {absent}": None} if count > 1 else sensed
        fused = CrossAttentionFusion(names, 8)(left)
        torch.testing.assert_close(fused.attention.sum(1), torch.ones(2, 3, 2))
    kept = drop_modalities(5, [0.9] * count, torch.Generator().manual_seed(0))
    assert kept.shape == (5, count)
    assert kept.any(1).all()


def test_so_many_that_their_subsets_cannot_be_listed() -> None:
    many = torch.ones(1, 17, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"at most 16 modalities.*got 17: drop them one by one with drop_modalities"):
        draw_subsets(many, torch.Generator())


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda g: drop_modalities(2, [], g), "a probability for each modality, got 2 and 0"),
        (lambda g: drop_modalities(0, [0.1], g), "a batch of at least 1 .* got 0 and 1"),
        (
            lambda g: drop_modalities(2, [0.3, 0.3], g, available=torch.ones(2, 3, dtype=torch.bool)),
            r"expected available \[2, 2\] \(B, M\), got \[2, 3\]: .* as many probabilities as there are modalities",
        ),
        (
            lambda g: drop_modalities(2, [0.3], g, available=torch.ones(2, 1)),
            r"available bool \[B, M\], .*float32 \[2, 1\]",
        ),
        (
            lambda g: drop_members(torch.ones(6, dtype=torch.bool), 0.3, g),
            r"present bool \[B, N\], .* got torch.bool \[6\]",
        ),
        (
            lambda g: drop_members(torch.ones(2, 0, dtype=torch.bool), 0.3, g),
            r"at least one of each sample, .*\[2, 0\]",
        ),
        (lambda g: drop_members(torch.ones(2, 6), 0.3, g), r"present bool \[B, N\], .* got torch.float32 \[2, 6\]"),
        (
            lambda g: drop_members(torch.ones(2, 6, dtype=torch.bool, device="meta"), 0.3, g),
            r"on the CPU.* on meta: use .cpu",
        ),
        (lambda g: draw_subsets(torch.ones(2, 3).int(), g), r"available bool \[B, M\], .* got torch.int32 \[2, 3\]"),
        (
            lambda g: draw_subsets(torch.ones(3, dtype=torch.bool), g),
            r"available bool \[B, M\], .* got torch.bool \[3\]",
        ),
        (
            lambda g: draw_subsets(torch.ones(2, 0, dtype=torch.bool), g),
            r"available bool \[B, M\], .* got torch.bool \[2, 0\]",
        ),
        (lambda g: draw_subsets([[True, False]], g), "available bool .* got list"),  # type: ignore[arg-type]
    ],
)
def test_a_draw_of_what_does_not_fit(draw: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(torch.Generator())


def test_what_is_available_has_the_shape_of_the_draw() -> None:
    with pytest.raises(ValueError, match=r"expected available \[2, 3\] \(B, M\), got \[3, 2\]"):
        drop_modalities(2, [0.1] * 3, torch.Generator(), available=torch.ones(3, 2, dtype=torch.bool))
