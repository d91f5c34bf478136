"""Each kernel promises to compile for a GPU as it is launched; the interpreter, which runs them in the rooms' tests, takes more
than a GPU does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# On tensors that have a shape, a dtype and no memory, every launch compiles its kernel for an H100, and runs nothing.
_COMPILE = """
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from bev import motion, pillars
from bev.detection import suppression
from bev.lift import table
from fusion import CrossAttentionFusion
from fusion.features import BEVFeatures
from fusion.kernels import devices
from fusion.kernels.norms import add_norm, kept_relu_norm
from sensors.lidar import encoder as lidar
from sensors.radar import encoder as radar
from tests.tiny_model import random_sensors, tiny_model

driver.set_active(SimpleNamespace(
    get_current_device=lambda: 0, get_current_stream=lambda device: 0, get_current_target=lambda: GPUTarget("cuda", 90, 32)
))
run = JITFunction.run


def compiled(kernel, *given, grid, warmup, **named):
    print(kernel.__module__, kernel.__name__, len(run(kernel, *given, grid=grid, warmup=True, **named).asm["cubin"]))


JITFunction.run = compiled
for module in (motion, pillars, suppression, table, lidar, radar, devices):
    module.in_triton = lambda device: True
torch.autocast = lambda *given, **named: nullcontext()  # which knows no such device

model, batch = tiny_model().to("meta"), random_sensors(1).to("meta")
with torch.inference_mode():
    model(batch)
outputs = model.train().training_outputs(batch)
learned = [*outputs.auxiliary.values(), *outputs.depth_logits.values(), outputs.logits["detection"][0].heatmap]
sum(logits.sum() for logits in learned).backward()

grid = BEVFeatures(torch.empty(1, 16, 8, 8, device="meta", dtype=torch.bfloat16), torch.empty(1, 8, 8, device="meta"))
fuser = CrossAttentionFusion({"lidar": 16, "radar": 16}, 16, heads=2, neighbourhood=3, absent="mask")
fused = fuser.to("meta", torch.bfloat16)({"lidar": grid, "radar": grid})
(fused.features.sum() + fused.attention.sum()).backward()
norm, stream = torch.nn.LayerNorm(24, device="meta"), torch.empty(5, 24, device="meta")
total, normed = add_norm(norm, stream, stream.bfloat16().requires_grad_())
(total.sum() + normed.sum()).backward()
kept_relu_norm(norm, stream.requires_grad_(), torch.empty(5, device="meta", dtype=torch.bool)).sum().backward()
"""
_KERNELS = {
    "bev.kernels.lift": ("_place_points", "_see_cells", "_look_along", "_sum_cell", "_sum_pixel"),
    "bev.kernels.motion": ("_sum_moments", "_fit_windows"),
    "bev.kernels.pillars": ("_maximum", "_count_ties", "_share_out"),
    "bev.kernels.points": ("_sum_rows", "_decorate"),
    "bev.kernels.sectors": ("_find_sectors", "_view_cells"),
    "bev.kernels.suppression": ("_suppress",),
    "fusion.kernels.triton_means": ("_mean", "_backward"),
    "fusion.kernels.triton_neighbours": ("_attend", "_backward_of_queries", "_backward_of_tokens"),
    "fusion.kernels.triton_norm": ("_normalise", "_backward"),
    "fusion.kernels.triton_position": ("_axes",),
    "fusion.kernels.triton_tokens": ("_blend", "_backward"),
}


def test_every_kernel_compiles_without_a_gpu_as_it_is_launched(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is for Linux")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = {tuple(line.split()[:2]) for line in done.stdout.splitlines()}
    assert compiled == {(module, kernel) for module, kernels in _KERNELS.items() for kernel in kernels}
