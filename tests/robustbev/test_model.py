"""The model promises: any subset of its sensors, absence that nothing stale can break, and checkpoints that come back whole."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import pickle
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

from bev.detection.boxes import Boxes
from robustbev import (
    CheckpointError,
    ModelConfig,
    Perception,
    PerceptionModel,
    gated_state,
    load,
    load_weights,
    save,
)
from sensors.batch import SensorBatch
from sensors.frames import KINDS
from sensors.modality import MovingFeatures
from tests.tiny_model import random_sensors, tiny_config, tiny_model

SUBSETS = [s for n in range(1, 4) for s in itertools.combinations(KINDS, n)]
GARBAGE = [math.nan, math.inf, -math.inf, 1e30]
FUSERS: list[dict[str, Any]] = [
    {"fuser": fuser}
    for fuser in (
        {"kind": "channel_weights", "absent": "mask"},
        {"heads": 2, "neighbourhood": 3},
        {"kind": "latent", "heads": 2, "latents": 3},
        {"kind": "joint", "heads": 2},
        {"kind": "gated", "heads": 2, "adds": ["radar"]},
        {"kind": "gated", "heads": 2, "adds": ["camera", "lidar"], "base": "concat", "neighbourhood": 3},
    )
]


@pytest.fixture(scope="module")
def model() -> PerceptionModel:
    return tiny_model()


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def assert_same(got: Perception, expected: Perception) -> None:
    """To the last bit."""
    for part, other in ((got.boxes, expected.boxes), (got.fused, expected.fused)):
        for field in fields(part):
            assert torch.equal(getattr(part, field.name), getattr(other, field.name)), field.name
    assert torch.equal(got.perceived, expected.perceived)
    assert all(getattr(got.boxes, field.name).isfinite().all() for field in fields(Boxes))


def without(batch: SensorBatch, modality: str, sample: int | None = None) -> SensorBatch:
    """`batch` with the modality's `present` off, in one sample or in all."""
    part = batch.part(modality)
    present = part.present.clone()
    present[slice(None) if sample is None else sample] = False
    return batch.having(**{modality: replace(part, present=present)})


def stale(batch: SensorBatch, modality: str, sample: int, garbage: float) -> SensorBatch:
    """`batch` with everything but `present` of one sample's modality overwritten."""
    part = batch.part(modality)
    changed = {}
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, torch.Tensor) and field.name != "present":
            value = value.clone()
            value[sample] = garbage if value.is_floating_point() else 127
            changed[field.name] = value
    return batch.having(**{modality: replace(part, **changed)})


# The model and its subsets


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fuser": {"kind": "concat", "absent": "zeros"}},
        {"fuser": {"kind": "mean", "absent": "mask"}},
        {"fuser": {"heads": 4, "neighbourhood": 3, "absent": "mask"}},
        *FUSERS,
        {"camera": None},
        {"lidar": None, "radar": None},
        {"lidar": {"pillar_channels": 8, "sparse_blocks": 1}},
        {"classes": ("car",), "attributes": (), "tasks": {"detection": {"nms_radius_m": {}}}},
    ],
    ids=str,
)
def test_every_configuration_perceives(changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    perception = model(random_sensors().only(model.config.modalities))
    count = perception.boxes.label.shape[1]
    assert perception.boxes.center_m.shape == (2, count, 3)
    assert perception.modalities == tuple(model.config.modalities)
    assert perception.fused.attention.shape == (2, len(model.config.modalities), 16, 16)
    assert perception.perceived.tolist() == [True, True]
    assert (perception.boxes.score[:, :-1] >= perception.boxes.score[:, 1:]).all()
    assert perception.boxes.label.max() < len(model.config.classes)


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_one_encoding_serves_every_subset(model: PerceptionModel, subset: tuple[str, ...]) -> None:
    batch = random_sensors()
    encoded = model.encode(batch)
    shared = model.perceive_features({k: f if k in subset else None for k, f in encoded.items()}, 2)
    assert_same(shared, model(batch.only(subset)))


@pytest.mark.parametrize("modality", ["lidar", "radar"])
def test_measured_motion_reaches_the_boxes_where_its_sensor_sees_and_nowhere_else(modality: str) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.detection.head.motion_of_all.weight.fill_(0.1)
    encoded = model.encode(random_sensors())
    sensor = encoded[modality]
    assert isinstance(sensor, MovingFeatures)
    blind = sensor.coverage.clone()
    blind[:, :8] = 0.0

    def velocities(motion: Tensor, coverage: Tensor) -> Tensor:
        seen = {**encoded, modality: replace(sensor, motion=motion, coverage=coverage)}
        return model.perceive_features(seen, 2).boxes.velocity_mps

    assert not torch.equal(velocities(sensor.motion + 1.0, sensor.coverage), velocities(sensor.motion, sensor.coverage))
    spoiled = sensor.motion.clone()
    spoiled[:, :, :8] = torch.nan
    assert torch.equal(velocities(spoiled, blind), velocities(sensor.motion, blind))
    gone = velocities(sensor.motion, torch.zeros_like(blind))
    assert torch.equal(gone, model.perceive_features(encoded | {modality: None}, 2).boxes.velocity_mps)


@pytest.mark.parametrize("modality", KINDS)
def test_none_and_present_false_are_one_and_the_same(model: PerceptionModel, modality: str) -> None:
    batch = random_sensors()
    others = tuple(name for name in KINDS if name != modality)
    assert_same(model(without(batch, modality)), model(batch.only(others)))


@pytest.mark.parametrize("modality", KINDS)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_an_absent_sensor_left_in_its_buffers_changes_no_bit(
    model: PerceptionModel, modality: str, garbage: float
) -> None:
    batch = without(random_sensors(), modality, sample=1)
    assert_same(model(stale(batch, modality, 1, garbage)), model(batch))


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_single_absent_camera_changes_no_bit_either(model: PerceptionModel, garbage: float) -> None:
    batch = random_sensors()
    cameras = batch.part("camera")
    assert cameras is not None
    cameras.present[0, 3] = False
    expected = model(batch)
    for tensor in (cameras.images, cameras.intrinsics, cameras.reference_T_camera):
        tensor[0, 3] = garbage if tensor.is_floating_point() else 127
    assert_same(model(batch), expected)


@pytest.mark.parametrize("changes", FUSERS, ids=str)
@pytest.mark.parametrize("modality", KINDS)
def test_every_fuser_knows_absence_and_hears_nothing_stale(changes: dict[str, Any], modality: str) -> None:
    model, batch = tiny_model(**changes), random_sensors()
    others = tuple(name for name in KINDS if name != modality)
    assert_same(model(without(batch, modality)), model(batch.only(others)))
    partly = without(batch, modality, sample=1)
    assert_same(model(stale(partly, modality, 1, math.nan)), model(partly))
    nothing = model(SensorBatch({}, 2))
    assert nothing.perceived.tolist() == [False, False]
    assert not nothing.boxes.score.any()


@pytest.mark.parametrize("changes", FUSERS, ids=str)
def test_every_fuser_learns_in_bfloat16_and_comes_back_from_a_checkpoint(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    model, batch = tiny_model(**changes).train(), random_sensors()
    kept = torch.tensor([[True, False, True], [False, True, True]])
    with torch.enable_grad():
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model.training_outputs(batch, [kept])
        torch.stack([logits.heatmap.float().square().mean() for logits in outputs.logits["detection"]]).sum().backward()
    gradients = [p.grad for p in model.fuser.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)
    assert any(g.any() for g in gradients)
    model.eval()
    assert_same(load(save(model, tmp_path))(batch), model(batch))


def test_a_sensor_added_to_a_trained_model_changes_nothing_until_it_has_learned() -> None:
    """The whole model: camera and LiDAR first, then the radar behind closed gates, with the weights of the first."""
    base = tiny_model(radar=None)
    model = tiny_model(1, fuser={"kind": "gated", "heads": 2, "adds": ["radar"]})
    state = gated_state(base.state_dict())
    load_weights(model, state, source="base", may_lack=("encoders.radar", "auxiliary.radar", "fuser.added"))
    batch = random_sensors()
    expected = base(batch.only(base.config.modalities))
    for subset in (KINDS, ("camera", "lidar")):
        got = model(batch.only(subset))
        assert torch.equal(got.fused.features, expected.fused.features)
        for field in fields(Boxes):
            assert torch.equal(getattr(got.boxes, field.name), getattr(expected.boxes, field.name)), field.name
    torch.nn.init.constant_(model.fuser.added.attention_gate, 1.0)  # type: ignore[arg-type,union-attr]
    assert not torch.equal(model(batch).fused.features, expected.fused.features)
    assert torch.equal(model(batch.only(("camera", "lidar"))).boxes.score, expected.boxes.score)


def test_gated_weights_are_renamed_once() -> None:
    base = tiny_model(radar=None).state_dict()
    state = gated_state(base)
    assert len(state) == len(base)
    assert "fuser.base.tokens.null.camera" in state
    assert not any(name.startswith("fuser.") and not name.startswith("fuser.base.") for name in state)
    assert gated_state(state) == state


def test_a_lost_sensor_of_one_sample_is_no_loss_of_the_other(model: PerceptionModel) -> None:
    batch = random_sensors()
    for modality in KINDS:
        got, whole = model(without(batch, modality, sample=1)), model(batch)
        assert torch.equal(got.fused.features[0], whole.fused.features[0])
        assert not torch.equal(got.fused.features[1], whole.fused.features[1])


def test_missing_is_not_empty(model: PerceptionModel) -> None:
    """No LiDAR is a null embedding; a LiDAR that sees nothing is what the encoder says of an empty cell."""
    batch = random_sensors()
    lidar = batch.part("lidar")
    assert lidar is not None
    empty = model(batch.having(lidar=replace(lidar, count=torch.zeros(2, dtype=torch.long))))
    absent = model(batch.having(lidar=None))
    assert not torch.allclose(empty.fused.features, absent.fused.features, atol=1e-3)
    assert not torch.equal(empty.boxes.score, absent.boxes.score)
    only_empty = model(SensorBatch({"lidar": replace(lidar, count=torch.zeros(2, dtype=torch.long))}, 2))
    assert only_empty.perceived.all(), "an empty road is a perception"


def test_no_sensor_at_all_is_no_perception_and_not_all_clear(model: PerceptionModel) -> None:
    nothing = model(SensorBatch({}, 3))
    assert nothing.perceived.tolist() == [False] * 3
    assert nothing.boxes.score.shape[0] == 3
    assert not nothing.boxes.score.any()
    assert not nothing.fused.coverage.any()
    batch = random_sensors()
    for modality in KINDS:
        batch = without(batch, modality, sample=0)
    mixed = model(batch)
    assert mixed.perceived.tolist() == [False, True]
    assert not mixed.boxes.score[0].any()
    assert mixed.boxes.score[1].any()


@torch.no_grad()
def test_what_does_not_sense_is_listened_to_and_is_no_perception(model: PerceptionModel) -> None:
    """As of a map: it helps those who see, and when all of them are gone, nothing is known."""
    with_map, batch = tiny_model(lidar={"pillar_channels": 8, "senses": False}), random_sensors(2)
    for names in (("lidar",), ()):
        seen = with_map(batch.only(names))
        assert not seen.perceived.any()
        assert not seen.boxes.score.any()
        assert torch.equal(seen.fused.features, model(batch.only(names)).fused.features)
    assert_same(with_map(batch), model(batch))


def test_a_model_without_a_modality_tells_of_those_that_it_has() -> None:
    model = tiny_model(lidar=None)
    assert tuple(model.config.modalities) == ("camera", "radar")
    assert set(model.encode(random_sensors().only(model.config.modalities))) == {"camera", "radar"}


def test_an_absent_encoder_is_not_run(model: PerceptionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise AssertionError("the LiDAR encoder ran without a LiDAR")

    monkeypatch.setattr(model.encoder("lidar"), "forward", explode)
    model(random_sensors().only(("camera", "radar")))


def test_a_batch_moves_with_everything_in_it() -> None:
    moved = random_sensors().to("meta")
    assert moved.part("camera") is not None
    assert moved.part("camera").images.device.type == "meta"
    assert moved.part("lidar") is not None
    assert moved.part("lidar").sectors.device.type == "meta"
    assert moved.batch_size == 2


def test_dropped_in_training_is_as_absent() -> None:
    """What modality dropout withholds in training is what absence is at run time: same heatmap, to the bit."""
    model = tiny_model()
    batch = random_sensors()
    kept = torch.tensor([[True, False, True], [False, True, False]])
    trained = model.training_outputs(batch, [kept]).logits["detection"][0].heatmap
    for sample, subset in enumerate((("camera", "radar"), ("lidar",))):
        absent = model.training_outputs(batch.only(subset)).logits["detection"][0].heatmap
        assert torch.equal(trained[sample], absent[sample])
    assert set(model.training_outputs(batch, [kept]).auxiliary) == set(KINDS)


def test_the_spconv_backend_computes_what_the_dense_one_does(tmp_path: Path) -> None:
    pytest.importorskip("spconv")
    dense = tiny_model(lidar={"pillar_channels": 8, "sparse_blocks": 2})
    sparse = tiny_model(1, lidar={"pillar_channels": 8, "sparse_blocks": 2, "backend": "spconv"})
    sparse.load_state_dict(dense.state_dict())
    batch = random_sensors()
    got, expected = sparse(batch), dense(batch)
    torch.testing.assert_close(got.fused.features, expected.fused.features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.boxes.score, expected.boxes.score, rtol=1e-4, atol=1e-5)
    assert_same(load(save(sparse, tmp_path))(batch), got)


# Configuration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": {"camera": None, "lidar": None, "radar": None}}, "a model needs at least one"),
        (
            {"modalities": {"camera": None, "lidar": {"senses": False}, "radar": {"senses": False}}},
            "at least one that senses, got senses: false of lidar, radar",
        ),
        ({"classes": ()}, "classes: expected at least one"),
        ({"channels": 18}, "channels must be a multiple of 4"),
        ({"grid": {"cell_m": 0.7}}, "whole number of cells"),
        ({"grid": {"z_min_m": 4.0, "z_max_m": 4.0}}, "z_min_m must be < z_max_m"),
        ({"modalities": {"camera": {"image_height_px": 60}}}, "image_height_px must be a multiple of patch_px"),
        ({"modalities": {"camera": {"patch_px": 8}}}, "stem conv needs patch_px 16"),
        (
            {"modalities": {"camera": {"stem": "patch", "feature_stride_px": 5}}},
            "feature_stride_px must divide patch_px",
        ),
        ({"modalities": {"camera": {"dim": 30}}}, "dim must be a multiple of heads"),
        ({"modalities": {"camera": {"depth_bins": {"min_m": 5, "max_m": 1}}}}, "depth bins"),
        ({"modalities": {"lidar": {"backend": "spconv"}}}, "sparse_blocks >= 1"),
        ({"tasks": {"detection": {"nms_radius_m": {"cart": 1.0}}}}, "'cart', which is not among the classes"),
        ({"tasks": {"detection": None}}, "asked of every model, and cannot be null"),
        ({"tasks": {"lanes": {}}}, "Input should be 'detection'"),
        ({"tasks": {"a/b": {"kind": "detection"}}}, "should match pattern"),
        ({"tasks": {"training": {"kind": "detection"}}}, "'training' has another meaning already"),
        ({"tasks": {"boxes": {"kind": "detection"}}}, r"expected one of kind detection.*got detection, boxes"),
        ({"channel": 16}, "channel"),
        ({"fuser": {"kind": "sum"}}, "cross_attention"),
        ({"fuser": {"kind": "concat", "absent": "mask"}}, "concat"),
        ({"fuser": {"kind": "gated"}}, r"name them in adds, as in adds: \[radar\]"),
        ({"fuser": {"adds": ["radar"]}}, "adds is of kind gated alone, and kind is cross_attention"),
        ({"fuser": {"kind": "gated", "adds": ["sonar"]}}, r"modalities \(camera, lidar, radar\), not all.*got sonar"),
        ({"fuser": {"kind": "gated", "adds": KINDS}}, "not all of them"),
        ({"fuser": {"kind": "gated", "adds": ["radar"], "base": "concat", "absent": "mask"}}, "concat cannot mask"),
    ],
)
def test_an_impossible_configuration_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        tiny_config(**changes)


def test_a_configuration_survives_json() -> None:
    config = tiny_config(lidar=None)
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


# Checkpoints


def test_a_saved_model_comes_back_bit_for_bit(model: PerceptionModel, tmp_path: Path) -> None:
    directory = save(model, tmp_path / "new" / "checkpoint")
    assert sorted(file.name for file in directory.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    batch = random_sensors()
    expected = model(batch)
    for path in (directory, directory / "model.safetensors", str(directory)):
        loaded = load(path)
        assert not loaded.training
        assert loaded.config == model.config
        assert_same(loaded(batch), expected)


def test_saving_again_replaces_what_was_there(model: PerceptionModel, tmp_path: Path) -> None:
    save(tiny_model(7, lidar=None), tmp_path)
    save(model, tmp_path)
    assert load(tmp_path).config == model.config


@pytest.fixture
def checkpoint(model: PerceptionModel, tmp_path: Path) -> Path:
    return save(model, tmp_path / "checkpoint")


TINY = tiny_config().model_dump(mode="json")


def edit_config(checkpoint: Path, **changes: Any) -> None:
    file = checkpoint / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


class Bomb:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, 0.99])
def test_truncated_weights_are_refused(checkpoint: Path, kept: float) -> None:
    file = checkpoint / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no readable safetensors file .* copied whole"):
        load(checkpoint)


def test_a_pickle_named_safetensors_is_refused_and_not_run(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(CheckpointError, match="no readable safetensors file"):
        load(checkpoint)
    torch.save({"weights": torch.zeros(3)}, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match="no readable safetensors file"):
        load(checkpoint)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [("config.json", "config.json: not found"), ("model.safetensors", "no checkpoint in it")],
)
def test_a_missing_file_is_named(checkpoint: Path, name: str, words: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(
        CheckpointError, match=rf"{words}; expected a directory with model\.safetensors and config\.json"
    ):
        load(checkpoint)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.*not found"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 32}, r"another architecture: .*expected .*, got .*; and \d+ more\. Use the config"),
        ({"modalities": dict(list(TINY["modalities"].items())[:2])}, r"unexpected auxiliary\.radar.*; and \d+ more"),
        ({"auxiliary_heads": 3}, r"config\.json: .*auxiliary_heads"),
        ({"channels": "many"}, r"config\.json: .*channels"),
        ({"fuser": {"kind": "os.system"}}, r"config\.json: .*fuser\.kind"),
    ],
)
def test_weights_and_configuration_must_belong_together(checkpoint: Path, changes: Any, message: str) -> None:
    edit_config(checkpoint, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(checkpoint)


def test_a_missing_and_a_misshapen_tensor_are_named(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    state = safetensors.torch.load_file(file)
    del state["fuser.learned_query"]
    state["fuser.out.bias"] = torch.zeros(3)
    safetensors.torch.save_file(state, file)
    with pytest.raises(
        CheckpointError, match=r"missing fuser.learned_query \[16\]; fuser.out.bias: expected \[16\], got \[3\]"
    ):
        load(checkpoint)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"grid": 3}', "\x00\xff"])
def test_a_config_that_is_none_is_refused(checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json: no valid model configuration"):
        load(checkpoint)


def test_a_monstrous_config_beside_small_weights_is_refused_before_it_fills_the_memory(checkpoint: Path) -> None:
    for channels, words in ((1 << 17, "another architecture"), (1 << 24, "expected at most .* cells x channels")):
        edit_config(checkpoint, channels=channels)
        with pytest.raises(CheckpointError, match=words):
            load(checkpoint)


def test_a_full_disk_leaves_the_old_checkpoint_and_no_litter(
    model: PerceptionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(model, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tiny_model(3), tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_building_draws_from_torchs_seed_alone() -> None:
    first, second, other = tiny_model(0), tiny_model(0), tiny_model(1)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
    assert not torch.equal(first.state_dict()["fuser.out.weight"], other.state_dict()["fuser.out.weight"])
