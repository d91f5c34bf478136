"""The commands of `robustbev`. Libraries load inside them, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.cli import DEBUG_VARIABLE, INTERRUPTED, tells_errors
from training.export_commands import export_app
from training.replay_commands import logs_app

if TYPE_CHECKING:
    from rich.table import Table

    from training.config import RunConfig
    from training.report import Results

_TABLE_WIDTH = 120
_WIDE_TABLE_WIDTH = 136  # subsets beside specialists and a baseline

app = typer.Typer(
    help="Camera, LiDAR and radar fusion in bird's-eye view that keeps seeing when sensors fail.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(logs_app)
app.add_typer(export_app)

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key=value]...", help="Settings over the file's, for example optim.lr=1e-3"),
]
ConfigFile = Annotated[Path, typer.Option("--config", help="YAML file with the run's configuration.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Remove what the run wrote before and start over.")]


def _print_version(asked: bool) -> None:
    from importlib.metadata import PackageNotFoundError, version

    if asked:
        try:
            print(f"robustbev {version('robustbev')}")
        except PackageNotFoundError:
            print("robustbev, a checkout that is not installed")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of every error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


@app.command()
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
    from training.config_file import load_config

    require("robustbev simulate", "data", "simplejpeg", "cv2", "embreex")
    from sensors.simulation import SimulationConfig
    from training.demo import write_drives

    given = {"scenes_train": scenes_train, "scenes_val": scenes_val, "seed": seed}
    words = [*(settings or []), *(f"{key}={value}" for key, value in given.items() if value is not None)]
    write_drives(load_config(SimulationConfig, config, words), out, workers)


@app.command()
@tells_errors
def index(config: ConfigFile, settings: Settings = None) -> None:
    """Build the index of a data set, and say what is in it; an error where the configuration can train nothing on it."""
    from sensors.extras import require

    require("robustbev index", "data", "nuscenes")
    from sensors.nuscenes_index import open_index
    from sensors.nuscenes_summary import check_trainable, describe
    from training.config import load_run_config

    run = load_run_config(config, settings or [])
    data = run.data.nuscenes
    summary = describe(data)
    width = max(len(key) for key in summary)
    for key, value in summary.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{key:<{width}}  {', '.join(shown) if isinstance(shown, list) else shown}")
    for note in open_index(data).meta.notes:
        print(note)
    print(f"training sees {check_trainable(data, run.data.min_points, run.model.grid.bev())}")


@app.command("config")
@tells_errors
def print_config(config: ConfigFile, settings: Settings = None) -> None:
    """Print the complete configuration of a run: file, base, settings and every default."""
    from training.config import load_run_config
    from training.config_file import to_yaml

    print(to_yaml(load_run_config(config, settings or [])), end="")


@app.command()
@tells_errors
def train(config: ConfigFile, settings: Settings = None, fresh: Fresh = False) -> None:
    """Train, or go on with, a run. Ctrl-C saves a checkpoint; the same command goes on from there."""
    from training.config import load_run_config

    run = load_run_config(config, settings or [])
    from sensors.extras import require

    require("robustbev train", "data", "nuscenes", "simplejpeg")
    from training.best import best_of
    from training.progress import Bars
    from training.run import run_training
    from training.run_files import RunFiles
    from training.sending import send_rest

    files = RunFiles(run.run_dir)
    if not fresh and files.is_complete(run):
        if run.tracking.enabled:
            send_rest(files.mlflow)
        print(f"{run.run_dir} is complete: nothing to do. To train again: --fresh, or another name=...")
        return
    with Bars() as bars:
        outcome = run_training(run, bars, fresh=fresh)
    if outcome.interrupted:
        print(
            f"stopped at step {outcome.step} of {outcome.total_steps}, saved in {outcome.checkpoint}; "
            "the same command goes on from there",
            file=sys.stderr,
        )
        raise typer.Exit(INTERRUPTED)
    print(f"trained {outcome.step} steps; the model is in {outcome.checkpoint}")
    best = best_of(files.checkpoints)
    if best is not None:
        link, measured = best
        print(f"the best one, {measured} ({', '.join(measured.subsets)}), is {link}")
    print(f"evaluate it: robustbev evaluate --checkpoint {run.run_dir}")


@app.command()
@tells_errors
def evaluate(
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="A checkpoint, or a run's folder.")],
    settings: Settings = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="What to evaluate on; default: the run's own.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Default: `evaluation` in the run's folder.")] = None,
) -> None:
    """Measure a model under every subset of its sensors by the official nuScenes evaluation."""
    from sensors.extras import require

    require("robustbev evaluate", "data", "nuscenes", "simplejpeg")
    require("robustbev evaluate", "train", "matplotlib")
    from training.evaluation import evaluate_checkpoint
    from training.progress import Bars

    run_config = _config_of(checkpoint, config, settings or [])
    with Bars() as bars:
        results = evaluate_checkpoint(checkpoint, run_config, out_dir=out, progress=bars)
    _print_tables(results)


@app.command()
@tells_errors
def robustness(
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="A run's folder, or a checkpoint in it.")],
    settings: Settings = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="What to measure; default: the subsets and MultiCorrupt's ten.")
    ] = None,
    baseline: Annotated[Path | None, typer.Option("--baseline", help="The run to compare with: mRRA and mCE.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Default: `robustness` in the run's folder.")] = None,
) -> None:
    """Measure what is left when sensors fail: corruption x severity, every subset, specialists and a baseline."""
    from sensors.extras import require

    require("robustbev robustness", "data", "nuscenes", "simplejpeg")
    require("robustbev robustness", "train", "matplotlib")
    from rich.console import Console

    from training.config_file import load_config
    from training.progress import Bars
    from training.robustness import run_robustness
    from training.robustness_config import RobustnessConfig
    from training.robustness_tables import tables

    given = {"baseline": baseline, "out": out}
    words = [*(settings or []), *(f"{key}={path}" for key, path in given.items() if path is not None)]
    loaded = load_config(RobustnessConfig, config, words)
    try:
        with Bars() as bars:
            found = run_robustness(checkpoint, loaded, bars)
    except KeyboardInterrupt:
        print("interrupted; what is measured is kept, the same command goes on from there", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    console = Console()
    if console.width < _WIDE_TABLE_WIDTH:
        console = Console(width=_WIDE_TABLE_WIDTH)
    for table in tables(found):
        console.print(table.terminal())
    print(f"report: {found.out / 'report.html'}")


@app.command()
@tells_errors
def gap(
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="A checkpoint, or a run's folder.")],
    settings: Settings = None,
    config: Annotated[Path | None, typer.Option("--config", help="What to measure on; default: the run's own.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Default: `gap` in the run's folder.")] = None,
) -> None:
    """Measure how far apart the modalities' embeddings lie, and whether they find each other's objects."""
    from sensors.extras import require

    require("robustbev gap", "data", "nuscenes", "simplejpeg")
    require("robustbev gap", "train", "matplotlib")
    from training.gap import measure_gap
    from training.gap_report import markdown
    from training.progress import Bars

    run_config = _config_of(checkpoint, config, settings or [])
    with Bars() as bars:
        report, folder = measure_gap(checkpoint, run_config, out_dir=out, progress=bars)
    print(markdown(report))
    print(folder / "gap.png")


@app.command()
@tells_errors
def compare(
    configs: Annotated[
        list[str],
        typer.Argument(metavar="CONFIG|key=value", help="YAML files, and settings over each of them."),
    ],
    seeds: Annotated[int | None, typer.Option("--seeds", help="So many seeds, from 0; default: 1.")] = None,
    seed_list: Annotated[str | None, typer.Option("--seed-list", help="These seeds instead, as 0,5,7.")] = None,
    case: Annotated[
        list[str] | None,
        typer.Option("--case", help="A corruption to measure beyond the sensor subsets, as fog-3; again for more."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Default: compare-<folder of the files>.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="For the tables; default: beside the runs.")] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=0, help="At a time; 0: without Ray. Default: one a GPU or CPU core.")
    ] = None,
    address: Annotated[str | None, typer.Option("--address", help="Of a Ray cluster; default: this machine.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove what the runs wrote before and start over.")] = False,
) -> None:
    """Train and evaluate configurations with several seeds each, and put means and deviations side by side."""
    from training.compare_plan import read_entries, seeds_of, split_words

    files, settings = split_words(configs)
    entries, chosen = tuple(read_entries(files, settings)), seeds_of(seeds, seed_list)
    from sensors.extras import require

    require("robustbev compare", "data", "nuscenes", "simplejpeg")
    require("robustbev compare", "train", "matplotlib")
    from training.compare import Request, print_tables
    from training.compare import compare as run

    ended = run(Request(entries, chosen, tuple(case or ()), name, out, jobs, address, fresh))
    print_tables(ended)
    if ended.interrupted:
        print("stopped; the same command goes on from there", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if ended.failed:
        raise typer.Exit(1)


@app.command()
@tells_errors
def health(
    config: ConfigFile,
    settings: Settings = None,
    fit: Annotated[bool, typer.Option("--fit", help="Fit a monitor on the training drives, then judge it.")] = False,
    monitor: Annotated[
        Path | None, typer.Option("--monitor", help="A fitted monitor to judge; default: health.json in runs_dir.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="With --fit the monitor's file, without the folder for the report.")
    ] = None,
    severity: Annotated[
        list[int] | None, typer.Option("--severity", min=1, max=5, help="Of the failures; again for more; default: 3.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Samples with failures to judge on; 0: all.")] = 64,
    scenes: Annotated[int, typer.Option(min=1, help="Training drives with failures to fit on.")] = 28,
) -> None:
    """Tell sick sensors from healthy ones: fit the monitor, and report AUROC a failure on drives it has not seen."""
    from sensors.extras import require

    require("robustbev health", "data", "nuscenes", "simplejpeg", "cv2", "scipy")
    require("robustbev health", "train", "matplotlib")
    from training.config import load_run_config
    from training.health_run import run_health
    from training.progress import Bars

    run = load_run_config(config, settings or [])
    if fit and monitor is not None:
        raise typer.BadParameter("--fit makes a monitor, --monitor names one that is there: give one of them")
    with Bars() as bars:
        done = run_health(
            run,
            fit=fit,
            monitor=monitor,
            out=out,
            severities=severity or [3],
            limit=limit,
            scenes=scenes,
            progress=bars,
        )
    _print_wide(done.table)
    print("\n".join(map(str, done.paths)))


@app.command()
@tells_errors
def show(
    settings: Settings = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="Whose boxes to show; default: the truth.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="What to look at; default: the run's own.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the pictures.")] = Path("pictures"),
    sample: Annotated[str, typer.Option(help="A token, or a position in the split.")] = "0",
    split: Annotated[str | None, typer.Option(help="Default: the validation split.")] = None,
    subset: Annotated[str | None, typer.Option(help="Sensors to use, as camera+radar; default: all.")] = None,
    score: Annotated[float, typer.Option(help="Found boxes scored lower are not drawn.")] = 0.3,
    corruption: Annotated[str | None, typer.Option(help="What the sensors suffer, as fog-3; default: nothing.")] = None,
) -> None:
    """Draw a sample from above and in its cameras: truth, and what a model found."""
    from sensors.extras import require

    require("robustbev show", "data", "nuscenes", "simplejpeg")
    require("robustbev show", "train", "matplotlib")
    from training.config import load_run_config
    from training.show import show as draw

    if checkpoint is None and config is None:
        raise typer.BadParameter("give --config (what to look at), --checkpoint (what a model made of it), or both")
    if checkpoint is None:
        run_config = load_run_config(config, settings or [])
    else:
        found = _config_of(checkpoint, config, settings or [])
        if found is None:
            raise typer.BadParameter(f"{checkpoint} lies in no run's folder: say with --config what to look at")
        run_config = found
    from sensors.corruptions import Corruption

    suffered = None if corruption is None else Corruption.parse(corruption)
    for path in draw(
        run_config,
        out,
        checkpoint=checkpoint,
        split=split,
        sample=sample,
        subset=subset,
        score=score,
        corruption=suffered,
    ):
        print(path)


@app.command()
@tells_errors
def demo(
    settings: Settings = None,
    config: ConfigFile = Path("configs/tiny.yaml"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Train and evaluate anew; drives that are there stay.")
    ] = False,
    scenes_train: Annotated[int | None, typer.Option(help="Scenes to train on.")] = None,
    scenes_val: Annotated[int | None, typer.Option(help="Scenes to evaluate on.")] = None,
) -> None:
    """Synthetic drives, training, evaluation of every sensor subset, pictures. What is complete is not done again."""
    from sensors.extras import require
    from training.config import load_run_config

    require("robustbev demo", "data")
    require("robustbev demo", "train")
    from training.demo import run_demo

    run = load_run_config(config, ["name=demo", *(settings or [])])
    scenes = {"scenes_train": scenes_train, "scenes_val": scenes_val}
    results = run_demo(run, {name: count for name, count in scenes.items() if count is not None}, fresh=fresh)
    if results is None:
        raise typer.Exit(INTERRUPTED)
    _print_tables(results.subsets)
    print("\n".join(results.places))


@app.command()
@tells_errors
def doctor(
    settings: Settings = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Say too whether this machine can run this configuration.")
    ] = None,
) -> None:
    """Say what is installed, from where our packages come, and what this machine can run."""
    from training.doctor import examine

    if config is None and settings:
        raise typer.BadParameter("settings are of a configuration: say with --config which")
    raise typer.Exit(examine(config, settings or []))


def _config_of(checkpoint: Path, config: Path | None, settings: list[str]) -> RunConfig | None:
    """The configuration to look at a checkpoint with: the file given, else its run's; None where there is neither."""
    from robustbev.checkpoints import find_checkpoint
    from training.config import load_run_config
    from training.run_files import run_of

    if config is not None:
        return load_run_config(config, settings)
    files = run_of(find_checkpoint(checkpoint))
    return None if files is None else load_run_config(files.config, settings)


def _print_wide(table: Table) -> None:
    from rich.console import Console

    console = Console()
    if console.width < _TABLE_WIDTH:
        console = Console(width=_TABLE_WIDTH)
    console.print(table)


def _print_tables(results: Results) -> None:
    from rich.console import Console

    from training.report import class_table, terminal_table

    console = Console()
    if console.width < _TABLE_WIDTH:  # cut-off figures help nobody; a terminal may wrap
        console = Console(width=_TABLE_WIDTH)
    console.print(terminal_table(results))
    console.print(class_table(results))
