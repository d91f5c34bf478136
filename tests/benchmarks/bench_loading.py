"""What the loader reads against its peers, at nuScenes' size: pictures against PIL, ten sweeps and the tables against the devkit.

The sensors are simulated. `python -m tests.benchmarks.tables` has the tables at the size of v1.0-trainval.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud
from PIL import Image

from robustbev import preparation
from sensors.calibration import apply, transforms
from sensors.camera.images import DecodeSize, ImageChange, fit_image
from sensors.camera.picture_files import read_picture
from sensors.lidar.prepare import Lidar
from sensors.modality import Sample
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.index import open_index
from sensors.nuscenes.reader import NuScenesReader
from sensors.simulation import SimulationConfig, simulate
from tests.benchmarks.conftest import Compare
from tests.benchmarks.tables import write_tables
from training.data.dataset import rig_of
from training.runs.config import load_run_config

SIZE_PX, ZOOM = (256, 704), 1.11  # of the pictures in configs/nuscenes.yaml, and the most that they are enlarged
SWEEPS = 10
LEAST_RANGE_M = 0.1  # the devkit cuts a square around the LiDAR, we a circle: none of the points lies between these two
SIMULATION = SimulationConfig(
    scenes_train=1,
    scenes_val=0,
    keyframes_per_scene=2,
    lidar_sweeps_between_keyframes=9,
    radar_sweeps_between_keyframes=5,
    image_width_px=1600,
    image_height_px=900,
    jpeg_quality=80,  # files of 120 kB; those of nuScenes have 120 to 145
    lidar_azimuth_steps=1084,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> NuScenesConfig:
    root = tmp_path_factory.mktemp("full-size")
    simulate(SIMULATION, root, workers=1)
    return NuScenesConfig(root=root, version=SIMULATION.version, lidar_sweeps=SWEEPS)


def bench_pictures(data: NuScenesConfig, compare: Compare) -> None:
    """Six files to RGB of the network's size. PIL's way is that of BEVDet and BEVFusion: decode, resize, crop."""
    height, width = SIZE_PX
    paths = [next((data.root / "samples" / channel).glob("*.jpg")) for channel in data.camera_channels]
    decode = DecodeSize(height, width, ZOOM)

    def ours() -> list[NDArray[np.uint8]]:
        read = (read_picture(path, sensor="", token="", decode=decode)[0] for path in paths)
        return [fit_image(image, np.eye(3), SIZE_PX, ImageChange())[0] for image in read]

    def pil(draft: bool) -> list[NDArray[np.uint8]]:
        pictures = []
        for path in paths:
            with Image.open(path) as image:
                if draft:
                    image.draft("RGB", (800, 450))
                fitted = image.convert("RGB").resize((width, width * 9 // 16))
                pictures.append(np.asarray(fitted.crop((0, fitted.height - height, width, fitted.height))))
        return pictures

    for theirs in (pil(draft=False), pil(draft=True)):
        # They smooth, and place the cut, differently: a fraction of a pixel.
        assert np.abs(np.subtract(ours(), theirs, dtype=np.float32)).mean() < 4
    result = compare(
        "six pictures, 1600 x 900 to 704 x 256", 9,
        ours=ours, PIL=lambda: pil(draft=False), PIL_reduced=lambda: pil(draft=True),
    )  # fmt: skip
    assert result.ratio("PIL") >= 5


def bench_sweeps(data: NuScenesConfig, compare: Compare) -> None:
    """Ten sweeps of 34,000 points from their files into the keyframe's frame, every point kept.

    Both go through every point a few times in numpy, and reading the files is a sixth of ours: there is no large factor here.
    """
    config = load_run_config(Path("configs/nuscenes.yaml"), [])
    wanted = replace(
        preparation(config.model, rig_of(config.data, config.model)), lidar_min_range_m=LEAST_RANGE_M, keep_outside=True
    )
    alone = data.model_copy(update={"camera_channels": (), "radar_channels": ()})
    reader = NuScenesReader(alone, SIMULATION.split_train)
    devkit = NuScenes(data.version, str(data.root), verbose=False)
    sample = devkit.get("sample", reader.tokens[1])
    calibration = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])["calibrated_sensor_token"]
    row = devkit.get("calibrated_sensor", calibration)
    ego_T_lidar = transforms([*row["translation"], *row["rotation"]])

    def ours() -> NDArray[np.float32]:
        frame = reader.frame(1)
        item = Lidar("lidar", data.lidar_channels).prepare(Sample(frame, wanted, np.eye(4))).item
        assert item is not None
        return item.points

    def theirs() -> tuple[LidarPointCloud, NDArray[np.float64]]:
        found: tuple[LidarPointCloud, NDArray[np.float64]] = LidarPointCloud.from_file_multisweep(
            devkit, sample, "LIDAR_TOP", "LIDAR_TOP", nsweeps=SWEEPS, min_distance=LEAST_RANGE_M
        )
        return found

    cloud, age_s = theirs()
    points = ours()
    np.testing.assert_allclose(points[:, :3], apply(ego_T_lidar, cloud.points[:3].T), atol=1e-3)
    np.testing.assert_allclose(points[:, 3] * 255, cloud.points[3], atol=1e-3)
    np.testing.assert_allclose(points[:, 4], age_s[0], atol=1e-5)
    result = compare(f"{SWEEPS} sweeps, {len(points):,} points", 9, ours=ours, devkit=theirs)
    assert result.ratio("devkit") >= 1.5


def bench_tables(tmp_path: Path, compare: Compare) -> None:
    """The tables of 85 scenes, a tenth of v1.0-trainval, opened: the index that lies beside them, and the devkit's JSON."""
    scenes = 85
    data = write_tables(tmp_path, scenes)
    assert len(open_index(data).meta.scenes) == scenes
    result = compare(
        f"tables of {scenes} scenes", 3, ours=lambda: open_index(data),
        devkit=lambda: NuScenes(data.version, str(data.root), verbose=False),
    )  # fmt: skip
    assert result.ratio("devkit") >= 500
