"""What the model saw at a tick, as the replay and the live node tell it."""

from __future__ import annotations

from dataclasses import replace

from robustbev.config import ModelConfig
from robustbev.perception import Perception
from robustbev.results.result import TickResult
from sensors.frames import Absence, Lack
from sensors.points import SensorUse
from sensors.replay.tick import SensorState, SensorStatus, Tick


def tick_result(tick: Tick, seen: Perception, config: ModelConfig) -> TickResult:
    """The result of a tick whose frame `seen` (B = 1, on the CPU) is of."""
    assert seen.trust is not None  # of a model
    uses = seen.sensors or {}
    statuses = {
        channel: _stands(status, uses[channel].absence if channel in uses else None)
        for channel, status in tick.sensors.items()
    }
    return TickResult(
        tick=replace(tick, sensors=statuses),
        perceived=bool(seen.perceived[0]),
        boxes=seen.shown(0),
        candidates=seen.found(0),
        modalities=seen.modalities,
        attention=seen.fused.attention[0].float().numpy(),
        trust=dict(zip(seen.modalities, seen.trust[0].tolist(), strict=True)),
        classes=config.classes,
        attributes=config.attributes,
        maps=seen.maps(0),
        sensors={channel: _used(use, tick.sensors.get(channel)) for channel, use in uses.items()},
    )


def _used(use: SensorUse, status: SensorStatus | None) -> SensorUse:
    """With the reason of the synchroniser, the health monitor or a fault where the frame holds nothing of the sensor."""
    return use if status is None or status.given else replace(use, absence=status.absence)


def _stands(status: SensorStatus, absence: Absence | None) -> SensorStatus:
    """What was given and turned out to hold nothing that the model could use counts as absent."""
    if absence is None or not status.given:
        return status
    state = SensorState.MALFORMED if absence.lack is Lack.USABLE else SensorState.MISSING
    return replace(status, state=state, detail=absence.reason)
