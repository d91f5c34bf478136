"""Bad input to the whole model is one ValueError that says what was expected, what was found and what to do.

It comes before anything is computed, whatever is wrong and wherever; the model is as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bev.lift.table import build_lift_table
from robustbev import PerceptionModel, RigConfig
from robustbev.checks import check_batch
from sensors.batch import SensorBatch
from sensors.calibration import CalibrationError
from sensors.checks.frame import check_frame
from sensors.frames import KINDS, SensorFrame
from tests.small_replay import CAMERA_CHANNELS, RADAR_CHANNELS, noise_frame
from tests.tiny_model import random_sensors, tiny_model

RIG = RigConfig(camera_channels=CAMERA_CHANNELS, lidar_channels=("LIDAR_TOP",), radar_channels=RADAR_CHANNELS)
MODEL = tiny_model(rig=RIG.model_dump())
Fault = tuple[str, Callable[[Any], Any], str]  # path of the field, what becomes of it, what the message says


def changed(value: Any, path: str, change: Callable[[Any], Any]) -> Any:
    """A copy of nested dataclasses and tuples with the field at `path` changed; of a batch, a modality is a field."""
    name, _, rest = path.partition(".")
    if isinstance(value, SensorBatch) and name in value.parts:
        part = value.part(name)
        return value.having(**{name: changed(part, rest, change) if rest else change(part)})
    inner = value[int(name)] if isinstance(value, tuple) else getattr(value, name)
    new = changed(inner, rest, change) if rest else change(inner)
    if isinstance(value, tuple):
        return (*value[: int(name)], new, *value[int(name) + 1 :])
    return replace(value, **{name: new})


def put(index: Any, number: float) -> Callable[[Any], Any]:
    """A copy with one entry changed, of a tensor or an array."""

    def change(values: Any) -> Any:
        copy = values.clone() if isinstance(values, Tensor) else values.copy()
        copy[index] = number
        return copy

    return change


def with_table(batch: SensorBatch) -> SensorBatch:
    cameras, camera = batch.part("camera"), MODEL.encoder("camera")
    assert cameras is not None
    assert camera is not None
    table = build_lift_table(
        cameras.intrinsics, cameras.reference_T_camera, cameras.present, image_size=camera.image_size,
        stride=camera.stride_px, bins=camera.bins, grid=camera.grid, z_range_m=camera.z_range_m,
    )  # fmt: skip
    return batch.having(camera=replace(cameras, lift=table))


BATCH, FRAME = with_table(random_sensors()), noise_frame(0)
OF_BATCH: list[Fault] = [
    ("batch_size", lambda _: 0, "batch_size: expected an int of at least 1, got 0: give"),
    ("batch_size", lambda _: 2.0, r"expected an int of at least 1, got 2\.0"),
    ("batch_size", lambda _: 3, r"camera.images: expected uint8 \[3, N, 3, 32, 64\] .*B as in batch_size.*, got uint8 \[2, 6"),
    ("camera", lambda c: c.images, "camera: expected a CameraBatch, or no such part .*, got Tensor: make one"),
    ("lidar", lambda _: random_sensors().part("radar"), "lidar: expected a LidarBatch, or no such part .*, got RadarBatch"),
    ("camera.images", Tensor.double, r"expected uint8 .*, got float64 .*: convert it with \.to\(torch\.uint8\)"),
    ("camera.images", lambda t: t.float() / 255, "expected uint8 .*, got float32 .*, values 0 to 255"),
    ("camera.images", Tensor.numpy, "camera.images: expected uint8 .*, got ndarray: give a torch tensor"),
    ("camera.images", lambda t: t[..., :-8], r"\[2, N, 3, 32, 64\].*got uint8 \[2, 6, 3, 32, 56\]: the network takes .*32 x 64"),
    ("camera.images", lambda t: t.movedim(2, -1), r"expected uint8 \[2, N, 3, 32, 64\].*got uint8 \[2, 6, 32, 64, 3\]"),
    ("camera.images", lambda t: t[0], r"got uint8 \[6, 3, 32, 64\]"),
    ("camera.images", lambda t: t[:, :0], r"got uint8 \[2, 0, 3, 32, 64\]"),
    ("camera.images", lambda t: t.to("meta"), r"expected it on cpu as the model, got it on meta: move .*batch.to\('cpu'\)"),
    ("camera.present", Tensor.float, "present: expected bool .*, got float32"),
    ("camera.present", lambda t: t[:, :5], r"expected bool \[2, 6\] .*N as in camera.images.*, got bool \[2, 5\]: one"),
    ("camera.present", lambda t: t[:1], r"expected bool \[2, 6\] .*, got bool \[1, 6\]"),
    ("camera.intrinsics", lambda t: t[..., :2], r"intrinsics: expected float32 \[2, 6, 3, 3\].*, got float32 \[2, 6, 3, 2\]"),
    ("camera.intrinsics", put((1, 2), 0.0), "camera.intrinsics: expected an invertible 3 x 3 .*sample 1, sensor 2: correct"),
    ("camera.intrinsics", put((0, 0, 0, 0), math.nan), "invertible 3 x 3 matrix of finite numbers .*nan.*sample 0, sensor 0"),
    ("camera.reference_T_camera", Tensor.half, "reference_T_camera: expected float32 .*, got float16"),
    ("camera.reference_T_camera", put((0, 5, 1, 3), math.inf), "invertible 4 x 4 matrix of finite .*sample 0, sensor 5"),
    ("camera.reference_T_camera", put((1, 1, 3, 0), 0.5), "a last row of 0 0 0 1, got .*sample 1, sensor 1"),
    ("camera.lift", lambda _: 1, "camera.lift: expected a bev.lift.table.LiftTable or None, got int: build_lift_table"),
    ("camera.lift.visible", lambda t: t[:1], "lift.visible: expected bool .*: the table is of another batch, grid or"),
    ("camera.lift.offsets", lambda t: t[:-1], r"lift.offsets: expected int32 \[513\] .*, got int32 \[512\]"),
    ("camera.lift.entry", Tensor.long, "lift.entry: expected int32 .*, got int64"),
    ("camera.lift.pixel_cell", lambda t: t[:-1], "lift.pixel_cell: expected int32 .*E as in camera.lift.entry"),
    ("camera.lift.pixel_offsets", lambda t: t.to("meta"), "pixel_offsets: expected it on cpu"),
    ("lidar.points", Tensor.double, "lidar.points: expected float32 .*, got float64"),
    ("lidar.points", lambda t: t[..., :4], r"expected float32 \[2, P, 5\].*, got float32 \[2, 300, 4\]: the columns are x_m"),
    ("lidar.points", lambda t: t[:, :0], "no points are one row of padding with count 0"),
    ("lidar.points", lambda t: t[:1], r"expected float32 \[2, P, 5\] .*B as in batch_size.*got float32 \[1, 300, 5\]"),
    ("lidar.count", Tensor.float, "lidar.count: expected int64 .*, got float32"),
    ("lidar.count", put(1, 301), r"expected 0 to 300 \(P of lidar.points\), got 301 in sample 1: count"),
    ("lidar.count", put(0, -1), "got -1 in sample 0"),
    ("lidar.present", Tensor.int, "lidar.present: expected bool .*, got int32"),
    ("lidar.present", lambda t: t[:, 0], r"expected bool \[2, L\] .*, got bool \[2\]: one entry for each LiDAR"),
    ("lidar.sectors", lambda t: t[:, 0], r"expected float32 \[2, 1, S\] .*L as in lidar.present.*, got float32 \[2, 12\]"),
    ("lidar.sectors", put((1, 0, 3), 1.5), r"expected 0 \(dead\) to 1 \(works\), got .*1\.5.*sample 1, LiDAR 0"),
    ("lidar.sectors", put((0, 0, 3), math.nan), "got .*nan.*sample 0"),
    ("lidar.sectors", lambda t: t.to("meta"), "lidar.sectors: expected it on cpu as the model, got it on meta"),
    ("radar.points", lambda t: t[..., :5], r"radar.points: expected float32 \[2, P, 7\].*: the columns are .*rcs_dbsm"),
    ("radar.count", put(1, 41), r"expected 0 to 40 \(P of radar.points\), got 41"),
    ("radar.present", lambda t: t[:, :4], r"expected float32 \[2, 4, 4, 4\].*R as in radar.present.*got .*\[2, 5"),
    ("radar.present", lambda t: t[:, 0], r"radar.present: expected bool \[2, R\] .*, got bool \[2\]"),
    ("radar.reference_T_radar", put((1, 2), 0.0), "radar.reference_T_radar: expected an invertible 4 x 4 .*sensor 2"),
]  # fmt: skip

turn = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
OF_FRAME: list[Fault] = [
    ("time_us", float, r"sample tick-000000, time_us: expected whole microseconds \(int\), got float\. Convert"),
    ("time_us", lambda _: 10**40, "expected microseconds within 64 bits"),
    ("cameras", lambda c: c[0], r"expected a tuple of CameraImage or None, .*, got CameraImage: write cameras=\(\.\.\.,\)"),
    ("cameras", lambda c: {"front": c[0]}, "cameras: expected a tuple .*, got dict"),
    ("cameras", lambda c: (*c[:-1], c[0].image), r"cameras\[5\]: expected CameraImage or None, got uint8 \[32, 64, 3\]"),
    ("lidar", lambda s: s[0].points, r"lidar: expected a tuple of LidarSweep, .*, got float32 \[200, 5\]"),
    ("lidar", lambda s: (None, *s), r"lidar\[0\]: expected LidarSweep, got NoneType: make a LidarSweep of it, or leave it out"),
    ("lidar.0.channel", lambda c: [c], r"lidar\[0\]: expected a channel that is a str, got list: give the sensor's name"),
    ("radar", lambda _: FRAME.lidar, r"radar\[0\]: expected RadarSweep, got LidarSweep"),
    ("cameras.1.image", lambda i: i[..., 0], r"CAM_1, image: expected uint8 \[H, W, 3\] .*, got uint8 \[32, 64\]\. Repeat"),
    ("cameras.1.image", lambda i: i / 255, r"got float64 \[32, 64, 3\]\. Values are 0 to 255: convert"),
    ("cameras.1.image", lambda i: i.transpose(2, 0, 1), r"got uint8 \[3, 32, 64\]\. Colours come last"),
    ("cameras.1.image", lambda i: i[:0], r"got uint8 \[0, 64, 3\]\. A camera that gave no picture is None"),
    ("cameras.1.image", lambda i: np.dstack([i, i[..., :1]]), r"got uint8 \[32, 64, 4\]\. Give its red, green and blue alone"),
    ("cameras.1.image", bytes, r"got bytes\. Give the decoded picture as a numpy array"),
    ("cameras.2.intrinsics", lambda k: k.astype(int), r"CAM_2: expected a 3 x 3 .* of floats, got int64 \[3, 3\]\. Convert"),
    ("cameras.2.intrinsics", lambda k: k.astype(object), r"of floats, got object \[3, 3\]"),
    ("cameras.2.intrinsics", np.ndarray.tolist, "of floats, got list"),
    ("cameras.2.intrinsics", lambda k: np.eye(4), r"expected a 3 x 3 intrinsic matrix, got shape \(4, 4\)"),
    ("cameras.2.intrinsics", put((0, 2), math.nan), "expected finite intrinsics, .*got .*nan"),
    ("cameras.2.intrinsics", put((1, 1), 0.0), "expected an invertible intrinsic matrix"),
    ("cameras.2.intrinsics", put((0, 0), -45.0), "expected positive focal lengths .*, got -45 and 45 px"),
    ("cameras.2.intrinsics", put((2, 2), 2.0), "expected a third row of 0 0 1"),
    ("cameras.2", lambda c: replace(c, image=np.zeros((320, 640, 3), np.uint8), intrinsics=np.diag([2e-3, 2e-3, 1])),
     "CAM_2, at the network's size: expected an invertible intrinsic matrix"),
    ("cameras.0.reference_T_camera", put((0, 3), 1e39), "expected a finite transform, of at most 1e.09 m"),
    ("cameras.0.reference_T_camera", lambda t: t[:3], r"CAM_0: expected a 4 x 4 transform, got shape \(3, 4\)"),
    ("cameras.0.reference_T_camera", lambda t: t * 2, "expected a last row of 0 0 0 1"),
    ("lidar.0.reference_T_lidar", put((0, 3), math.inf), "LIDAR_TOP: expected a finite transform"),
    ("lidar.0.reference_T_lidar", put((0, 0), math.nan), "LIDAR_TOP: expected a finite transform"),
    ("lidar.0.reference_T_lidar", lambda _: np.diag([1.0, -1, 1, 1]), "expected a right-handed rotation, got a reflection"),
    ("lidar.0.reference_T_lidar", lambda _: np.diag([2.0, 2, 2, 1]), "expected a rotation .*, got one that is off by 3"),
    ("lidar.0.reference_T_lidar", lambda _: turn.T[::-1].copy(), "expected a last row of 0 0 0 1"),
    ("radar.3.reference_T_radar", put((3, 3), 0.0), "RADAR_3: expected a last row of 0 0 0 1"),
    ("radar.3.reference_T_radar", put((3, 3), 1.0001), "RADAR_3: expected a last row of 0 0 0 1"),
    ("radar.3.reference_T_radar", lambda t: t.astype(np.int32), r"RADAR_3: expected a 4 x 4 pose of floats, got int32 \[4, 4\]"),
    ("global_T_reference", put((0, 0), 3.0), "global_T_reference: expected a rotation"),
    ("lidar.0.points", lambda p: p[:, :4], r"LIDAR_TOP, points: expected float32 \[P, 5\], got float32 \[200, 4\]\. The columns"),
    ("lidar.0.points", lambda p: p.astype(int), r"expected float32 \[P, 5\], got int64 \[200, 5\]\. One row a point"),
    ("lidar.0.points", lambda p: p.astype(object), r"got object \[200, 5\]"),
    ("lidar.0.points", np.ravel, r"got float32 \[1000\]"),
    ("lidar.0.points", np.ndarray.tolist, r"expected float32 \[P, 5\], got list"),
    ("radar.0.points", lambda p: p[:, :5], r"RADAR_0, points: expected float32 \[P, 6\], got float32 \[8, 5\]"),
    ("lidar.0.time_us", lambda t: t / 1e6, r"LIDAR_TOP, time_us: expected whole microseconds \(int\), got float"),
    ("lidar.0.time_us", lambda t: t * 1000, "at most 60 s before and 1 s after the frame's time, got .* s after.* one clock"),
    ("radar.1.time_us", lambda t: t - 61_000_000, "RADAR_1, time_us: .*, got 61.000 s before"),
    ("cameras.4.time_us", lambda t: t + 1_500_000, "CAM_4, time_us: .*, got 1.500 s after"),
    ("lidar_sectors", lambda _: np.ones(12, bool), r"lidar_sectors: expected \[36\] bool, got shape \[12\]; None says"),
    ("lidar_sectors", lambda _: np.ones(36), r"expected \[36\] bool, got float64 \[36\]"),
    ("lidar_sectors", lambda _: [True] * 36, r"expected \[36\] bool, got list"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "change", "message"), OF_BATCH)
def test_a_batch_that_does_not_fit(path: str, change: Callable[[Any], Any], message: str) -> None:
    bad = changed(BATCH, path, change)
    for use in (MODEL, MODEL.encode, MODEL.training_outputs):
        with pytest.raises(ValueError, match=message):
            use(bad)


@pytest.mark.parametrize(("path", "change", "message"), OF_FRAME)
def test_a_frame_that_is_none(path: str, change: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        MODEL.perceive(changed(FRAME, path, change))
    if any(part in path for part in ("_T_", "intrinsics", "cameras.2")):
        assert isinstance(caught.value, CalibrationError)


@settings(max_examples=60)
@given(data=st.data())
def test_any_fault_is_one_named_error_and_changes_nothing(data: st.DataObject) -> None:
    """Whatever sensors are there besides, at whatever place the fault is: expected, got, and nothing was run."""
    of_frame = data.draw(st.booleans())
    path, change, _ = data.draw(st.sampled_from(OF_FRAME if of_frame else OF_BATCH))
    before = {name: tensor.clone() for name, tensor in MODEL.state_dict().items()}
    parts = {"cameras", "lidar", "radar"} if of_frame else set(KINDS)
    kept = data.draw(st.sets(st.sampled_from(sorted(parts))))
    touched = path.split(".")[0]
    left_out = parts - kept - {touched} - ({"camera"} if touched == "batch_size" else set())
    gone: dict[str, Any] = dict.fromkeys(left_out)
    sound: Any = replace(FRAME, **gone) if of_frame else BATCH.only(set(KINDS) - left_out)
    with pytest.raises(ValueError, match=r"(?s)expected .*(, got |another)") as caught:
        MODEL.perceive(changed(sound, path, change)) if of_frame else MODEL(changed(sound, path, change))
    assert len(str(caught.value)) < 1500
    for name, tensor in MODEL.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@settings(max_examples=100)
@given(
    value=st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=3), st.just(()),
        st.sampled_from([np.zeros(0), np.zeros((3, 3)), np.eye(4, dtype=complex), np.array("x"), np.array(None), object, {}]),
    ),
    path=st.sampled_from(sorted({path for path, _, _ in OF_FRAME})),
)  # fmt: skip
def test_anything_in_the_place_of_a_reading_is_refused_or_read(value: Any, path: str) -> None:
    """Never another error than ours, such as numpy's or torch's own."""
    fault = None
    try:
        MODEL.perceive(changed(FRAME, path, lambda _: value))
    except ValueError as error:
        fault = str(error)
    assert fault is None or "expected" in fault or "is not of this model's rig" in fault


def test_nothing_is_computed_before_the_whole_batch_is_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise AssertionError("the camera encoder ran although the radar does not fit")

    model = tiny_model()
    monkeypatch.setattr(model.encoder("camera"), "forward", explode)
    with pytest.raises(ValueError, match=r"radar\.count"):
        model(changed(BATCH, "radar.count", put(0, -5)))


def test_a_modality_that_the_model_does_not_know() -> None:
    model = tiny_model(radar=None)
    with pytest.raises(
        ValueError,
        match="this model knows no radar, its modalities are camera, lidar: expected none, got RadarBatch: leave",
    ):
        model(BATCH)
    assert model(BATCH.only(model.config.modalities)).perceived.all()


def test_a_model_on_another_device_than_its_batch() -> None:
    with pytest.raises(ValueError, match=r"expected it on meta as the model, got it on cpu: move .*batch.to\('meta'\)"):
        tiny_model().to("meta")(BATCH)


def test_something_else_than_a_frame_or_a_batch() -> None:
    with pytest.raises(ValueError, match=r"expected a sensors.frames.SensorFrame, got SensorBatch: put"):
        MODEL.perceive(BATCH)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected a sensors.batch.SensorBatch, got SensorFrame: make one"):
        MODEL(FRAME)


def stale(batch: SensorBatch) -> SensorBatch:
    """Sensors that are absent, and whose buffers hold what would be refused of a present one."""
    changes: list[tuple[str, Callable[[Any], Any]]] = [
        ("camera.present", put((1, 2), False)), ("camera.intrinsics", put((1, 2), math.nan)),
        ("lidar.present", put(0, False)), ("lidar.count", put(0, -9)), ("lidar.sectors", put(0, math.nan)),
        ("radar.present", put(1, False)), ("radar.count", put(1, 9999)),
        ("radar.reference_T_radar", put((1, 0), 0.0)),
    ]  # fmt: skip
    for path, change in changes:
        batch = changed(batch, path, change)
    return batch


def test_what_an_absent_sensors_buffer_holds_is_nobodys_business() -> None:
    seen = MODEL(stale(random_sensors()))
    assert seen.perceived.all()
    assert seen.boxes.score.isfinite().all()


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_sound_passes(whole: bool) -> None:
    """Any size of picture, no points at all, any number of cameras and radars, mirrored and scaled poses, late readings."""
    check_batch(BATCH if whole else random_sensors(1), MODEL.config, torch.device("cpu"))
    check_batch(SensorBatch({}, 3), MODEL.config, torch.device("cpu"))
    mirrored = changed(BATCH, "camera.reference_T_camera", lambda t: torch.diag(torch.tensor([1.1, -1.1, 1.1, 1])) @ t)
    check_batch(mirrored, MODEL.config, torch.device("cpu"))
    assert FRAME.cameras is not None
    assert FRAME.cameras[1] is not None
    other = (None, replace(FRAME.cameras[1], image=np.zeros((7, 500, 3), np.uint8), time_us=FRAME.time_us - 5_000_000))
    for frame in (
        replace(FRAME, cameras=other, radar=()),
        changed(FRAME, "lidar.0.points", lambda p: p[:0]),
        changed(FRAME, "time_us", np.int64),
        replace(FRAME, lidar_sectors=np.zeros(36, bool)),
        SensorFrame("nothing", 0, None, None, None, np.eye(4)),
    ):
        check_frame(frame)
        MODEL.perceive(frame)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_model_of_other_weights_says_so_at_once(dtype: torch.dtype) -> None:
    """`.half()`, `.bfloat16()`, `.double()`, of the whole or of a part."""
    for part in ("", "encoders.lidar.pillars"):
        model = tiny_model(rig=RIG.model_dump())
        model.get_submodule(part).to(dtype)
        name = str(dtype).removeprefix("torch.")
        said = rf"weights: expected float32, got {name} \({part}.*call model\.float\(\)"
        calls: tuple[tuple[Callable[[Any], object], object], ...] = (
            (model, BATCH),
            (model.encode, BATCH),
            (model.training_outputs, BATCH),
            (model.perceive, FRAME),
        )
        for call, argument in calls:
            with pytest.raises(ValueError, match=said):
                call(argument)
        assert model.float()(BATCH).perceived.all()


@pytest.mark.parametrize(
    "view",
    [
        torch.ones(2, 2, dtype=torch.bool),
        torch.ones(1, 3, dtype=torch.bool),
        torch.ones(3, dtype=torch.bool),
        torch.ones(2, 3),
    ],
)
def test_a_view_of_other_modalities_is_refused(view: Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"views: expected bool \[2, 3\] \(samples; camera, lidar, radar\), got .*: draw one for"
    ):
        MODEL.training_outputs(BATCH, [torch.ones(2, 3, dtype=torch.bool), view])


def test_a_graph_is_made_without_the_checks() -> None:
    """They look at values, which no graph can hold."""

    class Flat(torch.nn.Module):
        def __init__(self, model: PerceptionModel) -> None:
            super().__init__()
            self.model = model

        def forward(self, points: Tensor, count: Tensor, present: Tensor, sectors: Tensor) -> Tensor:
            assert BATCH.part("lidar") is not None
            lidar = replace(BATCH.part("lidar"), points=points, count=count, present=present, sectors=sectors)
            encoded = self.model.encode(SensorBatch({"lidar": lidar}, 2))["lidar"]
            assert encoded is not None
            return encoded.features

    assert BATCH.part("lidar") is not None
    inputs = tuple(vars(BATCH.part("lidar")).values())
    with torch.no_grad():
        exported = torch.export.export(Flat(tiny_model()), inputs, strict=True)
    assert not any("check" in str(node.target) or "local_scalar" in str(node.target) for node in exported.graph.nodes)
