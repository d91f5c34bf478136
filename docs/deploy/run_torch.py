"""Run a fuser on a robot with torch alone: a `.pt2` program, or an `.aoti.pt2` package. Both are code.

cp -r fusion/runtime docs/deploy/run_torch.py robot/ && cd robot
python run_torch.py fuser.pt2 --sha256 ...
python run_torch.py fuser.aoti.pt2 --sha256 ...

Features are made up here; where yours come in stands `your ...`.
"""

from __future__ import annotations

import argparse
import time

import torch
from runtime import load
from torch import Tensor


def main() -> None:
    """Run with all sensors and without each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fuser")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--sha256", help="of the file, as noted where it was exported")
    parser.add_argument("--trust-code", action="store_true", help="run the file unpinned, with your rights")
    options = parser.parse_args()
    fuser = load(options.fuser, sha256=options.sha256, trust_code=options.trust_code, threads=options.threads)
    torch.manual_seed(0)
    inputs: dict[str, Tensor] = {}
    for spec in fuser.inputs:  # your encoders' features, and where each sensor sees
        shape = [1 if size == "B" else int(size) for size in spec.shape]
        inputs[spec.name] = torch.randn(shape) if spec.name.endswith("_features") else torch.ones(shape)
    names = fuser.manifest["modalities"]
    for lost in (None, *range(len(names))):
        present = torch.ones(1, len(names), dtype=torch.bool)
        if lost is not None:
            present[:, lost] = False
        outputs = fuser(inputs | {"present": present})
        started = time.perf_counter()
        for _ in range(10):
            outputs = fuser(inputs | {"present": present})
        took_ms = 100 * (time.perf_counter() - started)
        trusts = ", ".join(
            f"{name} {share:.2f}" for name, share in zip(names, outputs["attention"].mean(dim=(0, 2, 3)), strict=True)
        )
        what = "all" if lost is None else f"without {names[lost]}"
        print(f"{what}: features {list(outputs['features'].shape)}; attention {trusts}; {took_ms:.2f} ms")


if __name__ == "__main__":
    main()
