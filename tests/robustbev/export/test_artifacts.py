"""`robustbev export` promises one file that computes what the model computes, with any sensor gone, and says what it takes.

One tiny model is exported once for each format; AOTInductor compiles for a minute and is among the slow tests.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fusion.runtime
from fusion.runtime import manifest as runtime_manifest
from robustbev.export import Kind
from robustbev.export.check import TOLERANCE, compare, compare_tables
from robustbev.export.example import rig_inputs
from tests.robustbev.export.exported import (
    KINDS,
    LOST_CAMERAS,
    SUBSETS,
    Exported,
    eager,
    exported_tiny,
    heatmap_of,
    inputs_for,
    noise,
    spoiled,
    without_cameras,
)
from tests.tiny_model import CAMERAS

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

_INPUTS_OF = {
    "camera": ("images", "camera_present", "camera_rays", "lift_entry", "lift_cell", "camera_visible"),
    "lidar": ("lidar_points", "lidar_count", "lidar_present", "lidar_sectors"),
    "radar": ("radar_points", "radar_count", "radar_present", "reference_T_radar"),
}
_KINDS = [pytest.param("aoti", marks=pytest.mark.slow), "onnx", "pt2"]  # so that one trace serves all


@pytest.fixture(scope="module", params=_KINDS)
def exported(request: pytest.FixtureRequest) -> Exported:
    kind: Kind = request.param
    return exported_tiny(kind)


def _assert_the_same(exported: Exported, seeds: range) -> None:
    model, boxes, unmatched, excused = exported.model, 0, 0, 0
    for seed in seeds:
        batch = noise(model, seed)
        cases = [(subset, batch) for subset in SUBSETS] + [(KINDS, without_cameras(batch, LOST_CAMERAS))]
        for subset, given in cases:
            difference = compare(eager(model, given.only(subset)), exported.run(inputs_for(model, given, subset)))
            assert max(difference.largest, difference.heading_rad) <= TOLERANCE, f"seed {seed}, {subset}: {difference}"
            boxes += difference.boxes
            unmatched += difference.unmatched
            excused += difference.excused
    assert boxes > 100
    assert unmatched == 0
    assert excused <= 0.02 * boxes


def test_it_computes_what_the_model_computes_with_every_subset_of_its_sensors(exported: Exported) -> None:
    _assert_the_same(exported, range(6))


def test_sectors_in_which_the_lidar_is_blind(exported: Exported) -> None:
    for seed in range(3):
        batch = noise(exported.model, seed)
        assert batch.part("lidar") is not None
        batch.part("lidar").sectors[:] = (torch.rand(36, generator=torch.Generator().manual_seed(seed)) < 0.5).float()
        seen = eager(exported.model, batch)
        difference = compare(seen, exported.run(inputs_for(exported.model, batch, KINDS)))
        assert difference.fits, str(difference)
        batch.part("lidar").sectors[:] = 1
        assert not torch.equal(seen["attention"], eager(exported.model, batch)["attention"])


@pytest.mark.parametrize(("batch_size", "points"), [(1, 1), (1, 5000), (5, 90)])
def test_batch_and_points_are_free(exported: Exported, batch_size: int, points: int) -> None:
    batch = noise(exported.model, 3, batch_size=batch_size, points=points)
    got = exported.run(inputs_for(exported.model, batch, KINDS))
    assert got["score"].shape[0] == batch_size
    difference = compare(eager(exported.model, batch), got)
    assert difference.fits, difference


def test_no_points_and_no_pairs_at_all(exported: Exported) -> None:
    """LiDAR and radar are there and see nothing; all cameras are gone, and with them every pair of the lift."""
    batch = without_cameras(noise(exported.model, 4, batch_size=1), list(range(CAMERAS)))
    assert batch.part("lidar") is not None
    assert batch.part("radar") is not None
    zero = torch.zeros(1, dtype=torch.long)
    batch = batch.having(lidar=replace(batch.part("lidar"), count=zero), radar=replace(batch.part("radar"), count=zero))
    inputs = inputs_for(exported.model, batch, KINDS)
    assert len(inputs["lift_entry"]) == 0
    difference = compare(eager(exported.model, batch), exported.run(inputs))
    assert difference.fits, difference


@pytest.mark.parametrize("gone", KINDS)
def test_what_an_absent_sensors_buffers_hold_is_not_read(exported: Exported, gone: str) -> None:
    batch = noise(exported.model, 5)
    inputs = inputs_for(exported.model, batch, tuple(m for m in KINDS if m != gone))
    clean, dirty = exported.run(inputs), exported.run(spoiled(inputs, _INPUTS_OF[gone]))
    for name, values in clean.items():
        assert torch.equal(values, dirty[name]), name


def test_what_single_absent_cameras_and_padding_hold_is_not_read(exported: Exported) -> None:
    batch = without_cameras(noise(exported.model, 6), LOST_CAMERAS)
    inputs = inputs_for(exported.model, batch, KINDS)
    dirty = {name: values.clone() for name, values in inputs.items()}
    dirty["images"][:, LOST_CAMERAS] = 255
    dirty["camera_rays"][:, LOST_CAMERAS] = torch.nan
    for b in range(batch.batch_size):
        dirty["lidar_points"][b, dirty["lidar_count"][b] :] = torch.nan
        dirty["radar_points"][b, dirty["radar_count"][b] :] = torch.inf
    clean, other = exported.run(inputs), exported.run(dirty)
    for name, values in clean.items():
        assert torch.equal(values, other[name]), name


def test_a_table_made_when_all_cameras_were_there_serves_when_some_are_lost(exported: Exported) -> None:
    batch = noise(exported.model, 7)
    lost = without_cameras(batch, LOST_CAMERAS)
    assert lost.part("camera") is not None
    inputs = inputs_for(exported.model, batch, KINDS) | {"camera_present": lost.part("camera").present}
    difference = compare(eager(exported.model, lost), exported.run(inputs))
    assert difference.fits, difference


def test_with_nobody_there_it_says_no_perception(exported: Exported) -> None:
    got = exported.run(inputs_for(exported.model, noise(exported.model, 8), ()))
    assert not got["perceived"].any()
    assert not got["score"].any()
    assert not got["coverage"].any()


def test_each_sample_has_sensors_of_its_own(exported: Exported) -> None:
    batch = noise(exported.model, 9)
    inputs = inputs_for(exported.model, batch, KINDS)
    inputs["present"] = torch.tensor([[True, False, False], [False, True, True]])
    got = exported.run(inputs)
    for b, subset in enumerate([("camera",), ("lidar", "radar")]):
        expected = eager(exported.model, batch.only(subset))
        one = ({name: side[name][b : b + 1] for name in expected} for side in (expected, got))
        difference = compare(*one)
        assert difference.fits, difference


def test_the_rigs_tables_are_those_of_the_model(exported: Exported) -> None:
    model = exported.model
    batch = without_cameras(noise(model, 10, batch_size=3), [2])
    assert batch.part("camera") is not None
    inputs = rig_inputs(batch.part("camera"))
    inputs["intrinsics"][:, 2], inputs["reference_T_camera"][:, 2] = torch.nan, 0.0  # of the camera that is gone
    tables = exported.rig(inputs)
    expected = inputs_for(model, batch, KINDS)
    difference = compare_tables(expected, tables)
    assert difference.fits, difference
    got = exported.run(expected | tables)
    assert float((got["coverage"] - eager(model, batch)["coverage"]).abs().max()) <= TOLERANCE


def test_the_manifest_says_what_the_file_takes_and_gives(exported: Exported) -> None:
    for path, part, run, inputs in (
        (exported.path, "model", exported.run, inputs_for(exported.model, noise(exported.model, 11), KINDS)),
        (exported.rig_path, "rig", exported.rig, None),
    ):
        manifest = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
        data = path.read_bytes()
        assert (manifest["format"], manifest["part"], manifest["file"]) == ("robustbev-artifact", part, path.name)
        assert (manifest["bytes"], manifest["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert manifest["classes"] == list(exported.model.config.classes)
        assert (manifest["machine"] is not None) == (manifest["kind"] == "aoti")
        if inputs is None:
            cameras = noise(exported.model, 11).part("camera")
            assert cameras is not None
            inputs = rig_inputs(cameras)
        assert [spec["name"] for spec in manifest["inputs"]] == list(inputs)
        sizes: dict[str, int] = {}
        for specs, tensors in ((manifest["inputs"], inputs), (manifest["outputs"], run(inputs))):
            for spec in specs:
                _assert_described(spec, tensors[spec["name"]].numpy(), sizes)
        assert set(sizes) == set(manifest["symbols"])


def _assert_described(spec: dict[str, Any], array: Any, sizes: dict[str, int]) -> None:
    assert spec["dtype"] == str(array.dtype), spec["name"]
    assert len(spec["shape"]) == array.ndim, spec["name"]
    for size, found in zip(spec["shape"], array.shape, strict=True):
        assert found == (sizes.setdefault(size, found) if isinstance(size, str) else size), spec["name"]
    if "below" in spec:
        limit = np.prod([sizes[size] if isinstance(size, str) else size for size in spec["below"]])
        assert ((array >= 0) & (array < limit)).all(), spec["name"]


def test_the_onnx_heatmap_is_that_of_the_model(exported: Exported) -> None:
    """Everywhere, and not at the boxes alone."""
    if exported.path.suffix != ".onnx":
        pytest.skip("only ONNX lets one look inside")
    import onnx
    import onnxruntime

    graph = onnx.load(exported.path)
    (sigmoid,) = (node for node in graph.graph.node if node.op_type == "Sigmoid")
    graph.graph.output.append(onnx.ValueInfoProto(name=sigmoid.output[0]))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for subset in SUBSETS:
        batch = noise(exported.model, 12)
        inputs = inputs_for(exported.model, batch, subset)
        (got,) = session.run([sigmoid.output[0]], {name: values.numpy() for name, values in inputs.items()})
        np.testing.assert_allclose(got, heatmap_of(exported.model, batch.only(subset)).numpy(), atol=1e-5)


def test_onnx_has_no_operator_that_loses_sums_on_several_threads(exported: Exported) -> None:
    """onnxruntime's ScatterND adds to duplicate rows from several threads without locks."""
    if exported.path.suffix != ".onnx":
        pytest.skip("of onnxruntime alone")
    import onnx

    for path in (exported.path, exported.rig_path):
        nodes = [node for node in onnx.load(path).graph.node if node.op_type == "ScatterND"]
        reductions = [attribute.s for node in nodes for attribute in node.attribute if attribute.name == "reduction"]
        assert set(reductions) <= {b"none"}, path.name


def test_the_file_runs_without_this_project(exported: Exported, tmp_path: Path) -> None:
    inputs = inputs_for(exported.model, noise(exported.model, 13), KINDS)
    np.savez(tmp_path / "inputs.npz", **{name: values.numpy() for name, values in inputs.items()})
    run = {
        ".onnx": (
            "import onnxruntime; "
            "run = lambda a: onnxruntime.InferenceSession(path).run(['score'], a)[0]"
        ),
        ".pt2": "import torch; run = lambda a: torch.export.load(path).module()(*map(torch.from_numpy, a.values()))[6].numpy()",
        ".aoti.pt2": (
            "import torch; "
            "run = lambda a: torch._inductor.aoti_load_package(path)(*map(torch.from_numpy, a.values()))[6].numpy()"
        ),
    }["." + exported.path.name.split(".", 1)[1]]  # fmt: skip
    code = (
        f"import sys, numpy; path, there = {str(exported.path)!r}, {str(tmp_path)!r}; {run}\n"
        "numpy.save(there + '/score.npy', run(dict(numpy.load(there + '/inputs.npz'))))\n"
        "assert not {'robustbev', 'bev', 'fusion', 'sensors'} & {name.partition('.')[0] for name in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "score.npy"), exported.run(inputs)["score"].numpy(), atol=1e-6)


def test_a_robot_runs_the_file_that_was_hashed(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `fusion.runtime`, from arrays that lie in memory as they like, though the file is swapped once it is read."""
    path = tmp_path / exported.path.name
    shutil.copy(exported.path, path)
    shutil.copy(f"{exported.path}.json", tmp_path)
    read = runtime_manifest.read_artifact

    def then_swapped(*arguments: Any) -> bytes:
        data = read(*arguments)
        path.write_bytes(b"another file")
        return data

    monkeypatch.setattr(fusion.runtime, "read_artifact", then_swapped)
    artifact = fusion.runtime.load(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert path.read_bytes() == b"another file"
    for subset in SUBSETS:
        inputs = inputs_for(exported.model, noise(exported.model, 14), subset)
        expected = exported.run(inputs)
        for given in ({name: np.asfortranarray(values) for name, values in inputs.items()}, inputs):
            if artifact.kind == "onnx" and given is inputs:
                continue  # takes arrays alone
            got = artifact(given)
            for name, values in expected.items():
                torch.testing.assert_close(torch.as_tensor(got[name]), values, rtol=0, atol=1e-6)


def test_the_file_tells_nothing_of_the_machine_it_was_made_on(exported: Exported) -> None:
    if exported.path.name.endswith(".aoti.pt2"):
        pytest.skip("machine code")
    root = str(Path(__file__).resolve().parents[3]).encode()
    for path in (exported.path, exported.rig_path):
        assert root not in path.read_bytes()
        assert b"site-packages" not in path.read_bytes()
