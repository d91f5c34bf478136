"""A share of the random edits of sound logs: each edited one is read rightly, or what is wrong with it is named."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from sensors.logs.log import LogWarning
from sensors.logs.messages import LogMessage
from sensors.replay.tick import SensorState
from sensors.replay.ticks import ticks
from tests.sensors.logs.edits.edited_logs import outcome
from tests.sensors.logs.edits.edits import Edited, edit
from tests.sensors.logs.edits.sound_logs import KINDS, sound
from tests.sensors.replay.drive import CHANNELS, CONFIG, MAPPING, TOPIC, MemoryLog, drive

EDITS, REPLAYED = 80, 8  # of a kind; one of so many is replayed too
SEED = 20_000


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_log_is_read_as_it_is(kind: str, tmp_path: Path) -> None:
    """Otherwise the edits below would show nothing."""
    log = sound(kind)
    assert outcome(log, Edited("nothing", log.data), tmp_path, replay=True) == ("equal", "")


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_edited_is_read_rightly_or_named(kind: str, tmp_path: Path) -> None:
    log, results = sound(kind), Counter[str]()
    outcome(log, Edited("nothing", log.data), tmp_path, replay=True)  # libraries are loaded, which takes memory
    for seed in range(SEED, SEED + EDITS):
        edited = edit(log, random.Random(seed))
        result, fault = outcome(log, edited, tmp_path, replay=seed % REPLAYED == 0)
        assert not fault, f"{kind}, seed {seed}: {edited.what}: {fault}"
        results[result] += 1
    assert {"equal", "damage", "malformed", "other"} <= results.keys(), "the edits reach too little"


class FirstSweepLongAgo(MemoryLog):
    """A damaged bag: read alone the LiDAR's first sweep was recorded three years ago, read with all else it is not there."""

    def messages(self, *, topics: Collection[str] | None = None, **span: Any) -> Iterator[LogMessage]:
        first = True
        for message in super().messages(topics=topics, **span):
            if message.topic == TOPIC["LIDAR_TOP"] and first:
                first = False
                if topics != {message.topic}:
                    continue
                message = replace(message, log_time_ns=message.log_time_ns - 10**17)
            yield message


@pytest.mark.filterwarnings("ignore:.*the replay follows the stamps")
def test_ticks_do_not_fill_the_years_to_a_first_message() -> None:
    log = FirstSweepLongAgo(drive(1.0))
    with pytest.warns(LogWarning, match="the log's time goes forward by 99999999.966 s"):
        played = list(islice(ticks(log, MAPPING, CHANNELS, CONFIG), 100))
    assert 10 <= len(played) < 15
    assert all(status.state == SensorState.OK for status in played[5].sensors.values())
