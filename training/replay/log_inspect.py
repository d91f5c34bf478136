"""What `robustbev inspect` prints of a drive log."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.tree import Tree

from sensors.logs.mapping.file import dump_mapping
from sensors.logs.mapping.inspect import LogSummary
from sensors.text import plain

_WIDEST = 400  # characters


def print_log_summary(summary: LogSummary, console: Console | None = None) -> None:
    """Topics, times, damage, frames and the proposed mapping, as YAML that can be copied into a file."""
    console = console or Console()
    console.print(_shown(str(summary.path)), style="bold", soft_wrap=True)
    for line in _overview(summary):
        console.print(_shown(line), soft_wrap=True)
    _print_whole(console, _topics(summary))
    for topic in summary.topics:
        if topic.reason:
            warning = f"{topic.name}: {topic.malformed} of {topic.count} cannot be read, the first: {topic.reason}"
            console.print(_shown(warning), style="yellow", soft_wrap=True)
    if summary.frames:
        console.print(_frames(summary))
    for child, parents in summary.several_parents().items():
        ways = "a replay takes the shortest way, and tells where ways disagree"
        warning = f"{child} has several parents, {', '.join(parents)}: {ways}"
        console.print(_shown(warning), style="yellow", soft_wrap=True)
    for reason in summary.proposal.reasons:
        console.print(f"  {_shown(reason)}", soft_wrap=True)
    if summary.proposal.mapping is None:
        console.print("No mapping can be proposed.", style="yellow")
    else:
        console.print("Proposed mapping (save it as YAML, correct it, give it with --mapping):", style="bold")
        console.print(_shown(dump_mapping(summary.proposal.mapping)), soft_wrap=True, highlight=False)


def _overview(summary: LogSummary) -> list[str]:
    lines = [summary.storage] if summary.storage else []
    if summary.span_ns is None:
        lines.append("no messages")
    else:
        first, last = (_time(time_ns) for time_ns in summary.span_ns)
        lines.append(
            f"{first} to {last}, {summary.duration_s:.3f} s, {sum(topic.count for topic in summary.topics)} messages"
        )
    damage = summary.damage
    if damage.truncated_at_byte is not None:
        lines.append(f"damage: cut or damaged at byte {damage.truncated_at_byte}, bytes from there on are not read")
    if damage.bad_chunks:
        places = ", ".join(str(offset) for offset in damage.bad_chunk_offsets[:5])
        more = ", ..." if damage.bad_chunks > 5 else ""
        lines.append(f"damage: {damage.bad_chunks} chunks left out, at bytes {places}{more}")
    if damage.bad_files:
        lines.append(f"damage: {damage.bad_files} files left out")
    if damage.bad_records:
        lines.append(f"damage: {damage.bad_records} records make no sense")
    if damage.malformed:
        lines.append(f"damage: {sum(damage.malformed.values())} messages that cannot be read")
    return lines


def _print_whole(console: Console, table: Table) -> None:
    """Print as wide as it needs to be: names that are cut to a narrow column cannot be copied."""
    width = console.width
    console.width = max(width, Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum)
    try:
        console.print(table, crop=False)
    finally:
        console.width = width


def _topics(summary: LogSummary) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("topic", "type", "encoding"):
        table.add_column(heading, no_wrap=True)
    for heading in ("messages", "Hz", "largest gap", "from", "to", "malformed"):
        table.add_column(heading, justify="right", no_wrap=True)
    start = summary.span_ns[0] if summary.span_ns else 0
    for topic in summary.topics:
        table.add_row(
            _shown(topic.name),
            _shown(topic.type),
            _shown(topic.encoding),
            str(topic.count),
            "" if topic.rate_hz is None else f"{topic.rate_hz:.2f}",
            "" if topic.largest_gap_s is None else f"{topic.largest_gap_s:.3f} s",
            "" if topic.first_ns is None else f"{(topic.first_ns - start) / 1e9:.3f} s",
            "" if topic.last_ns is None else f"{(topic.last_ns - start) / 1e9:.3f} s",
            str(topic.malformed or ""),
        )
    return table


def _frames(summary: LogSummary) -> Tree:
    root = Tree("frames")
    stack = [root]
    for depth, frame, kind in summary.tree():
        del stack[depth + 1 :]
        stack.append(stack[depth].add(_shown(frame if kind == "root" else f"{frame} ({kind})")))
    return root


def _shown(text: str) -> str:
    """Text of a log for the console: no markup of Rich, nothing that the terminal would do."""
    return escape(plain(text))


def _time(time_ns: int) -> str:
    """UTC, or seconds where the clock did not tell the time of day."""
    try:
        return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return f"{time_ns / 1e9:.3f} s"
