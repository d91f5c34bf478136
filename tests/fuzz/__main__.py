"""Mutates sound files and reads them: `python -m tests.fuzz mcap --runs 100000`; without a name, every door.

Whatever a door raises but its own errors, whatever takes more than 2 s or 300 MiB, is kept in `--keep` and ends in exit code 1.
With `--atheris` (pip install atheris) the coverage of our own code guides the mutations.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser(
    prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
)
parser.add_argument("doors", nargs="*")
parser.add_argument("--runs", type=int, default=100_000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
parser.add_argument("--atheris", action="store_true", help="one door; -runs and others of libFuzzer behind --")
options, rest = parser.parse_known_args()

atheris: Any = import_module("atheris") if options.atheris else None
with (
    atheris.instrument_imports(include=["sensors", "fusion", "robustbev"])
    if options.atheris
    else contextlib.nullcontext()
):
    from tests.fuzz.doors import DOORS
    from tests.fuzz.mutate import fuzz

unknown = [name for name in options.doors if name not in DOORS]
if unknown:
    parser.error(f"no door {unknown[0]!r}; there are {', '.join(DOORS)}")

if options.atheris:
    (name,) = options.doors
    door = DOORS[name]()

    def once(data: bytes) -> None:
        with contextlib.suppress(*door.refuses):
            door.read(data)

    corpus = options.keep / f"corpus-{name}"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(door.seeds):
        (corpus / str(number)).write_bytes(content)
    arguments = [f"-atheris_runs={options.runs}", "-timeout=2", "-rss_limit_mb=4096", f"-seed={options.seed + 1}"]
    atheris.Setup([sys.argv[0], *arguments, *rest, str(corpus)], once)
    atheris.Fuzz()

failed = False
for name in options.doors or DOORS:
    began = time.monotonic()
    door = DOORS[name]()
    findings, worst = fuzz(door, options.runs, options.seed)
    for finding in findings:
        failed = True
        path = options.keep / f"{name}-{hashlib.sha256(finding.data).hexdigest()[:12]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(finding.data)
        print(f"{name}: {finding.fault}: {path}", flush=True)
    print(
        f"{name}: {options.runs} runs in {time.monotonic() - began:.0f} s, {len(findings)} findings, at most "
        f"{worst.seconds:.2f} s and {worst.mib:.0f} MiB",
        flush=True,
    )
sys.exit(failed)
