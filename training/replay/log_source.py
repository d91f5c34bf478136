"""Opens what a user calls a log: a file, a bag, or a scene of a data set in nuScenes format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sensors.logs.log import Log, LogError
from sensors.logs.nuscenes.log import NuScenesLog, scene_names
from sensors.logs.open import open_log
from sensors.nuscenes.config import NuScenesConfig


@dataclass(frozen=True)
class LogSource:
    """A log, and the data set that it comes from where it is one."""

    log: Log
    nuscenes: NuScenesConfig | None = None


def open_source(path: Path, scene: str | None = None, nuscenes: NuScenesConfig | None = None) -> LogSource:
    """Open a log.

    Args:
        path: a log, or the root of a data set in nuScenes format (a folder of tables in it).
        scene: which of the data set's scenes.
        nuscenes: how to read a data set (channels, classes); root and version are taken from what lies at `path`.

    Raises:
        LogError: nothing there that can be read, or a scene that is missing or asked for in vain.
        DataRootError: a data set that is not whole.
    """
    versions = sorted(table.parent.name for table in path.glob("*/sample_data.json")) if path.is_dir() else []
    if not versions:
        if scene is not None:
            raise LogError(
                f"{path}: --scene {scene} is of data sets in nuScenes format, expected a folder with tables (v1.0-mini/"
                "sample_data.json ...) there; leave --scene out for a log"
            )

        return LogSource(open_log(path))

    settings = nuscenes or NuScenesConfig()
    version = settings.version if settings.version in versions else versions[0]
    if len(versions) > 1 and settings.version not in versions:
        raise LogError(
            f"{path} holds several versions ({', '.join(versions)}), and the checkpoint was not trained on one of them; "
            "give the folder of a log, or a checkpoint of a run on one of them"
        )
    config = settings.model_copy(update={"root": path, "version": version})
    if scene is None:
        names = scene_names(config)
        raise LogError(
            f"{path} is a data set of {len(names)} scenes: say which with --scene, as --scene {names[0]} "
            f"(they go to {names[-1]})"
        )
    return LogSource(NuScenesLog(config, scene), config)
