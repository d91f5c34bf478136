"""Options that several commands have, and what several print."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

if TYPE_CHECKING:
    from training.evaluation.tables import Results
    from training.runs.config import RunConfig

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key=value]...", help="Settings over the file's, for example optim.lr=1e-3"),
]
ConfigFile = Annotated[Path, typer.Option("--config", help="YAML file with the run's configuration.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Remove what the run wrote before and start over.")]


Request = TypeVar("Request")


def options_of(request: type[Request]) -> Callable[[Callable[[Request], None]], Callable[..., None]]:
    """Gives a command the fields of a dataclass as its options; the command itself takes the filled dataclass."""
    hints = get_type_hints(request, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(request)  # type: ignore[arg-type]  # a dataclass is no type of its own
    ]

    def decorate(command: Callable[[Request], None]) -> Callable[..., None]:
        @functools.wraps(command)
        def filled(**values: Any) -> None:
            command(request(**values))

        filled.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return filled

    return decorate


def config_of(checkpoint: Path, config: Path | None, settings: list[str]) -> RunConfig | None:
    """The configuration to look at a checkpoint with: the file given, else its run's; None where there is neither."""
    from robustbev.checkpoints import find_checkpoint
    from training.runs.config import load_config_of_run, load_run_config
    from training.runs.files import run_of

    if config is not None:
        return load_run_config(config, settings)
    files = run_of(find_checkpoint(checkpoint))
    return None if files is None else load_config_of_run(files.config, settings)


def print_figures(results: Results) -> None:
    """The figures of an evaluation: every subset, every task, and every class."""
    from training.evaluation.tables import terminal_tables
    from training.files.table import print_tables

    print_tables(*terminal_tables(results))
