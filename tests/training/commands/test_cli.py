"""What the command says, and how it ends."""

import errno
import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("typer")

import torch
from typer.testing import CliRunner

import training.console.errors
import training.runs.run
from sensors.errors import MissingExtraError
from tests.small_nuscenes import SmallNuScenes
from training.commands.app import app
from training.loop.train import Outcome
from training.runs.files import RunFiles

RUNNER = CliRunner()
COMMANDS = (
    "simulate", "index", "config", "train", "evaluate", "robustness", "compare", "health", "show", "doctor", "demo",
)  # fmt: skip
SMALL = [
    "model.channels=16",
    "runner.device=cpu",
    "tracking.enabled=false",
    "data.workers=0",
    "epochs=1",
    "batch_size=2",
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(f"name: small\nruns_dir: {tmp_path / 'runs'}\n")
    return path


def test_help_answers_without_heavy_libraries() -> None:
    code = (
        "import sys; from training.commands.app import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'mlflow', 'ray', 'nuscenes', 'matplotlib', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for command in COMMANDS:
        assert command in done.stdout


def test_every_fault_of_a_configuration_is_one_line_and_the_code_is_2(config: Path) -> None:
    result = RUNNER.invoke(app, ["train", "--config", str(config), "optim.lrr=1", "epochs=0", "model.fuser.absent=nul"])
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert lines[0] == "error: epochs: expected greater than or equal to 1, got 0 (command line)"
    assert lines[1].startswith(
        "error: model.fuser.absent: expected 'null', 'zeros' or 'mask', got 'nul'; did you mean 'null'?"
    )
    assert lines[2].startswith("error: optim.lrr: unknown key, expected one of lr,")
    assert lines[2].endswith("did you mean optim.lr? (command line)")
    assert "Traceback" not in result.output


def test_config_prints_what_it_was_given_and_every_default(config: Path, tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["config", "--config", str(config), "optim.lr=1e-4"])
    assert result.exit_code == 0
    assert "lr: 0.0001" in result.stdout
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(result.stdout)
    assert RUNNER.invoke(app, ["config", "--config", str(resolved)]).stdout == result.stdout


def test_no_data_says_how_to_get_it(config: Path, tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["train", "--config", str(config), f"data.nuscenes.root={tmp_path / 'none'}"])
    assert result.exit_code == 2
    assert "nuscenes.org" in result.stderr
    assert "make demo" in result.stderr


def test_train_then_nothing_to_do_then_interrupted(
    config: Path, small_nuscenes: SmallNuScenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = small_nuscenes.config
    words = [f"data.nuscenes.{key}={getattr(data, key)}" for key in ("root", "version", "train_split", "val_split")]
    words += [f"data.nuscenes.{key}=[{','.join(getattr(data, key))}]" for key in ("camera_channels", "radar_channels")]
    command = ["train", "--config", str(config), *SMALL, *words]
    done = RUNNER.invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "the model is in" in done.stdout
    again = RUNNER.invoke(app, command)
    assert again.exit_code == 0
    assert "is complete: nothing to do" in again.stdout
    stopped = Outcome(step=1, total_steps=3, interrupted=True, checkpoint=Path("somewhere"))
    monkeypatch.setattr(training.runs.run, "run_training", lambda *_, **__: stopped)
    interrupted = RUNNER.invoke(app, [*command, "--fresh"])
    assert interrupted.exit_code == 130
    assert "stopped at step 1 of 3, saved in somewhere; the same command goes on" in interrupted.stderr


def test_index_says_what_is_in_a_data_set(config: Path, small_nuscenes: SmallNuScenes) -> None:
    data = small_nuscenes.config
    words = [f"data.nuscenes.root={data.root}", f"data.nuscenes.version={data.version}"]
    words += ["data.nuscenes.camera_channels=[CAM_FRONT]", "data.nuscenes.radar_channels=[RADAR_FRONT]"]
    words += ["data.nuscenes.train_split=small_train", "data.nuscenes.val_split=small_val"]
    result = RUNNER.invoke(app, ["index", "--config", str(config), *words])
    assert result.exit_code == 0, result.output
    assert "data_id" in result.stdout
    assert "CAM_FRONT" in result.stdout
    assert result.stdout.endswith(
        "training sees 3 of 4 boxes in small_train (car 3); left out: 1 with fewer points than data.min_points=1\n"
    )


def test_a_training_on_nothing_is_refused_before_it_begins(config: Path, small_nuscenes: SmallNuScenes) -> None:
    data = small_nuscenes.config
    words = [f"data.nuscenes.root={data.root}", f"data.nuscenes.version={data.version}", "data.min_points=23"]
    words += ["data.nuscenes.camera_channels=[CAM_FRONT]", "data.nuscenes.radar_channels=[RADAR_FRONT]"]
    words += ["data.nuscenes.train_split=small_train", "data.nuscenes.val_split=small_val", "data.balance=cbgs"]
    result = RUNNER.invoke(app, ["train", "--config", str(config), *SMALL, *words])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert (
        "training would see 0 of 4 boxes in small_train; left out: 4 with fewer points than data.min_points=23" in line
    )


def test_index_says_what_is_there_and_then_which_channel_is_not(config: Path, small_nuscenes: SmallNuScenes) -> None:
    data = small_nuscenes.config
    words = [f"data.nuscenes.root={data.root}", f"data.nuscenes.version={data.version}"]
    result = RUNNER.invoke(app, ["index", "--config", str(config), *words, "data.nuscenes.radar_channels=[]"])
    assert result.exit_code == 2
    assert "keyframes_per_channel" in result.stdout
    (line,) = result.stderr.splitlines()
    assert "data.nuscenes.camera_channels: " in line
    assert "CAM_FRONT_LEFT (the nearest is CAM_FRONT)" in line


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.nuscenes.train_split=train", "split 'train': no scene of it is in .* small_train"),
        ("data.nuscenes.val_split=val", "split 'val': no scene of it is in .* small_train"),
        (
            "data.nuscenes.class_map={animal: barrier}",
            "training would see 0 of 4 boxes in small_train; left out: 4 of no category that data.nuscenes.class_map names "
            r"\(vehicle.car 3, human.pedestrian.child 1\). Categories there: vehicle",
        ),
    ],
)
def test_index_ends_with_an_error_where_nothing_can_be_trained(
    config: Path, small_nuscenes: SmallNuScenes, setting: str, words: str
) -> None:
    data = small_nuscenes.config
    ours = [f"root={data.root}", f"version={data.version}", "train_split=small_train", "val_split=small_val"]
    ours += ["camera_channels=[CAM_FRONT]", "radar_channels=[RADAR_FRONT]"]
    result = RUNNER.invoke(app, ["index", "--config", str(config), *(f"data.nuscenes.{w}" for w in ours), setting])
    assert result.exit_code == 2
    assert "boxes_per_class" in result.stdout  # what is in it is said in any case
    (line,) = result.stderr.splitlines()
    assert re.search(words, line), line


def test_the_version_is_that_of_the_package() -> None:
    result = RUNNER.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.strip() == f"robustbev {importlib.metadata.version('robustbev')}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    "words",
    [
        ["train", "--config", "{config}", "runner.device=cuda"],
        ["train", "--config", "{config}", "runner.device=cuda", "runner.workers=1"],
        ["robustness", "--checkpoint", "nowhere", "device=cuda"],
    ],
    ids=" ".join,
)
def test_a_gpu_that_is_not_there_is_one_line(config: Path, words: list[str]) -> None:
    result = RUNNER.invoke(app, [word.format(config=config) for word in words])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: device: expected one that torch can use here (cpu), got 'cuda': ")


def test_our_own_defects_keep_their_traceback_and_faulty_input_does_not() -> None:
    import json

    def ours() -> None:
        raise ValueError("width must be even")

    def theirs() -> None:
        json.loads("{")

    def missing() -> None:
        raise MissingExtraError('pip install "robustbev[train]"')

    def pressed() -> None:
        raise KeyboardInterrupt

    def asked() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "history.jsonl")

    before = signal.getsignal(signal.SIGTERM)
    for command, code in ((ours, 2), (missing, 3), (pressed, 130), (asked, 130), (full, 2)):
        with pytest.raises(SystemExit) as ended:
            training.console.errors.tells_errors(command)()
        assert ended.value.code == code
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(json.JSONDecodeError):
        training.console.errors.tells_errors(theirs)()


def test_debug_shows_the_traceback(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(training.console.errors.DEBUG_VARIABLE, "")  # restored afterwards
    result = RUNNER.invoke(app, ["--debug", "config", "--config", str(config), "epochs=0"])
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "ConfigError"


def test_show_wants_to_know_what(config: Path) -> None:
    result = RUNNER.invoke(app, ["show"])
    assert result.exit_code == 2
    assert "--config" in result.stderr


def test_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["evaluate", "--checkpoint", str(tmp_path)])
    assert result.exit_code == 2
    assert f"{tmp_path}: no checkpoint in it" in result.stderr


def test_simulate_takes_options_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import training.runs.demo

    seen = []
    monkeypatch.setattr(training.runs.demo, "write_drives", lambda *given: seen.append(given))
    result = RUNNER.invoke(app, ["simulate", "--scenes-train", "3", "--out", str(tmp_path), "scenes_val=1"])
    assert result.exit_code == 0, result.output
    ((drives, out, workers),) = seen
    assert (drives.scenes_train, drives.scenes_val, out, workers) == (3, 1, tmp_path, None)
    assert RUNNER.invoke(app, ["simulate", "scene_train=3"]).exit_code == 2


def test_clearing_a_run_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    files.checkpoints.mkdir()
    files.status.write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    files.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
