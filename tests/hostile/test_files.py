"""Files that mean harm: whatever reads files refuses them with an error of ours, at once, and nothing in them is executed."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sensors.logs.open import open_log
from tests.hostile.cases import CASES, READERS, write_hostile, write_sound
from tests.hostile.files import CANARY, MAX_MIB, MAX_SECONDS, measured
from tests.training.loop.toy import toy_store
from training.files.config_file import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder beside the working directory; whoever executes something is told on at the end."""
    here, inside = tmp_path / "here", tmp_path / "a" / "b" / "c"
    here.mkdir()
    inside.mkdir(parents=True)
    monkeypatch.chdir(here)
    yield inside
    assert not list(tmp_path.rglob(CANARY)), "something in the file was executed, or unpacked"


@pytest.mark.parametrize("kind", READERS)
def test_what_is_sound_is_read(kind: str, folder: Path) -> None:
    """Otherwise the refusals below would show nothing."""
    write_sound(kind, folder)
    READERS[kind].read(folder)


@pytest.mark.parametrize("name", CASES)
def test_what_is_hostile_is_refused_by_name_at_once(name: str, folder: Path) -> None:
    kind, content = CASES[name]
    reader = READERS[kind]
    write_sound(kind, folder)
    write_hostile(kind, folder, content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damage that is read around
        with measured() as cost, pytest.raises(reader.refuses) as caught:
            reader.read(folder)
    text = str(caught.value)
    named = isinstance(caught.value, ConfigError) or str(folder) in text  # a configuration's faults name keys
    assert named, f"does not say which file: {text[:300]}"
    assert len(text) < 3000
    assert cost.seconds < MAX_SECONDS
    assert cost.mib < MAX_MIB


@pytest.mark.parametrize(
    "pointer", [b"../elsewhere/step-00000001", b"\xff\x00", b"step-" + b"x" * 100_000, b"step-\x00"]
)
def test_the_pointer_to_the_newest_checkpoint_leads_nowhere_else(pointer: bytes, folder: Path) -> None:
    write_sound("state", folder / "run")
    (folder / "elsewhere" / "step-00000001").mkdir(parents=True)
    (folder / "run" / "latest").write_bytes(pointer)
    assert toy_store(folder / "run").latest() == folder / "run" / "step-00000006"


def test_words_where_a_database_should_hold_times_are_left_out(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "words.db3")) as file:
        file.executescript(
            "CREATE TABLE topics(id, name, type, serialization_format); CREATE TABLE messages(id, timestamp, topic_id, data);"
            "INSERT INTO topics VALUES (NULL, NULL, x'00', 3.5); INSERT INTO messages VALUES ('a', 'b', 'c', 'd')"
        )
    log = open_log(folder / "words.db3")
    assert log.span_ns() is None
    assert not list(log.messages())
    assert log.damage.bad_records == 1
