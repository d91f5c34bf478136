"""What precision a run computes in: chosen where it trains, the same on every worker, kept in its folder, told."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from robustbev import Precision, PrecisionWarning, choose_precision
from robustbev.precision import PrecisionSetting
from sensors.text import tell
from training.files.atomic import read_note, write_json
from training.loop.peers import Peers


def agreed_precision(setting: PrecisionSetting, device: torch.device, peers: Peers) -> Precision:
    """What all workers can train in: float32 where auto chooses otherwise on some than on others."""
    chosen = choose_precision(setting, device, training=True)
    names = list(dict.fromkeys(peers.gather(chosen.name)))
    return (
        chosen if len(names) == 1 else Precision("float32", f"for its own device a worker takes {' or '.join(names)}")
    )


def gradient_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Scales losses so that float16 gradients do not vanish (Micikevicius et al., ICLR 2018); does nothing otherwise."""
    return torch.amp.GradScaler(device.type, enabled=precision.name == "float16")


def record_precision(file: Path, precision: Precision, *, goes_on: bool) -> None:
    """Write what a run computes in to `file`, with what it computed in before where it goes on and that was another."""
    before = _read(file).get("name") if goes_on else None
    before = None if before == precision.name else before
    write_json(file, {**asdict(precision), "before": before})


def report_precision(file: Path) -> str:
    """Print what `record_precision` wrote, and return it; a warning becomes one."""
    known = _read(file)
    before = f"; until now it was {known['before']}" if known["before"] else ""
    line = f"{known['name']}: {known['reason']}{before}"
    tell(f"computing in {line}")
    if known["warning"]:
        warnings.warn(f"step.precision: {known['warning']}", PrecisionWarning, stacklevel=2)
    return line


def _read(file: Path) -> dict[str, Any]:
    return read_note(file) if file.is_file() else {}
