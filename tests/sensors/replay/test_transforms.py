"""The tree of transforms: geometry, time, and every way in which it can be unsound."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from sensors.calibration import CalibrationError, inverse_rigid, transforms
from sensors.logs.log import LogWarning
from sensors.logs.messages import FrameTransform, FrameTransforms
from sensors.motion.poses import apart, interpolate
from sensors.replay.transforms import TransformError, TransformTree

SECOND_NS = 1_000_000_000
UNIT = (1.0, 0.0, 0.0, 0.0)
coordinate = st.floats(-50, 50)
quaternion = (
    st.tuples(*[st.floats(-1, 1)] * 4)
    .filter(lambda q: np.linalg.norm(q) > 0.1)
    .map(lambda q: np.array(q) / np.linalg.norm(q))
)
pose = st.tuples(st.tuples(coordinate, coordinate, coordinate), quaternion).map(lambda p: np.array([*p[0], *p[1]]))


def link(parent: str, child: str, row: Any = (1, 2, 3, 1, 0, 0, 0), stamp_ns: int = 0) -> FrameTransform:
    x, y, z, *rotation = (float(number) for number in row)
    w, i, j, k = rotation
    return FrameTransform(stamp_ns, parent, child, (x, y, z), (w, i, j, k))


def tree(*links: FrameTransform, moving: Sequence[FrameTransform] = (), gap_ns: int = SECOND_NS // 2) -> TransformTree:
    out = TransformTree(gap_ns=gap_ns)
    out.add(FrameTransforms(tuple(links), static=True))
    out.add(FrameTransforms(tuple(moving), static=False))
    return out


@given(pose, pose, pose)
def test_a_lookup_is_the_product_along_the_chain_either_way(a: Any, b: Any, c: Any) -> None:
    t = tree(link("map", "ego", a), link("ego", "cam", b), link("ego", "lidar", c))
    np.testing.assert_allclose(t.lookup("map", "cam", 0), transforms(a) @ transforms(b), atol=1e-9)
    np.testing.assert_allclose(t.lookup("cam", "lidar", 0), inverse_rigid(transforms(b)) @ transforms(c), atol=1e-9)
    np.testing.assert_allclose(t.lookup("lidar", "cam", 0) @ t.lookup("cam", "lidar", 0), np.eye(4), atol=1e-9)
    np.testing.assert_array_equal(t.lookup("cam", "cam", 0), np.eye(4))


@given(pose, pose, st.floats(0, 1))
def test_interpolation_is_slerp(a: Any, b: Any, share: float) -> None:
    ours = transforms(interpolate(a, b, share))
    pair = Rotation.from_quat(np.stack([a[[4, 5, 6, 3]], b[[4, 5, 6, 3]]]))
    if abs(a[3:] @ b[3:]) < 1e-6:  # half a turn apart: either way is the short one
        return
    theirs = Slerp([0, 1], pair)(share).as_matrix()
    np.testing.assert_allclose(ours[:3, :3], theirs, atol=1e-6)
    np.testing.assert_allclose(ours[:3, 3], a[:3] + share * (b[:3] - a[:3]), atol=1e-9)


@given(pose, st.floats(-0.5, 0.5), st.floats(-20, 20), st.floats(-0.4, 0.9))
def test_steady_motion_is_met_between_poses_and_carried_on_beyond_them(
    start: Any,
    turn_rad_s: float,
    speed_mps: float,
    at_s: float,
) -> None:
    def moved(t: float) -> Any:
        spin = Rotation.from_rotvec([0, 0, turn_rad_s * t]) * Rotation.from_quat(start[[4, 5, 6, 3]])
        return np.array([start[0] + speed_mps * t, *start[1:3], *spin.as_quat()[[3, 0, 1, 2]]])

    times = (0.0, 0.1, 0.2, 0.4, 0.5)
    t = tree(moving=[link("map", "ego", moved(s), round(s * SECOND_NS)) for s in times])
    got = t.lookup("map", "ego", round(at_s * SECOND_NS))
    np.testing.assert_allclose(got, transforms(moved(at_s)), atol=1e-5)


def test_poses_too_far_apart_are_not_interpolated_and_none_is_carried_on_for_long() -> None:
    t = tree(moving=[link("map", "ego", stamp_ns=s * SECOND_NS) for s in (0, 2)])
    t.lookup("map", "ego", SECOND_NS // 2)
    for at_ns in (SECOND_NS, -SECOND_NS, 3 * SECOND_NS):
        with pytest.raises(TransformError, match=r"'map' -> 'ego' is not known at .* more than the 0.5 s"):
            t.lookup("map", "ego", at_ns)


def test_a_mounting_that_is_sent_over_time_holds_while_it_does_not_change() -> None:
    t = tree(moving=[link("ego", "cam", stamp_ns=s) for s in (0, 1)])
    t.lookup("ego", "cam", 100 * SECOND_NS, hold_constant=True)
    assert t.changes("ego", "cam") == ()
    t.add(FrameTransforms((link("ego", "cam", (1.1, 2, 3, 1, 0, 0, 0), 2),), static=False))
    assert "moves during the drive" in t.changes("ego", "cam")[0]
    with pytest.raises(TransformError, match="not known"):
        t.lookup("ego", "cam", 100 * SECOND_NS, hold_constant=True)


def test_the_order_in_which_poses_come_does_not_matter() -> None:
    rows = [link("map", "ego", (s, 0, 0, 1, 0, 0, 0), s * 100_000_000) for s in (3, 0, 2, 1, 2)]
    t = tree(moving=rows)
    np.testing.assert_allclose(t.lookup("map", "ego", 150_000_000)[:3, 3], [1.5, 0, 0])


def test_a_leading_slash_is_no_part_of_a_name() -> None:
    t = tree(link("/ego", "cam"))
    np.testing.assert_allclose(t.lookup("ego", "/cam", 0)[:3, 3], [1, 2, 3])


def test_a_static_transform_that_changes_is_told() -> None:
    t = tree(link("ego", "cam"), link("ego", "cam"))
    assert t.changes("ego", "cam") == ()
    t.add(FrameTransforms((link("ego", "cam", (1, 2.5, 3, 1, 0, 0, 0)),), static=True))
    assert t.changes("ego", "cam") == ("static transform 'ego' -> 'cam' changed by 0.500 m, 0.00 deg",)
    np.testing.assert_allclose(t.lookup("ego", "cam", 0)[:3, 3], [1, 2.5, 3])


@pytest.mark.parametrize(
    ("links", "says"),
    [
        ((link("ego", "other"),), r"'cam' is in no transform. Frames known: ego, other"),
        ((), r"Frames known: none"),
        ((link("ego", "other"), link("rig", "cam")), r"not connected; 'ego' hangs on 'ego', 'cam' on 'rig'"),
        (
            (link("ego", "cam"), link("cam", "ego")),
            r"two ways .* differ by 7.483 m, .*: 'ego' -> 'cam', and 'cam' -> 'ego'",
        ),
        ((link("ego", "a"), link("a", "b"), link("b", "ego"), link("b", "cam")), "two ways .* differ by 11.225 m"),
        ((link("a", "cam"), link("cam", "a")), r"the transforms loop: 'cam' -> 'a' -> 'cam'"),
        ((link("cam", "cam"),), "to itself"),
        ((link("ego", "cam", (1, 2, 3, 0, 0, 0, 0)),), "zero quaternion"),
        ((link("ego", "cam", (1, 2, 3, 2, 0, 0, 0)),), "norm 2"),
        ((link("ego", "cam", (np.nan, 2, 3, 1, 0, 0, 0)),), "finite"),
        ((link("ego", "cam", (1, 2, 3, np.inf, 0, 0, 0)),), "finite"),
        ((link("", "cam"),), "empty"),
        ((link("ego", "cam"), link("ego", "cam", (1, 2, 3, 0, 0, 0, 0))), "zero quaternion"),
    ],
)
def test_an_unsound_tree_fails_by_name(links: tuple[FrameTransform, ...], says: str) -> None:
    with pytest.raises(TransformError, match=says) as error:
        tree(*links).lookup("ego", "cam", 0)
    assert isinstance(error.value, CalibrationError)
    assert "\n" not in str(error.value)


def test_what_is_unsound_elsewhere_in_the_tree_harms_nobody() -> None:
    t = tree(link("ego", "cam"), link("ego", "lidar", (1, 2, 3, 0, 0, 0, 0)), link("x", "y"), link("y", "x"))
    t.lookup("ego", "cam", 0)
    with pytest.raises(TransformError):
        t.lookup("ego", "lidar", 0)


@given(st.data(), st.integers(2, 8))
def test_a_lookup_goes_along_transforms_of_either_direction(data: st.DataObject, frames: int) -> None:
    """Frame n hangs on one before it, the transform between them sent as of either: against products from frame 0 on."""
    expected, links = [np.eye(4)], []
    for n in range(1, frames):
        before, row = data.draw(st.integers(0, n - 1)), data.draw(pose)
        if data.draw(st.booleans()):
            links.append(link(f"f{before}", f"f{n}", row))
            expected.append(expected[before] @ transforms(row))
        else:
            links.append(link(f"f{n}", f"f{before}", row))
            expected.append(expected[before] @ inverse_rigid(transforms(row)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LogWarning)  # who stands below several
        t = tree(*links)
    a, b = data.draw(st.integers(0, frames - 1)), data.draw(st.integers(0, frames - 1))
    np.testing.assert_allclose(t.lookup(f"f{a}", f"f{b}", 0), inverse_rigid(expected[a]) @ expected[b], atol=1e-7)


def test_of_two_parents_the_one_that_leads_there_is_taken_and_they_are_told_once() -> None:
    rows = [link("odom", "ego", (1, 0, 0, 1, 0, 0, 0)), link("map", "ego", (7, 0, 0, 1, 0, 0, 0))]
    with pytest.warns(LogWarning, match=r"'ego' has two parents, 'odom' and 'map'") as told:
        t = tree(link("ego", "cam"), moving=[*rows, *rows])
    assert len(told) == 1
    assert t.lookup("map", "ego", 0)[0, 3] == 7
    assert t.lookup("odom", "cam", 0)[0, 3] == 2
    assert t.lookup("map", "odom", 0)[0, 3] == 6
    assert t.changes("map", "cam") == ("'ego' has two parents, 'odom' and 'map'",)
    assert t.changes("ego", "cam") == ()


def test_of_several_parents_every_one_is_named() -> None:
    rows = [link(f"p{n}", "ego") for n in range(15)]
    with pytest.warns(LogWarning) as told:
        t = tree(moving=rows)
    assert [str(one.message) for one in told if "'ego' has 3 parents, 'p0', 'p1', 'p2', where" in str(one.message)]
    assert t.changes("p0", "ego")[0].endswith(
        "'ego' has 15 parents, " + ", ".join(f"'p{n}'" for n in range(12)) + " and 3 more"
    )
    t.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        t.add(FrameTransforms(tuple(reversed(rows)), static=False))


@pytest.mark.parametrize("static_first", [True, False])
def test_a_transform_that_is_static_and_over_time_is_told_where_the_two_differ(static_first: bool) -> None:
    moving = FrameTransforms((link("map", "ego", (5, 2, 3, 1, 0, 0, 0)), link("map", "ego", stamp_ns=1)), static=False)
    sent = [FrameTransforms((link("map", "ego"), link("ego", "cam")), static=True), moving]
    same = FrameTransforms((link("ego", "cam"),), static=False)
    t = TransformTree(gap_ns=SECOND_NS)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for message in sent if static_first else reversed(sent):
            t.add(message)
            t.add(same)
    (text,) = (str(one.message) for one in told)
    assert "'map' -> 'ego' is sent as static and over time, 4.000 m, 0.00 deg apart" in text
    assert t.lookup("map", "ego", 0)[0, 3] == 5
    assert any("the one over time is taken" in change for change in t.changes("map", "ego"))
    assert t.changes("ego", "cam") == ()


@given(st.integers(2, 5), st.data())
def test_every_way_around_is_compared_however_many_there_are(ways: int, data: st.DataObject) -> None:
    """Of several ways of two or three transforms one is off: which one does not matter."""
    wrong = data.draw(st.integers(0, ways - 1))
    links, half = [], (1, 0, 0, 1, 0, 0, 0)
    for n in range(ways):
        off = (1 + 3 * (n == wrong), 0, 0, 1, 0, 0, 0)
        if data.draw(st.booleans()):
            links += [link("map", f"f{n}", half), link(f"f{n}", "ego", off)]
        else:
            nothing = (0, 0, 0, 1, 0, 0, 0)
            links += [link("map", f"f{n}", off), link(f"f{n}", f"g{n}", nothing), link(f"g{n}", "ego", half)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LogWarning)  # several parents
        t = tree(*links)
        with pytest.raises(TransformError, match=r"two ways between 'map' and 'ego' differ by 3.000 m"):
            t.lookup("map", "ego", 0)
        t.add(FrameTransforms((link("map", "ego", (2, 0, 0, 1, 0, 0, 0)),), static=True))
    with pytest.warns(
        LogWarning, match=r"differ by 3.000 m.*the transform between the two themselves is taken"
    ) as told:
        assert t.lookup("map", "ego", 0)[0, 3] == t.lookup("map", "ego", 1)[0, 3] == 2
    assert len(told) == 1
    assert any("differ by 3.000 m" in change for change in t.changes("map", "ego"))


def test_a_way_of_many_transforms_is_compared_to_its_last() -> None:
    chain = [link("ego" if n == 0 else f"f{n}", f"f{n + 1}") for n in range(20)]
    around = [link("f19", "g"), link("g", "h"), link("h", "f20")]
    with pytest.warns(LogWarning, match="two parents"):
        t = tree(*chain, *around)
    with pytest.raises(TransformError, match=r"two ways between 'ego' and 'f20' differ"):
        t.lookup("ego", "f20", 0)


def test_two_ways_that_agree_are_one_and_others_are_refused_but_beside_a_direct_one() -> None:
    def odd(off_m: float) -> TransformTree:
        out = tree(moving=[link("map", "odom", (5, 0, 0, 1, 0, 0, 0)), link("odom", "ego", (2, 0, 0, 1, 0, 0, 0))])
        with pytest.warns(LogWarning, match="two parents"):
            out.add(FrameTransforms((link("map", "ego", (7 + off_m, 0, 0, 1, 0, 0, 0)),), static=False))
        return out

    assert odd(0.01).lookup("map", "ego", 0)[0, 3] == 7.01
    differ = r"ways between 'map' and '{}' differ by 0.100 m, 0.00 deg: 'map' -> 'ego'"
    with pytest.warns(LogWarning, match=differ.format("ego") + ", and .*; the transform between the two themselves"):
        assert odd(0.1).lookup("map", "ego", 0)[0, 3] == pytest.approx(7.1)
    beyond = odd(0.1)
    beyond.add(FrameTransforms((link("ego", "cam"),), static=True))
    with pytest.raises(TransformError, match=rf"two {differ.format('cam')}, 'ego' -> 'cam', and .*Name in the mapping"):
        beyond.lookup("map", "cam", 0)
    late = odd(0.1)
    late.add(FrameTransforms((link("map", "ego", (9, 0, 0, 1, 0, 0, 0), SECOND_NS),), static=False))
    assert late.lookup("map", "ego", SECOND_NS)[0, 3] == 9  # the other way is not known so late
    seldom = tree(
        link("map", "odom", (5, 0, 0, 1, 0, 0, 0)),
        moving=[link("map", "ego"), link("map", "ego", stamp_ns=9 * SECOND_NS)],
    )
    with pytest.warns(LogWarning, match="two parents"):
        seldom.add(FrameTransforms((link("odom", "ego", (2, 0, 0, 1, 0, 0, 0), 4 * SECOND_NS),), static=False))
    assert seldom.lookup("map", "ego", 4 * SECOND_NS)[0, 3] == 7  # nor the shorter way so far from either


@given(pose, pose)
def test_how_far_two_poses_are_apart_is_their_shift_and_turn(a: Any, b: Any) -> None:
    shift_m, turn_rad = apart(transforms(a), transforms(b))
    between = inverse_rigid(transforms(a)) @ transforms(b)
    assert shift_m == pytest.approx(np.linalg.norm(a[:3] - b[:3]), abs=1e-9)
    assert turn_rad == pytest.approx(Rotation.from_matrix(between[:3, :3]).magnitude(), abs=1e-6)


def test_a_bad_pose_among_many_is_left_out() -> None:
    rows = [link("map", "ego", (0, 0, 0, 1, 0, 0, 0), 0), link("map", "ego", (np.nan, 0, 0, 1, 0, 0, 0), 100_000_000)]
    more = [
        link("map", "ego", (2, 0, 0, 1, 0, 0, 0), 200_000_000),
        link("map", "ego", (np.inf, 0, 0, 1, 0, 0, 0), 300_000_000),
    ]
    with pytest.warns(
        LogWarning, match=r"'map' -> 'ego': expected finite numbers, .*; such poses are left out"
    ) as told:
        t = tree(moving=[*rows, *more])
    np.testing.assert_allclose(t.lookup("map", "ego", 100_000_000)[:3, 3], [1, 0, 0])
    assert len(told) == 1
    assert t.left_out == {"'map' -> 'ego'": 2}


def test_a_reset_forgets_what_moves_and_keeps_what_is_static() -> None:
    t = tree(link("ego", "cam"), moving=[link("map", "ego")])
    t.lookup("map", "cam", 0)
    t.reset()
    t.lookup("ego", "cam", 0)
    with pytest.raises(TransformError, match="'map' is in no transform"):
        t.lookup("map", "cam", 0)


def test_memory_stays_flat_and_what_is_needed_stays() -> None:
    t = tree()
    for n in range(5000):
        t.add(FrameTransforms((link("map", "ego", (n, 0, 0, 1, 0, 0, 0), n * 10_000_000),), static=False))
        t.forget_before(n * 10_000_000 - SECOND_NS)
        if n > 200:
            at_ns = n * 10_000_000 - SECOND_NS + 5_000_000
            np.testing.assert_allclose(t.lookup("map", "ego", at_ns)[0, 3], n - 99.5)
    assert len(t._edges["map", "ego"].track.rows) < 130
