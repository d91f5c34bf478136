"""What a model knows of motion: predicted over true velocity of what moves, and boxes that are turned around.

    python -m tests.benchmarks.motion --checkpoint runs/demo

On the validation split of the run, with all sensors: boxes with a score of at least 0.1, matched as the devkit does within 2 m.
The ratio is that of least squares through the origin, along and across the line of sight; moving is faster than 0.5 m/s.

Letters: N boxes.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

import robustbev
from robustbev.checkpoints import find_checkpoint
from training.data.loader import build_loader
from training.runs.config import load_run_config
from training.runs.files import run_of
from training.tasks.detection.matching import match

MIN_SCORE, DISTANCE_M, MOVING_MPS = 0.1, 2.0, 0.5


@torch.inference_mode()
def matched(checkpoint: Path, root: Path | None) -> dict[str, Tensor]:
    """Class -> [N, 5] of its found boxes: predicted and true speed along the line of sight, both across, error of yaw (rad)."""
    path = find_checkpoint(checkpoint)
    model, files = robustbev.load(path), run_of(path)
    if files is None:
        raise SystemExit(f"{checkpoint} lies in no run's folder, whose data would be used")
    data = load_run_config(files.config).data
    if root is not None:
        data = data.model_copy(update={"nuscenes": data.nuscenes.model_copy(update={"root": root})})
    rows: dict[str, list[Tensor]] = defaultdict(list)
    with build_loader(data, model.config, data.nuscenes.val_split, batch_size=8, train=False) as loader:
        for batch in loader.epoch(0):
            perception = model(batch.sensors)
            for i in range(batch.sensors.batch_size):
                truth, found = batch.boxes[i][batch.box_valid[i]], perception.found(i)
                found = found[found.score >= MIN_SCORE]
                taken = match(found, truth, DISTANCE_M)
                found, truth = found[taken >= 0], truth[taken[taken >= 0]]
                sight = torch.nn.functional.normalize(truth.center_m[:, :2], dim=1)
                across = torch.stack([-sight[:, 1], sight[:, 0]], dim=1)
                speeds = [(v * way).sum(1) for way in (sight, across) for v in (found.velocity_mps, truth.velocity_mps)]
                row = torch.stack([*speeds, (found.yaw_rad - truth.yaw_rad).cos().acos()], dim=1)
                for label, known in zip(truth.label.tolist(), row, strict=True):
                    if known.isfinite().all():
                        rows[model.config.classes[label]].append(known)
    return {name: torch.stack(rows[name]) for name in model.config.classes if rows[name]}


def ratio(predicted: Tensor, true: Tensor) -> float:
    """Least squares through the origin."""
    return float((predicted * true).sum() / (true * true).sum())


def line(name: str, boxes: Tensor) -> str:
    """One row of the table."""
    moving = boxes[boxes[:, [1, 3]].norm(dim=1) > MOVING_MPS]
    around = [
        f"{float((part[:, 4] > math.pi / 2).float().mean()):.1%}" if len(part) else "-" for part in (moving, boxes)
    ]
    ratios = [f"{ratio(moving[:, k], moving[:, k + 1]):.2f}" if len(moving) else "-" for k in (0, 2)]
    return f"| {name} | {len(boxes)} | {len(moving)} | {' | '.join([*ratios, *around])} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument(
        "--root", type=Path, help="of another data set with the same splits, such as development drives"
    )
    options = parser.parse_args()
    of_class = matched(options.checkpoint, options.root)
    print("| class | found | of them moving | along | across | moving ones turned around | all turned around |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    print(line("all", torch.cat(list(of_class.values()))))
    for name, boxes in of_class.items():
        print(line(name, boxes))


if __name__ == "__main__":
    main()
