"""A configuration is right as a whole, or every fault in it is named in one line."""

import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.files.config_file import ConfigError, load_config, to_yaml


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Encoder(Strict):
    dim: Annotated[int, Field(gt=0)] = 96
    kind: Literal["null", "zeros", "mask"] = "null"
    betas: tuple[float, float] = (0.9, 0.99)


class Optim(Strict):
    lr: Annotated[float, Field(gt=0)] = 1e-3
    scale: dict[str, float] = {"a": 1.0}


class Config(Strict):
    name: str = "x"
    epochs: int = 3
    camera: Encoder | None = Encoder()
    optim: Optim = Optim()
    limit: int | Literal["all"] = "all"
    path: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.epochs == 13:
            raise ValueError("epochs: thirteen is unlucky")
        return self


class Values(Strict):
    a: int | None = None
    b: int | None = None
    c: int | None = None


class Deep(Strict):
    values: Values = Values()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def faults(path: Path | None, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(Config, path, overrides)
    return list(caught.value.faults)


def test_file_over_base_over_defaults_and_command_line_over_all(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "epochs: 5\ncamera: {dim: 32, kind: mask}\noptim: {scale: {b: 2}}\n")
    path = write(tmp_path / "run.yaml", "base: base.yaml\ncamera: {dim: 64}\noptim: {scale: {c: 3}}\n")
    config = load_config(Config, path, ["camera.kind=zeros", "optim.lr=1e-4", "path=a/b"])
    assert config.epochs == 5
    assert config.camera == Encoder(dim=64, kind="zeros")
    assert config.optim == Optim(lr=1e-4, scale={"c": 3.0})  # a free mapping is replaced, a section is merged
    assert config.path == Path("a/b")


def test_null_switches_a_section_off_and_a_key_of_it_on_again(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", "camera: null\n")
    assert load_config(Config, path).camera is None
    assert load_config(Config, path, ["camera.dim=8"]).camera == Encoder(dim=8)


def test_resolved_yaml_reads_back_as_the_same_config(tmp_path: Path) -> None:
    config = load_config(Config, None, ["optim.lr=3e-05", "path=p", "limit=7"])
    assert load_config(Config, write(tmp_path / "resolved.yaml", to_yaml(config))) == config


def test_every_fault_is_one_line_with_path_expectation_and_nearest_name(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", "epochs: three\ncamera: {dimm: 3, kind: nul, betas: [0.9]}\noptim: {lr: -1}\n")
    found = faults(path, "lr=0.1", "oops", "camera.dim=true")
    assert all("\n" not in line for line in found)
    text = "\n".join(found)
    assert f"epochs: expected a valid integer, got 'three' ({path})" in text
    assert "camera.dimm: unknown key, expected one of dim, kind, betas; did you mean camera.dim?" in text
    assert "camera.kind: expected 'null', 'zeros' or 'mask', got 'nul'; did you mean 'null'?" in text
    assert "optim.lr: expected greater than 0, got -1" in text
    assert "lr: unknown key, expected one of name, epochs, camera, optim, limit, path; did you mean optim.lr?" in text
    assert "oops: expected key=value" in text
    assert "camera.dim: expected a valid integer, got True (command line)" in text
    assert "camera.betas[1]: missing" in text
    assert len(found) == 8


def test_alternatives_of_a_union_make_one_fault() -> None:
    assert faults(None, "limit=al") == [
        "limit: expected a valid integer or 'all', got 'al'; did you mean 'all'? (command line)"
    ]


def test_a_check_across_keys_speaks_for_itself() -> None:
    assert faults(None, "epochs=13") == ["configuration: epochs: thirteen is unlucky"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: [", "no valid YAML"),
        ("epochs: 1\nepochs: 2\n", "'epochs' is given twice"),
        ("- a\n", "expected keys and values"),
        ("base: [a]\n", "base: expected the path"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, said: str) -> None:
    (fault,) = faults(write(tmp_path / "run.yaml", text))
    assert said in fault
    assert "run.yaml" in fault


@settings(max_examples=30, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(0, 9)), min_size=1, max_size=12))
def test_bases_of_bases_to_any_depth(stack: list[dict[str, int]]) -> None:
    """Files in folders below each other, the first one on top: each key is that of the highest file that names it."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for depth, keys in enumerate(stack):
            (place / f"{depth}").mkdir()
            base = f"base: ../{depth + 1}/run.yaml\n" if depth + 1 < len(stack) else ""
            lines = "".join(f"  {name}: {value}\n" for name, value in keys.items())
            write(place / f"{depth}" / "run.yaml", base + (f"values:\n{lines}" if lines else ""))
        expected = dict(item for keys in reversed(stack) for item in keys.items())
        assert load_config(Deep, place / "0" / "run.yaml").values.model_dump(exclude_none=True) == expected


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 5), st.integers(1, 6))
def test_a_circle_of_bases_is_named_with_its_files(before: int, length: int) -> None:
    """`before` files lead to a circle of `length` files."""
    with tempfile.TemporaryDirectory() as folder:
        place, last = Path(folder), before + length - 1
        for i in range(before + length):
            write(place / f"{i}.yaml", f"base: {before if i == last else i + 1}.yaml\n")
        circle = " -> ".join(str(place / f"{i}.yaml") for i in [*range(before, before + length), before])
        assert faults(place / "0.yaml") == [f"base: {circle} is a circle, expected a file without a base at its end"]


def test_a_very_long_chain_of_bases(tmp_path: Path) -> None:
    count = sys.getrecursionlimit() + 1
    for i in range(count):
        write(tmp_path / f"{i}.yaml", f"base: {i + 1}.yaml\n" if i + 1 < count else "epochs: 7\n")
    assert load_config(Config, tmp_path / "0.yaml").epochs == 7


def test_missing_files_are_named(tmp_path: Path) -> None:
    write(tmp_path / "there.yaml", "")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml; there are .*there\.yaml"):
        load_config(Config, tmp_path / "nowhere.yaml")
    with pytest.raises(FileNotFoundError, match=r"its base .*gone\.yaml does not exist"):
        load_config(Config, write(tmp_path / "run.yaml", "base: gone.yaml\n"))
