"""Sensors beyond ours: four that a robot's engineer has named, each of which knows a part of the answer.

At every cell the answer is the sum of independent parts, one for each sensor that reaches the cell. Without a sensor nothing can
tell its part, so that the least mean squared error is the variance of that part. What comes on top is the fuser's own fault.

Letters: B samples, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fusion import BEVFeatures, CrossAttentionFusion, drop_modalities, hide

CHANNELS = {"thermal": 3, "ultrasonic": 2, "depth": 5, "odour": 1}
CELLS = (4, 4)
BATCH, STEPS = 64, 200


def reaches() -> dict[str, Tensor]:
    """[X, Y]: thermal looks ahead, ultrasonic behind, the others everywhere, so that three reach every cell."""
    ahead, everywhere = torch.zeros(CELLS), torch.ones(CELLS)
    ahead[CELLS[0] // 2 :] = 1
    return {"thermal": ahead, "ultrasonic": 1 - ahead, "depth": everywhere, "odour": everywhere}


@dataclass(frozen=True)
class World:
    """How each sensor writes its part into its channels: the part along `code` [C], what it does not know across it."""

    codes: Mapping[str, Tensor]

    def sense(self, generator: torch.Generator, batch_size: int) -> tuple[dict[str, BEVFeatures], Tensor]:
        """What the sensors deliver, and the answer [B, X, Y]."""
        features, answer = {}, torch.zeros(batch_size, *CELLS)
        for name, reach in reaches().items():
            code = self.codes[name]
            said = torch.randn(batch_size, *CELLS, len(code), generator=generator)
            answer = answer + (said @ code) * reach
            features[name] = BEVFeatures(said.permute(0, 3, 1, 2), reach.expand(batch_size, -1, -1))
        return features, answer


def new_world(generator: torch.Generator) -> World:
    drawn = {name: torch.randn(count, generator=generator) for name, count in CHANNELS.items()}
    return World({name: code / code.norm() for name, code in drawn.items()})


class Robot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fuser = CrossAttentionFusion(CHANNELS, 32, heads=4)
        self.head = nn.Conv2d(32, 1, 1)

    def forward(self, features: Mapping[str, BEVFeatures | None]) -> Tensor:
        return self.head(self.fuser(features).features)[:, 0]


def trained(world: World, dropout: float) -> Robot:
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(2)
    robot = Robot()
    optimizer = torch.optim.Adam(robot.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=STEPS)
    for _ in range(STEPS):
        features, answer = world.sense(generator, BATCH)
        kept = drop_modalities(BATCH, dict.fromkeys(CHANNELS, dropout), generator)
        loss = (robot(hide(features, kept)) - answer).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return robot.eval()


@torch.no_grad()
def beyond_the_least(robot: Robot, world: World) -> dict[str, float]:
    """By the sensor that is missing, how much the mean squared error exceeds the least possible, as a share of that."""
    features, answer = world.sense(torch.Generator().manual_seed(9), 2048)
    shares = {}
    for missing, reach in reaches().items():
        guess = robot({name: None if name == missing else f for name, f in features.items()})
        part = torch.einsum("bcxy,c->bxy", features[missing].features, world.codes[missing]) * reach
        shares[missing] = float(
            (guess - answer).square().mean() / part.square().mean() - 1
        )  # nothing can tell that part
    return shares


@torch.no_grad()
def error_with_all(robot: Robot, world: World) -> float:
    features, answer = world.sense(torch.Generator().manual_seed(9), 1024)
    return float((robot(features) - answer).square().mean())


@pytest.mark.slow
def test_with_any_of_four_invented_sensors_missing_the_error_stays_near_the_least_possible() -> None:
    world = new_world(torch.Generator().manual_seed(0))
    hardy, spoilt = trained(world, dropout=0.25), trained(world, dropout=0.0)
    assert error_with_all(hardy, world) < 0.05
    assert error_with_all(spoilt, world) < 0.05
    with_dropout, without = beyond_the_least(hardy, world), beyond_the_least(spoilt, world)
    assert max(with_dropout.values()) < 0.05, with_dropout
    assert min(without.values()) > 0.1, without
