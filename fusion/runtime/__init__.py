"""Run an exported model on a robot, without the rest of this project: one folder, to be copied under any name.

An artifact is `NAME.onnx`, `NAME.pt2` (torch.export) or `NAME.aoti.pt2` (AOTInductor: machine code) with a manifest beside it,
`<file name>.json`, which says what goes in and out: names, dtypes, shapes, units, frames. ONNX needs onnxruntime and numpy, the
others need torch; what is not needed is not imported. Every input is checked against the manifest before anything is computed.

    artifact = load("robust.onnx", sha256="...", threads=4)
    outputs = artifact({"images": images, ...})

What loading an artifact may do:
    onnx  is data: onnxruntime, given the bytes alone, has no operators but its own, and refuses weights in other files.
    pt2, aoti  are code: a program that torch rebuilds from names, expressions and pickles, and machine code. Either runs with
          your rights, and nothing in here can tell good from bad: each is refused unless its `sha256=` is pinned and fits, or
          `trust_code=True` says that you know where it comes from. What was hashed is what is loaded.
The checksum in a manifest shows damage, not intent: who can change the file can change the manifest. `sha256=` is yours.

Letters: those of the manifest's symbols, B samples above all; each has one value in a call.
"""

from __future__ import annotations

from pathlib import Path

from .arrays import NumpyArrays, TorchTensors
from .artifact import Artifact
from .manifest import ArtifactError, Symbol, TensorSpec, parse_manifest, read_artifact, read_manifest
from .onnx_file import open_onnx
from .torch_file import open_aoti, open_pt2

__all__ = ["Artifact", "ArtifactError", "Symbol", "TensorSpec", "load"]


def load(
    path: str | Path, *, sha256: str | None = None, trust_code: bool = False, threads: int | None = None
) -> Artifact:
    """Load an artifact; its manifest, `<file name>.json`, lies beside it.

    Args:
        path: the `.onnx`, `.pt2` or `.aoti.pt2` file.
        sha256: what the file's SHA-256 must be, in hexadecimal; where you keep it, nobody who changes the files can change it.
        trust_code: load a `.pt2` or `.aoti.pt2` without a pinned checksum, though it is code that runs with your rights.
        threads: CPU threads for one call; None: the library's choice. In torch this holds for the whole process.

    Raises:
        ArtifactError: a file is missing, damaged, not what its manifest or `sha256` says, code that nobody vouches for, or holds
            what is not to be loaded.
        ImportError: the library that runs this kind is not installed.
    """
    path = Path(path)
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ValueError(f"threads: expected None or a number from 1 on, got {threads!r}")
    manifest = read_manifest(path.with_name(path.name + ".json"), path)
    kind = manifest["kind"]
    if kind != "onnx" and sha256 is None and not trust_code:
        raise ArtifactError(
            f"{path}: a file of kind {kind} is code that would run with your rights; expected its SHA-256 as sha256=, noted "
            "where it was exported, or trust_code=True for a file that you made, or an .onnx, which runs nothing of its own"
        )
    data = read_artifact(path, manifest, sha256)
    parsed = parse_manifest(manifest, path)
    library: NumpyArrays | TorchTensors
    match kind:
        case "onnx":
            library, run = open_onnx(data, path, parsed, threads)
        case "pt2":
            library, run = open_pt2(data, path, parsed, threads)
        case _:
            library, run = open_aoti(data, path, parsed, threads)
    return Artifact(path, kind, manifest["part"], manifest, parsed.inputs, parsed.outputs, parsed.symbols, library, run)
