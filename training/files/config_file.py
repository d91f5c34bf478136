"""From YAML and `key=value` words to a checked configuration, or to one line for every fault.

A file may name another one under `base:` (a path relative to itself), whose keys hold wherever it says nothing itself; that one
may have a base, too.
"""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sensors import documents

Model = TypeVar("Model", bound=BaseModel)
Location = tuple[str | int, ...]


class ConfigError(ValueError):
    """What is wrong with a configuration: `faults` has one line for each fault."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number and a key given twice is an error, as is one that is no text (on, null)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen and name != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} is given twice", key.start_mark)
            seen.add(name)
            kind = key.tag.rpartition(":")[2]
            if kind in ("bool", "null"):
                problem = f"the key {name!r} is a {kind} in YAML: expected text, so put it in quotes"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML follows, reads 1e-3 as text; everyone who writes a learning rate means a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """The content of a YAML text; DocumentError where it is none, or more than a configuration can be."""
    return documents.parse_yaml(text, _Loader)


def to_yaml(config: BaseModel) -> str:
    """The complete configuration as YAML, in the order of its fields; reading it back gives the same configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


@dataclass(frozen=True)
class _Layer:
    """One source of settings, lowest first: bases, a file, the command line."""

    name: str
    content: dict[str, Any]


def load_config(model: type[Model], path: Path | None, overrides: Sequence[str] = ()) -> Model:
    """Read `path` (None: every default) with its bases, put `key=value` overrides on top, and check the whole.

    Raises:
        ConfigError: with every fault that was found, one line each.
        FileNotFoundError: `path` or a base does not exist.
    """
    layers = [] if path is None else _read_layers(path)
    command_line, faults = _parse_overrides(overrides)
    layers.append(_Layer("command line", command_line))
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merged(merged, layer.content, model)
    try:
        # Through JSON, because strict JSON mode is the one that takes a list for a tuple, but no "3" or `true` for a 3.
        config = model.model_validate_json(json.dumps(merged, default=str), strict=True)
    except ValidationError as error:
        faults += _faults(error.errors(include_url=False), model, layers)
    else:
        if not faults:
            return config
    raise ConfigError(faults)


def _read_layers(path: Path) -> list[_Layer]:
    """A file, above its base, above the base of that, and so on; the lowest first."""
    layers: list[_Layer] = []
    seen: dict[Path, Path] = {}  # resolved -> as it was named
    while True:
        content = _read(path)
        seen[path.resolve()] = path
        base = content.pop("base", None)
        layers.insert(0, _Layer(str(path), content))
        if base is None:
            return layers
        if not isinstance(base, str):
            raise ConfigError([f"base: expected the path of a YAML file, got {_shown(base)} ({path})"])
        below = path.parent / base
        if not below.is_file():
            raise FileNotFoundError(f"{path}: its base {below} does not exist; the path is relative to {path.parent}/")
        if below.resolve() in seen:
            named = list(seen.values())[list(seen).index(below.resolve()) :]
            circle = " -> ".join(map(str, [*named, below]))
            raise ConfigError([f"base: {circle} is a circle, expected a file without a base at its end"])
        path = below


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise FileNotFoundError(
            f"no configuration {path}" + (f"; there are {', '.join(near)}" if near else ", expected a YAML file")
        )
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (documents.DocumentError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: {error}"]) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError([f"{path}: expected keys and values, got {_shown(content)}"])
    return content


def _parse_overrides(overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    content: dict[str, Any] = {}
    faults: list[str] = []
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not all(key.split(".")):
            faults.append(f"{word}: expected key=value, for example optim.lr=1e-3 (command line)")
            continue
        try:
            value = parse_yaml(text)
        except documents.DocumentError as error:
            reason = str(error).removeprefix("no valid YAML: ")
            faults.append(f"{key}: no valid YAML value {text!r}: {reason} (command line)")
            continue
        *sections, leaf = key.split(".")
        place = content
        for section in sections:
            below = place.setdefault(section, {})
            if not isinstance(below, dict):
                below = place[section] = {}
            place = below
        place[leaf] = value
    return content, faults


def _merged(lower: Mapping[str, Any], upper: Mapping[str, Any], annotation: Any) -> dict[str, Any]:
    """`upper` over `lower`, section by section; lists and free mappings are replaced as a whole."""
    result = dict(lower)
    for key, value in upper.items():
        below = _field(annotation, key)
        old = result.get(key)
        if _is_section(below) and isinstance(value, dict) and isinstance(old, dict):
            result[key] = _merged(old, value, below)
        else:
            result[key] = value
    return result


# --- what a key may hold ----------------------------------------------------------------------------------------------


def _is_section(annotation: Any) -> bool:
    """Whether its keys, or the names in it, are of models."""
    named = (get_args(option)[1] for option in _options(annotation) if get_origin(option) is dict)
    return bool(_models(annotation)) or any(_models(value) for value in named)


def _options(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union (None left out), or the annotation alone."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(o for option in get_args(annotation) if option is not type(None) for o in _options(option))
    return (annotation,)


def _models(annotation: Any) -> list[type[BaseModel]]:
    return [option for option in _options(annotation) if isinstance(option, type) and issubclass(option, BaseModel)]


def _field(annotation: Any, part: str | int) -> Any:
    """The annotation one step below, None where there is no such step."""
    for option in _options(annotation):
        if isinstance(option, type) and issubclass(option, BaseModel):
            if part in option.model_fields:
                return option.model_fields[str(part)].annotation
        elif get_origin(option) in (tuple, list, set, frozenset) and isinstance(part, int):
            items = get_args(option)
            return items[part] if Ellipsis not in items and part < len(items) else items[0]
        elif get_origin(option) is dict:
            return get_args(option)[1]
    return None


def _tagged(annotation: Any, kind: str | int) -> type[BaseModel] | None:
    """The member of a union of models that has this `kind`."""
    models = _models(annotation)
    for model in models if len(models) > 1 else ():
        if "kind" in model.model_fields and model.model_fields["kind"].default == kind:
            return model
    return None


def _all_paths(annotation: Any, prefix: str = "") -> Iterator[str]:
    for model in _models(annotation):
        for name, field in model.model_fields.items():
            yield prefix + name
            yield from _all_paths(field.annotation, f"{prefix}{name}.")


# --- faults in words ------------------------------------------------------------------------------------------------


def _faults(errors: Sequence[ErrorDetails], model: type[BaseModel], layers: Sequence[_Layer]) -> list[str]:
    """One line for every key at fault; what the alternatives of a union expected is joined by "or"."""
    expected: dict[str, list[str]] = {}
    tails: dict[str, str] = {}
    places = [error["loc"] for error in errors]
    for error in errors:
        here = error["loc"]
        if error["type"] == "too_short" and any(p[: len(here)] == here and p != here for p in places):
            continue  # pydantic does not count members at fault; they are told by themselves
        location, annotation = _place(model, error["loc"], keep_last=error["type"] == "extra_forbidden")
        path = _dotted(location) or "configuration"
        wanted, tail = _describe(error, location, annotation, model)
        if wanted not in expected.setdefault(path, []):
            expected[path].append(wanted)
        tails[path] = tail + _origin(location, layers)
    return [f"{path}: {' or '.join(expected[path]).replace(' or expected', ' or')}{tails[path]}" for path in expected]


def _place(model: type[BaseModel], location: Location, *, keep_last: bool) -> tuple[Location, Any]:
    """The part of pydantic's location that a user wrote, without the names of union members, and what belongs there."""
    annotation: Any = model
    kept: list[str | int] = []
    for i, part in enumerate(location):
        if (tagged := _tagged(annotation, part)) is not None:
            annotation = tagged
            continue
        below = _field(annotation, part)
        if below is None and not (keep_last and i == len(location) - 1):
            continue
        kept.append(part)
        annotation = annotation if below is None else below
    return tuple(kept), annotation


def _describe(
    error: ErrorDetails, location: Location, annotation: Any, model: type[BaseModel]
) -> tuple[str, str]:  # what was expected; what was given, and what may have been meant
    got = f", got {_shown(error['input'])}"
    match error["type"]:
        case "extra_forbidden":
            names = list(dict.fromkeys(name for option in _models(annotation) for name in option.model_fields))
            *parents, leaf = location
            named = [(*parents, name, leaf) for name in names if _tagged(_field(_field(annotation, name), leaf), leaf)]
            meant = f"; did you mean {_dotted(named[0])}?" if named else _nearest_key(location, names, model)
            return f"unknown key, expected one of {', '.join(names)}", meant
        case "union_tag_invalid" | "union_tag_not_found":
            kinds = [str(field.default) for option in _models(annotation) for field in [option.model_fields["kind"]]]
            return f"expected kind to be one of {', '.join(kinds)}", got
        case "missing":
            return "missing, expected a value", ""
        case "value_error" | "assertion_error":
            return error["msg"].split(", ", 1)[-1], ""
        case "literal_error" | "enum":
            names = re.findall(r"'([^']*)'", str(error.get("ctx", {}).get("expected", "")))
            near = difflib.get_close_matches(str(error["input"]), names, n=1, cutoff=0.4)
            return error["msg"].replace("Input should be", "expected"), got + (
                f"; did you mean {near[0]!r}?" if near else ""
            )
        case "string_pattern_mismatch":
            return f"expected text that matches {error.get('ctx', {}).get('pattern')}", got
        case "model_type" | "model_attributes_type" | "dict_type":
            return "expected a section with keys", got
        case _:
            return re.sub(
                r"^(\w+) should (be )?", lambda m: "expected " if m[2] else f"{m[1]} should ", error["msg"]
            ), got


def _nearest_key(location: Location, siblings: Sequence[str], model: type[BaseModel]) -> str:
    """The valid key that was most likely meant: a neighbour spelt alike, else the same name elsewhere."""
    *parents, leaf = location
    near = difflib.get_close_matches(str(leaf), siblings, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {_dotted((*parents, near[0]))}?"
    paths = list(_all_paths(model))
    elsewhere = [path for path in paths if path.rsplit(".", 1)[-1] == leaf]
    elsewhere = elsewhere or difflib.get_close_matches(_dotted(location), paths, n=1, cutoff=0.6)
    return f"; did you mean {elsewhere[0]}?" if elsewhere else ""


def _origin(location: Location, layers: Sequence[_Layer]) -> str:
    """In which file, or on the command line, the key at fault was written."""
    for layer in reversed(layers):
        place: Any = layer.content
        try:
            for part in location:
                place = place[part]
        except (KeyError, IndexError, TypeError):
            continue
        return f" ({layer.name})" if location else ""
    return ""


def _dotted(location: Sequence[str | int]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
