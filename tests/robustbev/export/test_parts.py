"""Every fuser exports alone; what cannot be exported is said plainly and leaves nothing behind.

Letters: T boxes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import robustbev
import robustbev.export.write
from bev.detection.suppression import greedy_suppression
from bev.lift.groups import groups_of, lift_groups, lift_splat_groups
from bev.lift.table import build_lift_table, lift_splat
from fusion import BEVFeatures, GatedFusion, MeanFusion
from fusion.runtime import load as load_artifact
from robustbev.export import ExportError, Kind, export, export_fuser
from robustbev.export.check import compare
from robustbev.export.graphs import perception_outputs
from robustbev.export.interface import OWN_GRID
from sensors.errors import MissingExtraError
from sensors.frames import KINDS
from tests.robustbev.export.exported import noise, traced_once
from tests.tiny_model import tiny_config, tiny_model

FUSERS: list[dict[str, Any]] = [  # attention to one cell is exported with the whole model, in test_artifacts.py
    {"heads": 2, "neighbourhood": 3},
    {"kind": "concat"},
    {"kind": "mean"},
    {"kind": "channel_weights", "absent": "mask"},
    {"kind": "latent", "heads": 2},
    {"kind": "joint", "heads": 2, "absent": "mask"},
    {"kind": "gated", "heads": 2, "adds": ["radar"]},
]
_KINDS: tuple[Kind, ...] = ("onnx", "pt2")
_FAST = [{"kind": "mean"}]


@pytest.mark.parametrize(
    "fuser", [pytest.param(f, id=str(f), marks=[] if f in _FAST else [pytest.mark.slow]) for f in FUSERS]
)
def test_every_fuser_exports_alone(fuser: dict[str, Any], tmp_path: Path) -> None:
    """`export` compares each with the model before it writes it. Of two modalities: a third goes the same way."""
    pytest.importorskip("onnxruntime")
    model = tiny_model(fuser=fuser, camera=None)
    with traced_once({}):
        paths = [export(model, tmp_path, kind=kind, part="fuser") for kind in _KINDS]
    for path in paths:
        manifest = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
        assert manifest["part"] == "fuser"
        assert [spec["name"] for spec in manifest["inputs"]] == [
            "lidar_features", "lidar_coverage", "radar_features", "radar_coverage", "present",
        ]  # fmt: skip
    assert {file.name for file in tmp_path.iterdir()} == {p.name for p in paths} | {f"{p.name}.json" for p in paths}


@pytest.mark.slow
def test_a_model_of_one_modality_with_sparse_stages_exports_whole(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    export(tiny_model(camera=None, radar=None, lidar={"pillar_channels": 8, "sparse_blocks": 1}), tmp_path, kind="onnx")
    assert not [file for file in tmp_path.iterdir() if ".rig." in file.name]  # nothing to look up without cameras


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = tiny_model(fuser={"kind": "mean"})
    first, second = (export(model, tmp_path / folder, kind="onnx", part="fuser") for folder in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_what_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustbev.export, "compare", lambda a, b: replace(compare(a, b), largest=0.5, where="features"))
    kept = tmp_path / "fuser.pt2"
    kept.write_text("of an earlier export")
    with pytest.raises(ExportError, match=r"fuser\.pt2: the exported fuser does not compute .* 0\.5 \(features\)"):
        export(tiny_model(fuser={"kind": "mean"}), tmp_path, kind="pt2", part="fuser")
    assert [file.name for file in tmp_path.iterdir()] == ["fuser.pt2"]
    assert kept.read_text() == "of an earlier export"


def test_a_difference_is_seen_wherever_it_is(tmp_path: Path) -> None:
    """Of the comparison itself: a value, a NaN, a box too many, a box moved, another class."""
    model = tiny_model()
    with torch.no_grad():
        expected = perception_outputs(model(noise(model, 0)))
    assert compare(expected, expected).fits
    for name, change in {
        "attention": torch.tensor(2e-4), "coverage": torch.tensor(torch.nan), "yaw_rad": torch.tensor(2e-3),
        "score": torch.tensor(1e-3), "center_m": torch.tensor(0.01), "velocity_mps": torch.tensor(-1e-3),
    }.items():  # fmt: skip
        assert not compare(expected, expected | {name: expected[name] + change}).fits, name
    for name, other in {"label": (expected["label"] + 1) % 10, "center_m": expected["center_m"] + 1}.items():
        difference = compare(expected, expected | {name: other})
        assert difference.unmatched + difference.excused == 2 * difference.boxes, name


def test_missing_libraries_are_told_with_what_brings_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("sensors.extras.find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    with pytest.raises(
        MissingExtraError, match=r"onnxscript, which is not installed: pip install .robustbev\[export\]"
    ):
        export(tiny_model(), tmp_path / "out", kind="onnx", part="fuser")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "tflite"}, "kind: expected one of onnx, pt2, aoti, got 'tflite'"),
        ({"part": "head"}, "part: expected one of model, fuser, got 'head'"),
        ({"name": "../up"}, "name: expected a file's name"),
        ({"name": ""}, "name: expected a file's name"),
        ({"radars": 5}, "how many cameras the model has is not in its config.json .* --cameras"),
        ({"cameras": 6}, "how many radars the model has"),
        ({"cameras": 0, "radars": 5}, "cameras: expected 1 to 64, got 0"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_computed(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"kind": "pt2"} | changes
    with pytest.raises(ValueError, match=message):
        export(tiny_model(), tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_the_rig_of_the_config_says_how_many_sensors_there_are() -> None:
    rig = {"camera_channels": ["LEFT", "RIGHT"], "lidar_channels": ["TOP"], "radar_channels": ["FRONT"]}
    model = robustbev.build(tiny_config(rig=rig))
    nothing: dict[str, int | None] = dict.fromkeys(KINDS)
    assert robustbev.export._counts(model, nothing) == {"camera": 2, "lidar": 1, "radar": 1}
    assert robustbev.export._counts(model, nothing | {"camera": 3, "lidar": 2}) == {"camera": 3, "lidar": 2, "radar": 1}
    bare = robustbev.build(tiny_config())
    assert robustbev.export._counts(bare, nothing | {"camera": 3, "radar": 2}) == {"camera": 3, "lidar": 1, "radar": 2}


class _Suppression(nn.Module):
    def forward(self, close: Tensor) -> Tensor:
        return greedy_suppression(close)


@pytest.fixture(scope="module")
def exported_suppression() -> Any:
    example = torch.zeros(2, 30, 30, dtype=torch.bool)
    free = ({0: torch.export.Dim("B", min=1, max=64), 1: (t := torch.export.Dim("T", min=1, max=500)), 2: t},)
    return torch.export.export(_Suppression(), (example,), dynamic_shapes=free).module()


@given(st.integers(0, 2**31), st.floats(0, 0.5), st.integers(2, 60))
def test_suppression_exports_as_the_same_boxes(exported_suppression: Any, seed: int, share: float, count: int) -> None:
    close = torch.rand(3, count, count, generator=torch.Generator().manual_seed(seed)) < share
    assert torch.equal(exported_suppression(close), greedy_suppression(close))


def test_suppression_in_a_row_where_each_box_beats_the_next(exported_suppression: Any) -> None:
    """The most rounds that it can take: every answer hangs on the one before."""
    close = torch.eye(100, dtype=torch.bool).roll(1, 0)[None].clone()
    kept = exported_suppression(close)
    assert torch.equal(kept, greedy_suppression(close))
    assert kept[0].tolist() == [i % 2 == 0 for i in range(100)]


def test_groups_lift_what_the_table_lifts() -> None:
    model = tiny_model()
    camera, cameras = model.encoder("camera"), noise(model, 0, batch_size=3).part("camera")
    assert camera is not None
    assert cameras is not None
    cameras.present[1, 2] = False
    settings = {
        "image_size": camera.image_size, "stride": camera.stride_px, "bins": camera.bins, "grid": camera.grid,
        "z_range_m": camera.z_range_m, "samples": camera.lift_samples,
    }  # fmt: skip
    calibration = cameras.intrinsics, cameras.reference_T_camera, cameras.present
    table = build_lift_table(*calibration, **settings)
    groups = groups_of(table)
    generator = torch.Generator().manual_seed(0)
    shape = (3, cameras.present.shape[1], camera.image_size[0] // 8, camera.image_size[1] // 8)
    context, depth = torch.randn(*shape, 5, generator=generator), torch.rand(*shape, 12, generator=generator)
    expected = lift_splat(context, depth, table)
    torch.testing.assert_close(lift_splat_groups(context, depth, groups), expected, atol=1e-4, rtol=1e-4)
    anew = lift_groups(*calibration, **settings)
    for mine, theirs in zip(
        (anew.entry, anew.cell, anew.visible), (groups.entry, groups.cell, groups.visible), strict=True
    ):
        assert torch.equal(mine, theirs)
    rubbish = replace(groups, cell=groups.cell.roll(1).clone(), entry=groups.entry.clone())
    rubbish.cell[:], rubbish.entry[::2] = -7, 2**60
    assert not lift_splat_groups(context, depth, rubbish).any()


def test_the_command_writes_the_files_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("typer")
    from training.commands.export import ExportFormat, ExportPart
    from training.commands.export import export as command

    checkpoint = robustbev.save(tiny_model(fuser={"kind": "mean"}), tmp_path / "run")
    command(checkpoint, tmp_path / "out", ExportFormat.PT2, ExportPart.FUSER, "mine")
    said = capsys.readouterr().out
    assert "mine.pt2" in said
    assert hashlib.sha256((tmp_path / "out" / "mine.pt2").read_bytes()).hexdigest() in said
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["mine.pt2", "mine.pt2.json"]


def test_the_command_writes_the_folder_that_robustbev_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("typer")
    import typer

    from training.commands.export import ExportFormat, ExportPart
    from training.commands.export import export as command

    model = tiny_model()
    checkpoint = robustbev.save(model, tmp_path / "run", robustbev.ModelCard("mine"))
    command(checkpoint, tmp_path / "out", ExportFormat.SAFETENSORS)
    assert str(tmp_path / "out") in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    assert (tmp_path / "out" / "README.md").read_text().startswith("# mine\n")
    assert robustbev.load(tmp_path / "out").config == model.config
    with pytest.raises(typer.BadParameter, match="leave out --part and --name"):
        command(checkpoint, tmp_path / "out", ExportFormat.SAFETENSORS, ExportPart.FUSER)


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_fuser_of_sensors_of_ones_own_exports(kind: Kind, tmp_path: Path) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    base = MeanFusion({"thermal": 3, "sonar": 5}, 8)
    channels = {"thermal": 3, "sonar": 5, "depth": 4}
    fuser = GatedFusion(base, {"depth": 4}, 8, modalities=list(channels)).train()
    path = export_fuser(
        fuser, tmp_path, channels=channels, out_channels=8, grid_shape=(7, 9), kind=kind, name="robot"
    )  # fmt: skip
    assert fuser.training
    artifact = load_artifact(path, trust_code=True)
    assert artifact.part == "fuser"
    assert artifact.manifest["modalities"] == ["thermal", "sonar", "depth"]
    grids = [spec for spec in (*artifact.inputs, *artifact.outputs) if spec.name != "present"]
    assert {spec.frame for spec in grids} == {OWN_GRID}, "nobody has said which way X and Y point"
    assert not re.search("forward|left|ahead", Path(f"{path}.json").read_text())
    draw = torch.Generator().manual_seed(0)
    inputs = {s.name: torch.rand([2 if d == "B" else int(d) for d in s.shape], generator=draw) for s in artifact.inputs}
    present = torch.tensor([[True, False, True], [True, True, False]])
    given = {name: tensor.numpy() for name, tensor in (inputs | {"present": present}).items()}
    with torch.no_grad():
        expected = fuser.eval()({
            name: BEVFeatures(
                inputs[f"{name}_features"], inputs[f"{name}_coverage"] * present[:, i, None, None]
            )
            for i, name in enumerate(channels)
        })  # fmt: skip
    for name, got in artifact(given).items():
        torch.testing.assert_close(torch.as_tensor(got), getattr(expected, name), atol=1e-4, rtol=0)


def test_a_fuser_and_what_is_said_of_it_must_agree(tmp_path: Path) -> None:
    fuser = MeanFusion({"thermal": 3, "sonar": 5}, 8)
    wrong: list[tuple[dict[str, Any], str]] = [
        (
            {"channels": {"sonar": 5, "thermal": 3}},
            "channels: expected those of thermal, sonar, in this order, got sonar, ",
        ),
        ({"channels": {"thermal": 4, "sonar": 5}}, r"thermal: expected features \[B, 3, X, Y\]"),
        ({"out_channels": 9}, "out_channels: expected 8, which the fuser gives, got 9"),
        (
            {"fuser": MeanFusion({"thermal": 3, "sonar": 5}, 8).half()},
            r"weights: expected float32, got float16 \(tokens\.",
        ),
    ]
    named = MeanFusion({"roof.thermal": 3, "sonar": 5}, 8)
    wrong.append(
        ({"fuser": named, "channels": named.in_channels}, "expected names of letters, .* got 'roof.thermal': give")
    )
    sound: dict[str, Any] = {
        "fuser": fuser,
        "channels": {"thermal": 3, "sonar": 5},
        "out_channels": 8,
        "grid_shape": (7, 9),
        "kind": "pt2",
    }
    for changes, says in wrong:
        with pytest.raises(ValueError, match=says):
            export_fuser(out=tmp_path / "out", **sound | changes)
    assert not (tmp_path / "out").exists()


def test_the_command_tells_of_a_folder_without_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("typer")
    from training.commands.export import ExportFormat
    from training.commands.export import export as command

    with pytest.raises(SystemExit) as ended:
        command(tmp_path, tmp_path / "out", ExportFormat.PT2)
    assert ended.value.code == 2
    assert "no checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_program_holds_weights_and_graph_and_no_example(tmp_path: Path) -> None:
    model = tiny_model(fuser={"kind": "mean"})
    path = export(model, tmp_path, kind="pt2", part="fuser")
    first, second = path.read_bytes(), export(model, tmp_path / "again", kind="pt2", part="fuser").read_bytes()
    assert len(first) < 100_000
    assert first == second
