"""Exported models that mean harm, with manifests that fit them, so that nothing but the harm can be the reason for a refusal."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tests.hostile.files import CANARY, Bomb, deep, pickled, torch_pickled, zipped
from tests.small_artifact import program_with, rewritten, write_artifact, write_manifest

Change = Callable[[dict[str, bytes]], None]
UP = "../" * 40

# --- ONNX by hand: protobuf is fields of a number, a length and as many bytes -------------------------------------------


def varint(value: int) -> bytes:
    """A number, seven bits a byte."""
    head = bytearray()
    while value > 127:
        head.append(value & 127 | 128)
        value >>= 7
    return bytes([*head, value])


def field(number: int, content: bytes | str | int) -> bytes:
    """One field of a message."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    data = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(data)) + data


def value_info(name: str) -> bytes:
    """A float tensor [B, 3]."""
    shape = field(1, field(2, "B")) + field(1, field(1, 3))
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))


def onnx_model(*, extra: bytes = b"", domain: str = "", more: bytes = b"") -> bytes:
    """y = relu(x), with `extra` in its graph and `more` beside it."""
    node = field(1, "x") + field(2, "y") + field(4, "Relu") + (field(7, domain) if domain else b"")
    graph = field(1, node) + field(2, "g") + extra + field(11, value_info("x")) + field(12, value_info("y"))
    opset = field(8, field(1, domain) + field(2, 20)) + (field(8, field(2, 20)) if domain else b"")
    return field(1, 10) + field(7, graph) + opset + more


def external(location: str) -> bytes:
    """A graph's weight that lies in another file."""
    entry = field(1, "location") + field(2, location)
    return field(5, field(1, 3) + field(2, 1) + field(8, "w") + field(13, entry) + field(14, 1))


def in_branches(content: bytes, depth: int = 3) -> bytes:
    """`content` in a graph within an attribute of a node, and so on."""
    for _ in range(depth):
        content = field(1, field(4, "If") + field(5, field(1, "then_branch") + field(6, content) + field(20, 5)))
    return content


def describe_onnx(path: Path) -> None:
    """A manifest that fits whatever lies at `path`."""
    data = path.read_bytes()
    tensor = {"dtype": "float32", "shape": ["B", 3]}
    manifest = {
        "format": "robustbev-artifact", "format_version": 1, "kind": "onnx", "part": "fuser", "file": path.name,
        "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "inputs": [{"name": "x", **tensor}],
        "outputs": [{"name": "y", **tensor}], "symbols": {"B": {"min": 1, "max": 9}}, "machine": None,
    }  # fmt: skip
    path.with_name(path.name + ".json").write_text(json.dumps(manifest))


def write_sound_artifact(kind: str, folder: Path) -> None:
    """What is read without complaint."""
    if kind == "program":
        write_artifact(folder, "pt2")
    else:
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


# --- programs ---------------------------------------------------------------------------------------------------------


def archive(change: Change | Callable[[Path], None] | bytes, *, whole: bool = False) -> Callable[[Path], None]:
    """A .pt2 archive with its records changed (`whole`: the file itself), and its manifest."""

    def write(path: Path) -> None:
        if isinstance(change, bytes):
            path.write_bytes(change)
        elif whole:
            change(path)  # type: ignore[arg-type]
        else:
            path.write_bytes(rewritten(path.read_bytes(), change))  # type: ignore[arg-type]
        write_manifest(path, "pt2")

    return write


def program(change: Callable[[Any], None]) -> Callable[[Path], None]:
    """A .pt2 archive with its program changed, and its manifest."""
    return archive(program_with(change))


def record(name: str, content: bytes) -> Callable[[Path], None]:
    """A .pt2 archive with one more record."""
    return archive(lambda records: records.update({name: content}))


def graph(change: Callable[[Any], None]) -> Callable[[Path], None]:
    """A .pt2 archive with its graph changed."""
    return program(lambda p: change(p["graph_module"]["graph"]))


def target(name: str) -> Callable[[Path], None]:
    """A program whose first operator is another."""
    return graph(lambda g: g["nodes"][0].update(target=name))


def signature(**changes: Any) -> Callable[[Path], None]:
    """A program that is called another way."""
    return program(lambda p: p["graph_module"]["module_call_graph"][0]["signature"].update(changes))


def given_to(name: str, argument: Mapping[str, Any]) -> Callable[[Path], None]:
    """A program whose first operator is `name` and is given an argument."""
    value = {"name": "filename", "arg": dict(argument), "kind": 1}
    return graph(lambda g: g["nodes"][0].update(target=name, inputs=[value]))


def weights(**changes: Any) -> Callable[[Path], None]:
    """A .pt2 archive whose first weight is listed otherwise; `weight_98` is a torch file with code."""

    def change(records: dict[str, bytes]) -> None:
        name = "data/weights/model_weights_config.json"
        config = json.loads(records[name])
        next(iter(config["config"].values())).update(changes)
        records[name] = json.dumps(config).encode()
        buffer = io.BytesIO()
        torch.save({"w": Bomb()}, buffer)
        records["data/weights/weight_98"] = buffer.getvalue()

    return archive(change)


def packed(path: Path) -> None:
    """256 MiB of zeros as a weight, packed into some kilobytes."""
    entry = zipfile.ZipInfo("robust/data/weights/weight_99")
    entry.compress_type = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "a") as file, file.open(entry, "w") as content:
        for _ in range(16):
            content.write(bytes(2**24))


def twice(path: Path) -> None:
    """Two programs of one name: which one is vetted, and which one is run?"""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as file:
        warnings.simplefilter("ignore")
        file.writestr("robust/models/model.json", b"{}")


def pipe(path: Path) -> None:
    """A pipe that nobody writes to."""
    path.unlink()
    os.mkfifo(path)


def tree(kind: str, context: object) -> str:
    """A description of arguments that names a class."""
    return json.dumps([1, {"type": kind, "context": json.dumps(context), "children_spec": []}])


CALL = f"__import__('os').mkdir('{CANARY}')"
FACTORY = {"default_factory_module": "antigravity", "default_factory_name": "geohash", "dict_context": []}
ENUM = {"__enum__": True, "fqn": "antigravity:geohash", "name": "x"}

ARTIFACT_CASES: dict[str, tuple[str, Any]] = {
    "a pickle named onnx": ("onnx", model(pickled())),
    "a zip archive named onnx": ("onnx", model(zipped)),
    "a torch file named onnx": ("onnx", model(torch_pickled)),
    "an ONNX file without a graph": ("onnx", model(field(1, 10))),
    "a model whose weights lie elsewhere": ("onnx", model(onnx_model(extra=external(f"{UP}etc/passwd")))),
    "a model whose weights lie at the root": ("onnx", model(onnx_model(extra=external("/etc/passwd")))),
    "a model whose weights lie beside it": ("onnx", model(onnx_model(extra=external("robust.onnx.json")))),
    "a branch whose weights lie elsewhere": ("onnx", model(onnx_model(extra=in_branches(external("/etc/passwd"))))),
    "operators of somebody's library": ("onnx", model(onnx_model(domain="com.somebody"))),
    "operators of onnxruntime's that open files": ("onnx", model(onnx_model(domain="com.microsoft"))),
    "a function with somebody's operators": ("onnx", model(onnx_model(more=field(25, field(7, field(7, "com.somebody")))))),
    "a model that trains": ("onnx", model(onnx_model(more=field(20, field(1, b""))))),
    "branches in branches": ("onnx", model(onnx_model(extra=in_branches(b"", 2000)))),
    "onnxruntime's own format": ("onnx", model(b"\x20\0\0\0ORTM" + bytes(100))),
    "a graph longer than its file": ("onnx", model(varint(7 << 3 | 2) + varint(2**62))),
    "ten million empty nodes": ("onnx", model(field(7, b"\x0a\x00" * 10_000_000))),
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
    "a pickle named pt2": ("program", archive(pickled())),
    "a torch file named pt2": ("program", archive(torch_pickled, whole=True)),
    "a program that climbs out of its folder": ("program", archive(zipped, whole=True)),
    "a program that is a pipe": ("program", pipe),
    "a program with machine code": ("program", record("data/aotinductor/model/a.so", b"\x7fELF")),
    "a program with a record that it does not need": ("program", record("data/constants/model.pt", pickled())),
    "a program with a record outside": ("program", record(f"data/weights/{UP}{CANARY}", b"")),
    "weights packed small": ("program", archive(packed, whole=True)),
    "a program twice": ("program", archive(twice, whole=True)),
    "a weight that is a torch file with code": ("program", weights(use_pickle=True, path_name="weight_98")),
    "a weight elsewhere": ("program", weights(path_name=f"{UP}etc/passwd")),
    "a weight of 2^62 numbers": (
        "program", weights(tensor_meta={"dtype": 7, "sizes": [{"as_int": 2**31}, {"as_int": 2**31}]}),
    ),
    "a size that calls": (
        "program",
        graph(lambda g: next(iter(g["tensor_values"].values())).update(sizes=[{"as_expr": {"expr_str": CALL}}])),
    ),
    "a size that is a tower of powers": (
        "program",
        graph(lambda g: next(iter(g["tensor_values"].values())).update(
            sizes=[{"as_expr": {"expr_str": "Pow(Integer(9), Pow(Integer(9), Integer(99)))"}}]
        )),
    ),
    "a size that is counted up to": (
        "program", program(lambda p: p["range_constraints"].update(u9999999999999={"min_val": 0, "max_val": 1})),
    ),
    "an operator that is torch.hub's": ("program", target("torch.hub.load")),
    "an operator that loads a library": ("program", target("torch.ops.load_library")),
    "an operator that calls methods": ("program", target("_operator.methodcaller")),
    "an operator of somebody's library": ("program", target("torch.ops.somebody.op.default")),
    "an operator that opens a file": ("program", given_to("torch.ops.aten.from_file.default", {"as_string": CANARY})),
    "an operator that writes a file": ("program", given_to("torch.ops.aten.save.default", {"as_string": CANARY})),
    "a function as an argument": ("program", given_to("torch.ops.aten.add.Tensor", {"as_operator": "torch.hub.load"})),
    "an object as an argument": (
        "program", given_to("torch.ops.aten.add.Tensor", {"as_custom_obj": {"name": "a", "class_fqn": "os.system"}}),
    ),
    "a tensor named by code": ("program", graph(lambda g: g["inputs"][0]["as_tensor"].update(name=f"a\n    {CALL}"))),
    "an argument named by code": ("program", signature(forward_arg_names=[f"a={CALL}"])),
    "arguments that import a module": ("program", signature(in_spec=tree("collections.defaultdict", FACTORY))),
    "results that import a module": ("program", signature(out_spec=tree("builtins.dict", [ENUM]))),
    "results of named tuples": (
        "program", program(lambda p: p["graph_module"].update(treespec_namedtuple_fields={"a": {"field_names": ["b"]}})),
    ),
    "a parameter behind a class": (
        "program",
        program(lambda p: p["graph_module"]["signature"]["input_specs"].append(
            {"parameter": {"arg": {"name": "a"}, "parameter_name": "__class__.__init__"}}
        )),
    ),
    "a program nested deep": ("program", archive(lambda r: r.update({"models/model.json": deep().encode()}))),
    "a program on an unknown device": (
        "program",
        graph(lambda g: next(iter(g["tensor_values"].values())).update(device={"type": "os.system", "index": None})),
    ),
}  # fmt: skip
