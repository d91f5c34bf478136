"""From boxes around the car to a nuScenes detection submission.

Letters: K boxes of one sample.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bev.detection.boxes import Boxes
from robustbev.tasks.detection import NUSCENES_CLASS_ATTRIBUTES

MAX_BOXES_PER_SAMPLE = 500  # the rule of the nuScenes detection task
MOVING_MPS = 0.2  # slower than this counts as standing where an attribute has to be guessed

_VEHICLES = frozenset({"car", "truck", "bus", "trailer", "construction_vehicle"})
_CYCLES = frozenset({"bicycle", "motorcycle"})


def default_attribute(class_name: str, speed_mps: float) -> str:
    """The attribute that nuScenes boxes of a class at this speed most often carry; "" for a class that has none."""
    moving = speed_mps > MOVING_MPS
    if class_name in _VEHICLES:
        return "vehicle.moving" if moving else "vehicle.parked"
    if class_name in _CYCLES:
        return "cycle.with_rider" if moving else "cycle.without_rider"
    if class_name == "pedestrian":
        return "pedestrian.moving" if moving else "pedestrian.standing"
    return ""


def submission_boxes(
    token: str,
    boxes: Boxes,
    global_T_reference: NDArray[np.floating[Any]],
    classes: Sequence[str],
    attributes: Sequence[str],
    *,
    max_boxes: int = MAX_BOXES_PER_SAMPLE,
    score_threshold: float = 0.0,
    official: bool = True,
) -> list[dict[str, Any]]:
    """The rows of one sample in the nuScenes result format: global frame, size w l h, quaternion w x y z.

    Args:
        token: the sample's token.
        boxes: K boxes in the reference frame, in any order.
        global_T_reference: [4, 4], the pose of the reference frame.
        classes, attributes: the names that labels and attributes index. An attribute that its class cannot have (and -1)
            becomes the usual one of the class at the box's speed.
        max_boxes: the best so many are kept, 500 at most.
        score_threshold: boxes scored lower are left out.
        official: for nuScenes' own evaluation; else an attribute stays as the model says it.

    Raises:
        ValueError: a kept box has a NaN, an infinity or a size that is not positive.
    """
    from scipy.spatial.transform import Rotation

    score = boxes.score.detach().double().cpu().numpy()
    order = np.argsort(-score, kind="stable")
    # Score 0 is how the decoder marks a box that it suppressed.
    wanted = (score > 0) & (score >= score_threshold) | ~np.isfinite(score)
    kept = order[wanted[order]][: min(max_boxes, MAX_BOXES_PER_SAMPLE)]
    score = score[kept]
    center = boxes.center_m.detach().double().cpu().numpy()[kept]
    size = boxes.size_m.detach().double().cpu().numpy()[kept]
    yaw = boxes.yaw_rad.detach().double().cpu().numpy()[kept]
    # Truth may not know a velocity (NaN); a submission has to say something, and standing still is the least it can say.
    velocity = boxes.velocity_mps.detach().double().cpu().numpy()[kept]
    velocity = np.where(np.isnan(velocity), 0.0, velocity)
    _check_finite(token, center, size, yaw, velocity, score)

    rotation = np.asarray(global_T_reference, dtype=np.float64)[:3, :3]
    translation = np.asarray(global_T_reference, dtype=np.float64)[:3, 3]
    center = center @ rotation.T + translation
    velocity_xyz = np.concatenate([velocity, np.zeros((len(kept), 1))], axis=1) @ rotation.T
    quaternion = np.zeros((0, 4))
    if len(kept):
        xyzw = (Rotation.from_matrix(rotation) * Rotation.from_euler("z", yaw[:, None])).as_quat()
        quaternion = np.roll(xyzw.reshape(-1, 4), 1, axis=1)
    speed = np.linalg.norm(velocity, axis=1)
    labels = boxes.label.cpu().numpy()[kept]
    attribute_ids = boxes.attribute.cpu().numpy()[kept]

    rows = []
    for i in range(len(kept)):
        name = classes[int(labels[i])]
        attribute = attributes[int(attribute_ids[i])] if 0 <= attribute_ids[i] < len(attributes) else None
        if not official:
            attribute = attribute or ""
        elif attribute not in NUSCENES_CLASS_ATTRIBUTES.get(name, ()):
            attribute = default_attribute(name, float(speed[i]))
        rows.append(
            {
                "sample_token": token,
                "translation": [round(v, 5) for v in center[i].tolist()],
                "size": [max(round(v, 5), 1e-5) for v in size[i].tolist()],
                "rotation": [round(v, 7) for v in quaternion[i].tolist()],
                "velocity": [round(v, 5) for v in velocity_xyz[i, :2].tolist()],
                "detection_name": name,
                "detection_score": float(score[i]),
                "attribute_name": attribute,
            }
        )
    return rows


def _check_finite(token: str, *arrays: NDArray[np.float64]) -> None:
    names = ("center_m", "size_m", "yaw_rad", "velocity_mps", "score")
    for name, values in zip(names, arrays, strict=True):
        if not np.isfinite(values).all():
            raise ValueError(
                f"sample {token}: the model found a box whose {name} is NaN or infinite; the checkpoint's weights or this "
                "sample's input are broken, look at the training curves for a NaN loss"
            )
    if (arrays[1] <= 0).any():
        raise ValueError(f"sample {token}: the model found a box whose size_m is not positive: {arrays[1].min():.4g} m")


def submission(results: dict[str, list[dict[str, Any]]], kinds: Collection[str]) -> dict[str, Any]:
    """The whole result file: the rows of every sample and the statement of which kinds of sensors were used."""
    return {
        "meta": {
            "use_camera": "camera" in kinds,
            "use_lidar": "lidar" in kinds,
            "use_radar": "radar" in kinds,
            "use_map": False,
            "use_external": False,
        },
        "results": results,
    }
