"""Writes a whole data set, scene by scene in worker processes, and moves it into place when it is complete."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from sensors.documents import read_json
from sensors.files import whole_folder
from sensors.nuscenes.rows import Rows
from sensors.processes import run_each
from sensors.simulation.config import SimulationConfig
from sensors.simulation.sensing import rig
from sensors.simulation.tables import common_rows

MARKER = "simulation.json"
_REVISION = 1
"""Raise whenever the code comes to write other bytes for the same config, so that old data sets are not taken for new ones."""


def simulate(
    config: SimulationConfig,
    out_dir: str | os.PathLike[str],
    *,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a data set in nuScenes format to `out_dir`, whole or not at all.

    Where the same config has been written already, returns at once. `progress(scenes_done, scenes)` is called in this
    process after each scene. The bytes depend on the config alone, not on `workers`; with `workers=1` everything runs in this
    process. Worker processes are spawned, so a script needs the usual `if __name__ == "__main__":`.

    Raises ValueError for workers < 1, and FileExistsError where `out_dir` holds anything else.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    out = Path(out_dir).resolve()
    if _already_there(config, out):
        return
    with whole_folder(out) as partial:
        _write(config, partial, workers, progress)


def _already_there(config: SimulationConfig, out: Path) -> bool:
    if not out.exists():
        return False
    if not out.is_dir():
        raise FileExistsError(f"{out} is a file; name a folder for the simulated data set")
    if not any(out.iterdir()):
        return False
    marker = out / MARKER
    if not marker.is_file():
        raise FileExistsError(
            f"{out} holds something other than a simulated data set; name another folder or empty this one"
        )
    try:
        same = read_json(marker)["digest"] == _digest(config)
    except (ValueError, LookupError, TypeError):  # a marker that is none
        same = False
    if same:
        return True
    raise FileExistsError(
        f"{out} holds a simulated data set of another config or code version; "
        "name another folder, or delete this one to write it anew"
    )


def _digest(config: SimulationConfig) -> str:
    return f"{_REVISION}-{config.digest()}"


def _write(config: SimulationConfig, root: Path, workers: int, progress: Callable[[int, int], None] | None) -> None:
    for mount in rig.SENSORS:
        for folder in ("samples", "sweeps"):
            (root / folder / mount.channel).mkdir(parents=True)
    (root / "maps").mkdir()
    tables = root / config.version
    tables.mkdir()
    splits = config.scene_names()
    names = [name for scenes in splits.values() for name in scenes]
    rows = common_rows(config.seed, width_px=config.image_width_px, height_px=config.image_height_px)
    results: dict[str, Rows] = {}
    for done, (name, scene_rows) in enumerate(_scenes(config, names, root, workers), start=1):
        results[name] = scene_rows
        if progress is not None:
            progress(done, len(names))
    for name in names:
        rows.extend(results[name])
    rows.write(tables, splits)
    marker = {"digest": _digest(config), "config": config.model_dump(mode="json")}
    (root / MARKER).write_text(json.dumps(marker, indent=1))


def _scenes(config: SimulationConfig, names: list[str], root: Path, workers: int) -> Iterator[tuple[str, Rows]]:
    """Rows of each scene, in the order in which they come to be done."""
    jobs = [(config, name, index, root) for index, name in enumerate(names)]
    if workers == 1:
        for job in jobs:
            yield _one_scene(*job)
        return
    for _, rows in run_each(_one_scene, jobs, workers, "spawn"):
        yield rows


def _one_scene(config: SimulationConfig, name: str, index: int, root: Path) -> tuple[str, Rows]:
    import cv2

    from sensors.simulation.recorder import SceneRecorder

    cv2.setNumThreads(1)  # the scenes run side by side already
    return name, SceneRecorder(config, name, index, root).record()
