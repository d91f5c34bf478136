"""Which classes an evaluation measures, how far, and how near counts as found. Nothing here needs the devkit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sensors.nuscenes.config import DETECTION_CLASS_OF_CATEGORY

# nuScenes' detection_cvpr_2019. A test holds these to the devkit's own, which not every interpreter can have.
CLASS_RANGE_M = {
    "car": 50.0, "truck": 50.0, "bus": 50.0, "trailer": 50.0, "construction_vehicle": 50.0, "pedestrian": 40.0,
    "motorcycle": 40.0, "bicycle": 40.0, "traffic_cone": 30.0, "barrier": 30.0,
}  # fmt: skip
DISTANCES_M = (0.5, 1.0, 2.0, 4.0)
ERROR_DISTANCE_M = 2.0
MIN_RECALL = MIN_PRECISION = 0.1


@dataclass(frozen=True)
class Rules:
    """nuScenes' own, or its formulas with classes, ranges and distances of one's own."""

    class_range_m: tuple[tuple[str, float], ...]  # the classes, and how far from the reference they are measured
    class_of_category: tuple[tuple[str, str], ...]  # categories of the data set, and their classes; others are no truth
    note: str  # what a table says of ranges and distances
    distances_m: tuple[float, ...] = DISTANCES_M  # AP is the mean over these
    error_distance_m: float = ERROR_DISTANCE_M  # of them, the one at which errors of what was found are measured
    official: bool = True  # nuScenes' classes, ranges and distances: NDS is defined


def official_rules(radius_m: float, class_map: Mapping[str, str] | None = None) -> Rules:
    """Of the ten classes, none measured beyond `radius_m`, where the grid ends.

    Args:
        radius_m: of the grid.
        class_map: categories that are none of nuScenes', or lead elsewhere, and their classes.
    """
    whole = radius_m >= max(CLASS_RANGE_M.values())
    return Rules(
        tuple((name, min(official, radius_m)) for name, official in CLASS_RANGE_M.items()),
        tuple({**DETECTION_CLASS_OF_CATEGORY, **(class_map or {})}.items()),
        "ranges: official" if whole else f"ranges: min(official, {radius_m:g} m)",
    )


def is_official(
    classes: Collection[str],
    class_range_m: Mapping[str, float],
    distances_m: tuple[float, ...],
    error_distance_m: float,
) -> bool:
    """Whether all of it is nuScenes', so that NDS is defined; see `rules`."""
    own = class_range_m or (distances_m, error_distance_m) != (DISTANCES_M, ERROR_DISTANCE_M)
    return set(classes) <= set(CLASS_RANGE_M) and not own


def rules(
    classes: Collection[str],
    class_map: Mapping[str, str],
    radius_m: float,
    class_range_m: Mapping[str, float],
    distances_m: tuple[float, ...] = DISTANCES_M,
    error_distance_m: float = ERROR_DISTANCE_M,
) -> Rules:
    """The official ones where all of it is nuScenes'; else its formulas over the model's classes alone.

    Args:
        classes: the model's.
        class_map: category of the data set -> class.
        radius_m: of the grid: nothing is measured beyond.
        class_range_m: of some classes; of the others nuScenes' where it has one, else `radius_m`.
        distances_m, error_distance_m: see `Rules`.
    """
    if is_official(classes, class_range_m, distances_m, error_distance_m):
        return official_rules(radius_m, class_map)
    wanted = {**dict.fromkeys(classes, radius_m), **CLASS_RANGE_M, **class_range_m}
    ranges = tuple((name, min(wanted[name], radius_m)) for name in classes)
    note = "ranges: " + ", ".join(f"{name} {range_m:g} m" for name, range_m in ranges)
    if distances_m != DISTANCES_M:
        note += f"; AP over {', '.join(f'{distance:g}' for distance in distances_m)} m"
    if error_distance_m != ERROR_DISTANCE_M:
        note += f"; errors at {error_distance_m:g} m"
    return Rules(ranges, tuple(class_map.items()), note, distances_m, error_distance_m, official=False)
