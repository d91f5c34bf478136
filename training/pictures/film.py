"""A replay as a film, H.264 in .mp4 as browsers and players show it, and still frames, drawn without a display."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Final

import av

from bev.detection.boxes import Boxes
from robustbev import ModelConfig
from robustbev.results.grids import check_grid
from robustbev.results.result import TickResult, TruthAt
from sensors.logs.log import LogError
from sensors.logs.mcap.out import check_target, partial_name
from training.pictures.scene.cameras import Look, directions
from training.pictures.scene.canvas import Pixels, save
from training.pictures.scene.page import HEIGHT_PX, WIDTH_PX, page
from training.pictures.scene.panels import Scene, channels_there, maps

# One thread and no clock in the file: equal pictures give equal bytes.
CODEC: Final = "libx264"
_X264 = {"preset": "veryfast", "crf": "20", "threads": "1"}
_MP4 = {"movflags": "faststart", "fflags": "bitexact"}
_BT709 = 1  # of H.273, as primaries, transfer and matrix; what players take a film of this size for


class FramePainter:
    """Paints ticks of one replay of this model; boxes scored lower than `min_score` are not drawn."""

    def __init__(self, config: ModelConfig, *, title: str = "Offline replay", min_score: float = 0.3):
        self._config, self._grid, self._title, self._min_score = config, config.grid.bev(), title, min_score
        self._start_us: int | None = None
        self._looks: dict[str, Look] = {}  # a camera that fails keeps its place

    def paint(self, result: TickResult, truth: Boxes | None = None) -> Pixels:
        """[H, W, 3] RGB.

        Raises:
            ValueError: the attention does not lie on the grid.
        """
        check_grid(result, self._grid)
        tick = result.tick
        self._start_us = tick.time_us if self._start_us is None else self._start_us
        self._looks |= directions(tick.frame)
        scene = Scene(
            frame=tick.frame,
            grid=self._grid,
            classes=result.classes,
            truth=truth,
            found=result.boxes[result.boxes.score >= self._min_score],
            perceived=result.perceived,
            attention=result.attention,
            task_maps=result.maps,
            channels=channels_there(self._config, tick.frame),
            camera_channels=tuple(s.channel for s in tick.sensors.values() if s.modality == "camera"),
            looks=self._looks,
            sensors=tick.sensors,
        )
        words = [f"{(tick.time_us - self._start_us) / 1e6:+.2f} s", f"tick {tick.index}", scene.count]
        words += [] if truth is None else [f"{scene.truths_inside} there"]
        return page(scene, maps(scene), title=self._title, status="   ".join(words))


class VideoResults:
    """Paints every tick of a model of this `config`, and writes a film of `fps` ticks a second, and stills if wanted.

    Args:
        title: in every frame's headline, the log and what happens to it for example.
        truth_at: what was really there.
        stills: a folder for tick-000000.png ..., one of every `stills_every` ticks; files of the same names are replaced.

    Raises:
        ValueError: another ending than .mp4, fps or `stills_every` below what they can be.
        LogError: the file exists and `overwrite` is not set, or it cannot be written.
    """

    def __init__(
        self, path: Path, config: ModelConfig, *, fps: float = 10.0, title: str = "Offline replay", min_score: float = 0.3,
        truth_at: TruthAt | None = None, stills: Path | None = None, stills_every: int = 10, overwrite: bool = False,
    ):  # fmt: skip
        if path.suffix.lower() != ".mp4":
            raise ValueError(f"{path}: films are .mp4, got {path.suffix or 'no ending'!r}")
        if not (fps > 0 and stills_every >= 1):
            raise ValueError(f"expected fps > 0 and stills_every >= 1, got {fps} and {stills_every}")
        check_target(path, overwrite=overwrite)
        if stills is not None and stills.exists() and not stills.is_dir():
            raise LogError(f"{stills}: expected a folder for stills, got a file. Give another name")
        self._painter = FramePainter(config, title=title, min_score=min_score)
        self._path, self._overwrite, self._truth_at = path, overwrite, truth_at
        self._stills, self._every, self._ticks = stills, stills_every, 0
        self._partial, self._partial_stills = partial_name(path), partial_name(stills or path)
        with self._one_error():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(self._partial), "w", format="mp4", options=_MP4)
            rate = Fraction(fps).limit_denominator(1000)
            self._stream = self._container.add_stream(CODEC, rate=rate, options=_X264)
        self._stream.width, self._stream.height, self._stream.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
        coded = self._stream.codec_context
        coded.color_primaries = coded.color_trc = coded.colorspace = _BT709

    def write(self, result: TickResult) -> None:
        frame = self._painter.paint(result, None if self._truth_at is None else self._truth_at(result))
        with self._one_error():
            if self._stills is not None and self._ticks % self._every == 0:
                save(self._partial_stills / f"tick-{result.tick.index:06d}.png", frame)
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            self._container.mux(self._stream.encode(picture.reformat(format="yuv420p", dst_colorspace=_BT709)))
        self._ticks += 1

    def close(self) -> None:
        if not self._ticks:
            self.abort()
            raise LogError(f"{self._path}: a film needs at least one tick, got none")
        try:
            with self._one_error():
                self._container.mux(self._stream.encode())
                self._container.close()
                check_target(self._path, overwrite=self._overwrite)
                self._partial.replace(self._path)
                if self._stills is not None:
                    self._stills.mkdir(exist_ok=True)
                    for still in sorted(self._partial_stills.iterdir()):
                        still.replace(self._stills / still.name)
                    self._partial_stills.rmdir()
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        with suppress(av.FFmpegError):  # a full disk says so again
            self._container.close()
        self._partial.unlink(missing_ok=True)
        shutil.rmtree(self._partial_stills, ignore_errors=True)

    @contextmanager
    def _one_error(self) -> Iterator[None]:
        try:
            yield
        except (OSError, av.FFmpegError, av.codec.codec.UnknownCodecError) as error:
            with suppress(OSError):
                self._partial.unlink()
            raise LogError(
                f"{self._path}: expected to write a film of H.264 by PyAV's x264, got: {error}. Give another place, or "
                "install PyAV's own wheel if this one has no x264"
            ) from error
