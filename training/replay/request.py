"""What `robustbev replay` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sensors.health.monitor import HealthMode
from sensors.logs.log import Order
from sensors.replay.config import ReplayConfig

AS_RECORDED = "as recorded"


@dataclass(frozen=True)
class ReplayRequest:
    """What to replay, with what, and what to write of it."""

    log: Path
    checkpoint: Path
    config: ReplayConfig
    outputs: tuple[Path, ...] = ()
    scene: str | None = None
    mapping: Path | None = None
    faults: tuple[str, ...] = ()
    script: Path | None = None
    rate: float | None = None
    start_s: float | None = None
    duration_s: float | None = None
    order: Order = "log"
    loop: int = 1
    health: HealthMode = "off"
    monitor: Path = Path("runs/health.json")
    score: float = 0.3
    inputs: bool = True
    stills_every: int | None = None
    overwrite: bool = False
    golden: Path | None = None
    write_golden: Path | None = None
    tolerance: float = 0.0
    summary: Path | None = None
    compared: Path | None = None
    device: str = "cpu"
