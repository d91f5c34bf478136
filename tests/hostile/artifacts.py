"""ONNX models that mean harm, with manifests that fit them, so that nothing but the harm can be the reason for a refusal."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hostile.files import CANARY, deep, pickled, torch_pickled, zipped

UP = "../" * 40
WIDE = 300  # numbers; onnxruntime reads those of a hundred and more from other files wherever it may

# --- ONNX by hand: protobuf is fields of a number, a length and as many bytes -------------------------------------------


def varint(value: int) -> bytes:
    """A number, seven bits a byte."""
    head = bytearray()
    while value > 127:
        head.append(value & 127 | 128)
        value >>= 7
    return bytes([*head, value])


def field(number: int, content: bytes | str | int, *, bits: int = 0) -> bytes:
    """One field of a message; `bits` above the 32 of its key are for who does not look at them."""
    if isinstance(content, int):
        return varint(bits | number << 3) + varint(content)
    data = content.encode() if isinstance(content, str) else content
    return varint(bits | number << 3 | 2) + varint(len(data)) + data


def value_info(name: str) -> bytes:
    """A float tensor [B, WIDE]."""
    shape = field(1, field(2, "B")) + field(1, field(1, WIDE))
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))


def onnx_model(*, extra: bytes = b"", domain: str = "", more: bytes = b"", weights: str = "", bits: int = 0) -> bytes:
    """y = relu(x), or x plus the `weights` in another file, with `extra` in its graph and `more` beside it."""
    if weights:
        node, extra = field(1, "x") + field(1, "w") + field(2, "y") + field(4, "Add"), external(weights, bits)
    else:
        node = field(1, "x") + field(2, "y") + field(4, "Relu") + (field(7, domain) if domain else b"")
    graph = field(1, node) + field(2, "g") + extra + field(11, value_info("x")) + field(12, value_info("y"))
    opset = field(8, field(1, domain) + field(2, 20)) + (field(8, field(2, 20)) if domain else b"")
    return field(1, 10) + field(7, graph) + opset + more


def external(location: str, bits: int = 0) -> bytes:
    """A graph's weight that lies in another file."""
    entry = field(1, "location") + field(2, location)
    lies = field(13, entry, bits=bits) + field(14, 1, bits=bits)
    return field(5, field(1, WIDE) + field(2, 1) + field(8, "w") + lies, bits=bits)


def weights_beside(bits: int) -> Callable[[Path], None]:
    """A model whose weights lie in the working directory, and are there."""

    def write(path: Path) -> None:
        Path("weights.bin").write_bytes(bytes(4 * WIDE))
        path.write_bytes(onnx_model(weights="weights.bin", bits=bits))

    return write


def in_branches(content: bytes, depth: int = 3) -> bytes:
    """`content` in a graph within an attribute of a node, and so on."""
    for _ in range(depth):
        content = field(1, field(4, "If") + field(5, field(1, "then_branch") + field(6, content) + field(20, 5)))
    return content


def describe_onnx(path: Path) -> None:
    """A manifest that fits whatever lies at `path`."""
    data = path.read_bytes()
    tensor = {"dtype": "float32", "shape": ["B", WIDE]}
    manifest = {
        "format": "robustbev-artifact", "format_version": 1, "kind": "onnx", "part": "fuser", "file": path.name,
        "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "inputs": [{"name": "x", **tensor}],
        "outputs": [{"name": "y", **tensor}], "symbols": {"B": {"min": 1, "max": 9}}, "machine": None,
    }  # fmt: skip
    path.with_name(path.name + ".json").write_text(json.dumps(manifest))


def write_sound_artifact(folder: Path) -> None:
    """What is read without complaint."""
    (folder / "robust.onnx").write_bytes(onnx_model())
    describe_onnx(folder / "robust.onnx")


def model(content: bytes | Callable[[Path], None]) -> Callable[[Path], None]:
    """An ONNX file of this content, and its manifest."""

    def write(path: Path) -> None:
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)
        describe_onnx(path)

    return write


def pipe(path: Path) -> None:
    """A pipe that nobody writes to."""
    path.unlink()
    os.mkfifo(path)


CALL = f"__import__('os').mkdir('{CANARY}')"
ARTIFACT_CASES: dict[str, tuple[str, Any]] = {
    "a pickle named onnx": ("onnx", model(pickled())),
    "a zip archive named onnx": ("onnx", model(zipped)),
    "a torch file named onnx": ("onnx", model(torch_pickled)),
    "an ONNX file without a graph": ("onnx", model(field(1, 10))),
    "a model whose weights lie elsewhere": ("onnx", model(onnx_model(weights=f"{UP}etc/passwd"))),
    "a model whose weights lie at the root": ("onnx", model(onnx_model(weights="/etc/passwd"))),
    "a model whose weights lie in the working directory": ("onnx", model(weights_beside(0))),
    "weights elsewhere by keys of five bytes": ("onnx", model(weights_beside(1 << 32))),
    "operators of somebody's library": ("onnx", model(onnx_model(domain="com.somebody"))),
    "a function with somebody's operators": ("onnx", model(onnx_model(more=field(25, field(7, field(7, "com.somebody")))))),
    "a size whose name is no text": ("onnx", model(onnx_model().replace(field(2, "B"), field(2, b"\xc2")))),
    "branches in branches": ("onnx", model(onnx_model(extra=in_branches(b"", 2000)))),
    "onnxruntime's own format": ("onnx", model(b"\x20\0\0\0ORTM" + bytes(100))),
    "a graph longer than its file": ("onnx", model(varint(7 << 3 | 2) + varint(2**62))),
    "a model that is a pipe": ("onnx", pipe),
    "another model than the manifest's": ("onnx", onnx_model(extra=field(2, "h"))),
    "a manifest that is a pickle": ("manifest", pickled()),
    "a manifest nested deep": ("manifest", deep()),
    "a manifest of 50 MB": ("manifest", '{"a": "' + "x" * 50_000_000 + '"}'),
    "a manifest with a number of 100,000 digits": ("manifest", '{"bytes": ' + "9" * 100_000 + "}"),
    "a manifest with NaN": ("manifest", {"bytes": float("nan")}),
    "a manifest of infinity": ("manifest", {"format_version": float("inf")}),
    "a manifest that leads elsewhere": ("manifest", {"file": f"{UP}etc/passwd"}),
    "a manifest of 2^70 bytes": ("manifest", {"bytes": 2**70}),
    "a manifest without a checksum": ("manifest", {"sha256": None}),
    "a manifest of a million inputs": ("manifest", {"inputs": [0] * 300_000}),
    "an input of objects": ("manifest", {"inputs": [{"name": "x", "dtype": "object", "shape": []}]}),
    "an input named by code": ("manifest", {"inputs": [{"name": CALL, "dtype": "bool", "shape": []}]}),
    "an input of fewer than no rows": ("manifest", {"inputs": [{"name": "x", "dtype": "bool", "shape": [-1]}]}),
    "an input of a thousand axes": ("manifest", {"inputs": [{"name": "x", "dtype": "bool", "shape": [1] * 1000}]}),
    "a symbol without an end": ("manifest", {"symbols": {"B": {"min": 1, "max": 10**30}}}),
    "a symbol of lists": ("manifest", {"symbols": {"B": {"min": [], "max": {}}}}),
    "a manifest that says twice what it is": ("manifest", '{"format": "x", "format": "robustbev-artifact"}'),
}  # fmt: skip
