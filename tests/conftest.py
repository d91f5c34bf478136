"""Fixtures that several rooms share."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings

from sensors.nuscenes.config import NuScenesConfig
from tests.shared import use_folder
from tests.small_nuscenes import SmallNuScenes, write_small_nuscenes

# Kernels for GPUs run on a CPU by Triton's interpreter, which has to be asked for before anybody imports Triton.
os.environ.setdefault("TRITON_INTERPRET", "1")

# How long an example takes depends on what else the machine does; what it shows does not.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


# Those that take longest, longest first.
LONGEST = (
    "robustbev/export/test_artifacts.py", "training/runs/cluster/test_runner.py", "robustbev/export/test_parts.py",
    "test_docs.py",
    "training/runs/test_real_keyframe.py", "sensors/replay/test_ticks.py", "robustbev/export/test_export.py", "test_wheel.py",
    "training/comparison/test_compare.py", "training/runs/test_run.py", "training/robustness/test_tasks.py",
    "robustbev/test_kernels.py", "test_public_api.py", "gpu/test_gpu.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then others with slow tests: the processes that share the files out then end together."""
    order = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (order.get(item.path, len(order)), item.path not in slow))
    # Python need not look through the million objects of libraries and tests again and again, nor stop at every 700 new ones.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="session", autouse=True)
def _shared_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of pytest-xdist's workers each has a folder of its own, beside the others'."""
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    shared.mkdir(exist_ok=True)
    use_folder(shared)


@pytest.fixture(scope="session")
def real_keyframe() -> Path:
    """Data root of the one real nuScenes keyframe, which is not part of the repository."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "real" / "nuscenes-keyframe"
    root = Path(os.environ.get("ROBUSTBEV_REAL_KEYFRAME") or default)
    if not (root / "v1.0-mini" / "sample.json").is_file():
        pytest.skip(
            "no real nuScenes keyframe: expected it at ../shared/real/nuscenes-keyframe, or where the variable "
            f"ROBUSTBEV_REAL_KEYFRAME points ({root})"
        )
    return root


@pytest.fixture(scope="session")
def real_config(real_keyframe: Path, tmp_path_factory: pytest.TempPathFactory) -> NuScenesConfig:
    """The real keyframe as a data set: one sample, in split mini_train. Its folder is read-only; the index lies elsewhere."""
    return NuScenesConfig(
        root=real_keyframe,
        version="v1.0-mini",
        train_split="mini_train",
        val_split="mini_train",
        radar_channels=("RADAR_FRONT",),
        index_dir=tmp_path_factory.mktemp("real-index"),
    )


@pytest.fixture(scope="session")
def small_nuscenes(tmp_path_factory: pytest.TempPathFactory) -> SmallNuScenes:
    """A data set in nuScenes format of two scenes, written by hand. Shared: do not change its files."""
    return write_small_nuscenes(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database without any run. To be copied: making one takes seconds."""
    from training.tracking import mlflow_store

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow_store.load_mlflow()
    mlflow_store.open_store(f"sqlite:///{file}")
    return file
