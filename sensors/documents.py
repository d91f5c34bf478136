"""JSON and YAML from files that others wrote: bounded in size, depth and references, so that every fault is a DocumentError.

Readers of both recurse: brackets a hundred thousand deep end in a RecursionError. A YAML reference makes a kilobyte mean 10^30
words once something walks it ("billion laughs"); JSON's NaN and 1e999 pass for numbers until something counts with them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

if TYPE_CHECKING:
    import yaml

MAX_JSON_BYTES = 8 * 2**20  # of settings
_MOST_MEMORY = 128 * 2**20  # of JSON's lists and objects; and what is larger than this may take eight times its bytes
_LIST_MEMORY, _OBJECT_MEMORY = 80, 200  # of an empty list with its place in another one, of an object with one key
MAX_YAML_BYTES = 2**20
_MAX_DEPTH = 50
_MAX_EVENTS = 20_000  # begins, ends and values: PyYAML takes about a second for so many
_MAX_REFERENCES = 100
_MAX_DIGITS = 20  # of a whole number: 64 bits


class DocumentError(ValueError):
    """A text that is no JSON or YAML, or more than a file of settings can be, as "expected ..., got ..."."""


def short(value: object, length: int = 80) -> str:
    """What a value looks like, at no more cost than that: lists and mappings only by their first entries."""
    import reprlib

    shown = reprlib.Repr()
    shown.maxlevel, shown.maxstring, shown.maxother = 2, length, length
    text = " ".join(shown.repr(value).split())
    return text if len(text) <= length else text[: length - 3] + "..."


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DocumentError: too large, no UTF-8, no JSON, or numbers in it that are not finite or beyond 64 bits.
        OSError: it cannot be read.
    """
    return parse_json(_read(path, MAX_JSON_BYTES))


def parse_json(text: str | bytes) -> Any:
    """The content of a JSON text; errors as `read_json`."""
    check_memory(text)
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise DocumentError("expected JSON, got brackets nested too deep to be read") from None
    except DocumentError:
        raise
    except ValueError as error:  # no JSON, or bytes that are no UTF-8
        raise DocumentError(f"expected JSON, got what is none: {error}") from None


def check_memory(text: str | bytes) -> None:
    """DocumentError for JSON that is small and holds much: a file of [[],[],[], ...] takes thirty times its bytes in memory.

    What else it holds takes no more than some ten times its bytes, so that lists and objects alone are counted.
    """
    if len(text) * _LIST_MEMORY <= _MOST_MEMORY:
        return
    data = text.encode() if isinstance(text, str) else text
    blocks = (np.frombuffer(data[at : at + 2**20], np.uint8) for at in range(0, len(data), 2**20))
    counts = [(np.count_nonzero(block == ord("[")), np.count_nonzero(block == ord("{"))) for block in blocks]
    lists, objects = map(sum, zip(*counts, strict=True))
    memory, most = lists * _LIST_MEMORY + objects * _OBJECT_MEMORY, max(_MOST_MEMORY, 8 * len(data))
    if memory > most:
        raise DocumentError(
            f"expected JSON that takes at most {most >> 20} MiB in memory, got {lists} lists and {objects} objects in "
            f"{len(data)} bytes, which would take {memory >> 20}"
        )


def read_yaml(path: Path, most_values: int = _MAX_EVENTS) -> Any:
    """The content of a YAML file, by the safe loader, libyaml's where PyYAML has it and more values are allowed than usual.

    Raises:
        DocumentError: too large, no UTF-8, no YAML, nested too deep, or with more references than a person would write.
        OSError: it cannot be read.
        ImportError: PyYAML is not installed.
    """
    import yaml

    long = most_values > _MAX_EVENTS
    loader = yaml.CSafeLoader if long and yaml.__with_libyaml__ else yaml.SafeLoader
    most_bytes = MAX_YAML_BYTES * max(1, most_values // _MAX_EVENTS)
    return parse_yaml(_read(path, most_bytes), loader, most_values)


def parse_yaml(text: str, loader: type[yaml.SafeLoader | yaml.CSafeLoader], most_values: int = _MAX_EVENTS) -> Any:
    """The content of a YAML text by a loader that is or derives from the safe one; errors as `read_yaml`."""
    import yaml

    try:
        _check_events(text, loader, most_values)
        return yaml.load(text, Loader=loader)
    except DocumentError:
        raise
    except RecursionError:
        raise DocumentError("expected YAML, got brackets nested too deep to be read") from None
    except yaml.YAMLError as error:
        raise DocumentError(f"no valid YAML: {' '.join(str(error).split())}") from None
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        # PyYAML's own slips over a tag that does not fit its value, as in `!!timestamp x`.
        raise DocumentError(f"no valid YAML: a value does not fit its tag ({error})") from None


def _check_events(text: str, loader: type[yaml.SafeLoader | yaml.CSafeLoader], most_values: int) -> None:
    """DocumentError for what is deeper, longer or more tangled than a file of settings. Parsing alone does not recurse."""
    import yaml

    depth = references = 0
    anchored: list[int] = []  # depths at which something that is referred to began
    for number, event in enumerate(yaml.parse(text, Loader=loader)):
        if number > most_values:
            raise DocumentError(f"expected at most {most_values} keys and values, got more")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise DocumentError(f"expected at most {_MAX_DEPTH} levels, got more, at line {_line(event)}")
            if event.anchor is not None:
                anchored.append(depth)
        elif isinstance(event, yaml.CollectionEndEvent):
            if anchored and anchored[-1] == depth:
                anchored.pop()
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            references += 1
            if anchored or references > _MAX_REFERENCES:
                raise DocumentError(
                    f"expected at most {_MAX_REFERENCES} references (*{event.anchor}), and none within what is itself "
                    f"referred to, got one at line {_line(event)}"
                )


def _line(event: yaml.Event) -> int | str:
    """Where it begins, counted from 1."""
    return "?" if event.start_mark is None else event.start_mark.line + 1


def _read(path: Path, most_bytes: int) -> str:
    if path.exists() and not path.is_file() and Path("/dev") not in path.parents:  # where a shell's own pipes are
        raise DocumentError("expected a file, got a folder, a pipe or a device")
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise DocumentError(f"expected at most {most_bytes} bytes, got more")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DocumentError(f"expected UTF-8 text, got other bytes: {error}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise DocumentError(f"expected finite numbers, got {name}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise DocumentError(f"expected finite numbers, got {text[:40]}")
    return value


def _whole(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise DocumentError(f"expected whole numbers of at most {_MAX_DIGITS} digits, got one of {len(text)}")
    return int(text)
