"""What the model saw at a tick, as the replay and the live node tell it."""

from __future__ import annotations

from robustbev.config import ModelConfig
from robustbev.model import Perception
from sensors.replay.results import Tick, TickResult


def tick_result(tick: Tick, seen: Perception, config: ModelConfig) -> TickResult:
    """The result of a tick whose frame `seen` (B = 1, on the CPU) is of."""
    return TickResult(
        tick=tick,
        perceived=bool(seen.perceived[0]),
        boxes=seen.found(0),
        modalities=seen.modalities,
        attention=seen.fused.attention[0].float().numpy(),
        classes=config.classes,
        attributes=config.attributes,
    )
