"""What results say of cells."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from robustbev.results.content import found_boxes
from robustbev.results.grids import score_map
from tests.robustbev.results.replay_results import GRID, boxes, result

CENTERS = GRID.centers_m().double().numpy()


@given(
    st.lists(
        st.tuples(
            st.floats(-20, 30), st.floats(-20, 20), st.floats(-math.pi, math.pi), st.integers(0, 2), st.floats(0.01, 1)
        ),
        max_size=5,
    )
)
def test_a_cell_holds_the_best_score_over_its_centre(rows: list[tuple[float, float, float, int, float]]) -> None:
    found = boxes(*rows)
    least, most = np.zeros(GRID.shape), np.zeros(GRID.shape)
    for box in found_boxes(result(found=found)):
        offset = CENTERS - box.center_m[:2]
        along = np.abs(offset @ [math.cos(box.yaw_rad), math.sin(box.yaw_rad)]) - box.length_m / 2
        across = np.abs(offset @ [-math.sin(box.yaw_rad), math.cos(box.yaw_rad)]) - box.width_m / 2
        beyond = np.minimum(np.maximum(along, across), np.abs(offset).max(axis=-1) - GRID.cell_m / 2)
        least = np.maximum(least, box.score * (beyond < -1e-5))  # on the very edge a cell may fall either way
        most = np.maximum(most, box.score * (beyond < 1e-5))
    scores = score_map(found, GRID)
    assert (least - 1e-6 <= scores).all()
    assert (scores <= most + 1e-6).all()


def test_a_box_smaller_than_a_cell_still_shows() -> None:
    tiny = boxes((0.1, 0.1, 0.0, 1, 0.5))
    tiny.size_m[:] = 0.2
    scores = score_map(tiny, GRID)
    assert (scores > 0).sum() == 1
    assert scores[4, 6] == 0.5  # x 0..2 is the fifth cell from -8, y 0..2 the seventh from -12


def test_boxes_off_the_grid_or_without_a_place_leave_it_empty() -> None:
    assert not score_map(boxes((100.0, 0.0, 0.0, 0, 0.9), (math.nan, 0.0, 0.0, 0, 0.9)), GRID).any()
    assert not score_map(boxes(), GRID).any()
