"""docs/security.md: each of its promises is followed by tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def test_each_promise_is_followed_by_tests_that_exist() -> None:
    promises = [line for line in PAGE.splitlines() if line.startswith("- ")]
    assert len(promises) > 30
    for promise in promises:
        for sentence in re.split(r"(?<=\)\.) ", promise):
            assert re.search(rf"{TEST.pattern}\)\.$", sentence), f"no test behind: {sentence}"
    for file, name in TEST.findall(PAGE):
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), f"{file}::{name}"


def test_the_page_is_linked() -> None:
    assert "(docs/security.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(security.md)" in (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
