"""Modality dropout promises: never everything, as often as asked, and the same draw from the same seed."""

from __future__ import annotations

import pytest
import torch

from fusion import BEVFeatures, CrossAttentionFusion, draw_subsets, drop_members, drop_modalities, hide


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("probability", [0.0, 0.5, 0.9, 1.0])
def test_never_all_modalities(probability: float) -> None:
    kept = drop_modalities(2000, [probability] * 3, seeded())
    assert kept.shape == (2000, 3)
    assert kept.dtype == torch.bool
    assert kept.any(1).all()


def test_modalities_are_dropped_as_often_as_asked() -> None:
    """10,000 draws: a deviation of 0.02 is four standard errors at p = 0.5. A rescue, p1 p2 p3 of the draws, keeps one evenly."""
    probabilities = [0.1, 0.5, 0.3]
    kept = drop_modalities(10_000, probabilities, seeded()).float().mean(0)
    rescued = 0.1 * 0.5 * 0.3 / 3
    expected = torch.tensor([1 - p + rescued for p in probabilities])
    torch.testing.assert_close(kept, expected, rtol=0, atol=0.02)


def test_where_all_would_go_each_stays_equally_often() -> None:
    kept = drop_modalities(9000, [1.0, 1.0, 1.0], seeded())
    assert (kept.sum(1) == 1).all()
    torch.testing.assert_close(kept.float().mean(0), torch.full((3,), 1 / 3), rtol=0, atol=0.02)


def test_zero_drops_nothing() -> None:
    assert drop_modalities(100, [0.0, 0.0], seeded()).all()


def test_what_a_sample_does_not_have_stays_away_and_what_it_has_never_goes_entirely() -> None:
    available = torch.tensor([[True, False, True], [False, True, False], [False, False, False]]).repeat(500, 1)
    kept = drop_modalities(1500, [0.9, 0.9, 0.9], seeded(), available=available)
    assert not (kept & ~available).any()
    assert torch.equal(kept.any(1), available.any(1))
    torch.testing.assert_close(kept[::3].float().mean(0), torch.tensor([0.505, 0.0, 0.505]), rtol=0, atol=0.08)


def test_the_seed_alone_decides() -> None:
    draws = [drop_modalities(50, [0.5] * 3, seeded(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    drop_modalities(50, [0.5] * 3, seeded())
    drop_members(torch.ones(5, 6, dtype=torch.bool), 0.5, seeded())
    assert torch.equal(torch.get_rng_state(), before), "the global random state is not touched"


def test_the_number_of_random_draws_does_not_depend_on_what_is_available() -> None:
    """Else a resumed run, or one sensor missing in one sample, would shift every draw that follows."""
    first, second = seeded(), seeded()
    drop_modalities(4, [0.5] * 3, first)
    drop_modalities(4, [0.0, 1.0, 1.0], second, available=torch.zeros(4, 3, dtype=torch.bool))
    assert torch.equal(torch.rand(3, generator=first), torch.rand(3, generator=second))


def test_structured_dropout_draws_every_part_alike_but_never_the_whole() -> None:
    drawn = draw_subsets(torch.ones(6000, 3, dtype=torch.bool), seeded())
    codes = (drawn.long() * torch.tensor([1, 2, 4])).sum(1)
    counts = torch.bincount(codes, minlength=8)
    assert counts[0] == 0
    assert counts[7] == 0
    assert (counts[1:7] - 1000).abs().max() < 120  # four standard deviations


def test_structured_dropout_takes_only_what_is_there_and_leaves_a_single_sensor_alone() -> None:
    available = torch.rand(3000, 4, generator=seeded(1)) < 0.5
    drawn = draw_subsets(available, seeded())
    assert not (drawn & ~available).any()
    assert torch.equal(drawn.any(1), available.any(1))
    several = available.sum(1) > 1
    assert (drawn.sum(1) < available.sum(1))[several].all()
    assert torch.equal(drawn[~several], available[~several])
    first, second = seeded(), seeded()
    draw_subsets(available, first)
    draw_subsets(torch.zeros(3000, 4, dtype=torch.bool), second)
    assert torch.equal(torch.rand(3, generator=first), torch.rand(3, generator=second))


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_single_cameras_go_but_never_the_last(probability: float) -> None:
    present = torch.rand(3000, 6, generator=seeded(1)) < 0.7
    present[:10] = False
    present[10] = torch.tensor([False, False, True, False, False, False])
    kept = drop_members(present, probability, seeded())
    assert not (kept & ~present).any()
    assert torch.equal(kept.any(1), present.any(1))
    assert torch.equal(kept[10], present[10])
    if probability == 1.0:
        assert (kept.sum(1) == present.any(1)).all()


def test_single_cameras_go_as_often_as_asked() -> None:
    kept = drop_members(torch.ones(5000, 6, dtype=torch.bool), 0.2, seeded())
    torch.testing.assert_close(kept.float().mean(0), torch.full((6,), 0.8), rtol=0, atol=0.025)
    assert drop_members(torch.ones(50, 6, dtype=torch.bool), 0.0, seeded()).all()


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_a_probability_is_a_probability(probability: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
        drop_modalities(2, [0.5, probability], seeded())
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
        drop_members(torch.ones(2, 6, dtype=torch.bool), probability, seeded())


def test_by_name_the_same_sensors_stay_as_by_place() -> None:
    probabilities = {"camera": 0.2, "lidar": 0.9, "radar": 0.5}
    by_place = drop_modalities(50, list(probabilities.values()), seeded())
    by_name = drop_modalities(50, probabilities, seeded())
    assert list(by_name) == list(probabilities)
    assert torch.equal(torch.stack(list(by_name.values()), dim=1), by_place)


def sensed(coverage: torch.Tensor) -> dict[str, BEVFeatures | None]:
    torch.manual_seed(0)
    return {name: BEVFeatures(torch.randn(2, 4, 3, 5), coverage) for name in ("camera", "lidar")} | {"radar": None}


@pytest.mark.parametrize("coverage", [torch.full((2, 3, 5), 0.5), torch.ones(2, 3, 5, dtype=torch.bool)])
def test_what_is_hidden_is_to_a_fuser_what_is_absent(coverage: torch.Tensor) -> None:
    features = sensed(coverage)
    fuser = CrossAttentionFusion(dict.fromkeys(features, 4), 8, heads=2)
    hidden = hide(
        features,
        {"lidar": torch.tensor([False] * 2), "camera": torch.tensor([True] * 2), "radar": torch.tensor([True] * 2)},
    )
    assert hidden["radar"] is None
    torch.testing.assert_close(fuser(hidden).features, fuser(features | {"lidar": None}).features)
    some = hide(features, torch.tensor([[True, False, True], [True, True, False]]))
    assert some["lidar"] is not None
    assert some["lidar"].coverage.dtype == coverage.dtype
    assert [bool(sample.any()) for sample in some["lidar"].coverage] == [False, True]


def test_who_stays_is_told_of_each_modality() -> None:
    with pytest.raises(ValueError, match=r"hide: expected kept \[B, 3\].*got \[2, 2\]"):
        hide(sensed(torch.ones(2, 3, 5)), torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="hide: expected kept of camera, lidar, radar, got camera"):
        hide(sensed(torch.ones(2, 3, 5)), {"camera": torch.ones(2, dtype=torch.bool)})
