"""Text that data, logs and runs of others bring, on its way to people: one door each for terminals, Markdown and HTML.

CSV has its door in `training.files.table`, pictures have theirs in `training.pictures`; both go through `plain` too.
"""

from __future__ import annotations

import html
import re
from typing import TextIO


def plain(text: str) -> str:
    """As a terminal may show it: what moves its cursor, colours, names it or turns the direction of writing is spelt out."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def tell(*words: object, file: TextIO | None = None, end: str = "\n") -> None:
    """Print on the terminal, at once, what may hold names of others."""
    print(plain(" ".join(map(str, words))), file=file, end=end, flush=True)


def markdown(text: str) -> str:
    """As Markdown shows it, in a line: neither HTML nor a link, a picture, code or another cell of a table."""
    return re.sub(r"([\\\[|`])", r"\\\1", html.escape(" ".join(plain(text).split("\n")), quote=False))


def html_text(text: str) -> str:
    """As a page shows it."""
    return html.escape(plain(text))
