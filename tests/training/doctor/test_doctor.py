"""`robustbev doctor` tells where packages come from, what this machine can run, and what to do about what it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("typer")

from typer.testing import CliRunner, Result

import robustbev.precision
import training.doctor.answer
import training.doctor.config
import training.doctor.examine
from robustbev.precision import Arithmetic
from sensors.extras import EXTRAS
from sensors.nuscenes.index import build_index
from tests.small_nuscenes import SmallNuScenes, write_small_nuscenes
from training.commands.app import app
from training.doctor.answer import Answer
from training.doctor.config import check_config
from training.doctor.examine import abilities, examine, package_origins, shadowed

OLD_CPU = Arithmetic("cpu", bfloat16=False, float16=False, reason="this CPU is old")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(robustbev.precision, "_cpu_arithmetic", lambda: OLD_CPU)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one and an old one."""
    names = {0: "Some GPU", 1: "Old GPU"}

    def index(device: torch.device | int) -> int:
        return device if isinstance(device, int) else device.index or 0

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda d: names[index(d)])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d: [(9, 0), (7, 5)][index(d)])
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda i: SimpleNamespace(name=names[i], total_memory=80 * 2**30)
    )


def without_libraries(monkeypatch: pytest.MonkeyPatch, absent: Callable[[str], Sequence[str]]) -> None:
    for module in (training.doctor.answer, training.doctor.examine):
        monkeypatch.setattr(module, "missing", absent)


def by_name(answers: Sequence[Answer]) -> dict[str, Answer]:
    return {answer.what: answer for answer in answers}


def test_a_sound_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert examine() == 0
    out = capsys.readouterr().out
    for word in (
        "Python 3",
        "torch",
        "CPU cores",
        "Extras",
        "configs/tiny.yaml",
        "share one root",
        "free on this disk",
    ):
        assert word in out
    for extra in EXTRAS:
        assert f"\n  {extra} " in out
    assert set(package_origins()) == {"robustbev", "training", "sensors", "bev", "fusion"}


def test_a_package_of_another_root_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    origins = package_origins() | {"sensors": Path("/opt/ros/lib/python3/sensors/__init__.py")}
    (warning,) = shadowed(origins)
    assert warning.startswith("sensors is imported from /opt/ros/lib/python3/sensors/__init__.py, but robustbev from")
    monkeypatch.setattr(training.doctor.examine, "package_origins", lambda: origins)
    assert examine() == 1
    assert "warning: sensors" in capsys.readouterr().err


def test_a_missing_extra_says_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_libraries(monkeypatch, lambda extra: ["spconv"] if extra == "spconv" else [])
    examine()
    assert 'without spconv: pip install "robustbev[spconv]"' in capsys.readouterr().out


def test_it_runs_on_the_base_installation_alone(tmp_path: Path) -> None:
    """In a process in which none of the extras can be found."""
    hidden = sorted({name for names in EXTRAS.values() for name in names} | {"pandas", "PIL"})
    code = f"""
import importlib.util, sys
hidden, real = set({hidden!r}), importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in hidden else real(name, package)
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Nothing())
from pathlib import Path
from training.doctor.examine import examine
assert examine() == 0
examine(Path("run.yaml"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3]
    )
    assert done.returncode == 1, done.stderr
    assert "train tiny      no   without ray" in done.stdout
    assert "perceive        yes" in done.stdout
    assert "onnxruntime's providers: not installed" in done.stdout
    assert 'robustbev doctor --config needs yaml, which is not installed: pip install "robustbev[cli]"' in done.stderr


@pytest.mark.usefixtures("no_gpu")
def test_what_runs_here_is_yes_or_no_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    without_libraries(monkeypatch, lambda extra: [])
    all_there = by_name(abilities())
    assert {name for name, answer in all_there.items() if not answer.able} == {"train nuscenes"}
    assert "no GPU" in all_there["train nuscenes"].reason
    monkeypatch.setenv("CXX", "g++-of-another-age")
    assert "no g++-of-another-age: install g++" in by_name(abilities())["export aoti"].reason
    without_libraries(monkeypatch, lambda extra: EXTRAS[extra])
    bare = by_name(abilities())
    assert {name for name, answer in bare.items() if answer.able} == {"perceive", "export pt2"}
    assert 'pip install "robustbev[export]"' in bare["export onnx"].reason
    assert 'pip install "robustbev[train,data,cli]"' in bare["train tiny"].reason


@pytest.mark.usefixtures("gpus")
def test_gpus_are_told_with_their_memory_and_what_training_computes_in(capsys: pytest.CaptureFixture[str]) -> None:
    examine()
    out = capsys.readouterr().out
    assert "GPU 0: Some GPU, 80.0 GiB\n    training on it is in bfloat16: Some GPU of compute capability 9.0" in out
    assert "GPU 1: Old GPU, 80.0 GiB\n    training on it is in float16: Old GPU of compute capability 7.5" in out
    assert by_name(abilities())["train nuscenes"].able


# --- a configuration -----------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> SmallNuScenes:
    return write_small_nuscenes(tmp_path / "data")


@pytest.fixture
def config(data: SmallNuScenes, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"runs_dir: {tmp_path / 'runs'}\nrunner: {{device: cpu}}\n"
        f"data:\n  workers: 1\n  nuscenes: {{root: {data.root}, version: {data.config.version}, train_split: small_train, "
        "val_split: small_val, camera_channels: [CAM_FRONT], radar_channels: [RADAR_FRONT]}\n"
    )
    return path


def test_a_configuration_that_can_run(config: Path, data: SmallNuScenes, capsys: pytest.CaptureFixture[str]) -> None:
    first = by_name(check_config(config, []))
    assert all(answer.able for answer in first.values())
    assert "not built yet" in first["index"].reason
    build_index(data.config)
    assert "3 keyframes in small_train, 3 keyframes in small_val" in by_name(check_config(config, []))["index"].reason
    assert by_name(check_config(config, []))["truth"].reason.startswith("3 of 4 boxes in small_train (car 3)")
    assert first["modalities"].reason == "1 camera, 1 lidar, 1 radar"
    assert examine(config) == 0
    assert f"{config}: can run here" in capsys.readouterr().out


def test_a_rig_is_drawn_and_what_is_odd_about_it_told(config: Path, data: SmallNuScenes, tmp_path: Path) -> None:
    """The small data set's vehicle drives, which moves no mount."""
    png, path = tmp_path / "rig.png", data.root / data.config.version / "calibrated_sensor.json"
    asked = ["doctor", "--config", str(config), "--rig", str(png)]
    sound = CliRunner().invoke(app, asked)
    assert sound.exit_code == 0
    assert "yes  CAM_FRONT, LIDAR_TOP, RADAR_FRONT of sample" in sound.stdout
    assert sound.stdout.count("  rig ") == 1
    before = png.read_bytes()
    assert before.startswith(b"\x89PNG")
    rows = json.loads(path.read_text())
    (camera,) = [row for row in rows if row["camera_intrinsic"]]
    camera["rotation"] = [0.5, -0.5, -0.5, 0.5]
    path.write_text(json.dumps(rows))
    odd = CliRunner().invoke(app, asked)
    assert odd.exit_code == 1
    assert "no   CAM_FRONT: looks to azimuth" in odd.stdout
    assert png.read_bytes() != before
    assert "say with --config which" in CliRunner().invoke(app, ["doctor", "--rig", str(png)]).stderr
    assert "ends in .png, got rig.jpg" in CliRunner().invoke(app, [*asked[:-1], "rig.jpg"]).stderr


def test_what_is_odd_in_the_tables_is_told_and_no_obstacle(config: Path, data: SmallNuScenes) -> None:
    path = data.root / data.config.version / "sample_annotation.json"
    rows = json.loads(path.read_text())
    rows[0]["translation"][0] -= 3000.0
    path.write_text(json.dumps(rows))
    build_index(data.config)
    told = by_name(check_config(config, []))["tables"]
    assert told.able
    assert told.reason.endswith(
        "row car-0-0: prev and next give 6002 m/s; so 2 of 8 boxes move faster than 60 m/s, and their velocity counts as unknown"
    )


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("settings", "what", "words"),
    [
        (["data.nuscenes.root=nowhere"], "data", "data root nowhere (data.nuscenes.root) does not exist"),
        (["data.nuscenes.radar_channels=[RADAR_FRNT]"], "index", "RADAR_FRNT (the nearest is RADAR_FRONT)"),
        (["data.nuscenes.val_split=other"], "index", "split 'other': no scene of it"),
        (["data.min_points=23"], "truth", "0 of 4 boxes in small_train; left out: 4 with fewer points"),
        (["data.nuscenes.radar_channels=[]"], "modalities", "set model.modalities.radar=null, or name its channels"),
        (["camera_weights=vit.safetensors"], "modalities", "camera_weights: no file vit.safetensors"),
        (["runner.device=cuda"], "device", "set runner.device=cpu"),
    ],
)  # fmt: skip
def test_what_a_configuration_lacks_is_said_with_what_to_do(
    config: Path, data: SmallNuScenes, settings: list[str], what: str, words: str
) -> None:
    build_index(data.config)
    answers = by_name(check_config(config, [*settings, "step.precision=bfloat16"]))
    assert [name for name, answer in answers.items() if not answer.able] == [what]
    assert words in answers[what].reason


@pytest.mark.usefixtures("no_gpu")
def test_what_it_computes_in_is_told_with_the_reason(config: Path) -> None:
    def device(*settings: str) -> str:
        return by_name(check_config(config, settings))["device"].reason

    assert "in float32: this CPU is old" in device()
    assert "in bfloat16: as configured; bfloat16 is slow here" in device("step.precision=bfloat16")


@pytest.mark.usefixtures("gpus")
def test_every_worker_needs_a_gpu(config: Path) -> None:
    answers = [by_name(check_config(config, ["runner.device=cuda", f"runner.workers={n}"]))["device"] for n in (1, 3)]
    assert answers[0].able
    assert answers[0].reason.startswith("1 of 2 GPUs, in bfloat16: Some GPU")
    assert (
        answers[1].reason
        == "runner.workers=3 need a GPU each, and there are 2: set runner.workers=2, or runner.address to a Ray cluster"
    )


@pytest.mark.parametrize(
    ("free", "workers", "able"), [(4096, 2, False), (4096, 0, True), (64 << 20, 2, True), (None, 2, True)]
)
def test_too_little_shared_memory_is_in_the_way_of_loader_processes_alone(
    config: Path, monkeypatch: pytest.MonkeyPatch, free: int | None, workers: int, able: bool
) -> None:
    monkeypatch.setattr(training.doctor.config, "shared_memory_bytes", lambda: free)
    answer = by_name(check_config(config, [f"data.workers={workers}"]))["workers"]
    assert answer.able == able
    assert able or "/dev/shm has 0.0 MiB free, and 1 MiB are needed" in answer.reason


def test_a_faulty_configuration_is_told_and_the_code_is_2(config: Path) -> None:
    def doctor(*words: object) -> Result:
        return CliRunner().invoke(app, ["doctor", *map(str, words)])

    faulty = doctor("--config", config, "epochz=3")
    assert (faulty.exit_code, "did you mean epochs?" in faulty.stderr) == (2, True)
    assert doctor("--config", "nowhere.yaml").exit_code == 2
    assert "say with --config which" in doctor("epochs=3").stderr


def test_one_that_cannot_run_ends_with_1(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert examine(config, ["data.nuscenes.root=nowhere"]) == 1
    assert f"{config}: cannot run here" in capsys.readouterr().out
