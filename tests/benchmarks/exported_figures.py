"""How far a trained model's exported files are from the model itself, on real frames with every subset of the sensors.

    python -m tests.benchmarks.exported_figures --checkpoint runs/robust

Exports to a temporary folder, in each format; frames are those of the run's validation split.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import torch

import robustbev
from robustbev import PerceptionModel
from robustbev.checkpoints import find_checkpoint
from robustbev.export import Kind, export, model_inputs
from robustbev.export.check import compare, runner
from robustbev.export.graphs import ModelGraph, perception_outputs
from sensors.batch import SensorBatch
from training.data.loader import build_loader
from training.runs.config import load_run_config
from training.runs.files import run_of

LOST_CAMERAS = [1, 3, 4]
KINDS: tuple[Kind, ...] = ("onnx", "pt2", "aoti")


def cases(batch: SensorBatch, modalities: tuple[str, ...]) -> Iterator[tuple[str, SensorBatch, torch.Tensor]]:
    """(name, the batch for the artifact, who is present): every subset, then all with half of the cameras lost."""
    for count in range(len(modalities), 0, -1):
        for subset in combinations(modalities, count):
            yield "+".join(subset), batch, torch.tensor([[name in subset for name in modalities]])
    if batch.part("camera") is not None:
        here = batch.part("camera").present.clone()
        here[:, LOST_CAMERAS] = False
        few = batch.having(camera=replace(batch.part("camera"), present=here, lift=None))
        yield "three cameras lost", few, torch.ones(1, len(modalities), dtype=torch.bool)


@torch.inference_mode()
def measure(model: PerceptionModel, kind: Kind, batches: list[SensorBatch], folder: Path) -> str:
    """One row: the largest difference over all outputs but the heading, that of headings, and boxes without counterpart."""
    run = runner(export(model, folder, kind=kind, name="model"), kind, ModelGraph(model))
    largest = heading_rad = 0.0
    boxes = beyond = unmatched = excused = 0
    for batch in batches:
        modalities = tuple(model.config.modalities)
        for name, given, present in cases(batch, modalities):
            subset = modalities if "+" not in name and " " in name else tuple(name.split("+"))
            expected = perception_outputs(model(given.only(subset)))
            difference = compare(expected, run(model_inputs(model, given) | {"present": present}))
            largest, heading_rad = max(largest, difference.largest), max(heading_rad, difference.heading_rad)
            boxes, unmatched = boxes + difference.boxes, unmatched + difference.unmatched
            excused, beyond = excused + difference.excused, beyond + (difference.heading_rad > 1e-4)
    frames = len(batches)
    return f"| {kind} | {largest:.1e} | {heading_rad:.1e} | {beyond} of {frames * 8} | {unmatched} | {excused} of {boxes} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--format", choices=KINDS, action="append")
    options = parser.parse_args()
    path = find_checkpoint(options.checkpoint)
    model, files = robustbev.load(path), run_of(path)
    if files is None:
        raise SystemExit(f"{options.checkpoint} lies in no run's folder, whose data would be used")
    config = load_run_config(files.config)
    loader = build_loader(config.data, model.config, config.data.nuscenes.val_split, batch_size=1, train=False)
    every = max(len(loader) // options.frames, 1)
    batches = [batch.sensors for i, batch in enumerate(loader.epoch(0)) if i % every == 0][: options.frames]
    print("| format | all but heading | heading, rad | cases with a heading beyond 1e-4 | unmatched | at a tie |")
    print("|---|---:|---:|---:|---:|---:|")
    for kind in options.format or KINDS:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(model, kind, batches, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
