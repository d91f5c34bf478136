"""Text that data, logs and runs of others bring, on its way to people."""

from __future__ import annotations


def plain(text: str) -> str:
    """As a terminal may show it: what moves its cursor, colours, names it or turns the direction of writing is spelt out."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)
