"""The best checkpoint: one at any moment, whole, whatever is interrupted, and a checkpoint as every other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import training.loop.best
from robustbev.checkpoints import find_checkpoint, step_of
from training.loop.best import Measured, best_of, keep_best
from training.loop.checkpoint import CheckpointStore


def measured(step: int, value: float = 0.5, samples: int = 3) -> Measured:
    return Measured(step, value, "mAP", ("camera", "lidar"), "val", samples, 0.01, 200)


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_text(f"weights of step {step}")
    (path / "config.json").write_text("{}")
    (path / "training_state.json").write_text("{}")
    return path


def keep(folder: Path, step: int, value: float = 0.5) -> Path:
    return keep_best(
        checkpoint(folder, step), measured(step, value), lambda copy: (copy / "README.md").write_text("card")
    )


def test_the_best_one_is_a_checkpoint_that_outlives_the_others(tmp_path: Path) -> None:
    assert best_of(tmp_path) is None
    link = keep(tmp_path, 2)
    for step in (4, 6, 8):
        checkpoint(tmp_path, step)
    CheckpointStore(tmp_path, lambda *_: None, keep=1).prune()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "best-00000002", "step-00000008"]
    assert best_of(tmp_path) == (link, measured(2))
    assert find_checkpoint(link) == link
    assert (link / "model.safetensors").read_text() == "weights of step 2"
    assert sorted(path.name for path in link.iterdir()) == [
        "README.md",
        "best.json",
        "config.json",
        "model.safetensors",
    ]
    assert step_of(link) == 2
    assert find_checkpoint(tmp_path) == tmp_path / "step-00000008"  # a run is its newest one, as before


def test_a_better_one_takes_its_place_and_nothing_is_left_over(tmp_path: Path) -> None:
    keep(tmp_path, 2)
    (tmp_path / "best-00000004").mkdir()  # a crash came before the link was changed
    (tmp_path / ".partial-best").symlink_to("best-00000004")
    link = keep(tmp_path, 4, 0.6)
    assert best_of(tmp_path) == (link, measured(4, 0.6))
    assert sorted(path.name for path in tmp_path.glob("*best*")) == ["best", "best-00000004"]
    again = keep_best(tmp_path / "step-00000004", measured(4, 0.7, samples=9), lambda copy: None)
    assert best_of(tmp_path) == (again, measured(4, 0.7, samples=9))


def test_the_same_model_measured_anew_is_there_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = keep(tmp_path, 2)

    def moved(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.loop.best, "write_json", lambda path, content: path.write_text(json.dumps(content)))
        for name in ("unlink", "rename", "replace"):
            patch.setattr(Path, name, moved)
        keep_best(tmp_path / "step-00000002", measured(2, 0.7, samples=9), lambda copy: None)
    assert best_of(tmp_path) == (link, measured(2, 0.7, samples=9))
    assert (link / "model.safetensors").read_text() == "weights of step 2"


def test_what_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    link = keep(tmp_path, 2)

    def full(copy: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        keep_best(checkpoint(tmp_path, 4), measured(4), full)
    assert best_of(tmp_path) == (link, measured(2))
    assert sorted(path.name for path in tmp_path.glob("*best*")) == ["best", "best-00000002"]


@pytest.mark.parametrize("note", ["", "{}", "[]", '{"step": 1}', json.dumps({"subsets": None})])
def test_a_damaged_note_is_no_best_one(tmp_path: Path, note: str) -> None:
    link = keep(tmp_path, 2)
    (link / "best.json").write_text(note)
    assert best_of(tmp_path) is None
    assert best_of(tmp_path / "nowhere") is None


def test_only_what_was_measured_alike_compares() -> None:
    assert measured(2, 0.1).compares_with(measured(4, 0.9))
    assert not measured(2).compares_with(measured(2, samples=4))
