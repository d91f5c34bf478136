"""Configurations as flat rows of dotted names, to be compared and logged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one: {"optim": {"lr": 1}} -> {"optim.lr": 1}."""
    rows: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            rows |= flat(value, f"{prefix}{name}.")
        else:
            rows[prefix + name] = value
    return rows


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (old, new) of every setting that differs; "not set" where only the other one has it."""
    before, after = flat(old), flat(new)
    names = dict.fromkeys([*after, *before])
    pairs = {name: (before.get(name, "not set"), after.get(name, "not set")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
