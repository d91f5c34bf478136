"""Readers of files, sound files for each, and what hostile ones hold in their place."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
import yaml

from fusion import runtime
from robustbev import CheckpointError, load, save
from robustbev.results.golden import FILE, GoldenComparison, GoldenError
from sensors.camera.vit import VisionTransformer
from sensors.camera.vit_weights import load_vit_weights
from sensors.health.fault_model import HealthModelError
from sensors.health.monitor import HealthMonitor
from sensors.logs.log import LogError
from sensors.logs.mapping.file import load_mapping
from sensors.logs.open import open_log
from sensors.replay.faults.kinds import FaultError
from sensors.replay.faults.script import read_fault_scripts
from tests.hostile.artifacts import ARTIFACT_CASES, write_sound_artifact
from tests.hostile.files import deep, laughs, pickled, safetensors_file, tensor, torch_pickled, yaml_objects, zipped
from tests.sensors.logs.mcap.mcap_files import some_messages, write_mcap
from tests.tiny_model import tiny_model
from tests.training.loop.toy import toy_plan, toy_state, toy_store
from training.files.config_file import ConfigError, load_config
from training.loop.checkpoint import Place
from training.loop.random_state import random_state
from training.runs.config import RunConfig
from training.runs.worker import _load_initial_weights

PLACE = Place(steps_per_epoch=6, world_size=1)
Content = bytes | str | Callable[[Path], None] | Mapping[str, Any]
UP = "../" * 40  # more than any folder has above it
HUGE, NAN, INF = 10**9, float("nan"), float("inf")


@dataclass(frozen=True)
class Reader:
    """What reads a kind of file, and how it refuses."""

    read: Callable[[Path], object]  # given the folder
    refuses: type[ValueError]
    file: str  # within the folder: which one is hostile


def restore(folder: Path) -> None:
    toy_store(folder).restore(folder / "step-00000006", toy_state(toy_plan()), PLACE)


def initial_weights(folder: Path) -> None:
    _load_initial_weights(tiny_model(), RunConfig(init_from=folder), say=False)


def small_vit(folder: Path) -> None:
    vit = VisionTransformer(
        image_size=(32, 32), stem="patch", patch_px=16, dim=8, depth=1, heads=2, layer_scale=False,
        feature_stride_px=16, out_channels=8,
    )  # fmt: skip
    load_vit_weights(vit, folder / "vit.pth")


READERS = {
    "weights": Reader(load, CheckpointError, "model.safetensors"),
    "start": Reader(initial_weights, CheckpointError, "model.safetensors"),
    "config": Reader(load, CheckpointError, "config.json"),
    "vit": Reader(small_vit, ValueError, "vit.pth"),
    "state": Reader(restore, CheckpointError, "step-00000006/training_state.json"),
    "tensors": Reader(restore, CheckpointError, "step-00000006/training_state.safetensors"),
    "health": Reader(lambda folder: HealthMonitor.load(folder / "health.json"), HealthModelError, "health.json"),
    "golden": Reader(GoldenComparison, GoldenError, FILE),
    "mapping": Reader(lambda folder: load_mapping(folder / "mapping.yaml"), LogError, "mapping.yaml"),
    "faults": Reader(lambda folder: read_fault_scripts(folder / "faults.yaml"), FaultError, "faults.yaml"),
    "run": Reader(lambda folder: load_config(RunConfig, folder / "run.yaml"), ConfigError, "run.yaml"),
    "bag": Reader(open_log, LogError, "metadata.yaml"),
    "log": Reader(lambda folder: list(open_log(folder / "drive.mcap").messages()), LogError, "drive.mcap"),
    "onnx": Reader(lambda folder: runtime.load(folder / "robust.onnx"), runtime.ArtifactError, "robust.onnx"),
    "manifest": Reader(lambda folder: runtime.load(folder / "robust.onnx"), runtime.ArtifactError, "robust.onnx.json"),
}

# --- sound files, which the hostile ones take the place of ------------------------------------------------------------

FAULT_MODEL = {
    "measurements": ["points"], "faults": ["healthy", "frozen"], "centre": [0.0], "spread": [1.0], "knots": [[0.0] * 4],
    "weights": [[0.0] * 6] * 2,
}  # fmt: skip
HEALTH = {
    "format": "robustbev-health", "version": 1, "fitted_on": {}, "thresholds": {"lidar": 0.5},
    "models": {"lidar": FAULT_MODEL},
}  # fmt: skip
GOLDEN = {
    "ticks": np.zeros((1, 8), np.int64), "shares": np.zeros((1, 0)), "boxes": np.zeros((0, 12), np.float32),
    "version": 2, "classes": [], "attributes": [], "modalities": [], "sensors": [],
}  # fmt: skip
BAG = {"storage_identifier": "mcap", "relative_file_paths": ["drive.mcap"]}
SOUND_YAML = {
    "mapping": "lidars: {LIDAR_TOP: {points: /points}}\n",
    "faults": "- all: drop 1s..2s\n",
    "run": "seed: 3\n",
}


def write_sound(kind: str, folder: Path) -> None:
    """The files that the reader of this kind reads without complaint."""
    match kind:
        case "weights" | "start" | "config":
            save(tiny_model(), folder)
        case "vit":
            torch.save({"blocks.0.norm1.weight": torch.ones(8)}, folder / "vit.pth")
        case "state" | "tensors":
            state = toy_state(toy_plan())
            state.step = 6
            toy_store(folder).save(state, PLACE, [random_state()])
        case "health":
            (folder / "health.json").write_text(json.dumps(HEALTH))
        case "onnx" | "manifest":
            write_sound_artifact(folder)
        case "golden":
            write_golden(folder / FILE, {})
        case "bag" | "log":
            (folder / "drive.mcap").write_bytes(write_mcap(some_messages(5)))
            (folder / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": BAG}))
        case _:
            (folder / READERS[kind].file).write_text(SOUND_YAML[kind])


def write_golden(file: Path, changes: Mapping[str, Any]) -> None:
    content = {**GOLDEN, **changes}
    arrays = {name: content.pop(name) for name in ("ticks", "shares", "boxes")}
    safetensors.numpy.save_file(arrays, file, {"golden": content.pop("text", json.dumps(content))})


def write_hostile(kind: str, folder: Path, content: Content) -> None:
    """`content` in the place of the sound file; a mapping changes entries of the sound one."""
    file = folder / READERS[kind].file
    if callable(content):
        content(file)
    elif isinstance(content, (bytes, str)):
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    elif kind == "golden":
        write_golden(file, content)
    elif kind == "bag":
        file.write_text(yaml.safe_dump({"rosbag2_bagfile_information": {**BAG, **content}}))
    elif kind == "tensors":
        state = safetensors.torch.load_file(file)
        safetensors.torch.save_file({k: v for k, v in {**state, **content}.items() if v is not None}, file)
    else:
        file.write_text(json.dumps(changed(json.loads(file.read_text()), content)))


def changed(old: Any, new: Any) -> Any:
    """`old` with entries replaced, mapping by mapping."""
    if not (isinstance(old, dict) and isinstance(new, Mapping)):
        return new
    return old | {key: changed(old.get(key), value) for key, value in new.items()}


# --- what is thrown at them ---------------------------------------------------------------------------------------------


def as_pipe(path: Path) -> None:
    """A pipe that nobody writes to: opening it would wait for ever."""
    path.unlink()
    os.mkfifo(path)


def sparse(path: Path) -> None:
    """32 GiB on paper."""
    path.write_bytes(safetensors_file({"a": tensor([2**33], 0, 2**35)}))
    os.truncate(path, path.stat().st_size + 2**35)


def in_itself() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["model"] = content["state_dict"] = content
    return content


def repeated() -> dict[str, torch.Tensor]:
    """A patch kernel of a million pixels a side that is one number."""
    kernel = torch.zeros(1).expand(8, 3, 10**6, 10**6)
    return {"blocks.0.norm1.weight": torch.ones(8), "patch_embed.proj.weight": kernel}


def packed(path: Path) -> None:
    """A torch file of zeros, its members compressed."""
    torch.save({"blocks.0.norm1.weight": torch.zeros(2**22)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def laughing_list(levels: int = 24) -> str:
    """`laughs` as a list at the top."""
    lines = ["- &a0 [ha]"]
    lines += [f"- &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


def laughing(before: str) -> str:
    """`laughs`, and a key whose value refers to them."""
    return laughs() + before + " *a29\n"


CASES: dict[str, tuple[str, Content]] = {
    # Weights
    "a pickle named safetensors": ("weights", pickled()),
    "a torch file named safetensors": ("weights", torch_pickled),
    "a zip archive that climbs out of its folder": ("weights", zipped),
    "a header of 2^63 bytes": ("weights", safetensors_file({}, stated=2**63)),
    "a header of 90 MB": ("weights", safetensors_file(b"{}" + b" " * 90_000_000)),
    "a header of 90 MB that is not there": ("weights", safetensors_file({}, stated=90_000_000)),
    "a header nested deep": ("weights", safetensors_file(b'{"a":' + b"[" * 500_000)),
    "a header with 200,000 tensors": ("weights", safetensors_file({f"t{i}": tensor([0], 0, 0) for i in range(200_000)})),
    "negative offsets": ("weights", safetensors_file({"a": tensor([1], -4, 0)}, data=bytes(4))),
    "offsets that overlap": ("weights", safetensors_file({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, data=bytes(12))),
    "offsets beyond the end": ("weights", safetensors_file({"a": tensor([2**40], 0, 2**42)}, data=bytes(12))),
    "a shape whose product overflows": ("weights", safetensors_file({"a": tensor([2**62, 4], 0, 4)}, data=bytes(4))),
    "a type of objects": ("weights", safetensors_file({"a": tensor([1], 0, 4, "PY_OBJECT")}, data=bytes(4))),
    "32 GiB of nothing": ("weights", sparse),
    "weights that are a pipe": ("weights", as_pipe),
    "ViT weights with code": ("vit", torch_pickled),
    "ViT weights that are a bare pickle": ("vit", pickled()),
    "ViT weights that are a zip archive": ("vit", zipped),
    "ViT weights that contain themselves": ("vit", lambda path: torch.save(in_itself(), path)),
    "ViT weights that repeat one number 10^12 times": ("vit", lambda path: torch.save(repeated(), path)),
    "ViT weights that unpack to 300 times their bytes": ("vit", packed),
    "ViT weights whose names are numbers": ("vit", lambda path: torch.save({5: torch.ones(8)}, path)),
    "ViT weights of a block of 5,000 digits": ("vit", lambda path: torch.save({f"blocks.{'9' * 5000}.a": torch.ones(8)}, path)),
    "weights to start from that are a pickle": ("start", pickled()),
    "weights to start from with a header of 90 MB": ("start", safetensors_file(b"{}" + b" " * 90_000_000)),
    "weights to start from that are a pipe": ("start", as_pipe),
    # Configurations
    "a config that names a class": ("config", {"_target_": "os.system"}),
    "a config whose fuser is a function": ("config", {"fuser": {"kind": "os.system"}}),
    "a config that is a pickle": ("config", pickled()),
    "a config nested deep": ("config", deep()),
    "a config of 50 MB": ("config", '{"a": "' + "x" * 50_000_000 + '"}'),
    "a config with NaN": ("config", {"grid": {"x_min_m": NAN}}),
    "a config with infinity": ("config", {"grid": {"z_max_m": INF}}),
    "a config with a number of 100,000 digits": ("config", '{"channels": ' + "9" * 100_000 + "}"),
    "a billion channels": ("config", {"channels": HUGE}),
    "10^30 channels": ("config", {"channels": 10**30}),
    "tensors of 2^64 numbers": (
        "config", {"modalities": {"camera": {"image_height_px": 2**24, "image_width_px": 2**24, "dim": 2**24}}},
    ),
    "a ViT a billion wide": ("config", {"modalities": {"camera": {"dim": HUGE}}}),
    "a ViT a billion deep": ("config", {"modalities": {"camera": {"depth": HUGE}}}),
    "a backbone a billion deep": ("config", {"backbone": {"blocks": HUGE}}),
    "LiDAR blocks by the billion": ("config", {"modalities": {"lidar": {"blocks": HUGE}}}),
    "pictures of a billion pixels a side": (
        "config", {"modalities": {"camera": {"image_height_px": 16 * HUGE, "image_width_px": 16 * HUGE}}},
    ),
    "a grid of 4096 cells a side": (
        "config", {"grid": {"x_min_m": -512, "x_max_m": 512, "y_min_m": -512, "y_max_m": 512, "cell_m": 0.25}},
    ),
    "a grid of not quite whole cells": ("config", {"grid": {"x_min_m": 1e-6}}),
    "a grid of 10^12 cells a side": ("config", {"grid": {"x_min_m": -1e9, "x_max_m": 1e9, "cell_m": 2e-3}}),
    "10^18 points a pixel": ("config", {"modalities": {"camera": {"lift_samples": [HUGE, HUGE]}}}),
    "a billion boxes": ("config", {"tasks": {"detection": {"max_boxes": HUGE}}}),
    # Checkpoints in training
    "training tensors that are a pickle": ("tensors", pickled()),
    "training tensors that are a torch file": ("tensors", torch_pickled),
    "a checkpoint nested deep": ("state", deep()),
    "a checkpoint that is a list": ("state", "[]"),
    "a checkpoint with nothing but its format": ("state", '{"format": 1}'),
    "a step beyond all numbers": ("state", {"step": INF}),
    "a step that is no number": ("state", {"step": NAN}),
    "a step before the first": ("state", {"step": -5}),
    "an optimiser that is none": ("state", {"optimizer": [3]}),
    "a random state that torch would not take": ("tensors", {"random.0.torch": torch.zeros(5056, dtype=torch.uint8)}),
    "a checkpoint without torch's random state": ("tensors", {"random.0.torch": None}),
    "an optimiser's moment of another shape": ("tensors", {"optimizer.net.0.weight:exp_avg": torch.zeros(3)}),
    # Health parameters
    "health parameters that are a pickle": ("health", pickled()),
    "health parameters nested deep": ("health", deep()),
    "health parameters nested deep within": ("health", json.dumps(HEALTH)[:-1] + ', "more": ' + deep() + "}"),
    "a spread that is no number": ("health", {"models": {"lidar": {"spread": [NAN]}}}),
    "a centre of 400 digits": ("health", {"models": {"lidar": {"centre": [10**400]}}}),
    "a threshold that is no number": ("health", {"thresholds": {"lidar": NAN}}),
    "a threshold of 400 digits": ("health", {"thresholds": {"lidar": 10**400}}),
    "a threshold in words": ("health", {"thresholds": {"lidar": "os.system"}}),
    "faults that are lists": ("health", {"models": {"lidar": {"faults": ["healthy", ["x"]]}}}),
    "health parameters of no sensor": ("health", {"models": [], "thresholds": {}}),
    # Golden outputs
    "golden outputs that are a pickle": ("golden", pickled()),
    "golden outputs nested deep": ("golden", {"text": deep()}),
    "golden outputs of a million sensors": ("golden", {"sensors": ["x"] * 10**6}),
    "golden outputs of an infinite version": ("golden", {"version": INF}),
    "golden outputs of another class": ("golden", {"__class__": "os.system"}),
    "golden outputs whose sensors are a mapping": ("golden", {"sensors": {"a": 1}}),
    "golden outputs without a tick": ("golden", {"ticks": np.zeros((0, 8), np.int64), "shares": np.zeros((0, 0))}),
    "a tick with 10^15 boxes": ("golden", {"ticks": np.full((1, 8), 10**15)}),
    "a tick with fewer than no boxes": ("golden", {"ticks": np.full((1, 8), -1)}),
    "a tick that is one number": ("golden", {"ticks": np.array(1)}),
    # YAML: mappings, fault scripts, runs
    "a mapping with Python objects": ("mapping", yaml_objects()),
    "a mapping of a billion laughs": ("mapping", laughing("cameras:")),
    "a list of a billion laughs": ("mapping", laughing_list()),
    "a mapping nested deep": ("mapping", deep(20_000)),
    "a mapping that contains itself": ("mapping", "&a {lidars: *a}\n"),
    "a mapping whose value does not fit its tag": ("mapping", "lidars: !!timestamp x\n"),
    "a mapping with NaN": ("mapping", "lidars: {LIDAR_TOP: {points: /p, offset_s: .nan}}\n"),
    "a mapping that is one long word": ("mapping", "a" * 5_000_000),
    "a fault script with Python objects": ("faults", yaml_objects()),
    "a fault script of a billion laughs": ("faults", laughs()),
    "a fault script nested deep": ("faults", deep(20_000)),
    "a fault script whose value does not fit its tag": ("faults", "- !!bool x\n"),
    "a fault script of 10^999999999 seconds": ("faults", "- lidar_top: drop 1e999999999s..2s\n"),
    "a run with Python objects": ("run", yaml_objects()),
    "a run of a billion laughs": ("run", laughing("name:")),
    "a run nested deep": ("run", deep(20_000)),
    "a run based on a file elsewhere that is none": ("run", f"base: {UP}etc/passwd\n"),
    # Drive logs
    "a bag whose files lie elsewhere": ("bag", {"relative_file_paths": [f"{UP}etc/passwd"]}),
    "a bag whose file is at the root": ("bag", {"relative_file_paths": ["/etc/passwd"]}),
    "a bag whose file is the folder above": ("bag", {"relative_file_paths": [".."]}),
    "a bag whose file's name is endless": ("bag", {"relative_file_paths": ["x" * 5000]}),
    "a bag whose file is its own metadata": ("bag", {"relative_file_paths": ["metadata.yaml"]}),
    "a bag's metadata with Python objects": ("bag", yaml_objects()),
    "a bag's metadata of a billion laughs": (
        "bag", laughing("rosbag2_bagfile_information:\n  storage_identifier: mcap\n  relative_file_paths:"),
    ),
    "a bag's metadata whose value does not fit its tag": ("bag", "a: !!timestamp x\n"),
    "a pickle named mcap": ("log", pickled()),
    "a zip archive named mcap": ("log", zipped),
    "a torch file named mcap": ("log", torch_pickled),
    **ARTIFACT_CASES,
}  # fmt: skip
