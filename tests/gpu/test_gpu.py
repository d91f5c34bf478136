"""`make gpu` runs here with small sizes, so that it is right before a GPU is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bev.pillars import linear_max_reference
from robustbev import ModelConfig
from tests.gpu import ops
from tests.gpu.__main__ import main
from tests.gpu.measure import ROOT, host_waits, with_gradients

CPU = torch.device("cpu")


def small_config() -> ModelConfig:
    text = (ROOT / "configs" / "tiny.yaml").read_text(encoding="utf-8")
    return ModelConfig.model_validate(yaml.safe_load(text)["model"])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("gpu") / "gpu.json"
    assert main(["--small", "--device", "cpu", "--no-compile", "--out", str(out)]) == 0
    loaded: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return loaded


def test_every_op_is_compared_with_its_twin_and_timed(report: dict[str, Any]) -> None:
    compared = [name for name, figures in report["parts"].items() if "errors" in figures]
    for op in (
        "lift", "pillars", "cell_attention", "attention_1x1", "attention_3x3", "tokens", "mean_of_present",
        "mean_of_trusted", "place",
    ):  # fmt: skip
        assert any(name.startswith(op) for name in compared), op
    for name in compared:
        figures = report["parts"][name]
        assert len(figures["errors"]) >= 3, "output and gradients"
        assert figures["forward_ms"] > 0
        assert figures["of_bandwidth"] > 0


def test_points_and_geometry_are_compared_with_plain_torch_and_timed(report: dict[str, Any]) -> None:
    for part, names in {"points": ("pillars", "drift", "velocity"), "geometry": ("table", "rays")}.items():
        for name in names:
            figures = report["parts"][part]
            assert figures[f"{name}_apart"] <= 1e-4
            assert figures[f"{name}_forward_ms"] > 0
            assert figures[f"{name}_plain_forward_ms"] > 0


def test_points_that_differ_from_plain_torch_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "device_ms", lambda op, device: 1.0)
    monkeypatch.setattr(ops, "point_drift", lambda *given: torch.rand(1, 9, 4, 4))
    with pytest.raises(ValueError, match="drift: expected what plain torch gives"):
        ops.points(small_config(), CPU, 50)


def test_a_training_step_and_perceive_are_equal_to_the_cpus_and_taken_apart(report: dict[str, Any]) -> None:
    step, perceive = report["parts"]["training_step_float32"], report["parts"]["perceive"]
    assert step["loss_here"] == pytest.approx(step["loss_on_cpu"], rel=1e-3)
    assert step["loss_first_and_last"][1] < step["loss_first_and_last"][0]
    assert step["samples_per_s"] > 0
    for figures in (step, perceive):
        assert {"encoders.camera", "encoders.lidar", "encoders.radar", "fuser", "backbone", "heads.detection"} <= set(
            figures["parts_ms"]
        )
        assert figures["host_waits"] == sum(figures["host_waits_by_line"].values())
    assert {"camera", "lidar", "radar", "fuser", "decode"} < set(report["parts"]["perceive_stages"])


def test_an_op_that_differs_from_its_twin_is_a_failure_that_the_exit_code_tells(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ops, "linear_max", lambda *inputs: 1.001 * linear_max_reference(*inputs))
    out = tmp_path / "gpu.json"
    arguments = ["--small", "--device", "cpu", "--only", "pillars", "cell_attention", "--out", str(out)]
    assert main(arguments) == 1
    parts = json.loads(out.read_text(encoding="utf-8"))["parts"]
    assert "expected errors of output and gradients" in parts["pillars"]["error"]
    assert "errors" in parts["cell_attention"], "the next part runs all the same"


def test_a_wait_of_the_host_is_told_by_its_line() -> None:
    here = Path(__file__).name
    with host_waits(CPU) as waits:
        values = torch.ones(3)
        values.sum().item()
        torch.tensor([1.0, 2.0])
        values + 1
    assert sum(waits.values()) == 2
    assert all("outside" in place or here in place for place in waits)


def test_the_peer_of_the_lift_is_one() -> None:
    pytest.importorskip("triton", reason="Triton is for Linux")
    settings = yaml.safe_load((ROOT / "configs" / "tiny.yaml").read_text(encoding="utf-8"))["model"]
    settings["grid"] = {"x_min_m": -4.8, "x_max_m": 4.8, "y_min_m": -4.8, "y_max_m": 4.8}
    settings["modalities"]["camera"] |= {"image_height_px": 32, "image_width_px": 64}
    settings["modalities"]["camera"]["depth_bins"] = {"min_m": 1.0, "max_m": 9.0, "count": 4}
    assert ops.lift_peer(ModelConfig.model_validate(settings), CPU)["error"] < 1e-5


def test_gradients_are_of_every_input() -> None:
    a, b = torch.randn(3), torch.randn(3)
    output, of_a, of_b = with_gradients(lambda a, b: a * b, a, b)
    upward = torch.linspace(-1, 1, 3)
    torch.testing.assert_close(output, a * b)
    torch.testing.assert_close(of_a, b * upward)
    torch.testing.assert_close(of_b, a * upward)
