"""The program in an archive of torch.export, held against a grammar: no name, path or expression in it can be code."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .manifest import ArtifactError, parse_json, shown

_WORD = re.compile(r"[A-Za-z0-9_]{0,200}", re.ASCII)
PARAMETER_PATH = re.compile(r"(?!(?:.*\.)?__)[A-Za-z0-9_.]{0,400}", re.ASCII)  # of a parameter
_STRINGS = {
    "parameter_name": PARAMETER_PATH, "buffer_name": PARAMETER_PATH, "tensor_constant_name": PARAMETER_PATH,
    "fqn": PARAMETER_PATH,
    "torch_version": re.compile(r"[A-Za-z0-9_.+<=]{0,60}", re.ASCII), "verifiers": re.compile("ATEN|TRAINING|", re.ASCII),
    "as_float": re.compile("-?Infinity|NaN"), "as_floats": re.compile("-?Infinity|NaN"),
    "as_string": re.compile("[ -~]{0,400}"), "as_strings": re.compile("[ -~]{0,400}"),
}  # fmt: skip
_REFUSED = {"as_custom_obj": "an object", "custom_obj": "an object", "as_operator": "a function"}
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.([A-Za-z_0-9]+)\.[A-Za-z_0-9]+"
    r"|torch\.ops\.higher_order\.(cond|while_loop|wrap_with_autocast|wrap_with_set_grad_enabled)"
    r"|_operator\.(?:getitem|add|sub|mul|floordiv|mod|neg|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|torch\.sym_(?:float|int|max|min|not|sum)|math\.(?:ceil|floor|trunc)",
    re.ASCII,
)
# Operators that torch keeps to itself are mostly unchecked kernels; these are what tracing and decomposition leave in a graph.
_PRIVATE = re.compile(
    "__and__|__or__|__xor__|__iand__|__ior__|__ixor__|__lshift__|__rshift__|_assert_tensor_metadata|_assert_scalar|"
    "_assert_async|_softmax|_log_softmax|_to_copy|_unsafe_view|_native_batch_norm_legit|"
    "_native_batch_norm_legit_no_training|_embedding_bag|_embedding_bag_forward_only|_cdist_forward|"
    "_adaptive_avg_pool2d|_scaled_dot_product_flash_attention_for_cpu"
)
_FORBIDDEN = re.compile("set_|set|set_data|resize_|resize|from_file|save")
# Only these take words: elsewhere a word could be a file's name.
_WORDED = re.compile(
    "pad|div|div_|divide|gelu|scatter|scatter_|scatter_reduce|scatter_reduce_|index_reduce|index_reduce_|meshgrid|"
    "einsum|searchsorted|_assert_scalar|_assert_async|conv1d|conv2d|conv3d|linalg_norm|linalg_matrix_norm|"
    "wrap_with_autocast"
)
_SYMPY = re.compile(
    "Add|Mul|Max|Min|Integer|Symbol|FloorDiv|Mod|PythonMod|CeilDiv|CleanDiv|ModularIndexing|Equality|Unequality|"
    "StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|And|Or|Not|ToFloat|TruncToInt|FloorToInt|CeilToInt|"
    "IntTrueDiv|Identity"
)


@dataclass(frozen=True)
class Signature:
    """How many tensors a program takes and gives, and its arguments' names, which may be generic."""

    inputs: int
    outputs: int
    names: tuple[str, ...]


def vet_program(program: Any, where: str) -> tuple[Any, Signature]:
    """The program without what running does not need (recorded Python, sources, guards), and how it is called."""
    graph = program.get("graph_module") if isinstance(program, dict) else None
    if not isinstance(graph, dict):
        raise ArtifactError(f"{where}: expected a program as torch.export.save writes it; not loaded")
    if graph.get("treespec_namedtuple_fields"):
        raise ArtifactError(f"{where}: named tuples name classes of somebody's code; export plain tuples: not loaded")
    ranges = program.get("range_constraints")
    if not isinstance(ranges, dict) or not all(_is_symbol(name) for name in ranges):  # torch counts up to their numbers
        raise ArtifactError(f"{where}: range_constraints: expected sizes' symbols with small numbers; not loaded")
    cleaned = vetted_value(program | {"guards_code": []}, "", where, 0)
    try:
        signature = graph["module_call_graph"][0]["signature"]
        inputs, outputs = (json.loads(signature[key])[1] for key in ("in_spec", "out_spec"))
        names = tuple(signature["forward_arg_names"] or ())
        return cleaned, Signature(_count(inputs), _count(outputs), names)
    except (LookupError, TypeError, ValueError) as error:
        raise ArtifactError(f"{where}: does not say how it is called ({error!r:.100}); not loaded") from error


def _count(tree: Mapping[str, Any]) -> int:
    """Leaves of a vetted tree."""
    return 1 if tree["type"] is None else sum(_count(child) for child in tree["children_spec"])


def vetted_value(value: Any, key: str, where: str, depth: int, words: bool = False) -> Any:
    """`value`, which stands under `key`, with every text held against what torch would make of it.

    Names come to stand in Python that torch generates, paths are followed by `getattr`, expressions go through `eval`, and a
    tree's description may import a module. `words`: an operator that takes words is around.
    """
    if depth > 60:
        raise ArtifactError(f"{where}: nested beyond all programs; not loaded")
    if isinstance(value, dict):
        for name in value:
            if not PARAMETER_PATH.fullmatch(name):
                raise ArtifactError(f"{where}: {shown(name)} is no name; not loaded")
            if name in _REFUSED:
                raise ArtifactError(
                    f"{where}: {name}: the program holds {_REFUSED[name]}, which could be code; not loaded"
                )
        if isinstance(value.get("target"), str) and "inputs" in value:
            words = bool(_WORDED.fullmatch(_vet_operator(value["target"], where)))
        if isinstance(value.get("type"), str) and value["type"] not in ("cpu", "cuda"):
            raise ArtifactError(f"{where}: expected a device cpu or cuda, got {shown(value['type'])}; not loaded")
        return {
            name: {} if name == "metadata" else vetted_value(inner, name, where, depth + 1, words)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [vetted_value(inner, key, where, depth + 1, words) for inner in value]
    if isinstance(value, str):
        _vet_text(value, key, where, words)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ArtifactError(f"{where}: {key}: a number beyond 64 bits; not loaded")
    return value


def _vet_text(text: str, key: str, where: str, words: bool) -> None:
    match key:
        case "target":
            _vet_operator(text, where)
        case "expr_str":
            _vet_expression(text, where)
        case "in_spec" | "out_spec":
            tree = parse_json(text.encode(), f"{where}: {key}")
            if not isinstance(tree, list) or len(tree) != 2 or tree[0] != 1:
                raise ArtifactError(f"{where}: {key}: expected a tree of version 1, got {shown(text)}; not loaded")
            _vet_tree(tree[1], f"{where}: {key}", 0)
        case "as_string" | "as_strings" if not words:
            raise ArtifactError(f"{where}: the word {shown(text)} is given to an operator that takes none; not loaded")
        case _:
            if not _STRINGS.get(key, _WORD).fullmatch(text):
                raise ArtifactError(f"{where}: {key}: {shown(text)} could be code; expected a plain name: not loaded")


def _vet_operator(target: str, where: str) -> str:
    """The name of an operator of torch's own that computes and does nothing else."""
    match = _OPERATOR.fullmatch(target)
    name = (match[1] or match[2] or "") if match else ""
    if not match or _FORBIDDEN.fullmatch(name) or (name.startswith("_") and not _PRIVATE.fullmatch(name)):
        raise ArtifactError(
            f"{where}: target: {shown(target)} is none of the operators that a program may call; expected torch.ops.aten's: "
            "not loaded"
        )
    return name


def _vet_expression(text: str, where: str) -> None:
    """ArtifactError unless a size's expression is arithmetic in SymPy's notation: SymPy would `eval` it."""
    try:
        sound = len(text) <= 2000 and _is_arithmetic(ast.parse(text, mode="eval").body, 0)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        sound = False
    if not sound:
        raise ArtifactError(f"{where}: expr_str: {shown(text)} could be code; expected arithmetic of sizes: not loaded")


def _is_arithmetic(node: ast.expr, depth: int) -> bool:
    if isinstance(node, ast.Name):
        return node.id in ("true", "false", "int_oo")
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or depth > 50:
        return False
    name, given = node.func.id, node.args
    if name == "Symbol":
        flags = all(
            isinstance(k.value, ast.Constant) and isinstance(k.value.value, bool) and k.arg for k in node.keywords
        )
        return flags and len(given) == 1 and isinstance(given[0], ast.Constant) and _is_symbol(given[0].value)
    if node.keywords:
        return False
    if name == "Integer":
        return len(given) == 1 and isinstance(_number(given[0]), int)
    if name == "Pow":  # towers of powers would fill the memory
        small = len(given) == 2 and isinstance(given[1], ast.Call) and _is_arithmetic(given[1], depth + 1)
        exponent = _number(given[1].args[0]) if small and isinstance(given[1], ast.Call) and given[1].args else None
        base = given[0] if given else None
        plain = isinstance(base, ast.Call) and isinstance(base.func, ast.Name) and base.func.id == "Symbol"
        return exponent is not None and abs(exponent) <= 4 and plain and _is_arithmetic(given[0], depth + 1)
    return bool(_SYMPY.fullmatch(name)) and all(_is_arithmetic(inner, depth + 1) for inner in given)


def _number(node: ast.expr) -> int | None:
    sign, inner = (-1, node.operand) if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else (1, node)
    value = inner.value if isinstance(inner, ast.Constant) else None
    return sign * value if isinstance(value, int) and abs(value) < 2**63 else None


def _is_symbol(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[a-z]{1,3}\d{1,6}", name, re.ASCII) is not None


def _vet_tree(tree: Any, where: str, depth: int) -> None:
    """ArtifactError unless inputs and outputs are tuples, lists and dictionaries of tensors: other trees import modules."""
    sound = isinstance(tree, dict) and set(tree) == {"type", "context", "children_spec"} and depth < 20
    children = tree["children_spec"] if sound else None
    if not sound or not isinstance(children, list) or tree["type"] not in (None, *_TREES):
        raise ArtifactError(f"{where}: expected tuples, lists and dictionaries alone, which name no class; not loaded")
    context = tree["context"]
    if tree["type"] == "builtins.dict":
        keys = parse_json(context.encode(), where) if isinstance(context, str) else None
        if not isinstance(keys, list) or not all(isinstance(k, str) and _WORD.fullmatch(k) for k in keys):
            raise ArtifactError(f"{where}: expected a dictionary's plain names, got {shown(context)}; not loaded")
    elif context not in (None, "null"):
        raise ArtifactError(f"{where}: expected no context, got {shown(context)}; not loaded")
    for child in children:
        _vet_tree(child, where, depth + 1)


_TREES = ("builtins.tuple", "builtins.list", "builtins.dict")
