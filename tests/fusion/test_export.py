"""torch.export takes a fuser as it is: its features and its result are known to it."""

from __future__ import annotations

import pytest
import torch
from torch.export import export

from fusion import BEVFeatures, FusedBEV
from tests.fusion.grids import CHANNELS, random_features
from tests.fusion.kinds import KINDS, of_kind


@pytest.mark.parametrize("kind", KINDS)
def test_every_fuser_exports_and_answers_as_it_did(kind: str) -> None:
    """Which modalities there are is of the graph, and how much of the grid each sees is not."""
    fuser = of_kind(kind, "null")(CHANNELS).eval()
    first, second = (random_features(seed) | {"lidar": None} for seed in (0, 1))
    graph = export(fuser, (first,)).module()
    got, expected = graph(second), fuser(second)
    assert isinstance(got, FusedBEV)
    for name in ("features", "attention", "coverage"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name))


def test_features_go_through_a_graph_and_come_out_as_they_are() -> None:
    class Through(torch.nn.Module):
        def forward(self, features: BEVFeatures) -> BEVFeatures:
            return BEVFeatures(2 * features.features, features.coverage)

    given = BEVFeatures(torch.ones(1, 2, 3, 3), torch.ones(1, 3, 3))
    got = export(Through(), (given,)).module()(given)
    assert isinstance(got, BEVFeatures)
    assert torch.equal(got.features, 2 * given.features)
