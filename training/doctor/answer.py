"""Answers of the doctor."""

from __future__ import annotations

from dataclasses import dataclass

from sensors.extras import missing, remedy


@dataclass(frozen=True)
class Answer:
    """Whether something can be done here, with the reason, or with what to do."""

    what: str
    able: bool
    reason: str


def without(*extras: str) -> str:
    """What of the extras is not there, and what brings it; "" where all is."""
    lacking = {extra: absent for extra in extras if (absent := missing(extra))}
    absent = list(dict.fromkeys(name for names in lacking.values() for name in names))
    return f"without {', '.join(absent)}: {remedy(list(lacking), absent)}" if absent else ""
