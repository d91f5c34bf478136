"""A table's row is read rightly or refused in one line that names table and token: never a traceback, never another data set."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sensors.errors import DataRootError, SensorDataError
from sensors.nuscenes.arrays import IndexArrays
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.index import open_index
from sensors.nuscenes.reader import NuScenesReader
from sensors.nuscenes.tables import MAX_SPEED_MPS, columns
from tests.small_nuscenes import VERSION, SmallNuScenes, write_small_nuscenes

Tables = dict[str, list[Any]]
_OFTEN = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
_VALUES: dict[type, st.SearchStrategy[Any]] = {
    bool: st.booleans(), int: st.integers(-(2**70), 2**70), float: st.floats(), str: st.text(max_size=5),
    list: st.lists(st.none() | st.integers() | st.text(max_size=3), max_size=3),
    dict: st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
}  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> SmallNuScenes:
    """A data set whose tables a test writes anew."""
    return write_small_nuscenes(tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def tables(sound: SmallNuScenes) -> str:
    """The sound tables, as text: each use has its own."""
    paths = (sound.root / VERSION).glob("*.json")
    return json.dumps({path.stem: json.loads(path.read_text()) for path in paths if path.stem != "splits"})


@pytest.fixture(scope="module")
def arrays(sound: SmallNuScenes, tables: str) -> IndexArrays:
    return read(sound, json.loads(tables))[0]


def read(small: SmallNuScenes, changed: Tables) -> tuple[IndexArrays, list[str]]:
    for name, rows in changed.items():
        (small.root / VERSION / f"{name}.json").write_text(json.dumps(rows))
    found, meta = columns(small.config)
    return found, meta["notes"]


def different(a: IndexArrays, b: IndexArrays) -> dict[str, list[int]]:
    """Array -> its rows that are not equal; [-1] where the shapes are not."""
    rows = {}
    for f in fields(IndexArrays):
        one, other = getattr(a, f.name), getattr(b, f.name)
        if one.shape != other.shape or one.dtype != other.dtype:
            rows[f.name] = [-1]
        elif one.tobytes() != other.tobytes():
            unequal = ~((one == other) | ((one != one) & (other != other)))  # or both NaN
            rows[f.name] = np.flatnonzero(unequal.reshape(len(one), -1).any(axis=1)).tolist()
    return rows


def json_type(value: Any) -> type:
    return float if type(value) is int else type(value)  # JSON has one kind of number


@_OFTEN
@given(data=st.data())
def test_a_single_edit_is_read_rightly_or_refused_by_table_and_token(
    sound: SmallNuScenes, tables: str, arrays: IndexArrays, data: st.DataObject
) -> None:
    changed: Tables = json.loads(tables)
    table = data.draw(st.sampled_from(sorted(changed)))
    number = data.draw(st.integers(0, len(changed[table]) - 1))
    row = changed[table][number]
    token, key = row["token"], data.draw(st.sampled_from([None, *row]))
    how = data.draw(st.sampled_from(["drop", "null", "retype"]))
    holder, place, old = (changed[table], number, row) if key is None else (row, key, row[key])
    if how == "drop":
        del holder[place]
    elif how == "null":
        holder[place] = None
    else:
        other = data.draw(st.sampled_from([kind for kind in _VALUES if json_type(kind()) is not json_type(old)]))
        holder[place] = data.draw(_VALUES[other])
    try:
        found, notes = read(sound, changed)
    except (SensorDataError, DataRootError) as error:
        message = str(error)
        assert len(message.splitlines()) == 1
        assert f"{table}.json" in message or f"{table}" in message
        assert token in message or f"row number {number} " in message, message
        assert key is None or key in message or key == "token", message
        assert "Correct or restore the row" in message
        return
    unequal = different(found, arrays)
    if key is None and table == "sample_data":
        assert how == "drop"
        assert any("sample_data.json" in note and token in note for note in notes), notes
    elif key is None or (table, key) == ("sensor", "token"):
        # Nothing that is read names this row.
        assert table in ("visibility", "log", "map") or (
            table == "sensor" and list(unequal) in ([], ["keyframe", "data_channel"])
        )
    elif (table, key) == ("sample_annotation", "attribute_tokens"):
        assert set(unequal) <= {"box_attribute"}
        assert all(found.box_attribute[i] == -1 for i in unequal.get("box_attribute", []))
    elif key in ("num_lidar_pts", "num_radar_pts"):
        name = f"box_{key.split('_')[1]}_points"
        assert unequal == {name: [found.box_token.tolist().index(token.encode())]}
        assert getattr(found, name)[unequal[name]] == -1
    elif key in ("height", "width"):
        assert set(unequal) <= {"data_size_px"}
        assert all(0 in found.data_size_px[i] for i in unequal.get("data_size_px", []))
    else:
        assert unequal == {}, (table, key, how)


@pytest.mark.parametrize(
    ("table", "key", "words"),
    [
        ("sample_data", "calibrated_sensor_token", "expected a token, got no such key; 34 rows are like it"),
        ("sample", "scene_token", "row sample-0-0: scene_token: expected a token, got no such key; 6 rows"),
        ("category", "name", "row category-car: name: expected a name"),
        ("sample_annotation", "translation", "row car-0-0: translation: expected three numbers"),
    ],
)
def test_a_key_that_all_rows_lack_is_told_once(
    sound: SmallNuScenes, tables: str, table: str, key: str, words: str
) -> None:
    changed: Tables = json.loads(tables)
    for row in changed[table]:
        del row[key]
    with pytest.raises(SensorDataError, match=words) as fault:
        read(sound, changed)
    assert f"{table}.json: row " in str(fault.value)


@pytest.mark.parametrize("gone", ["prev", "next"])
def test_one_of_prev_and_next_follows_from_the_other(
    sound: SmallNuScenes, tables: str, arrays: IndexArrays, gone: str
) -> None:
    changed: Tables = json.loads(tables)
    for row in [*changed["sample_data"], *changed["sample_annotation"]]:
        del row[gone]
    assert different(read(sound, changed)[0], arrays) == {}


def test_a_sweep_that_is_not_there_ends_the_history_and_is_told(
    sound: SmallNuScenes, tables: str, arrays: IndexArrays
) -> None:
    changed: Tables = json.loads(tables)
    changed["sample_data"] = [row for row in changed["sample_data"] if row["token"] != "LIDAR_TOP-0-2"]
    found, notes = read(sound, changed)
    tokens = found.data_token.tolist()
    assert found.data_prev[tokens.index(b"LIDAR_TOP-0-3")] == -1
    assert tokens[found.data_prev[tokens.index(b"LIDAR_TOP-0-4")]] == b"LIDAR_TOP-0-3"
    assert len(tokens) == len(arrays.data_token) - 1
    told = [note.split("sample_data.json: ")[1] for note in notes]
    assert told == [
        "row LIDAR_TOP-0-3: prev: LIDAR_TOP-0-2, which is not there: the history ends there; so in 1 rows",
        "row LIDAR_TOP-0-1: next: LIDAR_TOP-0-2, which is not there: the history ends there; so in 1 rows",
    ]


def test_two_rows_of_one_token_are_a_fault(sound: SmallNuScenes, tables: str) -> None:
    changed: Tables = json.loads(tables)
    changed["ego_pose"].append(changed["ego_pose"][0])
    with pytest.raises(
        SensorDataError, match=r"ego_pose\.json: row .*: token: expected one row of each token, got a second"
    ):
        read(sound, changed)


@pytest.mark.parametrize("text", ["{}", "null", '"rows"', "[" * 100_000, "\xff", "[1, 2"])
def test_a_table_that_is_no_list_is_named(sound: SmallNuScenes, tables: str, text: str) -> None:
    read(sound, json.loads(tables))
    (sound.root / VERSION / "scene.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataRootError, match=r"scene\.json: .*[Uu]npack") as fault:
        columns(sound.config)
    assert len(str(fault.value).splitlines()) == 1


# --- times and tracks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1e3])
@pytest.mark.parametrize("which", [("sample",), ("sample_data",), ("sample", "sample_data")])
@pytest.mark.parametrize("start_us", [0, 1_600_000_000_000_000])
def test_times_in_another_unit_are_refused(
    sound: SmallNuScenes, tables: str, unit: float, which: tuple[str, ...], start_us: int
) -> None:
    changed: Tables = json.loads(tables)
    for row in [*changed["sample"], *changed["sample_data"]]:
        row["timestamp"] += start_us - 1_600_000_000_000_000
    for table in which:
        for row in changed[table]:
            row["timestamp"] = int(row["timestamp"] * unit)
    if start_us == 0 and (unit == 1e3 or which == ("sample_data",)):
        return  # such times could be
    with pytest.raises(SensorDataError, match=r"sample(_data)?\.json: row .*: timestamp: expected microseconds"):
        read(sound, changed)


def test_seconds_with_a_fraction_are_no_microseconds(sound: SmallNuScenes, tables: str) -> None:
    changed: Tables = json.loads(tables)
    for row in changed["sample"]:
        row["timestamp"] = row["timestamp"] * 1e-6 + 0.1
    with pytest.raises(
        SensorDataError, match=r"row sample-0-0: timestamp: expected whole microseconds, got 1600000000\.1"
    ):
        read(sound, changed)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jump_m=st.floats(0, 5000))
def test_a_track_that_jumps_has_no_velocity(
    sound: SmallNuScenes, tables: str, arrays: IndexArrays, jump_m: float
) -> None:
    """The car's last box is elsewhere: a second after its first, half a second after its second."""
    changed: Tables = json.loads(tables)
    boxes = {row["token"]: row for row in changed["sample_annotation"]}
    boxes["car-0-2"]["translation"][0] += jump_m
    found, notes = read(sound, changed)
    rows = [found.box_token.tolist().index(f"car-0-{k}".encode()) for k in range(3)]
    expected = np.array([[2.0, 1.0], [2.0 + jump_m, 1.0], [2.0 + 2 * jump_m, 1.0]])
    fast = np.hypot(*expected.T) > MAX_SPEED_MPS
    expected[fast] = np.nan
    np.testing.assert_allclose(found.box_velocity_mps[rows], expected, rtol=1e-9)
    assert set(different(found, arrays)) <= {"box_velocity_mps", "box_pose"}
    if fast.any():
        (note,) = notes
        assert f"so {fast.sum()} of 8 boxes move faster than 60 m/s" in note
        assert f"sample_annotation.json: row car-0-{fast.argmax()}" in note
    else:
        assert notes == []


def test_boxes_of_one_time_have_no_velocity(sound: SmallNuScenes, tables: str) -> None:
    changed: Tables = json.loads(tables)
    changed["sample"][1]["timestamp"] = changed["sample"][0]["timestamp"]
    found, _ = read(sound, changed)
    rows = [found.box_token.tolist().index(f"car-0-{k}".encode()) for k in range(3)]
    np.testing.assert_allclose(found.box_velocity_mps[rows], np.array([[np.nan, np.nan], [2, 1], [1, 0.5]]), rtol=1e-9)


# --- attributes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_attributes(small_nuscenes: SmallNuScenes, tmp_path: Path) -> NuScenesConfig:
    """Two of the eight boxes with two attributes each, as Lyft's have; the first is one that the model does not know."""
    shutil.copytree(small_nuscenes.root, tmp_path / "copy", ignore=shutil.ignore_patterns(".robustbev*"))
    folder = tmp_path / "copy" / VERSION
    attributes = json.loads((folder / "attribute.json").read_text())
    attributes += [{"token": name, "name": name} for name in ("is_parked_oddly", "vehicle.stopped")]
    (folder / "attribute.json").write_text(json.dumps(attributes))
    rows = json.loads((folder / "sample_annotation.json").read_text())
    rows[0]["attribute_tokens"] = ["is_parked_oddly", "attribute-moving", "vehicle.stopped"]
    rows[1]["attribute_tokens"] = ["is_parked_oddly", "is_parked_oddly"]
    (folder / "sample_annotation.json").write_text(json.dumps(rows))
    return small_nuscenes.config.model_copy(update={"root": tmp_path / "copy"})


def test_of_several_attributes_the_first_that_the_model_knows_counts(two_attributes: NuScenesConfig) -> None:
    reader = NuScenesReader(two_attributes, "small_train")
    named = [reader.attributes[i] if i >= 0 else None for k in range(3) for i in reader.boxes(k).attribute[:1].tolist()]
    assert named == ["vehicle.moving", None, "vehicle.moving"]
    reader = NuScenesReader(two_attributes, "small_train", attributes=("vehicle.stopped", "is_parked_oddly"))
    assert [reader.boxes(k).attribute[0].item() for k in range(3)] == [1, 1, -1]
    (note,) = reader.index.meta.notes
    assert "row car-0-0: attribute_tokens: 2 of 8 boxes have more than one attribute" in note


def test_the_evaluation_takes_the_first_that_it_knows(two_attributes: NuScenesConfig) -> None:
    from training.tasks.detection.official import open_tables

    rows = open_tables(two_attributes.root, VERSION).sample_annotation
    assert [row["attribute_tokens"] for row in rows[:3]] == [["attribute-moving"], [], ["attribute-moving"]]


def test_a_second_attribute_makes_another_data_set(two_attributes: NuScenesConfig) -> None:
    before = open_index(two_attributes).meta.data_id
    path = two_attributes.root / VERSION / "sample_annotation.json"
    rows = json.loads(path.read_text())
    rows[0]["attribute_tokens"].pop()
    path.write_text(json.dumps(rows))
    assert open_index(two_attributes).meta.data_id != before


@pytest.mark.parametrize("token", ["two\nlines", "\x1b[31mred", "x" * 10_000])
def test_a_token_of_any_text_is_told_in_one_line(sound: SmallNuScenes, tables: str, token: str) -> None:
    changed: Tables = json.loads(tables)
    changed["sample_annotation"][0] |= {"token": token, "size": None}
    with pytest.raises(
        SensorDataError, match=r"sample_annotation\.json: row .*: size: expected three numbers"
    ) as fault:
        read(sound, changed)
    assert str(fault.value).isprintable()
    assert len(str(fault.value)) < 1000
