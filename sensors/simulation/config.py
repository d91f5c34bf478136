"""Settings of the simulated data set. The defaults are what `make demo` drives."""

from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sensors.nuscenes.rows import OFFICIAL_SPLITS


class SimulationConfig(BaseModel):
    """Everything that decides the bytes of a simulated data set; equal configs give equal bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str = Field(default="v1.0-sim", pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the folder with the tables, as nuScenes' `v1.0-mini`."""
    split_train: str = "sim_train"
    split_val: str = "sim_val"
    """Names in `splits.json`; the devkit reads them as custom splits, so they may not be nuScenes' own names."""
    seed: int = Field(default=0, ge=0)
    scenes_train: int = Field(default=110, ge=0)
    scenes_val: int = Field(default=18, ge=0)
    keyframes_per_scene: int = Field(default=8, ge=1, le=100)

    lidar_sweeps_between_keyframes: int = Field(default=1, ge=0, le=9)
    radar_sweeps_between_keyframes: int = Field(default=2, ge=0, le=5)
    camera_sweeps_between_keyframes: int = Field(default=0, ge=0, le=5)

    image_width_px: int = Field(default=288, ge=32)
    image_height_px: int = Field(default=162, ge=18)
    """Images are nuScenes' 1600 x 900 scaled down; keep 16:9, the intrinsics follow."""
    jpeg_quality: int = Field(default=90, ge=10, le=100)
    lidar_azimuth_steps: int = Field(default=720, ge=16, le=2160)
    """Firings of the 32 beams per turn. The real sensor has 1,084."""
    lidar_range_m: float = Field(default=90.0, gt=0)

    agent_density: float = Field(default=1.0, gt=0, le=2.0)
    """Scales how many agents of each class are tried around the path of the ego vehicle."""
    annotation_range_m: float = Field(default=60.0, gt=0)
    night_probability: float = Field(default=0.15, ge=0, le=1)
    rain_probability: float = Field(default=0.15, ge=0, le=1)
    fog_probability: float = Field(default=0.10, ge=0, le=1)

    @model_validator(mode="after")
    def _consistent(self) -> SimulationConfig:
        if self.scenes_train + self.scenes_val == 0:
            raise ValueError("scenes_train and scenes_val are both 0: there is nothing to simulate")
        if abs(self.image_width_px * 9 - self.image_height_px * 16) > 16:
            raise ValueError(
                f"images must be 16:9 like nuScenes', got {self.image_width_px} x {self.image_height_px}; "
                f"for this width use image_height_px = {round(self.image_width_px * 9 / 16)}"
            )
        taken = OFFICIAL_SPLITS & {self.split_train, self.split_val}
        if taken or self.split_train == self.split_val:
            raise ValueError(
                "split_train and split_val must differ and must not be names of nuScenes' own splits, "
                f"got {self.split_train!r} and {self.split_val!r}"
            )
        return self

    def scene_names(self) -> dict[str, list[str]]:
        """Split name -> names of its scenes, in order."""
        names = [f"sim-{i:04d}" for i in range(self.scenes_train + self.scenes_val)]
        return {self.split_train: names[: self.scenes_train], self.split_val: names[self.scenes_train :]}

    def digest(self) -> str:
        """SHA-256 of the canonical JSON of this config."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
