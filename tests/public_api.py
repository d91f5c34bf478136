"""What is public and how it is called, as text: docs/api.txt holds it as it was when the list was last written.

    python -m tests.public_api      # writes the list anew; refused while the changelog does not name what has changed

A change of a public name or signature is told in CHANGELOG.md, in the section of the version that is not released yet. With the
release the list is written anew.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LISTED = ROOT / "docs" / "api.txt"
CHANGELOG = ROOT / "CHANGELOG.md"
COMMAND = "python -m tests.public_api"

# What a robot's code touches. None: all that the module's `__all__` names.
PUBLIC: dict[str, tuple[str, ...] | None] = {
    "fusion": None,
    "fusion.runtime": None,
    "robustbev": None,
    "robustbev.export": None,
    "bev.detection.boxes": ("Boxes",),
    "bev.grid": ("BEVGrid",),
    "bev.lift.table": ("DepthBins", "LiftTable", "build_lift_table"),
    "sensors.batch": ("CameraBatch", "LidarBatch", "RadarBatch", "SensorBatch"),
    "sensors.calibration": ("CalibrationError",),
    "sensors.camera.rectification": ("Lens",),
    "sensors.errors": ("SensorDataError", "SensorDataWarning"),
    "sensors.frames": ("Absence", "CameraImage", "Lack", "LidarSweep", "RadarSweep", "SensorFrame"),
    "sensors.motion.trajectory": ("Trajectory",),
    "sensors.nuscenes.write": ("Annotation", "NuScenesWriter", "write_nuscenes"),
    "sensors.motion.poses": ("LINK_T_OPTICAL", "pose", "pose_of_message"),
    "sensors.readings": ("CameraReading", "LidarReading", "RadarReading", "frame_at"),
}
_OURS = ("bev", "fusion", "robustbev", "sensors", "training")
_HEADER = f"""\
# Public names and signatures. A change is named in CHANGELOG.md, in the unreleased section.
# Written by `{COMMAND}`; do not edit.
"""


def public_objects() -> Iterator[tuple[str, Any]]:
    """(name with its module, object) of everything public."""
    for module_name, names in PUBLIC.items():
        module = importlib.import_module(module_name)
        for name in sorted(module.__all__ if names is None else names):
            yield f"{module_name}.{name}", getattr(module, name)


def describe() -> dict[str, str]:
    """Signature by name; methods and properties of public classes under names of their own."""
    found: dict[str, str] = {}
    for name, thing in public_objects():
        if inspect.isclass(thing):
            found[name] = _class(thing)
            found.update({f"{name}.{member}": text for member, text in _members(thing)})
        elif inspect.isfunction(thing):
            found[name] = _signature(thing)
        else:
            found[name] = f" = {' '.join(repr(thing).split())}"
    return found


def as_text(described: Mapping[str, str]) -> str:
    """The list as the file holds it, sorted."""
    return _HEADER + "".join(f"{name}{text}\n" for name, text in sorted(described.items()))


def parse(text: str) -> dict[str, str]:
    """`as_text` undone."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = [re.match(r"[\w.]+", line) for line in lines]
    return {match[0]: line[match.end() :] for match, line in zip(found, lines, strict=True) if match}


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """By name, a line for everything that is gone, new or called otherwise. What came or went with its class is not told."""
    told: dict[str, str] = {}
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        whole = name.rpartition(".")[0]
        with_its_class = (whole in before) is not (whole in now)
        if old == new or with_its_class:
            continue
        told[name] = f"{name}: was {'absent' if old is None else old}, is {'absent' if new is None else new}"
    return told


def unreleased(changelog: str) -> str:
    """The changelog's section of the version that is not released."""
    found = re.search(
        r"^## [^\n]*unreleased[^\n]*\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL | re.IGNORECASE
    )
    return found[1] if found else ""


def untold(changed: Mapping[str, str], changelog: str) -> list[str]:
    """Lines of those changes that the changelog's unreleased section does not name, in backticks."""
    named = {
        word for code in re.findall(r"`([^`]+)`", unreleased(changelog)) for word in re.findall(r"[A-Za-z_]\w*", code)
    }
    return [line for name, line in changed.items() if not named & _ways_to_name(name)]


def what_to_do(lines: list[str]) -> str:
    """For a contributor whose change is not told."""
    return (
        "the public interface has changed, and CHANGELOG.md does not say so:\n  "
        + "\n  ".join(lines)
        + "\nIf that is meant, name each in backticks (`MeanFusion`, say) in CHANGELOG.md under the heading that says "
        f"'unreleased', and say what a user has to do. With the release, and only then, `{COMMAND}` writes "
        f"{LISTED.relative_to(ROOT)} anew. If it is not meant, take the change back."
    )


def _ways_to_name(name: str) -> set[str]:
    """Of `fusion.MeanFusion.forward`: MeanFusion; of what stands in a module itself, its own name."""
    gone = ".".join(name.split(".")[:2])  # a module that was public when the list was written
    module = max((m for m in PUBLIC if name.startswith(m + ".")), key=len, default=gone)
    return {name.removeprefix(module + ".").partition(".")[0]}


def _class(cls: type) -> str:
    if issubclass(cls, enum.Enum):
        return f" = {[member.name for member in cls]}"
    fields = getattr(cls, "model_fields", None)  # pydantic: its fields are its interface
    if fields is not None:
        notes = {
            name: text for base in reversed(cls.__mro__) for name, text in getattr(base, "__annotations__", {}).items()
        }
        return (
            "("
            + ", ".join(f"{name}: {_note(notes[name])}{_field_default(field)}" for name, field in fields.items())
            + ")"
        )
    if issubclass(cls, Exception):
        return f"({', '.join(base.__name__ for base in cls.__bases__)})"
    return _signature(cls)


def _members(cls: type) -> Iterator[tuple[str, str]]:
    """Public methods and properties that the class, or a base of ours, defines."""
    members: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.partition(".")[0] in _OURS:
            members.update(vars(base))
    for name, member in members.items():
        if name.startswith("_") or name == "model_config":
            continue
        if isinstance(member, property):
            assert member.fget is not None  # a property without it cannot be read
            yield name, f" -> {_note(inspect.signature(member.fget).return_annotation)}"
        elif isinstance(member, (staticmethod, classmethod)):
            yield name, _signature(member.__func__)
        elif isinstance(member, types.FunctionType):
            yield name, _signature(member)


def _signature(thing: Callable[..., Any]) -> str:
    signature = inspect.signature(thing)
    parameters = [
        p.replace(
            annotation=p.empty if p.annotation is p.empty else _Bare(_note(p.annotation)), default=_shown(p.default)
        )
        for p in signature.parameters.values()
    ]
    result = signature.return_annotation
    bare = inspect.Signature(parameters)
    return str(bare) if result is inspect.Signature.empty or inspect.isclass(thing) else f"{bare} -> {_note(result)}"


class _Bare:
    """Shows as its text, without quotes."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _note(annotation: Any) -> str:
    """An annotation as it was written: postponed ones are text."""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _shown(default: Any) -> Any:
    """Plain values as they are; of others their class alone, for what they print may change with a library."""
    if default is inspect.Parameter.empty or isinstance(default, (bool, int, float, str, tuple, type(None))):
        return default
    return _Bare(f"<{type(default).__name__}>")


def _field_default(field: Any) -> str:
    if field.is_required():
        return ""
    if field.default_factory is not None:
        return " = <made>"
    return f" = {_shown(field.default)!r}"


def main() -> int:
    now, text = describe(), CHANGELOG.read_text(encoding="utf-8")
    before = parse(LISTED.read_text(encoding="utf-8")) if LISTED.is_file() else now
    if lines := untold(changes(before, now), text):
        print(what_to_do(lines), file=sys.stderr)
        return 1
    LISTED.write_text(as_text(now), encoding="utf-8")
    print(f"{LISTED.relative_to(ROOT)}: {len(now)} public names")
    return 0


if __name__ == "__main__":
    sys.exit(main())
