"""What an artifact's manifest says, read within bounds: inputs and outputs with dtypes, shapes, units and frames."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Array: TypeAlias = Any  # a numpy array or a torch tensor: neither library is known here
Dim: TypeAlias = int | str  # a size, or the symbol that stands for one
FORMAT, FORMAT_VERSION = "robustbev-artifact", 1
PARTS = ("model", "fuser", "rig")
DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
SUFFIXES = {"onnx": ".onnx", "aoti": ".aoti.pt2", "pt2": ".pt2"}
_MANIFEST_BYTES = 2**20
_ARTIFACT_BYTES = 2**31  # protobuf's own limit
_LARGEST = 2**31  # of any size or symbol


class ArtifactError(ValueError):
    """An artifact or its manifest is missing, damaged, of another kind, or holds what is not to be loaded."""


@dataclass(frozen=True)
class Symbol:
    """A size that is chosen anew in every call, within bounds."""

    meaning: str
    min: int
    max: int


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: numpy's name of its dtype, its sizes or their symbols, and what it means.

    `below`: every value is at least 0 and less than the product of these; None: any value.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    unit: str = ""
    frame: str = ""
    meaning: str = ""
    below: tuple[Dim, ...] | None = None

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(str(d) for d in self.shape)}]"


@dataclass(frozen=True)
class Parsed:
    """What of a manifest is used to run it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    symbols: Mapping[str, Symbol]
    device: str
    machine: Mapping[str, Any] | None


def _read(file: Path, limit: int, what: str) -> bytes:
    """All of a plain file of at most `limit` bytes."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"{file}: expected a plain file, got a folder, pipe or device; give the {what}")
        if status.st_size > limit:
            raise ArtifactError(f"{file}: expected {what} of at most {limit} bytes, got {status.st_size}")
        return file.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{file}: {what} cannot be read ({error}); an artifact is two files, NAME.KIND and NAME.KIND.json"
        ) from error


def read_manifest(file: Path, path: Path) -> dict[str, Any]:
    """The manifest `file` of the artifact `path`, with a format, kind, part and name that fit."""
    data = _read(file, _MANIFEST_BYTES, "the manifest")
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{file}: no readable JSON ({str(error)[:200]}); was it copied whole?") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArtifactError(f'{file}: expected a manifest with "format": "{FORMAT}"; `robustbev export` writes one')
    version = manifest.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise ArtifactError(
            f"{file}: expected format_version {FORMAT_VERSION}, got {shown(version)}; export the model anew, or take the "
            "runtime of the version that exported it"
        )
    for key, known in (("kind", tuple(SUFFIXES)), ("part", PARTS)):
        if manifest.get(key) not in known:
            raise ArtifactError(f"{file}: {key}: expected one of {', '.join(known)}, got {shown(manifest.get(key))}")
    kind = next((kind for kind, suffix in SUFFIXES.items() if path.name.endswith(suffix)), None)
    if manifest["kind"] != kind:
        raise ArtifactError(f"{file}: kind: expected {kind} of a file named {path.name}, got {manifest['kind']}")
    if manifest.get("file") != path.name:
        raise ArtifactError(
            f"{file}: file: expected {path.name}, beside which it lies, got {shown(manifest.get('file'))}; keep both names"
        )
    return manifest


def shown(value: Any) -> str:
    """A value from a file as an error shows it."""
    text = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
    return text if len(text) <= 80 else text[:80] + "..."


def read_artifact(path: Path, manifest: Mapping[str, Any], pinned: str | None) -> bytes:
    """The artifact's bytes, which are those of the manifest and of the user's checksum."""
    size, expected = manifest.get("bytes"), manifest.get("sha256")
    where = f"{path}.json"
    if type(size) is not int or not 0 < size <= _ARTIFACT_BYTES:
        raise ArtifactError(f"{where}: bytes: expected a number from 1 to {_ARTIFACT_BYTES}, got {shown(size)}")
    if not isinstance(expected, str) or not re.fullmatch("[0-9a-f]{64}", expected):
        raise ArtifactError(f"{where}: sha256: expected 64 hexadecimal digits, got {shown(expected)}")
    data = _read(path, size, "the artifact")
    if len(data) != size:
        raise ArtifactError(f"{path}: expected {size} bytes by its manifest, got {len(data)}; was it copied whole?")
    got = hashlib.sha256(data).hexdigest()
    if got != expected:
        raise ArtifactError(f"{path}: expected SHA-256 {expected} by its manifest, got {got}; copy both files anew")
    if pinned is not None and got != pinned.strip().lower():
        raise ArtifactError(f"{path}: expected SHA-256 {shown(pinned)} as pinned, got {got}; this is another file")
    return data


def parse_manifest(manifest: Mapping[str, Any], path: Path) -> Parsed:
    """The tensors, symbols and machine of a manifest; ArtifactError where one is not sound."""
    where = f"{path}.json"
    stated = manifest.get("symbols")
    if not isinstance(stated, dict):
        raise ArtifactError(f"{where}: symbols: expected an object, got {shown(stated)}")
    symbols = {
        _name(name, f"{where}: symbols"): _symbol(entry, f"{where}: symbols.{name}") for name, entry in stated.items()
    }
    tensors = {}
    for key in ("inputs", "outputs"):
        entries = manifest.get(key)
        if not isinstance(entries, list) or not entries:
            raise ArtifactError(f"{where}: {key}: expected a list of tensors, got {shown(entries)}")
        tensors[key] = tuple(_spec(entry, symbols, f"{where}: {key}[{i}]") for i, entry in enumerate(entries))
        names = [spec.name for spec in tensors[key]]
        if len(set(names)) != len(names):
            raise ArtifactError(f"{where}: {key}: expected different names, got {', '.join(names)}")
    known = {dim for spec in tensors["inputs"] for dim in spec.shape}
    for spec in tensors["inputs"]:
        if loose := [str(dim) for dim in spec.below or () if isinstance(dim, str) and dim not in known]:
            raise ArtifactError(f"{where}: {spec.name}: below: {', '.join(loose)} is the size of no input")
    machine = manifest.get("machine")
    if machine is not None and not isinstance(machine, dict):
        raise ArtifactError(f"{where}: machine: expected null or an object, got {shown(machine)}")
    device = (machine or {}).get("device", "cpu")
    if device not in ("cpu", "cuda"):
        raise ArtifactError(f"{where}: machine.device: expected cpu or cuda, got {shown(device)}")
    return Parsed(tensors["inputs"], tensors["outputs"], symbols, device, machine)


def _name(name: Any, where: str) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w{0,99}", name, re.ASCII):
        raise ArtifactError(f"{where}: expected a name of letters, digits and _, got {shown(name)}")
    return name


def _symbol(entry: Any, where: str) -> Symbol:
    if not isinstance(entry, dict):
        raise ArtifactError(f"{where}: expected an object with min and max, got {shown(entry)}")
    least, most = entry.get("min"), entry.get("max")
    if type(least) is not int or type(most) is not int or not 0 <= least <= most <= _LARGEST:
        raise ArtifactError(f"{where}: expected 0 <= min <= max <= {_LARGEST}, got {shown(least)} and {shown(most)}")
    return Symbol(str(entry.get("meaning") or ""), least, most)


def _spec(entry: Any, symbols: Mapping[str, Symbol], where: str) -> TensorSpec:
    if not isinstance(entry, dict):
        raise ArtifactError(f"{where}: expected an object with name, dtype and shape, got {shown(entry)}")
    name = _name(entry.get("name"), f"{where}.name")
    dtype = entry.get("dtype")
    if dtype not in DTYPES:
        raise ArtifactError(f"{where} ({name}): dtype: expected one of {', '.join(DTYPES)}, got {shown(dtype)}")
    shape = _dims(entry.get("shape"), symbols, f"{where} ({name}): shape")
    below = entry.get("below")
    if below is not None:
        if not dtype.lstrip("u").startswith("int"):
            raise ArtifactError(f"{where} ({name}): below: expected integers to be bounded, got {dtype}")
        below = _dims(below if isinstance(below, list) else [below], symbols, f"{where} ({name}): below")
    unit, frame, meaning = (str(entry.get(key) or "") for key in ("unit", "frame", "meaning"))
    return TensorSpec(name, dtype, shape, unit, frame, meaning, below)


def _dims(dims: Any, symbols: Mapping[str, Symbol], where: str) -> tuple[Dim, ...]:
    if not isinstance(dims, list) or len(dims) > 8:
        raise ArtifactError(f"{where}: expected a list of at most 8 sizes and symbols, got {shown(dims)}")
    for dim in dims:
        sound = 0 <= dim <= _LARGEST if type(dim) is int else isinstance(dim, str) and dim in symbols
        if not sound:
            raise ArtifactError(
                f"{where}: expected sizes up to {_LARGEST} and symbols ({', '.join(symbols)}), got {shown(dim)}"
            )
    return tuple(dims)


def names_of(specs: Sequence[TensorSpec]) -> str:
    """The names in one line."""
    return ", ".join(spec.name for spec in specs)
