"""`robustbev doctor` tells where packages come from, and when they are not ours."""

from pathlib import Path

import pytest

import training.doctor
from training.doctor import main, package_origins, shadowed


def test_a_sound_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 0
    out = capsys.readouterr().out
    for word in ("Python 3", "torch", "CPU cores", "Extras", "configs/tiny.yaml", "share one root"):
        assert word in out
    assert set(package_origins()) == {"robustbev", "training", "sensors", "bev", "fusion"}


def test_a_package_of_another_root_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    origins = package_origins() | {"sensors": Path("/opt/ros/lib/python3/sensors/__init__.py")}
    (warning,) = shadowed(origins)
    assert warning.startswith("sensors is imported from /opt/ros/lib/python3/sensors/__init__.py, but robustbev from")
    monkeypatch.setattr(training.doctor, "package_origins", lambda: origins)
    assert main() == 1
    assert "warning: sensors" in capsys.readouterr().err


def test_a_missing_extra_says_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training.doctor, "missing", lambda extra: ["spconv"] if extra == "spconv" else [])
    main()
    assert 'without spconv: pip install "robustbev[spconv]"' in capsys.readouterr().out
