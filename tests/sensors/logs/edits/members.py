"""The members of a message, whatever library it is of, and other values for them."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

INTS = (
    0, 1, 2, 3, 4, 7, 255, 256, 32767, 65535, 2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, -1, -(2**31),
)  # fmt: skip
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 3.0, 1e-300, 1e9, 1e300, float("nan"), float("inf"), float("-inf"))
_NAMES = "/ map base_link CAM_BACK jpeg png mono16 bayer_rggb8 rgb8 equidistant plumb_bob rational_polynomial x y z NaN"
_TEXTS = ("", *_NAMES.split(), "\x00", "\u00e4\U0001f600", "a" * 5000, "2024-01-01T00:00:00Z")


@dataclass(frozen=True)
class Leaf:
    """A member of a message, and how to set it."""

    name: str
    value: Any
    set: Callable[[Any], None]


def leaves(message: Any, name: str = "") -> Iterator[Leaf]:
    """Of a rosbags message, a protobuf message or a JSON object; lists are leaves too."""
    if isinstance(message, dict):
        members = [(one, value, _setter(message.__setitem__, one)) for one, value in message.items()]
    elif is_dataclass(message):
        members = [
            (f.name, getattr(message, f.name), _setter(message, f.name))
            for f in fields(message)
            if f.name != "__msgtype__"
        ]
    elif hasattr(message, "DESCRIPTOR"):
        members = [(f.name, getattr(message, f.name), _setter(message, f.name)) for f in message.DESCRIPTOR.fields]
    else:
        return
    for one, value, put in members:
        path = f"{name}.{one}".lstrip(".")
        if hasattr(value, "append"):
            yield Leaf(path, value, _replacer(value) if hasattr(message, "DESCRIPTOR") else put)
            for number, item in enumerate(list(value)[:8]):
                if isinstance(item, int | float | str):
                    yield Leaf(f"{path}[{number}]", item, _setter(value.__setitem__, number))
                yield from leaves(item, f"{path}[{number}]")
        elif isinstance(value, int | float | str | bytes | np.ndarray) or value is None:
            yield Leaf(path, value, put)
        else:
            if isinstance(message, dict):
                yield Leaf(path, value, put)
            yield from leaves(value, path)


def _setter(target: Any, name: Any) -> Callable[[Any], None]:
    return (lambda value: target(name, value)) if callable(target) else (lambda value: setattr(target, name, value))


def _replacer(target: Any) -> Callable[[Any], None]:
    """Protobuf's repeated fields are not set, but filled."""

    def put(value: Any) -> None:
        items = list(value)
        del target[:]
        target.extend(items)

    return put


def other(value: Any, rng: random.Random, *, free: bool) -> Any:
    """Another value, mostly of the same type; of any where `free`."""
    if free and rng.random() < 0.25:
        return rng.choice((None, True, 3, -1.5, "text", [], {}, [1], {"sec": 1}, float("nan"), 10**30))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((*INTS, value + 1, value - 1, value * 2, value // 2))
    if isinstance(value, float):
        return rng.choice((*FLOATS, value * 2, -value, value * (1 + 1e-7)))
    if isinstance(value, str):
        cut = value[: rng.randrange(len(value) + 1)]
        packed = base64.b64encode(rng.randbytes(rng.randrange(40))).decode()
        return rng.choice((*_TEXTS, cut, value + "x", "/" + value, value.upper(), packed))
    if isinstance(value, bytes):
        return rng.choice(
            (b"", value[: rng.randrange(len(value) + 1)], value + b"\x00", rng.randbytes(len(value)), value * 2)
        )
    if isinstance(value, np.ndarray):
        out = value.copy()
        match rng.randrange(3):
            case 0:
                return out[: rng.randrange(len(out) + 1)]
            case 1:
                return np.concatenate([out, out])
            case _:
                if len(out):
                    out[rng.randrange(len(out))] = rng.choice(FLOATS) if out.dtype.kind == "f" else rng.randrange(256)
                return out
    if isinstance(value, dict):
        return {one: item for one, item in value.items() if rng.random() < 0.5}
    items = list(value)
    if items and rng.random() < 0.5:
        del items[rng.randrange(len(items))]
        return items
    return [*items, items[-1]] * rng.choice((1, 1, 50)) if items else items
