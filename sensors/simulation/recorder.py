"""Drives one scene: asks every sensor at its own times, writes its files, and keeps the rows of the tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sensors.nuscenes.rows import PointCounter, Row, Rows, SceneRows, token
from sensors.nuscenes.sensor_files import write_image, write_lidar, write_mask, write_radar
from sensors.simulation.config import SimulationConfig
from sensors.simulation.sensing import lidar, radar, rig
from sensors.simulation.sensing.camera import CameraRenderer
from sensors.simulation.sensing.casting import RayBundle, rotate
from sensors.simulation.sensing.world import KEYFRAME_STEP_S, Pose, World, random_generator
from sensors.simulation.shapes.mesh import Array
from sensors.simulation.tables import visibility_token

EPOCH_US = 1_600_000_000_000_000
SCENE_GAP_US = 100_000_000
VISIBILITY_RAYS = 32


class SceneRecorder:
    """Records one scene of a data set under `root`. `record()` returns its rows."""

    def __init__(self, config: SimulationConfig, scene_name: str, scene_index: int, root: Path) -> None:
        self.config, self.name, self.root = config, scene_name, root
        self.start_us = EPOCH_US + scene_index * SCENE_GAP_US
        self.world = World(config, scene_name)
        self.cameras = CameraRenderer(
            self.world, self._random("ground"), width_px=config.image_width_px, height_px=config.image_height_px
        )
        self.scene = SceneRows(scene_name, config.seed, [mount.channel for mount in rig.SENSORS])
        self._surface_samples = _surface_samples(self.world, self._random("visibility"))

    def record(self) -> Rows:
        """Write all files of the scene."""
        for k in range(self.config.keyframes_per_scene):
            time_s = k * KEYFRAME_STEP_S
            if k > 0:
                self._sweeps(k, time_s)
            self._keyframe(k, time_s)
        mask = f"maps/{self.scene.token('map')}.png"
        write_mask(self.root / mask, self.world.layout.drivable_mask())
        log = {"vehicle": "sim", "date_captured": "2020-09-13", "location": "simulated-town"}
        return self.scene.close(self._description(), log, mask)

    def _random(self, *names: str) -> np.random.Generator:
        return random_generator(self.config.seed, self.name, *names)

    def _us(self, time_s: float) -> int:
        return self.start_us + round(time_s * 1e6)

    # One instant of one sensor

    def _keyframe(self, k: int, time_s: float) -> None:
        self.scene.sample(self._us(time_s))
        for mount in rig.CAMERAS:
            self._camera(mount, k, time_s + mount.time_offset_us / 1e6, keyframe=True)
        lidar_points = self._lidar(k, time_s, keyframe=True)
        radar_points = [self._radar(m, k, time_s + self._radar_offset_s(m, k, 0), keyframe=True) for m in rig.RADARS]
        self._annotate(k, time_s, lidar_points, np.concatenate(radar_points))

    def _sweeps(self, k: int, time_s: float) -> None:
        """What the sensors say between keyframes k - 1 and k; the rows point to k, the keyframe that follows."""
        config = self.config
        for offset in _between(config.lidar_sweeps_between_keyframes, 0.05):
            self._lidar(k, time_s - KEYFRAME_STEP_S + offset, keyframe=False)
        for offset in _between(config.camera_sweeps_between_keyframes, 1 / 12):
            for mount in rig.CAMERAS:
                self._camera(mount, k, time_s - KEYFRAME_STEP_S + offset + mount.time_offset_us / 1e6, keyframe=False)
        for j, offset in enumerate(_between(config.radar_sweeps_between_keyframes, 0.01)):
            for mount in rig.RADARS:
                shift = self._radar_offset_s(mount, k, j + 1)
                self._radar(mount, k, time_s - KEYFRAME_STEP_S + offset + shift, keyframe=False)

    def _radar_offset_s(self, mount: rig.Mount, k: int, j: int) -> float:
        """Radars run freely at 13 Hz: their cycle nearest to a wanted time is up to half a period off."""
        room = 0.038 if self.config.radar_sweeps_between_keyframes < 5 else 0.03
        return float(self._random("radar-time", mount.channel, str(k), str(j)).uniform(-room, room))

    def _camera(self, mount: rig.Mount, k: int, time_s: float, *, keyframe: bool) -> None:
        path, row = self._data_row(mount, k, time_s, "jpg", keyframe=keyframe)
        ego = self.world.ego.pose(time_s)
        picture = self.cameras.render(
            mount, Pose.of_sensor(ego, mount), ego, time_s, self._random("camera", str(row["filename"]))
        )
        write_image(path, picture.image, quality=self.config.jpeg_quality)
        row["height"], row["width"] = self.config.image_height_px, self.config.image_width_px

    def _lidar(self, k: int, time_s: float, *, keyframe: bool) -> Array:
        path, row = self._data_row(rig.LIDAR, k, time_s, "pcd.bin", keyframe=keyframe)
        pose = Pose.of_sensor(self.world.ego.pose(time_s), rig.LIDAR)
        points = lidar.scan(
            self.world,
            time_s,
            self._random("lidar", str(row["filename"])),
            azimuth_steps=self.config.lidar_azimuth_steps,
            range_m=self.config.lidar_range_m,
        )
        write_lidar(path, points)
        return rotate(points[:, :3].astype(np.float64), pose.rotation) + pose.translation_m

    def _radar(self, mount: rig.Mount, k: int, time_s: float, *, keyframe: bool) -> Array:
        path, row = self._data_row(mount, k, time_s, "pcd", keyframe=keyframe)
        pose = Pose.of_sensor(self.world.ego.pose(time_s), mount)
        points = radar.sense(self.world, mount, time_s, self._random("radar", str(row["filename"])))
        write_radar(path, points)
        local = np.stack([points["x"], points["y"], points["z"]], -1).astype(np.float64)
        return rotate(local, pose.rotation) + pose.translation_m

    def _data_row(self, mount: rig.Mount, k: int, time_s: float, suffix: str, *, keyframe: bool) -> tuple[Path, Row]:
        ego = self.world.ego.pose(time_s)
        pose = rig.yaw_to_wxyz(float(ego[2])), (float(ego[0]), float(ego[1]), 0.0)
        calibration = token(self.config.seed, "calibrated_sensor", mount.channel)
        row = self.scene.reading(mount.channel, self._us(time_s), pose, calibration, suffix, k, keyframe=keyframe)
        return self.root / row["filename"], row

    # Truth

    def _annotate(self, k: int, time_s: float, lidar_points: Array, radar_points: Array) -> None:
        world, config = self.world, self.config
        poses, ego = world.poses(time_s), world.ego.pose(time_s)
        visible = self._visible_shares(poses, time_s)
        lidar_counter, radar_counter = PointCounter(lidar_points), PointCounter(radar_points)
        for i, agent in enumerate(world.agents):
            if np.hypot(*(poses[i, :2] - ego[:2])) > config.annotation_range_m:
                continue
            x, y, yaw = poses[i]
            size = agent.shape.size_wlh_m
            centre = [round(float(x), 3), round(float(y), 3), round(size[2] / 2, 3)]
            rotation = rig.yaw_to_wxyz(float(yaw))
            attribute = agent.attribute_at(time_s)
            self.scene.annotation(
                i,
                agent.name,
                agent.shape.category,
                k,
                visibility_token=visibility_token(float(visible[i])),
                attribute_tokens=[token(config.seed, "attribute", attribute)] if attribute else [],
                translation=centre,
                size=list(size),
                rotation=list(rotation),
                num_lidar_pts=lidar_counter.inside(centre, size, float(yaw)),
                num_radar_pts=radar_counter.inside(centre, size, float(yaw)),
            )

    def _visible_shares(self, poses: Array, time_s: float) -> Array:
        """Share [A] of each agent's surface facing the LiDAR that is seen from there, by sample points."""
        owner, points, normals = self._surface_samples
        if len(owner) == 0:
            return np.zeros(0)
        c, s = np.cos(poses[owner, 2]), np.sin(poses[owner, 2])

        def turned(v: Array) -> Array:
            return np.stack([c * v[:, 0] - s * v[:, 1], s * v[:, 0] + c * v[:, 1], v[:, 2]], -1)

        eye = Pose.of_sensor(self.world.ego.pose(time_s), rig.LIDAR).translation_m
        at = turned(points) + np.column_stack([poses[owner, :2], np.zeros(len(owner))])
        sight = at - eye
        distance = np.linalg.norm(sight, axis=1)
        facing = (turned(normals) * sight).sum(1) < 0
        hits = self.world.cast(eye, RayBundle.of(sight / distance[:, None]), 0.0, time_s)
        open_ = (hits.distance_m > distance - 0.1) | (self.world.objects[hits.face] == owner)
        count = len(self.world.agents)
        total = np.bincount(owner[facing], minlength=count)
        return np.bincount(owner[facing & open_], minlength=count) / np.maximum(total, 1)

    def _description(self) -> str:
        layout = self.world.layout
        words = self.world.weather.words()
        words += ["intersection"] if layout.crossing_s_m is not None else []
        words += ["construction"] if any(lot.construction for lot in layout.lots) else []
        turned = float(np.diff(self.world.ego.poses[[0, -1], 2])[0])
        words += ["turn left" if turned > 0 else "turn right"] if abs(turned) > 0.7 else []
        return ", ".join(words) or "Street, day"


def _between(count: int, grid_s: float) -> list[float]:
    """Times after a keyframe of `count` sweeps spread evenly before the next one, on the sensor's own grid."""
    spread = KEYFRAME_STEP_S / (count + 1)
    return [round(spread * (j + 1) / grid_s) * grid_s for j in range(count)]


def _surface_samples(world: World, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """VISIBILITY_RAYS points on the faces of each agent, in its body frame: owner [S], points [S, 3], normals [S, 3]."""
    owner, points, normals = [], [], []
    for i, agent in enumerate(world.agents):
        mesh = agent.shape.mesh
        corners = mesh.vertices_m[mesh.faces]
        area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
        face = rng.choice(len(area), VISIBILITY_RAYS, p=area / area.sum())
        weight = rng.dirichlet(np.ones(3), VISIBILITY_RAYS)
        owner.append(np.full(VISIBILITY_RAYS, i))
        points.append((corners[face] * weight[:, :, None]).sum(1))
        normals.append(mesh.face_normals()[face])
    if not owner:
        return np.zeros(0, int), np.zeros((0, 3)), np.zeros((0, 3))
    return np.concatenate(owner), np.concatenate(points), np.concatenate(normals)
