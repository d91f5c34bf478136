"""A connection to Ray that cannot be made is told in one line."""

from pathlib import Path

import pytest

pytest.importorskip("ray")

from training.runs.cluster.session import ray_session
from training.runs.files import RunError


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_too_long_a_folder_for_rays_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, str(folder))
    said = rf"^{variable}=.*x{{90}}: Ray keeps its sockets there.*set RAY_TMPDIR to a short folder"
    with pytest.raises(RunError, match=said), ray_session(None, "runner.address"):
        pass
