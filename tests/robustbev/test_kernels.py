"""Each kernel promises to compile for a GPU; the interpreter, which runs them in the rooms' tests, takes more than that does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from bev.kernels import lift, motion, pillars, points, sectors, suppression
from fusion.kernels import triton_neighbours as attention, triton_norm

pillar = dict(F=11, C=63, G=64, BP=16, BC=64)
grid = dict(X=180, Y=180, F=5, BP=128)
window = dict(R1=2, R2=3, R3=6, X=180, Y=180, BY=32)
window |= dict(LEAST_POINTS=4.0, LEAST_VARIANCE=1e-3, STILL=0.05, FASTEST_MPS=15.0, UNIT_MPS=5.0)
splat = dict(C=80, D=59, WIDE=True, C1=64, C2=16, BE=16)
norm = dict(C=24, BC=32, BR=16, RELU=True, ADD=True, NARROW=True)
attend = dict(M=3, P=4, H=8, W=16, SIDE=3, SEEN=True, KEPT=True, ATTENDED=True, SHARE=True, TX=4, TY=4)
kernels = [
    (lift._sum_cell, splat, 1), (lift._sum_pixel, splat, 1),
    (lift._place_points, dict(X=180, Y=180, D=59, ACROSS=2, ALONG=2, W=88, STRIDE=8, BP=1024), 8),
    (lift._see_cells, dict(X=180, Y=180, HEIGHTS_M=(0.0, 1.0, 2.0), BC=256), 4),
    (lift._look_along, dict(W=44, STRIDE=16, BP=128), 4),
    (pillars._maximum, pillar, 4), (pillars._count_ties, pillar, 2), (pillars._share_out, pillar | dict(BF=16), 2),
    (points._sum_rows, grid | dict(VALID=True), 4), (points._decorate, grid | dict(CELLS=32400, BF=16), 4),
    (motion._sum_moments, grid | dict(S=8, DRIFT=True, VALID=True, STANDS_MPS=0.5), 4),
    (motion._sum_moments, grid | dict(S=8, DRIFT=False, VALID=False, STANDS_MPS=0.5), 4),
    (motion._fit_windows, window | dict(S=8, DRIFT=True), 2), (motion._fit_windows, window | dict(S=8, DRIFT=False), 2),
    (sectors._find_sectors, dict(F=5, S=36, BP=256), 4), (sectors._view_cells, dict(X=180, Y=180, BC=256), 4),
    (suppression._suppress, dict(BT=512, ROWS=16), 8), (triton_norm._normalise, norm, 4), (triton_norm._backward, norm, 4),
    (attention._attend, attend, 8), (attention._backward_of_queries, attend, 8), (attention._backward_of_tokens, attend, 8),
]
types = dict.fromkeys(("entry", "cell", "offsets", "kept", "rows", "entries"), "*i32")
types |= dict.fromkeys(("close", "present", "seen", "valid", "visible", "view"), "*u8")
types |= dict.fromkeys(("query", "key", "value", "of_query", "of_key", "of_value", "delta", "of_delta", "y"), "*bf16")
types |= dict.fromkeys(("P", "T", "N", "R", "B", "X", "Y", "programs", "cameras", "stride_b", "stride_p"), "i32")
types |= dict.fromkeys(("x_min_m", "y_min_m", "cell_m", "z_min_m", "z_max_m", "depth_min_m", "depth_step_m"), "fp32")
types |= dict.fromkeys(("x_max_m", "y_max_m", "width_px", "height_px", "HALF", "least_cosine"), "fp32")
types |= dict(eps="fp32", scale="fp32")
for kernel, constants, warps in kernels:
    signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in kernel.arg_names}
    if kernel in (points._sum_rows, points._decorate, motion._sum_moments):
        signature |= dict(rows="*i64", count="*i64", scale="*fp32")
        signature = {name: signature[name] for name in kernel.arg_names}
    if kernel is lift._look_along:
        signature["pixels"] = "i32"
    if kernel is lift._place_points:
        signature["points"] = "i32"
    source = ASTSource(fn=kernel, signature=signature, constexprs={n: v for n, v in constants.items() if n in signature})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    print(kernel.__name__, len(compiled.asm["cubin"]))
"""


def test_every_kernel_compiles_without_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is for Linux")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 22
