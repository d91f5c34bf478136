"""The deployment examples run with a copy of the runtime and one library each; the C++ one computes what Python does."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion.runtime import load
from tests.robustbev.export.exported import exported_tiny
from tests.small_artifact import link_distributions, write_artifact

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "docs" / "deploy"


def run_alone(script: str, *words: str, distributions: set[str], folder: Path) -> str:
    """What a copy of an example prints where these libraries, a copy of the runtime and nothing else can be imported."""
    robot, links = folder / "robot", folder / "links"
    robot.mkdir()
    shutil.copytree(ROOT / "fusion" / "runtime", robot / "runtime")
    shutil.copy(EXAMPLES / script, robot)
    link_distributions(tuple(distributions), links)
    code = (
        f"import runpy, sys; sys.path[:0] = [{str(robot)!r}, {str(links)!r}]; sys.argv = {[script, *words]!r}; "
        "from importlib.util import find_spec; "
        "print(*[name for name in ('numpy', 'torch', 'onnxruntime', 'onnx', 'fusion', 'robustbev') if find_spec(name)]); "
        f"runpy.run_path({str(robot / script)!r}, run_name='__main__')"
    )
    command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=robot, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    visible, _, said = done.stdout.partition("\n")
    assert set(visible.split()) == distributions
    return said


def test_a_whole_model_runs_with_onnxruntime_and_numpy_alone(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    path = exported_tiny("onnx").path
    said = run_alone(
        "run_onnx.py", str(path), "--threads", "1", distributions={"onnxruntime", "numpy"}, folder=tmp_path
    )
    assert "lidar_points       float32 [B, P, 5]" in said
    for what in ("all", "without camera", "without lidar", "without radar"):
        assert f"{what}: perceived True; attention camera 0." in said


def test_a_fuser_runs_with_torch_alone(tmp_path: Path) -> None:
    path = write_artifact(tmp_path, "pt2")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    said = run_alone(
        "run_torch.py", str(path), "--threads", "1", "--sha256", sha256, distributions={"torch"}, folder=tmp_path
    )
    for what in ("all", "without camera", "without lidar"):
        assert f"{what}: features [1, 8, 6, 5]; attention camera 0." in said


def test_the_cpp_example_computes_what_python_does(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    path, program = exported_tiny("aoti").path, tmp_path / "run_aoti"
    lib = Path(torch.__file__).parent
    subprocess.run(
        [
            compiler, "-std=c++20", EXAMPLES / "run_aoti.cpp", "-o", program, f"-I{lib / 'include'}", f"-L{lib / 'lib'}",
            f"-Wl,-rpath,{lib / 'lib'}", "-Wl,--allow-shlib-undefined", "-ltorch", "-ltorch_cpu", "-lc10",
        ],
        check=True,
    )  # fmt: skip
    artifact = load(path, trust_code=True)
    shapes = {s.name: [size if isinstance(size, int) else 3 for size in s.shape] for s in artifact.inputs}
    ones = {s.name: np.ones(shapes[s.name], s.dtype) for s in artifact.inputs}
    words = [f"{s.dtype}:{','.join(map(str, shapes[s.name]))}" for s in artifact.inputs]
    done = subprocess.run([program, path, *words], capture_output=True, text=True, check=True)
    *lines, _median = done.stdout.splitlines()
    assert len(lines) == len(artifact.outputs)
    for line, value in zip(lines, artifact(ones).values(), strict=True):
        shape, _, magnitude = line.partition(" sum of magnitudes ")
        assert shape == str(list(value.shape))
        assert float(magnitude) == pytest.approx(float(value.double().abs().sum()), rel=1e-5)
    wrong = subprocess.run([program, path, "float33:1"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr) == (1, "dtype: expected float32, int64, uint8 or bool, got float33\n")
