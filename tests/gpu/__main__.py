"""What a device gives: `make gpu`, or `python -m tests.gpu [--small] [--out gpu.json] [--real ROOT --split NAME]`.

Needs the repository, torch (with CUDA and Triton), numpy, pydantic, safetensors and PyYAML; with --real also what
`robustbev train` needs. Prints a row a figure and writes everything as JSON. A part that fails is reported and the next one runs;
the exit code then is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from robustbev import ModelConfig
from tests.gpu import ops, whole
from tests.gpu.measure import ROOT, arithmetic, bandwidth

Part = Callable[[], Mapping[str, Any]]


def parts(device: torch.device, config: ModelConfig, *, small: bool, compile_model: bool) -> dict[str, Part]:
    """Every part by name, in the order in which they matter."""
    dtypes = (torch.float32, torch.bfloat16)
    points, batch_size = (2_000, 2) if small else (300_000, 4)
    found: dict[str, Part] = {
        "limits": lambda: {
            "bandwidth_gb_per_s": bandwidth(device) / 1e9,
            **{f"{_name(d)}_tflop_per_s": arithmetic(device, d) / 1e12 for d in dtypes},
        }
    }

    def add(name: str, case: Callable[[], ops.Case]) -> None:
        found[name] = lambda: ops.check(case(), device)

    for dtype in dtypes:
        add(f"lift_{_name(dtype)}", partial(ops.lift_case, config, device, dtype))
    if device.type == "cuda":
        found["lift_by_bevpool_v2"] = partial(ops.lift_peer, config, device)
    found["lift_table"] = partial(ops.lift_table, config, device)
    for crowded in (False, True):
        name = "pillars_crowded" if crowded else "pillars"
        add(name, partial(ops.pillars_case, config, device, points, crowded=crowded))
    found["points"] = partial(ops.points, config, device, points)
    found["geometry"] = partial(ops.geometry, config, device)
    add("cell_attention", partial(ops.cell_attention_case, config, device))
    for side in (1, 3):
        for dtype in dtypes:
            add(f"attention_{side}x{side}_{_name(dtype)}", partial(ops.attention_case, config, device, dtype, side))
    for dtype in dtypes:
        add(f"tokens_{_name(dtype)}", partial(ops.tokens_case, config, device, dtype))
        add(f"mean_of_present_{_name(dtype)}", partial(ops.mean_case, config, device, dtype, trusted=False))
        add(f"mean_of_trusted_{_name(dtype)}", partial(ops.mean_case, config, device, dtype, trusted=True))
    add("place", partial(ops.place_case, config, device))
    found["suppression"] = partial(ops.suppression, config, device)
    for dtype in dtypes:
        found[f"fuser_{_name(dtype)}"] = partial(ops.fuser_ms, config, device, dtype)
    precisions = ("float32",) if device.type == "cpu" else ("float32", "bfloat16")
    for precision in precisions:
        found[f"training_step_{precision}"] = partial(
            whole.training, config, device, precision, batch_size=batch_size, points=points
        )
    found["perceive"] = partial(whole.perceive, config, device, points=points)
    found["perceive_stages"] = partial(whole.stages, config, device, points=points)
    for more, compiled in () if device.type == "cpu" else ((16, False), (16, True), (32, True)):
        if compile_model or not compiled:
            found[f"training_step_bfloat16_batch_{more}" + "_compiled" * compiled] = partial(
                whole.training, config, device, "bfloat16", batch_size=more, points=points, rounds=6, compiled=compiled
            )
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def describe(device: torch.device) -> dict[str, Any]:
    """The machine, in words."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"{platform.processor() or platform.machine()} CPU",
        "capability": list(torch.cuda.get_device_capability(device))
        if cuda
        else torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run every part; the exit code says whether all went well."""
    parser = argparse.ArgumentParser(
        prog="make gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--small", action="store_true", help="configs/tiny.yaml and few points: minutes on a CPU become seconds"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--only", nargs="*", default=[], help="parts whose names start so")
    parser.add_argument("--minutes", type=float, default=8, help="no part starts after so long")
    parser.add_argument("--no-compile", action="store_true", help="do without torch.compile, which takes half a minute")
    parser.add_argument("--real", type=Path, help="a nuScenes data root: trains on it by `robustbev train`")
    parser.add_argument("--version", default="v1.0-mini", help="of --real")
    parser.add_argument("--split", default="mini_train", help="of --real; a custom split stands in VERSION/splits.json")
    parser.add_argument("--real-seconds", type=float, default=90)
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # the twins are compared in float32
    file = ROOT / "configs" / ("tiny.yaml" if given.small else "nuscenes.yaml")
    config = ModelConfig.model_validate(yaml.safe_load(file.read_text(encoding="utf-8"))["model"])
    todo = parts(device, config, small=given.small, compile_model=not given.no_compile)
    with tempfile.TemporaryDirectory() as runs:
        if given.real is not None:
            todo["real_training"] = partial(
                whole.real_training,
                given.real.resolve(),
                given.version,
                given.split,
                file,
                Path(runs),
                given.real_seconds,
            )
        report: dict[str, Any] = {"machine": describe(device), "config": file.name, "parts": {}}
        print(json.dumps(report["machine"]), flush=True)
        failed = _run(todo, given.only, given.minutes * 60, report["parts"])
    given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{given.out} holds all of it" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def _run(todo: Mapping[str, Part], only: list[str], seconds: float, figures: dict[str, Any]) -> list[str]:
    """-> the parts that failed."""
    failed, started = [], time.monotonic()
    for name, part in todo.items():
        if only and not any(name.startswith(wanted) for wanted in only):
            continue
        if time.monotonic() - started > seconds:
            figures[name] = {"skipped": f"the {seconds:.0f} s were over"}
        else:
            began = time.monotonic()
            try:
                figures[name] = dict(part())
            except Exception as error:  # one part that fails must not cost the others, which wait for a rare machine
                traceback.print_exc()
                figures[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
                failed.append(name)
            figures[name]["took_s"] = round(time.monotonic() - began, 1)
        print(name, json.dumps({key: _rounded(value) for key, value in figures[name].items()}), flush=True)
    return failed


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.3g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
