"""The wheel: small, typed, without tests, and of use where torch is installed and nothing else is."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from robustbev import save
from sensors.logs.write import write_log
from tests.sensors.replay.drive import MemoryLog, drive
from tests.test_pythons import requirements
from tests.tiny_model import tiny_model

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("bev", "fusion", "robustbev", "sensors", "training")
BASE = ("torch", "numpy", "pydantic", "safetensors")

FUSE = """
import sys
import torch
before = {name.partition(".")[0] for name in sys.modules}
from fusion import BEVFeatures, CrossAttentionFusion
after = {name.partition(".")[0] for name in sys.modules}
fuser = CrossAttentionFusion({"thermal": 4, "sonar": 2}, 8)
thermal = BEVFeatures(torch.randn(1, 4, 6, 5), torch.ones(1, 6, 5))
fused = fuser({"thermal": thermal, "sonar": None})
fused.features.sum().backward()
print(sys.modules["fusion"].__file__)
print(*fused.features.shape, *sorted(after - before - set(sys.stdlib_module_names)))
"""
PERCEIVE = """
import numpy as np
import robustbev
from sensors.frames import CameraImage, LidarSweep, RadarSweep, SensorFrame
model = robustbev.load("model")
level = np.array([[0, 0, 1, 1], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1.0]])
pinhole = np.array([[400, 0, 300], [0, 400, 150], [0, 0, 1.0]])
camera = CameraImage("FRONT", np.full((300, 600, 3), 90, np.uint8), pinhole, level, 0)
lidar = LidarSweep("TOP", np.random.default_rng(0).uniform(-9, 9, (500, 5)).astype(np.float32), np.eye(4), 0)
radar = RadarSweep("BUMPER", np.random.default_rng(1).uniform(1, 9, (20, 6)).astype(np.float32), np.eye(4), 0)
frame = SensorFrame("now", 0, (camera,), (lidar,), (radar,), np.eye(4))
blind = SensorFrame("now", 0, None, None, None, np.eye(4))
print(model.perceive(frame).perceived, len(model.perceive(frame, min_score=0)) > 0, not model.perceive(blind).perceived)
"""
NOT_THERE = """
import importlib.util
print(*[name for name in ("numpy", "pydantic", "safetensors", "ray", "mlflow", "cv2", "nuscenes", "yaml")
        if importlib.util.find_spec(name)])
"""


def ended(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command's end, without the sources that a PYTHONPATH (ROS sets one) would put before what is installed."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(part) for part in command]
    return subprocess.run(words, cwd=cwd, env=clean, capture_output=True, text=True, check=False, timeout=600)


def run(*command: str | Path, cwd: Path) -> str:
    done = ended(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what is packaged, so that nothing is written beside the sources."""
    pytest.importorskip("setuptools")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for room in (*ROOMS, "tests"):
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index")
    run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", out, source, cwd=out)
    (built,) = out.glob("*.whl")
    return built


def environment(folder: Path, wheel: Path, distributions: Iterable[str]) -> Path:
    """A fresh environment with the wheel, which sees these distributions, and what they need, of ours; -> its python."""
    links = folder / "links"
    links.mkdir()
    for name in needed(distributions):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (links / top).exists():
                (links / top).symlink_to(Path(str(distribution.locate_file(top))))
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (site / "links.pth").write_text(f"{links}\n")
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=folder)
    return python


def needed(names: Iterable[str]) -> set[str]:
    """These distributions and all that they require, by their canonical names."""
    found: set[str] = set()
    waiting = [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for text in importlib.metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))
    return found


def test_it_is_small_and_typed_and_holds_our_packages_alone(wheel: Path) -> None:
    assert wheel.stat().st_size < 1_000_000
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(ROOMS)
    assert {f"{room}/py.typed" for room in ROOMS} <= set(names)
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    sources = {str(f.relative_to(ROOT)) for p in listed for f in (ROOT / p.replace(".", "/")).glob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources


def test_with_torch_alone_a_fuser_runs(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path, wheel, ["torch"])
    assert run(python, "-I", "-c", NOT_THERE, cwd=tmp_path).split() == []
    place, said = run(python, "-I", "-W", "ignore", "-c", FUSE, cwd=tmp_path).splitlines()
    assert Path(place).is_relative_to(tmp_path)
    assert said.split() == ["1", "8", "6", "5", "fusion"]


def test_with_the_base_dependencies_a_model_perceives(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path, wheel, BASE)
    rig = {"camera_channels": ["FRONT"], "lidar_channels": ["TOP"], "radar_channels": ["BUMPER"]}
    save(tiny_model(rig=rig), tmp_path / "model")
    assert run(python, "-I", "-c", PERCEIVE, cwd=tmp_path).split() == ["True", "True", "True"]
    assert run(python, "-I", "-c", NOT_THERE, cwd=tmp_path).split() == ["numpy", "pydantic", "safetensors"]


def test_the_extras_replay_and_export_bring_what_their_commands_need(wheel: Path, tmp_path: Path) -> None:
    """Neither nuscenes-devkit nor Ray and MLflow: as on a Python that cannot have the devkit."""
    extras = [one.name for one in requirements("replay", "export")]
    command = environment(tmp_path, wheel, [*BASE, *extras]).with_name("robustbev")
    save(tiny_model(fuser={"kind": "mean"}), tmp_path / "model")
    write_log(MemoryLog(drive(0.3)), tmp_path / "drive.mcap", "foxglove")
    outputs = ("--out", "seen.mcap", "--out", "seen.mp4")
    run(command, "replay", "drive.mcap", "--checkpoint", "model", *outputs, cwd=tmp_path)
    assert {"seen.mcap", "seen.mp4"} <= {file.name for file in tmp_path.iterdir()}
    run(command, "export", "--checkpoint", "model", "--part", "fuser", "--out", "files", cwd=tmp_path)
    assert (tmp_path / "files" / "fuser.onnx").is_file()
    (tmp_path / "run.yaml").write_text("name: small\n")
    for words in (["train", "--config", "run.yaml"], ["simulate"]):
        done = ended(command, *words, cwd=tmp_path)
        assert (done.returncode, len(done.stderr.splitlines())) == (3, 1), done.stderr
        assert done.stderr.startswith(f"error: robustbev {words[0]} needs ")
