"""The page of a replay: it stands alone, and says at every tick what its film shows."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest

from sensors.logs.log import LogError
from sensors.replay.tick import SensorState
from tests.browser import needs_chromium, page_in_chromium
from tests.robustbev.results.replay_results import result
from tests.training.pictures.scene.scenes import CONFIG
from training.pictures.film_page import PageResults


def content(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id=replay>(.*?)</script>', page)
    found: dict[str, Any] = json.loads(text)
    return found


def test_a_page_holds_the_film_and_the_words_of_every_tick(tmp_path: Path) -> None:
    writer = PageResults(tmp_path / "seen.html", CONFIG, fps=4.0, title="rain & <fog>")
    for one in (result(0, states={"LIDAR_TOP": SensorState.LATE}), result(1, perceived=False)):
        writer.write(one)
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["seen.html"]
    page = (tmp_path / "seen.html").read_text()
    assert "<h1>rain &amp; &lt;fog&gt;</h1>" in page
    assert 'name="viewport"' in page  # or a phone shows it as small as a desk's
    assert not re.search(r"https?:|src=|href=", page)  # nothing is loaded from anywhere
    seen = content(page)
    first, second = seen["ticks"]
    assert first["summary"] == "+0.00 s · tick 0 · 2 found · attention: camera 25%, lidar 50%, radar 12%, nulls 12%"
    assert second["summary"] == "+0.50 s · tick 1 · NO PERCEPTION"
    assert first["sensors"][:2] == [["CAM_BACK", "missing", "as told"], ["LIDAR_TOP", "late", "as told"]]
    assert {state for _, state, _ in first["sensors"]} <= set(seen["colours"])
    with av.open(io.BytesIO(base64.b64decode(seen["film"])), "r") as film:
        assert len(list(film.decode(video=0))) == len(seen["ticks"])


def test_no_text_of_a_log_ends_the_script(tmp_path: Path) -> None:
    one = result()
    status = replace(one.tick.sensors["LIDAR_TOP"], detail="</script><script>alert(1)</script>")
    tick = replace(one.tick, sensors={**one.tick.sensors, "LIDAR_TOP": status})
    writer = PageResults(tmp_path / "seen.html", CONFIG)
    writer.write(replace(one, tick=tick))
    writer.close()
    page = (tmp_path / "seen.html").read_text()
    assert "alert(1)</script>" not in page
    assert any(status.detail in row for row in content(page)["ticks"][0]["sensors"])


def test_the_page_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    writer = PageResults(tmp_path / "seen.html", CONFIG)
    writer.write(result())
    writer.abort()
    with pytest.raises(LogError, match=r"seen\.html: a page needs at least one tick"):
        PageResults(tmp_path / "seen.html", CONFIG).close()
    assert not list(tmp_path.iterdir())
    (tmp_path / "seen.html").write_text("precious")
    with pytest.raises(LogError, match="exists already"):
        PageResults(tmp_path / "seen.html", CONFIG)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


@needs_chromium
@pytest.mark.parametrize("width_px", [1440, 390])
def test_in_a_browser_the_slider_leads_film_and_words(tmp_path: Path, width_px: int) -> None:
    about = {"log": "drive <1>.mcap", "faults": "LIDAR_TOP: drop 0s..1s", "scene": ""}
    writer = PageResults(tmp_path / "seen.html", CONFIG, fps=2.0, about=about)
    for one in (result(0, states={"LIDAR_TOP": SensorState.LATE}), result(1), result(2, perceived=False)):
        writer.write(one)
    writer.close()
    with page_in_chromium(tmp_path / "profile") as page:
        page.open(tmp_path / "seen.html", width_px, 900)
        page.wait_for("film.readyState >= 2")
        assert page.value("document.documentElement.scrollWidth <= innerWidth")  # nothing hangs over the page's side
        assert "tick 0" in page.value("summary.textContent")
        page.click("tick", share=0.99)
        assert page.value("[summary.textContent, summary.className]") == ["+1.00 s · tick 2 · NO PERCEPTION", "none"]
        page.wait_for("!film.seeking && Math.floor(film.currentTime * 2) == 2")
        page.click("tick")
        assert "tick 1" in page.value("summary.textContent")
        page.click("play")
        page.wait_for("film.ended")
        assert page.value("[tick.value, play.textContent, summary.className]") == ["2", "play", "none"]
        page.click("document.querySelector('summary:not([id])')")
        assert page.value("about.innerText").split() == ["log", "drive", "<1>.mcap", "faults", *about["faults"].split()]
        assert page.faults == []
