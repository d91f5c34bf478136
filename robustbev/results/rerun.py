"""Results as a Rerun recording (.rrd) with a layout: trouble first, the scene in 3D, cameras with boxes, curves of states.

Everything lies on one timeline, "log_time", the drive's own. What was shown stays until something takes its place, so every tick
says all anew, and clears what has gone. Rerun numbers its rows by the clock of the machine: two recordings of the same results
hold the same data, not the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bev.grid import BEVGrid
from robustbev.results.content import (
    NO_PERCEPTION,
    ChangeLog,
    Level,
    camera_images,
    found_boxes,
    quaternion_xyzw,
    sensor_level,
)
from robustbev.results.given import cloud_of_channel, jpeg
from robustbev.results.grids import check_grid
from robustbev.results.palette import ALARM
from robustbev.results.result import TickResult
from sensors.extras import require
from sensors.frames import CameraImage
from sensors.logs.log import LogError
from sensors.logs.mcap.out import check_target, partial_name
from sensors.palette import MODALITY_COLOURS, RGB, class_rgb, modality_rgb

TIMELINE = "log_time"
EGO = "map/ego"
FOUND = f"{EGO}/found"
FAR = (
    f"{EGO}/far"  # points so far off that a view of them all would show the vehicle as a dot; not in the layout's views
)
NEAR_M = 30.0
_IN_A_ROW = 2  # cameras: three would be too small beside the scene
_GREY: RGB = (110, 110, 110)
_LIDAR_GREY = (150, 160, 170)


class RerunResults:
    """Writes results as Rerun recording; see the module.

    Args:
        path: the file, .rrd; it appears there on `close`.
        grid: of the model's attention.
        min_score: boxes scored lower are left out.

    Raises:
        LogError: the file exists and `overwrite` is not set, or its folder cannot be written to.
        MissingExtraError: rerun-sdk is not there; the message names what to install.
    """

    def __init__(self, path: Path, grid: BEVGrid, *, min_score: float = 0.3, overwrite: bool = False):
        require(f"writing {path}", "rerun")
        import rerun

        self._rr = rerun
        self._path, self._grid, self._min_score = path, grid, min_score
        check_target(path, overwrite=overwrite)
        self._overwrite = overwrite
        self._partial = partial_name(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._partial.touch(exist_ok=False)
        except OSError as error:
            raise LogError(f"{path}: cannot be written: {error.strerror}. Give another place") from error
        self._stream = rerun.RecordingStream(
            "robustbev replay", recording_id=f"replay of {path.stem}", send_properties=False
        )
        self._stream.save(self._partial)
        self._stream.send_recording_name(f"robustbev replay: {path.stem}")
        self._changes = ChangeLog()
        self._shown: set[str] = set()  # entities that hold a picture or points
        self._levels: dict[str, float] = {}  # entity -> what its curve of steps came to
        self._time_us: int | None = None  # of the tick before
        self._started = self._done = False

    def write(self, result: TickResult) -> None:
        check_grid(result, self._grid)
        if not self._started:
            self._started = True
            self._lay_out(result)
            self._describe(result)
        self._write_pose(result)
        self._write_boxes(result)
        now: set[str] = set()
        for camera in camera_images(result.tick.frame):
            now.add(self._write_camera(result, camera))
        now |= self._write_points(result)
        for entity in sorted(self._shown - now):
            self._send(result, entity, self._rr.Clear.columns(is_recursive=[False]))
        self._shown = now
        self._write_maps(result)
        self._write_curves(result)
        self._write_words(result)
        self._time_us = result.tick.time_us

    def close(self) -> None:
        if self._done:
            return
        try:
            self._stream.flush(blocking=True)
            self._stream.disconnect()
            check_target(self._path, overwrite=self._overwrite)
            self._partial.replace(self._path)
            self._done = True
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        if not self._done:
            self._done = True
            self._stream.disconnect()
            self._partial.unlink(missing_ok=True)

    def _send(self, result: TickResult, entity: str, columns: Any) -> None:
        """One row on the timeline; what has several values a row comes partitioned."""
        at = np.array([result.tick.time_us], "datetime64[us]")
        self._stream.send_columns(entity, [self._rr.TimeColumn(TIMELINE, timestamp=at)], columns, strict=True)

    def _lay_out(self, result: TickResult) -> None:
        import rerun.blueprint as rrb

        cameras = [s.channel for s in result.tick.sensors.values() if s.modality == "camera"]
        pictures = [
            rrb.Spatial2DView(origin=f"{EGO}/{name}", contents=["$origin/**", f"/{FOUND}"], name=name)
            for name in cameras
        ]
        scene = rrb.Spatial3DView(
            origin=f"/{EGO}", contents=["$origin/**", f"- /{FAR}/**"], name="scene, vehicle at the origin"
        )
        maps = [rrb.Spatial2DView(origin=f"attention/{name}", name=f"attention: {name}") for name in result.modalities]
        maps += [rrb.Spatial2DView(origin=f"tasks/{name}", name=name) for name in result.maps]
        curves = [
            rrb.TimeSeriesView(
                origin="shares", name="shares of the attention", axis_y=rrb.ScalarAxis(range=(0.0, 1.0))
            ),
            rrb.TimeSeriesView(
                origin="sensors",
                name="states: 2 absent, 1 doubted",
                axis_y=rrb.ScalarAxis(range=(-0.1, 2.1)),
                plot_legend=rrb.PlotLegend(
                    visible=False
                ),  # a dozen names would cover the curves; colours are as in the shares
            ),
            rrb.TimeSeriesView(origin="boxes", name="boxes found", plot_legend=rrb.PlotLegend(visible=False)),
        ]
        words = rrb.Tabs(
            rrb.TextDocumentView(origin="perception", name="perception"), rrb.TextLogView(origin="log", name="log")
        )
        classes = rrb.Spatial2DView(origin="classes", name="classes")
        top = rrb.Horizontal(words, classes, column_shares=[3, 1])
        left = rrb.Vertical(top, scene, rrb.Horizontal(*maps), row_shares=[3, 5, 2])
        large = [rrb.Grid(*pictures, grid_columns=min(_IN_A_ROW, len(pictures)))] if pictures else []
        right = rrb.Vertical(*large, rrb.Horizontal(*curves), row_shares=[*[3] * len(large), 1])
        self._stream.send_blueprint(rrb.Blueprint(rrb.Horizontal(left, right), collapse_panels=True))

    def _describe(self, result: TickResult) -> None:
        """What holds at every tick: the curves' colours, the classes' names, the vehicle's axes."""
        series = [(f"shares/{name}", modality_rgb(name, k), name) for k, name in enumerate(result.modalities)]
        series += [("shares/nulls", _GREY, "nulls"), ("boxes", _GREY, "boxes")]
        for modality in dict.fromkeys(status.modality for status in result.tick.sensors.values()):
            channels = [s.channel for s in result.tick.sensors.values() if s.modality == modality]
            for k, channel in enumerate(channels):
                colour = MODALITY_COLOURS.get(modality, _GREY)
                series.append((f"sensors/{channel}", _darker(colour, k / len(channels)), channel))
        for entity, colour, name in series:
            # Not the mean of what lies within a pixel, which would make a ramp of a step.
            off = self._rr.components.AggregationPolicy.Off
            lines = self._rr.SeriesLines(colors=[colour], names=[name], aggregation_policy=off)
            self._stream.log(entity, lines, static=True)
        rgb_of = {name: class_rgb(name, label) for label, name in enumerate(result.classes)}
        legend = (
            self._rr.Boxes2D(  # as wide as they are many: a view of points in a column would be a view of one point
                centers=[(0.0, 2 * k) for k in range(len(rgb_of))],
                half_sizes=[(0.6 * len(rgb_of), 0.8)] * len(rgb_of),
                colors=list(rgb_of.values()),
                labels=list(rgb_of),
                show_labels=True,
            )
        )
        self._stream.log("classes", legend, static=True)
        room = self._rr.Points2D(
            [(0.0, 2 * len(rgb_of))], colors=[(0, 0, 0)]
        )  # names stand below their boxes, the last too
        self._stream.log("classes/room", room, static=True)
        # Shown where the mouse is: all of them would hide each other and the boxes.
        self._stream.log(FOUND, self._rr.Boxes3D.from_fields(show_labels=False), static=True)
        self._stream.log(EGO, self._rr.ViewCoordinates.FLU, static=True)
        # A view of all that it shows; what is always there keeps it where it is when sensors are lost.
        turn = np.linspace(0.0, 2 * np.pi, 73)
        circle = np.stack([np.cos(turn), np.sin(turn), 0 * turn], axis=1)
        radii_m = (10.0, 20.0, NEAR_M)
        rings = self._rr.LineStrips3D([r * circle for r in radii_m], colors=_GREY, radii=-0.5)
        self._stream.log(f"{EGO}/rings", rings, static=True)

    def _write_pose(self, result: TickResult) -> None:
        """Map -> vehicle; the identity where the log knows no ego motion."""
        pose = result.tick.frame.global_T_reference if result.tick.ego_pose_known else np.eye(4)
        self._send(result, EGO, self._transform(pose))

    def _transform(self, pose: NDArray[Any]) -> Any:
        return self._rr.Transform3D.columns(translation=[pose[:3, 3]], quaternion=[quaternion_xyzw(pose)])

    def _write_boxes(self, result: TickResult) -> None:
        boxes = found_boxes(result, self._min_score)
        columns = self._rr.Boxes3D.columns(
            half_sizes=np.array([(b.length_m / 2, b.width_m / 2, b.height_m / 2) for b in boxes]).reshape(-1, 3),
            centers=np.array([b.center_m for b in boxes]).reshape(-1, 3),
            quaternions=np.array([b.rotation_xyzw for b in boxes]).reshape(-1, 4),
            colors=_packed([class_rgb(b.class_name, b.label) for b in boxes]),
            labels=[f"{b.class_name} {b.score:.2f}" for b in boxes],
        )
        self._send(result, FOUND, columns.partition([len(boxes)]))
        moving = [b for b in boxes if b.velocity_mps is not None]
        arrows = self._rr.Arrows3D.columns(
            vectors=np.array([(*(b.velocity_mps or (0, 0)), 0.0) for b in moving]).reshape(-1, 3),
            origins=np.array([b.center_m for b in moving]).reshape(-1, 3),
            colors=_packed([class_rgb(b.class_name, b.label) for b in moving]),
        )
        self._send(result, f"{EGO}/velocity", arrows.partition([len(moving)]))

    def _write_camera(self, result: TickResult, camera: CameraImage) -> str:
        entity, (height, width) = f"{EGO}/{camera.channel}", camera.image.shape[:2]
        self._send(result, entity, self._transform(camera.reference_T_camera))
        pinhole = self._rr.Pinhole.columns(
            image_from_camera=[np.asarray(camera.intrinsics, np.float64)],
            resolution=[(width, height)],
            image_plane_distance=[2.0],
        )
        self._send(result, entity, pinhole)
        image = self._rr.EncodedImage.columns(
            blob=[np.frombuffer(jpeg(camera.image), np.uint8)], media_type=["image/jpeg"]
        )
        picture = f"{entity}/picture"  # what is cleared when it is lost; where the camera is stays known
        self._send(result, picture, image)
        return picture

    def _write_points(self, result: TickResult) -> set[str]:
        """All sweeps of a channel together, the far points apart; radar larger, in its colour."""
        frame, shown = result.tick.frame, set()
        radars = {sweep.channel for sweep in frame.radar or ()}
        for channel, cloud in cloud_of_channel(frame, frame.time_us).items():
            points = cloud[np.isfinite(cloud[:, :3]).all(axis=1), :3]
            near = np.linalg.norm(points[:, :2], axis=1) < NEAR_M
            colour = MODALITY_COLOURS["radar"] if channel in radars else _LIDAR_GREY
            radius_px = 3.0 if channel in radars else 1.2
            for entity, part in ((f"{EGO}/{channel}", points[near]), (f"{FAR}/{channel}", points[~near])):
                columns = self._rr.Points3D.columns(
                    positions=part,
                    colors=_packed([colour] * len(part)),
                    radii=np.full(len(part), -radius_px, np.float32),  # negative radii are pixels of the screen
                )
                self._send(result, entity, columns.partition([len(part)]))
                shown.add(entity)
        return shown

    def _write_maps(self, result: TickResult) -> None:
        """Shares, and maps of tasks, as grey pictures, a pixel a cell, forward up and left at the left; NaN is transparent."""
        shares = {f"attention/{name}": share for name, share in zip(result.modalities, result.attention, strict=True)}
        shares |= {f"tasks/{name}": task_map.shares for name, task_map in result.maps.items()}
        for entity, share in shares.items():
            turned = share[::-1, ::-1]
            grey = np.clip(np.rint(255 * np.nan_to_num(turned)), 0, 255)
            picture = np.stack([grey, grey, grey, 255 * ~np.isnan(turned)], axis=-1).astype(np.uint8)
            image = self._rr.components.ImageFormat(
                width=picture.shape[1],
                height=picture.shape[0],
                color_model=self._rr.ColorModel.RGBA,
                channel_datatype=self._rr.ChannelDatatype.U8,
            )
            columns = self._rr.Image.columns(buffer=[picture.ravel()], format=[image])
            self._send(result, entity, columns)

    def _write_curves(self, result: TickResult) -> None:
        values = {f"shares/{name}": share for name, share in result.trust.items()}
        values["shares/nulls"] = result.null_share
        values["boxes"] = float(len(found_boxes(result, self._min_score)))
        for entity, value in values.items():
            self._send(result, entity, self._rr.Scalars.columns(scalars=[value]))
        for name, status in result.tick.sensors.items():
            self._write_step(result, f"sensors/{name}", float(sensor_level(status)))

    def _write_step(self, result: TickResult, entity: str, value: float) -> None:
        """A value that stays until the next: it is said again just before that, so that no ramp leads from one to the other."""
        at_us, values = [result.tick.time_us], [value]
        before = self._levels.get(entity, value)
        if before != value and self._time_us is not None and self._time_us < at_us[0] - 1:
            at_us, values = [at_us[0] - 1, *at_us], [before, value]
        self._levels[entity] = value
        times = self._rr.TimeColumn(TIMELINE, timestamp=np.array(at_us, "datetime64[us]"))
        self._stream.send_columns(entity, [times], self._rr.Scalars.columns(scalars=values), strict=True)

    def _write_words(self, result: TickResult) -> None:
        head = f"tick {result.tick.index}\n\n"
        if not result.perceived:
            head = f"# {NO_PERCEPTION}\n\n{head}"
        trouble_first = sorted(result.tick.sensors.values(), key=lambda status: -sensor_level(status))
        rows = [f"| {status.channel} | {status.state} | {status.detail} |" for status in trouble_first]
        text = head + "\n".join(["| sensor | state | why |", "|---|---|---|", *rows])
        document = self._rr.TextDocument.columns(text=[text], media_type=["text/markdown"])
        self._send(result, "perception", document)
        lines = self._changes.lines(result.tick, perceived=result.perceived)
        if lines:
            self._write_log(result, lines)

    def _write_log(self, result: TickResult, lines: Sequence[tuple[Level, str]]) -> None:
        """Several lines of one tick are several rows at one time."""
        names = {Level.OK: "INFO", Level.WARN: "WARN", Level.ERROR: "ERROR"}
        colours = {Level.OK: (34, 136, 51), Level.WARN: (221, 170, 51), Level.ERROR: ALARM}
        columns = self._rr.TextLog.columns(
            text=[message for _, message in lines],
            level=[names[level] for level, _ in lines],
            color=_packed([colours[level] for level, _ in lines]),
        )
        at = np.full(len(lines), result.tick.time_us, "datetime64[us]")
        self._stream.send_columns("log", [self._rr.TimeColumn(TIMELINE, timestamp=at)], columns, strict=True)


def _darker(rgb: RGB, share: float) -> RGB:
    """Down to half as bright."""
    red, green, blue = (round(value * (1 - share / 2)) for value in rgb)
    return red, green, blue


def _packed(colours: Sequence[RGB]) -> NDArray[np.uint32]:
    """[N] 0xRRGGBBAA: columns of colours take no other form."""
    return np.array([r << 24 | g << 16 | b << 8 | 255 for r, g, b in colours], np.uint32)
