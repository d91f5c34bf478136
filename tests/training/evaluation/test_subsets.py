"""What an evaluation promises: the devkit's own figures, for every subset, from one pass of the encoders."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nuscenes import NuScenes
from nuscenes.eval.detection.algo import accumulate
from nuscenes.eval.detection.data_classes import DetectionMetrics
from nuscenes.eval.detection.evaluate import DetectionEval
from pydantic import ValidationError
from torch import nn

from bev.detection.boxes import Boxes
from fusion.features import BEVFeatures, FusedBEV
from robustbev import NUSCENES_ATTRIBUTES, NUSCENES_CLASSES, ModelConfig, Perception
from sensors.batch import SensorBatch
from sensors.frames import KINDS
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.reader import NuScenesReader
from tests.counting import Counts, asked_for_counts
from tests.training.tasks.detection.some_boxes import some_boxes
from training.evaluation.config import EvaluationConfig, every_subset, subset_name
from training.evaluation.subsets import evaluate_subsets, possible_subsets, predict_subsets
from training.evaluation.tables import read_subsets
from training.runs.config import RunConfig
from training.tasks.detection.matching import match
from training.tasks.detection.official import Metrics, OfficialEvaluation, detection_config
from training.tasks.detection.rules import Rules, official_rules, rules
from training.tasks.detection.submission import submission, submission_boxes

SUBSETS = every_subset(KINDS)

CATEGORY = {
    "car": "vehicle.car", "truck": "vehicle.truck", "bus": "vehicle.bus.rigid", "trailer": "vehicle.trailer",
    "construction_vehicle": "vehicle.construction", "pedestrian": "human.pedestrian.adult",
    "motorcycle": "vehicle.motorcycle", "bicycle": "vehicle.bicycle", "traffic_cone": "movable_object.trafficcone",
    "barrier": "movable_object.barrier",
}  # fmt: skip
SAMPLES = 6


def _row(token: str, **fields: Any) -> dict[str, Any]:
    return {"token": token, **fields}


def _tables(seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """nuScenes tables of one scene with six keyframes, ten classes, a tilted ego, and boxes up to 60 m away."""
    rng = np.random.default_rng(seed)
    sensors = {"CAM_FRONT": "camera", "LIDAR_TOP": "lidar", "RADAR_FRONT": "radar"}
    attribute = {name: f"attr-{name}" for name in NUSCENES_ATTRIBUTES}
    tables: dict[str, list[dict[str, Any]]] = {
        "category": [_row(f"cat-{c}", name=name, description="", index=i) for i, (c, name) in enumerate(CATEGORY.items())],
        "attribute": [_row(token, name=name, description="") for name, token in attribute.items()],
        "visibility": [_row("4", level="v80-100", description="")],
        "sensor": [_row(f"sensor-{c}", channel=c, modality=m) for c, m in sensors.items()],
        "calibrated_sensor": [
            _row(
                f"cal-{c}", sensor_token=f"sensor-{c}", translation=[1.0, 0.0, 1.5], rotation=[1.0, 0.0, 0.0, 0.0],
                camera_intrinsic=[[400.0, 0, 320], [0, 400.0, 180], [0, 0, 1]] if m == "camera" else [],
            )
            for c, m in sensors.items()
        ],
        "log": [_row("log", logfile="x", vehicle="x", date_captured="2020-01-01", location="nowhere")],
        "map": [_row("map", log_tokens=["log"], category="semantic_prior", filename="maps/map.png")],
        "scene": [
            _row(
                "scene", log_token="log", nbr_samples=SAMPLES, first_sample_token="s0",
                last_sample_token=f"s{SAMPLES - 1}", name="scene-a", description="",
            )
        ],
        "ego_pose": [], "sample": [], "sample_data": [], "sample_annotation": [], "instance": [],
    }  # fmt: skip
    for i in range(SAMPLES):
        time_us = 1_600_000_000_000_000 + 500_000 * i
        turn = 0.3 * i
        rotation = np.array([math.cos(turn / 2), 0.01, -0.02, math.sin(turn / 2)])
        rotation /= np.linalg.norm(rotation)
        tables["sample"].append(
            _row(
                f"s{i}", timestamp=time_us, scene_token="scene", prev=f"s{i - 1}" if i else "",
                next=f"s{i + 1}" if i + 1 < SAMPLES else "",
            )
        )  # fmt: skip
        for channel in sensors:
            pose = f"pose-{channel}-{i}"
            tables["ego_pose"].append(
                _row(pose, timestamp=time_us, rotation=rotation.tolist(), translation=[400.0 + 4 * i, 900.0 - i, 0.5])
            )
            tables["sample_data"].append(
                _row(
                    f"sd-{channel}-{i}", sample_token=f"s{i}", ego_pose_token=pose, calibrated_sensor_token=f"cal-{channel}",
                    timestamp=time_us, fileformat="bin", is_key_frame=True, height=360, width=640,
                    filename=f"samples/{channel}/{i}.bin", prev="", next="",
                )
            )  # fmt: skip
    for k in range(60):
        name = list(CATEGORY)[k % 10]
        start, heading, speed = rng.uniform(-45, 45, 2), rng.uniform(-math.pi, math.pi), rng.choice([0.0, 2.0])
        tables["instance"].append(
            _row(
                f"inst-{k}", category_token=f"cat-{name}", nbr_annotations=SAMPLES, first_annotation_token=f"ann-{k}-0",
                last_annotation_token=f"ann-{k}-{SAMPLES - 1}",
            )
        )  # fmt: skip
        size = rng.uniform(0.5, 5.0, 3)
        kinds = [a for a in NUSCENES_ATTRIBUTES if a.split(".")[0] == CATEGORY[name].split(".")[0]]
        kinds = {"human": ["pedestrian.moving"], "movable_object": []}.get(CATEGORY[name].split(".")[0], kinds)
        if name in ("motorcycle", "bicycle"):
            kinds = ["cycle.with_rider"]
        for i in range(SAMPLES):
            xy = start + 0.5 * i * speed * np.array([math.cos(heading), math.sin(heading)])
            tables["sample_annotation"].append(
                _row(
                    f"ann-{k}-{i}", sample_token=f"s{i}", instance_token=f"inst-{k}", visibility_token="4",
                    attribute_tokens=[attribute[kinds[k % len(kinds)]]] if kinds else [],
                    translation=[402.0 + 4 * i + xy[0], 898.0 - i + xy[1], 1.0], size=size.tolist(),
                    rotation=[math.cos(heading / 2), 0.0, 0.0, math.sin(heading / 2)],
                    prev=f"ann-{k}-{i - 1}" if i else "", next=f"ann-{k}-{i + 1}" if i + 1 < SAMPLES else "",
                    num_lidar_pts=int(rng.integers(0, 20)), num_radar_pts=int(rng.integers(0, 2)),
                )
            )  # fmt: skip
    return tables


@pytest.fixture(scope="session")
def tables_config(tmp_path_factory: pytest.TempPathFactory) -> NuScenesConfig:
    root = tmp_path_factory.mktemp("nuscenes")
    folder = root / "v1.0-test-tables"
    folder.mkdir()
    for name, rows in _tables().items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    (folder / "splits.json").write_text(json.dumps({"some": ["scene-a"]}))
    (root / "maps").mkdir()
    (root / "maps" / "map.png").write_bytes(b"")
    return NuScenesConfig(
        root=root, version=folder.name, train_split="some", val_split="some", camera_channels=("CAM_FRONT",),
        radar_channels=("RADAR_FRONT",),
    )  # fmt: skip


@pytest.fixture(scope="session")
def reader(tables_config: NuScenesConfig) -> NuScenesReader:
    return NuScenesReader(tables_config, "some", classes=NUSCENES_CLASSES, attributes=NUSCENES_ATTRIBUTES)


@pytest.fixture(scope="session")
def nusc(tables_config: NuScenesConfig) -> NuScenes:
    return NuScenes(version=tables_config.version, dataroot=str(tables_config.root), verbose=False)


@dataclasses.dataclass
class Batch:
    """What `predict_subsets` needs of a training batch; `at` says where in the split it lies."""

    sensors: SensorBatch
    tokens: tuple[str, ...]
    truth: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    @staticmethod
    def of(reader: NuScenesReader, size: int) -> Iterator[Batch]:
        for start in range(0, len(reader), size):
            tokens = reader.tokens[start : start + size]
            yield Batch(SensorBatch({}, len(tokens)), tokens)


class Oracle(nn.Module):
    """Finds every box of the truth when it has LiDAR, shifted ones with radar alone, nothing with cameras alone.

    Samples are taken in the order of the split. With no feature at all it does not perceive.
    """

    def __init__(self, reader: NuScenesReader, config: ModelConfig, blind_to: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.config, self.reader, self.blind_to = config, reader, blind_to
        self.encoded = 0

    def encode(self, batch: SensorBatch) -> dict[str, BEVFeatures | None]:
        self.range = range(self.encoded, self.encoded + batch.batch_size)
        self.encoded += batch.batch_size
        something = BEVFeatures(torch.zeros(1), torch.ones(1))
        return {name: None if name in self.blind_to else something for name in self.config.modalities}

    def perceive_features(self, features: Mapping[str, BEVFeatures | None], batch_size: int) -> Perception:
        perceived = any(value is not None for value in features.values())
        each = [self._found(i, features) for i in self.range]
        top = max(len(boxes) for boxes in each)
        stacked = [torch.stack([_padded(getattr(b, f.name), top) for b in each]) for f in dataclasses.fields(Boxes)]
        fused = FusedBEV(torch.zeros(1), torch.zeros(1), torch.zeros(1))
        outputs = {"detection": Boxes(*stacked)}
        return Perception(outputs, fused, tuple(self.config.modalities), torch.full((batch_size,), perceived))

    def _found(self, i: int, features: Mapping[str, BEVFeatures | None]) -> Boxes:
        truth = self.reader.boxes(i)[
            self.reader.num_points(i) > 0
        ]  # the official truth leaves out boxes without a point
        if features.get("lidar") is not None:
            return truth
        shift = torch.tensor([1.5, 0.0, 0.0])  # a find at the matching distances of 2 and 4 m only
        return dataclasses.replace(truth, center_m=truth.center_m + shift)[: None if features.get("radar") else 0]


def _padded(values: torch.Tensor, length: int) -> torch.Tensor:
    return torch.cat([values, values.new_zeros(length - len(values), *values.shape[1:])])


def _wide(**fields: Any) -> ModelConfig:
    grid = {"x_min_m": -51.2, "x_max_m": 51.2, "y_min_m": -51.2, "y_max_m": 51.2}
    return ModelConfig.model_validate({"grid": grid, **fields})


def _evaluate(model: Any, reader: NuScenesReader, out: Path, batches: Any = None, **settings: Any) -> dict[str, Any]:
    config = EvaluationConfig(**settings)
    return evaluate_subsets(model, Batch.of(reader, 4) if batches is None else batches, reader, out, config)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def oracle_results(
    reader: NuScenesReader, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path, Oracle]:
    out = tmp_path_factory.mktemp("evaluation")
    model = Oracle(reader, _wide())
    return _evaluate(model, reader, out), out, model


def test_perfect_boxes_score_perfectly_by_the_official_evaluation(oracle_results: Any) -> None:
    results, _, _ = oracle_results
    full = results["camera+lidar+radar"]
    assert full.mean_ap == pytest.approx(1.0, abs=1e-6)
    assert full.nds > 0.99  # tilt of the ego frame costs a trace of scale and orientation
    assert all(ap == pytest.approx(1.0, abs=1e-6) for ap in full.class_ap.values())
    assert full.errors["mAVE"] < 0.01
    assert full.errors["mAAE"] == 0.0


def test_every_subset_is_measured_and_the_encoders_run_once_a_sample(oracle_results: Any) -> None:
    results, _, model = oracle_results
    assert tuple(results) == SUBSETS
    assert model.encoded == SAMPLES
    assert results["lidar"].mean_ap == pytest.approx(1.0, abs=1e-6)
    assert results["radar"].mean_ap == pytest.approx(results["camera+radar"].mean_ap)
    assert 0.3 < results["radar"].mean_ap < 0.7  # found at two of the four distances
    assert results["camera"].mean_ap == 0.0


def test_files_of_an_evaluation(oracle_results: Any, reader: NuScenesReader) -> None:
    results, out, _ = oracle_results
    for subset in SUBSETS:
        content = json.loads((out / subset / "results_nusc.json").read_text())
        assert set(content["results"]) == set(reader.tokens)
        assert content["meta"]["use_lidar"] == ("lidar" in subset)
        summary = json.loads((out / subset / "metrics_summary.json").read_text())
        assert summary["ranges"] == "ranges: official"
        assert summary["mean_ap"] == results[subset].mean_ap
        assert summary["classes_without_truth"] == []
        assert set(summary["label_tp_errors"]) == set(NUSCENES_CLASSES)
    assert read_subsets(out / "subsets.json")["lidar"].mean_ap == results["lidar"].mean_ap
    assert "| camera + lidar + radar | 1.000 | 100% |" in (out / "table.md").read_text()
    assert not list(out.rglob(".*"))  # no temporary file is left


def _noisy_submission(reader: NuScenesReader, path: Path, seed: int = 1) -> Path:
    """Truth with errors of every kind, misses, false alarms and equal scores."""
    rng = torch.Generator().manual_seed(seed)
    results = {}
    for i, token in enumerate(reader.tokens):
        truth = reader.boxes(i)
        boxes = Boxes(*(torch.cat([getattr(truth, f.name)] * 2) for f in dataclasses.fields(Boxes)))
        n = len(boxes)
        boxes = dataclasses.replace(
            boxes,
            center_m=boxes.center_m + torch.randn(n, 3, generator=rng) * torch.rand(n, 1, generator=rng) * 2,
            size_m=boxes.size_m * (1 + 0.2 * torch.rand(n, 3, generator=rng)),
            yaw_rad=boxes.yaw_rad + 0.3 * torch.randn(n, generator=rng),
            velocity_mps=boxes.velocity_mps + 0.3 * torch.randn(n, 2, generator=rng),
            label=torch.where(torch.rand(n, generator=rng) < 0.8, boxes.label, (boxes.label + 1) % 10),
            score=(torch.rand(n, generator=rng) * 20).ceil() / 20,
        )
        results[token] = submission_boxes(
            token, boxes[torch.rand(n, generator=rng) < 0.7], reader.global_T_reference(i), NUSCENES_CLASSES,
            NUSCENES_ATTRIBUTES,
        )  # fmt: skip
    path.write_text(json.dumps(submission(results, ("lidar",))))
    return path


@pytest.mark.parametrize("radius_m", [25.6, 51.2])
def test_shared_ground_truth_gives_the_figures_of_a_plain_detection_eval(
    reader: NuScenesReader, nusc: NuScenes, tmp_path: Path, radius_m: float
) -> None:
    shared = OfficialEvaluation(nusc, reader.tokens, official_rules(radius_m))
    for seed in (1, 2):  # the second shows that the first left the shared truth as it was
        path = _noisy_submission(reader, tmp_path / f"{seed}.json", seed)
        metrics, _ = shared.measure(path)
        plain = DetectionEval(
            nusc, detection_config(official_rules(radius_m)), str(path), "some", str(tmp_path / "plain"), verbose=False
        )
        expected, _ = plain.evaluate()
        ours, theirs = metrics.serialize(), expected.serialize()
        assert 0.05 < ours["mean_ap"] < 0.9
        for key in ("label_aps", "mean_ap", "tp_errors", "nd_score", "cfg"):
            assert ours[key] == theirs[key]
        np.testing.assert_equal(ours["label_tp_errors"], theirs["label_tp_errors"])


def _harder(path: Path, seed: int) -> Path:
    """The submission with tilted, turned, tied and unnormalised boxes among its own."""
    rng, content = np.random.default_rng(seed), json.loads(path.read_text())
    for rows in content["results"].values():
        for row in rows:
            match rng.integers(4):
                case 0:
                    row["rotation"] = (rng.normal(size=4) * rng.choice([1e-3, 1, 7])).tolist()
                case 1:
                    row["rotation"] = [[1, 0, 0, 0], [0, 0, 0, 1], [0.0, 0.0, 0.0, -1.0], [0, 1, 0, 0]][rng.integers(4)]
                case 2:
                    row["detection_score"] = 0.5
        rows.extend(rows[: len(rows) // 3])  # the same place and score twice
    path.write_text(json.dumps(content))
    return path


def every_figure(metrics: DetectionMetrics) -> str:
    """To its last bit."""
    return json.dumps({key: value for key, value in metrics.serialize().items() if key not in ("eval_time", "cfg")})


def by_both(nusc: NuScenes, tokens: Sequence[str], rules: Rules, path: Path) -> DetectionMetrics:
    """A submission's metrics by the devkit, to which the fast ones are equal."""
    devkit = OfficialEvaluation(nusc, tokens, rules).measure(path)[0]
    assert every_figure(devkit) == every_figure(
        OfficialEvaluation(nusc, tokens, rules, metrics="fast").measure(path)[0]
    )
    return devkit


@pytest.mark.parametrize("radius_m", [25.6, 51.2])
def test_the_fast_metrics_are_the_devkits_to_the_last_bit(
    reader: NuScenesReader, nusc: NuScenes, tmp_path: Path, radius_m: float
) -> None:
    racked = copy.deepcopy(nusc)
    for row in racked.sample_annotation:
        if row["category_name"] == "human.pedestrian.adult":  # bicycles and motorcycles in what was there do not count
            row |= {"category_name": "static_object.bicycle_rack", "size": [30.0, 30.0, 30.0]}
    for tables in (nusc, racked):
        devkit = OfficialEvaluation(tables, reader.tokens, official_rules(radius_m))
        fast = OfficialEvaluation(tables, reader.tokens, official_rules(radius_m), metrics="fast")
        for seed in range(4):
            path = _harder(_noisy_submission(reader, tmp_path / "noisy.json", seed), seed)
            figures, meta = devkit.measure(path)
            again, _ = fast.measure(path)
            assert every_figure(figures) == every_figure(again)
            assert again.mean_ap > 0.02
            assert meta["use_lidar"]
        nothing = tmp_path / "nothing.json"
        nothing.write_text(json.dumps(submission({token: [] for token in reader.tokens}, ("lidar",))))
        assert every_figure(devkit.measure(nothing)[0]) == every_figure(fast.measure(nothing)[0])


AS_THE_DEVKIT = """
import numpy as np
from nuscenes.eval.common.utils import quaternion_yaw
from pyquaternion import Quaternion
from training.tasks.detection.metrics import _norm, _yaw_rad
random = np.random.default_rng(0)
rotation, vectors = random.normal(size=(500, 4)), random.normal(size=(500, 2))
assert _yaw_rad(rotation).tolist() == [quaternion_yaw(Quaternion(row)) for row in rotation]
assert _norm(vectors).tolist() == [np.linalg.norm(row) for row in vectors]
"""


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="of one kernel each")
@pytest.mark.parametrize("kernel", ["Prescott", "Haswell"])
def test_the_fast_metrics_round_as_the_devkit_whatever_blas_does(kernel: str) -> None:
    """With fused products BLAS rounds otherwise than numpy does: that of this machine may be without."""
    variables = os.environ | {"OPENBLAS_CORETYPE": kernel}
    subprocess.run([sys.executable, "-c", AS_THE_DEVKIT], env=variables, timeout=120, check=True)


@pytest.mark.parametrize("metrics", ["devkit", "fast"])
@pytest.mark.parametrize("what", ["a sample less", "another class", "too many boxes"])
def test_what_is_no_submission_is_refused(
    reader: NuScenesReader, nusc: NuScenes, tmp_path: Path, metrics: Metrics, what: str
) -> None:
    path = _noisy_submission(reader, tmp_path / "noisy.json", 1)
    content = json.loads(path.read_text())
    rows = content["results"][reader.tokens[1]]
    match what:
        case "a sample less":
            del content["results"][reader.tokens[1]]
        case "another class":
            rows[0]["detection_name"] = "tram"
        case "too many boxes":
            rows.extend(rows[:1] * 500)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="not a nuScenes submission for these samples"):
        OfficialEvaluation(nusc, reader.tokens, official_rules(51.2), metrics=metrics).measure(path)


def test_class_ranges_shrink_to_the_grid_and_say_so(reader: NuScenesReader, tmp_path: Path) -> None:
    assert detection_config(official_rules(25.6)).class_range["car"] == 25.6
    wide = detection_config(official_rules(99)).class_range
    assert detection_config(official_rules(35.0)).class_range == {
        name: min(range_m, 35) for name, range_m in wide.items()
    }
    assert official_rules(50.0).note == "ranges: official"
    results = _evaluate(Oracle(reader, ModelConfig()), reader, tmp_path, subsets=("lidar",))
    note = "ranges: min(official, 25.6 m)"
    assert results["lidar"].ranges == note
    aps = {round(ap, 6) for ap in results["lidar"].class_ap.values()}
    assert aps == {0.0, 1.0}  # one class has no box so near
    for name in ("subsets.json", "table.md", "table.csv", "lidar/metrics_summary.json"):
        assert note in (tmp_path / name).read_text()


OWN = {"vehicle.car": "van", "human.pedestrian.adult": "pedestrian", "movable_object.trafficcone": "bollard"}


def _own_truth(nusc: NuScenes, path: Path, name: str, becomes: str, rules: Rules) -> Any:
    """A noisy submission of one class, measured under its name of `becomes`: both ways of computing it agree."""
    content = json.loads(path.read_text())
    for token, rows in content["results"].items():
        kept = [row | {"detection_name": becomes} for row in rows if row["detection_name"] == name]
        content["results"][token] = kept
    own = path.with_name(f"{becomes}.json")
    own.write_text(json.dumps(content))
    return by_both(nusc, list(content["results"]), rules, own)


def test_a_class_has_the_same_figures_under_any_name(reader: NuScenesReader, nusc: NuScenes, tmp_path: Path) -> None:
    path = _noisy_submission(reader, tmp_path / "noisy.json")
    official = by_both(nusc, reader.tokens, official_rules(50.0), path)
    own = rules(("van",), {"vehicle.car": "van"}, 50.0, {})
    renamed = _own_truth(nusc, path, "car", "van", own)
    assert 0.05 < official.mean_dist_aps["car"] < 0.9
    assert renamed.mean_dist_aps == {"van": official.mean_dist_aps["car"]}
    for error in ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err"):
        assert renamed.get_label_tp("van", error) == official.get_label_tp("car", error)


def test_distances_and_ranges_of_ones_own_are_those_that_are_measured(
    reader: NuScenesReader, nusc: NuScenes, tmp_path: Path
) -> None:
    path = _noisy_submission(reader, tmp_path / "noisy.json")
    classes = {"vehicle.car": "van"}
    official = OfficialEvaluation(nusc, reader.tokens, official_rules(50.0)).measure(path)[0]
    wide = _own_truth(nusc, path, "car", "van", rules(("van",), classes, 50.0, {}, (1.0, 3.0), 1.0))
    assert wide.get_label_ap("van", 1.0) == official.get_label_ap("car", 1.0)
    assert wide.mean_ap == (wide.get_label_ap("van", 1.0) + wide.get_label_ap("van", 3.0)) / 2
    assert wide.get_label_tp("van", "trans_err") < official.get_label_tp("car", "trans_err")  # of 1 m, not of 2 m
    near = rules(("van",), classes, 50.0, {"van": 20.0}, (1.0, 3.0), 1.0)
    assert near.note == "ranges: van 20 m; AP over 1, 3 m; errors at 1 m"
    narrow = _own_truth(nusc, path, "car", "van", near)
    assert narrow.get_label_ap("van", 1.0) != wide.get_label_ap("van", 1.0)


@pytest.mark.parametrize("metrics", ["devkit", "fast"])
def test_classes_of_ones_own_have_every_figure_but_the_nuscenes_detection_score(
    tables_config: NuScenesConfig, tmp_path: Path, metrics: Metrics
) -> None:
    """A bollard has no attribute, so that its attribute error is not defined; nuScenes' pedestrian keeps what it has."""
    classes = ("van", "pedestrian", "bollard")
    config = tables_config.model_copy(update={"class_map": OWN, "index_dir": tmp_path / "index"})
    reader = NuScenesReader(config, "some", classes=classes, attributes=NUSCENES_ATTRIBUTES)
    results = _evaluate(Oracle(reader, _wide(classes=classes)), reader, tmp_path, metrics=metrics)
    full = results["camera+lidar+radar"]
    assert (full.nds, results["radar"].nds) == (None, None)
    assert full.mean_ap == pytest.approx(1.0, abs=1e-6)
    assert set(full.class_ap) == set(classes)
    assert 0.3 < results["radar"].mean_ap < 0.7
    assert full.errors["mAAE"] == 0.0
    summary = json.loads((tmp_path / "camera+lidar+radar/metrics_summary.json").read_text())
    assert math.isnan(summary["label_tp_errors"]["bollard"]["attr_err"])
    assert not math.isnan(summary["label_tp_errors"]["bollard"]["orient_err"])
    kept = read_subsets(tmp_path / "subsets.json")
    assert {name: (r.mean_ap, r.nds) for name, r in kept.items()} == {n: (r.mean_ap, None) for n, r in results.items()}
    note = "ranges: van 51.2 m, pedestrian 40 m, bollard 51.2 m"
    for name in ("subsets.json", "table.md", "table.csv", "lidar/metrics_summary.json"):
        text = (tmp_path / name).read_text()
        assert note in text
        assert "NDS" not in text
        assert "nd_score" not in text


def test_attributes_of_ones_own_are_held_against_the_truth(nusc: NuScenes, tmp_path: Path) -> None:
    """As the devkit compares them, whatever their names."""
    own = rules(("van",), {"vehicle.car": "van"}, 50.0, {})
    tables = copy.copy(nusc)
    tables.attribute = [row | {"name": row["name"].replace("vehicle", "own")} for row in nusc.attribute]
    tokens = [row["token"] for row in tables.sample]
    truth = OfficialEvaluation(tables, tokens, own)._truth
    rows = {
        token: [box.serialize() | {"detection_score": 0.5, "velocity": [0, 0]} for box in truth[token]]
        for token in tokens
    }
    assert {row["attribute_name"].split(".")[0] for of in rows.values() for row in of} == {"own"}
    path = tmp_path / "own.json"
    for wrong in (0, 1):
        for of in rows.values():
            for row in of:
                row["attribute_name"] = "own.unheard" if wrong else row["attribute_name"]
        path.write_text(json.dumps(submission(rows, ("lidar",))))
        assert by_both(tables, tokens, own, path).get_label_tp("van", "attr_err") == wrong


def test_the_nuscenes_detection_score_needs_all_that_is_nuscenes() -> None:
    assert EvaluationConfig().is_official(NUSCENES_CLASSES[:2])
    assert not EvaluationConfig().is_official(("car", "forklift"))
    assert not EvaluationConfig(class_range_m={"car": 20}).is_official(("car",))
    assert not EvaluationConfig(distances_m=(1, 2)).is_official(("car",))
    with pytest.raises(ValidationError, match=r"error_distance_m: expected one of distances_m \(1, 3\), got 2"):
        EvaluationConfig(distances_m=(1, 3))
    with pytest.raises(ValidationError, match=r"evaluation.best: expected mAP, got NDS"):
        RunConfig(evaluation=EvaluationConfig(best="NDS", distances_m=(1, 2)))
    with pytest.raises(ValidationError, match=r"evaluation.class_range_m names 'tram', expected some of model.classes"):
        RunConfig(evaluation=EvaluationConfig(class_range_m={"tram": 20}))


def test_categories_that_the_map_leads_to_nuscenes_classes_are_truth_of_the_official_evaluation(
    reader: NuScenesReader, nusc: NuScenes
) -> None:
    before = OfficialEvaluation(nusc, reader.tokens, official_rules(50.0))._truth
    led = OfficialEvaluation(nusc, reader.tokens, official_rules(50.0, {"vehicle.trailer": "truck"}))._truth
    names = [[box.detection_name for box in boxes.all] for boxes in (before, led)]
    assert names[1].count("truck") == names[0].count("truck") + names[0].count("trailer") > names[0].count("truck")


def test_no_perception_is_recorded_and_is_not_an_empty_road(reader: NuScenesReader, tmp_path: Path) -> None:
    model = Oracle(reader, _wide(), blind_to=("radar",))
    results = _evaluate(model, reader, tmp_path, subsets=("radar", "lidar"))
    assert results["radar"].no_perception == reader.tokens
    assert results["lidar"].no_perception == ()
    assert results["radar"].mean_ap == 0.0
    summary = json.loads((tmp_path / "radar" / "metrics_summary.json").read_text())
    assert summary["no_perception"] == list(reader.tokens)
    assert "no perception" in (tmp_path / "table.md").read_text()


def test_other_tasks_have_figures_of_every_subset_beside_the_official_ones(
    reader: NuScenesReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the samples that are measured, in their order, as plain numbers; what was not perceived is the task's to count."""

    class Counting(Oracle):
        def perceive_features(self, features: Mapping[str, BEVFeatures | None], batch_size: int) -> Perception:
            seen = super().perceive_features(features, batch_size)
            return dataclasses.replace(seen, outputs={**seen.outputs, "counts": Counts(torch.ones(batch_size, 2, 2))})

    model = Counting(reader, asked_for_counts(_wide(), monkeypatch), blind_to=("radar",))
    batches = [
        dataclasses.replace(batch, truth={"counts": torch.full((4, 2, 2), 10.0**i)})
        for i, batch in enumerate(Batch.of(reader, 4))
    ]
    _evaluate(model, reader, tmp_path, batches, subsets=("radar", "lidar"), limit=5)
    kept = read_subsets(tmp_path / "subsets.json")
    there = 4 * (4 * 1 + 10)
    assert {subset: kept[subset].tasks for subset in kept} == {
        "radar": {"counts": {"there": there, "blind": 5}}, "lidar": {"counts": {"there": there, "blind": 0}}
    }  # fmt: skip
    assert "| counts there | counts blind |" in (tmp_path / "table.md").read_text()


def test_a_model_without_radar_is_measured_on_what_it_has(reader: NuScenesReader, tmp_path: Path) -> None:
    results = _evaluate(Oracle(reader, _wide(modalities={"radar": None})), reader, tmp_path)
    assert tuple(results) == ("camera+lidar", "camera", "lidar")
    with pytest.raises(ValueError, match="expected some of the model's modalities camera, lidar"):
        _evaluate(Oracle(reader, _wide(modalities={"radar": None})), reader, tmp_path, subsets=("radar",))


def test_limit_measures_the_first_samples_only(reader: NuScenesReader, tmp_path: Path) -> None:
    results = _evaluate(Oracle(reader, _wide()), reader, tmp_path, subsets=("lidar",), limit=3, processes=1)
    assert results["lidar"].samples == 3
    assert results["lidar"].mean_ap == pytest.approx(1.0, abs=1e-6)


def test_a_loader_that_loses_samples_is_found_out(reader: NuScenesReader, tmp_path: Path) -> None:
    batches = list(Batch.of(reader, 2))[:-1]
    with pytest.raises(ValueError, match=r"4 of 6 samples, s4 is missing"):
        _evaluate(Oracle(reader, _wide()), reader, tmp_path, batches=batches)


def test_evaluation_leaves_the_model_in_the_mode_it_was_in(reader: NuScenesReader) -> None:
    model = Oracle(reader, _wide()).train()
    predict_subsets(model, Batch.of(reader, 6), ("lidar",))  # type: ignore[arg-type]
    assert model.training


def test_importing_the_configuration_does_not_load_the_devkit() -> None:
    code = "import sys, training.evaluation.subsets; assert not {'nuscenes', 'matplotlib', 'scipy', 'mlflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_config_takes_subsets_in_any_order_and_names_what_is_wrong() -> None:
    config = ModelConfig()
    assert possible_subsets(config, ("radar+camera", "lidar")) == ("camera+radar", "lidar")
    with pytest.raises(
        ValueError, match=r"expected some of the model's modalities camera, lidar, radar joined by .*'sonar'"
    ):
        possible_subsets(config, ("sonar",))
    with pytest.raises(ValidationError, match="expected some of the model's modalities"):
        RunConfig(evaluation=EvaluationConfig(subsets=("sonar",)))
    with pytest.raises(ValidationError):
        EvaluationConfig(max_boxes_per_sample=501)
    assert subset_name(["lidar", "camera"], KINDS) == "camera+lidar"


def test_of_many_modalities_all_together_each_alone_and_all_but_each_are_measured() -> None:
    assert every_subset(("a", "b")) == ("a+b", "a", "b")
    assert every_subset("abcd") == ("a+b+c+d", "a+b+c", "a+b+d", "a+c+d", "b+c+d", "a", "b", "c", "d")


def test_recall_matches_as_the_devkit_does(reader: NuScenesReader, nusc: NuScenes, tmp_path: Path) -> None:
    """Finds per class at 1 m equal the true positives that the devkit's `accumulate` counts on the same boxes."""
    official = OfficialEvaluation(nusc, reader.tokens, official_rules(1000.0))
    official.config.class_range = dict.fromkeys(NUSCENES_CLASSES, 1000)
    path = _noisy_submission(reader, tmp_path / "noisy.json")
    plain = DetectionEval(nusc, official.config, str(path), "some", str(tmp_path), verbose=False)
    for name in NUSCENES_CLASSES:
        data = accumulate(plain.gt_boxes, plain.pred_boxes, name, official.config.dist_fcn_callable, 1.0)
        truth_count, hits = 0, 0
        for token in reader.tokens:
            truth, found = plain.gt_boxes[token], plain.pred_boxes[token]
            matches = match(_devkit_boxes(found), _devkit_boxes(truth), 1.0)
            labels = torch.tensor([NUSCENES_CLASSES.index(box.detection_name) for box in found])
            hits += int(((matches >= 0) & (labels == NUSCENES_CLASSES.index(name))).sum())
            truth_count += sum(box.detection_name == name for box in truth)
        # The devkit keeps recall in steps of 1%, rounded down.
        assert data.max_recall == pytest.approx(hits / truth_count, abs=0.0101)


def _devkit_boxes(boxes: list[Any]) -> Boxes:
    return some_boxes(
        len(boxes),
        center_m=torch.tensor([b.translation for b in boxes], dtype=torch.float64).reshape(-1, 3),
        label=torch.tensor([NUSCENES_CLASSES.index(b.detection_name) for b in boxes], dtype=torch.long),
        score=torch.tensor([b.detection_score for b in boxes], dtype=torch.float64),
    )


def test_perfect_boxes_on_the_real_keyframe(real_keyframe: Path, tmp_path: Path) -> None:
    config = NuScenesConfig(
        root=real_keyframe, version="v1.0-mini", val_split="mini_train", index_dir=tmp_path / "index",
        radar_channels=("RADAR_FRONT",),
    )  # fmt: skip
    reader = NuScenesReader(config, "mini_train", classes=NUSCENES_CLASSES, attributes=NUSCENES_ATTRIBUTES)
    results = _evaluate(Oracle(reader, _wide()), reader, tmp_path, subsets=("camera+lidar+radar",))
    present = {NUSCENES_CLASSES[i] for i in reader.boxes(0).label[reader.num_points(0) > 0].tolist()}
    aps = results["camera+lidar+radar"].class_ap
    assert {name for name, ap in aps.items() if ap > 0.999} == present - _out_of_range(reader)


def _out_of_range(reader: NuScenesReader) -> set[str]:
    """Classes of which no box with points lies within the official range."""
    truth, ranges = reader.boxes(0), detection_config(official_rules(51.2)).class_range
    near = {
        NUSCENES_CLASSES[label]
        for label, center, points in zip(
            truth.label.tolist(), truth.center_m, reader.num_points(0).tolist(), strict=True
        )
        if points > 0 and float(center[:2].norm()) < ranges[NUSCENES_CLASSES[label]]
    }
    return set(NUSCENES_CLASSES) - near
