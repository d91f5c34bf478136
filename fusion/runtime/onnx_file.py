"""ONNX files: vetted as the data that they are, then run by onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .arrays import NumpyArrays
from .manifest import Array, ArtifactError, Parsed, names_of

# Where a message of onnx.proto holds others: field number -> message. What is not named here holds neither operators nor files.
_MESSAGES: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 8: "opset", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute", 7: "domain"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "function": {7: "node", 9: "opset", 10: "domain", 11: "attribute"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
    "opset": {1: "domain"},
}
_FIELDS = 300_000  # in one model; ours have some 20,000
_NESTING = 40  # a graph in a branch of a graph takes three


def vet_onnx(data: bytes, path: Path) -> None:
    """ArtifactError for operators beyond ONNX's own, and for weights in other files, wherever the model might hold them."""
    waiting = [("model", memoryview(data), 0)]
    left, graphs = _FIELDS, 0
    while waiting:
        message, part, depth = waiting.pop()
        graphs += message == "graph"
        fields, met = _fields(part, _MESSAGES[message], left, path)
        left -= met
        if left < 0 or depth > _NESTING:
            raise ArtifactError(
                f"{path}: expected an ONNX model, got one nested or cut up beyond all models; export it anew"
            )
        for inner, value in fields:
            if inner == "external":
                raise ArtifactError(
                    f"{path}: expected all weights in this file, got some in other files, which are never opened; export with "
                    "them inside"
                )
            if inner == "training":
                raise ArtifactError(
                    f"{path}: expected a model for inference, got one with training graphs; export it anew"
                )
            if inner == "domain":
                domain = bytes(value[:100])
                if domain not in (b"", b"ai.onnx"):
                    raise ArtifactError(
                        f"{path}: operators of domain {domain.decode('utf-8', 'replace')!r} can be code of anybody's; expected "
                        "ONNX's own alone: export without custom operators"
                    )
            else:
                waiting.append((inner, value, depth + 1))
    if not graphs:
        raise ArtifactError(f"{path}: expected an ONNX model, got a file without a graph; was it copied whole?")


def _fields(
    part: memoryview, known: Mapping[int, str], most: int, path: Path
) -> tuple[list[tuple[str, memoryview]], int]:
    """What a protobuf message holds of `known` fields, and how many fields it has; it stops after `most`."""
    found: list[tuple[str, memoryview]] = []
    at, end, met = 0, len(part), 0
    while at < end and met <= most:
        met += 1
        key, at = (part[at], at + 1) if part[at] < 128 else _varint(part, at, path)
        number, wire, size = key >> 3, key & 7, -1
        if wire == 0:
            size, at = 0, _varint(part, at, path)[1]
        elif wire == 2:
            size, at = (part[at], at + 1) if at < end and part[at] < 128 else _varint(part, at, path)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        begin, at = at, at + size
        if size < 0 or at > end or not number:
            raise ArtifactError(f"{path}: no readable ONNX model (a field that does not fit); was it copied whole?")
        if number in known and wire == 2 and size:
            found.append((known[number], part[begin:at]))
    return found, met


def _varint(part: memoryview, at: int, path: Path) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(part[at : at + 10]):
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value & (2**64 - 1), at + i + 1
    raise ArtifactError(f"{path}: no readable ONNX model (a number without an end); was it copied whole?")


def open_onnx(
    data: bytes, path: Path, parsed: Parsed, threads: int | None
) -> tuple[NumpyArrays, Callable[[list[Array]], Sequence[Array]]]:
    """A session of onnxruntime for a vetted file whose inputs and outputs are the manifest's; -> what takes arrays, what runs."""
    try:
        import numpy
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"{path}: an ONNX artifact needs onnxruntime and numpy: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong comes as an exception
    options.add_session_config_entry("session.load_model_format", "ONNX")  # its own format was not vetted
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
        graph = {tensor.name: tensor for tensor in found}
        if set(graph) != {spec.name for spec in specs}:
            raise ArtifactError(
                f"{path}.json: {key}: expected those of the graph, {', '.join(graph)}, got {names_of(specs)}"
            )
        for spec in specs:
            tensor, shape = graph[spec.name], list(graph[spec.name].shape or ())
            fits = len(shape) == len(spec.shape) and all(
                not (isinstance(a, int) and isinstance(b, int)) or a == b
                for a, b in zip(shape, spec.shape, strict=True)
            )
            if tensor.type != f"tensor({_ONNX_TYPES.get(spec.dtype, spec.dtype)})" or not fits:
                raise ArtifactError(
                    f"{path}.json: {key}: {spec.name}: expected {tensor.type} {shape} as in the graph, got {spec}"
                )
    names, ins = [spec.name for spec in parsed.outputs], [spec.name for spec in parsed.inputs]

    def run(arrays: list[Array]) -> Sequence[Array]:
        outputs: Sequence[Array] = session.run(names, dict(zip(ins, arrays, strict=True)))
        return outputs

    return NumpyArrays(numpy), run


_ONNX_TYPES = {"float32": "float", "float64": "double"}
