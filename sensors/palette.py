"""The colours of classes and modalities in everything that is shown; colour-blind people can tell them apart."""

from __future__ import annotations

RGB = tuple[int, int, int]  # 0..255

# Okabe and Ito's palette ("Color Universal Design", 2008), continued with wine, indigo and grey of Paul Tol's "muted" scheme.
CLASS_COLOURS: dict[str, RGB] = {
    "car": (0, 114, 178),
    "truck": (213, 94, 0),
    "bus": (0, 158, 115),
    "trailer": (86, 180, 233),
    "construction_vehicle": (230, 159, 0),
    "pedestrian": (204, 121, 167),
    "motorcycle": (136, 34, 85),
    "bicycle": (51, 34, 136),
    "traffic_cone": (184, 160, 0),
    "barrier": (119, 119, 119),
}
MODALITY_COLOURS: dict[str, RGB] = {"camera": (230, 159, 0), "lidar": (0, 114, 178), "radar": (170, 51, 119)}
# Of modalities by other names. No two of the eight are closer than lidar and radar, red-green blindness included.
OTHER_MODALITY_COLOURS: tuple[RGB, ...] = ((68, 187, 153), (51, 34, 136), (0, 0, 0), (86, 180, 233), (146, 73, 0))
OTHER_COLOURS: tuple[RGB, ...] = ((68, 170, 153), (153, 153, 51), (170, 68, 153), (102, 17, 0), (17, 119, 51))


def class_rgb(name: str, index: int) -> RGB:
    """The colour of a class; classes outside nuScenes' ten take theirs by index."""
    return CLASS_COLOURS.get(name, OTHER_COLOURS[index % len(OTHER_COLOURS)])


def modality_rgb(name: str, index: int) -> RGB:
    """The colour of a modality; others than the three take theirs by index."""
    return MODALITY_COLOURS.get(name, OTHER_MODALITY_COLOURS[index % len(OTHER_MODALITY_COLOURS)])
