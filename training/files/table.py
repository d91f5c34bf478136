"""A table of figures in every form that it is read in: Markdown, CSV, HTML and the terminal."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sensors.text import html_text, markdown, plain

if TYPE_CHECKING:
    import rich.table

Cell = str | int | float
_TERMINAL_WIDTH = 120  # at least, where a pipe or a small window says less: a terminal may wrap


class Column(NamedTuple):
    """`spec` is the format of its figures, as ".3f"; without one it holds text and is aligned to the left."""

    name: str
    spec: str = ""
    wrap: bool = False  # text that may go over several lines of a terminal


@dataclass(frozen=True)
class Table:
    """Rows of texts and figures; NaN is not defined. A text among figures is shown as it is."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    name: str = ""  # of its file
    bold: Collection[tuple[int, int]] = ()  # (row, column) of the cells that stand out

    def text(self) -> list[list[str]]:
        """The cells as people read them; "-" is not defined."""
        return [[show(c, column.spec) for c, column in zip(row, self.columns, strict=True)] for row in self.rows]

    def markdown(self) -> str:
        """The table and its caption, without the title."""
        cells = [
            [f"**{markdown(text)}**" if (i, j) in self.bold else markdown(text) for j, text in enumerate(row)]
            for i, row in enumerate(self.text())
        ]
        lines = ["| " + " | ".join(row) + " |" for row in ([markdown(column.name) for column in self.columns], *cells)]
        lines.insert(1, "|" + "|".join("---:" if column.spec else "---" for column in self.columns) + "|")
        if self.caption:
            lines += ["", "  \n".join(map(markdown, self.caption.split("\n")))]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Six significant digits, whatever the columns' formats; what is not defined is empty."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([_csv(column.name) for column in self.columns])
        for row in self.rows:
            writer.writerow([_csv(cell) for cell in row])
        return out.getvalue()

    def html(self) -> str:
        """A `<table>` and its caption, without the title; figures are of class `number`."""
        kinds = [" class=number" if column.spec else "" for column in self.columns]

        def row(tag: str, texts: Sequence[str]) -> str:
            cells = (f"<{tag}{kind}>{html_text(text)}</{tag}>" for kind, text in zip(kinds, texts, strict=True))
            return f"<tr>{''.join(cells)}</tr>"

        head = row("th", [column.name for column in self.columns])
        body = "".join(row("td", texts) + "\n" for texts in self.text())
        caption = f"<p class=note>{html_text(self.caption)}</p>" if self.caption else ""
        return f"<table><thead>{head}</thead>\n<tbody>{body}</tbody></table>\n{caption}"

    def rich(self) -> rich.table.Table:
        """For a terminal: figures are never cut, long names of their columns go over several lines, deviations under means."""
        from rich.markup import escape as escape_markup
        from rich.table import Table as RichTable

        def escape(text: str) -> str:
            return escape_markup(plain(text))

        rows = [[text.replace(" ± ", "\n± ") for text in row] for row in self.text()]
        table = RichTable(
            title=escape(self.title),
            caption=escape(self.caption),
            title_justify="left",
            caption_justify="left",
            show_lines=any("\n" in text for row in rows for text in row),
        )
        for column, texts in zip(self.columns, [*zip(*rows, strict=True)] or [()] * len(self.columns), strict=True):
            words = column.name.split() + [line for text in texts for line in text.split("\n")]
            if column.spec:
                table.add_column(escape(column.name), justify="right", min_width=max(map(len, words)))
            else:
                table.add_column(escape(column.name), no_wrap=not column.wrap)
        for i, row in enumerate(rows):
            cells = map(escape, row)
            table.add_row(*(f"[bold green]{text}[/]" if (i, j) in self.bold else text for j, text in enumerate(cells)))
        return table


def _csv(value: Cell) -> Cell:
    """A cell that spreadsheets take for no formula: https://owasp.org/www-community/attacks/CSV_Injection."""
    if isinstance(value, str):
        return f"'{plain(value)}" if len(value) > 1 and value[0] in "=+-@" else plain(value)
    return "" if _undefined(value) else f"{value:.6g}" if isinstance(value, float) else value


def show(value: Cell, spec: str) -> str:
    """One cell as people read it."""
    if isinstance(value, str):
        return value
    return "-" if _undefined(value) else format(value, spec)


def print_tables(*tables: Table) -> None:
    """On the terminal, no narrower than they can be read."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    for table in tables:
        shown = table.rich()
        needed = Measurement.get(console, console.options.update(max_width=10_000), shown).minimum
        Console(width=max(console.width, _TERMINAL_WIDTH, needed)).print(shown)


def _undefined(value: Cell) -> bool:
    return isinstance(value, float) and math.isnan(value)
