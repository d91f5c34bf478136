"""The archive of torch.export: rewritten so that torch sees nothing but a vetted program and plain weights."""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .manifest import ARTIFACT_BYTES, LARGEST, ArtifactError, parse_json, shown
from .pt2_program import PARAMETER_PATH, Signature, vet_program, vetted_value

_PROGRAM_BYTES = 2**25  # of a .pt2's graph as JSON; a model of ours has about one million
_RECORD = re.compile(
    r"(data/weights/weight_\d{1,6}|data/constants/tensor_\d{1,6}|data/(weights/model_weights|constants/model_constants)_config\.json"
    r"|models/model\.json|archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id)",
    re.ASCII,
)
_LEFT_OUT = re.compile(r"data/sample_inputs/model\.pt", re.ASCII)  # a pickle that running does not need
_CONFIGS = {
    "weights": "data/weights/model_weights_config.json",
    "constants": "data/constants/model_constants_config.json",
}


def _records(data: bytes, path: Path) -> dict[str, tuple[zipfile.ZipFile, zipfile.ZipInfo]]:
    """Every record by its name within the archive's one folder; nothing is unpacked."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, UnicodeError, RecursionError) as error:
        raise ArtifactError(f"{path}: no readable .pt2 archive ({str(error)[:200]}); was it copied whole?") from error
    records: dict[str, tuple[zipfile.ZipFile, zipfile.ZipInfo]] = {}
    roots: set[str] = set()
    for entry in entries:
        root, _, name = entry.filename.partition("/")
        roots.add(root)
        parts = name.split("/")
        if not root or root == ".." or not all(parts) or {"..", "."} & set(parts) or "\\" in name or "\0" in name:
            raise ArtifactError(f"{path}: the name {shown(entry.filename)} in it leads out of the archive; not loaded")
        if (
            entry.compress_type != zipfile.ZIP_STORED
            or entry.file_size != entry.compress_size
            or entry.flag_bits & 0x41
        ):
            raise ArtifactError(
                f"{path}: {shown(name)} in it is packed or encrypted, which torch never does; not loaded"
            )
        if name in records:
            raise ArtifactError(f"{path}: {shown(name)} stands in it twice; not loaded")
        records[name] = archive, entry
    if len(roots) != 1 or len(entries) > 100_000 or sum(entry.file_size for entry in entries) > len(data):
        raise ArtifactError(f"{path}: expected one folder of records that do not overlap, as torch writes; not loaded")
    return records


def _content(
    records: Mapping[str, tuple[zipfile.ZipFile, zipfile.ZipInfo]], name: str, limit: int, path: Path
) -> bytes:
    if name not in records:
        raise ArtifactError(
            f"{path}: expected an archive of torch.export.save (torch 2.8 or later), got one without {name}; export it anew"
        )
    archive, entry = records[name]
    if entry.file_size > limit:
        raise ArtifactError(f"{path}: {name}: expected at most {limit} bytes, got {entry.file_size}; not loaded")
    try:
        return archive.read(entry)
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ArtifactError(f"{path}: {name}: no readable record ({str(error)[:200]}); was it copied whole?") from error


def vetted_archive(data: bytes, path: Path) -> tuple[bytes, Signature]:
    """A new archive of the program and its plain weights alone, and what the program takes and gives."""
    records = _records(data, path)
    for name in records:
        if name.startswith("data/aotinductor/"):
            raise ArtifactError(f"{path}: {shown(name)} in it is machine code; a .pt2 holds none: not loaded")
        if not _RECORD.fullmatch(name) and not _LEFT_OUT.fullmatch(name):
            raise ArtifactError(
                f"{path}: {shown(name)} in it is nothing that a program needs; not loaded: export it anew"
            )
    if (
        _content(records, "archive_format", 100, path) != b"pt2"
        or _content(records, "byteorder", 100, path) != b"little"
    ):
        raise ArtifactError(f"{path}: expected a little-endian archive of format pt2; export it anew")
    program = parse_json(_content(records, "models/model.json", _PROGRAM_BYTES, path), f"{path}: models/model.json")
    program, call = vet_program(program, f"{path}: models/model.json")
    rewritten = {"models/model.json": json.dumps(program).encode(), "data/sample_inputs/model.pt": b""}
    for folder, name in _CONFIGS.items():
        config = parse_json(_content(records, name, _PROGRAM_BYTES, path), f"{path}: {name}")
        rewritten[name] = json.dumps(_vet_weights(config, folder, records, f"{path}: {name}")).encode()
    copied = [name for name in records if name not in rewritten]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in copied:
            archive.writestr(f"archive/{name}", _content(records, name, ARTIFACT_BYTES, path))
        for name, content in rewritten.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue(), call


def _vet_weights(config: Any, folder: str, records: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The list of weights, each a plain tensor in a record of its own."""
    entries = config.get("config") if isinstance(config, dict) and len(config) == 1 else None
    if not isinstance(entries, dict):
        raise ArtifactError(f"{where}: expected a list of weights as torch writes it; not loaded")
    for name, entry in entries.items():
        here = f"{where}: {shown(name)}"
        file = entry.get("path_name") if isinstance(entry, dict) else None
        if not isinstance(file, str) or f"data/{folder}/{file}" not in records:
            raise ArtifactError(f"{here}: expected a tensor in this archive, got {shown(file)}; not loaded")
        if entry.get("use_pickle") is not False:
            raise ArtifactError(f"{here}: a pickle can run code; expected a plain tensor: not loaded")
        if not PARAMETER_PATH.fullmatch(name):
            raise ArtifactError(f"{here}: expected a parameter's name; not loaded")
        meta = entry.get("tensor_meta")
        sizes = meta.get("sizes") if isinstance(meta, dict) else None
        if not isinstance(sizes, list) or not all(isinstance(s, dict) and type(s.get("as_int")) is int for s in sizes):
            raise ArtifactError(f"{here}: expected sizes in plain numbers; not loaded")
        count, stored = math.prod(s["as_int"] for s in sizes), records[f"data/{folder}/{file}"][1].file_size
        if any(s["as_int"] < 0 for s in sizes) or count > LARGEST or (not stored and count > 2**20):
            raise ArtifactError(f"{here}: a tensor of {count} numbers in {stored} bytes; not loaded")
    cleaned: dict[str, Any] = {"config": {name: vetted_value(entry, "", where, 0) for name, entry in entries.items()}}
    return cleaned
