"""Artifacts and manifests that are not what they should be are told by name; code is loaded where somebody vouches for it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusion.runtime
from fusion.runtime import Artifact, ArtifactError, load, manifest
from tests.hostile.fuzzed_json import JSON, named, places
from tests.small_artifact import SUFFIX, eager, manifest_of, random_inputs, write_manifest

pytestmark = pytest.mark.filterwarnings("ignore")  # torch and onnxscript warn of their own habits


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
    "no inputs": (lambda p: changed(p, inputs=[]), "inputs: expected a list of tensors"),
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
        load(path, trust_code=True)
    assert str(path) in str(caught.value)


def test_a_pinned_checksum_holds_whoever_wrote_the_manifest(small: Callable[[str], Path]) -> None:
    path = small("pt2")
    sha256 = json.loads((path.parent / "robust.pt2.json").read_text())["sha256"]
    assert load(path, sha256=sha256.upper()).part == "fuser"
    with pytest.raises(ArtifactError, match=r"expected SHA-256 '0+' as pinned, got"):
        load(path, sha256="0" * 64, trust_code=True)


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


# --- code -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pt2", "aoti"])
@pytest.mark.parametrize("pinned", [None, "0" * 64], ids=["nothing", "a checksum of another file"])
def test_code_that_nobody_vouches_for_is_never_opened(
    kind: str, pinned: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"robust{SUFFIX[kind]}"
    path.write_bytes(b"never opened")
    write_manifest(path, kind)
    monkeypatch.setattr(fusion.runtime, f"open_{kind}", None)
    with pytest.raises(
        ArtifactError, match=r"as pinned, got" if pinned else "run with your rights.*sha256=.*trust_code=True"
    ):
        load(path, sha256=pinned)


def test_what_was_hashed_is_what_is_loaded(small: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can write to the folder may swap the file once its checksum was found to be the pinned one."""
    path = small("pt2")
    read = manifest.read_artifact

    def then_swapped(*arguments: Any) -> bytes:
        data = read(*arguments)
        path.write_bytes(b"another file")
        return data

    monkeypatch.setattr(fusion.runtime, "read_artifact", then_swapped)
    inputs = random_inputs(2)
    got = load(path, sha256=manifest_of(path, "pt2")["sha256"])(inputs)
    assert path.read_bytes() == b"another file"
    np.testing.assert_allclose(got["features"], eager(inputs)["features"], atol=1e-5)


def test_what_is_no_program_is_told(tmp_path: Path) -> None:
    for kind, says in (("pt2", "cannot rebuild it"), ("aoti", "cannot load it")):
        path = tmp_path / f"robust{SUFFIX[kind]}"
        path.write_bytes(b"no archive")
        write_manifest(path, kind)
        with pytest.raises(ArtifactError, match=f"{path}: torch .* {says}"):
            load(path, trust_code=True)


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
