"""Cameras with distortion end to end: by the reader, a scene as a log, and logs written of it, points lie on their pixels."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from sensors.calibration import apply, inverse_rigid, transforms
from sensors.camera import rectification
from sensors.camera.depth import depth_targets, project
from sensors.camera.images import DecodeSize
from sensors.camera.rectification import Lens
from sensors.errors import SensorDataError
from sensors.frames import CameraImage, SensorFrame
from sensors.logs.log import Log
from sensors.logs.mapping.mapping import LogMapping
from sensors.logs.mapping.propose import propose_mapping
from sensors.logs.nuscenes.log import NuScenesLog, mapping_of_nuscenes
from sensors.logs.open import open_log
from sensors.logs.write import LogFormat, write_log
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.index import open_index
from sensors.nuscenes.reader import NuScenesReader
from sensors.replay.channels import Channels
from sensors.replay.config import ReplayConfig
from sensors.replay.live import LiveConfig, LivePlayback
from sensors.replay.tick import SensorState, Tick
from sensors.replay.ticks import ticks
from tests.sensors.camera.distortion import apart, center_of_dot, distorted, dots, pixels
from tests.sensors.replay.test_ticks import same_frames
from tests.small_nuscenes import VERSION, SmallNuScenes, box_tokens, intrinsics, write_small_nuscenes

SIZE_PX = (360, 640)
K = np.array(intrinsics(SIZE_PX))
LENSES: dict[str, tuple[str | None, list[float]]] = {  # `camera_distortion_model`, `camera_distortion`
    "brown-conrady": (None, [-0.3, 0.09, 0.002, -0.001, -0.01]),
    "rational": (None, [0.4, 0.1, 0.001, -0.001, 0.0, 0.7, 0.2, 0.01]),
    "fisheye": ("equidistant", [-0.15, 0.05, 0.01, 0.0]),
}
CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])


def edit(root: Path, change: dict[str, Any], table: str = "calibrated_sensor") -> None:
    """Every row of a table with these keys."""
    path = root / VERSION / f"{table}.json"
    path.write_text(json.dumps([row | change for row in json.loads(path.read_text())]))


def corners_m(size_m: Any) -> np.ndarray[Any, Any]:
    """[8, 3] of a box of (width, length, height), x along its length."""
    return CORNERS * np.asarray(size_m)[[1, 0, 2]]


def rows(root: Path, table: str) -> dict[str, dict[str, Any]]:
    return {row["token"]: row for row in json.loads((root / VERSION / f"{table}.json").read_text())}


def pose(row: dict[str, Any]) -> np.ndarray[Any, Any]:
    return transforms([*row["translation"], *row["rotation"]])


class Drive:
    """A small data set whose camera shows the LiDAR's points, and the corners of a car, through a lens."""

    def __init__(self, root: Path, model: str | None, coefficients: list[float]) -> None:
        self.small: SmallNuScenes = write_small_nuscenes(root, picture_px=SIZE_PX)
        self.config = self.small.config
        change = {"camera_distortion": coefficients} | ({} if model is None else {"camera_distortion_model": model})
        edit(root, change)
        name = rectification.model_of(model or "", coefficients)
        lens = Lens.of(name, coefficients, K, SIZE_PX)
        assert lens is not None
        self.lens = lens
        self.shown: dict[int, np.ndarray[Any, Any]] = {}  # time of a picture -> rows of [world; corners] that it shows
        calibration, egos = rows(root, "calibrated_sensor")["calibration-CAM_FRONT"], rows(root, "ego_pose")
        boxes = [row for row in rows(root, "sample_annotation").values() if row["token"].startswith("car")]
        for row in rows(root, "sample_data").values():
            if "CAM_FRONT" not in row["filename"]:
                continue
            (box,) = [box for box in boxes if box["sample_token"] == row["sample_token"]]
            points = np.vstack([self.small.world_m, apply(pose(box), corners_m(box["size"]))])
            x, y, z = apply(inverse_rigid(pose(egos[row["ego_pose_token"]]) @ pose(calibration)), points).T
            rays = np.stack([x / z, y / z], axis=1)
            twin, picture = pixels(lens.intrinsics, rays), pixels(K, distorted(name, coefficients, rays))
            inside = (z > 0.5) & ((twin > 14) & (twin < np.array(lens.rectified_size_px)[::-1] - 14)).all(axis=1)
            seen = np.flatnonzero(inside)[::-1]  # corners first
            seen = seen[apart(twin[seen], 26)]
            seen = seen[apart(picture[seen], 26)]
            # Only what is told of is drawn, so that no other dot is near.
            self.shown[row["timestamp"]] = seen
            jpeg = simplejpeg.encode_jpeg(dots(SIZE_PX, picture[seen]), quality=95)
            (root / row["filename"]).write_bytes(jpeg)

    def check(self, camera: CameraImage, frame: SensorFrame, reference_T_box: Any, size_m: Any) -> tuple[int, int]:
        """That points and corners lie on their dots; how many of each."""
        assert frame.lidar is not None
        lidar = frame.lidar[0]
        world = apply(lidar.reference_T_lidar, lidar.points[:, :3].astype(np.float64))
        points = np.vstack([world, apply(reference_T_box, corners_m(size_m))])
        shown = self.shown[camera.time_us]
        places, depth_m = project(points[shown], camera.intrinsics, camera.reference_T_camera)
        found = np.array(
            [center_of_dot(camera.image, place, 8 if camera.image.shape[1] > 400 else 4) for place in places]
        )
        assert np.linalg.norm(found - places, axis=1).max() < 1.0
        matrix = (camera.intrinsics @ inverse_rigid(camera.reference_T_camera)[:3])[None]
        height, width = (side // 2 * 2 for side in camera.image.shape[:2])
        depth = depth_targets(points[shown].T.astype(np.float32), matrix, image_size_px=(height, width), stride_px=2)[0]
        for (u, v), metres in zip(found, depth_m, strict=True):
            near = depth[max(0, int(v / 2) - 1) : int(v / 2) + 2, max(0, int(u / 2) - 1) : int(u / 2) + 2]
            assert np.abs(near - metres).min() < 1e-3
        return int((shown < len(world)).sum()), int((shown >= len(world)).sum())


@pytest.fixture(scope="module", params=LENSES)
def drive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Drive:
    return Drive(tmp_path_factory.mktemp("lens"), *LENSES[request.param])


def replay(log: Log, mapping: LogMapping, config: NuScenesConfig, decode: DecodeSize | None = None) -> list[Tick]:
    channels = Channels(config.camera_channels, config.lidar_channels, config.radar_channels)
    settings = ReplayConfig(tick_hz=2, lidar_sweeps=config.lidar_sweeps, radar_sweeps=config.radar_sweeps)
    return list(ticks(log, mapping, channels, settings, decode=decode))


@pytest.mark.parametrize("decode", [None, DecodeSize(SIZE_PX[0] // 2, SIZE_PX[1] // 2)])
def test_points_and_corners_lie_on_their_pixels(drive: Drive, decode: DecodeSize | None) -> None:
    reader = NuScenesReader(drive.config, "small_train", decode=decode)
    replayed = replay(NuScenesLog(drive.config, "scene-0"), mapping_of_nuscenes(drive.config), drive.config, decode)
    counted = np.zeros(2, int)
    for i, tick in enumerate(replayed):
        row = next(row for row, token in enumerate(box_tokens(reader, i)) if token.startswith("car"))
        box = reader.reference_T_box(i)[row], (1.9, 4.6, 1.7)
        for frame in (reader.frame(i), tick.frame):
            assert frame.cameras is not None
            (camera,) = frame.cameras
            assert camera is not None
            assert camera.image.shape[1] == math.floor(
                (drive.lens.rectified_size_px[1] - 0.5) / (2 if decode else 1) + 0.5
            )
            counted += drive.check(camera, frame, *box)
    assert (counted > [60, 6]).all(), counted


def test_a_scene_and_logs_written_of_it_are_the_readers_frames(drive: Drive, tmp_path: Path) -> None:
    assert same_frames(drive.config, "small_train") == 3
    scene, mapping = NuScenesLog(drive.config, "scene-0"), mapping_of_nuscenes(drive.config)
    assert mapping.cameras["CAM_FRONT"].image == "/cam_front/image_compressed"
    expected = replay(scene, mapping, drive.config)
    formats: tuple[LogFormat, ...] = ("foxglove", "ros2")
    for form in formats:
        path = tmp_path / f"{form}.mcap"
        write_log(scene, path, form)
        log = open_log(path)
        proposed = propose_mapping(log).mapping
        assert proposed is not None
        for ours, theirs in zip(replay(log, proposed, drive.config), expected, strict=True):
            assert ours.sensors["CAM_FRONT"].state is SensorState.OK
            assert ours.sensors["CAM_FRONT"].detail.startswith(f"rectified here by {drive.lens.model}, ")
            assert ours.frame.cameras is not None
            assert theirs.frame.cameras is not None
            (a,), (b,) = ours.frame.cameras, theirs.frame.cameras
            assert a is not None
            assert b is not None
            np.testing.assert_array_equal(a.image, b.image)
            np.testing.assert_array_equal(a.intrinsics, b.intrinsics)


def test_the_live_node_rectifies_as_a_replay_does(drive: Drive) -> None:
    scene, mapping = NuScenesLog(drive.config, "scene-0"), mapping_of_nuscenes(drive.config)
    channels = Channels(drive.config.camera_channels, drive.config.lidar_channels, drive.config.radar_channels)
    live = LivePlayback(mapping, channels, LiveConfig(tick_hz=2))
    found = {tick.time_us: tick.frame.cameras for message in scene.messages() for tick in live.receive(message)}
    assert found
    expected = {tick.time_us: tick.frame.cameras for tick in replay(scene, mapping, drive.config)}
    for time_us, cameras in found.items():
        theirs = expected[time_us]
        assert cameras is not None
        assert theirs is not None
        assert cameras[0] is not None
        assert theirs[0] is not None
        np.testing.assert_array_equal(cameras[0].image, theirs[0].image)
        np.testing.assert_array_equal(cameras[0].intrinsics, theirs[0].intrinsics)


def test_one_map_serves_a_whole_drive(drive: Drive) -> None:
    rectification._maps.cache_clear()
    reader = NuScenesReader(drive.config, "small_train")
    for i in range(len(reader)):
        reader.frame(i)
    replay(NuScenesLog(drive.config, "scene-1"), mapping_of_nuscenes(drive.config), drive.config)
    assert rectification._maps.cache_info().misses == 1


@pytest.fixture
def plain(tmp_path: Path) -> SmallNuScenes:
    return write_small_nuscenes(tmp_path / "plain")


@pytest.mark.parametrize("value", [None, [], [0.0] * 5, [0] * 14])
def test_a_data_set_without_distortion_is_as_it_was(plain: SmallNuScenes, value: Any) -> None:
    before = open_index(plain.config)
    picture = NuScenesReader(plain.config, "small_train").frame(0)
    edit(plain.root, {"camera_distortion": value, "camera_distortion_model": None})
    after = open_index(plain.config)
    assert after.path != before.path
    assert after.meta.data_id == before.meta.data_id
    assert after.meta.notes == before.meta.notes
    assert mapping_of_nuscenes(plain.config).cameras["CAM_FRONT"].image == "/cam_front/image_rect_compressed"
    again = NuScenesReader(plain.config, "small_train").frame(0)
    assert picture.cameras is not None
    assert again.cameras is not None
    (a,), (b,) = picture.cameras, again.cameras
    assert a is not None
    assert b is not None
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.intrinsics, b.intrinsics)


def test_distortion_is_part_of_what_a_data_set_is(plain: SmallNuScenes) -> None:
    ids = [open_index(plain.config).meta.data_id]
    for change in ({"camera_distortion": [-0.1, 0, 0, 0]}, {"camera_distortion": [-0.2, 0, 0, 0]}):
        edit(plain.root, change)
        ids.append(open_index(plain.config).meta.data_id)
    assert len(set(ids)) == 3
    assert open_index(plain.config).distorted_channels == {"CAM_FRONT"}  # LiDARs have no lens, whatever their rows say


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"camera_distortion": [0.1] * 6}, r"expected 8 or 12 or 14 distortion coefficients .*got 6"),
        ({"camera_distortion": [0.1, float("nan"), 0, 0]}, "expected finite"),
        (
            {"camera_distortion": [0.1] * 4, "camera_distortion_model": "ocam"},
            "expected one of .*plumb_bob.*got 'ocam'",
        ),
        ({"camera_distortion": [0.1] * 5, "camera_distortion_model": "fisheye"}, "expected 4 distortion .* of fisheye"),
        ({"camera_distortion": "k1"}, "expected a list of numbers, got 'k1'"),
        ({"camera_distortion": [0.1, "k2", 0, 0]}, "expected a list of numbers"),
        ({"camera_distortion_model": 3}, "expected a name"),
    ],
)
def test_a_distortion_that_cannot_be_is_named(plain: SmallNuScenes, change: dict[str, Any], words: str) -> None:
    edit(plain.root, change)
    with pytest.raises(
        SensorDataError, match=rf"calibrated_sensor\.json: row calibration-CAM_FRONT: .*{words}"
    ) as error:
        open_index(plain.config)
    assert "orrect" in str(error.value)


def test_a_lens_of_which_too_little_is_left_is_named_with_its_row_before_any_picture_is_read(
    plain: SmallNuScenes,
) -> None:
    edit(plain.root, {"camera_distortion": [-90.0, 0, 0, 0]})
    where = r"calibrated_sensor\.json: row calibration-CAM_FRONT: camera_distortion, .*: expected .* a quarter"
    with pytest.raises(SensorDataError, match=where):
        open_index(plain.config)


def test_a_lens_of_which_too_little_is_left_is_named_with_its_picture_where_tables_have_no_size(
    plain: SmallNuScenes,
) -> None:
    edit(plain.root, {"camera_distortion": [-90.0, 0, 0, 0]})
    edit(plain.root, {"width": 0, "height": 0}, "sample_data")
    with pytest.raises(SensorDataError, match=r"CAM_FRONT: .*\.jpg \(token CAM_FRONT-0-0\): expected .* a quarter"):
        NuScenesReader(plain.config, "small_train").frame(0)


@pytest.mark.parametrize("value", [[0] * 4, []])
def test_an_unknown_model_without_coefficients_is_told(plain: SmallNuScenes, value: list[float]) -> None:
    edit(plain.root, {"camera_distortion": value, "camera_distortion_model": "ocam"})
    (note,) = open_index(plain.config).meta.notes
    assert "the model is ocam and its coefficients are all 0, and it is none of plumb_bob" in note


def test_a_models_name_in_capitals_is_the_same_data_set(plain: SmallNuScenes) -> None:
    ids = set()
    for model in ("plumb_bob", " PLUMB_BOB", None):
        edit(plain.root, {"camera_distortion": [-0.1, 0, 0, 0], "camera_distortion_model": model})
        index = open_index(plain.config)
        ids.add(index.meta.data_id)
        assert index.meta.notes == ()
    assert len(ids) == 1


def test_a_fisheye_without_coefficients_is_told(plain: SmallNuScenes) -> None:
    edit(plain.root, {"camera_distortion": [0] * 4, "camera_distortion_model": "equidistant"})
    (note,) = open_index(plain.config).meta.notes
    assert "a fisheye still: pictures are taken to be rectified; so in 1 rows" in note


def test_a_table_without_the_pictures_size_rectifies_at_full_size(tmp_path: Path) -> None:
    sizeless = Drive(tmp_path / "sizeless", *LENSES["brown-conrady"])
    edit(sizeless.small.root, {"width": 0, "height": 0}, "sample_data")
    frame = NuScenesReader(sizeless.config, "small_train", decode=DecodeSize(90, 160)).frame(0)
    assert frame.cameras is not None
    assert frame.cameras[0] is not None
    assert frame.cameras[0].image.shape[:2] == sizeless.lens.rectified_size_px
