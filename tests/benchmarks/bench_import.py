"""What `import fusion` costs beside `import torch`, which it brings: fresh interpreters in turn, processor time of each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tests.benchmarks.conftest import Comparison

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 9


def seconds_of(statement: str) -> float:
    """Processor seconds of an interpreter that does this and ends, as the kernel counted them."""
    process = subprocess.Popen([sys.executable, "-c", statement], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # it was waited for already
    assert process.returncode == 0, statement
    return usage.ru_utime + usage.ru_stime


def bench_import(benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
    seconds: dict[str, list[float]] = {"import torch": [], "import fusion": []}

    def one_round() -> None:
        for statement, times in seconds.items():
            times.append(seconds_of(statement))

    benchmark.pedantic(one_round, rounds=ROUNDS, iterations=1, warmup_rounds=1)  # type: ignore[no-untyped-call]
    for times in seconds.values():
        del times[:-ROUNDS]  # the warm-up round reads the files from disk
    result = Comparison("a fresh interpreter", seconds)
    benchmark.extra_info["ratio"] = result.ratio("import fusion")
    with capsys.disabled():
        print("", *result.rows(), sep="\n")
    assert result.ratio("import fusion") <= 1.05
