"""Pages that stand alone: one style, read on a phone as on a desk, and nothing is loaded from anywhere."""

from __future__ import annotations

from sensors.text import html_text

# What is wider than the page scrolls by itself; a shadow at its side says that there is more. It lies behind the content, so
# pictures are multiplied with it.
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto; padding: 0 1.2em; }
h1 { font-size: 1.7em; margin-bottom: .2em; } h2 { font-size: 1.2em; margin: 2em 0 .5em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { text-align: left; border-bottom: 2px solid #888; } td { border-bottom: 1px solid #ddd; }
th, td { padding: .28em .9em .28em 0; white-space: nowrap; } .number { text-align: right; }
.words td:last-child { white-space: normal; overflow-wrap: anywhere; min-width: 7em; }
.note { color: #555; font-size: .9em; max-width: 60em; } details { margin-top: 2em; } code { font-size: .92em; }
img, video { display: block; width: 100%; min-width: 620px; height: auto; mix-blend-mode: multiply; }
.wide { overflow-x: auto; background:
  linear-gradient(to right, #fff 30%, #fff0) left / 3em 100%, linear-gradient(to left, #fff 30%, #fff0) right / 3em 100%,
  linear-gradient(to right, #0003, #0000) left / .8em 100%, linear-gradient(to left, #0003, #0000) right / .8em 100%;
  background-repeat: no-repeat; background-attachment: local, local, scroll, scroll; }
"""


def html_page(title: str, body: str) -> str:
    """A whole page of a title, which is escaped here, and what stands below it, which is HTML already."""
    name = html_text(title)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{_STYLE}</style></head>\n<body>\n<h1>{name}</h1>\n{body}\n</body></html>\n"
    )


def wide(content: str) -> str:
    """HTML that may be wider than a phone."""
    return f"<div class=wide>{content}</div>"
