"""Films and stills of a replay: every tick once, whole files or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from bev.detection.boxes import Boxes
from robustbev.results.result import TickResult
from sensors.logs.log import LogError
from tests.robustbev.results.replay_results import COUNTS, boxes, result
from tests.training.pictures.scene.scenes import CONFIG
from training.pictures import film as films
from training.pictures.film import FramePainter, VideoResults

RESULTS = [result(0), result(1, perceived=False), result(2)]


def film(path: Path, results: list[TickResult] = RESULTS, **settings: Any) -> None:
    writer = VideoResults(path, CONFIG, **settings)
    for one in results:
        writer.write(one)
    writer.close()


def test_a_film_is_what_browsers_play_and_has_every_tick_once_at_its_rate_in_the_same_bytes(tmp_path: Path) -> None:
    path, again = tmp_path / "film.mp4", tmp_path / "again.mp4"
    film(path, fps=4.0)
    film(again, fps=4.0)
    data = path.read_bytes()
    assert data == again.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")  # it plays before all of it is loaded
    with av.open(str(path)) as container:
        (stream,) = container.streams.video
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate or 0) == 4.0
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    painter = FramePainter(CONFIG)
    assert len(shown) == 3
    for frame, one in zip(shown, RESULTS, strict=True):
        assert np.abs(frame.astype(int) - painter.paint(one)).mean() < 2  # what compression costs


def test_maps_of_tasks_are_in_every_frame() -> None:
    painter = FramePainter(CONFIG)
    assert not np.array_equal(painter.paint(result(maps=COUNTS)), painter.paint(result()))


def test_stills_every_so_many_ticks(tmp_path: Path) -> None:
    folder = tmp_path / "stills"
    folder.mkdir()
    (folder / "mine.txt").write_text("stays")
    film(tmp_path / "film.mp4", stills=folder, stills_every=2)
    assert sorted(path.name for path in folder.iterdir()) == ["mine.txt", "tick-000000.png", "tick-000002.png"]
    still = cv2.imread(str(folder / "tick-000002.png"))
    assert still is not None
    painter = FramePainter(CONFIG)
    painter.paint(RESULTS[0])
    assert np.array_equal(np.asarray(still)[:, :, ::-1], painter.paint(RESULTS[2]))


def test_truth_is_drawn_where_it_is_known(tmp_path: Path) -> None:
    def truth_at(one: TickResult) -> Boxes | None:
        return boxes((12.0, -8.0, 0.0, 0, 1.0)) if one.tick.index else None

    film(tmp_path / "with.mp4", stills=tmp_path / "with", stills_every=2, truth_at=truth_at)
    film(tmp_path / "without.mp4", stills=tmp_path / "without", stills_every=2)
    stills = [[path.read_bytes() for path in sorted((tmp_path / name).iterdir())] for name in ("with", "without")]
    assert [one == other for one, other in zip(*stills, strict=True)] == [True, False]


def test_an_aborted_film_and_a_film_of_nothing_leave_nothing_behind(tmp_path: Path) -> None:
    writer = VideoResults(tmp_path / "film.mp4", CONFIG, stills=tmp_path / "stills")
    writer.write(RESULTS[0])
    assert not (tmp_path / "film.mp4").exists()
    writer.abort()
    with pytest.raises(LogError, match="at least one tick"):
        film(tmp_path / "film.mp4", [], stills=tmp_path / "stills")
    assert not list(tmp_path.iterdir())


def test_an_existing_film_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_text("precious")
    with pytest.raises(LogError, match="exists already"):
        film(path)
    assert path.read_text() == "precious"
    film(path, overwrite=True)
    assert path.read_bytes()[4:8] == b"ftyp"


def test_what_cannot_be_written_is_one_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match=r"file.film\.mp4: expected to write a film of H\.264"):
        film(tmp_path / "file" / "film.mp4")
    monkeypatch.setattr(films, "CODEC", "a codec that no wheel has")
    with pytest.raises(LogError, match=r"film\.mp4: expected .*PyAV's own wheel"):
        film(tmp_path / "film.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"film\.gif: films are \.mp4, got '\.gif'"):
        VideoResults(Path("film.gif"), CONFIG)
    with pytest.raises(ValueError, match="fps > 0"):
        VideoResults(Path("film.mp4"), CONFIG, fps=0.0)
    with pytest.raises(ValueError, match="stills_every >= 1"):
        VideoResults(Path("film.mp4"), CONFIG, stills_every=0)
