"""Films and stills of a replay: every tick once, whole files or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bev.detection.boxes import Boxes
from robustbev.results.result import TickResult
from sensors.logs.log import LogError
from tests.robustbev.results.replay_results import GRID, boxes, result
from training.pictures.film import video as replay_video
from training.pictures.film.pictures import FramePainter
from training.pictures.film.video import VideoResults

RESULTS = [result(0), result(1, perceived=False), result(2)]


def film(path: Path | None, results: list[TickResult] = RESULTS, **settings: Any) -> None:
    writer = VideoResults(path, GRID, **settings)
    for one in results:
        writer.write(one)
    writer.close()


def frames(path: Path) -> list[NDArray[Any]]:
    """RGB frames as a player decodes them."""
    capture, found = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        found.append(np.asarray(read[1])[:, :, ::-1])
    return found


@pytest.mark.parametrize("ending", [".mp4", ".webm"])
def test_a_film_has_every_tick_once_at_its_rate(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"film{ending}"
    film(path, fps=4.0)
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) == pytest.approx(4.0)
    shown, painter = frames(path), FramePainter(GRID)
    assert len(shown) == 3
    for frame, one in zip(shown, RESULTS, strict=True):
        assert np.abs(frame.astype(int) - painter.paint(one)).mean() < 4  # what compression costs


def test_a_gif_plays_in_a_loop_at_its_rate(tmp_path: Path) -> None:
    film(tmp_path / "film.gif", fps=4.0)
    with Image.open(tmp_path / "film.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"], gif.info["loop"]) == (3, (960, 540), 250, 0)  # type: ignore[attr-defined]
        gif.seek(1)
        red = np.asarray(gif.convert("RGB"))[230:260, 30:100].reshape(-1, 3).mean(axis=0)
    assert red[0] > 150 > 80 > red[1]  # the band that says "no perception"


@pytest.mark.parametrize("ending", [".mp4", ".webm", ".gif"])
def test_equal_results_give_equal_bytes(tmp_path: Path, ending: str) -> None:
    for name in ("a", "b"):
        film(tmp_path / f"{name}{ending}")
    assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


def test_stills_every_so_many_ticks(tmp_path: Path) -> None:
    folder = tmp_path / "stills"
    folder.mkdir()
    (folder / "mine.txt").write_text("stays")
    film(None, stills=folder, stills_every=2)
    assert sorted(path.name for path in folder.iterdir()) == ["mine.txt", "tick-000000.png", "tick-000002.png"]
    still = cv2.imread(str(folder / "tick-000002.png"))
    assert still is not None
    painter = FramePainter(GRID)
    painter.paint(RESULTS[0])
    assert np.array_equal(np.asarray(still)[:, :, ::-1], painter.paint(RESULTS[2]))


def test_truth_is_asked_for_at_every_tick(tmp_path: Path) -> None:
    asked = []

    def truth_at(one: TickResult) -> Boxes | None:
        asked.append(one.tick.index)
        return boxes((12.0, -8.0, 0.0, 0, 1.0)) if one.tick.index else None

    film(None, stills=tmp_path / "with", stills_every=2, truth_at=truth_at)
    film(None, stills=tmp_path / "without", stills_every=2)
    assert asked == [0, 1, 2]
    same = [
        (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
        for name in ("tick-000000.png", "tick-000002.png")
    ]
    assert same == [True, False]


@pytest.mark.parametrize("ending", [".mp4", ".webm", ".gif"])
def test_aborting_leaves_nothing_behind(tmp_path: Path, ending: str) -> None:
    writer = VideoResults(tmp_path / f"film{ending}", GRID, stills=tmp_path / "stills")
    writer.write(RESULTS[0])
    assert not (tmp_path / f"film{ending}").exists()
    writer.abort()
    assert not list(tmp_path.iterdir())


def test_a_film_of_nothing_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    for ending in (".mp4", ".gif"):
        with pytest.raises(LogError, match="at least one tick"):
            film(tmp_path / f"film{ending}", [], stills=tmp_path / "stills")
    assert not list(tmp_path.iterdir())


def test_an_existing_film_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    (tmp_path / "film.gif").write_text("precious")
    with pytest.raises(LogError, match="exists already"):
        film(tmp_path / "film.gif")
    assert (tmp_path / "film.gif").read_text() == "precious"
    film(tmp_path / "film.gif", overwrite=True)
    assert (tmp_path / "film.gif").read_bytes()[:3] == b"GIF"


def test_a_gif_that_grows_too_long_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_video, "GIF_FRAMES", 2)
    writer = VideoResults(tmp_path / "film.gif", GRID)
    for one in RESULTS[:2]:
        writer.write(one)
    with pytest.raises(LogError, match=r"at most 2 ticks.*\.mp4"):
        writer.write(RESULTS[2])
    writer.abort()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": Path("film.avi")}, r"film\.avi: films are \.mp4, \.webm or \.gif, got '\.avi'"),
        ({"path": None}, "got neither"),
        ({"path": Path("film.mp4"), "fps": 0.0}, "fps > 0"),
        ({"path": Path("film.mp4"), "stills_every": 0}, "stills_every >= 1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoResults(settings.pop("path"), GRID, **settings)
