"""Files that torch runs: programs of torch.export, and packages of AOTInductor. Both are code, and nothing here vets them."""

from __future__ import annotations

import io
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .arrays import TorchTensors
from .manifest import Array, ArtifactError, Parsed, names_of, shown


def open_pt2(
    data: bytes, path: Path, parsed: Parsed, threads: int | None
) -> tuple[TorchTensors, Callable[[list[Array]], Sequence[Array]]]:
    """The program, which the user trusts, as torch rebuilds it from these very bytes."""
    torch = _torch(path, threads)
    try:
        program = torch.export.load(io.BytesIO(data))
        module = program.module()
    except Exception as error:  # torch raises whatever its parts raise
        reason = str(error).strip().splitlines()
        raise ArtifactError(
            f"{path}: torch {torch.__version__} cannot rebuild it: {type(error).__name__}: {reason[-1][:200] if reason else ''}; "
            "export it with the torch that runs it"
        ) from error
    names, takes = [spec.name for spec in parsed.inputs], list(program.graph_signature.user_inputs)
    gives = len(program.graph_signature.user_outputs)
    if len(names) != len(takes) or (sorted(takes) == sorted(names) and takes != names):
        raise ArtifactError(
            f"{path}.json: inputs: expected the program's {len(takes)} ({', '.join(takes)}), got {len(names)} "
            f"({', '.join(names)})"
        )
    if len(parsed.outputs) != gives:
        raise ArtifactError(
            f"{path}.json: outputs: expected the program's {gives}, got {len(parsed.outputs)} ({names_of(parsed.outputs)})"
        )
    return TorchTensors(torch, parsed.device), _torch_call(torch, module, parsed, path)


def _torch(path: Path, threads: int | None) -> Any:
    try:
        import torch
        import torch.export
    except ImportError as error:
        raise ImportError(f"{path}: a .pt2 artifact needs torch: pip install torch") from error
    if threads is not None:
        torch.set_num_threads(threads)
    return torch


def _torch_call(
    torch: Any, program: Callable[..., Any], parsed: Parsed, path: Path
) -> Callable[[list[Array]], Sequence[Array]]:
    def run(tensors: list[Array]) -> Sequence[Array]:
        with torch.no_grad():
            outputs = list(_leaves(program(*tensors)))
        if len(outputs) != len(parsed.outputs):
            raise ArtifactError(
                f"{path}.json: outputs: expected the program's {len(outputs)}, got {names_of(parsed.outputs)}"
            )
        return outputs

    return run


def _leaves(value: Any) -> Iterator[Array]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


_CPU_CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")


def open_aoti(
    data: bytes, path: Path, parsed: Parsed, threads: int | None
) -> tuple[TorchTensors, Callable[[list[Array]], Sequence[Array]]]:
    """The compiled package, which the user trusts, where this machine can run it."""
    torch = _torch(path, threads)
    needs = parsed.machine or {}
    here: dict[str, object] = {"machine": platform.machine(), "torch": torch.__version__.partition("+")[0]}
    for key, got in here.items():
        wanted = needs.get(key)
        if wanted is not None and str(wanted).partition("+")[0] != got:
            raise ArtifactError(
                f"{path}: compiled for {key} {shown(wanted)}, this is {got}; export it on such a machine"
            )
    wanted, got = needs.get("cpu_capability"), torch.backends.cpu.get_cpu_capability()
    ranks = {name: rank for rank, name in enumerate(_CPU_CAPABILITIES)}
    if wanted in ranks and ranks.get(got, -1) < ranks[wanted]:
        raise ArtifactError(f"{path}: compiled for {wanted}, this CPU has {got}; export it on such a machine")
    if parsed.device == "cuda" and not torch.cuda.is_available():
        raise ArtifactError(
            f"{path}: compiled for a GPU, and torch sees none here; export it with the CPU as its device"
        )
    try:
        from torch._inductor import aoti_load_package

        with (
            tempfile.TemporaryDirectory() as folder
        ):  # torch's loader opens a path: that of a copy which nobody else can change
            copy = Path(folder, "package.pt2")
            copy.write_bytes(data)
            program = aoti_load_package(str(copy))
    except Exception as error:  # torch raises whatever its parts raise
        raise ArtifactError(
            f"{path}: torch {torch.__version__} cannot load it: {str(error)[:300]}; export it anew"
        ) from error
    return TorchTensors(torch, parsed.device), _torch_call(torch, program, parsed, path)
