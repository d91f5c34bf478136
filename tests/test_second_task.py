"""docs/tasks.md adds a task by its own files and two lists, and everything that the library does goes through it.

The page's files and lines are put into a copy of the library: what it says is what is run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_nuscenes import SmallNuScenes

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
ROOMS = ("fusion", "bev", "sensors", "robustbev", "training")
FILES = ("bev/counts.py", "robustbev/tasks/counts.py", "training/tasks/counts.py")

CONFIG = """
name: counting
runs_dir: {runs}
model:
  channels: 16
  grid: {{cell_m: 1.6}}
  modalities:
    lidar: {{pillar_channels: 8, blocks: 0}}
    radar: {{width: 8, blocks: 0}}
  backbone: {{blocks: 1, widths: [16, 16]}}
  tasks: {{counts: {{}}}}
step: {{weights: {{tasks: {{counts: 0.5}}}}}}
data:
  workers: 0
  nuscenes:
    root: {root}
    version: {version}
    train_split: small_train
    val_split: small_val
    camera_channels: [CAM_FRONT]
    radar_channels: [RADAR_FRONT, RADAR_BACK_LEFT]
runner: {{device: cpu}}
tracking: {{enabled: false}}
epochs: 2
batch_size: 2
evaluation: {{processes: 1}}
"""

# One process for all commands: torch is imported once.
COMMANDS = """
import json, sys
from training.commands.app import app

for words in json.loads(sys.argv[1]):
    try:
        app(words, standalone_mode=False)
    except SystemExit as end:
        assert not end.code, words
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the library with the page's task."""
    copy = tmp_path_factory.mktemp("library")
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    code = re.findall(r"```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for name, text in zip(FILES, code, strict=True):
        assert f"`{name}`" in PAGE
        (copy / name).write_text(text, encoding="utf-8")
    (lines,) = re.findall(r"```diff\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"^\+\+\+ b/(\S+)", lines, re.MULTILINE)) == {
        "robustbev/tasks/assembly.py", "training/tasks/assembly.py"
    }  # fmt: skip
    subprocess.run(["patch", "-p1", "--fuzz=0"], cwd=copy, input=lines, text=True, check=True, capture_output=True)
    return copy


def run(library: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(library), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=library,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_it_goes_through_everything(library: Path, small_nuscenes: SmallNuScenes, tmp_path: Path) -> None:
    config, model = tmp_path / "counts.yaml", tmp_path / "runs" / "counting"
    root, version = small_nuscenes.root, small_nuscenes.config.version
    config.write_text(CONFIG.format(runs=tmp_path / "runs", root=root, version=version))
    commands = [
        ["train", "--config", str(config)],
        ["evaluate", "--checkpoint", str(model)],
        ["show", "--checkpoint", str(model), "--out", str(tmp_path / "pictures"), "--config", str(config)],
        ["replay", str(root), "--scene", "scene-1", "--checkpoint", str(model), "--out", str(tmp_path / "drive.mcap"),
         "--out", str(tmp_path / "drive.ros2.mcap")],
        ["export", "--checkpoint", str(model), "--out", str(tmp_path / "exported"), "--format", "pt2"],
    ]  # fmt: skip
    run(library, "-c", COMMANDS, json.dumps(commands))

    history = [json.loads(line) for line in (model / "history.jsonl").read_text().splitlines()]
    assert 0 < history[-1]["parts"]["counts/poisson"] < history[0]["parts"]["counts/poisson"]
    subsets = json.loads((model / "subsets.json").read_text())
    assert [figures["tasks"]["counts"]["error"] >= 0 for figures in subsets.values()] == [True] * 3
    (table,) = (model / "evaluation").glob("**/table.md")
    assert "counts error" in table.read_text()
    for name in ("drive.mcap", "drive.ros2.mcap"):
        assert b"/tasks/counts/count" in (tmp_path / name).read_bytes()
    manifest = json.loads(next((tmp_path / "exported").glob("*.json")).read_text())
    (output,) = (spec for spec in manifest["outputs"] if spec["name"] == "counts_count")
    assert output["shape"] == ["B", 32, 32]
