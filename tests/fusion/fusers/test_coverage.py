"""Coverage is 0 to 1: anything else is refused where values are looked at, and does no harm where they are not."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusion import BEVFeatures, FusedBEV, Fuser, MeanFusion, nulls
from tests.fusion.grids import CHANNELS, SHAPE, random_features
from tests.fusion.kinds import FUSERS, AsTensors

VALUES = st.one_of(
    st.sampled_from(
        [0.0, 1.0, 255.0, -1.0, float("nan"), float("inf"), -float("inf"), -0.0, 1.0 + 2**-23, -1e-30, 1e-30]
    ),
    st.floats(0, 1, width=32),
    st.floats(width=32),
)


@st.composite
def coverages(draw: st.DrawFn) -> Tensor:
    """[2, X, Y] of which some cells hold what is drawn."""
    coverage = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    for value in draw(st.lists(VALUES, max_size=6)):
        coverage.view(-1)[draw(st.integers(0, coverage.numel() - 1))] = value
    return coverage


def fuser_of(kind: str) -> Fuser:
    torch.manual_seed(0)
    return FUSERS[kind](CHANNELS).eval()


def with_coverage(coverage: Tensor) -> dict[str, BEVFeatures | None]:
    features = random_features()
    assert features["radar"] is not None
    return features | {"radar": replace(features["radar"], coverage=coverage)}


def sound(coverage: Tensor) -> Tensor:
    return coverage.nan_to_num(0.0, 1.0, 0.0).clamp(0.0, 1.0)


def assert_same(got: FusedBEV, expected: FusedBEV) -> None:
    for ours, theirs in zip(vars(got).values(), vars(expected).values(), strict=True):
        assert torch.equal(ours, theirs)


@given(coverage=coverages())
def test_what_is_not_0_to_1_is_refused(coverage: Tensor) -> None:
    fuser = fuser_of("mean null")
    if bool(((coverage >= 0) & (coverage <= 1)).all()):
        fused = fuser(with_coverage(coverage))
        assert fused.features.isfinite().all()
    else:
        with pytest.raises(
            ValueError, match=r"radar: expected coverage in 0\.\.1, got (NaN in \d+ of 60 cells|values from)"
        ):
            fuser(with_coverage(coverage))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (255.0, r"radar: expected coverage in 0\.\.1, got values from 0 to 255: divide a mask of 0 to 255 by 255"),
        (
            -1.0,
            r"radar: expected coverage in 0\.\.1, got values from -1 to 0: give 0 where the sensor is blind, 1 where",
        ),
        (
            float("nan"),
            r"radar: expected coverage in 0\.\.1, got NaN in 1 of 60 cells: give 0 where the sensor is blind",
        ),
    ],
)
@pytest.mark.parametrize("kind", FUSERS)
def test_every_fuser_refuses_before_it_computes(kind: str, value: float, message: str) -> None:
    fuser = fuser_of(kind)
    for module in fuser.modules():
        module.register_forward_hook(Mock(side_effect=AssertionError("computed")))
    coverage = torch.zeros(2, *SHAPE)
    coverage[1, 2, 3] = value
    with pytest.raises(ValueError, match=message):
        fuser(with_coverage(coverage))


def test_a_mask_of_bytes_is_refused_by_its_values() -> None:
    """As OpenCV makes it; one of 0 and 1 is as good as any other."""
    mask = torch.zeros(2, *SHAPE, dtype=torch.uint8)
    mask[:, 1:3] = 255
    with pytest.raises(ValueError, match=r"got values from 0 to 255: divide a mask of 0 to 255 by 255"):
        MeanFusion(CHANNELS, 8)(with_coverage(mask))
    with pytest.raises(ValueError, match=r"expected coverage of real numbers, got torch\.complex64"):
        MeanFusion(CHANNELS, 8)(with_coverage(mask.to(torch.complex64)))


@settings(max_examples=40)
@given(coverage=coverages(), kind=st.sampled_from(list(FUSERS)))
def test_where_values_are_not_looked_at_the_promises_hold(coverage: Tensor, kind: str) -> None:
    """As on a GPU, which would have to be waited for: what is no coverage is taken for the nearest one, NaN for 0."""
    fuser = fuser_of(kind)
    expected = fuser(with_coverage(sound(coverage)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nulls, "_check_values", lambda *_: None)
        assert_same(fuser(with_coverage(coverage)), expected)
    assert expected.features.isfinite().all()


def pairs(features: dict[str, BEVFeatures | None]) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (f.features, f.coverage) for name, f in features.items() if f is not None}


def test_a_graph_has_no_branch_on_values() -> None:
    """Exported, and traced in one piece by torch.compile, whose backend is nobody's business here."""
    fuser = AsTensors(fuser_of("attention null"))
    coverage = torch.zeros(2, *SHAPE)
    coverage[0, :4, 0] = torch.tensor([255.0, -1.0, float("nan"), 0.5])
    given, wanted = pairs(with_coverage(coverage)), fuser(pairs(with_coverage(sound(coverage))))
    exported = torch.export.export(fuser, (pairs(random_features()),)).module()
    compiled = torch.compile(fuser, backend="eager", fullgraph=True)
    for graph in (exported, compiled):
        for ours, theirs in zip(graph(given), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
