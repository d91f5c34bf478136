"""Cases: how they are named, and that corrupted data is what is measured under their names."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import training.robustness.corrupted
from robustbev import PerceptionModel
from sensors.corruptions import CORRUPTIONS, Corruption, CorruptionError
from sensors.frames import KINDS, History, SensorFrame
from tests.small_nuscenes import SmallNuScenes
from tests.tiny_model import tiny_config, tiny_model
from training.evaluation.config import every_subset
from training.evaluation.subsets import evaluate_subsets
from training.robustness.cases import Case, evaluate_cases, grouped, parse_case
from training.runs.config import RunConfig

SUBSETS = every_subset(KINDS)


def test_a_case_is_its_name() -> None:
    named = {
        "camera+lidar": Case("camera+lidar"),
        "radar + camera": Case("radar+camera"),
        "clean": Case(),
        "fog-3": Case(corruption="fog", severity=3),
        "camera+lidar+radar.fog-3": Case("camera+lidar+radar", "fog", 3),
        "lidar+radar.fog-3": Case("lidar+radar", "fog", 3),
    }
    for name, case in named.items():
        assert parse_case(name) == case
        assert case.name == name.replace(" ", "")
    assert parse_case("radar+camera").of(KINDS).name == "camera+radar"
    assert Case("thermal").possible({"thermal", "lidar"})
    assert not Case("thermal+radar").possible({"thermal", "lidar"})
    assert Case("radar", "fog", 3).condition == "fog-3"


@pytest.mark.parametrize("text", ["fogg-3", "fog", "fog-6", "fog-0", "", "camera.fog"])
def test_an_unknown_case_lists_what_there_is(text: str) -> None:
    with pytest.raises(ValueError, match="expected") as told:
        parse_case(text)
    message = str(told.value)
    if "fogg" in text:
        assert all(name in message for name in CORRUPTIONS)


def test_cases_of_one_condition_share_a_pass() -> None:
    cases = [parse_case(name) for name in ("camera", "fog-3", "lidar", "lidar.fog-3", "fog-3")]
    assert {condition: [case.name for case in group] for condition, group in grouped(cases).items()} == {
        "clean": ["camera", "lidar"], "fog-3": ["fog-3", "lidar.fog-3"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def config(small_nuscenes: SmallNuScenes) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": tiny_config(), "data": {"nuscenes": small_nuscenes.config, "workers": 0},
            "evaluation": {"score_threshold": 0.0, "processes": 1, "batch_size": 2},
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def model() -> PerceptionModel:
    return tiny_model()


def test_clean_cases_are_the_official_evaluation(model: PerceptionModel, config: RunConfig, tmp_path: Path) -> None:
    from training.data.loader import build_loader

    results = evaluate_cases(model, config, [Case("camera+lidar+radar"), Case("lidar")], tmp_path / "cases")
    loader = build_loader(config.data, model.config, "small_val", batch_size=2, train=False)
    plain = evaluate_subsets(model, loader.epoch(0), loader.reader, tmp_path / "plain", config.evaluation)
    for case, result in results.items():
        ours = (tmp_path / "cases" / "clean" / case.subset / "results_nusc.json").read_bytes()
        assert ours == (tmp_path / "plain" / case.subset / "results_nusc.json").read_bytes()
        assert result.nds == plain[case.subset].nds
    written = json.loads((tmp_path / "cases" / "cases.json").read_text())
    assert {name: figures["NDS"] for name, figures in written.items()} == {c.name: r.nds for c, r in results.items()}


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupted_data_reaches_the_model_and_the_seed_decides_it(
    model: PerceptionModel, config: RunConfig, tmp_path: Path, workers: int
) -> None:
    config = config.model_copy(update={"data": config.data.model_copy(update={"workers": workers})})
    cases = [parse_case(name) for name in ("lidar+radar", "lidar+radar.points_reducing-5", "radar")]
    seen: list[tuple[str, int, int | None]] = []
    for folder, seed in (("first", 0), ("again", 0), ("other", 1)):
        results = evaluate_cases(
            model, config, cases, tmp_path / folder, seed=seed, progress=lambda *step: seen.append(step)
        )
        assert list(results) == cases
    submission = Path("points_reducing-5", "lidar+radar", "results_nusc.json")
    first, again, other = ((tmp_path / folder / submission).read_bytes() for folder in ("first", "again", "other"))
    clean = (tmp_path / "first" / "clean" / "lidar+radar" / "results_nusc.json").read_bytes()
    assert first == again
    assert len({first, other, clean}) == 3
    assert [step for step in seen if step[0] == "perceive"][-1] == ("perceive", 6, 6)  # two passes over three samples
    assert seen[-1] == ("score", 3, 3)


def test_subsets_that_the_model_has_no_encoder_for_are_left_out(config: RunConfig, tmp_path: Path) -> None:
    results = evaluate_cases(
        tiny_model(camera=None), config, [Case("camera+lidar+radar"), Case("lidar"), Case("camera")], tmp_path
    )
    assert [case.name for case in results] == ["lidar"]
    with pytest.raises(ValueError, match="the model has only lidar, radar"):
        evaluate_cases(tiny_model(camera=None), config, [Case("camera")], tmp_path)


def test_a_corruption_alone_is_of_every_sensor_that_the_model_has(config: RunConfig, tmp_path: Path) -> None:
    """A model without radar has its fog, too, and only what asks for its radar by name is left out."""
    names = ("clean", "points_reducing-3", "lidar+radar.points_reducing-3", "lidar", "lidar.points_reducing-3")
    results = evaluate_cases(tiny_model(camera=None, radar=None), config, list(map(parse_case, names)), tmp_path)
    assert [case.name for case in results] == ["clean", "points_reducing-3", "lidar", "lidar.points_reducing-3"]
    assert results[Case()] == results[Case("lidar")]
    assert results[parse_case("points_reducing-3")] == results[parse_case("lidar.points_reducing-3")]
    assert results[Case()].subset == "lidar"
    assert sorted(path.name for path in (tmp_path / "points_reducing-3").iterdir()) == ["lidar"]


def test_a_corruption_of_sensors_that_the_case_does_not_use_is_refused(
    model: PerceptionModel, config: RunConfig, tmp_path: Path
) -> None:
    with pytest.raises(
        CorruptionError, match=r"radar\.fog-3: fog changes camera and lidar, of which radar has nothing"
    ):
        evaluate_cases(model, config, [parse_case("radar.fog-3")], tmp_path)


def _unchanged(frame: SensorFrame, corruption: Corruption, history: History) -> SensorFrame:
    return frame


def _refusing(frame: SensorFrame, corruption: Corruption, history: History) -> SensorFrame:
    raise CorruptionError("changed nothing")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("corrupt", [_unchanged, _refusing])
def test_clean_data_in_disguise_is_found_out_even_in_loader_workers(
    model: PerceptionModel,
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    corrupt: object,
    workers: int,
) -> None:
    monkeypatch.setattr(training.robustness.corrupted, "corrupt", corrupt)
    config = config.model_copy(update={"data": config.data.model_copy(update={"workers": workers})})
    with pytest.raises(CorruptionError, match="fog-3: fog changed nothing, in none of 3 frames"):
        evaluate_cases(model, config, [parse_case("fog-3")], tmp_path)


def test_single_frames_that_did_not_change_are_warned_of(
    model: PerceptionModel, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()

    def once(frame: SensorFrame, corruption: Corruption, history: History) -> SensorFrame:
        seen.add(frame.token)
        return _refusing(frame, corruption, history) if len(seen) == 1 else replace(frame, lidar=None)

    monkeypatch.setattr(training.robustness.corrupted, "corrupt", once)
    with pytest.warns(UserWarning, match="fog-3 changed nothing in 1 of 3 frames"):
        evaluate_cases(model, config, [parse_case("lidar.fog-3")], tmp_path)
