"""A street of pillars on tiled ground that cameras, LiDAR and radar see by the same rays: frames that agree with each other."""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from sensors.calibration import inverse_rigid, transforms
from sensors.corruptions import Corruption, corrupt
from sensors.frames import CameraImage, History, LidarSweep, RadarSweep, SensorFrame
from sensors.health.fault_model import HEALTHY, fit_model
from sensors.health.measure import Measured, measure
from sensors.health.monitor import HealthMonitor
from training.health.samples import changed_sensors

Array = NDArray[np.float64]
HALF = float(np.sqrt(0.5))
CAMERAS = {  # poses in the ego frame: ahead, left, right
    "CAM_FRONT": transforms([1.5, 0.0, 1.5, 0.5, -0.5, 0.5, -0.5]),
    "CAM_LEFT": transforms([1.0, 0.5, 1.5, HALF, -HALF, 0.0, 0.0]),
    "CAM_RIGHT": transforms([1.0, -0.5, 1.5, 0.0, 0.0, HALF, -HALF]),
}
LIDAR_POSE = transforms([0.9, 0.0, 1.8, 1.0, 0.0, 0.0, 0.0])
RADAR_POSE = transforms([3.4, 0.0, 0.5, 1.0, 0.0, 0.0, 0.0])
HEIGHT, WIDTH, FOCAL = 80, 144, 90.0
INTRINSICS = np.array([[FOCAL, 0.0, (WIDTH - 1) / 2], [0.0, FOCAL, 34.0], [0.0, 0.0, 1.0]])
STEP_US = 500_000
K = 6  # a keyframe at which a hanging sensor hangs


class World:
    """Pillars at random places; the vehicle drives along x."""

    def __init__(self, seed: int, speed_mps: float = 6.0) -> None:
        self.speed_mps = speed_mps
        random = np.random.default_rng(seed)
        count = 30
        side = np.where(random.random(count) < 0.5, -1, 1)
        self.middle = np.stack([random.uniform(-25, 45, count), side * random.uniform(4, 18, count)], 1)
        self.radius, self.height = random.uniform(0.2, 0.8, count), random.uniform(1.0, 5.0, count)
        self.tone = random.uniform(0.1, 0.95, count)
        self.seed = seed

    def cast(self, origin: Array, directions: Array) -> tuple[Array, Array]:
        """Distance (inf: sky) and tone [N] of what unit rays [N, 3] meet."""
        flat = directions[:, :2]
        square = np.maximum((flat**2).sum(1), 1e-9)
        to = self.middle - origin[:2]  # [K, 2]
        along = flat @ to.T  # [N, K]
        inside = along**2 - square[:, None] * ((to**2).sum(1) - self.radius**2)
        hit = (along - np.sqrt(np.maximum(inside, 0))) / square[:, None]
        top = origin[2] + hit * directions[:, 2:]
        hit = np.where((inside > 0) & (hit > 0.3) & (top < self.height) & (top > 0), hit, np.inf)
        nearest = hit.argmin(1)
        distance, tone = hit[np.arange(len(hit)), nearest], self.tone[nearest]
        with np.errstate(divide="ignore"):
            ground = np.where(directions[:, 2] < 0, -origin[2] / np.minimum(directions[:, 2], -1e-9), np.inf)
        place = origin[:2] + np.minimum(ground, 200.0)[:, None] * flat
        tile = np.floor(place / 1.5)
        tiles = 0.25 + 0.35 * (np.sin(12.9898 * tile[:, 0] + 78.233 * tile[:, 1]) > 0)
        tone = np.where(ground < distance, tiles, tone)
        distance = np.minimum(distance, ground)
        return distance, np.where(np.isfinite(distance), tone, 0.8)

    def history(self, k: int) -> History:
        """The frames before keyframe `k`; keyframe 0 is the first."""
        return lambda n: self.frame(k - n) if k >= n else None

    @functools.lru_cache(maxsize=8)  # noqa: B019 worlds are few and live as long as the tests
    def frame(self, k: int) -> SensorFrame:
        """Keyframe `k`, noise and all; the same every time."""
        random = np.random.default_rng([self.seed, k])  # noise that differs from frame to frame
        time_us = 1_000_000_000 + k * STEP_US
        global_T_ego = np.eye(4)
        global_T_ego[0, 3] = self.speed_mps * k * STEP_US * 1e-6
        return SensorFrame(
            token=f"{self.seed}-{k}",
            time_us=time_us,
            cameras=tuple(self._camera(name, pose, global_T_ego, time_us, random) for name, pose in CAMERAS.items()),
            lidar=(self._lidar(global_T_ego, time_us, random),),
            radar=(self._radar(global_T_ego, time_us, random),),
            global_T_reference=global_T_ego,
        )

    def _camera(
        self, channel: str, pose: Array, global_T_ego: Array, time_us: int, random: np.random.Generator
    ) -> CameraImage:
        u, v = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
        rays = np.stack([u, v, np.ones_like(u)], -1).reshape(-1, 3) @ np.linalg.inv(INTRINSICS).T
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        global_T_camera = global_T_ego @ pose
        _, tone = self.cast(global_T_camera[:3, 3], rays @ global_T_camera[:3, :3].T)
        grey = 255 * tone + random.normal(0, 2, len(tone))
        image = np.repeat(np.clip(grey, 0, 255).astype(np.uint8).reshape(HEIGHT, WIDTH, 1), 3, axis=2)
        return CameraImage(channel, image, INTRINSICS, pose, time_us)

    def _lidar(self, global_T_ego: Array, time_us: int, random: np.random.Generator) -> LidarSweep:
        azimuth, ring = np.meshgrid(np.linspace(-np.pi, np.pi, 400, endpoint=False), np.arange(32), indexing="ij")
        elevation = np.radians(-30 + ring * 40 / 31)
        rays = np.stack(
            [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], -1
        ).reshape(-1, 3)
        origin = (global_T_ego @ LIDAR_POSE)[:3, 3]
        distance, tone = self.cast(origin, rays)
        keep = (distance < 60) & (random.random(len(rays)) < 0.97)
        xyz = rays[keep] * (distance[keep] + random.normal(0, 0.015, keep.sum()))[:, None]
        points = np.column_stack([xyz, 255 * tone[keep], ring.ravel()[keep]])
        return LidarSweep("LIDAR_TOP", points.astype(np.float32), LIDAR_POSE, time_us)

    def _radar(self, global_T_ego: Array, time_us: int, random: np.random.Generator) -> RadarSweep:
        to = np.column_stack([self.middle, np.full(len(self.middle), 0.5), np.ones(len(self.middle))])
        local = to @ inverse_rigid(global_T_ego @ RADAR_POSE).T
        seen = local[random.random(len(local)) < 0.9][:, :2] + random.normal(0, 0.15, (1, 2))
        speed = random.normal(0, 0.1, len(seen))
        sight = seen / np.linalg.norm(seen, axis=1, keepdims=True)
        points = np.column_stack([seen, np.zeros(len(seen)), random.normal(5, 2, len(seen)), speed[:, None] * sight])
        return RadarSweep("RADAR_FRONT", points.astype(np.float32), RADAR_POSE, time_us)


FAILURES = {  # corruption -> kind of sensor that it makes sick, and how
    "camera_frozen": ("camera", "frozen"),
    "camera_black": ("camera", "black"),
    "camera_blur": ("camera", "blurred"),
    "bright": ("camera", "blinded"),
    "camera_misaligned": ("camera", "misaligned"),
    "camera_lagging": ("camera", "delayed"),
    "lidar_frozen": ("lidar", "frozen"),
    "lidar_misaligned": ("lidar", "misaligned"),
    "lidar_lagging": ("lidar", "delayed"),
    "lidar_noise": ("lidar", "noisy"),
    "points_reducing": ("lidar", "thinned"),
    "radar_frozen": ("radar", "frozen"),
    "radar_lagging": ("radar", "delayed"),
    "radar_clutter": ("radar", "noisy"),
}


def failing(world: World, k: int, name: str, severity: int = 3) -> tuple[SensorFrame, SensorFrame, set[str]]:
    """Keyframe `k` and the one before under a corruption, and the sensors that it hits."""
    corruption = Corruption(name, severity)
    frame, history = world.frame(k), world.history(k)
    delivered = corrupt(frame, corruption, history)
    before = corrupt(world.frame(k - 1), corruption, lambda n: history(n + 1))
    return delivered, before, changed_sensors(frame, delivered)


@functools.lru_cache(maxsize=1)
def small_monitor() -> HealthMonitor:
    """Fitted on four such streets."""
    rows: dict[str, list[tuple[Measured, str]]] = {"camera": [], "lidar": [], "radar": []}
    for seed in range(4):
        world = World(seed)
        for name in ("", *FAILURES):
            for k in (K,) if name else (1, 2, 5, K):
                frame, before, sick = failing(world, k, name) if name else (world.frame(k), world.frame(k - 1), set())
                measured = measure(frame, before)
                for sensor, row in measured.sensors.items():
                    fault = FAILURES[name][1] if sensor in sick else HEALTHY
                    rows[measured.kinds[sensor]].append((row, fault))
    models = {}
    for kind, found in rows.items():
        counts = Counter(fault for _, fault in found)
        weights = np.array([1 / counts[fault] for _, fault in found])
        models[kind] = fit_model([row for row, _ in found], [fault for _, fault in found], weights)
    return HealthMonitor(models, dict.fromkeys(models, 0.5), {"what": "streets of pillars"})
