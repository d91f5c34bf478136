"""Small artifacts of each kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fusion.runtime import Artifact, load
from tests.small_artifact import write_artifact


@pytest.fixture(scope="session")
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
