"""Every fuser promises: absence has two forms and one meaning, and what an absent sensor left behind cannot be heard."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fusion import (
    Absent,
    BEVFeatures,
    ConcatFusion,
    FusedBEV,
    MeanFusion,
    ModalityTokens,
)
from tests.fusion.grids import CHANNELS, SHAPE, random_features
from tests.fusion.kinds import FUSERS, KINDS, Build


@pytest.fixture(params=list(FUSERS))
def build(request: pytest.FixtureRequest) -> Build:
    torch.manual_seed(0)
    return FUSERS[request.param]


def assert_same(got: FusedBEV, expected: FusedBEV) -> None:
    """To the last bit."""
    for name in ("features", "attention", "coverage"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name


def without(features: BEVFeatures | None, value: float | None = None) -> BEVFeatures:
    """`features` of a sensor that covers nothing, its grid overwritten by `value`."""
    assert features is not None
    stale = features.features if value is None else torch.full_like(features.features, value)
    return BEVFeatures(stale, torch.zeros_like(features.coverage))


def test_what_comes_out_has_the_grid_of_what_goes_in(build: Build) -> None:
    fused = build(CHANNELS)(random_features())
    assert fused.features.shape == (2, 8, *SHAPE)
    assert fused.attention.shape == (2, 3, *SHAPE)
    assert fused.coverage.shape == (2, *SHAPE)
    assert fused.features.isfinite().all()
    torch.testing.assert_close(fused.attention.sum(1), torch.ones(2, *SHAPE))


@pytest.mark.parametrize("absentee", list(CHANNELS))
def test_none_left_out_and_blind_are_one_and_the_same(build: Build, absentee: str) -> None:
    fuser, features = build(CHANNELS), random_features()
    expected = fuser(features | {absentee: None})
    assert_same(fuser({name: f for name, f in features.items() if name != absentee}), expected)
    assert_same(fuser(features | {absentee: without(features[absentee])}), expected)


@pytest.mark.parametrize("channels", [CHANNELS, {"camera": 5, "lidar": 8, "radar": 3}])
@pytest.mark.parametrize("stale", [math.nan, math.inf, -1e30])
def test_stale_features_cannot_be_heard_in_output_or_gradient(
    build: Build, channels: dict[str, int], stale: float
) -> None:
    """Also where encoders give other channel counts than the fuser's, and a projection stands between."""
    fuser, features = build(channels), random_features(channels=channels)
    covered = {name: f.coverage[:, None] > 0 for name, f in features.items() if f is not None}
    expected = fuser(features)
    parameters = list(fuser.parameters())  # the mean with zeros for the absent may have none
    gradients = parameters and torch.autograd.grad(
        expected.features.square().sum(), parameters, allow_unused=True, materialize_grads=True
    )
    dirty: dict[str, BEVFeatures | None] = {}
    leaves = []
    for name, f in features.items():
        assert f is not None
        leaves.append(torch.where(covered[name], f.features, stale).requires_grad_())
        dirty[name] = replace(f, features=leaves[-1])
    got = fuser(dirty)
    assert_same(got, expected)
    got.features.square().sum().backward()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert torch.equal(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad, gradient)
    for leaf, name in zip(leaves, features, strict=True):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert not leaf.grad[~covered[name].expand_as(leaf)].any()


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_how_strongly_the_sensors_speak_is_not_normalised_away(build: Build, factor: float) -> None:
    features = random_features()
    fuser = build(CHANNELS)
    louder = {name: None if f is None else replace(f, features=factor * f.features) for name, f in features.items()}
    before, after = fuser(features).features, fuser(louder).features
    assert (after - before).abs().mean() > 0.05 * before.abs().mean()


@pytest.mark.parametrize("forms", ["none", "empty", "blind"])
def test_with_everybody_absent_the_grid_is_known_to_be_uncovered(build: Build, forms: str) -> None:
    fuser, features = build(CHANNELS), random_features()
    given: dict[str, BEVFeatures | None] = {
        "none": dict.fromkeys(CHANNELS),
        "empty": {},
        "blind": {name: without(f, math.nan) for name, f in features.items()},
    }[forms]  # type: ignore[assignment]
    fused = fuser(given, grid_shape=SHAPE, batch_size=2)
    assert fused.features.shape == (2, 8, *SHAPE)
    assert fused.features.isfinite().all()
    assert fused.attention.isfinite().all()
    assert not fused.coverage.any()


def test_everybody_absent_without_a_grid_says_what_to_give(build: Build) -> None:
    with pytest.raises(ValueError, match="every modality is absent: give grid_shape"):
        build(CHANNELS)({})


def test_everybody_absent_follows_the_device_of_the_fuser(build: Build) -> None:
    fused = build(CHANNELS).to("meta")({}, grid_shape=SHAPE, batch_size=1)
    assert fused.features.device.type == fused.coverage.device.type == "meta"


def test_coverage_is_that_of_whoever_sees_best(build: Build) -> None:
    features = random_features()
    fused = build(CHANNELS)(features)
    expected = torch.stack([f.coverage for f in features.values() if f is not None]).amax(0)
    assert torch.equal(fused.coverage, expected)


def test_samples_do_not_mix(build: Build) -> None:
    fuser, features = build(CHANNELS), random_features()
    together = fuser(features).features
    for b in range(2):
        alone = {name: BEVFeatures(f.features[b, None], f.coverage[b, None]) for name, f in features.items() if f}
        torch.testing.assert_close(fuser(alone).features, together[b, None], rtol=1e-4, atol=1e-5)


def test_the_order_of_the_mapping_does_not_matter(build: Build) -> None:
    fuser, features = build(CHANNELS), random_features()
    assert_same(fuser(dict(reversed(features.items()))), fuser(features))


@pytest.mark.parametrize("kind", KINDS)
def test_missing_is_not_empty(kind: str) -> None:
    """A sensor that sees and has nothing to tell is another thing than one that is gone."""
    torch.manual_seed(0)
    fuser, features = FUSERS[f"{kind} null"](CHANNELS), random_features()
    lidar = features["lidar"]
    assert lidar is not None
    empty = replace(lidar, features=torch.zeros_like(lidar.features))
    gone = fuser(features | {"lidar": None}).features
    assert not torch.allclose(fuser(features | {"lidar": empty}).features, gone, atol=1e-4)


def zeros(features: tuple[int, ...], coverage: tuple[int, ...], device: str = "cpu") -> BEVFeatures:
    return BEVFeatures(torch.zeros(features, device=device), torch.zeros(coverage, device=device))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("sonar", None, r"unknown modality 'sonar'.*camera, lidar, radar.*name one of these"),
        ("lidar", zeros((2, 7, 5, 6), (2, 5, 6)), r"expected features \[B, 8, X, Y\], got \[2, 7, 5, 6\]: build"),
        ("lidar", zeros((8, 5, 6), (5, 6)), r"lidar: expected features \[B, 8, X, Y\], got \[8, 5, 6\]"),
        ("lidar", zeros((2, 8, 5, 6), (2, 1, 5, 6)), r"lidar: expected coverage \[2, 5, 6\].*got \[2, 1, 5, 6\]"),
        ("lidar", zeros((2, 8, 4, 6), (2, 4, 6)), r"lidar: features \[2, 8, 4, 6\] and camera: .*same grid"),
        ("radar", zeros((3, 8, 5, 6), (3, 5, 6)), r"radar: features \[3, 8, 5, 6\] and camera: .*differ in batch"),
        ("radar", zeros((2, 8, 5, 6), (2, 5, 6), "meta"), r"radar is on meta, camera on cpu: move"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(build: Build, name: str, given: BEVFeatures | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(CHANNELS)(random_features() | {name: given})


def test_concatenation_cannot_mask() -> None:
    with pytest.raises(ValueError, match="choose absent null or zeros"):
        ConcatFusion(CHANNELS, 8, absent="mask")


def test_tokens_are_features_stand_ins_or_a_blend_by_coverage() -> None:
    torch.manual_seed(0)
    tokens_of, features = ModalityTokens(CHANNELS, 8, "null"), random_features()
    tokens, coverage = tokens_of(features)
    for i, f in enumerate(features.values()):
        assert f is not None
        said = f.features.permute(0, 2, 3, 1)
        share = f.coverage[..., None]
        torch.testing.assert_close(tokens[i], share * said + (1 - share) * tokens_of.null.stacked()[i])
        assert torch.equal(coverage[i], f.coverage)


@pytest.mark.parametrize("absent", ["zeros", "mask"])
def test_without_nulls_the_stand_in_is_zero_and_nothing_is_learned(absent: Absent) -> None:
    tokens_of = ModalityTokens(CHANNELS, 8, absent)
    assert not list(tokens_of.parameters())
    assert not tokens_of({}, SHAPE, 3)[0].any()


def test_the_mean_of_those_present_does_not_count_those_absent() -> None:
    torch.manual_seed(0)
    features = random_features()
    lidar = features["lidar"]
    assert lidar is not None
    fuser = MeanFusion(CHANNELS, 8, absent="mask")
    torch.testing.assert_close(fuser({"lidar": lidar}).features, lidar.features)


def test_the_share_of_a_fuser_without_attention_is_that_of_coverage() -> None:
    features = random_features()
    fused = MeanFusion(CHANNELS, 8)(features | {"camera": None})
    radar = features["radar"]
    assert radar is not None
    assert not fused.attention[:, 0].any()
    torch.testing.assert_close(fused.attention[:, 2], radar.coverage / (1 + radar.coverage))


def test_fusers_run_in_half_precision(build: Build) -> None:
    fuser, features = build(CHANNELS), random_features()
    expected = fuser(features | {"camera": None}).features
    halves = {
        n: None if f is None or n == "camera" else replace(f, features=f.features.bfloat16())
        for n, f in features.items()
    }
    with torch.autocast("cpu", torch.bfloat16):
        fused = fuser(halves)
        blind = fuser(halves | {"camera": without(features["camera"])})
    assert fused.coverage.dtype == torch.float32
    torch.testing.assert_close(fused.features.float(), expected, rtol=0.1, atol=0.1)
    torch.testing.assert_close(blind.features.float(), expected, rtol=0.1, atol=0.1)
