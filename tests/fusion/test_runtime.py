"""The file that robots copy: it runs artifacts of each kind, tells what is wrong with an input, and runs nothing else."""

from __future__ import annotations

import ast
import copy
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fusion.runtime
from fusion.runtime import Artifact, ArtifactError, load, manifest, onnx_file, pt2_archive, pt2_program
from tests.hostile import CANARY, pickled
from tests.small_artifact import (
    GRID,
    INPUTS,
    SUFFIX,
    eager,
    link_distributions,
    manifest_of,
    program_with,
    random_inputs,
    rewritten,
    write_artifact,
    write_manifest,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # torch and onnxscript warn of their own habits
RUNTIME = Path(fusion.runtime.__file__).parent
ROOT = RUNTIME.parents[1]
KINDS = ["onnx", "pt2", pytest.param("aoti", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    folder = tmp_path_factory.mktemp("artifacts")
    loaded: dict[str, Artifact] = {}

    def get(kind: str) -> Artifact:
        if kind not in loaded:
            pytest.importorskip("onnxscript" if kind == "onnx" else "torch")
            loaded[kind] = load(write_artifact(folder, kind), trust_code=True)
        return loaded[kind]

    return get


@pytest.fixture
def small(tmp_path: Path) -> Callable[[str], Path]:
    """A fresh artifact of a kind, to be spoilt."""

    def write(kind: str) -> Path:
        pytest.importorskip("onnxscript" if kind == "onnx" else "torch")
        return write_artifact(tmp_path, kind)

    return write


# --- what it computes -------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("kind", ["pt2", pytest.param("aoti", marks=pytest.mark.slow)])
def test_torch_kinds_take_tensors_and_give_tensors(kind: str, artifacts: Callable[[str], Artifact]) -> None:
    inputs = random_inputs(3)
    from_arrays = artifacts(kind)(inputs)
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    tensors["camera_features"] = tensors["camera_features"].to(memory_format=torch.channels_last).requires_grad_()
    from_tensors = artifacts(kind)(tensors)
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
    assert artifact.manifest["modalities"] == ("camera", "lidar")
    with pytest.raises(TypeError):
        artifact.manifest["inputs"][0]["name"] = "other"


def test_the_number_of_threads_is_the_users(small: Callable[[str], Path]) -> None:
    before = torch.get_num_threads()
    try:
        inputs = random_inputs(2)
        assert set(load(small("onnx"), threads=1)(inputs)) == set(eager(inputs))
        load(small("pt2"), threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    for threads in (0, -1, True, 1.5):
        with pytest.raises(ValueError, match="threads: expected"):
            load(small("pt2"), threads=threads)  # type: ignore[arg-type]


# --- alone ------------------------------------------------------------------------------------------------------------


def test_at_import_it_needs_the_standard_library_alone() -> None:
    for file in RUNTIME.glob("*.py"):
        tree = ast.parse(file.read_text())
        top = {a.name for node in tree.body if isinstance(node, ast.Import) for a in node.names}
        top |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom) if node.level == 0}
        assert {name.partition(".")[0] for name in top} <= {*sys.stdlib_module_names, "__future__"}
        assert all(node.level < 2 for node in tree.body if isinstance(node, ast.ImportFrom)), "leaves the folder"
    done = subprocess.run(
        [sys.executable, "-c", "import sys, fusion; print('fusion.runtime' in sys.modules)"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "False"


ALONE = """
import sys
sys.path[:0] = [{robot!r}, {links!r}]
import importlib.util
import eyes
print(*[n for n in ("numpy", "torch", "onnxruntime", "onnx", "fusion", "robustbev") if importlib.util.find_spec(n)])
artifact = eyes.load({path!r})
{inputs}
print(*(float(abs(v).sum()) for v in artifact(inputs).values()))
"""
WITH_NUMPY = """
import numpy as np
inputs = {s.name: np.ones([2 if d == "B" else d for d in s.shape], s.dtype) for s in artifact.inputs}
"""
WITH_TORCH = """
import torch
inputs = {s.name: torch.ones([2 if d == "B" else d for d in s.shape], dtype=getattr(torch, s.dtype)) for s in artifact.inputs}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "distributions", "code"),
    [("onnx", ("onnxruntime", "numpy"), WITH_NUMPY), ("pt2", ("torch",), WITH_TORCH)],
)
def test_a_copy_under_another_name_runs_with_one_library(
    kind: str, distributions: tuple[str, ...], code: str, small: Callable[[str], Path], tmp_path: Path
) -> None:
    path, robot, links = small(kind), tmp_path / "robot", tmp_path / "links"
    robot.mkdir()
    shutil.copytree(RUNTIME, robot / "eyes")
    link_distributions(distributions, links)
    done = subprocess.run(
        [
            sys.executable, "-I", "-S", "-W", "ignore", "-c",
            ALONE.format(robot=str(robot), links=str(links), path=str(path), inputs=code),
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    visible, sums = done.stdout.splitlines()
    assert set(visible.split()) == ({"numpy", "onnxruntime"} if kind == "onnx" else {"torch"})
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


# --- files that are not what they should be ---------------------------------------------------------------------------


def changed(path: Path, **changes: Any) -> None:
    write_manifest(path, "pt2", changes)


FAULTY: dict[str, tuple[Callable[[Path], object], str]] = {
    "no artifact": (lambda p: p.unlink(), "the artifact cannot be read"),
    "no manifest": (lambda p: (p.parent / f"{p.name}.json").unlink(), "the manifest cannot be read.*two files"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-9]), "expected .* bytes by its manifest, got .*copied whole"),
    "another byte": (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"x"), "expected SHA-256 .* by its manifest, got"),
    "format": (lambda p: changed(p, format="other"), 'expected a manifest with "format"'),
    "version": (lambda p: changed(p, format_version=2), "expected format_version 1, got 2"),
    "version of truth": (lambda p: changed(p, format_version=True), "expected format_version 1, got True"),
    "kind": (lambda p: changed(p, kind="pickle"), "kind: expected one of onnx, aoti, pt2, got 'pickle'"),
    "other kind": (lambda p: changed(p, kind="onnx"), "kind: expected pt2 of a file named robust.pt2, got onnx"),
    "part": (lambda p: changed(p, part="brain"), "part: expected one of model, fuser, rig"),
    "file": (lambda p: changed(p, file="../robust.pt2"), "file: expected robust.pt2"),
    "size": (lambda p: changed(p, bytes=2**40), "bytes: expected a number from 1 to"),
    "checksum": (lambda p: changed(p, sha256="x"), "sha256: expected 64 hexadecimal digits"),
    "no inputs": (lambda p: changed(p, inputs=[]), "inputs: expected a list of 1 to 256"),
    "dtype": (
        lambda p: changed(p, inputs=[{"name": "a", "dtype": "object", "shape": []}]), "dtype: expected one of .*got 'object'",
    ),
    "symbol": (lambda p: changed(p, symbols={}), r"camera_features\): shape: expected sizes up to .*got 'B'"),
    "bounds": (
        lambda p: changed(p, symbols={"B": {"min": 5, "max": 4}}), "symbols.B: expected 0 <= min <= max .*got 5 and 4",
    ),
    "fewer inputs": (
        lambda p: changed(p, inputs=manifest_of(p, "pt2")["inputs"][:2]), "inputs: expected the program's 5 .*got 2",
    ),
    "inputs in another order": (
        lambda p: changed(p, inputs=manifest_of(p, "pt2")["inputs"][::-1]), "inputs: expected the program's 5",
    ),
    "fewer outputs": (
        lambda p: changed(p, outputs=manifest_of(p, "pt2")["outputs"][:2]), "outputs: expected the program's 3, got 2",
    ),
    "twice": (
        lambda p: changed(p, inputs=[manifest_of(p, "pt2")["inputs"][0]] * 5), "inputs: expected different names",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_file_is_told_with_its_name(fault: str, small: Callable[[str], Path]) -> None:
    change, says = FAULTY[fault]
    path = small("pt2")
    change(path)
    with pytest.raises(ArtifactError, match=says) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_pinned_checksum_holds_whoever_wrote_the_manifest(small: Callable[[str], Path]) -> None:
    path = small("pt2")
    sha256 = json.loads((path.parent / "robust.pt2.json").read_text())["sha256"]
    assert load(path, sha256=sha256.upper()).part == "fuser"
    with pytest.raises(ArtifactError, match=r"expected SHA-256 '0+' as pinned, got"):
        load(path, sha256="0" * 64)


def test_an_onnx_file_is_held_against_its_manifest(small: Callable[[str], Path]) -> None:
    path = small("onnx")
    inputs = manifest_of(path, "onnx")["inputs"]
    for changes, says in (
        ({"inputs": inputs[:3]}, "inputs: expected those of the graph, camera_features"),
        ({"inputs": [{**inputs[0], "dtype": "uint8"}, *inputs[1:]]}, r"camera_features: expected tensor\(float\)"),
        ({"inputs": [{**inputs[0], "shape": ["B", 9, 6, 5]}, *inputs[1:]]}, "camera_features: expected tensor"),
    ):
        write_manifest(path, "onnx", changes)
        with pytest.raises(ArtifactError, match=says):
            load(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=5) | st.just("B"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def named(error: ArtifactError, path: Path) -> None:
    assert str(path) in str(error), error


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in nested JSON."""
    pairs = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [(value, key) for key, _ in pairs] + [place for _, inner in pairs for place in places(inner)]


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_manifest_is_read_or_refused_by_name(data: st.DataObject, artifacts: Callable[[str], Artifact]) -> None:
    path = artifacts("onnx").path
    manifest = copy.deepcopy(manifest_of(path, "onnx"))
    container, key = data.draw(st.sampled_from(places(manifest)))
    container[key] = data.draw(JSON)
    file = path.with_name("robust.onnx.json")
    try:
        file.write_text(json.dumps(manifest))
        try:
            load(path)
        except ArtifactError as error:
            named(error, path)
    finally:
        write_manifest(path, "onnx")


# --- machine code -----------------------------------------------------------------------------------------------------


def test_machine_code_needs_trust(tmp_path: Path) -> None:
    path = tmp_path / "robust.aoti.pt2"
    path.write_bytes(b"never opened")
    write_manifest(path, "aoti")
    with pytest.raises(ArtifactError, match=r"machine code that would run with your rights.*trust_code=True"):
        load(path)


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        ({"machine": "riscv128"}, "compiled for machine 'riscv128', this is"),
        ({"torch": "1.0.0"}, "compiled for torch '1.0.0', this is"),
        ({"device": "tpu"}, "machine.device: expected cpu or cuda, got 'tpu'"),
    ],
)
def test_machine_code_of_another_machine_is_not_loaded(machine: Mapping[str, str], says: str, tmp_path: Path) -> None:
    path = tmp_path / "robust.aoti.pt2"
    path.write_bytes(b"never opened")
    write_manifest(path, "aoti", {"machine": machine})
    with pytest.raises(ArtifactError, match=says):
        load(path, trust_code=True)


# --- programs that mean harm ------------------------------------------------------------------------------------------


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, in which whatever runs leaves a canary."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def evil_expression(program: Any) -> None:
    value = next(iter(program["graph_module"]["graph"]["tensor_values"].values()))
    value["sizes"][0] = {"as_expr": {"expr_str": f"__import__('os').mkdir('{CANARY}')", "hint": None}}


def evil_sample(records: dict[str, bytes]) -> None:
    records["data/sample_inputs/model.pt"] = torch_saved()


def torch_saved() -> bytes:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (CANARY,)

    buffer = io.BytesIO()
    torch.save((Bomb(),), buffer)
    return buffer.getvalue()


def test_what_torch_would_run_in_a_recorded_sample_is_never_touched(small: Callable[[str], Path], quiet: Path) -> None:
    path = small("pt2")
    path.write_bytes(rewritten(path.read_bytes(), evil_sample))
    write_manifest(path, "pt2")
    inputs = random_inputs(2)
    np.testing.assert_allclose(load(path)(inputs)["features"], eager(inputs)["features"], atol=1e-5)
    assert not list(quiet.iterdir())
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever comes after the damage
        torch.export.load(path)
    assert [file.name for file in quiet.iterdir()] == [CANARY], "the file does not show anything"


def test_what_sympy_would_evaluate_is_refused(small: Callable[[str], Path], quiet: Path) -> None:
    path = small("pt2")
    path.write_bytes(rewritten(path.read_bytes(), program_with(evil_expression)))
    write_manifest(path, "pt2")
    with pytest.raises(ArtifactError, match=r"expr_str: .*mkdir.* could be code; expected arithmetic"):
        load(path)
    assert not list(quiet.iterdir())
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever comes after the damage
        torch.export.load(path)
    assert [file.name for file in quiet.iterdir()] == [CANARY], "the file does not show anything"


def test_guards_are_python_and_not_run(small: Callable[[str], Path], quiet: Path) -> None:
    path = small("pt2")

    def guard(program: Any) -> None:
        program["guards_code"] = [f"__import__('os').mkdir('{CANARY}') is None"]

    path.write_bytes(rewritten(path.read_bytes(), program_with(guard)))
    write_manifest(path, "pt2")
    load(path)(random_inputs(2))
    assert not list(quiet.iterdir())


EXPRESSIONS = {
    "Symbol('s28', positive=True, integer=True)": True,
    "Mul(Integer(30), Symbol('s28', positive=True, integer=True))": True,
    "Add(Integer(-1), FloorDiv(Symbol('u0', integer=True), Integer(2)))": True,
    "Pow(Symbol('s0', integer=True), Integer(2))": True,
    "Max(Integer(1), Symbol('s0', integer=True))": True,
    "Pow(Integer(9), Pow(Integer(9), Integer(9)))": False,
    "Pow(Integer(9), Integer(999999999))": False,
    "Symbol('os.system')": False,
    "Symbol('s0').__class__": False,
    "Lambda(Symbol('s0'), Integer(1))": False,
    "(lambda: 1)()": False,
    "[x for x in (1,)]": False,
    "Integer(open('x'))": False,
    "Integer" + "(Integer" * 800 + "(1)" + ")" * 800: False,
    "s0": False,
    "": False,
}


@pytest.mark.parametrize("text", EXPRESSIONS, ids=lambda t: t[:40])
def test_expressions_are_arithmetic_of_sizes(text: str) -> None:
    if EXPRESSIONS[text]:
        pt2_program._vet_expression(text, "here")
    else:
        with pytest.raises(ArtifactError, match="could be code; expected arithmetic of sizes"):
            pt2_program._vet_expression(text, "here")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_program_is_vetted_or_refused_by_name(data: st.DataObject, artifacts: Callable[[str], Artifact]) -> None:
    """Whatever one value in it is changed to, refused or not: nothing but our own error comes out of the vetting."""
    path = artifacts("pt2").path
    with zipfile.ZipFile(path) as archive:
        program = json.loads(archive.read("robust/models/model.json"))
    container, key = data.draw(st.sampled_from(places(program)))
    container[key] = data.draw(JSON | st.sampled_from(["os.system", "torch.hub.load", "a\n b", "__import__('os')"]))
    try:
        pt2_program.vet_program(program, str(path))
    except ArtifactError as error:
        named(error, path)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_bytes_are_vetted_or_refused_by_name(data: st.DataObject, artifacts: Callable[[str], Artifact]) -> None:
    for kind, vet in (("onnx", onnx_file.vet_onnx), ("pt2", pt2_archive.vetted_archive)):
        sound = bytearray(artifacts(kind).path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            sound[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
        for spoilt_file in (bytes(sound), bytes(sound[: data.draw(st.integers(0, len(sound)))])):
            try:
                vet(spoilt_file, Path(f"robust{SUFFIX[kind]}"))
            except ArtifactError as error:
                named(error, Path(f"robust{SUFFIX[kind]}"))


def test_a_pickle_is_neither(tmp_path: Path, quiet: Path) -> None:
    assert pickle.loads(pickle.dumps(1)) == 1
    for kind, suffix in SUFFIX.items():
        path = tmp_path / f"robust{suffix}"
        path.write_bytes(pickled())
        write_manifest(path, kind)
        with pytest.raises(ArtifactError, match=str(path)):
            load(path)
    assert not list(quiet.iterdir())
