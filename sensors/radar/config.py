"""Settings of a radar modality."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sensors.settings import LayersOrNone, ModalityConfig, Positive


class RadarConfig(ModalityConfig):
    """Pillars with Doppler, 2D blocks, field of view."""

    kind: Literal["radar"] = "radar"
    width: Positive = 32
    blocks: LayersOrNone = 1
    half_view_deg: Annotated[float, Field(gt=0, le=180)] = 75.0  # azimuth to either side that one radar covers
