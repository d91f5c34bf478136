"""Names in data that would become paths, and links in foreign folders: nothing outside the folder is read or written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbev import save
from robustbev.weights import write_whole
from sensors.errors import SensorDataError
from sensors.files import MOST_BYTES, is_below
from sensors.logs.messages import Malformed
from sensors.logs.nuscenes.log import NuScenesLog
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.index import build_index
from sensors.nuscenes.reader import NuScenesReader
from tests.hostile.files import measured
from tests.small_nuscenes import VERSION, SmallNuScenes
from tests.tiny_model import tiny_model
from training.files.atomic import held
from training.files.names import file_name
from training.loop.history import append
from training.runs.release import release
from training.tracking.outbox import Outbox

SECRET = np.ones((4, 5), "<f4").tobytes()  # which could be points
LIDAR = "LIDAR_TOP"


@pytest.fixture
def config(small_nuscenes: SmallNuScenes, tmp_path: Path) -> NuScenesConfig:
    shutil.copytree(small_nuscenes.root, tmp_path / "data")
    (tmp_path / "secret.bin").write_bytes(SECRET)
    return small_nuscenes.config.model_copy(update={"root": tmp_path / "data"})


def lidar_rows(config: NuScenesConfig) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads((config.root / VERSION / "sample_data.json").read_text())
    return [row for row in rows if str(row["filename"]).startswith(f"samples/{LIDAR}")]


@pytest.mark.parametrize(
    "name", ["../secret.bin", "/etc/passwd", "samples/../../secret.bin", "samples/a\0b", "samples/.."]
)
def test_files_that_are_not_below_the_data_root_are_refused_by_name(config: NuScenesConfig, name: str) -> None:
    path = config.root / VERSION / "sample_data.json"
    rows = json.loads(path.read_text())
    for row in rows:
        row["filename"] = name
    path.write_text(json.dumps(rows))
    with pytest.raises(SensorDataError, match=r"sample_data\.json: row .*: filename: expected a file's name"):
        build_index(config)


def test_an_index_that_leads_out_of_the_data_root_is_refused_by_name(config: NuScenesConfig) -> None:
    """One that came with the data, of tables that lead nowhere."""
    index = build_index(config)
    file, note = index / "data_file.npy", index / "meta.json"
    np.save(file, np.full_like(np.load(file), b"../secret.bin"))
    meta = json.loads(note.read_text())
    meta["arrays"]["data_file"] = [file.stat().st_size, file.stat().st_mtime_ns]
    note.write_text(json.dumps(meta))
    with pytest.raises(SensorDataError, match=f"expected a file below {config.root}, got one elsewhere. Remove "):
        NuScenesReader(config, "small_val").frame(0)
    messages = list(NuScenesLog(config, "scene-1").messages(topics=[f"/{LIDAR.lower()}"]))
    assert messages
    for message in messages:
        assert isinstance(message.payload, Malformed)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def zeros(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    os.truncate(path, MOST_BYTES + 20)


@pytest.mark.parametrize("change", [pipe, zeros, huge])
def test_what_is_no_file_of_a_sensor_is_refused_at_once(config: NuScenesConfig, change: Callable[[Path], None]) -> None:
    for row in lidar_rows(config):
        change(config.root / str(row["filename"]))
    with (
        measured() as cost,
        pytest.raises(SensorDataError, match=f"expected a readable file of at most {MOST_BYTES} bytes"),
    ):
        NuScenesReader(config, "small_val").frame(0)
    assert cost.mib < 100


# --- names ------------------------------------------------------------------------------------------------------------


@given(st.text(max_size=300) | st.text("./a\\", max_size=8), st.text(max_size=300))
def test_a_name_made_of_data_is_one_file_in_its_folder(text: str, other: str) -> None:
    name = file_name(text)
    assert Path("folder", name).parent == Path("folder")
    assert Path(name).name == name
    assert name.isascii()
    assert name.isprintable()
    assert 0 < len(name) < 120
    assert name[0] not in ".-"
    assert (name == file_name(other)) == (text == other)
    assert file_name(name) == name


@given(st.text("./ab\0", max_size=10))
def test_a_path_below_a_folder_stays_there(name: str) -> None:
    root = Path("/data/root")
    if is_below(name):
        assert Path(os.path.normpath(root / name)).is_relative_to(root)


def test_tokens_of_samples_are_names_of_pictures() -> None:
    assert file_name("3e8750f331d7499e9b5123e9eb70f2e2_fog-3") == "3e8750f331d7499e9b5123e9eb70f2e2_fog-3"
    assert "/" not in file_name("../../ESCAPED")


# --- links in a folder that is written to -----------------------------------------------------------------------------


def hold(link: Path) -> None:
    with held(link):
        pass


@pytest.mark.parametrize(
    "write", [hold, lambda link: append(link, {"step": 1}), lambda link: Outbox(link).files([link])],
    ids=["lock", "history", "outbox"],
)  # fmt: skip
def test_a_link_in_the_place_of_a_file_that_is_opened_is_not_followed(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("mine")
    link.symlink_to(target)
    with pytest.raises(OSError, match="expected a file, got a symbolic link, which is not followed"):
        write(link)
    assert target.read_text() == "mine"


def test_a_link_in_the_place_of_an_indexs_lock_is_not_followed(config: NuScenesConfig, tmp_path: Path) -> None:
    shutil.rmtree(
        next(config.root.joinpath(VERSION).glob(".robustbev-index-*-*"), tmp_path / "none"), ignore_errors=True
    )
    lock = config.root / VERSION / ".robustbev-index.lock"
    lock.unlink(missing_ok=True)
    lock.symlink_to(tmp_path / "secret.bin")
    with pytest.raises(OSError, match="symbolic link"):
        build_index(config)
    assert (tmp_path / "secret.bin").read_bytes() == SECRET


def test_links_in_the_places_of_partial_and_whole_files_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    for name in ("README.md", ".README.md.partial"):
        (tmp_path / name).symlink_to(tmp_path / "target")
    write_whole(tmp_path / "README.md", b"card")
    assert (tmp_path / "target").read_text() == "mine"
    assert (tmp_path / "README.md").read_bytes() == b"card"
    assert not (tmp_path / "README.md").is_symlink()


def test_a_release_copies_no_link(tmp_path: Path) -> None:
    save(tiny_model(), tmp_path / "model")
    card = tmp_path / "model" / "README.md"
    card.unlink(missing_ok=True)
    card.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic link"):
        release(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out" / "README.md").exists()
