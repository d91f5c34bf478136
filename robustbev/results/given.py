"""What the model was given at a tick, as messages of a log: pictures at the size they were decoded to, and points.

All carry the tick's time. Pictures stand in frames "given/CHANNEL", whose poses hold the ego motion from the picture's own time
to the tick, so that they do not disturb the frames of the log itself. Points are in the ego frame already, all sweeps of a
channel together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbev.results.content import camera_images, points_in_reference, quaternion_xyzw
from robustbev.results.palette import ALARM
from robustbev.results.result import TickResult
from sensors.frames import CameraImage, LidarSweep, RadarSweep, SensorFrame
from sensors.logs.messages import CameraInfo, EncodedImage, FrameTransform, FrameTransforms, Payload, PointCloud
from sensors.replay.tick import SensorStatus, Tick

JPEG_QUALITY = 90
LIDAR_FIELDS = ("x", "y", "z", "intensity", "ring", "age_s")
_NO_PICTURE_PX = (480, 270)  # width, height
RADAR_FIELDS = ("x", "y", "z", "rcs_dbsm", "vx_mps", "vy_mps", "age_s")


@dataclass(frozen=True)
class FrameNames:
    """What the log calls the frames, so that results can be shown beside it."""

    map: str = "map"
    ego: str = "base_link"


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """RGB [H, W, 3] as JPEG."""
    import simplejpeg

    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(image), JPEG_QUALITY, "RGB", "420"))


def transforms(result: TickResult, poses: Mapping[str, NDArray[Any]], names: FrameNames) -> FrameTransforms:
    """The vehicle in the map where that is known, and given/CHANNEL in the vehicle for poses [4, 4] by channel."""
    stamp_ns, frame = result.tick.time_us * 1000, result.tick.frame
    edges = [_transform(stamp_ns, names.ego, f"given/{channel}", pose) for channel, pose in poses.items()]
    if result.tick.ego_pose_known:
        edges.insert(0, _transform(stamp_ns, names.map, names.ego, frame.global_T_reference))
    return FrameTransforms(tuple(edges), static=False)


def given_messages(tick: Tick, ego_frame: str) -> Iterator[tuple[str, Payload]]:
    """(topic, message) of every sensor: its picture and calibration, or its points.

    Of a sensor that the model was not given a dark picture that says why, or a cloud without points: a viewer goes on showing the
    last message of a topic, and a sensor that is lost must not stay on the screen.
    """
    stamp_ns = tick.time_us * 1000
    cameras = {camera.channel: camera for camera in camera_images(tick.frame)}
    clouds = cloud_of_channel(tick.frame, tick.time_us)
    lost = {name: status for name, status in tick.sensors.items() if name not in cameras and name not in clouds}
    lost_cameras = {name: _no_picture(status) for name, status in lost.items() if status.modality == "camera"}
    pictures = {name: camera.image for name, camera in cameras.items()} | lost_cameras
    for channel, image in pictures.items():
        topic, frame_id = f"/given/{channel.lower()}", f"given/{channel}"
        yield f"{topic}/image_rect_compressed", EncodedImage(stamp_ns, frame_id, "jpeg", jpeg(image))
        if channel in cameras:
            yield f"{topic}/camera_info", _camera_info(stamp_ns, frame_id, cameras[channel])
    radars = {sweep.channel for sweep in tick.frame.radar or ()}
    radars |= {name for name, status in lost.items() if status.modality == "radar"}
    for channel in (*clouds, *(name for name in lost if name not in lost_cameras)):
        fields = RADAR_FIELDS if channel in radars else LIDAR_FIELDS
        points = clouds.get(channel, np.zeros((0, len(fields)), np.float32))
        layout = np.dtype([(name, "<f4") for name in fields])
        cloud = np.ascontiguousarray(points, "<f4").view(layout).reshape(-1)
        yield f"/given/{channel.lower()}", PointCloud(stamp_ns, ego_frame, cloud)


def _no_picture(status: SensorStatus) -> NDArray[np.uint8]:
    """[H, W, 3] dark, with the camera's name and why it has no picture."""
    from PIL import Image, ImageDraw, ImageFont

    age = "" if status.age_us is None else f", {status.age_us / 1e6:.1f} s old"
    picture = Image.new("RGB", _NO_PICTURE_PX, (24, 24, 24))
    words = f"{status.channel}\nno picture: {status.state}{age}"
    ImageDraw.Draw(picture).text((24, 96), words, fill=ALARM, font=ImageFont.load_default(26), spacing=12)
    return np.asarray(picture)


def cloud_of_channel(frame: SensorFrame, time_us: int) -> dict[str, NDArray[np.float32]]:
    """Channel -> the points of all its sweeps, in the reference frame, as `points_in_reference` gives them."""
    clouds: dict[str, list[NDArray[np.float32]]] = {}
    sweeps: tuple[LidarSweep | RadarSweep, ...] = (*(frame.lidar or ()), *(frame.radar or ()))
    for sweep in sweeps:
        clouds.setdefault(sweep.channel, []).append(points_in_reference(sweep, time_us))
    return {channel: np.concatenate(parts) for channel, parts in clouds.items()}


def _transform(stamp_ns: int, parent: str, child: str, pose: NDArray[Any]) -> FrameTransform:
    x, y, z = np.asarray(pose, np.float64)[:3, 3].tolist()
    qx, qy, qz, qw = quaternion_xyzw(pose)
    return FrameTransform(stamp_ns, parent, child, (x, y, z), (qw, qx, qy, qz))


def _camera_info(stamp_ns: int, frame_id: str, camera: CameraImage) -> CameraInfo:
    height, width = camera.image.shape[:2]
    matrix = np.asarray(camera.intrinsics, np.float64)
    return CameraInfo(
        stamp_ns=stamp_ns,
        frame_id=frame_id,
        width_px=width,
        height_px=height,
        distortion_model="",
        D=np.zeros(0),
        K=matrix,
        R=np.eye(3),
        P=np.column_stack([matrix, np.zeros(3)]),
    )
