"""What a model computes in: what the device has, told with the reason; and what comes out is the same but for rounding."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import robustbev
import robustbev.precision
from robustbev import PrecisionWarning, choose_precision
from robustbev.precision import Arithmetic, arithmetic_of, gpu_arithmetic
from tests.tiny_model import random_sensors, tiny_model

ROOT = Path(__file__).resolve().parents[2]
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A processor of the test's own: instructions that it has, vectors that torch uses, dtypes that oneDNN does not emulate."""
    has: dict[str, object] = {
        "machine": "x86_64", "features": set(), "vectors": "AVX512", "onednn": {"bf16", "fp16"}, "vendor": "AuthenticAMD",
    }  # fmt: skip
    for name in robustbev.precision._LIMITS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("platform.machine", lambda: has["machine"])
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: has["vectors"])
    monkeypatch.setattr(robustbev.precision, "_cpu_has", lambda name: name in has["features"])  # type: ignore[operator]
    monkeypatch.setattr(robustbev.precision, "_vendor", lambda: has["vendor"])
    monkeypatch.setattr(robustbev.precision, "_onednn_has", lambda name: name in has["onednn"])  # type: ignore[operator]
    return has


@pytest.mark.parametrize(
    ("processor_has", "expected", "words"),
    [
        ({"features": {"avx512_bf16"}}, "bfloat16", "has AVX-512 BF16"),
        ({"features": {"amx_tile", "avx512_bf16"}, "vendor": "GenuineIntel"}, "bfloat16", "has AVX-512 BF16 and AMX"),
        (
            {"features": {"avx512_bf16"}, "vendor": "GenuineIntel"},
            "float32",
            "AVX-512 BF16 without AMX, which is slower",
        ),
        ({"features": {"avx512_bf16"}, "vendor": ""}, "bfloat16", "has AVX-512 BF16"),
        # Skylake: oneDNN calls bfloat16 supported with any AVX-512, and computes it in float32.
        ({"features": set()}, "float32", "neither AVX-512 BF16 nor AMX"),
        ({"features": set(), "vectors": "AVX2", "onednn": set()}, "float32", "(AVX2) has neither"),
        ({"machine": "aarch64", "vectors": "DEFAULT"}, "bfloat16", "has ARM's BF16"),
        ({"machine": "aarch64", "vectors": "DEFAULT", "onednn": set()}, "float32", "lacks ARM's BF16"),
    ],
)
def test_auto_trains_in_bfloat16_where_the_cpu_gains_by_it(
    processor: dict[str, object], processor_has: dict[str, object], expected: str, words: str
) -> None:
    processor |= processor_has
    chosen = choose_precision("auto", "cpu", training=True)
    assert (chosen.name, chosen.warning) == (expected, None)
    assert words in chosen.reason
    assert choose_precision("auto", "cpu").name == "float32"  # inference: nothing to gain there


def test_bfloat16_asked_for_where_it_is_native_and_slower_is_warned_of_with_its_own_cost(
    processor: dict[str, object],
) -> None:
    processor |= {"features": {"avx512_bf16"}, "vendor": "GenuineIntel"}
    warning = str(choose_precision("bfloat16", "cpu", training=True).warning)
    assert "bfloat16 is slow here" in warning
    assert "6.6 samples/s in it, and at 8.7 in float32" in warning
    assert "0.6 samples/s" not in warning


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(("isa", "expected"), [("avx512_core", "float32"), ("AVX512_CORE_BF16", "bfloat16")])
def test_a_limit_on_the_instructions_is_kept(
    processor: dict[str, object], monkeypatch: pytest.MonkeyPatch, name: str, isa: str, expected: str
) -> None:
    processor["features"] = {"avx512_bf16"}
    monkeypatch.setenv(name, isa)
    chosen = choose_precision("auto", "cpu", training=True)
    assert chosen.name == expected
    assert (f"may not use it: {name}={isa}" in chosen.reason) == (expected == "float32")


def test_the_two_variables_that_play_an_older_machine_give_float32() -> None:
    """On any machine: where torch may use AVX2 alone, bfloat16 is emulated."""
    code = "import robustbev; print(robustbev.choose_precision('auto', 'cpu', training=True).name)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | AVX2, cwd=ROOT, capture_output=True, text=True, check=True,
        timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == "float32"


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16"), ((6, 1), "float16")]
)
@pytest.mark.parametrize("training", [True, False])
def test_a_gpu_computes_in_what_its_capability_says(capability: tuple[int, int], expected: str, training: bool) -> None:
    gpu = gpu_arithmetic("Some GPU", capability)
    chosen = gpu.choose("auto", training=training)
    assert chosen.name == expected
    assert f"capability {capability[0]}.{capability[1]}" in chosen.reason
    assert bool(gpu.choose("bfloat16", training=training).warning) == (expected == "float16")


def test_what_is_set_is_taken_and_what_is_emulated_is_warned_of() -> None:
    old = Arithmetic("cpu", bfloat16=False, float16=False, reason="this CPU is old")
    assert old.choose("float32", training=True).warning is None
    emulated = old.choose("bfloat16", training=True)
    assert emulated.name == "bfloat16"
    assert "this CPU is old" in str(emulated.warning)
    assert "0.6 samples/s in it, and at 6.6 in float32" in str(emulated.warning)  # the cost
    assert "0.6 samples/s" not in str(old.choose("float16", training=True).warning)  # not measured


def test_a_loaded_model_computes_in_what_was_asked_for(tmp_path: Path) -> None:
    robustbev.save(tiny_model(), tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = {name: robustbev.load(tmp_path, precision=name) for name in ("auto", "float32", "bfloat16")}
    told = [one for one in caught if issubclass(one.category, PrecisionWarning)]
    assert len(told) == (0 if arithmetic_of("cpu").bfloat16 else 1)
    assert loaded["auto"].precision.name == "float32"
    batch = random_sensors()
    with torch.inference_mode():
        full, half = loaded["float32"](batch), loaded["bfloat16"](batch)
        assert {f.features.dtype for f in loaded["float32"].encode(batch).values() if f} == {torch.float32}
        assert torch.bfloat16 in {f.features.dtype for f in loaded["bfloat16"].encode(batch).values() if f}
        assert torch.equal(loaded["auto"](batch).boxes.score, full.boxes.score)
    assert {half.fused.features.dtype, half.fused.attention.dtype, half.boxes.center_m.dtype} == {torch.float32}
    # bfloat16 keeps 8 bits: 0.4% a rounding, and some tens of them follow one another.
    error = (half.fused.features - full.fused.features).norm() / full.fused.features.norm()
    assert error < 0.05
    torch.testing.assert_close(half.boxes.score, full.boxes.score, rtol=0.05, atol=0.01)
    assert not torch.equal(half.boxes.score, full.boxes.score)
