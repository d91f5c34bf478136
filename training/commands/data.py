"""Commands that write, index and describe data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sensors.text import tell
from training.commands.options import ConfigFile, Settings
from training.console.errors import tells_errors


@tells_errors
def simulate(
    settings: Settings = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the data set.")] = Path("data/sim"),
    config: Annotated[Path | None, typer.Option("--config", help="YAML file with settings.")] = None,
    scenes_train: Annotated[int | None, typer.Option(help="Scenes to train on.")] = None,
    scenes_val: Annotated[int | None, typer.Option(help="Scenes to evaluate on.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same bytes.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one a core.")] = None,
) -> None:
    """Write synthetic drives in nuScenes format."""
    from sensors.extras import require
    from training.files.config_file import load_config

    require("robustbev simulate", "data", "simplejpeg", "cv2", "embreex")
    from sensors.simulation import SimulationConfig
    from training.runs.demo import write_drives

    overrides = {"scenes_train": scenes_train, "scenes_val": scenes_val, "seed": seed}
    words = [*(settings or []), *(f"{key}={value}" for key, value in overrides.items() if value is not None)]
    write_drives(load_config(SimulationConfig, config, words), out, workers)


@tells_errors
def index(config: ConfigFile, settings: Settings = None) -> None:
    """Build the index of a data set, and say what is in it; an error where the configuration can train nothing on it."""
    from sensors.extras import require

    require("robustbev index", "data", "nuscenes")
    from sensors.nuscenes.index import open_index
    from sensors.nuscenes.summary import check_trainable, describe
    from training.runs.config import load_run_config

    run = load_run_config(config, settings or [])
    data = run.data.nuscenes
    summary = describe(data)
    width = max(len(key) for key in summary)
    for key, value in summary.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        tell(f"{key:<{width}}  {', '.join(shown) if isinstance(shown, list) else shown}")
    for note in open_index(data).meta.notes:
        tell(note)
    tell(f"training sees {check_trainable(data, run.data.min_points, run.model.grid.bev())}")


@tells_errors
def print_config(config: ConfigFile, settings: Settings = None) -> None:
    """Print the complete configuration of a run: file, base, settings and every default."""
    from training.files.config_file import to_yaml
    from training.runs.config import load_run_config

    tell(to_yaml(load_run_config(config, settings or [])), end="")
