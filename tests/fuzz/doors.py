"""The doors through which files of others come in, each with sound files to begin with and the errors that it may end with."""

from __future__ import annotations

import base64
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import safetensors.torch
import torch
from mcap.reader import make_reader
from PIL import Image
from pydantic import ValidationError

from fusion import runtime
from robustbev import ModelConfig
from sensors.camera.picture_files import decode_file
from sensors.documents import DocumentError, parse_json
from sensors.errors import DataRootError, PictureError, SensorDataError
from sensors.logs.decode import ChannelInfo
from sensors.logs.decoder import Decoder
from sensors.logs.log import LogError
from sensors.logs.open import open_log
from sensors.logs.sqlite_log import SqliteLog
from sensors.logs.write import write_log
from sensors.nuscenes.schema import check_rows
from sensors.nuscenes.tables import _read
from sensors.tensor_files import read_tensors
from tests.hostile.artifacts import describe_onnx, onnx_model
from tests.hostile.test_sqlite import sound
from tests.sensors.logs.mcap.mcap_files import some_messages, write_mcap
from tests.sensors.replay.drive import MemoryLog, drive
from tests.tiny_model import tiny_config


@dataclass(frozen=True)
class Door:
    """What is read, by what, and how it may be refused. `read` is given the bytes of a file, or of a message."""

    seeds: tuple[bytes, ...]
    read: Callable[[bytes], object]
    refuses: tuple[type[Exception], ...] = ()


@cache
def folder() -> Path:
    """For the files: in memory where the machine has that."""
    return Path(mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def from_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Reads bytes as a file."""

    def written(data: bytes) -> object:
        path = folder() / name
        path.write_bytes(data)
        return read(path)

    return written


def read_log(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damage that is read around
        for _ in open_log(path).messages():
            pass


def read_bag(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in SqliteLog(path).messages():
            pass


@cache
def messages(kind: Any) -> tuple[tuple[ChannelInfo, bytes], ...]:
    """The first message of every channel of a drive, as `robustbev convert` writes it."""
    path = folder() / f"drive-{kind}.mcap"
    write_log(MemoryLog(drive(0.2)), path, kind)
    first: dict[str, tuple[ChannelInfo, bytes]] = {}
    with path.open("rb") as file:
        for schema, channel, message in make_reader(file).iter_messages():
            assert schema is not None
            info = ChannelInfo(channel.topic, schema.name, channel.message_encoding, schema.data)
            first.setdefault(channel.topic, (info, message.data))
    return tuple(first.values())


def message_door(channels: tuple[tuple[ChannelInfo, bytes], ...]) -> Door:
    """Messages behind a byte that says of which channel."""
    decoder = Decoder({number: info for number, (info, _) in enumerate(channels)})

    def read(data: bytes) -> object:
        return decoder.decode(data[0] % len(channels), data[1:], 1) if data else None

    return Door(tuple(bytes([number]) + data for number, (_, data) in enumerate(channels)), read)


def in_json() -> tuple[tuple[ChannelInfo, bytes], ...]:
    """Foxglove's messages in JSON."""
    head = {"timestamp": {"sec": 12, "nsec": 345}, "frame_id": "cam"}
    one = {"x": 1.0, "y": 2.0, "z": 3.0, "w": 1.0}
    pose = {"position": one, "orientation": one}
    fields = [{"name": name, "offset": 4 * k, "type": 7} for k, name in enumerate("xyz")]
    cube = {"pose": pose, "size": one, "color": {"r": 1, "g": 0, "b": 0, "a": 1}}
    contents: dict[str, dict[str, Any]] = {
        "CompressedImage": head | {"format": "jpeg", "data": base64.b64encode(pictures()[0]).decode()},
        "RawImage": head | {"width": 1, "height": 2, "encoding": "rgb8", "step": 4, "data": "YWJjLWFiYy0="},
        "CameraCalibration": head
        | {"width": 4, "height": 3, "K": [1, 0, 2, 0, 1, 1, 0, 0, 1], "D": [0.1], "P": [1.0] * 12},
        "PointCloud": head | {"point_stride": 12, "fields": fields, "pose": pose, "data": "AAAA" * 8},
        "FrameTransform": head | {"parent_frame_id": "a", "child_frame_id": "b", "translation": one, "rotation": one},
        "SceneUpdate": {
            "entities": [head | {"id": "car-1", "cubes": [cube], "metadata": [{"key": "a", "value": "1"}]}]
        },
    }
    return tuple(
        (ChannelInfo("/topic", f"foxglove.{name}", "json", b""), json.dumps(content).encode())
        for name, content in contents.items()
    )


def pictures() -> list[bytes]:
    """A JPEG, progressive too, PNGs of several depths, and a WebP."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    written = []
    for kind, options in (
        ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {"lossless": True}), ("WEBP", {}),
    ):  # fmt: skip
        Image.fromarray(pixels).save(file := io.BytesIO(), kind, **options)
        written.append(file.getvalue())
    Image.fromarray(pixels[:, :, 0].astype(np.uint16)).save(file := io.BytesIO(), "PNG")
    return [*written, file.getvalue()]


TABLE_ROWS = {
    "sample": [{"token": "a", "timestamp": 1, "scene_token": "s", "prev": "", "next": ""}],
    "sample_data": [{
        "token": "d", "sample_token": "a", "ego_pose_token": "e", "calibrated_sensor_token": "c", "timestamp": 1,
        "fileformat": "jpg", "is_key_frame": True, "height": 9, "width": 9, "filename": "samples/a.jpg", "prev": "", "next": "",
    }],
    "calibrated_sensor": [{
        "token": "c", "sensor_token": "s", "translation": [0, 0, 0.5], "rotation": [1, 0, 0, 0], "camera_intrinsic": [],
    }],
    "sample_annotation": [{
        "token": "b", "sample_token": "a", "instance_token": "i", "visibility_token": "", "attribute_tokens": ["x"],
        "translation": [1, 2, 3], "size": [1, 2, 3], "rotation": [1, 0, 0, 0], "prev": "", "next": "", "num_lidar_pts": 1,
        "num_radar_pts": 0,
    }],
}  # fmt: skip


def read_table(data: bytes) -> object:
    """A table behind a byte that says which."""
    name = list(TABLE_ROWS)[data[0] % len(TABLE_ROWS)] if data else "sample"
    path = folder() / f"{name}.json"
    path.write_bytes(data[1:])
    return check_rows(path, _read(path))


def read_onnx(path: Path) -> object:
    describe_onnx(path)
    return runtime.load(path)


DOORS: dict[str, Callable[[], Door]] = {
    "mcap": lambda: Door(
        (write_mcap(some_messages(20)), write_mcap(some_messages(20), use_chunking=False, data_crcs=True)),
        from_file("drive.mcap", read_log), (LogError,),
    ),
    "mcap-without-checksums": lambda: Door(
        (write_mcap(some_messages(20), crcs=False, summary=False),), from_file("drive.mcap", read_log), (LogError,)
    ),
    "sqlite": lambda: Door((sound(),), from_file("bag.db3", read_bag), (LogError,)),
    "cdr": lambda: message_door(messages("ros2")),
    "protobuf": lambda: message_door(messages("foxglove")),
    "json": lambda: message_door(in_json()),
    "tables": lambda: Door(
        tuple(bytes([k]) + json.dumps(rows).encode() for k, rows in enumerate(TABLE_ROWS.values())), read_table,
        (DataRootError, SensorDataError),
    ),
    "pictures": lambda: Door(tuple(pictures()), decode_file, (PictureError,)),
    "safetensors": lambda: Door(
        (safetensors.torch.save({"a": torch.ones(3), "b": torch.zeros(2, 2)}),), from_file("model.safetensors", read_tensors),
        (DocumentError,),
    ),
    "config": lambda: Door(
        (tiny_config().model_dump_json().encode(),), ModelConfig.model_validate_json, (ValidationError,)
    ),
    "settings": lambda: Door((b'{"a": [1, 2.5, {"b": null}], "c": "\\u00e9"}',), parse_json, (DocumentError,)),
    "onnx": lambda: Door((onnx_model(),), from_file("robust.onnx", read_onnx), (runtime.ArtifactError,)),
}  # fmt: skip
