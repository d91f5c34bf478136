"""Whether an artifact computes what the model computes.

Letters: B samples, T boxes, K classes, M modalities, X and Y cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robustbev.export.graphs import BOX_FIELDS, Graph
from robustbev.export.manifest import Kind

TOLERANCE = 1e-4
# Where the head is of two minds about a heading, its sine and cosine are near 0 and the angle takes their last bits a hundred
# times larger: eager torch with and without oneDNN differs by 1.3e-4 rad there.
HEADING_TOLERANCE = 1e-3
# Two scores nearer than this may come in either order, and whoever comes first decides who is suppressed.
TIE = 1e-4
_SAME_BOX_M = 0.05

Tensors = dict[str, Tensor]
Run = Callable[[Mapping[str, Tensor]], Tensors]


@dataclass(frozen=True)
class Difference:
    """How far an artifact's outputs are from the model's.

    `largest` is over all values of all outputs but the heading, boxes matched by class and place. `unmatched` boxes have no
    counterpart, and no reason for it either; of `excused` ones the score lies within `TIE` of the last box or of another
    of their class, so that the last bits decide.
    """

    largest: float
    where: str  # the output that `largest` is of
    heading_rad: float  # of yaw_rad, around the circle
    boxes: int
    unmatched: int
    excused: int

    @property
    def fits(self) -> bool:
        return self.largest <= TOLERANCE and self.heading_rad <= HEADING_TOLERANCE and self.unmatched == 0

    def __str__(self) -> str:
        return (
            f"the largest difference is {self.largest:.2g} ({self.where}), of headings {self.heading_rad:.2g} rad, and of "
            f"{self.boxes} boxes {self.unmatched} have no counterpart beside {self.excused} at a tie"
        )


def runner(path: Path, kind: Kind, graph: Graph) -> Run:
    """An artifact of our own making as a function; `fusion.runtime` is for those of others."""
    match kind:
        case "onnx":
            run = _onnx(path)
        case "pt2":
            run = torch.export.load(path).module()
        case "aoti":
            from torch._inductor import aoti_load_package

            run = aoti_load_package(str(path))

    def by_name(inputs: Mapping[str, Tensor]) -> Tensors:
        with torch.no_grad():
            outputs = run(*(inputs[name] for name in graph.inputs))
        return dict(zip(graph.outputs, outputs, strict=True))

    return by_name


def _onnx(path: Path) -> Callable[..., list[Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(*tensors: Tensor) -> list[Tensor]:
        inputs = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, inputs)]

    return run


def compare(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> Difference:
    """Outputs of a model or a fuser; boxes of score 0 are none."""
    gaps: dict[str, float] = {}
    boxes = unmatched = excused = 0
    if "score" in expected:
        for b in range(len(expected["score"])):
            counts = _compare_boxes(_real(expected, b), _real(got, b), gaps)
            boxes, unmatched, excused = (x + y for x, y in zip((boxes, unmatched, excused), counts, strict=True))
    for name in expected:
        if name not in BOX_FIELDS:
            _note(gaps, name, expected[name].float(), got[name].float())
    heading_rad = gaps.pop("yaw_rad", 0.0)
    where = max(gaps, key=lambda name: gaps[name], default="")
    return Difference(gaps.get(where, 0.0), where, heading_rad, boxes, unmatched, excused)


def compare_tables(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> Difference:
    """Outputs of a rig's graph. A point within rounding of a cell's edge may fall into either: such entries are `excused`."""
    gaps: dict[str, float] = {}
    _note(gaps, "camera_rays", expected["camera_rays"], got["camera_rays"])
    cells = int(max(int(side["lift_cell"].max()) if len(side["lift_cell"]) else 0 for side in (expected, got))) + 1
    keys = [
        (side["lift_entry"] * cells + side["lift_cell"][:, None])[side["lift_entry"] >= 0] for side in (expected, got)
    ]
    both = torch.cat([key.unique() for key in keys])
    moved = int((both.unique(return_counts=True)[1] == 1).sum())
    moved += abs(len(keys[0]) - len(keys[1])) + int((expected["camera_visible"] != got["camera_visible"]).sum())
    pairs = max(len(keys[0]), 1)
    lost = moved if moved > max(pairs // 1000, 8) else 0
    return Difference(max(gaps.values()), "camera_rays", 0.0, pairs, lost, moved - lost)


def _note(gaps: dict[str, float], name: str, expected: Tensor, got: Tensor) -> None:
    """Keep the largest difference of an output; a NaN that the other has not, or another shape, counts as infinite."""
    if expected.shape != got.shape:
        gaps[name] = math.inf
    elif expected.numel():
        # A task may say NaN of what it does not know.
        same = (expected == got) | (expected.isnan() & got.isnan())
        gap = torch.where(same, 0.0, (expected - got).abs())
        gaps[name] = max(gaps.get(name, 0.0), float(torch.nan_to_num(gap, nan=math.inf).max()))


def _real(boxes: Mapping[str, Tensor], sample: int) -> Tensors:
    return {name: boxes[name][sample][boxes["score"][sample] > 0] for name in BOX_FIELDS}


def _compare_boxes(expected: Tensors, got: Tensors, gaps: dict[str, float]) -> tuple[int, int, int]:
    """-> boxes expected, those of either side without a counterpart or reason, those with a reason."""
    distance = (expected["center_m"][:, None] - got["center_m"][None]).norm(dim=-1)
    same = expected["label"][:, None] == got["label"][None]
    distance = torch.where(same & (distance < _SAME_BOX_M), distance, math.inf)
    pairs: list[tuple[int, int]] = []
    taken: set[int] = set()
    for i, row in enumerate(distance):
        for j in (int(j) for j in row.argsort() if math.isfinite(row[j])):
            if j not in taken:
                pairs.append((i, j))
                taken.add(j)
                break
    expected_index, got_index = (
        torch.tensor(side, dtype=torch.long) for side in (zip(*pairs, strict=True) if pairs else ((), ()))
    )
    for name in BOX_FIELDS:
        first, second = expected[name][expected_index].float(), got[name][got_index].float()
        if name == "yaw_rad":
            first, second = torch.remainder(first - second + math.pi, 2 * math.pi), torch.full_like(second, math.pi)
        _note(gaps, name, first, second)
    alone = [(expected, i) for i in range(len(distance)) if i not in set(expected_index.tolist())]
    alone += [(got, j) for j in range(distance.shape[1]) if j not in taken]
    reasons = [_at_a_tie(side, index, expected, got) for side, index in alone]
    return len(distance), len(alone) - sum(reasons), sum(reasons)


def _at_a_tie(side: Tensors, index: int, expected: Tensors, got: Tensors) -> bool:
    """Whether a box without counterpart scores as the last of all boxes, or as another box of its class."""
    score, label = side["score"][index], side["label"][index]
    last = torch.cat([expected["score"], got["score"]]).min()
    if score <= last + TIE:
        return True
    rivals = [s["score"][s["label"] == label] for s in (expected, got)]
    near = sum(int(((scores - score).abs() <= TIE).sum()) for scores in rivals)
    return near > 1  # itself is one
