"""Quaternions in either order, ROS messages and optical frames give the poses that scipy and ROS mean."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sensors.calibration import CalibrationError
from sensors.motion.poses import LINK_T_OPTICAL, pose, pose_matrix, pose_of_message, pose_row

place = st.tuples(*[st.floats(-1000, 1000)] * 3)
xyzw = (
    st.tuples(*[st.floats(-1, 1)] * 4)
    .filter(lambda q: np.linalg.norm(q) > 0.1)
    .map(lambda q: np.array(q) / np.linalg.norm(q))
)


@given(place, xyzw)
def test_a_quaternion_of_either_order_is_scipys_rotation(where: Any, quaternion: Any) -> None:
    expected = np.eye(4)
    expected[:3, :3], expected[:3, 3] = Rotation.from_quat(quaternion).as_matrix(), where
    np.testing.assert_allclose(pose(where, xyzw=quaternion), expected, atol=1e-12)
    np.testing.assert_allclose(pose(where, wxyz=np.roll(quaternion, 1)), expected, atol=1e-12)


@given(place, xyzw)
def test_a_row_of_a_pose_is_that_pose(where: Any, quaternion: Any) -> None:
    matrix = pose(where, xyzw=quaternion)
    row = pose_row(matrix)
    np.testing.assert_allclose(np.linalg.norm(row[3:]), 1, atol=1e-12)
    np.testing.assert_allclose(pose_matrix(row), matrix, atol=1e-9)


def test_a_camera_link_looks_along_x_and_its_optical_frame_along_z() -> None:
    right, down, ahead = (LINK_T_OPTICAL[:3, :3] @ axis for axis in np.eye(3))
    np.testing.assert_array_equal([right, down, ahead], [(0, -1, 0), (0, 0, -1), (1, 0, 0)])
    # The quaternion that ROS drivers publish between the two: roll -90, yaw -90 degrees.
    np.testing.assert_allclose(pose((0, 0, 0), xyzw=(-0.5, 0.5, -0.5, 0.5)), LINK_T_OPTICAL, atol=1e-15)
    with pytest.raises(ValueError, match="read-only"):
        LINK_T_OPTICAL[0, 0] = 1


def named(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**fields)


PLACE, TURN = named(x=1.0, y=2.0, z=3.0), named(x=0.5, y=-0.5, z=0.5, w=0.5)
TRANSFORM, POSE = named(translation=PLACE, rotation=TURN), named(position=PLACE, orientation=TURN)


@pytest.mark.parametrize(
    "message",
    [
        TRANSFORM,
        named(header=named(frame_id="base_link"), child_frame_id="roof", transform=TRANSFORM),
        POSE,
        named(header=named(), pose=POSE),
        named(header=named(), child_frame_id="base_link", pose=named(pose=POSE, covariance=[]), twist=named()),
    ],
    ids=["Transform", "TransformStamped", "Pose", "PoseStamped", "Odometry"],
)
def test_a_ros_message_with_a_pose_is_that_pose(message: Any) -> None:
    np.testing.assert_array_equal(pose_of_message(message), pose((1, 2, 3), xyzw=(0.5, -0.5, 0.5, 0.5)))


def test_what_is_no_pose_is_told() -> None:
    for both in ({}, {"xyzw": (0, 0, 0, 1), "wxyz": (1, 0, 0, 0)}):
        with pytest.raises(ValueError, match=r"one of xyzw= and wxyz=, got both or none"):
            pose((0, 0, 0), **both)
    for where, turn, words in (
        ((0, 0, 0), (0, 0, 0, 2), "norm 1, got .* of norm 2"),
        ((0, np.nan, 0), (0, 0, 0, 1), "finite numbers"),
        ((0, 0), (0, 0, 0, 1), "of 3 and a quaternion of 4 numbers, got 2 and 4"),
        ((0, 0, 0), (0, 0, 1), "3 and a quaternion of 4 numbers"),
        ((0, 0), (0, 0, 0, 0, 1), "got 2 and 5"),
    ):
        with pytest.raises(CalibrationError, match=words):
            pose(where, xyzw=turn)
    with pytest.raises(ValueError, match="a transform or a pose, got SimpleNamespace: give the one that tf2"):
        pose_of_message(named(data=3))
