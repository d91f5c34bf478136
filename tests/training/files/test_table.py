"""A table says the same in every form: nothing is cut, nothing is taken for markup, what is not defined is shown as such."""

from __future__ import annotations

import math

import pytest

from training.files.table import Column, Table, print_tables

TABLE = Table(
    "Figures",
    [
        Column("sensors"),
        Column("mean average precision", ".3f"),
        Column("kept", "+.1%"),
        Column("boxes", "d"),
        Column("ms", ">"),
    ],
    [
        ["camera + lidar", 0.6428571428, 0.5, 1_234_567, "505 ± 7"],
        ["[red] <i> a|b", math.nan, math.nan, 0, "-"],
    ],
    "One line.\nAnother [line].",
    bold={(0, 1)},
)


def test_markdown_aligns_figures_and_keeps_the_lines_of_the_caption() -> None:
    assert TABLE.markdown().splitlines() == [
        "| sensors | mean average precision | kept | boxes | ms |",
        "|---|---:|---:|---:|---:|",
        "| camera + lidar | **0.643** | +50.0% | 1234567 | 505 ± 7 |",
        "| \\[red] &lt;i&gt; a\\|b | - | - | 0 | - |",
        "",
        "One line.  ",
        "Another \\[line].",
    ]


def test_csv_has_more_digits_whole_counts_and_nothing_for_what_is_not_defined() -> None:
    assert TABLE.csv().splitlines()[1:] == ["camera + lidar,0.642857,0.5,1234567,505 ± 7", "[red] <i> a|b,,,0,-"]


def test_html_is_escaped() -> None:
    html = TABLE.html()
    assert "<td>[red] &lt;i&gt; a|b</td><td class=number>-</td>" in html
    assert html.endswith("</table>\n<p class=note>One line.\nAnother [line].</p>")


@pytest.mark.parametrize("columns", [1, 30])
def test_a_terminal_shows_every_figure_whole(columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    wide = Table("Wide", [Column("sensors"), *[Column("precision", ".3f")] * columns], [["x", *[0.25] * columns]])
    print_tables(TABLE, wide)
    printed = capsys.readouterr().out
    for part in ("camera + lidar", "0.643", "± 7", "1234567", "[red] <i> a|b", "Another [line]."):
        assert part in printed
    assert printed.count("0.250") == printed.count("precision") - 1 == columns
    assert "…" not in printed


def test_a_table_without_rows_is_still_a_table() -> None:
    empty = Table("Empty", [Column("a"), Column("b", "d")], [])
    assert empty.markdown() == "| a | b |\n|---|---:|\n"
    assert empty.rich().row_count == 0
