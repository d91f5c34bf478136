"""Proposes which topic of a log is which sensor, with reasons, from topics, types, fields and frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sensors.camera.rectification import distortion_fault, model_of
from sensors.logs.decode import CAMERA_INFO_TYPES, IMAGE_TYPES, POINT_TYPES, VIDEO_TYPES
from sensors.logs.frames import propose_frames
from sensors.logs.log import Log
from sensors.logs.mapping.mapping import (
    CameraTopics,
    LidarTopics,
    LogMapping,
    RadarTopics,
    called_rectified,
    is_rectified,
    words_of,
)
from sensors.logs.messages import (
    CameraInfo,
    EncodedImage,
    FrameTransforms,
    Malformed,
    Other,
    Payload,
    PointCloud,
    RawImage,
    SceneBoxes,
)
from sensors.logs.pixels import unknown_encoding

_LOOKED_AT = 3000  # messages at most: enough for a second of a rig with a dozen sensors
_EACH = 3  # messages of a topic
_TRANSFORMS = 100  # messages of transforms
_RADAR_FIELDS = frozenset(
    {"rcs", "vx_comp", "vy_comp", "doppler", "radial_velocity", "doppler_velocity", "v_r", "range_rate"}
)
_FIELD_NAMES = {
    "intensity": ("i", "reflectivity", "intensities", "remission", "signal"),
    "ring": ("channel", "laser_id", "row", "line", "beam"),
}
_RADAR_FIELD_NAMES = {
    "rcs": ("radar_cross_section", "sigma"),
    "vx_comp": ("v_x_comp", "vel_x_comp"),
    "vy_comp": ("v_y_comp", "vel_y_comp"),
}
_SIDES = {
    "front": "FRONT", "forward": "FRONT", "fwd": "FRONT", "fl": "FRONT_LEFT", "fr": "FRONT_RIGHT", "back": "BACK",
    "rear": "BACK", "bl": "BACK_LEFT", "br": "BACK_RIGHT", "rl": "BACK_LEFT", "rr": "BACK_RIGHT",
    "left": "LEFT", "right": "RIGHT", "top": "TOP", "roof": "TOP",
}  # fmt: skip
_ORDER = ("FRONT", "BACK", "LEFT", "RIGHT", "TOP")


@dataclass(frozen=True)
class Proposal:
    """A mapping and why; `mapping` is None where nothing in the log looks like a sensor."""

    mapping: LogMapping | None
    reasons: tuple[str, ...]
    unread: tuple[str, ...] = ()  # of the reasons, those of topics that cannot be read


@dataclass
class _Seen:
    """The first messages of a log, by topic."""

    types: Mapping[str, str]  # of every topic of the log
    payloads: dict[str, list[Payload]] = field(default_factory=dict)
    parents: dict[str, dict[str, None]] = field(default_factory=dict)  # frame -> those that it stands in
    transforms: int = 0

    def first(self, topic: str) -> Payload | None:
        return next((one for one in self.payloads.get(topic, ()) if not isinstance(one, Malformed)), None)

    def topics(self, *kinds: type) -> list[str]:
        return [topic for topic in sorted(self.payloads) if isinstance(self.first(topic), kinds)]

    def fault(self, topic: str) -> str:
        """Why no message of a topic could be read so far; "" where one could, or none came."""
        payloads = self.payloads.get(topic, ())
        faults = [one.reason for one in payloads if isinstance(one, Malformed)]
        return faults[0] if faults and len(faults) == len(payloads) else ""

    def unread(self, types: frozenset[str] | None = None) -> list[str]:
        """The topics without a message that could be read, of some types or of all."""
        return [
            topic
            for topic in sorted(self.payloads)
            if self.fault(topic) and (types is None or self.types.get(topic) in types)
        ]


def propose_mapping(log: Log) -> Proposal:
    """What each sensor topic most likely is. Reads the log's first messages, no more than 3,000.

    Channels get nuScenes' names where topic or frame tell a side (front, rear left ...), else the topic's own in capitals.
    Topics of a sensor's type whose messages cannot be read are proposed beside others that can, so that a replay says at every
    tick how they stand.
    """
    seen = _look(log)
    reasons: list[str] = []
    cameras = _cameras(seen, reasons)
    lidars, radars = _points(seen, reasons)
    mapped = {topics.image for topics in cameras.values()}
    mapped |= {lidar.points for lidar in lidars.values()} | {radar.points for radar in radars.values()}
    faults: dict[str, list[str]] = {}
    for topic in seen.unread():
        faults.setdefault(seen.fault(topic), []).append(topic)
    unread = tuple(f"{', '.join(topics)}: cannot be read: {fault}" for fault, topics in faults.items())
    reasons += unread
    if unknown := [f"{topic} ({seen.types.get(topic)})" for topic in seen.topics(Other)]:
        reasons.append(f"of types that nothing here reads: {', '.join(unknown)}")
    if all(seen.fault(topic) for topic in mapped):
        listed = ", ".join(f"{topic.name} ({topic.type})" for topic in log.topics()) or "no topics at all"
        return Proposal(None, (*reasons, f"no topic carries pictures or points that can be read: {listed}"), unread)
    sensor_frames = sorted({getattr(seen.first(topic), "frame_id", "") for topic in mapped if not seen.fault(topic)})
    ego_frame, global_frame, whys = propose_frames(seen.parents, sensor_frames)
    reasons += whys
    mapping = LogMapping(
        cameras=cameras,
        lidars=lidars,
        radars=radars,
        ego_frame=ego_frame,
        global_frame=global_frame,
        truth=_truth(seen, reasons),
    )
    return Proposal(mapping, tuple(reasons), unread)


def _look(log: Log) -> _Seen:
    seen = _Seen({topic.name: topic.type for topic in log.topics()})
    waiting = {topic.name: min(topic.count, _EACH) for topic in log.topics() if topic.count}
    for number, message in enumerate(log.messages(), 1):
        payloads = seen.payloads.setdefault(message.topic, [])
        if len(payloads) < _EACH:
            payloads.append(message.payload)
        if isinstance(message.payload, FrameTransforms):
            seen.transforms += 1
            for transform in message.payload.transforms:
                seen.parents.setdefault(transform.child, {})[transform.parent] = None
        if len(payloads) >= waiting.get(message.topic, 0):
            waiting.pop(message.topic, None)
        if number >= _LOOKED_AT or (not waiting and _frames_told(seen)):
            break
    return seen


def _frames_told(seen: _Seen) -> bool:
    """Whether the frames of all sensors seen so far have a place, or so many transforms came that no more is to be hoped for."""
    frames = {getattr(seen.first(topic), "frame_id", None) for topic in seen.topics(PointCloud, CameraInfo)}
    return seen.transforms >= _TRANSFORMS or frames <= seen.parents.keys()


def _side(*texts: str) -> str:
    """FRONT, BACK_LEFT ... by the first of the texts that tells; empty where none does."""
    for text in texts:
        words = words_of(text)
        sides = {part for word in words if word in _SIDES for part in _SIDES[word].split("_")}
        if sides:
            return "_".join(side for side in _ORDER if side in sides)
    return ""


def _channel(
    prefix: str, topic: str, frame: str, alone: str, single: bool, taken: Mapping[str, object]
) -> tuple[str, str]:
    """(channel, why) for a sensor's topic; `alone` is its name where it is the only one and nothing tells its side."""
    side = _side(topic, frame)
    if side and f"{prefix}_{side}" not in taken:
        return f"{prefix}_{side}", "by its name"
    if single and not side:
        return alone, "the only one of its kind"
    generic = {
        *["image", "raw", "rect", "color", "compressed", "points", "pointcloud", "cloud", "data", "sensor", "sensors"]
    }
    words = [word for word in words_of(topic) if word not in generic] or words_of(topic)
    if prefix.lower() in words:
        words.remove(prefix.lower())
    name = "_".join([prefix, *words]).upper()
    number = 2
    while name in taken:
        name, number = f"{name.rstrip('0123456789').rstrip('_')}_{number}", number + 1
    return name, "its topic does not tell its side"


def _cameras(seen: _Seen, reasons: list[str]) -> dict[str, CameraTopics]:
    infos = [*seen.topics(CameraInfo), *seen.unread(CAMERA_INFO_TYPES)]
    images = [*seen.topics(EncodedImage, RawImage), *seen.unread(IMAGE_TYPES | VIDEO_TYPES)]
    chosen: dict[str, tuple[str, str]] = {}  # info topic -> image topic, frame
    for image in sorted(images, key=lambda topic: _preference(seen, topic)):
        picture = seen.first(image)
        frame = picture.frame_id if isinstance(picture, EncodedImage | RawImage) else ""
        info = _info_of(seen, image, frame, infos)
        if "depth" in words_of(image):
            reasons.append(f"{image}: left out, its name says depth")
        elif isinstance(picture, RawImage) and (unknown := unknown_encoding(picture.encoding)):
            reasons.append(f"{image}: left out, {unknown}")
        elif info is None:
            reasons.append(f"{image}: left out, no calibration in the log belongs to it")
        elif info in chosen:
            reasons.append(f"{image}: left out, {chosen[info][0]} is the same camera, and better to read")
        else:
            chosen[info] = (image, frame)
    cameras: dict[str, CameraTopics] = {}
    for info, (image, frame) in sorted(chosen.items(), key=lambda item: item[1]):
        channel, why = _channel("CAM", image, frame, "CAM_FRONT", len(chosen) == 1, cameras)
        cameras[channel] = CameraTopics(image=image, info=info)
        reasons.append(
            f"{channel}: {image}, pictures; {why}. Calibrated by {info}{_rectified(image, seen.first(info))}"
        )
    return cameras


def _rectified(image: str, info: Payload | None) -> str:
    """What a replay does about the lens of a camera."""
    if not isinstance(info, CameraInfo):
        return ""
    if is_rectified(info, image, None):
        return f", rectified already {'by its name' if called_rectified(image) else 'as D is all 0'}"
    if not info.D.any():
        return ", a fisheye whose D is all 0: not rectified here"
    if fault := distortion_fault(info.distortion_model, info.D):
        return f", cannot be rectified: {fault}"
    return f", to be rectified here by {model_of(info.distortion_model, info.D)}"


def _preference(seen: _Seen, topic: str) -> tuple[bool, bool, bool, str]:
    """What can be read comes first, then rectified pictures, then compressed ones."""
    return bool(seen.fault(topic)), not called_rectified(topic), not isinstance(seen.first(topic), EncodedImage), topic


def _info_of(seen: _Seen, image: str, frame: str, infos: Sequence[str]) -> str | None:
    """The calibration that lies beside the picture or above it, nearest first; else the one of its frame."""

    def folders(topic: str) -> list[str]:
        return topic.strip("/").split("/")[:-1]

    def belongs(info: str) -> bool:
        return bool(folders(info)) and folders(image)[: len(folders(info))] == folders(info)

    def same_frame(info: str) -> bool:
        calibration = seen.first(info)
        return isinstance(calibration, CameraInfo) and calibration.frame_id == frame

    fitting = [info for info in infos if belongs(info)] or [info for info in infos if same_frame(info)]
    return max(fitting, key=lambda info: (len(folders(info)), same_frame(info), info), default=None)


def _points(seen: _Seen, reasons: list[str]) -> tuple[dict[str, LidarTopics], dict[str, RadarTopics]]:
    radar_topics, lidar_topics = [], []
    for topic in seen.topics(PointCloud):
        cloud = seen.first(topic)
        assert isinstance(cloud, PointCloud)
        names = set(cloud.points.dtype.names or ())
        telling = sorted(name for name in names if name.lower() in _RADAR_FIELDS)
        if telling or "radar" in words_of(f"{topic} {cloud.frame_id}"):
            radar_topics.append((topic, cloud, f"fields {', '.join(telling)}" if telling else "its name says radar"))
        else:
            lidar_topics.append((topic, cloud))
    radars: dict[str, RadarTopics] = {}
    for topic, cloud, why in radar_topics:
        channel, named = _channel("RADAR", topic, cloud.frame_id, "RADAR_FRONT", len(radar_topics) == 1, radars)
        radars[channel] = RadarTopics(points=topic, fields=_renamed(cloud, _RADAR_FIELD_NAMES))
        reasons.append(f"{channel}: {topic}, points of a radar ({why}); {named}")
    lidars: dict[str, LidarTopics] = {}
    for topic, cloud in lidar_topics:
        channel, named = _channel("LIDAR", topic, cloud.frame_id, "LIDAR_TOP", len(lidar_topics) == 1, lidars)
        fields, scale = _renamed(cloud, _FIELD_NAMES), _intensity_scale(seen, topic)
        lidars[channel] = LidarTopics(points=topic, fields=fields, intensity_scale=scale)
        scaled = ", intensity 0..1" if scale != 1 else ""
        reasons.append(f"{channel}: {topic}, points without a radar's fields{scaled}; {named}")
    for topic in seen.unread(POINT_TYPES):
        if "radar" in words_of(topic):
            channel, named = _channel("RADAR", topic, "", "RADAR_FRONT", not radars, radars)
            radars[channel] = RadarTopics(points=topic)
        else:
            channel, named = _channel("LIDAR", topic, "", "LIDAR_TOP", not lidars, lidars)
            lidars[channel] = LidarTopics(points=topic)
        reasons.append(f"{channel}: {topic}, by its type; {named}")
    return lidars, radars


def _renamed(cloud: PointCloud, known: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Our name -> the log's for the fields that it has by another, in capitals or not."""
    lower = {name.lower(): name for name in reversed(cloud.points.dtype.names or ())}
    found = {
        ours: next((lower[name] for name in (ours, *theirs) if name in lower), ours) for ours, theirs in known.items()
    }
    return {ours: name for ours, name in found.items() if name != ours}


def _intensity_scale(seen: _Seen, topic: str) -> float:
    """255 for a LiDAR whose intensities are 0..1, as KITTI's."""
    clouds = [one.points for one in seen.payloads[topic] if isinstance(one, PointCloud)]
    name = _renamed(PointCloud(0, "", clouds[0]), _FIELD_NAMES).get("intensity", "intensity")
    telling = [points for points in clouds if name in (points.dtype.names or ()) and points.dtype[name].kind == "f"]
    values = np.concatenate([np.zeros(0), *(points[name] for points in telling)])
    values = values[np.isfinite(values)]
    return 255.0 if len(values) and 0 < values.max() <= 1 else 1.0


def _truth(seen: _Seen, reasons: list[str]) -> str | None:
    """The topic of annotated boxes: by its name, or the only one that is not called detections."""

    def boxes(topic: str) -> bool:
        return any(isinstance(one, SceneBoxes) and one.boxes for one in seen.payloads[topic])

    found = [topic for topic in seen.topics(SceneBoxes) if boxes(topic)]
    named = [topic for topic in found if {"annotations", "annotation", "truth", "gt", "labels"} & set(words_of(topic))]
    other = [topic for topic in found if not {"detections", "detection", "predictions"} & set(words_of(topic))]
    chosen = named[0] if named else (other[0] if len(other) == 1 else None)
    if chosen:
        reasons.append(f"truth: {chosen}, boxes; " + ("by its name" if named else "the only such topic"))
    return chosen
