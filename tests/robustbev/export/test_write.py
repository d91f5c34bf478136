"""What AOTInductor is asked for, and what is said where it fails."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torch._inductor
from torch import nn

from robustbev.export.interface import ExportError, Interface
from robustbev.export.write import write_program


@pytest.mark.parametrize(
    ("capability", "march"), [("AVX2", "x86-64-v3"), ("AVX512", "x86-64-v4"), ("SVE256", None), ("DEFAULT", None)]
)
def test_a_package_asks_of_a_processor_what_its_manifest_says(
    capability: str, march: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = Mock(side_effect=RuntimeError("g++: not found\nand more"))
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compiler)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    program = torch.export.export(nn.Identity(), (torch.zeros(1),))
    with pytest.raises(ExportError, match=r"could not compile the model: g\+\+: not found\. It needs a C\+\+ compiler"):
        write_program(program, tmp_path / "model.aoti.pt2", "aoti", Interface((), ()))
    assert compiler.call_args.kwargs["inductor_configs"]["cpp.march"] == march
