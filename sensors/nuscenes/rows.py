"""The thirteen nuScenes tables as rows to be written, and those of one scene as it is recorded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sensors.calibration import Float64, FloatArray
from sensors.nuscenes.arrays import OPTIONAL_TABLES, TABLES

Row = dict[str, Any]

# Token, level and upper share of nuScenes' visibility classes.
VISIBILITY = (("1", "v0-40", 0.4), ("2", "v40-60", 0.6), ("3", "v60-80", 0.8), ("4", "v80-100", 1.0))
OFFICIAL_SPLITS = frozenset({"train", "val", "test", "mini_train", "mini_val", "train_detect", "train_track"})


def token(seed: int, *names: object) -> str:
    """32 hexadecimal digits that depend on the seed and the names alone."""
    return hashlib.md5("/".join((str(seed), *map(str, names))).encode(), usedforsecurity=False).hexdigest()


@dataclass(slots=True)
class Rows:
    """Rows by table."""

    tables: dict[str, list[Row]] = field(
        default_factory=lambda: {name: [] for name in sorted((*TABLES, *OPTIONAL_TABLES))}
    )

    def add(self, table: str, **row: Any) -> None:
        """Append one row."""
        self.tables[table].append(row)

    def extend(self, other: Rows) -> None:
        """Append all rows of another."""
        for name, rows in other.tables.items():
            self.tables[name].extend(rows)

    def add_names(self, seed: int, categories: Iterable[str], attributes: Iterable[str]) -> None:
        """Categories, attributes and nuScenes' levels of visibility."""
        for name in categories:
            self.add("category", token=token(seed, "category", name), name=name, description="")
        for name in attributes:
            self.add("attribute", token=token(seed, "attribute", name), name=name, description="")
        for key, level, _ in VISIBILITY:
            low, high = level[1:].split("-")
            text = f"visibility of whole object is between {low} and {high}%"
            self.add("visibility", token=key, level=level, description=text)

    def write(self, folder: Path, splits: Mapping[str, Sequence[str]]) -> None:
        """All tables and the splits, as files of a folder that is there."""
        for table, content in self.tables.items():
            (folder / f"{table}.json").write_text(json.dumps(content, indent=None, separators=(",", ":")))
        (folder / "splits.json").write_text(json.dumps(splits, indent=1))


def link(rows: list[Row]) -> None:
    """Set `prev` and `next` along a chain that is in order of time."""
    tokens = ["", *(row["token"] for row in rows), ""]
    for row, before, after in zip(rows, tokens, tokens[2:], strict=False):
        row["prev"], row["next"] = before, after


class SceneRows:
    """The rows of one scene as it is recorded: samples, readings and annotated objects, which `close` puts in order and links.

    Tokens depend on the seed and the names alone.
    """

    def __init__(self, name: str, seed: int, channels: Iterable[str]) -> None:
        self.name, self._seed, self.rows = name, seed, Rows()
        self._chains: dict[str, list[Row]] = {channel: [] for channel in channels}
        self._annotations: dict[Any, list[Row]] = {}

    def token(self, *names: object) -> str:
        """Of something of this scene."""
        return token(self._seed, self.name, *names)

    def sample(self, time_us: int) -> None:
        """The next keyframe, at a later time than the one before."""
        key = self.token("sample", len(self.samples))
        self.rows.add("sample", token=key, timestamp=time_us, scene_token=self.token("scene"))

    @property
    def samples(self) -> list[Row]:
        """The keyframes so far."""
        return self.rows.tables["sample"]

    def reading(
        self,
        channel: str,
        time_us: int,
        global_T_ego: tuple[Sequence[float], Sequence[float]],
        calibration: str,
        suffix: str,
        sample: int,
        *,
        keyframe: bool,
    ) -> Row:
        """What a sensor measured once; its file's name is the row's `filename`.

        Args:
            global_T_ego: rotation w, x, y, z and translation of the vehicle at that time.
            calibration: token of its row of `calibrated_sensor`.
            suffix: of the file, jpg, pcd.bin or pcd.
            sample: which keyframe it belongs to, the next one where it is a sweep.
        """
        key = self.token("sample_data", channel, time_us)
        rotation, translation = global_T_ego
        self.rows.add("ego_pose", token=key, timestamp=time_us, rotation=list(rotation), translation=list(translation))
        row: Row = {
            "token": key,
            "sample_token": self.token("sample", sample),
            "ego_pose_token": key,
            "calibrated_sensor_token": calibration,
            "timestamp": time_us,
            "fileformat": "jpg" if suffix == "jpg" else "pcd",
            "is_key_frame": keyframe,
            "height": 0,
            "width": 0,
            "filename": f"{'samples' if keyframe else 'sweeps'}/{channel}/{self.name}__{channel}__{time_us}.{suffix}",
        }
        self._chains.setdefault(channel, []).append(row)
        return row

    def annotation(self, order: Any, track: str, category: str, sample: int, **row: Any) -> None:
        """An object at a keyframe: `row` has the other keys of `sample_annotation`. Objects come in the order of `order`."""
        found = {"token": self.token("annotation", track, sample), "sample_token": self.token("sample", sample)}
        found |= {"instance_token": self.token("instance", track), **row}
        self._annotations.setdefault((order, track, category), []).append(found)

    def close(self, description: str, log: Mapping[str, str], map_file: str) -> Rows:
        """All rows of the scene, with those of its log and map."""
        link(self.samples)
        for chain in self._chains.values():
            chain.sort(key=lambda row: int(row["timestamp"]))
            link(chain)
            self.rows.tables["sample_data"].extend(chain)
        for (_, track, category), chain in sorted(self._annotations.items(), key=lambda item: item[0]):
            link(chain)
            self.rows.tables["sample_annotation"].extend(chain)
            self.rows.add(
                "instance",
                token=self.token("instance", track),
                category_token=token(self._seed, "category", category),
                nbr_annotations=len(chain),
                first_annotation_token=chain[0]["token"],
                last_annotation_token=chain[-1]["token"],
            )
        self.rows.add(
            "scene",
            token=self.token("scene"),
            log_token=self.token("log"),
            nbr_samples=len(self.samples),
            first_sample_token=self.samples[0]["token"],
            last_sample_token=self.samples[-1]["token"],
            name=self.name,
            description=description,
        )
        self.rows.add("log", token=self.token("log"), logfile=self.name, **log)
        self.rows.add(
            "map",
            token=self.token("map"),
            log_tokens=[self.token("log")],
            category="semantic_prior",
            filename=map_file,
        )
        return self.rows


class PointCounter:
    """Counts points [N, 3] in upright boxes of their frame, borders included, as the devkit's points_in_box does."""

    def __init__(self, points_m: FloatArray) -> None:
        self._points: Float64 = np.asarray(points_m, np.float64)[np.argsort(points_m[:, 0], kind="stable")]
        self._x = np.ascontiguousarray(self._points[:, 0])

    def inside(self, centre_m: Sequence[float], size_wlh_m: Sequence[float], yaw_rad: float) -> int:
        """How many of the points lie in a box."""
        width, length, height = size_wlh_m
        radius = float(np.hypot(width, length)) / 2 + 0.01
        first, last = np.searchsorted(self._x, [centre_m[0] - radius, centre_m[0] + radius])
        local = self._points[first:last] - np.asarray(centre_m)
        c, s = np.cos(yaw_rad), np.sin(yaw_rad)
        x, y = c * local[:, 0] + s * local[:, 1], -s * local[:, 0] + c * local[:, 1]
        inside = (np.abs(x) <= length / 2) & (np.abs(y) <= width / 2) & (np.abs(local[:, 2]) <= height / 2)
        return int(inside.sum())
