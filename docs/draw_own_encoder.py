"""Draws docs/own-encoder.png: runs the code of docs/own-encoder.md and shows one of its scenes by night.

python docs/draw_own_encoder.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bev.detection.boxes import Boxes
from bev.detection.head import decode

PAGE = Path(__file__).with_name("own-encoder.md")
PICTURE = PAGE.with_suffix(".png")
SCENE = 4  # of the 64 by night
COLOURS = ("tab:red", "tab:blue")  # person, post
MARKERS = ("o", "s")


def run_page() -> dict[str, Any]:
    """What the page's blocks leave behind by their names."""
    names: dict[str, Any] = {"__name__": "__docs__"}
    for code in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec(compile(code, str(PAGE), "exec", dont_inherit=True), names)
    return names


def draw_from_above(axes: Axes, title: str, truth: Boxes, seen: Boxes, coverage: torch.Tensor) -> None:
    """True things as outlines, the best boxes as filled marks; x forward is up, y left is left; grey where thermal sees."""
    axes.imshow(coverage.numpy(), origin="lower", extent=(-8, 8, 0, 16), cmap="Greys", alpha=0.25, vmin=0, vmax=2)
    for boxes, size, filled in ((truth, 260, False), (seen, 90, True)):
        for place_m, label in zip(boxes.center_m, boxes.label, strict=True):
            colour, mark = COLOURS[int(label)], MARKERS[int(label)]
            face, edge = (colour, colour) if filled else ("none", "black")
            axes.scatter(float(place_m[1]), float(place_m[0]), s=size, marker=mark, facecolors=face, edgecolors=edge)
    axes.set(title=title, xlim=(8, -8), ylim=(0, 16), xlabel="y (m), left", ylabel="x (m), forward")


def main() -> None:
    """Write the picture beside the page."""
    page = run_page()
    dark, grid, see, encode = page["dark"], page["grid"], page["see"], page["encode"]
    radius_m = page["model"].detection.nms_radius_m
    with torch.no_grad():
        features = encode(dark)
        seen = {
            title: decode(see(page["wider"], given)[0], grid, max_boxes=4, nms_radius_m=radius_m)[SCENE]
            for title, given in (("camera and LiDAR", {**features, "thermal": None}), ("with thermal", features))
        }
    figure = plt.figure(figsize=(8.6, 3.8), layout="constrained")
    axes = figure.subplot_mosaic([["camera", *seen], ["thermal", *seen]], width_ratios=[1.3, 1, 1])
    axes["camera"].imshow(dark.sensors.part("camera").images[SCENE, 0].permute(1, 2, 0))
    axes["camera"].set_title("camera")
    axes["thermal"].imshow(dark.thermal.celsius[SCENE, 0], cmap="inferno", vmin=5, vmax=30)
    axes["thermal"].set_title("thermal camera, 5 to 30 °C")
    for name in ("camera", "thermal"):
        axes[name].set(xticks=[], yticks=[])
    for title, boxes in seen.items():
        draw_from_above(axes[title], title, dark.boxes[SCENE], boxes, features["thermal"].coverage[SCENE])
    figure.savefig(PICTURE, dpi=100, metadata={"Software": ""})


if __name__ == "__main__":
    main()
