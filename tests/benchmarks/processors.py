"""Training on an older processor against this one: `python -m tests.benchmarks.processors [key=value ...]`.

The older one is played: two variables keep torch from all instructions beyond AVX2. Each measurement is a process of its own
(torch reads the variables when it loads), and they take turns, so that what else the machine does meets both alike.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
_TIMEOUT_S = 600


def samples_per_s(drives: Path, variables: dict[str, str], arguments: list[str]) -> tuple[float, str]:
    """Median samples a second of one process, and its whole line."""
    command = [sys.executable, "-m", "tests.benchmarks.throughput", "--drives", str(drives), *arguments]
    done = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
    )
    line = done.stdout.strip().splitlines()[-1]
    found = re.search(r": ([\d.]+) samples/s", line)
    assert found is not None, line
    return float(found[1]), line


def main() -> None:
    """Print samples a second of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    given, more = parser.parse_known_args()
    here: list[float] = []
    older: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.rounds):
            for rates, variables in ((here, {}), (older, AVX2)):
                rate, line = samples_per_s(Path(folder) / "drives", variables, more)
                rates.append(rate)
                print(" ".join([*(f"{name}={value}" for name, value in variables.items()), line]), flush=True)
    ratios = [a / b for a, b in zip(here, older, strict=True)]
    print(
        f"with all instructions {statistics.median(here):.1f} samples/s, with AVX2 alone {statistics.median(older):.1f}: "
        f"{statistics.median(ratios):.2f} times as long (of {given.rounds} rounds {min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
