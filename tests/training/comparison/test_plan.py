"""What may stand in one table, and what is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sensors.frames import KINDS
from training.comparison.plan import (
    budget_notes,
    check_name,
    check_runs,
    columns_of,
    default_name,
    plan_jobs,
    read_entries,
    settings_that_differ,
    split_words,
)
from training.evaluation.config import every_subset
from training.files.config_file import ConfigError
from training.runs.files import RunError

SUBSETS = every_subset(KINDS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nulls").mkdir()
    return tmp_path / "nulls"


def write(folder: Path, name: str, **content: Any) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": "whatever", "runs_dir": str(folder.parent / "runs"), **content}))
    return path


def test_words_are_files_or_settings() -> None:
    assert split_words(["a.yaml", "epochs=1", "b/c.yaml"]) == ([Path("a.yaml"), Path("b/c.yaml")], ["epochs=1"])


def test_every_file_with_every_seed_is_a_run_of_its_own(folder: Path) -> None:
    entries = read_entries([write(folder, "null"), write(folder, "zeros", runner={"workers": 3})], ["epochs=2"])
    jobs = plan_jobs(entries, (0, 7), "comparison", ["fog-3"])
    assert [(job.entry, job.seed, job.name) for job in jobs] == [
        ("null", 0, "null-seed0"), ("zeros", 0, "zeros-seed0"), ("null", 7, "null-seed7"), ("zeros", 7, "zeros-seed7"),
    ]  # fmt: skip
    runs = folder.parent / "runs"
    assert jobs[3].files.root == runs / "comparison" / "zeros-seed7"
    for job in jobs:
        assert (job.config.seed, job.config.epochs, job.config.runner.workers) == (job.seed, 2, 0)
        assert job.config.tracking.uri == f"sqlite:///{runs}/mlflow.db"
    assert columns_of(jobs) == (*SUBSETS, "fog-3")


def test_rows_of_other_data_are_refused(folder: Path) -> None:
    files = [
        write(folder, "a"),
        write(folder, "b", data={"nuscenes": {"version": "v1.0-mini", "val_split": "mini_val"}}),
    ]
    with pytest.raises(ConfigError) as raised:
        read_entries(files)
    version, split = raised.value.faults
    assert version.startswith(f"{files[1]}: data.nuscenes.version is v1.0-mini, but v1.0-trainval in {files[0]}")
    assert "data.nuscenes.val_split is mini_val, but val" in split
    assert read_entries(files, ["data.nuscenes.version=v1.0-mini", "data.nuscenes.val_split=mini_val"])


def test_a_budget_that_differs_is_told_and_an_ablation_is_not(folder: Path) -> None:
    files = [write(folder, "a"), write(folder, "b", epochs=5), write(folder, "c", step={"dropout": {"others": 0.1}})]
    entries = read_entries(files)
    assert budget_notes(entries) == ["not the same budget: epochs is 12 in a, c; 5 in b"]
    assert budget_notes(read_entries([files[0], files[2]])) == []
    differing = settings_that_differ(read_entries([files[0], files[2]]))
    assert differing["c"] == {"step.dropout.others": 0.1}
    assert set(differing["a"]) == {"step.dropout.others"}


def test_every_fault_of_every_file_is_told_with_its_file(folder: Path) -> None:
    good, bad = write(folder, "good"), write(folder, "bad", epochs=0, modell=1)
    with pytest.raises(ConfigError) as raised:
        read_entries([good, bad, folder / "none.yaml"], ["seed=3"])
    seed, *faults = raised.value.faults
    assert seed == "seed=3: seeds come from --seeds, expected a setting that all runs share"
    assert [fault.startswith(f"{bad}: ") for fault in faults] == [True, True, False]
    assert "none.yaml" in faults[2]


def test_equal_names_no_files_and_other_places_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="got none"):
        read_entries([])
    first = write(folder, "a")
    with pytest.raises(ConfigError, match=f"would be called 'a' like those of {first}"):
        read_entries([first, write(folder.parent, "a")])
    with pytest.raises(ConfigError, match=r"runs_dir is elsewhere.*give runs_dir=\.\.\. on the command line"):
        read_entries([first, write(folder, "b", runs_dir="elsewhere")])
    with pytest.raises(ConfigError, match="the file's name names its runs"):
        read_entries([write(folder, "with space")])


def test_the_name_comes_from_the_folder(folder: Path) -> None:
    a = write(folder, "a")
    b = write(folder.parent, "b", runs_dir=str(folder.parent / "runs"))
    assert default_name(read_entries([a])) == "compare-nulls"
    assert default_name(read_entries([a, b])) == "compare"
    with pytest.raises(ValueError, match="--name: expected letters"):
        check_name("../x")


def test_a_run_of_another_configuration_in_the_way_is_found_before_hours_are_spent(folder: Path) -> None:
    (job,) = plan_jobs(read_entries([write(folder, "a")]), (0,), "c")
    (job.files.checkpoints / "step-00000001").mkdir(parents=True)
    job.files.begin(job.config)
    check_runs([job])
    (other,) = plan_jobs(read_entries([write(folder, "a")], ["optim.lr=0.5"]), (0,), "c")
    with pytest.raises(RunError, match=r"another --name.*--fresh(.|\n)*optim.lr: 0.001 then, 0.5 now"):
        check_runs([other])
