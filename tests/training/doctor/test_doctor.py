"""`robustbev doctor` tells where packages come from, what this machine can run, and what to do about what it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import training.doctor.examine
from robustbev.precision import Arithmetic, gpu_arithmetic
from sensors.extras import EXTRAS
from sensors.nuscenes.index import build_index
from tests.small_nuscenes import SmallNuScenes, write_small_nuscenes
from training.doctor.config import check_config, parameters
from training.doctor.examine import examine, main, package_origins, shadowed
from training.doctor.machine import GIB, Answer, Compiler, Gpu, Machine, abilities, look

GPU = Gpu("Some GPU", 80 * GIB, 79 * GIB, gpu_arithmetic("Some GPU", (9, 0)))
OLD_GPU = gpu_arithmetic("Old GPU", (7, 5))
OLD_CPU = Arithmetic("cpu", bfloat16=False, float16=False, reason="this CPU is old")
BARE = Machine(
    cores=4, threads=4, arithmetic=OLD_CPU, memory_bytes=16 * GIB, available_bytes=12 * GIB, disk_bytes=100 * GIB, gpus=(),
    compiler=Compiler("g++", None), providers=("CPUExecutionProvider",),
)  # fmt: skip


def nothing_missing(extra: str) -> list[str]:
    return []


def by_name(answers: Sequence[Answer]) -> dict[str, Answer]:
    return {answer.what: answer for answer in answers}


def test_a_sound_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 0
    out = capsys.readouterr().out
    for word in ("Python 3", "torch", "CPU cores", "Extras", "configs/tiny.yaml", "share one root", "C++ compiler"):
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
    assert main() == 1
    assert "warning: sensors" in capsys.readouterr().err


def test_a_missing_extra_says_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training.doctor.examine, "missing", lambda extra: ["spconv"] if extra == "spconv" else [])
    main()
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
from training.doctor.examine import main
code = main([])
config = main(["--config", "run.yaml"])
sys.exit(10 * code + config)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3]
    )
    assert done.returncode == 2, done.stderr
    assert "train tiny      no   without ray" in done.stdout
    assert "perceive        yes" in done.stdout
    assert "onnxruntime's providers: not installed" in done.stdout
    assert (
        'error: robustbev doctor --config needs yaml, which is not installed: pip install "robustbev[cli]"'
        in done.stderr
    )


def test_what_runs_here_is_yes_or_no_with_the_reason() -> None:
    all_there = by_name(abilities(BARE, nothing_missing))
    assert {name for name, answer in all_there.items() if not answer.able} == {"train nuscenes"}
    assert "no GPU" in all_there["train nuscenes"].said
    assert by_name(abilities(replace(BARE, gpus=(GPU,)), nothing_missing))["train nuscenes"].able
    bare = by_name(abilities(replace(BARE, providers=None), lambda extra: list(EXTRAS[extra])))
    assert {name for name, answer in bare.items() if answer.able} == {"perceive", "export pt2", "export aoti"}
    assert 'pip install "robustbev[export]"' in bare["export onnx"].said
    assert 'pip install "robustbev[train,data,cli]"' in bare["train tiny"].said
    mute = replace(BARE, compiler=Compiler("g++", "no g++: install it"))
    assert by_name(abilities(mute, nothing_missing))["export aoti"] == Answer(
        "export aoti", False, "no g++: install it"
    )


def test_gpus_are_told_with_their_memory() -> None:
    lines = replace(BARE, gpus=(GPU, replace(GPU, name="Old GPU", arithmetic=OLD_GPU))).lines()
    at = lines.index("GPU 0: Some GPU, 80.0 GiB (79.0 GiB of it free)")
    assert "training on it is in bfloat16: Some GPU of compute capability 9.0" in lines[at + 1]
    assert lines[at + 2].startswith("GPU 1: Old GPU")
    assert "training on it is in float16: Old GPU of compute capability 7.5" in lines[at + 3]
    assert "training on the CPU is in float32: this CPU is old" in lines


def test_the_compiler_is_tried_and_not_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "g++-of-another-age")
    assert "no g++-of-another-age: install g++" in str(look().compiler.fault)
    broken = tmp_path / "broken-g++"
    broken.write_text("#!/bin/sh\necho 'try.cpp:2: fatal error: omp.h: No such file' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert "cannot compile with OpenMP and Python.h: try.cpp:2: fatal error: omp.h" in str(look().compiler.fault)


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
    first = by_name(check_config(config, [], BARE))
    assert all(answer.able for answer in first.values())
    assert "not built yet" in first["index"].said
    build_index(data.config)
    assert (
        "3 keyframes in small_train, 3 keyframes in small_val" in by_name(check_config(config, [], BARE))["index"].said
    )
    assert by_name(check_config(config, [], BARE))["truth"].said.startswith("3 of 4 boxes in small_train (car 3)")
    assert first["modalities"].said == "1 camera, 1 lidar, 1 radar"
    assert examine(config) == 0
    assert f"{config}: can run here" in capsys.readouterr().out


def test_what_is_odd_in_the_tables_is_told_and_no_obstacle(config: Path, data: SmallNuScenes) -> None:
    path = data.root / data.config.version / "sample_annotation.json"
    rows = json.loads(path.read_text())
    rows[0]["translation"][0] -= 3000.0
    path.write_text(json.dumps(rows))
    build_index(data.config)
    told = by_name(check_config(config, [], BARE))["tables"]
    assert told.able
    assert told.said.endswith(
        "row car-0-0: prev and next give 6002 m/s; so 2 of 8 boxes move faster than 60 m/s, and their velocity counts as unknown"
    )


@pytest.mark.parametrize(
    ("settings", "machine", "what", "words"),
    [
        (["data.nuscenes.root=nowhere"], BARE, "data", "data root nowhere (data.nuscenes.root) does not exist"),
        (["data.nuscenes.radar_channels=[RADAR_FRNT]"], BARE, "index", "RADAR_FRNT (the nearest is RADAR_FRONT)"),
        (["data.nuscenes.val_split=other"], BARE, "index", "split 'other': no scene of it"),
        (["data.min_points=23"], BARE, "truth", "0 of 4 boxes in small_train; left out: 4 with fewer points"),
        (["data.nuscenes.radar_channels=[]"], BARE, "modalities", "set model.modalities.radar=null, or name its channels"),
        (["camera_weights=vit.safetensors"], BARE, "modalities", "camera_weights: no file vit.safetensors"),
        (["runner.device=cuda"], BARE, "device", "set runner.device=cpu"),
        (["runner.device=cuda", "runner.workers=2"], replace(BARE, gpus=(GPU,)), "device", "set runner.workers=1"),
        ([], replace(BARE, available_bytes=2**20), "memory", "M parameters"),
    ],
)  # fmt: skip
def test_what_a_configuration_lacks_is_said_with_what_to_do(
    config: Path, data: SmallNuScenes, settings: list[str], machine: Machine, what: str, words: str
) -> None:
    build_index(data.config)
    answers = by_name(check_config(config, [*settings, "step.precision=bfloat16"], machine))
    assert [name for name, answer in answers.items() if not answer.able] == [what]
    assert words in answers[what].said


@pytest.mark.parametrize(
    ("settings", "machine", "words"),
    [
        ([], BARE, "in float32: this CPU is old"),
        (["step.precision=bfloat16"], BARE, "in bfloat16: as configured; bfloat16 is slow here"),
        (["runner.device=cuda"], replace(BARE, gpus=(GPU,)), "1 of 1 GPUs, in bfloat16: Some GPU"),
        (["runner.device=cuda"], replace(BARE, gpus=(GPU, replace(GPU, arithmetic=OLD_GPU))), "in float16: Old GPU"),
    ],
)
def test_what_it_computes_in_is_told_with_the_reason(
    config: Path, settings: list[str], machine: Machine, words: str
) -> None:
    answer = by_name(check_config(config, settings, machine))["device"]
    assert answer.able
    assert words in answer.said


def test_more_processes_than_cores_are_slow_and_no_obstacle(config: Path) -> None:
    answer = by_name(check_config(config, ["data.workers=16"], BARE))["workers"]
    assert answer.able
    assert "on 4 cores: more than there are cores; data.workers=4 may be faster" in answer.said


@pytest.mark.parametrize(
    ("free", "workers", "able"), [(4096, 2, False), (4096, 0, True), (64 << 20, 2, True), (None, 2, True)]
)
def test_too_little_shared_memory_is_in_the_way_of_loader_processes_alone(
    config: Path, free: int | None, workers: int, able: bool
) -> None:
    machine = replace(BARE, shared_memory_bytes=free)
    answer = by_name(check_config(config, [f"data.workers={workers}"], machine))["workers"]
    assert answer.able == able
    assert able or "/dev/shm has 0.0 MiB free, and 1 MiB are needed" in answer.said
    told = [line for line in machine.lines() if "/dev/shm" in line]
    assert len(told) == (free is not None)


def test_parameters_are_counted_without_making_them() -> None:
    import robustbev

    model = robustbev.ModelConfig(channels=16, backbone=robustbev.BackboneConfig(widths=(16, 16)))
    assert parameters(model) == sum(p.numel() for p in robustbev.build(model).parameters())


def test_a_faulty_configuration_is_told_and_the_code_is_2(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(config), "epochz=3"]) == 2
    assert "did you mean epochs?" in capsys.readouterr().err
    assert main(["--config", "nowhere.yaml"]) == 2
    with pytest.raises(SystemExit):
        main(["epochs=3"])
    assert "say with --config which" in capsys.readouterr().err


def test_one_that_cannot_run_ends_with_1(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert examine(config, ["data.nuscenes.root=nowhere"]) == 1
    assert f"{config}: cannot run here" in capsys.readouterr().out
