"""What a simulated data set promises: the devkit reads it, its truth is true, and the same config gives the same bytes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("embreex")
pytest.importorskip("nuscenes")

from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.data_classes import LidarPointCloud, RadarPointCloud
from nuscenes.utils.geometry_utils import points_in_box
from pyquaternion import Quaternion

from sensors.simulation import SimulationConfig, generate, simulate
from sensors.simulation.sensing import rig
from sensors.simulation.sensing.camera import CameraRenderer
from sensors.simulation.sensing.world import Pose, World, random_generator
from sensors.simulation.shapes.mesh import Array

TINY = SimulationConfig(
    scenes_train=1, scenes_val=1, keyframes_per_scene=3, image_width_px=96, image_height_px=54, lidar_azimuth_steps=360
)
DETECTION_CLASSES = set(config_factory("detection_cvpr_2019").class_names)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulation") / "data"
    simulate(TINY, out, workers=1)
    return out


@pytest.fixture(scope="module")
def nusc(root: Path) -> NuScenes:
    return NuScenes(TINY.version, str(root), verbose=False)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def global_points(nusc: NuScenes, record: dict[str, Any], points: Array) -> Array:
    """Sensor points [3, N] of a sample_data record in the global frame."""
    calibration = nusc.get("calibrated_sensor", record["calibrated_sensor_token"])
    ego = nusc.get("ego_pose", record["ego_pose_token"])
    for pose in (calibration, ego):
        points = Quaternion(pose["rotation"]).rotation_matrix @ points + np.array(pose["translation"])[:, None]
    return points


# The devkit


def test_every_record_has_its_file_and_lies_in_its_chain(nusc: NuScenes, root: Path) -> None:
    assert len(nusc.sample) == 6
    assert {r["channel"] for r in nusc.sample_data} == {m.channel for m in rig.SENSORS}
    for record in nusc.sample_data:
        assert (root / record["filename"]).is_file()
        if record["next"]:
            following = nusc.get("sample_data", record["next"])
            assert following["prev"] == record["token"]
            assert following["channel"] == record["channel"]
            assert following["timestamp"] > record["timestamp"]
    starts = Counter(r["channel"] for r in nusc.sample_data if not r["prev"])
    assert set(starts.values()) == {2}, "one chain per channel and scene"


def test_custom_splits_are_disjoint_and_complete(nusc: NuScenes, root: Path) -> None:
    splits = json.loads((root / TINY.version / "splits.json").read_text())
    assert set(splits) == {"sim_train", "sim_val"}
    assert not set(splits["sim_train"]) & set(splits["sim_val"])
    assert {s["name"] for s in nusc.scene} == set(splits["sim_train"]) | set(splits["sim_val"])


def test_the_truth_scores_full_marks_in_the_official_evaluation(nusc: NuScenes, tmp_path: Path) -> None:
    results: dict[str, list[dict[str, Any]]] = {}
    names = json.loads((Path(nusc.dataroot) / TINY.version / "splits.json").read_text())["sim_val"]
    for sample in nusc.sample:
        if nusc.get("scene", sample["scene_token"])["name"] not in names:
            continue
        boxes = results.setdefault(sample["token"], [])
        for token in sample["anns"]:
            ann = nusc.get("sample_annotation", token)
            if ann["num_lidar_pts"] + ann["num_radar_pts"] == 0:
                continue
            velocity = np.nan_to_num(nusc.box_velocity(token)[:2])
            attributes = [nusc.get("attribute", t)["name"] for t in ann["attribute_tokens"]]
            boxes.append(
                {
                    "sample_token": sample["token"], "translation": ann["translation"], "size": ann["size"],
                    "rotation": ann["rotation"], "velocity": velocity.tolist(), "detection_score": 1.0,
                    "detection_name": category_to_detection_name(ann["category_name"]),
                    "attribute_name": attributes[0] if attributes else "",
                }
            )  # fmt: skip
    path = tmp_path / "results.json"
    meta = {f"use_{k}": False for k in ("camera", "lidar", "radar", "map", "external")}
    path.write_text(json.dumps({"meta": meta, "results": results}))
    evaluation = DetectionEval(
        nusc, config_factory("detection_cvpr_2019"), str(path), "sim_val", str(tmp_path), verbose=False
    )
    metrics, _ = evaluation.evaluate()
    present = {b.detection_name for boxes in evaluation.gt_boxes.boxes.values() for b in boxes}
    for name in present:
        assert metrics.mean_dist_aps[name] > 0.99
    assert len(present) >= 9


def test_the_map_mask_puts_the_ego_vehicle_on_the_road(nusc: NuScenes) -> None:
    for scene in nusc.scene:
        mask = nusc.get("map", nusc.get("log", scene["log_token"])["map_token"])["mask"]
        sample = nusc.get("sample", scene["first_sample_token"])
        ego = nusc.get("ego_pose", nusc.get("sample_data", sample["data"]["LIDAR_TOP"])["ego_pose_token"])
        x, y, _ = ego["translation"]
        assert mask.is_on_mask(x, y).all()
        assert 0.05 < (mask.mask() > 0).mean() < 0.8


# Times


def test_sweeps_lie_between_keyframes_and_every_sensor_has_its_own_time(nusc: NuScenes) -> None:
    for scene in nusc.scene:
        sample = nusc.get("sample", scene["first_sample_token"])
        stamps = [nusc.get("sample_data", t)["timestamp"] for t in sample["data"].values()]
        assert len(set(stamps)) == len(rig.SENSORS)
        for channel, expected in (("LIDAR_TOP", 1), ("RADAR_FRONT", 2), ("CAM_FRONT", 0)):
            keys, record = [], nusc.get("sample_data", sample["data"][channel])
            while True:
                keys.append(record["is_key_frame"])
                if not record["is_key_frame"]:
                    assert record["filename"].startswith("sweeps/")
                    follower = nusc.get("sample", record["sample_token"])
                    before = nusc.get("sample", follower["prev"])
                    assert before["timestamp"] < record["timestamp"] < follower["timestamp"]
                if not record["next"]:
                    break
                record = nusc.get("sample_data", record["next"])
            assert keys == ([True] + [False] * expected) * 2 + [True]


def test_ego_poses_are_those_of_their_own_time(nusc: NuScenes) -> None:
    """Between two keyframes the poses of all sensors lie on one smooth path: speed never leaves what vehicles do."""
    for scene in nusc.scene:
        records = [
            r for r in nusc.sample_data if nusc.get("sample", r["sample_token"])["scene_token"] == scene["token"]
        ]
        poses = sorted((nusc.get("ego_pose", r["ego_pose_token"]) for r in records), key=lambda p: p["timestamp"])
        times = np.array([p["timestamp"] for p in poses]) / 1e6
        xy = np.array([p["translation"][:2] for p in poses])
        steps = np.hypot(*np.diff(xy, axis=0).T)
        assert (steps <= 15.0 * np.diff(times) + 1e-6).all()
        assert all(p["translation"][2] == 0 for p in poses)


# Truth


def test_annotated_point_counts_are_those_of_the_files(nusc: NuScenes, root: Path) -> None:
    RadarPointCloud.disable_filters()
    try:
        for sample in nusc.sample[:4]:
            lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
            lidar_points = LidarPointCloud.from_file(str(root / lidar["filename"])).points[:3].astype(np.float64)
            lidar_global = global_points(nusc, lidar, lidar_points)
            radar_global = []
            for mount in rig.RADARS:
                record = nusc.get("sample_data", sample["data"][mount.channel])
                points = RadarPointCloud.from_file(str(root / record["filename"])).points[:3]
                radar_global.append(global_points(nusc, record, points))
            for token in sample["anns"]:
                ann, box = nusc.get("sample_annotation", token), nusc.get_box(token)
                assert points_in_box(box, lidar_global).sum() == ann["num_lidar_pts"]
                assert points_in_box(box, np.hstack(radar_global)).sum() == ann["num_radar_pts"]
    finally:
        RadarPointCloud.default_filters()


def test_velocity_is_that_of_real_motion_and_agrees_with_the_attribute(nusc: NuScenes) -> None:
    moving = 0
    for ann in nusc.sample_annotation:
        if not (ann["prev"] and ann["next"]):
            continue
        speed = float(np.linalg.norm(nusc.box_velocity(ann["token"])[:2]))
        names = [nusc.get("attribute", t)["name"] for t in ann["attribute_tokens"]]
        if names in (["vehicle.parked"], ["cycle.without_rider"]) or not names:
            assert speed == 0
        moving += names == ["vehicle.moving"] and speed > 1.0
        assert speed < 20
    assert moving > 3


def test_lidar_points_on_an_agent_fall_on_its_pixels() -> None:
    """Same geometry in both: a LiDAR point in a box, carried into a camera, meets a pixel that shows that agent."""
    config = TINY.model_copy(
        update={"image_width_px": 320, "image_height_px": 180, "fog_probability": 0.0, "rain_probability": 0.0}
    )
    world = World(config, "sim-0000")
    renderer = CameraRenderer(world, random_generator(0), width_px=320, height_px=180)
    ego = world.ego.pose(0.0)
    lidar_pose = Pose.of_sensor(ego, rig.LIDAR)
    from sensors.simulation.sensing.lidar import scan

    points = scan(world, 0.0, random_generator(1), azimuth_steps=720, range_m=90.0)[:, :3]
    points = points @ lidar_pose.rotation.T + lidar_pose.translation_m
    shrunk = 0.08  # stay off the ground and the outline, where a neighbouring pixel is as right
    hits = total = 0
    for mount in rig.CAMERAS:
        pose = Pose.of_sensor(ego, mount)
        objects = renderer.render(mount, pose, ego, 0.0, random_generator(2)).objects
        local = (points - pose.translation_m) @ pose.rotation
        k = mount.intrinsic(320, 180)
        front = local[:, 2] > 1.0
        u, v = (local[front] @ k.T)[:, :2].T / local[front, 2]
        inside = (u > 2) & (u < 317) & (v > 2) & (v < 177)
        at, columns, rows = points[front][inside], np.rint(u[inside]).astype(int), np.rint(v[inside]).astype(int)
        for index, agent in enumerate(world.agents):
            x, y, yaw = agent.track.pose(0.0)
            dx, dy = at[:, 0] - x, at[:, 1] - y
            forward, left = np.cos(yaw) * dx + np.sin(yaw) * dy, -np.sin(yaw) * dx + np.cos(yaw) * dy
            width, length, height = agent.shape.size_wlh_m
            mine = (
                (np.abs(forward) < length / 2 - shrunk)
                & (np.abs(left) < width / 2 - shrunk)
                & (at[:, 2] > 0.2)
                & (at[:, 2] < height)
            )
            total += int(mine.sum())
            hits += int((objects[rows[mine], columns[mine]] == index).sum())
    assert total > 300
    # Cameras sit half a metre from the LiDAR and see past edges that it does not.
    assert hits / total > 0.85


def test_default_scenes_hold_all_ten_classes_near_the_ego_vehicle() -> None:
    counts: Counter[str] = Counter()
    scenes = 6
    for i in range(scenes):
        world = World(SimulationConfig(), f"sim-{i:04d}")
        x, y, _ = world.ego.pose(1.5)
        for agent, pose in zip(world.agents, world.poses(1.5), strict=True):
            counts[agent.shape.detection_name] += bool(np.hypot(pose[0] - x, pose[1] - y) < 30)
    assert set(counts) == DETECTION_CLASSES
    assert min(counts.values()) >= scenes, counts


# Radar


def test_radar_files_read_with_finite_values_in_the_official_layout(nusc: NuScenes, root: Path) -> None:
    for mount in rig.RADARS:
        record = nusc.get("sample_data", nusc.sample[0]["data"][mount.channel])
        points = RadarPointCloud.from_file(str(root / record["filename"])).points
        assert points.shape[0] == 18
        assert points.shape[1] >= 1
        assert np.isfinite(points).all()
        assert (points[2] == 0).all()
        raw = (root / record["filename"]).read_bytes()
        body = raw[raw.index(b"DATA binary\n") + 12 :]
        count = int(raw.split(b"POINTS ")[1].split(b"\n")[0])
        assert len(body) > count * 43, "real files go on after the points"


def test_doppler_has_the_sign_of_approach_and_standing_things_stand() -> None:
    """`vx, vy` along the line of sight is the measured closing speed; `vx_comp, vy_comp` is what is left of it over ground."""
    from sensors.simulation.sensing import radar

    config = SimulationConfig()
    approaching = standing = 0
    for scene in range(4):
        world = World(config, f"sim-{scene:04d}")
        for time_s in (0.5, 1.5):
            ego, velocity = world.ego.pose(time_s), radar.mount_velocity(world, rig.RADARS[0], time_s)
            pose = Pose.of_sensor(ego, rig.RADARS[0])
            points = radar.sense(world, rig.RADARS[0], time_s, random_generator(3, str(scene), str(time_s)))
            sight = np.stack([points["x"], points["y"]], -1)
            sight /= np.linalg.norm(sight, axis=1, keepdims=True)
            raw = (np.stack([points["vx"], points["vy"]], -1) * sight).sum(1)
            over_ground = (np.stack([points["vx_comp"], points["vy_comp"]], -1) * sight).sum(1)
            own = (pose.rotation.T[:2, :2] @ velocity) @ sight.T
            np.testing.assert_allclose(raw, over_ground - own, atol=0.3)
            still = np.isin(points["dyn_prop"], (1, 3))
            assert np.abs(over_ground[still]).max() < 0.6
            standing += int(still.sum())
            oncoming = points["dyn_prop"] == 2
            assert (over_ground[oncoming] < 0.5).all()
            approaching += int(oncoming.sum())
    assert standing > 50
    assert approaching > 3


# Whole or not at all, and always the same


def test_the_same_seed_gives_the_same_bytes_whatever_the_workers(root: Path, tmp_path: Path) -> None:
    simulate(TINY, tmp_path / "two", workers=2)
    assert digests(root) == digests(tmp_path / "two")


def test_another_seed_gives_another_town(root: Path, tmp_path: Path) -> None:
    small = TINY.model_copy(update={"seed": 1, "scenes_val": 0, "keyframes_per_scene": 1})
    simulate(small, tmp_path / "other", workers=1)
    ours, others = digests(root), digests(tmp_path / "other")
    same = {name for name in ours if others.get(name) == ours[name]}
    assert same == {"v1.0-sim/visibility.json"}, "only nuScenes' own visibility tokens do not depend on the seed"


def test_a_data_set_that_is_there_is_not_written_again(root: Path) -> None:
    calls: list[int] = []
    simulate(TINY, root, progress=lambda done, total: calls.append(done))
    assert calls == []


def test_another_config_or_foreign_files_are_not_overwritten(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="another config"):
        simulate(TINY.model_copy(update={"seed": 5}), root)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="something other"):
        simulate(TINY, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"
    for content in ("[]", "{}", "5", "\0"):
        (tmp_path / generate.MARKER).write_text(content)
        with pytest.raises(FileExistsError, match=f"{tmp_path} holds a simulated data set of another config"):
            simulate(TINY, tmp_path)


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "_one_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        simulate(TINY, tmp_path / "data", workers=1)
    assert list(tmp_path.iterdir()) == []


def test_config_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="image_height_px = 180"):
        SimulationConfig(image_width_px=320, image_height_px=240)
    with pytest.raises(ValueError, match="nuScenes' own splits"):
        SimulationConfig(split_val="val")
    with pytest.raises(ValueError, match="Extra inputs"):
        SimulationConfig(beams=64)  # type: ignore[call-arg]
