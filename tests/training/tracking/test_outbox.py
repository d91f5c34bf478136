"""An outbox has every figure of a step once, whoever writes and whatever was cut off."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.tracking.outbox import Outbox, Row


def metrics(outbox: Outbox) -> list[tuple[int, dict[str, float]]]:
    return [(row["step"], row["metrics"]) for _, row in outbox.rows() if "metrics" in row]


def test_a_step_that_is_taken_again_keeps_its_first_figures(tmp_path: Path) -> None:
    path = tmp_path / "outbox.jsonl"
    Outbox(path).metrics({"loss": 2.0, "speed": 8.0}, 20)
    again = Outbox(path)  # after a crash
    again.metrics({"loss": 2.0, "speed": 9.0, "memory": 1.0}, 20)
    again.metrics({"loss": 1.0}, 40)
    assert metrics(again) == [(20, {"loss": 2.0, "speed": 8.0}), (20, {"memory": 1.0}), (40, {"loss": 1.0})]


def test_a_later_measurement_is_recorded_where_it_differs(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.jsonl")
    for value in (0.5, 0.5, 0.6, float("nan"), float("nan")):
        outbox.metrics({"mAP": value}, 7, renew=True)
    assert [str(row["mAP"]) for _, row in metrics(outbox)] == ["0.5", "0.6", "nan"]


def test_two_processes_see_each_others_rows(tmp_path: Path) -> None:
    one, two = Outbox(tmp_path / "outbox.jsonl"), Outbox(tmp_path / "outbox.jsonl")
    one.metrics({"a": 1.0}, 1)
    two.metrics({"a": 1.5, "b": 2.0}, 1)
    two.tag("t", "x")
    one.tag("t", "x")
    assert metrics(one) == [(1, {"a": 1.0}), (1, {"b": 2.0})]
    assert sum("tag" in row for _, row in one.rows()) == 1


def write(outbox: Outbox, steps: range) -> None:
    for step in steps:
        outbox.metrics({"loss": step / 2}, step)


@given(cut=st.integers(0, 400))
def test_a_line_that_a_crash_cut_off_is_written_again_and_hides_no_other(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / "outbox.jsonl"
    write(Outbox(path), range(5))
    path.write_bytes(path.read_bytes()[:cut])
    outbox = Outbox(path)
    write(outbox, range(7))
    assert sorted(metrics(outbox)) == [(step, {"loss": step / 2}) for step in range(7)]
    assert metrics(Outbox(path)) == metrics(outbox)


def test_rows_are_read_from_any_place_on(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.jsonl")
    write(outbox, range(4))
    rows: list[tuple[int, Row]] = list(outbox.rows())
    for i, (end, _) in enumerate(rows):
        assert list(outbox.rows(end)) == rows[i + 1 :]
    assert list(Outbox(tmp_path / "none.jsonl").rows()) == []


def test_files_of_the_run_are_named_from_its_folder(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "run" / "outbox.jsonl")
    outbox.files([tmp_path / "run" / "a" / "table.md", tmp_path / "other.md"], "tables")
    assert [row["file"] for _, row in outbox.rows()] == ["a/table.md", str(tmp_path / "other.md")]


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    class Full:
        def write(self, content: bytes) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*outbox\.jsonl'"):
        Outbox(tmp_path / "outbox.jsonl")._append(Full(), {})  # type: ignore[arg-type]


def test_a_disk_that_takes_half_a_line_is_an_error(tmp_path: Path) -> None:
    class HalfFull:
        def write(self, content: bytes) -> int:
            return len(content) // 2

    outbox = Outbox(tmp_path / "outbox.jsonl")
    with pytest.raises(OSError, match=r"outbox\.jsonl: the disk took only part of a line"):
        outbox._append(HalfFull(), {"tag": "a", "value": json.dumps("b")})  # type: ignore[arg-type]
