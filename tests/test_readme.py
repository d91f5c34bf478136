"""The README's code runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_fusion_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = next(
        code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "from fusion import" in code
    )
    assert len(example.split("\n\n")[1].splitlines()) <= 10
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("torch.Size([1, 128, 180, 180])")


def test_every_local_link_leads_somewhere() -> None:
    root = Path(__file__).resolve().parents[1]
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert all((root / link).exists() for link in links), links
