"""`robustbev replay` from a log to files: the same bytes at any speed, exit codes that say what happened, no litter."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mcap.reader import make_reader
from mcap.writer import Writer
from typer.testing import CliRunner, Result

from robustbev import PerceptionModel, save
from robustbev.results.result import TickResult
from sensors.camera.images import DecodeSize
from sensors.frames import KINDS
from sensors.logs.messages import LogMessage
from sensors.logs.write import write_log
from sensors.replay.faults.messages import alter_messages, unused
from sensors.replay.faults.script import parse_faults
from sensors.replay.ticks import ticks
from tests.sensors.replay.drive import CHANNELS, CONFIG, MAPPING, MODALITY, START_NS, MemoryLog, drive
from tests.small_nuscenes import SmallNuScenes
from tests.tiny_model import tiny_model
from training.commands.app import app
from training.data.dataset import DataConfig, preparation
from training.replay.play import Perceiver, replay

SUBSETS = [s for n in range(1, 4) for s in itertools.combinations(KINDS, n)]
SECONDS = 1.6
WINDOWS = {"start": "..0.45s", "middle": "0.55s..1.05s", "end": "1.05s..", "flickering": ""}


@pytest.fixture(scope="module")
def model() -> PerceptionModel:
    return tiny_model()


@pytest.fixture(scope="module")
def checkpoint(model: PerceptionModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save(model, path)
    return path


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "drive.mcap"
    write_log(MemoryLog(drive(0.5)), path, "foxglove")
    return path


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["replay", *map(str, words)])


def said(result: Result) -> list[str]:
    return [line for line in result.output.splitlines() if line.startswith("error:")]


def given_to_the_model(modality: str, result: TickResult) -> bool:
    return all(s.given for channel, s in result.tick.sensors.items() if MODALITY[channel] == modality)


def expected(modality: str, when: str, time_s: float) -> bool | None:
    """Whether a modality lost so is there at a time; None within a tick of a change, and a tolerance after it."""
    edges = {"start": (-9, 0.45), "middle": (0.55, 1.05), "end": (1.05, 9)}
    spans = [edges[when]] if when in edges else [(0.8 * k + 0.4, 0.8 * k + 0.8) for k in range(3)]
    if any(
        edge - 0.1 <= time_s <= edge + 0.26 for span in spans for edge in span
    ):  # tolerance 0.15 s and a tick of 0.1
        return None
    return not any(start <= time_s < end for start, end in spans)


@pytest.mark.parametrize("when", WINDOWS)
@pytest.mark.parametrize("lost", SUBSETS, ids="+".join)
def test_every_subset_lost_at_any_time_leaves_one_sound_result_a_tick(
    model: PerceptionModel, lost: tuple[str, ...], when: str
) -> None:
    action = "flicker 0.8s" if when == "flickering" else "drop"
    faults = parse_faults(f"{modality}: {action} {WINDOWS[when]}".strip() for modality in lost)
    touched = Counter[object]()

    def altered(messages: Iterator[LogMessage]) -> Iterator[LogMessage]:
        return alter_messages(messages, faults, MAPPING, START_NS, touched=touched)  # type: ignore[arg-type]

    data = DataConfig.model_validate({
        "nuscenes": {
            "camera_channels": CHANNELS.cameras, "lidar_channels": CHANNELS.lidars, "radar_channels": CHANNELS.radars,
        }
    })  # fmt: skip
    found = ticks(
        MemoryLog(drive(SECONDS)), MAPPING, CHANNELS, CONFIG, alter_messages=altered, decode=DecodeSize(32, 64)
    )
    results = list(
        replay(
            found,
            Perceiver(model, preparation(data, model.config)),
        )
    )
    assert [r.tick.index for r in results] == list(range(round(SECONDS * 10) + 1))
    assert not unused(faults, touched)  # type: ignore[arg-type]
    checked = Counter[bool]()
    for r in results:
        tick, since_s = r.tick, (r.tick.time_us - START_NS // 1000) * 1e-6
        assert 0 <= tick.ready_us - tick.time_us <= CONFIG.timeout_s * 1e6
        for values in (r.boxes.center_m, r.boxes.size_m, r.boxes.score, r.boxes.velocity_mps, r.boxes.yaw_rad):
            assert values.isfinite().all()
        assert torch.from_numpy(r.attention).isfinite().all()
        there = {modality: given_to_the_model(modality, r) for modality in KINDS}
        assert r.perceived == any(there.values())
        for modality in KINDS:
            should = True if modality not in lost else expected(modality, when, since_s)
            if should is not None:
                checked[should] += 1
                assert there[modality] == should, f"{modality} at {since_s:.1f} s"
    assert checked[False] > 0
    assert checked[True] > 0


def test_the_same_bytes_twice_and_at_any_speed(log: Path, checkpoint: Path, tmp_path: Path) -> None:
    options: list[tuple[str, ...]] = [(), (), ("--rate", "1"), ("--rate", "3")]
    for n, more in enumerate(options):
        folder = tmp_path / str(n)
        out = [word for name in ("seen.mcap", "seen.ros2.mcap", "seen.mp4") for word in ("--out", folder / name)]
        done = run(log, "--checkpoint", checkpoint, *out, "--write-golden", folder / "golden", *more)
        assert done.exit_code == 0, done.output
    first = {p.relative_to(tmp_path / "0"): p.read_bytes() for p in (tmp_path / "0").rglob("*") if p.is_file()}
    assert len(first) == 4
    for n in range(1, len(options)):
        for name, content in first.items():
            assert (tmp_path / str(n) / name).read_bytes() == content, f"{name} of run {n}"


def test_golden_outputs_tell_the_first_difference(log: Path, checkpoint: Path, tmp_path: Path) -> None:
    golden = tmp_path / "golden"
    assert run(log, "--checkpoint", checkpoint, "--write-golden", golden).exit_code == 0
    assert run(log, "--checkpoint", checkpoint, "--golden", golden).exit_code == 0
    other = run(log, "--checkpoint", checkpoint, "--golden", golden, "--fault", "LIDAR_TOP: drop 0.2s..")
    assert other.exit_code == 5
    assert "tick 2" in other.output or "tick 3" in other.output


def test_what_it_writes_says_what_it_came_of(log: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = [tmp_path / "seen.mcap", tmp_path / "seen.ros2.mcap"]
    words: list[str | Path] = ["--out", out[0], "--out", out[1], "--layout", tmp_path / "layout.json"]
    words += ["--fault", "LIDAR_TOP: drop 0.2s.."]
    assert run(log, "timeout_s=0.05", "--checkpoint", checkpoint, *words).exit_code == 0
    for path in out:
        with path.open("rb") as file:
            reader = make_reader(file)
            record = next(one.metadata for one in reader.iter_metadata() if one.name == "robustbev")
            topics = {channel.topic for _, channel, _ in reader.iter_messages()}
        weights = (checkpoint / "model.safetensors").read_bytes()
        assert record["model_sha256"] == hashlib.sha256(weights).hexdigest()
        assert (record["checkpoint"], record["step"], record["log"]) == (checkpoint.name, "unknown", "drive.mcap")
        assert record["faults"] == "LIDAR_TOP: drop 0.2s.."
        assert json.loads(record["settings"])["timeout_s"] == 0.05
        if path == out[0]:
            layout = json.loads((tmp_path / "layout.json").read_text())
            assert set(layout["configById"]["3D!scene"]["topics"]) - topics == {"/truth"}  # which this log lacks


def test_a_cut_log_is_replayed_as_far_as_it_goes_and_says_so(log: Path, checkpoint: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(log.read_bytes()[:-4000])
    with pytest.warns(UserWarning, match="byte"):
        done = run(cut, "--checkpoint", checkpoint, "--out", tmp_path / "seen.mcap", "--summary", tmp_path / "s.json")
    assert done.exit_code == 4, done.output
    (summary,) = json.loads((tmp_path / "s.json").read_text())
    assert summary["truncated_at_byte"] is not None
    assert summary["ticks"] > 0
    assert (tmp_path / "seen.mcap").is_file()


def test_scripts_are_replayed_one_after_the_other(log: Path, checkpoint: Path, tmp_path: Path) -> None:
    script = tmp_path / "faults.yaml"
    script.write_text("scripts:\n  clean: []\n  no LiDAR: ['LIDAR_TOP: drop']\n  fog: ['camera: fog-3']\n")
    out = tmp_path / "out"
    done = run(log, "--checkpoint", checkpoint, "--script", script, "--out", out / "seen.mcap")
    assert done.exit_code == 0, done.output
    assert {path.name for path in out.iterdir()} == {"seen_clean.mcap", "seen_no-LiDAR.mcap", "seen_fog.mcap"}


def test_a_scene_of_a_data_set_is_a_log_with_truth(
    small_nuscenes: SmallNuScenes, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "submission.json"
    done = run(
        small_nuscenes.root,
        "--scene",
        "scene-1",
        "--checkpoint",
        checkpoint,
        "--out",
        out,
        "--out",
        tmp_path / "seen.mcap",
    )
    assert done.exit_code == 0, done.output
    assert "mAP" in done.output
    with (tmp_path / "seen.mcap").open("rb") as file:
        assert "/truth" in {channel.topic for _, channel, _ in make_reader(file).iter_messages()}
    assert len(json.loads(out.read_text())["results"]) == 3  # every sample of the scene is answered
    other = run(small_nuscenes.root, "--scene", "scene-7", "--checkpoint", checkpoint)
    assert other.exit_code == 2
    assert "scene-0, scene-1" in said(other)[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{log}", "--fault", "LIDAR_TOPP: drop"], "LIDAR_TOP"),
        (["{log}", "--fault", "LIDAR_TOP: explode"], "explode"),
        (["{log}", "--fault", "LIDAR_TOP: drop 9s..5s"], "9s..5s"),
        (["{log}", "--out", "{tmp}/seen.bag"], "ends in"),
        (["{log}", "--out", "{tmp}/a.json"], "nuScenes"),
        (["{log}", "--golden", "{tmp}/none"], "none"),
        (["{log}", "--mapping", "{tmp}/none.yaml"], "none.yaml"),
        (["{log}", "--mapping", "{tmp}/wrong.yaml"], "/lidar_top"),
        (["{log}", "--scene", "x"], "--scene"),
        (["{log}", "--health", "act", "--monitor", "{tmp}/none.json"], "none.json"),
        (["{log}", "tick_hz=0"], "tick_hz"),
        (["{log}", "tik_hz=2"], "tick_hz"),
        (["{tmp}/none.mcap"], "none.mcap"),
        (["{tmp}/empty.mcap"], "empty"),
        (["{tmp}/text.mcap"], "text.mcap"),
        (["{tmp}"], "expected"),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing_behind(
    words: list[str], message: str, log: Path, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.mcap").write_bytes(b"")
    (tmp_path / "text.mcap").write_text("this is no log")
    (tmp_path / "wrong.yaml").write_text("lidars: {LIDAR_TOP: {points: /not_there}}\n")
    before = sorted(tmp_path.rglob("*"))
    out = [] if "--out" in words else ["--out", str(tmp_path / "seen.mcap")]
    done = run(*(word.format(log=log, tmp=tmp_path) for word in words), "--checkpoint", checkpoint, *out)
    assert done.exit_code == 2, done.output
    assert len(said(done)) == 1, done.output
    assert message in said(done)[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_log_without_calibration_is_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    log = tmp_path / "bare.mcap"
    points = [message for message in drive(0.5) if message.topic in ("/lidar_top", "/radar_front")]
    write_log(MemoryLog(points), log, "ros2")
    done = run(log, "--checkpoint", checkpoint, "--out", tmp_path / "seen.mcap")
    assert done.exit_code == 2, done.output
    assert "no transform between 'base_link' and 'LIDAR_TOP'" in said(done)[0]
    assert [path.name for path in tmp_path.iterdir()] == ["bare.mcap"]


def changed(log: Path, out: Path, change: Callable[[str, str, str], tuple[str, str] | None]) -> Path:
    """The MCAP file with other (type, encoding of messages) by topic, type and encoding; None leaves a topic out."""
    with log.open("rb") as source, out.open("wb") as target:
        writer: Any = Writer(target)
        writer.start(profile="", library="test")
        channels: dict[int, int] = {}
        for schema, channel, message in make_reader(source).iter_messages():
            assert schema is not None
            if (now := change(channel.topic, schema.name, channel.message_encoding)) is None:
                continue
            if channel.id not in channels:
                number = writer.register_schema(now[0], schema.encoding, schema.data)
                channels[channel.id] = writer.register_channel(channel.topic, now[1], number)
            writer.add_message(channels[channel.id], message.log_time, message.data, message.publish_time)
        writer.finish()
    return out


def test_a_sensor_that_is_there_and_cannot_be_read_is_named_with_its_reason(
    log: Path, checkpoint: Path, tmp_path: Path
) -> None:
    other = changed(log, tmp_path / "log.mcap", lambda topic, t, e: (t, "flatbuffer" if topic == "/lidar_top" else e))
    done = run(other, "--checkpoint", checkpoint, "--summary", tmp_path / "s.json")
    why = "expected foxglove.PointCloud in protobuf or json, got the encoding 'flatbuffer'. Convert the log"
    assert done.exit_code == 4, done.output
    assert f"/lidar_top: cannot be read: {why}" in done.output.splitlines()
    (summary,) = json.loads((tmp_path / "s.json").read_text())
    assert summary["sensors"]["LIDAR_TOP"] == {"malformed": summary["ticks"]}
    assert summary["first_trouble"]["LIDAR_TOP"] == f"malformed: /lidar_top: {why}"
    assert summary["malformed_reasons"] == {"/lidar_top": why}
    everything = changed(log, tmp_path / "all.mcap", lambda _, t, e: (t, "flatbuffer"))
    refused = run(everything, "--checkpoint", checkpoint)
    assert refused.exit_code == 2
    assert "nothing in it that can be read looks like a camera, a LiDAR or a radar" in said(refused)[0]
    assert any("/lidar_top" in line and why in line for line in said(refused)[1:])


def test_a_log_whose_ego_does_not_move_says_so_at_the_start_and_at_the_end(checkpoint: Path, tmp_path: Path) -> None:
    still = tmp_path / "still.mcap"
    write_log(MemoryLog([message for message in drive(0.5) if message.topic != "/tf"]), still, "ros2")
    done = run(still, "--checkpoint", checkpoint)
    assert done.exit_code == 0, done.output
    assert "mapping: global_frame null, as no transform in the log moves the ego: none is compensated" in done.output
    assert re.search(r"(\d+) of \1 ticks have no ego pose, .*: no transform in the log moves the ego\. ", done.output)
    mapping = tmp_path / "m.yaml"
    mapping.write_text("lidars: {LIDAR_TOP: {points: /lidar_top}}\nglobal_frame: null\n")
    assert "ego pose" not in run(still, "--checkpoint", checkpoint, "--mapping", mapping).output
