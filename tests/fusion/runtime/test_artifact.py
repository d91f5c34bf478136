"""What robots copy runs artifacts of each kind, alone, and tells what is wrong with an input."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fusion.runtime
from fusion.runtime import Artifact, load, manifest
from tests.small_artifact import (
    GRID,
    INPUTS,
    eager,
    link_distributions,
    manifest_of,
    random_inputs,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # torch and onnxscript warn of their own habits
RUNTIME = Path(fusion.runtime.__file__).parent
KINDS = ["onnx", "pt2"]  # AOTInductor compiles: its package runs in tests/robustbev/export/test_artifacts.py


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_the_model_does_for_any_batch_and_any_subset(
    kind: str, artifacts: Callable[[str], Artifact]
) -> None:
    artifact = artifacts(kind)
    for samples in (1, 2, 7):
        inputs = random_inputs(samples, seed=samples)
        for present in ([True, True], [True, False], [False, True], [False, False]):
            inputs["present"][:] = present
            outputs, expected = artifact(inputs), eager(inputs)
            assert list(outputs) == list(expected)
            for name, value in expected.items():
                np.testing.assert_allclose(np.asarray(outputs[name]), value, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_may_lie_in_memory_as_they_like(kind: str, artifacts: Callable[[str], Artifact]) -> None:
    inputs = random_inputs(4)
    expected = artifacts(kind)(inputs)
    strange = dict(inputs)
    strange["camera_features"] = np.asfortranarray(inputs["camera_features"])
    strange["lidar_features"] = np.repeat(inputs["lidar_features"], 2, axis=0)[::2]
    strange["lidar_coverage"] = inputs["lidar_coverage"][::-1][::-1]
    strange["present"].flags.writeable = False
    got = artifacts(kind)(strange)
    assert all(np.array_equal(np.asarray(got[name]), np.asarray(expected[name])) for name in expected)


def test_programs_take_tensors_and_give_tensors(artifacts: Callable[[str], Artifact]) -> None:
    inputs = random_inputs(3)
    from_arrays = artifacts("pt2")(inputs)
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    tensors["camera_features"] = tensors["camera_features"].to(memory_format=torch.channels_last).requires_grad_()
    from_tensors = artifacts("pt2")(tensors)
    for name, value in from_tensors.items():
        assert torch.equal(value, from_arrays[name])
        assert not value.requires_grad


def test_it_tells_what_goes_in_and_out(artifacts: Callable[[str], Artifact]) -> None:
    artifact = artifacts("pt2")
    assert [spec.name for spec in artifact.inputs] == list(INPUTS)
    coverage = artifact.inputs[1]
    assert (coverage.dtype, coverage.shape, coverage.unit, coverage.frame) == (
        "float32",
        ("B", *GRID),
        "0 to 1",
        "cells",
    )
    assert (artifact.kind, artifact.part, artifact.symbols["B"].max) == ("pt2", "fuser", 64)
    assert artifact.manifest["modalities"] == ["camera", "lidar"]


def test_the_number_of_threads_is_the_users(small: Callable[[str], Path]) -> None:
    before = torch.get_num_threads()
    try:
        inputs = random_inputs(2)
        assert set(load(small("onnx"), threads=1)(inputs)) == set(eager(inputs))
        load(small("pt2"), trust_code=True, threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    for threads in (0, -1, True, 1.5):
        with pytest.raises(ValueError, match="threads: expected"):
            load(small("onnx"), threads=threads)  # type: ignore[arg-type]


# --- alone ------------------------------------------------------------------------------------------------------------


def test_at_import_it_needs_the_standard_library_alone() -> None:
    for file in RUNTIME.glob("*.py"):
        tree = ast.parse(file.read_text())
        top = {a.name for node in tree.body if isinstance(node, ast.Import) for a in node.names}
        top |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom) if node.level == 0}
        assert {name.partition(".")[0] for name in top} <= {*sys.stdlib_module_names, "__future__"}
        assert all(node.level < 2 for node in tree.body if isinstance(node, ast.ImportFrom)), "leaves the folder"


ALONE = """
import sys
sys.path[:0] = [{robot!r}, {links!r}]
import importlib.util
import eyes
print(*[n for n in ("numpy", "torch", "onnxruntime", "onnx", "fusion", "robustbev") if importlib.util.find_spec(n)])
artifact = eyes.load({path!r}, sha256={sha256!r})
import numpy as np
inputs = {{s.name: np.ones([2 if d == "B" else d for d in s.shape], s.dtype) for s in artifact.inputs}}
print(*(float(abs(v).sum()) for v in artifact(inputs).values()))
"""


def test_a_copy_under_another_name_runs_with_one_library(small: Callable[[str], Path], tmp_path: Path) -> None:
    """That of ONNX; with torch alone the example of docs/deploy runs, in tests/robustbev/export/test_deploy.py."""
    path, robot, links = small("onnx"), tmp_path / "robot", tmp_path / "links"
    robot.mkdir()
    shutil.copytree(RUNTIME, robot / "eyes")
    link_distributions(("onnxruntime", "numpy"), links)
    done = subprocess.run(
        [
            sys.executable, "-I", "-S", "-W", "ignore", "-c",
            ALONE.format(
                robot=str(robot), links=str(links), path=str(path), sha256=manifest_of(path, "onnx")["sha256"]
            ),
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    visible, sums = done.stdout.splitlines()
    assert set(visible.split()) == {"numpy", "onnxruntime"}
    ones = {name: np.ones_like(value) for name, value in random_inputs(2).items()}
    expected = [float(np.abs(value).sum()) for value in eager(ones).values()]
    np.testing.assert_allclose([float(text) for text in sums.split()], expected, rtol=1e-5)


# --- inputs that do not fit -------------------------------------------------------------------------------------------


def spoilt(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda inputs: inputs.__setitem__(name, value)


BAD_INPUTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown": (spoilt("odour", 1), "unknown input odour; .* takes camera_features, camera_coverage"),
    "missing": (lambda i: i.pop("present"), "missing input present; .* switch it off in its mask"),
    "a list": (spoilt("present", [[True, True]]), "present: expected a .*array, bool .*, got builtins.list"),
    "None": (spoilt("present", None), "present: expected a .*array.*, got builtins.NoneType"),
    "dtype": (
        lambda i: i.__setitem__("camera_features", i["camera_features"].astype(np.float64)),
        r"camera_features: expected dtype float32, got float64; use .astype\('float32'\)",
    ),
    "byte order": (
        lambda i: i.__setitem__("camera_features", i["camera_features"].astype(">f4")), "byte order, got >f4",
    ),
    "a mask within": (
        spoilt("present", np.ma.masked_array(np.ones((2, 2), np.bool_))),  # type: ignore[no-untyped-call]
        "got a masked one",
    ),
    "axes": (
        lambda i: i.__setitem__("camera_coverage", i["camera_coverage"][:, 0]),
        r"camera_coverage: expected 3 axes, float32 \[B, 6, 5\], got 2: \[2, 5\]",
    ),
    "channels": (
        lambda i: i.__setitem__("camera_features", i["lidar_features"]),
        r"camera_features: expected float32 \[B, 3, 6, 5\], got \[2, 4, 6, 5\]: axis 1 has 4, not 3",
    ),
    "a mask of another length": (
        spoilt("present", np.ones((2, 3), dtype=np.bool_)), r"present: expected bool \[B, 2\], got \[2, 3\]",
    ),
    "two batches": (
        spoilt("present", np.ones((3, 2), dtype=np.bool_)), r"present: B is 3 in \[3, 2\] but 2 in camera_features",
    ),
    "no samples": (
        spoilt("camera_features", np.ones((0, 3, 6, 5), dtype=np.float32)),
        r"camera_features: expected B from 1 to 64 .* has 0 \(samples\)",
    ),
    "too many samples": (
        spoilt("camera_features", np.ones((65, 3, 6, 5), dtype=np.float32)), "expected B from 1 to 64 .* has 65",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
@pytest.mark.parametrize("fault", BAD_INPUTS)
def test_what_does_not_fit_is_told_before_anything_is_computed(
    kind: str, fault: str, artifacts: Callable[[str], Artifact]
) -> None:
    change, says = BAD_INPUTS[fault]
    inputs: dict[str, Any] = dict(random_inputs(2))
    change(inputs)
    with pytest.raises(ValueError, match=says):
        replace(artifacts(kind), _run=never)(inputs)


def never(arrays: Any) -> Any:
    raise AssertionError(f"computed with {len(arrays)} arrays")


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.ones(2, 2, device="meta", dtype=torch.bool), "present: expected a tensor on cpu.*got one on meta"),
        (torch.ones(2, 2), r"present: expected dtype bool, got float32; use .to\(torch.bool\)"),
        (torch.ones(2, 2, dtype=torch.bool).to_sparse(), "present: expected a dense tensor, got torch.sparse_coo"),
    ],
    ids=["device", "dtype", "layout"],
)
def test_tensors_are_checked_too(tensor: torch.Tensor, says: str, artifacts: Callable[[str], Artifact]) -> None:
    with pytest.raises(ValueError, match=says):
        artifacts("pt2")({**random_inputs(2), "present": tensor})


def test_a_tensor_is_no_array_for_onnxruntime(artifacts: Callable[[str], Artifact]) -> None:
    with pytest.raises(ValueError, match=r"present: expected a numpy array.* got torch.Tensor"):
        artifacts("onnx")({**random_inputs(2), "present": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(ValueError, match="inputs: expected a mapping"):
        artifacts("onnx")([1])  # type: ignore[arg-type]


TYPES = st.sampled_from([np.float32, np.float64, np.uint8, np.bool_, np.int64])


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_an_input_passes_if_and_only_if_it_is_what_the_manifest_says(
    data: st.DataObject, artifacts: Callable[[str], Artifact]
) -> None:
    artifact, samples = artifacts("onnx"), data.draw(st.integers(1, 4))
    inputs: dict[str, Any] = dict(random_inputs(samples))
    spec = data.draw(st.sampled_from(artifact.inputs))
    exact = [samples if dim == "B" else int(dim) for dim in spec.shape]
    near = st.tuples(*(st.integers(max(0, size - 1), size + 1) for size in exact))
    shape = data.draw(st.one_of(st.just(tuple(exact)), near, st.lists(st.integers(0, 6), max_size=6).map(tuple)))
    dtype = data.draw(st.one_of(st.just(np.dtype(spec.dtype).type), TYPES))
    inputs[spec.name] = np.zeros(shape, dtype)
    if list(shape) == exact and np.dtype(dtype).name == spec.dtype:
        assert [array.shape for array in artifact.check(inputs)] == [inputs[name].shape for name in INPUTS]
    else:
        with pytest.raises(ValueError, match=spec.name):
            artifact.check(inputs)


# --- numbers that point somewhere -------------------------------------------------------------------------------------


def pointing(artifacts: Callable[[str], Artifact]) -> Artifact:
    """An artifact that would take points with their counts, and indices below 4 cells a sample."""
    parse = manifest._spec
    symbols = {name: fusion.runtime.Symbol("", 0, 100) for name in ("B", "P", "E")}
    entries = [
        {"name": "lidar_points", "dtype": "float32", "shape": ["B", "P", 5]},
        {"name": "lidar_count", "dtype": "int64", "shape": ["B"]},
        {"name": "lift_cell", "dtype": "int64", "shape": ["E"], "below": ["B", 4]},
    ]
    specs = tuple(parse(entry, symbols, "here") for entry in entries)
    return replace(artifacts("onnx"), inputs=specs, symbols=symbols, _run=never)


@settings(max_examples=100, deadline=None)
@given(
    samples=st.integers(1, 3),
    rows=st.integers(0, 5),
    count=st.integers(-2, 7),
    cells=st.lists(st.integers(-2, 14), max_size=6),
)
def test_counts_stay_within_the_points_and_indices_within_the_cells(
    samples: int, rows: int, count: int, cells: list[int], artifacts: Callable[[str], Artifact]
) -> None:
    inputs = {
        "lidar_points": np.zeros((samples, rows, 5), np.float32),
        "lidar_count": np.array([0] * (samples - 1) + [count], np.int64),
        "lift_cell": np.array(cells, np.int64),
    }
    fault = None
    if not 0 <= count <= rows:
        fault = f"lidar_count: expected counts from 0 to {rows}, got {count}: no more than there are points"
    elif any(not 0 <= cell < samples * 4 for cell in cells):
        fault = f"lift_cell: expected indices from 0 to {samples * 4 - 1}, got"
    if fault is None:
        pointing(artifacts).check(inputs)
    else:
        with pytest.raises(ValueError, match=fault):
            pointing(artifacts).check(inputs)
