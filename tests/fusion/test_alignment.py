"""Alignment promises: the loss of CLIP at object centres, among what both sensors see, and never a NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fusion import BEVFeatures, ObjectAlignment
from fusion.alignment import info_nce
from tests.fusion.grids import CHANNELS, SHAPE, random_features

CELLS = SHAPE[0] * SHAPE[1]
BOXES = 7
Features = Mapping[str, BEVFeatures | None]


def alignment(mode: str = "pairs", anchor: str = "lidar", seed: int = 0) -> ObjectAlignment:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ObjectAlignment(CHANNELS, 4, mode=mode, anchor=anchor)  # type: ignore[arg-type]


def random_objects(seed: int = 0, batch_size: int = 2) -> tuple[Tensor, Tensor]:
    """Cells, of which some are shared, and validity [B, M]."""
    generator = torch.Generator().manual_seed(seed)
    cell = torch.randint(0, CELLS, (batch_size, BOXES), generator=generator)
    cell[:, 1] = cell[:, 0]
    return cell, torch.rand(batch_size, BOXES, generator=generator) < 0.8


def naive_loss(module: ObjectAlignment, features: Features, cell: Tensor, valid: Tensor) -> float:
    """The same by loops over objects, with lists that hold only what takes part."""
    losses = []
    for a, b in combinations(CHANNELS, 2):
        if module.mode == "anchor" and "lidar" not in (a, b):
            continue
        first, second = features[a], features[b]
        if first is None or second is None:
            continue
        places, rows = [], []
        for s in range(cell.shape[0]):
            for m in range(cell.shape[1]):
                x, y = divmod(int(cell[s, m]), SHAPE[1])
                if valid[s, m] and first.coverage[s, x, y] > 0 and second.coverage[s, x, y] > 0:
                    vectors = [module.heads[n](f.features[s, :, x, y]) for n, f in ((a, first), (b, second))]
                    places.append((s, x, y))
                    rows.append([v / v.norm() for v in vectors])
        terms = []
        for i in range(len(rows)):
            for own, other in ((0, 1), (1, 0)):
                scores = [
                    math.exp(module.scale.item() * (rows[i][own] @ rows[j][other]).item())
                    for j in range(len(rows))
                    if j == i or places[j] != places[i]
                ]
                itself = math.exp(module.scale.item() * (rows[i][0] @ rows[i][1]).item())
                terms.append(-math.log(itself / sum(scores)))
        losses.append(sum(terms) / max(1, len(terms)))
    return sum(losses) / max(1, len(losses))


@pytest.mark.parametrize("mode", ["pairs", "anchor"])
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_agrees_with_loops(mode: str, seed: int) -> None:
    module, features = alignment(mode, seed=seed), random_features(seed)
    cell, valid = random_objects(seed)
    assert module(features, cell, valid).item() == pytest.approx(naive_loss(module, features, cell, valid), rel=1e-4)


def test_two_objects_by_hand() -> None:
    """Embeddings that agree (cosine 1) among orthogonal others: -log(e^s / (e^s + 1)) either way."""
    vectors, scale = torch.eye(2), torch.tensor(3.0)
    everyone = torch.ones(2, dtype=torch.bool)
    apart = torch.eye(2, dtype=torch.bool)
    assert info_nce(vectors, vectors, scale, use=everyone, same=apart).item() == pytest.approx(
        math.log1p(math.exp(-3.0)), rel=1e-5
    )
    swapped = info_nce(vectors, vectors.flip(0), scale, use=everyone, same=apart)
    assert swapped.item() == pytest.approx(math.log1p(math.exp(3.0)), rel=1e-5)


@given(st.permutations(range(BOXES)), st.integers(0, 50))
def test_the_order_of_objects_does_not_matter(order: list[int], seed: int) -> None:
    module, features = alignment(), random_features(seed)
    cell, valid = random_objects(seed)
    torch.testing.assert_close(
        module(features, cell[:, order], valid[:, order]), module(features, cell, valid), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("mode", ["pairs", "anchor"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_objects_give_a_finite_loss_and_gradient(mode: str, count: int) -> None:
    module = alignment(mode)
    features = {
        name: BEVFeatures(f.features.requires_grad_(), torch.ones_like(f.coverage))
        for name, f in random_features().items()
        if f is not None
    }
    cell = torch.arange(2 * BOXES).view(2, BOXES)
    valid = torch.zeros(2, BOXES, dtype=torch.bool)
    valid.view(-1)[:count] = True
    loss = module(features, cell, valid)
    loss.backward()
    gradients = [p.grad for p in [*module.parameters(), *(f.features for f in features.values())]]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert any(g is not None and g.any() for g in gradients) == (count == 2), "one object alone has nothing to learn"
    assert loss.isfinite()
    assert (loss == 0) == (count < 2)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_what_lies_in_uncovered_cells_does_not_matter(garbage: float) -> None:
    cell, valid = random_objects(3)
    found = []
    for value in (0.0, garbage):
        module, features = alignment(), {}
        for name, f in random_features(3).items():
            assert f is not None
            hidden = torch.where(f.coverage[:, None] > 0, f.features, value).requires_grad_()
            features[name] = BEVFeatures(hidden, f.coverage)
        loss = module(features, cell, valid)
        loss.backward()
        found.append([loss, *(p.grad for p in module.parameters()), *(f.features.grad for f in features.values())])
    for clean, dirty in zip(*found, strict=True):
        assert clean is not None
        assert dirty is not None
        assert torch.equal(clean, dirty)


def test_an_object_that_one_modality_does_not_cover_leaves_that_pair() -> None:
    """Also as a negative: the loss is that of the batch without it."""
    module, (cell, _) = alignment("anchor"), random_objects()
    valid = torch.ones(2, BOXES, dtype=torch.bool)
    cell = torch.arange(2 * BOXES).view(2, BOXES) % CELLS
    features = {name: replace(f, coverage=torch.ones_like(f.coverage)) for name, f in random_features().items() if f}
    without = valid.clone()
    without[0, 0] = False
    expected = module(features | {"radar": None}, cell, without)
    features["camera"].coverage[0, 0, 0] = 0.0
    torch.testing.assert_close(module(features | {"radar": None}, cell, valid), expected)


def test_stale_cells_of_padding_do_not_matter() -> None:
    module, features = alignment(), random_features()
    cell, valid = random_objects()
    valid[:, 2] = False
    stale = torch.where(valid, cell, 10**6)
    assert torch.equal(module(features, stale, valid), module(features, cell, valid))


def test_objects_in_one_cell_are_no_negatives_of_one_another() -> None:
    """Nothing could tell them apart. In another sample the same cell is another place."""
    module = alignment()
    features = {name: replace(f, coverage=torch.ones_like(f.coverage)) for name, f in random_features().items() if f}
    both = torch.ones(1, 2, dtype=torch.bool)
    one = {name: BEVFeatures(f.features[:1], f.coverage[:1]) for name, f in features.items()}
    assert module(one, torch.tensor([[4, 4]]), both) == 0
    assert module(features, torch.tensor([[4], [4]]), both.T) > 0


def test_the_anchor_leaves_the_others_to_themselves() -> None:
    assert alignment("pairs").pairs == (("camera", "lidar"), ("camera", "radar"), ("lidar", "radar"))
    assert alignment("anchor").pairs == (("camera", "lidar"), ("lidar", "radar"))
    module, (cell, valid) = alignment("anchor"), random_objects()
    loss = module(random_features() | {"lidar": None}, cell, valid)
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())


def test_the_temperature_starts_as_in_clip_learns_and_stays_below_its_limit() -> None:
    module, (cell, valid) = alignment(), random_objects()
    assert module.scale.item() == pytest.approx(1 / 0.07)
    module(random_features(), cell, valid).backward()
    assert module.log_scale.grad is not None
    assert module.log_scale.grad != 0
    with torch.no_grad():
        module.log_scale.fill_(9.0)
    assert module.scale.item() == pytest.approx(100.0)
    (gradient,) = torch.autograd.grad(module(random_features(), cell, valid), [module.log_scale])
    assert module.log_scale.item() == pytest.approx(math.log(100)), "training brings it back to the limit"
    assert gradient != 0, "and it can leave the limit again"


def test_embeddings_are_unit_vectors_in_float32_even_under_autocast() -> None:
    module, features = alignment(), random_features()
    cell, valid = random_objects()
    sensed = features["camera"]
    assert sensed is not None
    half = {n: None if f is None else replace(f, features=f.features.bfloat16()) for n, f in features.items()}
    with torch.autocast("cpu", torch.bfloat16):
        vectors, covered = module.embed("camera", sensed, cell)
        assert module(half, cell, valid).dtype == torch.float32
    assert vectors.dtype == torch.float32
    assert covered.any()
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(cell.shape))
    assert torch.equal(vectors, module.embed("camera", sensed, cell)[0])


def test_matching_pairs_find_each_other_by_training() -> None:
    """Two sensors that see one hidden world through different eyes."""
    generator = torch.Generator().manual_seed(0)
    world = torch.randn(2, 8, *SHAPE, generator=generator)
    eyes = {name: torch.randn(8, 8, generator=generator) for name in CHANNELS}
    features = {
        name: BEVFeatures(torch.einsum("oc,bcxy->boxy", eye, world), torch.ones(2, *SHAPE))
        for name, eye in eyes.items()
    }
    module, cell = alignment("anchor"), torch.arange(2 * BOXES).view(2, BOXES)
    valid = torch.ones(2, BOXES, dtype=torch.bool)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.02)
    first = module(features, cell, valid)
    for _ in range(150):
        optimizer.zero_grad()
        module(features, cell, valid).backward()
        optimizer.step()
    assert module(features, cell, valid) < 0.2 * first


def test_what_cannot_be_aligned_is_said() -> None:
    with pytest.raises(ValueError, match="at least two modalities, got lidar"):
        ObjectAlignment({"lidar": 8})
    with pytest.raises(ValueError, match="expected one of camera, radar, got 'lidar'"):
        ObjectAlignment({"camera": 8, "radar": 8}, mode="anchor")
    with pytest.raises(ValueError, match="expected pairs or anchor, got 'clip'"):
        alignment("clip")
