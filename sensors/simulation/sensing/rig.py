"""The sensor rig: poses and intrinsics of nuScenes (Caesar et al., CVPR 2020), as facts of that vehicle.

Camera and LiDAR numbers and RADAR_FRONT are those of nuScenes' scene-0061 (vehicle n015, 2018-07-24); the four corner radars
are the published nuScenes mounting (rounded). Translations in metres and quaternions (w, x, y, z) take sensor
coordinates into the ego frame (x forward, y left, z up, origin on the ground under the rear axle).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sensors.simulation.shapes.mesh import Array

NATIVE_WIDTH_PX, NATIVE_HEIGHT_PX = 1600, 900

# HDL-32E: 32 beams evenly spread; ring 0 looks down most, as in the nuScenes files.
LIDAR_ELEVATIONS_RAD: Array = np.radians(np.linspace(-30.67, 10.67, 32))


@dataclass(frozen=True, slots=True)
class Mount:
    """One sensor. `time_offset_us` is its trigger relative to LIDAR_TOP at a keyframe (cameras fire as the LiDAR
    sweeps over them); `focal_px`, `centre_px` are at 1600 x 900.
    """

    channel: str
    modality: str
    translation_m: tuple[float, float, float]
    rotation_wxyz: tuple[float, float, float, float]
    time_offset_us: int = 0
    focal_px: float = 0.0
    centre_px: tuple[float, float] = (0.0, 0.0)

    def rotation(self) -> Array:
        """ego_R_sensor [3, 3]."""
        return rotation_from_wxyz(self.rotation_wxyz)

    def intrinsic(self, width_px: int, height_px: int) -> Array:
        """K [3, 3] for an image of this size; pixel centres lie at whole numbers.

        Resizing keeps continuous image coordinates, in which the centre of pixel 0 is at 0.5, in proportion; hence the halves.
        """
        sx, sy = width_px / NATIVE_WIDTH_PX, height_px / NATIVE_HEIGHT_PX
        cx, cy = self.centre_px
        return np.array(
            [
                [self.focal_px * sx, 0.0, (cx + 0.5) * sx - 0.5],
                [0.0, self.focal_px * sy, (cy + 0.5) * sy - 0.5],
                [0.0, 0.0, 1.0],
            ]
        )


def rotation_from_wxyz(q: tuple[float, float, float, float]) -> Array:
    """Rotation matrix [3, 3] of a quaternion (w, x, y, z), which is normalised first."""
    w, x, y, z = np.asarray(q, float) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def yaw_to_wxyz(yaw_rad: float) -> tuple[float, float, float, float]:
    """Quaternion (w, x, y, z) of a turn about z."""
    return (float(np.cos(yaw_rad / 2)), 0.0, 0.0, float(np.sin(yaw_rad / 2)))


LIDAR = Mount(
    "LIDAR_TOP",
    "lidar",
    (0.943713, 0.0, 1.84023),
    (0.7077955119163518, -0.006492242056004365, 0.010646214713995808, -0.7063073142877817),
)

CAMERAS: tuple[Mount, ...] = (
    Mount("CAM_FRONT_LEFT", "camera", (1.52387798135, 0.494631336551, 1.50932822144),
          (0.6757265034669446, -0.6736266522251881, 0.21214015046209478, -0.21122827103904068),
          -43_107, 1272.5979470598488, (826.6154927353808, 479.75165386361925)),
    Mount("CAM_FRONT", "camera", (1.70079118954, 0.0159456324149, 1.51095763913),
          (0.4998015430569128, -0.5030316162024876, 0.4997798114386805, -0.49737083824542755),
          -35_491, 1266.417203046554, (816.2670197447984, 491.50706579294757)),
    Mount("CAM_FRONT_RIGHT", "camera", (1.5508477543, -0.493404796419, 1.49574800619),
          (0.2060347966337182, -0.2026940577919598, 0.6824507824531167, -0.6713610884174485),
          -27_612, 1260.8474446004698, (807.968244525554, 495.3344268742088)),
    Mount("CAM_BACK_RIGHT", "camera", (1.0148780988, -0.480568219723, 1.56239545128),
          (0.12280980120078765, -0.132400842670559, -0.7004305821388234, 0.690496031265798),
          -20_058, 1259.5137405846733, (807.2529053838625, 501.19579884916527)),
    Mount("CAM_BACK", "camera", (0.0283260309358, 0.00345136761476, 1.57910346144),
          (0.5037872666382278, -0.49740249788611096, -0.4941850223835201, 0.5045496097725578),
          -10_426, 809.2209905677063, (829.2196003259838, 481.77842384512485)),
    Mount("CAM_BACK_LEFT", "camera", (1.03569100218, 0.484795032713, 1.59097014818),
          (0.6924185592174665, -0.7031619420114925, -0.11648342771943819, 0.11203317912370753),
          -528, 1256.7414812095406, (792.1125740759628, 492.7757465151356)),
)  # fmt: skip

RADARS: tuple[Mount, ...] = (
    Mount("RADAR_FRONT", "radar", (3.412, 0.0, 0.5), (0.9999984769132877, 0.0, 0.0, 0.0017453283658983088)),
    Mount("RADAR_FRONT_LEFT", "radar", (2.422, 0.800, 0.780), yaw_to_wxyz(np.radians(90.0))),
    Mount("RADAR_FRONT_RIGHT", "radar", (2.422, -0.800, 0.770), yaw_to_wxyz(np.radians(-90.0))),
    Mount("RADAR_BACK_LEFT", "radar", (-0.562, 0.628, 0.530), yaw_to_wxyz(np.radians(172.5))),
    Mount("RADAR_BACK_RIGHT", "radar", (-0.562, -0.618, 0.530), yaw_to_wxyz(np.radians(-175.0))),
)

SENSORS: tuple[Mount, ...] = (*CAMERAS, LIDAR, *RADARS)
