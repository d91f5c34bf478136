"""Pages are read on a phone."""

from __future__ import annotations

from pathlib import Path

from tests.browser import needs_chromium, page_in_chromium
from training.files.html_page import html_page, wide


@needs_chromium
def test_on_a_phone_nothing_hangs_over_what_is_wide_scrolls_and_words_wrap(tmp_path: Path) -> None:
    figures = "<table id=figures><tr>" + "<td>camera + lidar + radar" * 6 + "</table>"
    words = "<table class=words id=words><tr><td>resistance ability<td>the figure over the clean figure, mean over severities"
    body = wide(figures) + wide(f"{words}<tr><td>RR<td>{'a' * 99}</table>") + wide("<video id=film></video>")
    (tmp_path / "page.html").write_text(html_page("A page", body))
    with page_in_chromium(tmp_path / "profile") as page:
        page.open(tmp_path / "page.html", 390, 844)
        assert page.value("document.documentElement.scrollWidth") == 390
        scrolls = [
            page.value(f"{it}.parentNode.scrollWidth > {it}.parentNode.clientWidth") for it in ("figures", "film")
        ]
        assert scrolls == [True, True]
        assert page.value("words.offsetWidth <= words.parentNode.clientWidth")
        assert page.faults == []
