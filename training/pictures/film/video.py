"""A replay as a film (.mp4, .webm, .gif) and still frames, drawn without a display.

The builds of OpenCV that pip installs cannot encode H.264. So .mp4 is MPEG-4 part 2, which players but no browsers show, and is
quick; .webm is VP8, which browsers show too, and takes ten times as long.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bev.detection.boxes import Boxes
from bev.grid import BEVGrid
from robustbev.results.result import TickResult
from sensors.logs.log import LogError
from sensors.logs.mcap.out import check_target, partial_name
from training.pictures.film.panels import Pixels
from training.pictures.film.pictures import HEIGHT_PX, WIDTH_PX, FramePainter

TruthAt = Callable[
    [TickResult], Boxes | None
]  # the truth at a tick, in its reference frame; None where it is not known

CODECS = {".mp4": "mp4v", ".webm": "VP80"}
GIF_WIDTH_PX = 960
GIF_FRAMES = 600  # a GIF is put together in memory


class VideoResults:
    """Paints every tick and writes a film, and stills if wanted.

    Args:
        path: .mp4, .webm, or .gif of at most `GIF_FRAMES` ticks; None writes stills alone.
        grid: of the model's attention.
        fps: ticks shown a second.
        title: in every frame's headline.
        min_score: boxes scored lower are not drawn.
        truth_at: what was really there.
        stills: a folder for tick-000000.png ...; files of the same names in it are replaced.
        stills_every: every how many ticks a still is kept.

    Raises:
        ValueError: another ending than those, nothing to write, fps or `stills_every` below what they can be.
        LogError: the file exists and `overwrite` is not set, or its folder cannot be written to.
    """

    def __init__(
        self,
        path: Path | None,
        grid: BEVGrid,
        *,
        fps: float = 10.0,
        title: str = "Offline replay",
        min_score: float = 0.3,
        truth_at: TruthAt | None = None,
        stills: Path | None = None,
        stills_every: int = 10,
        overwrite: bool = False,
    ):
        if path is None and stills is None:
            raise ValueError("expected a film (.mp4, .webm, .gif) or a folder for stills to write to, got neither")
        if path is not None and path.suffix.lower() not in (*CODECS, ".gif"):
            raise ValueError(f"{path}: films are .mp4, .webm or .gif, got {path.suffix or 'no ending'!r}")
        if not (fps > 0 and stills_every >= 1):
            raise ValueError(f"expected fps > 0 and stills_every >= 1, got {fps} and {stills_every}")
        self._painter = FramePainter(grid, title=title, min_score=min_score)
        self._truth_at = truth_at
        self._stills = None if stills is None else _Stills(stills, stills_every)
        self._film: _Encoded | _Gif | None = None
        if path is not None:
            self._film = (_Gif if path.suffix.lower() == ".gif" else _Encoded)(path, fps, overwrite)

    def write(self, result: TickResult) -> None:
        frame = self._painter.paint(result, None if self._truth_at is None else self._truth_at(result))
        if self._stills is not None:
            self._stills.add(frame, result.tick.index)
        if self._film is not None:
            self._film.add(frame)

    def close(self) -> None:
        try:
            if self._film is not None:
                self._film.close()
            if self._stills is not None:
                self._stills.close()
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        for part in (self._film, self._stills):
            if part is not None:
                part.abort()


class _Encoded:
    """Frames into OpenCV's encoder, under a temporary name that keeps the ending, by which it chooses the container."""

    def __init__(self, path: Path, fps: float, overwrite: bool):
        self._path, self._fps, self._overwrite = path, fps, overwrite
        check_target(path, overwrite=overwrite)
        _make_folder(path.parent, path)
        self._partial = _partial(path)
        self._writer: Any = None

    def add(self, frame: Pixels) -> None:
        if self._writer is None:
            self._writer = self._open()
        self._writer.write(frame[:, :, ::-1])

    def _open(self) -> Any:
        import cv2

        letters = cv2.VideoWriter.fourcc(*CODECS[self._path.suffix.lower()])
        writer = cv2.VideoWriter(str(self._partial), cv2.CAP_FFMPEG, letters, self._fps, (WIDTH_PX, HEIGHT_PX))
        if not writer.isOpened():
            raise LogError(
                f"{self._path}: this OpenCV cannot encode {self._path.suffix}, or its folder cannot be written to. "
                "Give a name that ends in .gif, or ask for stills"
            )
        return writer

    def close(self) -> None:
        if self._writer is None:
            raise LogError(f"{self._path}: a film needs at least one tick, got none")
        self._writer.release()
        if self._path.suffix.lower() == ".webm":
            _name_track(self._partial)
        check_target(self._path, overwrite=self._overwrite)
        self._partial.replace(self._path)

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.release()
        self._partial.unlink(missing_ok=True)


class _Gif:
    """Frames of 960 x 540 in one palette of 256 colours each."""

    def __init__(self, path: Path, fps: float, overwrite: bool):
        self._path, self._fps, self._overwrite = path, fps, overwrite
        check_target(path, overwrite=overwrite)
        _make_folder(path.parent, path)
        self._partial = _partial(path)
        self._frames: list[Any] = []

    def add(self, frame: Pixels) -> None:
        import cv2
        from PIL import Image

        if len(self._frames) == GIF_FRAMES:
            raise LogError(
                f"{self._path}: a GIF holds at most {GIF_FRAMES} ticks. Give a name that ends in .mp4, or a shorter duration"
            )
        size = (GIF_WIDTH_PX, round(HEIGHT_PX * GIF_WIDTH_PX / WIDTH_PX))
        small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        picture = Image.fromarray(np.ascontiguousarray(small))
        self._frames.append(picture.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE))

    def close(self) -> None:
        if not self._frames:
            raise LogError(f"{self._path}: a film needs at least one tick, got none")
        first, *others = self._frames
        first.save(
            self._partial, format="GIF", save_all=True, append_images=others, loop=0,
            duration=max(20, round(1000 / self._fps)),  # browsers slow down what is faster
        )  # fmt: skip
        check_target(self._path, overwrite=self._overwrite)
        self._partial.replace(self._path)

    def abort(self) -> None:
        self._frames.clear()
        self._partial.unlink(missing_ok=True)


class _Stills:
    """PNG files, in a folder beside the final one until all are there."""

    def __init__(self, folder: Path, every: int):
        self._folder, self._every = folder, every
        if folder.exists() and not folder.is_dir():
            raise LogError(f"{folder}: expected a folder for stills, got a file. Give another name")
        _make_folder(folder.parent, folder)
        self._partial = partial_name(folder)
        self._partial.mkdir()
        self._seen = 0

    def add(self, frame: Pixels, index: int) -> None:
        if self._seen % self._every == 0:
            write_png(self._partial / f"tick-{index:06d}.png", frame)
        self._seen += 1

    def close(self) -> None:
        self._folder.mkdir(exist_ok=True)
        for still in sorted(self._partial.iterdir()):
            still.replace(self._folder / still.name)
        self._partial.rmdir()

    def abort(self) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)


def _name_track(path: Path) -> None:
    """Give the one track of a WebM file the id 1; FFmpeg draws one by lot, and equal films would differ.

    Ids of Matroska (RFC 9559): 73C5 TrackUID, 63C5 TagTrackUID; 88 is the length, 8 bytes.
    """
    with path.open("r+b") as file:
        head = file.read(4096)
        at = head.find(b"\x73\xc5\x88")
        if at >= 0:
            uid = head[at + 3 : at + 11]
            for element in (b"\x73\xc5\x88", b"\x63\xc5\x88"):
                head = head.replace(element + uid, element + bytes(7) + b"\x01")
            file.seek(0)
            file.write(head)


def write_png(path: Path, frame: Pixels) -> None:
    """One frame [H, W, 3] RGB as PNG."""
    import cv2

    done, data = cv2.imencode(".png", frame[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 4])
    assert done
    path.write_bytes(data.tobytes())


def _make_folder(folder: Path, target: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LogError(f"{target}: cannot be written: {error.strerror}. Give another place") from error


def _partial(path: Path) -> Path:
    """A temporary name beside `path` with its ending."""
    name = partial_name(path)
    return name.with_name(f"{name.name}{path.suffix}")
