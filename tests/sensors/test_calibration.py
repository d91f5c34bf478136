"""Calibration is checked where it enters, and the algebra of poses holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyquaternion import Quaternion

from sensors.calibration import (
    CalibrationError,
    apply,
    are_rigid,
    check_intrinsics,
    check_rigid,
    intrinsics_fault,
    inverse_rigid,
    pose_fault,
    rigid_fault,
    transforms,
)

GOOD_INTRINSICS = np.array([[800.0, 0.0, 320.0], [0.0, 800.0, 240.0], [0.0, 0.0, 1.0]])
numbers = st.floats(-1, 1)


@st.composite
def poses(draw: st.DrawFn) -> NDArray[np.float64]:
    quaternion = np.array(draw(st.tuples(numbers, numbers, numbers, numbers))) + np.array([1.1, 0, 0, 0])
    return np.concatenate(
        [np.array(draw(st.tuples(numbers, numbers, numbers))) * 100, quaternion / np.linalg.norm(quaternion)]
    )


@given(poses())
def test_a_pose_becomes_the_rotation_that_the_devkits_quaternions_mean(pose: NDArray[np.float64]) -> None:
    matrix = transforms(pose)
    np.testing.assert_allclose(matrix[:3, :3], Quaternion(pose[3:]).rotation_matrix, atol=1e-12)
    np.testing.assert_allclose(matrix[:3, 3], pose[:3])
    assert rigid_fault(matrix) is None
    assert pose_fault(pose) is None


@given(poses())
def test_a_pose_and_its_inverse_cancel(pose: NDArray[np.float64]) -> None:
    matrix = transforms(pose)
    np.testing.assert_allclose(matrix @ inverse_rigid(matrix), np.eye(4), atol=1e-10)
    point = np.array([[1.0, -2.0, 3.0]])
    np.testing.assert_allclose(apply(inverse_rigid(matrix), apply(matrix, point)), point, atol=1e-10)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.zeros((3, 3)), "third row"),
        (np.diag([800.0, 0.0, 1.0]), "invertible"),
        (np.diag([np.nan, 800.0, 1.0]), "finite"),
        (np.eye(4), "3 x 3"),
    ],
)
def test_an_impossible_intrinsic_matrix_is_named(matrix: NDArray[np.float64], words: str) -> None:
    with pytest.raises(CalibrationError, match=rf"CAM_FRONT of log 7: .*{words}"):
        check_intrinsics(matrix, "CAM_FRONT of log 7")


def test_a_mirrored_picture_has_sound_intrinsics() -> None:
    assert intrinsics_fault(np.array([[-1, 0, 639], [0, 1, 0], [0, 0, 1]]) @ GOOD_INTRINSICS) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: np.diag([1.0, -1.0, 1.0, 1.0]) @ m, "right-handed"),
        (lambda m: m * 1.01, "last row"),
        (lambda m: m @ np.diag([1.02, 1.02, 1.02, 1.0]), "rotation"),
        (lambda m: np.where(np.eye(4, k=3) > 0, np.nan, m), "finite"),
        (lambda m: np.where(np.eye(4, k=3) > 0, 1e39, m), "finite .* at most 1e.09 m"),  # infinite in float32
        (lambda m: m[:3], "4 x 4"),
    ],
)
def test_a_transform_that_is_not_rigid_is_named_among_many(change: Callable[[Any], Any], words: str) -> None:
    good = transforms([1.0, 2.0, 3.0, 1.0, 0.0, 0.0, 0.0])
    assert are_rigid([good, good.astype(np.float32)])
    check_rigid(good, "first")
    assert not are_rigid([good, change(good)])
    with pytest.raises(CalibrationError, match=rf"second: .*{words}"):
        check_rigid(change(good), "second")


@pytest.mark.parametrize(
    ("pose", "words"),
    [
        ([0, 0, 0, 1, 1, 0, 0], "norm 1.41421"),
        ([0, 0, np.inf, 1, 0, 0, 0], "finite"),
        ([0, 0, 0, 1, 0, 0], "shape"),
    ],
)
def test_an_impossible_pose_is_described(pose: list[float], words: str) -> None:
    fault = pose_fault(pose)
    assert fault is not None
    assert words in fault
