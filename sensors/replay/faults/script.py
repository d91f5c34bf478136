"""Faults as text: what goes wrong with which sensor of a log, and when.

    TARGET: ACTION [ARGUMENTS] [START..END]

    lidar_top: drop 5s..9s        cam_front: flicker 0.5s 70% 10s..     radar: delay 300ms
    camera: fog-3 ..30s           /lidar_top: skew -1s                  all: rate 2hz

A target is a channel (in any case), a modality, a topic, or `all`: every mapped sensor. A channel or a modality stands for its
pictures or points; its calibration is reached by the topic's own name. START and END are times after the log's beginning, in ns,
us, ms, s, min or h; either may be left out, and without a window a fault holds always. `read_fault_scripts` reads YAML.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from sensors.corruptions import CORRUPTIONS, SEVERITIES, Corruption
from sensors.documents import DocumentError, read_yaml
from sensors.documents import short as _short
from sensors.replay.faults.kinds import (
    Action,
    Delay,
    Drift,
    Drop,
    Duplicate,
    Fault,
    FaultError,
    FaultScript,
    Flicker,
    Freeze,
    Malform,
    Rate,
    Shift,
    Skew,
)

MAX_DELAY_NS = 10_000_000_000  # delayed messages wait in memory
_USAGE = {
    "drop": "drop", "flicker": "flicker PERIOD [ON%], as flicker 0.5s 70%", "freeze": "freeze",
    "delay": "delay TIME, as delay 300ms", "skew": "skew TIME, as skew -200ms", "drift": "drift TIME/s, as drift 1ms/s",
    "shift": "shift LENGTH ANGLE or one of them, as shift 0.2m 2deg", "malformed": "malformed",
    "rate": "rate FREQUENCY, as rate 2hz", "duplicate": "duplicate",
}  # fmt: skip
_PLAIN: dict[str, Action] = {"drop": Drop(), "freeze": Freeze(), "malformed": Malform(), "duplicate": Duplicate()}
_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d{1,3})?)"
_UNIT_NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9}
_UNIT_M = {"mm": 1e-3, "cm": 1e-2, "m": 1.0}
_EXAMPLE = "expected TARGET: ACTION [ARGUMENTS] [START..END], as 'lidar_top: drop 5s..9s'"


def parse_fault(text: str) -> Fault:
    """From "lidar_top: drop 5s..9s"; FaultError says what is wrong with it."""
    target, colon, rest = (part.strip() for part in text.partition(":"))
    words = rest.split()
    if not colon or not target or any(c.isspace() for c in target) or not words:
        raise FaultError(f"fault {text!r}: {_EXAMPLE}")
    try:
        start_ns, end_ns = None, None
        if len(words) > 1 and ".." in words[-1]:
            start_ns, end_ns = _window(words.pop())
        action = _action(words[0], [word.lower() for word in words[1:]])
        return Fault(target, action, start_ns, end_ns, text=text)
    except FaultError as error:
        raise FaultError(f"fault {text!r}: {error}") from None


def parse_faults(lines: Iterable[str]) -> tuple[Fault, ...]:
    """Every line by `parse_fault`, in order."""
    return tuple(parse_fault(line) for line in lines)


def _window(text: str) -> tuple[int | None, int | None]:
    start, _, end = text.partition("..")
    if not start and not end:
        raise FaultError("the window '..' has neither start nor end: expected START..END, START.. or ..END, as 5s..9s")
    start_ns, end_ns = (_time_ns(part, "a time after the log's beginning") if part else None for part in (start, end))
    if start_ns is not None and start_ns < 0:
        raise FaultError(f"start {start}: expected a time after the log's beginning, 0s or later")
    if end_ns is not None and end_ns <= (start_ns or 0):
        raise FaultError(
            f"the window {text} ends {end}, not after its start {start or '0s'}; expected START before END"
        )
    return start_ns, end_ns


def _action(name: str, words: Sequence[str]) -> Action:
    """The action of a name and its arguments, lower case."""
    key = name.lower()
    if key not in _USAGE:
        return _corruption(key, words)
    action = _PLAIN.get(key)
    if action is None and words:
        action = _with_arguments(key, words)
    elif action is not None and words:
        action = None
    if action is None:
        raise FaultError(f"expected {_USAGE[key]}, got {' '.join([key, *words])!r}")
    return action


def _with_arguments(key: str, words: Sequence[str]) -> Action | None:
    """None where there are too many arguments, or such as the action does not know."""
    first, *more = words
    match key, more:
        case "flicker", []:
            return Flicker(_positive_ns(first, "a period"))
        case "flicker", [share]:
            percent = _measured(share, {"%": 1.0})
            if percent is None or not 0 < percent < 100:
                raise FaultError(f"on-share {share}: expected more than 0% and less than 100%, as 70%")
            return Flicker(_positive_ns(first, "a period"), percent)
        case "delay", []:
            delay_ns = _positive_ns(first, "a delay")
            if delay_ns > MAX_DELAY_NS:
                raise FaultError(f"delay {first}: expected at most {MAX_DELAY_NS // 10**9}s; use drop for longer")
            return Delay(delay_ns)
        case "skew", []:
            return Skew(_time_ns(first, "a time"))
        case "drift", [] if first.endswith("/s"):
            return Drift(_time_ns(first.removesuffix("/s"), "a time for each second, as 1ms/s"))
        case "rate", []:
            hz = _measured(first, {"hz": 1.0})
            if hz is None or not 0 < hz <= 1e6:
                raise FaultError(f"rate {first}: expected a frequency above 0, as 2hz")
            return Rate(hz)
        case "shift", _:
            return _shift(words)
    return None


def _shift(words: Sequence[str]) -> Shift | None:
    lengths = [value for word in words if (value := _measured(word, _UNIT_M)) is not None]
    angles = [value for word in words if (value := _measured(word, {"deg": 1.0})) is not None]
    if len(lengths) > 1 or len(angles) > 1 or len(lengths) + len(angles) != len(words):
        return None
    shift = Shift(*(lengths or [0.0]), *(angles or [0.0]))
    return shift if shift.distance_m or shift.angle_deg else None


def _corruption(key: str, words: Sequence[str]) -> Corruption:
    name, dash, severity = key.rpartition("-")
    if not dash:
        name, severity = key, ""
    if name not in CORRUPTIONS:
        near = difflib.get_close_matches(name, [*_USAGE, *CORRUPTIONS], n=1) or difflib.get_close_matches(
            key, _USAGE, n=1
        )
        raise FaultError(
            f"unknown action {key!r}{f'; did you mean {near[0]!r}?' if near else '.'} Actions are {', '.join(_USAGE)}, and "
            f"the corruptions, with a severity as fog-3: {', '.join(CORRUPTIONS)}"
        )
    if not severity.isdecimal() or int(severity) not in SEVERITIES:
        raise FaultError(f"expected {name} with a severity from 1 to 5, as {name}-3, got {key!r}")
    if words:
        raise FaultError(f"{key} takes no arguments, got {' '.join(words)!r}")
    return Corruption(name, int(severity))


# --- numbers with units -----------------------------------------------------------------------------------------------


def _time_ns(text: str, what: str) -> int:
    match = re.fullmatch(_NUMBER + "(ns|us|ms|s|min|h)", text.lower())
    if match is None or abs(Decimal(match[1])) > 10**12:
        raise FaultError(f"{text!r}: expected {what} with a unit, as 5s, 300ms or 2min")
    return round(Decimal(match[1]) * _UNIT_NS[match[2]])


def _positive_ns(text: str, what: str) -> int:
    time_ns = _time_ns(text, what)
    if time_ns <= 0:
        raise FaultError(f"{text!r}: expected {what} above 0")
    return time_ns


def _measured(text: str, units: dict[str, float]) -> float | None:
    """The number times its unit; None where the unit is none of these, or the number is negative or beyond measure."""
    match = re.fullmatch(f"{_NUMBER}({'|'.join(units)})", text.lower())
    value = -1.0 if match is None else float(match[1]) * units[match[2]]
    return value if 0 <= value < 1e9 else None


# --- YAML -------------------------------------------------------------------------------------------------------------


def read_fault_scripts(path: Path) -> tuple[FaultScript, ...]:
    """The scripts of a YAML file, in its order.

    A list of faults is one script, named as the file is; `scripts:` holds several, name by name. A fault is a line as
    above, with or without quotes:

        scripts:
          clean: []
          blind:
            - lidar_top: drop 5s..9s

    Raises:
        FaultError: no such file, no YAML, or a fault in it is wrong; the message names file, script and line of the list.
    """
    content = _read_yaml(path)
    if isinstance(content, list):
        scripts: dict[str, Any] = {path.stem: content}
    elif isinstance(content, dict) and set(content) == {"scripts"} and isinstance(content["scripts"], dict):
        scripts = content["scripts"]
    else:
        scripts = {}
    if not scripts:
        raise FaultError(f"{path}: expected a list of faults, or 'scripts:' with lists by name, got {_short(content)}")
    return tuple(_script(path, str(name), faults) for name, faults in scripts.items())


def _script(path: Path, name: str, faults: Any) -> FaultScript:
    if not isinstance(faults, list):
        raise FaultError(f"{path}: script {name}: expected a list of faults ([] for none), got {_short(faults)}")
    parsed = []
    for number, fault in enumerate(faults, 1):
        try:
            parsed.append(parse_fault(_line(fault)))
        except FaultError as error:
            raise FaultError(f"{path}: script {name}, number {number}: {error}") from None
    return FaultScript(name, tuple(parsed))


def _line(fault: Any) -> str:
    """A fault of a YAML list as one line; without quotes YAML takes `lidar_top: drop` for a key and its value."""
    words = (
        [word for pair in fault.items() for word in pair] if isinstance(fault, dict) and len(fault) == 1 else [fault]
    )
    if not all(isinstance(word, str) for word in words):
        raise FaultError(f"fault {_short(fault)}: {_EXAMPLE}")
    return ": ".join(words)


def _read_yaml(path: Path) -> Any:
    try:
        return read_yaml(path)
    except ImportError as error:
        raise ImportError("fault scripts are YAML and need PyYAML: pip install 'robustbev[replay]'") from error
    except OSError as error:
        raise FaultError(f"{path}: expected a YAML file with faults, got: {error.strerror}") from error
    except DocumentError as error:
        raise FaultError(f"{path}: {error}") from error
