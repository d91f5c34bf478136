"""Programs that mean harm: nothing in them runs, and each is refused by name."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fusion.runtime
from fusion.runtime import Artifact, ArtifactError, load, onnx_file, pt2_archive, pt2_program
from tests.hostile.files import CANARY, pickled
from tests.hostile.fuzzed_json import JSON, named, places
from tests.small_artifact import (
    SUFFIX,
    eager,
    program_with,
    random_inputs,
    rewritten,
    write_manifest,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # torch and onnxscript warn of their own habits
RUNTIME = Path(fusion.runtime.__file__).parent
ROOT = RUNTIME.parents[1]
KINDS = ["onnx", "pt2", pytest.param("aoti", marks=pytest.mark.slow)]


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
