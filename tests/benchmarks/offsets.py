"""How far a trained model's boxes move if cameras and LiDAR measured 0.1 s off the frame, at 15 m/s and 20 degrees/s.

    python -m tests.benchmarks.offsets --checkpoint runs/demo

In the simulated towns of the validation scenes, with cameras and LiDAR, without radars. The vehicle drives a circle through
where it was; compared are the boxes of what stands, found both times (a score of at least 0.3, within 2 m, one class). Beside the
offset stand what no compensation takes away: the sensors' noise, and that things look otherwise from where the vehicle was 0.1 s
before or after, without any offset; and what mounts in the poses' place would do.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import robustbev
from robustbev import Detections, PerceptionModel
from sensors.calibration import apply
from sensors.motion.poses import pose
from sensors.motion.trajectory import Trajectory
from sensors.readings import CameraReading, LidarReading, Reading, frame_at
from sensors.simulation.config import SimulationConfig
from sensors.simulation.sensing import lidar, rig
from sensors.simulation.sensing.camera import CameraRenderer
from sensors.simulation.sensing.world import Pose, World
from sensors.simulation.world.traffic import Track

SPEED_MPS, TURN_RAD_S, OFFSET_S, TIME_S = 15.0, np.radians(20.0), 0.1, 0.5
MIN_SCORE, DISTANCE_M = 0.3, 2.0
Found = tuple[Detections, NDArray[np.float64]]  # and [T, 2], where in the town
SWEEPS_S = (0.0, 0.25)  # of the LiDAR, before its newest: as the model was trained
MOUNTED = {m.channel: pose(m.translation_m, wxyz=m.rotation_wxyz) for m in (*rig.CAMERAS, rig.LIDAR)}


def us(time_s: float) -> int:
    return round(time_s * 1e6)


@dataclass
class Drive:
    """A vehicle on a circle in one town."""

    config: SimulationConfig
    scene: str

    def __post_init__(self) -> None:
        self.world = World(self.config, self.scene)
        x_m, y_m, yaw_rad = self.world.ego.pose(TIME_S)
        times_s = np.arange(-0.5, 1.5, 0.001)
        heading, radius_m = yaw_rad + TURN_RAD_S * (times_s - TIME_S), SPEED_MPS / TURN_RAD_S
        along = np.sin(heading) - np.sin(yaw_rad), np.cos(yaw_rad) - np.cos(heading)
        self.world.ego = Track(
            times_s, np.column_stack([x_m + radius_m * along[0], y_m + radius_m * along[1], heading])
        )
        self.trajectory = Trajectory()
        for time_s in np.arange(-0.4, 1.4, 0.02):
            self.trajectory.add(us(time_s), self.global_T_ego(time_s))
        size = self.config.image_width_px, self.config.image_height_px
        self.cameras = CameraRenderer(self.world, np.random.default_rng(0), width_px=size[0], height_px=size[1])
        still = [agent.track.poses[0, :2] for agent in self.world.agents if not agent.track.moves]
        self.standing_m = np.array(still).reshape(-1, 2)

    def global_T_ego(self, time_s: float) -> NDArray[np.float64]:  # noqa: N802
        x_m, y_m, yaw_rad = self.world.ego.pose(time_s)
        return pose((x_m, y_m, 0), wxyz=rig.yaw_to_wxyz(float(yaw_rad)))

    def readings(self, cameras_s: float, lidar_s: float, seed: int) -> list[Reading]:
        """Of all cameras and the LiDAR at these times, cameras with their own delays within a keyframe."""
        random, taken = np.random.default_rng(seed), list[Reading]()
        for mount in rig.CAMERAS:
            at_s = cameras_s + mount.time_offset_us / 1e6
            ego = self.world.ego.pose(at_s)
            image = self.cameras.render(mount, Pose.of_sensor(ego, mount), ego, at_s, random).image
            intrinsics = mount.intrinsic(self.config.image_width_px, self.config.image_height_px)
            taken.append(CameraReading(mount.channel, image, intrinsics, us(at_s)))
        scan = partial(lidar.scan, azimuth_steps=self.config.lidar_azimuth_steps, range_m=self.config.lidar_range_m)
        return taken + [
            LidarReading("LIDAR_TOP", scan(self.world, lidar_s - age_s, random), us(lidar_s - age_s))
            for age_s in SWEEPS_S
        ]

    def boxes(
        self,
        model: PerceptionModel,
        frame_s: float,
        cameras_s: float,
        lidar_s: float,
        seed: int = 0,
        moved: bool = True,
    ) -> Found:
        """What is found in a frame of one time by sensors of others."""
        readings, trajectory = self.readings(cameras_s, lidar_s, seed), self.trajectory if moved else None
        seen = model.perceive(frame_at(us(frame_s), readings, MOUNTED, trajectory, max_age_s=0.4), min_score=MIN_SCORE)
        return seen, apply(self.global_T_ego(frame_s), seen.center_m.astype(np.float64))[:, :2]


def apart_m(standing_m: NDArray[np.float64], first: Found, second: Found) -> list[float]:
    """How far the boxes of each standing thing are apart that both have."""
    apart = []
    for place_m in standing_m:
        pair = []
        for seen, at_m in (first, second):
            away_m = np.linalg.norm(at_m - place_m, axis=1)
            if len(away_m) and away_m.min() < DISTANCE_M:
                nearest = int(away_m.argmin())
                pair.append((seen.label[nearest], at_m[nearest]))
        if len(pair) == 2 and pair[0][0] == pair[1][0]:
            apart.append(float(np.linalg.norm(pair[0][1] - pair[1][1])))
    return apart


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=18)
    options = parser.parse_args()
    model, config = robustbev.load(options.checkpoint, threads=1), SimulationConfig()
    apart: dict[str, list[float]] = defaultdict(list)
    for scene in range(config.scenes_train, config.scenes_train + options.scenes):
        drive = Drive(config, f"sim-{scene:04d}")
        here, rows = partial(drive.boxes, model, TIME_S), dict[str, list[Found]]()
        rows["sensors' noise alone"] = [here(TIME_S, TIME_S, seed=1)]
        there = (TIME_S - OFFSET_S, TIME_S + OFFSET_S)
        rows["no offset, seen from there"] = [drive.boxes(model, at_s, at_s, at_s) for at_s in there]
        rows["cameras 0.1 s off"] = [here(at_s, TIME_S) for at_s in there]
        rows["LiDAR 0.1 s off"] = [here(TIME_S, at_s) for at_s in there]
        rows["both 0.1 s off"] = [here(at_s, at_s) for at_s in there]
        rows["both 0.1 s off, mounts alone"] = [here(at_s, at_s, moved=False) for at_s in there]
        reference = here(TIME_S, TIME_S)
        for name, found in rows.items():
            apart[name] += [m for one in found for m in apart_m(drive.standing_m, reference, one)]
    print("| boxes compared with those without offset | boxes | median | 90% below | within 0.1 m |")
    print("|---|---:|---:|---:|---:|")
    for name, values in apart.items():
        share = np.mean(np.array(values) < 0.1)
        print(
            f"| {name} | {len(values)} | {np.median(values):.3f} m | {np.quantile(values, 0.9):.3f} m | {share:.0%} |"
        )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
