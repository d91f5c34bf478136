"""A share of `python -m tests.fuzz` that takes seconds: damaged files are read in part or refused by name, at once."""

from __future__ import annotations

import pytest

from tests.fuzz.doors import DOORS
from tests.fuzz.mutate import fuzz


@pytest.mark.parametrize("name", DOORS)
def test_a_damaged_file_is_read_in_part_or_refused_by_name(name: str) -> None:
    door = DOORS[name]()
    for content in door.seeds:
        door.read(content)
    findings, _ = fuzz(door, 200, seed=20)
    assert [finding.fault for finding in findings] == []
