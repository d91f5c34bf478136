"""Tensors from safetensors files that others wrote: one door for models, checkpoints and published weights."""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from sensors.documents import DocumentError

_LARGEST_HEADER_BYTES = 4 * 2**20  # ours have some 50,000, a training's state five times that; safetensors takes 100 MB


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU.

    Raises:
        DocumentError: no file, damaged, or a list of tensors that is longer than any model's; as "no ... (why)".
    """
    read_header(path)
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, MemoryError) as error:
        raise DocumentError(f"no readable safetensors file ({error}); was it copied whole?") from error


def read_header(path: Path) -> bytes:
    """The list of its tensors, as it stands in the file; DocumentError as `read_tensors`."""
    try:
        if not path.is_file():
            raise OSError("no such file")
        with path.open("rb") as file:
            stated = int.from_bytes(file.read(8), "little")
            if stated > _LARGEST_HEADER_BYTES:
                raise OSError(f"a header of {stated} bytes, expected at most {_LARGEST_HEADER_BYTES}")
            return file.read(stated)
    except OSError as error:
        raise DocumentError(f"no readable safetensors file ({error}); was it copied whole?") from error
