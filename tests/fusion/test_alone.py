"""`fusion` alone: what an import of it loads, and that a copy under another name computes the same bits."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import fusion
from tests.fusion.grids import CHANNELS, random_features

ROOT = Path(fusion.__file__).resolve().parents[1]
NAMES = {"camera": 5, "lidar": 8, "radar": 3}  # two of the three need a projection
OTHERS = {"camera": 5, "lidar": 8}


def in_a_fresh_interpreter(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_fusion_loads_nothing_but_itself_and_the_standard_library_beside_torch() -> None:
    code = "import torch, sys; before = set(sys.modules); import fusion; print(*sorted(set(sys.modules) - before))"
    loaded = in_a_fresh_interpreter(code, ROOT).split()
    assert "fusion.fusers.cross_attention" in loaded
    assert "fusion.runtime" not in loaded  # for a robot, where it is asked for
    strangers = {name.partition(".")[0] for name in loaded} - {"fusion", "torch"} - set(sys.stdlib_module_names)
    assert not strangers


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The package, copied into another one and imported from there."""
    stack = tmp_path_factory.mktemp("robot")
    shutil.copytree(
        Path(fusion.__file__).parent, stack / "robot_stack" / "mixing", ignore=shutil.ignore_patterns("__pycache__")
    )
    (stack / "robot_stack" / "__init__.py").touch()
    sys.path.insert(0, str(stack))
    try:
        yield importlib.import_module("robot_stack.mixing")
    finally:
        sys.path.remove(str(stack))
        for name in [name for name in sys.modules if name.partition(".")[0] == "robot_stack"]:
            del sys.modules[name]


def test_a_copy_imports_without_us(copy: ModuleType) -> None:
    assert copy.__file__ is not None
    code = "import robot_stack.mixing, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = in_a_fresh_interpreter(code, Path(copy.__file__).parents[2]).split()
    assert "robot_stack" in loaded
    assert not {"fusion", "bev", "sensors", "robustbev", "training"} & set(loaded)


def gated(package: ModuleType) -> Any:
    fuser = package.GatedFusion(
        package.MeanFusion(OTHERS, 8), {"radar": 3}, 8, modalities=tuple(NAMES), heads=2, neighbourhood=3
    )
    torch.nn.init.constant_(fuser.added.attention_gate, 0.7)
    return fuser


BUILD: Mapping[str, Callable[[ModuleType], Any]] = {
    "CrossAttentionFusion": lambda p: p.CrossAttentionFusion(NAMES, 8, heads=2),
    "CrossAttentionFusion 3 x 3": lambda p: p.CrossAttentionFusion(NAMES, 8, heads=2, neighbourhood=3, absent="mask"),
    "ConcatFusion": lambda p: p.ConcatFusion(NAMES, 8),
    "MeanFusion": lambda p: p.MeanFusion(NAMES, 8),
    "ChannelWeightFusion": lambda p: p.ChannelWeightFusion(NAMES, 8),
    "LatentFusion": lambda p: p.LatentFusion(NAMES, 8, heads=2, latents=3, pool=2),
    "JointFusion": lambda p: p.JointFusion(NAMES, 8, heads=2, pool=2),
    "GatedFusion": gated,
}


def outcome(package: ModuleType, build: Callable[[ModuleType], Any], gone: str | None) -> list[Tensor]:
    """Outputs with a sensor gone, and every gradient, of a fuser built anew in `package`."""
    torch.manual_seed(3)
    fuser = build(package)
    features = {
        name: None if f is None or name == gone else package.BEVFeatures(f.features, f.coverage)
        for name, f in random_features(7, channels=NAMES).items()
    }
    fused = fuser(features)
    fused.features.square().sum().backward()
    gradients = [p.grad for p in fuser.parameters() if p.grad is not None]
    return [fused.features, fused.attention, fused.coverage, *gradients]


@pytest.mark.parametrize("gone", [None, *CHANNELS])
@pytest.mark.parametrize("name", list(BUILD))
def test_every_fuser_of_the_copy_gives_the_same_bits(copy: ModuleType, name: str, gone: str | None) -> None:
    expected, got = (outcome(package, BUILD[name], gone) for package in (fusion, copy))
    assert len(got) == len(expected) > 3
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_every_fuser_is_among_them() -> None:
    fusers = {name for name in fusion.__all__ if isinstance(getattr(fusion, name), type)}
    named = {name for name in fusers if issubclass(getattr(fusion, name), fusion.Fuser)} - {"Fuser"}
    assert named == {name.partition(" ")[0] for name in BUILD}


def test_what_is_drawn_is_the_same_too(copy: ModuleType) -> None:
    outcomes = []
    for package in (fusion, copy):
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(5)
        available = package.drop_modalities(16, [0.5, 0.2, 0.9], generator)
        outcomes.append(
            [
                available,
                package.draw_subsets(available, generator),
                package.drop_members(available, 0.5, generator),
            ]
        )
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))
