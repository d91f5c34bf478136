"""The modality gap of a checkpoint: how far apart its modalities lie in one space, and whether they find each other there.

Letters: B samples, M boxes, C channels, D dimensions, N places (cells at which several modalities are compared), X and Y cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion import BEVFeatures
from fusion.alignment import at_cells, same_place
from robustbev import PerceptionModel
from sensors.nuscenes.reader import NuScenesReader
from training.data.batch import TrainingBatch
from training.tasks.predictions import Progress

RANDOM_CELLS = 32  # a sample
POOL = 512  # a partner is looked for among at most so many


@dataclass(frozen=True)
class Places:
    """What each modality says of the same N places, as unit vectors."""

    vectors: Mapping[str, Tensor]  # [N, D] float32 on the CPU, by modality
    covered: Mapping[str, Tensor]  # [N] bool; where it is False the vector means nothing

    def both(self, first: str, second: str) -> tuple[Tensor, Tensor]:
        """The vectors of the places that two modalities cover."""
        use = self.covered[first] & self.covered[second]
        return self.vectors[first][use], self.vectors[second][use]


@dataclass(frozen=True)
class PairGap:
    """Two modalities at the same places. NaN where there were fewer than two places."""

    first: str
    second: str
    trained: bool  # whether a contrastive loss ever bound these two
    places: int
    centroid_distance: float  # 0..2, between the means of the unit vectors
    cosine_matching: float  # mean over places
    cosine_other: float  # mean over pairs of different places
    recall_1: float  # share of places whose partner is the nearest of the pool, mean of both directions
    recall_5: float  # the same among the nearest five
    chance_1: float  # what recall_1 would be by drawing lots

    @property
    def name(self) -> str:
        return f"{self.first}-{self.second}"


@dataclass(frozen=True)
class GapReport:
    """The gap of one checkpoint on one split."""

    checkpoint: str
    split: str
    samples: int
    mode: str | None  # of the alignment; None: raw BEV features, for there are no projections
    temperature: float | None
    objects: tuple[PairGap, ...]  # at the cells of objects
    cells: tuple[PairGap, ...]  # at random cells

    def figures(self) -> dict[str, float]:
        """Every figure that is defined, under the name that MLflow shows."""
        names = ("centroid_distance", "cosine_matching", "cosine_other", "recall_1", "recall_5")
        found = {
            f"gap/{where}/{pair.name}/{name}": float(getattr(pair, name))
            for where, pairs in (("objects", self.objects), ("cells", self.cells))
            for pair in pairs
            for name in names
        }
        if self.temperature is not None:
            found["gap/temperature"] = self.temperature
        return {name: value for name, value in found.items() if math.isfinite(value)}


@torch.inference_mode()
def collect(
    model: PerceptionModel,
    batches: Iterable[TrainingBatch],
    reader: NuScenesReader,
    *,
    limit: int | None = None,
    min_points: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Places, Places, int]:
    """What each modality says of every object, and of random cells; -> (objects, cells, samples).

    Args:
        model: with alignment, its projections are compared, else the encoders' features themselves.
        batches: samples of the reader's split, in order, not augmented.
        reader: knows how many points each object has.
        limit: only the first so many samples.
        min_points: LiDAR and radar points that an object must have. Of objects that share a cell one is taken.
        seed: of the random cells.
        progress: is told the samples done.
    """
    was_training = model.training
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    device, total = next(model.parameters()).device, min(len(reader), limit or len(reader))
    objects, cells = _Collector(model), _Collector(model)
    done = 0
    try:
        for batch in batches:
            count = min(batch.sensors.batch_size, total - done)
            features = model.encode(batch.sensors.to(device))
            wanted = torch.arange(batch.sensors.batch_size) < count  # of the last batch, no more than the limit
            cell, valid = _object_cells(model, batch, reader, min_points)
            objects.add(features, cell, valid & wanted[:, None])
            drawn = torch.randint(model.grid.num_cells, (len(wanted), RANDOM_CELLS), generator=generator)
            cells.add(features, drawn, _first_at_place(drawn, wanted[:, None].expand_as(drawn)))
            done += count
            if progress is not None:
                progress("embed", done, total)
            if done >= total:
                break
    finally:
        model.train(was_training)
    return objects.places(), cells.places(), done


def _object_cells(
    model: PerceptionModel, batch: TrainingBatch, reader: NuScenesReader, min_points: int
) -> tuple[Tensor, Tensor]:
    """Flat cells [B, M] of the objects that a sensor could know of, and [B, M] which they are."""
    cell = model.grid.flat_index(batch.boxes.center_m[..., :2])
    valid = batch.box_valid & (cell < model.grid.num_cells)
    for row, index in zip(valid, batch.indices, strict=True):
        enough = reader.num_points(index) >= min_points
        row[: len(enough)] &= enough
    cell = torch.where(valid, cell, 0)
    return cell, _first_at_place(cell, valid)


def _first_at_place(cell: Tensor, valid: Tensor) -> Tensor:
    """[B, M] bool: valid, and no valid one before it in the same cell of the same sample."""
    before = same_place(cell).tril(-1) & valid.flatten()
    return valid & ~before.any(1).view_as(valid)


class _Collector:
    """Gathers embeddings batch by batch."""

    def __init__(self, model: PerceptionModel) -> None:
        self._model = model
        self._vectors: dict[str, list[Tensor]] = {name: [] for name in model.config.modalities}
        self._covered: dict[str, list[Tensor]] = {name: [] for name in model.config.modalities}

    def add(self, features: Mapping[str, BEVFeatures | None], cell: Tensor, use: Tensor) -> None:
        """Take the embeddings at flat cells [B, M] where `use` [B, M]."""
        alignment = self._model.alignment
        for name in self._vectors:
            sensed = features.get(name)
            if sensed is None:
                size = self._model.config.channels if alignment is None else alignment.dim
                vectors, covered = torch.zeros(*cell.shape, size), torch.zeros_like(use)
            elif alignment is None:
                raw, covered = at_cells(sensed, cell.to(sensed.features.device))
                vectors = F.normalize(raw, dim=-1)
            else:
                vectors, covered = alignment.embed(name, sensed, cell.to(sensed.features.device))
            self._vectors[name].append(vectors.cpu()[use])
            self._covered[name].append(covered.cpu()[use])

    def places(self) -> Places:
        return Places(
            {name: torch.cat(parts) for name, parts in self._vectors.items()},
            {name: torch.cat(parts) for name, parts in self._covered.items()},
        )


def measure(places: Places, trained: Iterable[tuple[str, str]] = (), *, pool: int = POOL) -> tuple[PairGap, ...]:
    """The gap between every two modalities; `trained`: pairs that a contrastive loss bound."""
    bound = {frozenset(pair) for pair in trained}
    return tuple(
        pair_gap(first, second, *places.both(first, second), trained=frozenset((first, second)) in bound, pool=pool)
        for first, second in combinations(places.vectors, 2)
    )


def pair_gap(
    first: str, second: str, a: Tensor, b: Tensor, *, trained: bool = False, pool: int = POOL, seed: int = 0
) -> PairGap:
    """The gap between unit vectors [N, D] of two modalities, row i of both at place i.

    The distance between the centroids is the gap of Liang et al., "Mind the Gap" (NeurIPS 2022). Partners are looked for in
    pools of at most `pool` places drawn by `seed`, so that figures of small and large splits compare. A tie is a miss: features
    that are the same everywhere find nothing.
    """
    count = len(a)
    if count < 2:
        return PairGap(first, second, trained, count, *[math.nan] * 6)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    pools = [part for part in order.tensor_split(-(-count // pool)) if len(part) > 1]
    apart = pairs = 0.0
    hits_1 = hits_5 = chance = 0.0
    for part in pools:
        cosine = a[part] @ b[part].T
        apart += float(cosine.sum() - cosine.trace())
        pairs += len(part) * (len(part) - 1)
        rank = torch.stack([_rank(cosine), _rank(cosine.T)])
        hits_1 += float((rank < 1).float().mean()) * len(part)
        hits_5 += float((rank < 5).float().mean()) * len(part)
        chance += 1.0  # of len(part) places, each with 1 / len(part)
    used = sum(len(part) for part in pools)
    return PairGap(
        first,
        second,
        trained,
        count,
        centroid_distance=float((a.mean(0) - b.mean(0)).norm()),
        cosine_matching=float((a * b).sum(1).mean()),
        cosine_other=apart / pairs,
        recall_1=hits_1 / used,
        recall_5=hits_5 / used,
        chance_1=chance / used,
    )


def _rank(cosine: Tensor) -> Tensor:
    """[n, n] -> [n]: how many others are at least as near to each row as its partner on the diagonal."""
    return (cosine >= cosine.diagonal()[:, None] - 1e-6).sum(1) - 1
