"""Every fuser takes features of any floating dtype and mixtures of them, and may itself be of any; coverage may be any mask."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fusion import BEVFeatures, Fuser
from tests.fusion.grids import CHANNELS, SHAPE, random_features
from tests.fusion.kinds import FUSERS

# Three digits of half precision, and two of bfloat16, through a dozen layers; float64 is compared with float32.
TOLERANCE = {torch.float16: 0.02, torch.bfloat16: 0.1, torch.float32: 1e-5, torch.float64: 1e-5}
DTYPES = list(TOLERANCE)
PROJECTED = {"camera": 5, "lidar": 8, "radar": 3}


def fuser_of(kind: str) -> Fuser:
    torch.manual_seed(0)
    return FUSERS[kind](PROJECTED).eval()


def features_in(*dtypes: torch.dtype) -> dict[str, BEVFeatures | None]:
    given = random_features(3, channels=PROJECTED)
    return {
        name: f and replace(f, features=f.features.to(dtype))
        for (name, f), dtype in zip(given.items(), dtypes, strict=True)
    }


KINDS = [kind for kind in FUSERS if {"null", "mask"} & set(kind.split())]
MIXTURES = [
    *[(dtype,) * 3 for dtype in DTYPES],
    (torch.float16, torch.float32, torch.float64),
]


@pytest.mark.parametrize("own", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_fuser_computes_in_its_own_dtype_whatever_it_is_given(kind: str, own: torch.dtype) -> None:
    """`.half()`, `.bfloat16()`, `.double()`."""
    fuser = fuser_of(kind)
    expected = fuser(features_in(*[torch.float32] * 3)), fuser({}, grid_shape=SHAPE)
    fuser.to(own)
    for dtypes in MIXTURES:
        tolerance = max(TOLERANCE[own], *(TOLERANCE[dtype] for dtype in dtypes))
        for got, wanted in zip((fuser(features_in(*dtypes)), fuser({}, grid_shape=SHAPE)), expected, strict=True):
            assert got.features.dtype == own
            assert got.coverage.dtype == torch.float32
            for ours, theirs in zip(vars(got).values(), vars(wanted).values(), strict=True):
                torch.testing.assert_close(ours.float(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fuser_runs_and_learns_under_autocast_whatever_it_is_given(kind: str, narrow: torch.dtype) -> None:
    fuser = fuser_of(kind)
    expected = fuser(features_in(*[torch.float32] * 3)).features
    for dtypes in MIXTURES:
        fuser.zero_grad()
        with torch.autocast("cpu", narrow):
            got = fuser(features_in(*dtypes))
        tolerance = max(TOLERANCE[narrow], *(TOLERANCE[dtype] for dtype in dtypes))
        torch.testing.assert_close(got.features.float(), expected, rtol=tolerance, atol=tolerance)
        got.features.float().square().mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in fuser.parameters())


@pytest.mark.parametrize("own", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fuser_learns_in_its_own_dtype(kind: str, own: torch.dtype) -> None:
    fuser = fuser_of(kind).to(own)
    fuser(features_in(torch.float32, torch.float16, torch.float64)).features.float().square().mean().backward()
    gradients = [p.grad for p in fuser.parameters() if p.grad is not None]
    assert gradients
    assert all(g.dtype == own and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_may_be_of_any_dtype(kind: str) -> None:
    fuser = fuser_of(kind)
    features = {
        n: f and replace(f, coverage=f.coverage.round()) for n, f in random_features(channels=PROJECTED).items()
    }
    expected = fuser(features)
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64):
        got = fuser({n: f and replace(f, coverage=f.coverage.to(dtype)) for n, f in features.items()})
        assert all(torch.equal(o, t) for o, t in zip(vars(got).values(), vars(expected).values(), strict=True)), dtype


def test_half_precision_of_an_encoder_stays_under_autocast() -> None:
    """A copy of every token would cost more than what is done with it."""
    fuser = FUSERS["attention null"](CHANNELS)
    given = {n: f and replace(f, features=f.features.bfloat16()) for n, f in random_features().items()}
    with torch.autocast("cpu", torch.bfloat16):
        tokens, _ = fuser.tokens(given)  # type: ignore[operator]
    assert tokens.dtype == torch.bfloat16
