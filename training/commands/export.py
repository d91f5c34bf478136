"""The command `export`. Libraries load inside it, so that `--help` answers at once."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sensors.text import tell
from training.console.errors import tells_errors

export_app = typer.Typer()


class ExportFormat(StrEnum):
    """What kind of file `export` writes."""

    ONNX = "onnx"
    PT2 = "pt2"
    AOTI = "aoti"
    SAFETENSORS = "safetensors"


class ExportPart(StrEnum):
    """How much of the model goes into it."""

    MODEL = "model"
    FUSER = "fuser"


@export_app.command()
@tells_errors
def export(
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="A run's folder, or a checkpoint.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the files.")],
    format: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            help="pt2: torch.export; aoti: machine code for this kind of machine; safetensors: for robustbev.load.",
        ),
    ] = ExportFormat.ONNX,
    part: Annotated[
        ExportPart, typer.Option("--part", help="model: from tensors to boxes; fuser: from each sensor's grid to one.")
    ] = ExportPart.MODEL,
    name: Annotated[str | None, typer.Option("--name", help="Of the files, without ending; default: the part.")] = None,
    cameras: Annotated[
        int | None, typer.Option("--cameras", help="How many, where they are not those of the training.")
    ] = None,
    lidars: Annotated[
        int | None, typer.Option("--lidars", help="How many, where they are not those of the training.")
    ] = None,
    radars: Annotated[
        int | None, typer.Option("--radars", help="How many, where they are not those of the training.")
    ] = None,
) -> None:
    """Write a checkpoint as a file that runs without this project, with a manifest that says what goes in and out."""
    from sensors.extras import require

    if format is ExportFormat.ONNX:
        require("robustbev export --format onnx", "export")
    from robustbev import load
    from robustbev.export import Kind
    from robustbev.export import export as write
    from robustbev.export.graphs import prefix
    from sensors.camera.config import CameraConfig
    from training.runs.release import release

    if format is ExportFormat.SAFETENSORS:
        if part is not ExportPart.MODEL or name is not None:
            raise typer.BadParameter("--format safetensors writes the whole model: leave out --part and --name")
        tell(release(checkpoint, out))
        return
    model = load(checkpoint)
    tell("computing in float32: the file runs on machines that are not known here")
    kind: Kind = format.value  # type: ignore[assignment]  # the one that is none was handled above
    written = write(model, out, kind=kind, part=part.value, name=name, cameras=cameras, lidars=lidars, radars=radars)
    stem, ending = written.name.split(".", 1)
    rigs = [
        written.with_name(f"{stem}.{prefix(camera, 'camera')}rig.{ending}")
        for camera in model.config.of_kind(CameraConfig)
    ]
    for file in (written, *rigs) if part is ExportPart.MODEL else (written,):
        manifest = json.loads(file.with_name(f"{file.name}.json").read_text(encoding="utf-8"))
        tell(f"{file}  {manifest['bytes'] / 1e6:.1f} MB, SHA-256 {manifest['sha256']}")
