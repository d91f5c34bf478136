"""Pictures: they are there, need no display, are not blank, and what they draw is where it belongs."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bev.detection.boxes import Boxes
from bev.grid import BEVGrid
from fusion.features import FusedBEV
from robustbev import NUSCENES_CLASSES, Perception
from sensors.frames import KINDS, CameraImage, LidarSweep, RadarSweep, SensorFrame
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.reader import NuScenesReader
from tests.small_nuscenes import lidar_points
from training.evaluation.config import every_subset
from training.pictures.charts import attention_picture, comparison_chart, subset_chart, training_curves
from training.pictures.projection import box_segments, lidar_in_reference, project_points, project_segments
from training.pictures.scene.bev import Scene, above
from training.pictures.scene.cameras import arrange, directions
from training.pictures.scene.picture import cameras_picture, scene_picture, subsets_picture
from training.runs.show import show_found, show_truth
from training.tasks.detection.result import TP_ERRORS, SubsetResult

SUBSETS = every_subset(KINDS)

GRID = BEVGrid(-25.6, 25.6, -25.6, 25.6, 1.6)
FORWARD = np.array(
    [[0.0, 0, 1, 1.5], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]]
)  # reference_T_camera, looking along x
CHANNELS = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")


def _camera(channel: str, yaw_deg: float) -> CameraImage:
    turn = np.eye(4)
    yaw = np.radians(yaw_deg)
    turn[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    image = np.full((90, 160, 3), 90, np.uint8)
    intrinsics = np.array([[125.0, 0, 79.5], [0, 125.0, 44.5], [0, 0, 1]])
    return CameraImage(channel, image, intrinsics, turn @ FORWARD, 0)


def _boxes(xyz: list[list[float]], label: int = 0) -> Boxes:
    n = len(xyz)
    return Boxes(
        center_m=torch.tensor(xyz).reshape(n, 3),
        size_m=torch.tensor([[1.9, 4.5, 1.6]]).repeat(n, 1),
        yaw_rad=torch.zeros(n),
        velocity_mps=torch.tensor([[3.0, 0.0]]).repeat(n, 1),
        label=torch.full((n,), label),
        attribute=torch.full((n,), -1),
        score=torch.linspace(0.9, 0.2, n),
    )


@pytest.fixture
def scene() -> Scene:
    yaws = dict(zip(CHANNELS, (55, 0, -55, 110, 180, -110), strict=True))
    cameras = tuple(None if name == "CAM_BACK" else _camera(name, yaw) for name, yaw in yaws.items())
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform([-25, -25, -1.8], [25, 25, 1], (3000, 3)), np.zeros((3000, 2))], axis=1)
    points[0, 0] = np.nan
    lidar_pose = np.eye(4)
    lidar_pose[2, 3] = 1.8
    radar = np.array([[10, 2, 0, 5, 4, 0], [15, -3, 0, 5, 0, 0]], np.float32)
    frame = SensorFrame(
        token="token",
        time_us=0,
        cameras=cameras,
        lidar=(LidarSweep("LIDAR_TOP", points.astype(np.float32), lidar_pose, 0),),
        radar=(RadarSweep("RADAR_FRONT", radar, np.eye(4), 0),),
        global_T_reference=np.eye(4),
    )
    truth = _boxes([[12.0, 0.0, 0.8], [-9.0, 6.0, 0.8]])
    truth = dataclasses.replace(truth, velocity_mps=torch.full((2, 2), torch.nan))
    return Scene(frame, GRID, NUSCENES_CLASSES, truth=truth, camera_channels=CHANNELS)


def _attention() -> NDArray[np.float64]:
    share = np.random.default_rng(0).random((3, *GRID.shape))
    return share / share.sum(axis=0)


def _pixels(path: Path) -> NDArray[np.uint8]:
    """The picture, having checked that it is one and not blank."""
    image = cv2.imread(str(path))
    assert image is not None, path
    assert min(image.shape[:2]) > 300
    assert image.std() > 8
    assert not list(path.parent.glob(".*"))
    return np.asarray(image, np.uint8)


def _results(scale: float = 1.0) -> dict[str, SubsetResult]:
    return {
        subset: SubsetResult(
            subset, scale * (0.6 - 0.05 * k), scale * 0.6, dict.fromkeys(TP_ERRORS.values(), 0.3),
            dict.fromkeys(NUSCENES_CLASSES, 0.5), "ranges: official", 10,
        )
        for k, subset in enumerate(SUBSETS)
    }  # fmt: skip


def test_charts_of_an_evaluation(tmp_path: Path) -> None:
    _pixels(subset_chart(tmp_path / "chart.png", _results()))
    _pixels(comparison_chart(tmp_path / "compare.png", _results(), _results(0.5)))
    zero = {"radar": dataclasses.replace(_results()["radar"], mean_ap=0.0, nds=0.0)}
    _pixels(subset_chart(tmp_path / "zero.png", zero))
    with pytest.raises(ValueError, match="no subset in common"):
        comparison_chart(tmp_path / "no.png", zero, {"lidar": _results()["lidar"]})


def test_curves_of_a_training_run(tmp_path: Path) -> None:
    history = [
        {
            "step": i + 1,
            "loss": 2 / (i + 1),
            "parts": {"heatmap": 1 / (i + 1), "late": 0.1} if i > 20 else {},
            "lr": 1e-3,
        }
        for i in range(60)
    ]
    _pixels(training_curves(tmp_path / "curves.png", history))
    _pixels(training_curves(tmp_path / "one.png", history[:1]))
    with pytest.raises(ValueError, match="empty"):
        training_curves(tmp_path / "none.png", [])


def test_attention_marks_what_is_absent(tmp_path: Path) -> None:
    names = ("camera", "lidar", "radar")
    all_there = _pixels(attention_picture(tmp_path / "all.png", _attention(), names, GRID, names))
    no_lidar = _pixels(attention_picture(tmp_path / "two.png", _attention(), names, GRID, ("camera", "radar")))
    assert not np.array_equal(all_there, no_lidar)


def test_attention_is_drawn_forward_up_and_left_left(tmp_path: Path) -> None:
    """A share that lies ahead and to the left must light up the upper left of its map."""
    share = np.full((1, *GRID.shape), 0.0)
    share[0, 24:, 24:] = 1.0  # large x is ahead, large y is left
    image = _pixels(attention_picture(tmp_path / "one.png", share, ("camera",), GRID, ("camera",))).astype(int)
    yellow = (image[..., 2] > 220) & (image[..., 1] > 200) & (image[..., 0] < 120)  # the top of the colour map, BGR
    v, u = np.nonzero(yellow[: int(0.85 * image.shape[0])])  # the colour bar is below
    assert u.mean() < 0.2 * image.shape[1]
    assert v.mean() < 0.4 * image.shape[0]


def test_scene_pictures(scene: Scene, tmp_path: Path) -> None:
    _pixels(scene_picture(tmp_path / "truth.png", scene))
    _pixels(cameras_picture(tmp_path / "cameras.png", scene))
    found = _boxes([[12.3, 0.2, 0.8], [4.0, -8.0, 0.8], [0.0, 20.0, 0.8]])
    full = dataclasses.replace(scene, found=above(found, 0.3), attention=_attention(), given=("camera", "radar"))
    assert len(above(found, 0.3)) == 2
    _pixels(scene_picture(tmp_path / "found.png", full))
    _pixels(subsets_picture(tmp_path / "subsets.png", scene, dict.fromkeys(SUBSETS, found)))
    _pixels(subsets_picture(tmp_path / "two.png", scene, {"lidar": found, "radar": Boxes.empty()}))


def test_a_scene_of_which_nothing_is_known_is_drawn_too(scene: Scene, tmp_path: Path) -> None:
    nothing = dataclasses.replace(scene.frame, cameras=None, lidar=None, radar=None)
    blind = dataclasses.replace(scene, frame=nothing, truth=Boxes.empty(), found=Boxes.empty(), attention=_attention())
    _pixels(scene_picture(tmp_path / "blind.png", blind))
    assert blind.present == ()


def test_show_writes_all_its_pictures(scene: Scene, tmp_path: Path) -> None:
    truth = show_truth(scene, tmp_path)
    boxes = Boxes(*(getattr(_boxes([[12.0, 0.0, 0.8]]), f.name)[None] for f in dataclasses.fields(Boxes)))
    fused = FusedBEV(torch.zeros(1), torch.from_numpy(_attention())[None], torch.ones(1))
    perceived = Perception({"detection": boxes}, fused, ("camera", "lidar", "radar"), torch.tensor([True]))
    found = show_found(scene, {"camera+lidar": perceived, "lidar": perceived}, "camera+lidar", tmp_path)
    names = [path.name for path in (*truth, *found)]
    assert names == [
        "token_truth.png", "token_truth_cameras.png", "token_camera+lidar.png", "token_camera+lidar_cameras.png",
        "token_camera+lidar_attention.png", "token_subsets.png",
    ]  # fmt: skip
    for path in (*truth, *found):
        _pixels(path)


def test_pictures_need_no_display_and_leave_no_global_figure(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from training.pictures.charts import training_curves; "
        f"training_curves(Path({str(tmp_path / 'a.png')!r}), [{{'step': 1, 'loss': 1.0, 'parts': {{}}, 'lr': 0.1}}]); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment["MPLBACKEND"] = "TkAgg"  # what a desktop may have set
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    _pixels(tmp_path / "a.png")


def test_only_png_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PNG"):
        subset_chart(tmp_path / "chart.jpg", _results())
    assert not list(tmp_path.iterdir())


def test_a_segment_through_the_camera_is_cut_at_the_near_plane() -> None:
    camera = _camera("CAM_FRONT", 0)
    start, end = np.array([[10.0, 1, 1.5]]), np.array([[-10.0, 1, 1.5]])  # from 8.5 m ahead of the lens to behind it
    pixels, seen = project_segments(start, end, camera)
    assert seen.all()
    assert pixels[0, 0] == pytest.approx([79.5 - 125 / 8.5, 44.5])
    assert pixels[0, 1, 0] < -100  # far out to the left, where the line goes, not mirrored to the right
    _, seen = project_segments(np.array([[-3.0, 0, 1]]), np.array([[-9.0, 0, 1]]), camera)
    assert not seen.any()


def test_boxes_behind_or_beside_the_camera_are_not_drawn() -> None:
    boxes = _boxes([[12.0, 0.0, 0.8], [-12.0, 0.0, 0.8], [12.0, 40.0, 0.8]])
    drawn = box_segments(boxes, _camera("CAM_FRONT", 0))
    assert [index for index, _ in drawn] == [0]
    assert box_segments(Boxes.empty(), _camera("CAM_FRONT", 0)) == []


def test_cameras_are_arranged_as_they_look(scene: Scene) -> None:
    places = {name: place for place, name, _ in arrange(scene.frame.cameras, CHANNELS).places}
    assert places["CAM_FRONT_LEFT"] == (0, 0)
    assert places["CAM_BACK"] == (1, 1)
    unnamed = [
        dataclasses.replace(c, channel=f"c{i}") for i, c in enumerate(scene.frame.cameras or ()) if c is not None
    ]
    order = [name for _, name, _ in arrange(unnamed, [c.channel for c in unnamed]).places]
    assert order == ["c0", "c1", "c2", "c3", "c5"]  # front row, then back row, each from left to right
    assert len(arrange(None, CHANNELS).places) == 6


@pytest.mark.parametrize(
    ("yaws_deg", "rows"),
    [
        ([0], [["0"]]),
        ([-60, 0, 60], [["60", "0", "-60"]]),
        ([35, -35, 145, -145], [["35", "-35"], ["145", "-145"]]),
        ([0, 72, 144, -144, -72], [["72", "0", "-72"], ["144", "-144"]]),
        ([0, 20, -20, 60, -60, 100, -100, 170], [["60", "20", "0", "-20"], ["100", "170", "-60", "-100"]]),
    ],
)
def test_any_number_of_cameras_has_its_places(yaws_deg: list[int], rows: list[list[str]]) -> None:
    cameras = [_camera(str(yaw), yaw) for yaw in yaws_deg]
    shown = arrange(cameras, [camera.channel for camera in cameras])
    assert {place: name for place, name, _ in shown.places} == {
        (i, k): name for i, row in enumerate(rows) for k, name in enumerate(row)
    }
    assert (shown.rows, shown.columns) == (len(rows), len(rows[0]))


def test_a_camera_that_fails_keeps_its_place() -> None:
    cameras = [_camera(name, yaw) for name, yaw in (("a", -60), ("b", 0), ("c", 60))]
    names = [camera.channel for camera in cameras]
    lost = [None if camera.channel == "c" else camera for camera in cameras]
    assert [name for _, name, _ in arrange(lost, names, directions(cameras)).places] == ["c", "b", "a"]
    assert [name for _, name, _ in arrange(lost, names).places] == ["b", "a", "c"]  # nobody knows where it looked


@pytest.fixture
def real_scene(real_config: NuScenesConfig) -> tuple[Scene, NDArray[np.int64]]:
    reader = NuScenesReader(real_config, "mini_train", classes=NUSCENES_CLASSES)
    scene = Scene(
        reader.frame(0), BEVGrid(-51.2, 51.2, -51.2, 51.2, 0.8), NUSCENES_CLASSES, truth=reader.boxes(0),
        camera_channels=real_config.camera_channels,
    )  # fmt: skip
    return scene, lidar_points(reader, 0)


def test_on_the_real_keyframe_lidar_points_of_a_box_fall_into_its_drawing(real_scene: Any) -> None:
    """In the pictures, the LiDAR points that lie in a box in space lie within the lines drawn for it."""
    scene, counts = real_scene
    assert scene.frame.lidar is not None
    points = lidar_in_reference(scene.frame.lidar[0])
    drawn = 0
    for camera in scene.frame.cameras:
        for index, lines in box_segments(scene.truth, camera):
            box = scene.truth[index]
            local = points - box.center_m.double().numpy()
            cos, sin = np.cos(float(box.yaw_rad)), np.sin(float(box.yaw_rad))
            along, across = cos * local[:, 0] + sin * local[:, 1], -sin * local[:, 0] + cos * local[:, 1]
            width, length, height = box.size_m.double().numpy()
            inside = (abs(along) < length / 2) & (abs(across) < width / 2) & (abs(local[:, 2]) < height / 2)
            pixels, _ = project_points(points[inside], camera)
            if counts[index] < 5 or len(pixels) == 0:
                continue
            low, high = lines.min(axis=(0, 1)) - 1, lines.max(axis=(0, 1)) + 1
            assert ((pixels >= low) & (pixels <= high)).all()
            drawn += 1
    assert drawn >= 20


def test_pictures_of_the_real_keyframe(real_scene: Any, tmp_path: Path) -> None:
    for path in show_truth(real_scene[0], tmp_path):
        _pixels(path)
