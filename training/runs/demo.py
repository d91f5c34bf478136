"""`robustbev demo`: from nothing to a measured model, once; what is complete is not done again."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sensors.simulation import SimulationConfig, simulate
from sensors.simulation.generate import MARKER
from sensors.text import tell
from training.console.progress import Bars
from training.evaluation.tables import Results, read_subsets
from training.files.config_file import parse_yaml
from training.runs.config import RunConfig
from training.runs.evaluate import evaluate_checkpoint
from training.runs.files import RunFiles
from training.runs.run import run_training
from training.runs.show import show_run


@dataclass(frozen=True)
class DemoResults:
    """What the demo found, and where everything lies, one line each."""

    subsets: Results
    places: list[str]


def run_demo(config: RunConfig, scenes: Mapping[str, int], *, fresh: bool = False) -> DemoResults | None:
    """Drives, training, evaluation, pictures; None where Ctrl-C stopped the training.

    Args:
        config: of the run; its data set is simulated.
        scenes: settings of the simulation, by default those of `SimulationConfig`.
        fresh: train and evaluate anew. Drives depend on their settings alone and stay.
    """
    files = RunFiles(config.run_dir)
    nuscenes = config.data.nuscenes
    drives = SimulationConfig(
        version=nuscenes.version, split_train=nuscenes.train_split, split_val=nuscenes.val_split, **scenes
    )
    with _step("1/4 drives", str(nuscenes.root)):
        written = write_drives(drives, nuscenes.root, replace=True)
    fresh = fresh or written or bool(files.differences(config))
    evaluated = (
        not fresh and files.subsets.is_file() and _evaluation_then(files) == config.evaluation.model_dump(mode="json")
    )
    trained = not fresh and files.is_complete(config)
    with _step("2/4 training", str(files.root)):
        if trained:
            tell("complete already")
        else:
            with Bars() as bars:
                outcome = run_training(config, bars, fresh=fresh)
            if outcome.interrupted:
                tell(f"stopped at step {outcome.step} of {outcome.total_steps}; `robustbev demo` goes on from there")
                return None
    evaluated, drawn = evaluated and trained, trained and any(files.pictures.glob("*.png"))
    with _step("3/4 evaluation", str(files.evaluation)):
        if evaluated:
            tell("complete already")
        else:
            with Bars() as bars:
                evaluate_checkpoint(files.root, config, progress=bars)
    with _step("4/4 pictures", str(files.pictures)):
        if evaluated and drawn:
            tell("complete already")
        else:
            show_run(files.root, config)
    return DemoResults(read_subsets(files.subsets), _places(config, files))


def write_drives(config: SimulationConfig, out: Path, workers: int | None = None, *, replace: bool = False) -> bool:
    """Simulate with a progress bar unless the same drives are there already; -> whether anything was written.

    Args:
        config: of the drives.
        out: folder of the data set.
        workers: processes, None for one a core.
        replace: drives of another configuration are removed first; anything else in `out` never is.

    Raises:
        FileExistsError: `out` holds something else.
    """
    workers = workers or len(os.sched_getaffinity(0))
    begun = False

    def progress(done: int, total: int) -> None:
        nonlocal begun
        begun = True
        bars("simulate", done, total, "scenes")

    with Bars() as bars:
        try:
            simulate(config, out, workers=workers, progress=progress)
        except FileExistsError:
            if not (replace and (out / MARKER).is_file()):
                raise
            tell(f"{out} holds drives of other settings; they are written anew")
            shutil.rmtree(out)
            simulate(config, out, workers=workers, progress=progress)
    tell(f"written to {out}" if begun else f"{out} is complete already")
    return begun


@contextmanager
def _step(title: str, where: str) -> Iterator[None]:
    tell(f"[{title}] {where}")
    started = time.monotonic()
    yield
    tell(f"[{title}] {time.monotonic() - started:.0f} s\n")


def _evaluation_then(files: RunFiles) -> object:
    """The evaluation's settings in the configuration that the run left."""
    content = parse_yaml(files.config.read_text(encoding="utf-8")) if files.config.is_file() else {}
    return content.get("evaluation") if isinstance(content, dict) else None


def _places(config: RunConfig, files: RunFiles) -> list[str]:
    places = {
        "drives": config.data.nuscenes.root,
        "model": f"{files.checkpoints} (robustbev.load)",
        "figures": f"{files.subsets}, {files.evaluation}",
        "pictures": files.pictures,
    }
    if config.tracking.enabled:
        places["MLflow"] = f"mlflow ui --backend-store-uri {config.tracker}"
    return [f"{what:<9} {where}" for what, where in places.items()]
