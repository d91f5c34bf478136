"""Files that appear whole or not at all, and who may write them."""

from __future__ import annotations

import fcntl
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sensors.documents import DocumentError, read_json, short
from sensors.files import no_links


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes `path`'s place in one step, on any error it is removed.

    The temporary name keeps the suffix, because some writers choose the format by it. Missing folders are made. OSError (a
    full disk, no permission) names `path`, and leaves it untouched.
    """
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):  # nothing can be removed from a read-only folder either
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and str(error.filename) in ("None", str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def names_file(path: Path) -> Iterator[None]:
    """An OSError in this context names `path` where it names no file, as of a disk that is found full while writing."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def held(lock: Path) -> Iterator[bool]:
    """Hold a lock file for this process; False where another one does."""
    with open(lock, "w", opener=no_links) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough where a forked process holds the file too


class NoteError(ValueError):
    """A file of notes in a run's folder is none of ours."""


def read_note(path: Path, entries: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """The JSON object that `write_json` wrote, in a folder that may be somebody else's.

    Args:
        path: of the file.
        entries: keys that it has, with the types of their values, as `isinstance` takes them.

    Raises:
        NoteError: it is none, or another one.
        OSError: it cannot be read.
    """
    try:
        content = read_json(path)
    except DocumentError as error:
        raise NoteError(f"{path}: {error}; remove the file to have it made anew") from None
    if not isinstance(content, dict) or any(not isinstance(content.get(name), of) for name, of in entries.items()):
        names = f" with {' and '.join(entries)}" if entries else ""
        raise NoteError(
            f"{path}: expected a JSON object{names}, got {short(content)}; remove the file to have it made anew"
        )
    return content


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Write JSON, whole or not at all; `indent=None` is the compact form for large files."""
    separators = (",", ":") if indent is None else None
    write_text(path, json.dumps(content, indent=indent, separators=separators) + "\n")
