"""A replay as one page for those who have no viewer: its film, a slider over its ticks, and how every sensor stood at each.

The page holds all of it and loads nothing. What stands below the film is the text of the tick that it shows, in words that can
be read on a phone.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from robustbev import ModelConfig
from robustbev.results.content import ALARM_TEXT
from robustbev.results.palette import ALARM, STATE_COLOURS
from robustbev.results.result import ResultWriter, TickResult, TruthAt
from sensors.logs.log import LogError
from sensors.logs.mcap.out import check_target, partial_name
from sensors.palette import RGB
from sensors.text import html_text, plain
from training.files.atomic import write_text
from training.files.html_page import html_page
from training.pictures.film import VideoResults

_BODY = Template("""
<style>
.player { display: flex; gap: .8em; margin: .6em 0; } #tick { flex: 1; min-width: 0; } #play { width: 5em; font: inherit; }
.none { color: $alarm; font-weight: bold; }
</style>
<div class=wide><video id=film muted playsinline></video></div>
<div class=player><button id=play>play</button><input id=tick type=range min=0 value=0 autocomplete=off aria-label=tick></div>
<p id=summary aria-live=polite></p>
<div class=wide><table class=words><thead><tr><th>sensor<th>state<th>why</tr></thead><tbody id=sensors></tbody></table></div>
<details><summary>What was replayed</summary><table class=words><tbody id=about>$about</tbody></table></details>
<script type="application/json" id=replay>$replay</script>
<script>
const at = id => document.getElementById(id), replay = JSON.parse(at("replay").textContent);
const film = at("film"), slider = at("tick"), play = at("play"), last = replay.ticks.length - 1;
const bytes = Uint8Array.from(atob(replay.film), c => c.charCodeAt(0));
film.src = URL.createObjectURL(new Blob([bytes], {type: "video/mp4"}));
slider.max = last;
function show(n) {
  const tick = replay.ticks[n];
  at("summary").textContent = tick.summary;
  at("summary").className = tick.perceived ? "" : "none";
  at("sensors").replaceChildren(...tick.sensors.map(([name, state, why]) => {
    const row = document.createElement("tr");
    row.append(...[name, state, why].map(text => Object.assign(document.createElement("td"), {textContent: text})));
    row.children[1].style.color = replay.colours[state];
    return row;
  }));
}
function follow() {
  if (film.paused) return;
  const n = Math.min(last, Math.floor(film.currentTime * replay.fps));
  if (n != slider.value) show(slider.value = n);
  requestAnimationFrame(follow);
}
slider.addEventListener("input", () => {
  film.pause();
  film.currentTime = (+slider.value + 0.5) / replay.fps;
  show(+slider.value);
});
// No controls of the browser's: while a film stands still they lie over the states at its bottom.
play.addEventListener("click", () => film.paused ? film.play() : film.pause());
film.addEventListener("play", () => { play.textContent = "pause"; follow(); });
film.addEventListener("pause", () => play.textContent = "play");
show(0);
</script>
""")


class PageResults(ResultWriter):
    """Writes a page; see the module. Arguments and errors as `VideoResults`; `about` is what the page came of, by its names."""

    def __init__(
        self, path: Path, config: ModelConfig, *, fps: float = 10.0, title: str = "Offline replay", min_score: float = 0.3,
        truth_at: TruthAt | None = None, about: Mapping[str, str] | None = None, overwrite: bool = False,
    ):  # fmt: skip
        check_target(path, overwrite=overwrite)
        self._about = {name: value for name, value in (about or {}).items() if value}
        self._path, self._title, self._fps, self._min_score, self._overwrite = path, title, fps, min_score, overwrite
        self._film_path = partial_name(path).with_suffix(".mp4")
        self._film = VideoResults(self._film_path, config, fps=fps, title=title, min_score=min_score, truth_at=truth_at)
        self._ticks: list[dict[str, Any]] = []
        self._start_us: int | None = None

    def write(self, result: TickResult) -> None:
        self._film.write(result)
        time_us = result.tick.time_us
        self._start_us = time_us if self._start_us is None else self._start_us
        found = f"{int((result.boxes.score >= self._min_score).sum())} found" if result.perceived else ALARM_TEXT
        shares = ", ".join(f"{name} {share:.0%}" for name, share in result.trust.items() if share > 0)
        words = [f"{(time_us - self._start_us) / 1e6:+.2f} s", f"tick {result.tick.index}", found]
        words += [f"attention: {shares}, nulls {result.null_share:.0%}"] if shares else []
        # Those in trouble first: a phone shows few rows.
        sensors = sorted(result.tick.sensors.values(), key=lambda status: status.given)
        rows = [(plain(status.channel), str(status.state), plain(status.detail)) for status in sensors]
        self._ticks.append({"summary": " · ".join(words), "perceived": result.perceived, "sensors": rows})

    def close(self) -> None:
        try:
            if not self._ticks:
                raise LogError(f"{self._path}: a page needs at least one tick, got none")
            self._film.close()
            colours = {str(state): _css(rgb) for state, rgb in STATE_COLOURS.items()}
            film = base64.b64encode(self._film_path.read_bytes()).decode("ascii")
            content = {"fps": self._fps, "ticks": self._ticks, "colours": colours, "film": film}
            text = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")  # no text of a log ends the script
            about = "".join(
                f"<tr><td>{html_text(name)}<td>{html_text(value)}</tr>" for name, value in self._about.items()
            )
            body = _BODY.substitute(alarm=_css(ALARM), about=about, replay=text)
            check_target(self._path, overwrite=self._overwrite)
            write_text(self._path, html_page(self._title, body))
        finally:
            self.abort()

    def abort(self) -> None:
        self._film.abort()
        self._film_path.unlink(missing_ok=True)


def _css(rgb: RGB) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)
