"""Another rig is another configuration and no code: each file in configs/rigs goes through every command, on data of its rig."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest.importorskip("mlflow")

from typer.testing import CliRunner

import robustbev
from robustbev.checkpoints import find_checkpoint
from sensors.calibration import apply
from sensors.errors import SensorDataError, SensorDataWarning
from sensors.frames import SensorFrame
from sensors.nuscenes.reader import NuScenesReader
from sensors.prepare import prepare
from tests.small_nuscenes import VERSION, Channel, SmallNuScenes, write_small_nuscenes
from training.commands.app import app
from training.data.dataset import open_reader, preparation, rig_of
from training.evaluation.tables import read_subsets
from training.runs.config import RunConfig, load_run_config

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "rigs"
RUNNER = CliRunner()
NAMES = tuple(path.stem for path in sorted(CONFIGS.glob("*.yaml")))
# The shipped models and nuScenes' amounts are too much for a test; which sensors there are stays as shipped.
SMALL = (
    "epochs=1", "batch_size=1", "tracking.enabled=false", "runner.workers=0", "runner.device=cpu", "data.workers=0",
    "model.channels=16", "model.grid={x_min_m: -25.6, x_max_m: 25.6, y_min_m: -25.6, y_max_m: 25.6, cell_m: 1.6}",
    "model.backbone={widths: [16, 16]}", "model.fuser.heads=2", "model.modalities.lidar={pillar_channels: 8}",
    "step.precision=float32", "optim.accumulation=1", "data.balance=none", "evaluation.processes=1",
    "evaluation.score_threshold=0", "data.nuscenes.train_split=small_train", "data.nuscenes.val_split=small_val",
    f"data.nuscenes.version={VERSION}",
)  # fmt: skip
SMALL_CAMERA = (
    "stem: patch, patch_px: 16, dim: 16, depth: 1, heads: 2, feature_stride_px: 16, feature_channels: 16, "
    "context_channels: 8, bev_blocks: 0, depth_bins: {min_m: 1, max_m: 25, count: 12}"
)

# The fields that its devkit reads of a radar's file (TUMFTM/truckscenes-devkit, utils/data_classes.py, RadarPointCloud).
TRUCK_RADAR = b"""VERSION 0.7
FIELDS x y z vrel_x vrel_y vrel_z rcs
SIZE 4 4 4 4 4 4 4
TYPE F F F F F F F
COUNT 1 1 1 1 1 1 1
WIDTH 1
HEIGHT 1
VIEWPOINT 0 0 0 1 0 0 0
POINTS 1
DATA binary
""" + bytes(28)


def channels_of(config: RunConfig) -> dict[str, Channel]:
    """Sensors in the configuration's channels, where their names say, each with its own pose and times."""
    found: dict[str, Channel] = {}
    for modality, names in config.data.nuscenes.channels().items():
        for k, name in enumerate(names):
            words = name.split("_")
            ahead = words.count("FRONT") - words.count("BACK") - words.count("REAR")
            left = words.count("LEFT") - words.count("RIGHT")
            yaw = np.arctan2(left, ahead) + 0.02
            place = (1.5 * ahead, 1.1 * left, 1.5 - 0.1 * k)
            turn = np.array([np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])
            if modality == "camera":  # z along the yaw, x to its right, y down
                c, s = turn[0] / 2, turn[3] / 2
                turn = np.array([c + s, -c - s, c - s, s - c])
            late = modality == "lidar" and name == config.data.nuscenes.reference_channel
            found[name] = (modality, (*place, *turn.tolist()), 0 if late else -7_000 * (k + 1))
    return found


@dataclass(frozen=True)
class Rig:
    """A shipped configuration on small data in its channels, trained."""

    config: RunConfig
    data: SmallNuScenes
    words: tuple[str, ...]  # what a command takes
    folder: Path


def words_of(name: str, data: SmallNuScenes, runs_dir: Path) -> tuple[str, ...]:
    shipped = load_run_config(CONFIGS / f"{name}.yaml")
    words = [*SMALL, f"runs_dir={runs_dir}", f"data.nuscenes.root={data.root}"]
    if "camera" in shipped.model.kinds:
        size = "image_height_px: 48, image_width_px: 96"
        words.append(f"model.modalities.camera={{{SMALL_CAMERA}, {size}}}")
    if "radar" in shipped.model.kinds:
        words.append("model.modalities.radar={width: 8}")
    return ("--config", str(CONFIGS / f"{name}.yaml"), *words)


def run(*words: str | Path) -> str:
    """What a command prints; its success."""
    result = RUNNER.invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module", params=NAMES)
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    shipped = load_run_config(CONFIGS / f"{name}.yaml")
    truck = name == "truckscenes"
    data = write_small_nuscenes(
        folder / "data", channels_of(shipped), picture_px=(118, 248) if truck else (180, 320), maps=not truck
    )
    words = words_of(name, data, folder / "runs")
    run("train", *words)
    return Rig(load_run_config(CONFIGS / f"{name}.yaml", words[2:]), data, words, folder)


def checkpoint(rig: Rig) -> Path:
    return find_checkpoint(rig.config.run_dir)


def validation_frame(rig: Rig) -> SensorFrame:
    model = robustbev.load(checkpoint(rig)).config
    return open_reader(rig.config.data, model, "small_val").frame(1)


def test_the_index_knows_its_channels(rig: Rig) -> None:
    said = run("index", *rig.words)
    for channel in channels_of(rig.config):
        assert f"{channel} 6" in said


def test_the_checkpoint_knows_its_rig(rig: Rig) -> None:
    kept = robustbev.load(checkpoint(rig)).config.rig
    assert kept is not None
    assert kept.channels() == rig.config.data.nuscenes.channels()


def test_every_subset_of_its_modalities_is_evaluated(rig: Rig) -> None:
    said = run("evaluate", "--checkpoint", rig.config.run_dir)
    own = rig.config.model.modalities
    assert " + ".join(own) in said
    assert ("radar" in said) == ("radar" in own)
    assert (rig.config.run_dir / "evaluation" / "+".join(own) / "metrics_summary.json").is_file()


def test_its_scenes_are_drawn(rig: Rig) -> None:
    out = rig.folder / "pictures"
    run("show", "--checkpoint", rig.config.run_dir, "--out", out)
    own = "+".join(rig.config.model.modalities)
    assert {f"sample-1-0_{own}.png", f"sample-1-0_{own}_cameras.png"} <= {path.name for path in out.iterdir()}


def test_its_scenes_are_replayed(rig: Rig) -> None:
    out = rig.folder / "seen"
    run(
        "replay", rig.data.root, "--scene", "scene-1", "--checkpoint", rig.config.run_dir, "--out", f"{out}.mcap",
        "--out", f"{out}.mp4", "--out", f"{out}.json", "--summary", f"{out}-summary.json",
    )  # fmt: skip
    assert Path(f"{out}.json").stat().st_size > 0
    (summary,) = json.loads(Path(f"{out}-summary.json").read_text())
    assert summary["sensors"] == {channel: {"ok": 3} for channel in channels_of(rig.config)}
    assert summary["ticks_with_truth"] == 3


def test_a_checkpoint_taken_out_of_its_run_replays_its_rig(rig: Rig, tmp_path: Path) -> None:
    alone, measured = tmp_path / "model", tmp_path / "summary.json"
    robustbev.save(robustbev.load(checkpoint(rig)), alone)
    run("replay", rig.data.root, "--scene", "scene-1", "--checkpoint", alone, "--summary", measured)
    (summary,) = json.loads(measured.read_text())
    own = set(channels_of(rig.config))
    assert summary["sensors"] == {channel: {"ok": 3} for channel in own}


def test_a_frame_is_perceived_by_a_program_of_three_lines(rig: Rig) -> None:
    model = robustbev.load(checkpoint(rig))
    frame = validation_frame(rig)
    detections = model.perceive(frame)
    assert detections.perceived
    assert detections.modalities == tuple(rig.config.model.modalities)
    assert np.isfinite(detections.attention).all()


@pytest.fixture(scope="module")
def two_lidars(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, SmallNuScenes]:
    folder = tmp_path_factory.mktemp("two")
    data = write_small_nuscenes(folder, channels_of(load_run_config(CONFIGS / "two-lidars.yaml")))
    words = words_of("two-lidars", data, folder)
    return load_run_config(CONFIGS / "two-lidars.yaml", words[2:]), data


def test_what_two_lidars_see_lies_in_the_same_cells(two_lidars: tuple[RunConfig, SmallNuScenes]) -> None:
    """Each has its own place, times and sweeps; what both see is brought to one frame by ego motion."""
    config, data = two_lidars
    reader = NuScenesReader(config.data.nuscenes, "small_train")
    frame = reader.frame(2)
    sweeps: dict[str, list[NDArray[Any]]] = {"LIDAR_FRONT": [], "LIDAR_REAR": []}
    for sweep in frame.lidar or ():
        sweeps[sweep.channel].append(apply(sweep.reference_T_lidar, sweep.points[:, :3].astype(np.float64)))
    assert {channel: len(clouds) for channel, clouds in sweeps.items()} == {"LIDAR_FRONT": 2, "LIDAR_REAR": 2}
    world = apply(np.linalg.inv(reader.global_T_reference(2)), data.world_m)
    for cloud in (*sweeps["LIDAR_FRONT"], *sweeps["LIDAR_REAR"]):
        np.testing.assert_allclose(cloud, world, atol=1e-4)
    prepared = prepare(frame, preparation(config.data, config.model)).items["lidar"].points
    assert prepared is not None
    assert len(np.unique(np.round(prepared[:, 4], 4))) == 4  # each sweep keeps its age
    grid = config.model.grid.bev()
    clear = np.abs(prepared[:, :2] / grid.cell_m - np.round(prepared[:, :2] / grid.cell_m)).min(axis=1) > 1e-3
    cells = grid.flat_index(torch.from_numpy(prepared[clear, :2]))
    alone = grid.flat_index(torch.from_numpy(world[:, :2].astype(np.float32)))
    assert set(cells.tolist()) <= set(alone.tolist())


def test_the_frame_of_several_lidars_is_the_one_that_is_named(two_lidars: tuple[RunConfig, SmallNuScenes]) -> None:
    config, _ = two_lidars
    rear = config.data.nuscenes.model_copy(update={"reference_channel": "LIDAR_REAR"})
    front_pose = NuScenesReader(config.data.nuscenes, "small_train").global_T_reference(1)
    rear_pose = NuScenesReader(rear, "small_train").global_T_reference(1)
    moved_m = np.linalg.norm(front_pose[:3, 3] - rear_pose[:3, 3])
    assert pytest.approx(moved_m, rel=0.1) == 8 * 0.014  # 14 ms at 8 m/s


def test_one_of_two_lidars_may_fail(two_lidars: tuple[RunConfig, SmallNuScenes], tmp_path: Path) -> None:
    config, data = two_lidars
    root = tmp_path / "data"
    shutil.copytree(data.root, root)
    shutil.rmtree(root / "samples" / "LIDAR_REAR")
    broken = config.data.nuscenes.model_copy(update={"root": root, "on_bad_file": "absent"})
    with pytest.warns(SensorDataWarning, match="LIDAR_REAR"):
        frame = NuScenesReader(broken, "small_train").frame(1)
    assert {sweep.channel for sweep in frame.lidar or ()} == {"LIDAR_FRONT"}


def test_of_two_lidars_that_look_their_own_way_a_lost_one_is_seen(two_lidars: tuple[RunConfig, SmallNuScenes]) -> None:
    config, _ = two_lidars
    frame = NuScenesReader(config.data.nuscenes, "small_train").frame(1)
    assert frame.lidar is not None
    around = np.random.default_rng(0).uniform([-20, -20, -1, 0, -1], [20, 20, 2, 255, -1], (4000, 5)).astype(np.float32)
    side = {"LIDAR_FRONT": around[:, 0] > 3, "LIDAR_REAR": around[:, 0] < -3}
    halves = tuple(
        dataclasses.replace(sweep, points=around[side[sweep.channel]], reference_T_lidar=np.eye(4))
        for sweep in frame.lidar
    )
    model = robustbev.build(config.model).eval()
    rig = rig_of(config.data, config.model)
    only_lidar = dataclasses.replace(frame, cameras=None, radar=None, lidar=halves)
    front = dataclasses.replace(only_lidar, lidar=tuple(s for s in halves if s.channel == "LIDAR_FRONT"))
    both, alone = model.perceive(only_lidar, rig), model.perceive(front, rig)
    assert both.coverage.all()
    assert alone.perceived
    assert alone.sensors["LIDAR_REAR"].absence
    middle = len(alone.coverage) // 2
    assert alone.coverage[middle:].all()
    assert not alone.coverage[:middle].any()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("camera_channels=[CAM_FRNT, CAM_REAR]", "data.nuscenes.camera_channels: .* got CAM_FRNT (the nearest is CAM_FRONT)"),
        ("radar_channels=[RADAR_TOP]", "data.nuscenes.radar_channels: .* got RADAR_TOP (the nearest is RADAR_FRONT)"),
        ("radar_channels=[CAM_BACK]", "data.nuscenes.radar_channels: CAM_BACK is a camera there, expected a radar"),
        ("reference_channel=LIDAR_TOP", "reference_channel must be one of lidar_channels (LIDAR_FRONT, LIDAR_REAR)"),
        ("camera_channels=[CAM_FRONT, CAM_FRONT]", "data.nuscenes: channel CAM_FRONT is named twice"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["index", "train", "show"])
def test_a_wrong_channel_is_one_clear_error(
    two_lidars: tuple[RunConfig, SmallNuScenes], tmp_path: Path, command: str, setting: str, words: str
) -> None:
    _, data = two_lidars
    given = [*words_of("two-lidars", data, tmp_path / "runs"), f"data.nuscenes.{setting}"]
    more = ["--out", str(tmp_path / "pictures")] if command == "show" else []
    result = RUNNER.invoke(app, [command, *given, *more])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert re.search(re.escape(words).replace(r"\.\*", ".*"), line)


def test_files_that_are_not_nuscenes_are_named_and_not_read_as_such(
    two_lidars: tuple[RunConfig, SmallNuScenes], tmp_path: Path
) -> None:
    """TruckScenes' own point files have headers and other fields; see docs/rigs.md."""
    config, data = two_lidars
    root = tmp_path / "data"
    shutil.copytree(data.root, root)
    for file in (root / "samples" / "RADAR_FRONT").iterdir():
        file.write_bytes(TRUCK_RADAR)
    reader = NuScenesReader(config.data.nuscenes.model_copy(update={"root": root}), "small_train")
    with pytest.raises(
        SensorDataError, match=r"RADAR_FRONT: .*expected nuScenes' radar file.*no field vx_comp\. Convert it"
    ):
        reader.frame(1)


def test_classes_of_ones_own_go_through_everything_without_the_nuscenes_detection_score(
    two_lidars: tuple[RunConfig, SmallNuScenes], tmp_path: Path
) -> None:
    """Three classes, of which one has no nuScenes name: trained and watched, evaluated, shown, corrupted, replayed, exported."""
    _, data = two_lidars
    own = ["model.classes=[car, pedestrian, van]",
           "data.nuscenes.class_map={vehicle.car: van, human.pedestrian.child: pedestrian}"]  # fmt: skip
    watched = ["evaluation.every_epochs=1", "evaluation.distances_m=[1, 2, 3]"]
    run("train", *words_of("two-lidars", data, tmp_path), *own, *watched)
    folder = tmp_path / "two-lidars"
    (best,) = folder.glob("checkpoints/best-*/best.json")
    assert json.loads(best.read_text())["figure"] == "mAP"
    row = json.loads((folder / "validation.jsonl").read_text().splitlines()[-1])
    assert "mAP" in row
    assert "NDS" not in row
    assert "NDS" not in run("evaluate", "--checkpoint", folder)
    results = read_subsets(folder / "subsets.json")
    assert {result.nds for result in results.values()} == {None}
    assert {tuple(result.class_ap) for result in results.values()} == {("car", "pedestrian", "van")}
    assert "| sensors | mAP |\n" in (find_checkpoint(folder) / "README.md").read_text()
    out = tmp_path / "robustness"
    run("robustness", "--checkpoint", folder, f"out={out}", "corruptions=[fog]", "severities=[1]")
    measured = json.loads((out / "robustness.json").read_text())
    assert "robustness/mRA_mAP" in measured["summary"]
    assert "NDS" not in json.dumps(measured)
    assert "NDS" not in (out / "subsets.csv").read_text()
    summary_file = tmp_path / "summary.json"
    run("replay", data.root, "--scene", "scene-1", "--checkpoint", folder, "--summary", summary_file)
    (summary,) = json.loads(summary_file.read_text())
    assert np.isfinite(summary["mean_ap"])  # there is truth of the van, which only the map leads to
    run("export", "--checkpoint", folder, "--format", "pt2", "--out", tmp_path / "artifacts", "--name", "own")
    manifest = json.loads((tmp_path / "artifacts" / "own.pt2.json").read_text())
    assert manifest["classes"] == ["car", "pedestrian", "van"]


def test_a_rig_without_lidar_takes_its_frame_from_a_camera(
    two_lidars: tuple[RunConfig, SmallNuScenes], tmp_path: Path
) -> None:
    _, data = two_lidars
    without = [
        "model.modalities.lidar=null",
        "data.nuscenes.lidar_channels=[]",
        "data.nuscenes.reference_channel=CAM_FRONT",
    ]
    words = (*words_of("two-lidars", data, tmp_path), *without)
    run("train", *(word for word in words if not word.startswith("model.modalities.lidar={")))
    checkpoint = tmp_path / "two-lidars"
    assert "camera + radar" in run("evaluate", "--checkpoint", checkpoint)
    run("show", "--checkpoint", checkpoint, "--out", tmp_path / "pictures")
    measured = tmp_path / "summary.json"
    run("replay", data.root, "--scene", "scene-1", "--checkpoint", checkpoint, "--summary", measured)
    (summary,) = json.loads(measured.read_text())
    assert summary["sensors"] == {channel: {"ok": 3} for channel in ("CAM_FRONT", "CAM_REAR", "RADAR_FRONT")}


def test_a_model_runs_on_a_rig_that_it_was_not_trained_on(rig: Rig) -> None:
    model = robustbev.load(checkpoint(rig))
    frame = validation_frame(rig)
    assert frame.cameras is not None
    camera = frame.cameras[0]
    assert camera is not None
    one = dataclasses.replace(camera, channel="ROOF")
    other = robustbev.RigConfig(camera_channels=("ROOF",))
    assert model.perceive(dataclasses.replace(frame, cameras=(one,), lidar=None, radar=None), other).perceived
