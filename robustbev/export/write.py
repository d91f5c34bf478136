"""A graph as a file: traced by torch.export, then as ONNX, as torch's own archive, or compiled by AOTInductor."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from robustbev.export.graphs import Graph
from robustbev.export.interface import ExportError, Interface
from robustbev.export.manifest import Kind
from sensors.extras import require

OPSET = 20  # onnxruntime 1.20 to 1.31 run it with all their fused kernels
_ONNX_BYTES = 2**31  # protobuf's limit for one file
# What torch notes of each node's origin: paths of this machine, and other bytes wherever the code lies.
_ORIGINS = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom")


def need_onnx() -> None:
    """MissingExtraError unless the libraries that write and check ONNX are installed."""
    require("export to ONNX", "export")


def trace(graph: Graph, interface: Interface, example: Mapping[str, Tensor]) -> ExportedProgram:
    """One graph without Python; the sizes that `interface` names by symbols stay free within their bounds."""
    dims = {name: torch.export.Dim(name, min=s.min, max=s.max) for name, s in interface.symbols.items()}
    shapes = tuple(
        {axis: dims[size] for axis, size in enumerate(spec.shape) if isinstance(size, str)} for spec in interface.inputs
    )
    arguments = tuple(example[spec.name] for spec in interface.inputs)
    with _quiet(), torch.no_grad():
        # All arguments are one, *tensors.
        program = torch.export.export(graph, arguments, dynamic_shapes=(shapes,), strict=False)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for origin in _ORIGINS:
                    node.meta.pop(origin, None)
    return program


def write_program(program: ExportedProgram, path: Path, kind: Kind, interface: Interface) -> None:
    """Write `program` to `path`, whose suffix is that of `kind`.

    Raises:
        MissingExtraError: ONNX without its libraries.
        ExportError: the compiler that AOTInductor needs is missing or fails; more than 2 GiB as ONNX.
    """
    with _quiet():
        match kind:
            case "onnx":
                _write_onnx(program, path, interface)
            case "pt2":
                program.example_inputs = None  # noise, and more bytes than the weights of a fuser
                torch.export.save(program, path)
            case "aoti":
                _compile(program, path)


def _compile(program: ExportedProgram, path: Path) -> None:
    import torch._inductor

    try:
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(path),
            # The number of threads is that of the process which runs the package, not of this one.
            inductor_configs={"cpp.dynamic_threads": True, "aot_inductor.metadata": {}, "cpp.march": _march()},
        )
    except Exception as error:  # compilers fail in many ways, and none of torch's classes for it is public
        reason = str(error).strip().partition("\n")[0][:300]
        raise ExportError(
            f"{path.name}: AOTInductor could not compile the model: {reason}. It needs a C++ compiler (g++ or clang++) and "
            "Python's headers on this machine; kinds onnx and pt2 need neither"
        ) from error


def _march() -> str | None:
    """What the package may ask of a processor: what its manifest says, not all that this machine has; None: torch's choice.

    With `-march=native` on a processor with AVX-512, g++ 12 also makes of torch's AVX2 code (ATEN_CPU_CAPABILITY=avx2)
    programs that choose the wrong side of `where`: it folds an inverted comparison of int64 into a blend.
    """
    return {"AVX2": "x86-64-v3", "AVX512": "x86-64-v4"}.get(torch.backends.cpu.get_cpu_capability())


def _write_onnx(program: ExportedProgram, path: Path, interface: Interface) -> None:
    import onnx

    exported = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=[spec.name for spec in interface.inputs],
        output_names=[spec.name for spec in interface.outputs],
        custom_translation_table=_translations(),
        verbose=False,
    )
    assert exported is not None
    model = exported.model_proto
    _rename_sizes(model, interface)
    _forget_origins(model)
    size = model.ByteSize()
    if size >= _ONNX_BYTES:
        raise ExportError(f"{path.name}: expected less than 2 GiB for one ONNX file, got {size} bytes: choose kind pt2")
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path), full_check=True)


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What torch does not translate, or translates into what onnxruntime computes wrongly or slowly.

    Its ScatterND adds to and takes maxima of rows on several threads at once without locks: with 2 threads 18 of 100 runs lost
    some (1.31, 80,000 rows). ScatterElements is sequential; on one axis it takes a third of its time on two.
    """
    import onnx
    from onnxscript import opset20

    op: Any = opset20

    def scatter(into: Any, rows: Any, values: Any, reduction: str) -> Any:
        """`values` [P, ..] into the rows [P, 1] or [P] of `into` [R, ..], one value at a time."""
        width = [int(size) for size in list(into.shape)[1:]]
        columns = math.prod(width)
        firsts = op.Mul(op.Reshape(rows, op.Constant(value_ints=[-1, 1])), op.Constant(value_int=columns))
        cells = op.Add(firsts, op.Constant(value=onnx.numpy_helper.from_array(np.arange(columns)[None])))
        flat = op.Constant(value_ints=[-1])
        scattered = op.ScatterElements(
            op.Reshape(into, flat), op.Reshape(cells, flat), op.Reshape(values, flat), axis=0, reduction=reduction
        )
        return op.Reshape(scattered, op.Constant(value_ints=[-1, *width]))

    def index_add(self: Any, dim: int, index: Any, source: Any, alpha: float = 1) -> Any:
        assert (dim, alpha) == (0, 1)
        return scatter(self, index, source, "add")

    def scatter_reduce(self: Any, dim: int, index: Any, source: Any, reduce: str, include_self: bool = True) -> Any:
        whole = index.producer()  # [P, 1] rows, expanded to the columns of `source`
        assert (dim, reduce, include_self, whole.op_type) == (0, "amax", True, "Expand")
        return scatter(self, whole.inputs[0], source, "max")

    def sort(self: Any, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
        # Of equal values ONNX's TopK puts the one with the lower index first: a stable sort.
        count = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]))
        return op.TopK(self, count, axis=dim, largest=int(descending), sorted=1)

    aten = torch.ops.aten
    return {aten.index_add.default: index_add, aten.scatter_reduce.two: scatter_reduce, aten.sort.stable: sort}


def _rename_sizes(model: Any, interface: Interface) -> None:
    """Call the free sizes as the manifest does, wherever the file names them."""
    names = {}
    for value, spec in zip(model.graph.input, interface.inputs, strict=True):
        for dim, size in zip(value.type.tensor_type.shape.dim, spec.shape, strict=True):
            if isinstance(size, str):
                names[dim.dim_param] = size
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    for dim in (dim for value in values for dim in value.type.tensor_type.shape.dim if dim.dim_param):
        dim.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dim.dim_param)
    for value, spec in zip(model.graph.output, interface.outputs, strict=True):
        for dim, size in zip(value.type.tensor_type.shape.dim, spec.shape, strict=True):
            if isinstance(size, str):
                dim.dim_param = size


def _forget_origins(model: Any) -> None:
    graphs = [model.graph, *model.functions]
    del model.metadata_props[:]
    while graphs:
        graph = graphs.pop()
        del graph.metadata_props[:]
        graph.doc_string = ""
        for value in (*graph.value_info, *getattr(graph, "input", ()), *getattr(graph, "initializer", ())):
            if hasattr(value, "metadata_props"):
                del value.metadata_props[:]
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters of torch tell of their own deprecated habits, of which nobody here can do anything."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
