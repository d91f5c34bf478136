"""What a module has learnt of a sensor goes with the sensor's name, in whatever order the names are written."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fusion import BEVFeatures, Fuser, ModalityTokens
from fusion.named import key_of, name_of
from tests.fusion.grids import SHAPE
from tests.fusion.kinds import FUSERS, AsTensors

CHANNELS = {"rear": 8, "front": 8, "": 8, "roof.left": 5, "forward": 8, "sonar 3": 5, "%": 8, "0": 5, "zß/水": 8}
NAMES = tuple(CHANNELS)


def built(kind: str, order: Sequence[str], seed: int) -> Fuser:
    """A fuser of random parameters, gates and embeddings too."""
    torch.manual_seed(seed)
    fuser = FUSERS[kind]({name: CHANNELS[name] for name in order})
    with torch.no_grad():
        for parameter in fuser.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return fuser


def sensed(names: Sequence[str], seed: int = 0) -> dict[str, BEVFeatures | None]:
    """Random features, half a grid of the first, nothing of the last."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, BEVFeatures | None] = {
        name: BEVFeatures(
            torch.randn(1, CHANNELS[name], *SHAPE, generator=generator),
            torch.rand(1, *SHAPE, generator=generator).round(),
        )
        for name in sorted(names)
    }
    return found | {max(names): None}


def assert_same(got: Fuser, expected: Fuser) -> None:
    """Rounding alone may differ: sums over the modalities are taken in another order."""
    features = sensed(expected.modalities)
    ours, theirs = got(features), expected(features)
    torch.testing.assert_close(ours.features, theirs.features, rtol=1e-4, atol=1e-4)
    places = [got.modalities.index(name) for name in expected.modalities]
    torch.testing.assert_close(ours.attention[:, places], theirs.attention, rtol=1e-4, atol=1e-4)
    assert torch.equal(ours.coverage, theirs.coverage)


orders = st.permutations(NAMES).flatmap(
    lambda names: st.integers(2, len(names)).flatmap(
        lambda n: st.tuples(st.just(names[:n]), st.permutations(names[:n]))
    )
)


@settings(max_examples=30)
@given(kind=st.sampled_from(list(FUSERS)), orders=orders, seed=st.integers(0, 100))
def test_a_state_dict_fits_every_order_of_the_names(kind: str, orders: tuple[list[str], list[str]], seed: int) -> None:
    writer, reader = built(kind, orders[0], seed), built(kind, orders[1], seed + 1)
    reader.load_state_dict(writer.state_dict())
    assert_same(reader, writer)


@pytest.mark.parametrize("kind", FUSERS)
def test_other_sensors_are_refused_by_name(kind: str) -> None:
    """But by the mean of sensors that need no parameter of their own: it knows none of them."""
    state = built(kind, ("rear", "front", "roof.left"), 0).state_dict()
    other = built(kind, ("rear", "front", "sonar 3"), 1)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(
        ValueError, match=r"expected parameters of .*sonar 3.*, for which this \w+ is built, got those of .*roof"
    ):
        other.load_state_dict(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items()), "nothing was loaded"
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert all("sonar 3" in name for name in missing)
    assert all("roof%2Eleft" in name for name in unexpected)


names = st.one_of(st.text(), st.text("%.2E6f", max_size=4), st.sampled_from(["forward", "%66orward", "keys"]))


@given(names, names)
def test_every_name_has_a_key_of_its_own(name: str, other: str) -> None:
    assert name_of(key_of(name)) == name
    assert (key_of(name) == key_of(other)) == (name == other)


def test_what_torch_calls_its_own_may_name_a_sensor() -> None:
    for name in {*dir(nn.ModuleDict()), *dir(nn.ParameterDict()), "weight", "stacked", "split", ".", "%66"}:
        tokens = ModalityTokens({name: 3, "lidar": 8}, 8, "null")
        assert name_of(key_of(name)) == name
        assert {f"null.{key_of(name)}", f"project.{key_of(name)}.weight", "null.lidar"} <= set(tokens.state_dict())


def test_an_ordinary_name_stands_in_the_state_dict_as_it_is() -> None:
    assert key_of("camera") == "camera"
    assert key_of("Sensor_3 (rear)") == "Sensor_3 (rear)"


@pytest.mark.parametrize("kind", ["attention 3 x 3 null", "concat null", "gated null"])
def test_names_that_torch_would_refuse_go_through_export(kind: str) -> None:
    names = ("roof.left", "forward", "", "zß/水")
    fuser = built(kind, names, 0).eval()
    features = {name: (f.features, f.coverage) for name, f in sensed(names).items() if f is not None}
    exported = torch.export.export(AsTensors(fuser), (features,)).module()
    for got, expected in zip(exported(features), AsTensors(fuser)(features), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
