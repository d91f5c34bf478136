"""ONNX files, which onnxruntime runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from .arrays import NumpyArrays
from .manifest import Array, ArtifactError, Parsed, names_of

_ONNX_TYPES = {"float32": "float", "float64": "double"}


def open_onnx(
    data: bytes, path: Path, parsed: Parsed, threads: int | None
) -> tuple[NumpyArrays, Callable[[list[Array]], Sequence[Array]]]:
    """A session of onnxruntime for a file whose inputs and outputs are the manifest's; -> what takes arrays, what runs."""
    try:
        import numpy
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"{path}: an ONNX artifact needs onnxruntime and numpy: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong comes as an exception
    options.add_session_config_entry("session.load_model_format", "ONNX")  # and not its own format
    # Tensors in other files are looked for below a folder that cannot be: else below the working directory.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of a dozen classes
        raise ArtifactError(
            f"{path}: onnxruntime {onnxruntime.__version__} does not load it: {str(error)[:300]}; a newer onnxruntime or an "
            "older opset may help"
        ) from error
    for key, specs, found in (
        ("inputs", parsed.inputs, session.get_inputs()),
        ("outputs", parsed.outputs, session.get_outputs()),
    ):
        try:
            graph = {tensor.name: (tensor.type, list(tensor.shape or ())) for tensor in found}
        except UnicodeDecodeError as error:
            raise ArtifactError(f"{path}: expected {key} and sizes named in UTF-8, got other bytes: {error}") from error
        if set(graph) != {spec.name for spec in specs}:
            raise ArtifactError(
                f"{path}.json: {key}: expected those of the graph, {', '.join(graph)}, got {names_of(specs)}"
            )
        for spec in specs:
            type_, shape = graph[spec.name]
            fits = len(shape) == len(spec.shape) and all(
                not (isinstance(a, int) and isinstance(b, int)) or a == b
                for a, b in zip(shape, spec.shape, strict=True)
            )
            if type_ != f"tensor({_ONNX_TYPES.get(spec.dtype, spec.dtype)})" or not fits:
                raise ArtifactError(
                    f"{path}.json: {key}: {spec.name}: expected {type_} {shape} as in the graph, got {spec}"
                )
    names, ins = [spec.name for spec in parsed.outputs], [spec.name for spec in parsed.inputs]

    def run(arrays: list[Array]) -> Sequence[Array]:
        outputs: Sequence[Array] = session.run(names, dict(zip(ins, arrays, strict=True)))
        return outputs

    return NumpyArrays(numpy), run
