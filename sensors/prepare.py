"""One instant made ready for the network, modality by modality, in one (perhaps augmented) reference frame; and batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sensors.batch import SensorBatch
from sensors.calibration import FloatArray
from sensors.camera.images import ImageChange
from sensors.checks.frame import check_frame
from sensors.frames import NOT_GIVEN, Absence, SensorFrame
from sensors.modality import Preparation, Sample
from sensors.points import DroppedPoints, SensorUse


@dataclass(frozen=True)
class PreparedFrame:
    """One sample, ready to be collated."""

    items: Mapping[str, Any]  # modality -> what its `prepare` gave; None: it is absent
    sensors: Mapping[str, SensorUse]  # by channel, every sensor of the modalities

    @property
    def dropped(self) -> DroppedPoints:
        """Of all sensors."""
        return sum((use.dropped for use in self.sensors.values()), DroppedPoints())

    @property
    def absent(self) -> dict[str, Absence]:
        """Channel -> why, of the sensors that are absent."""
        return {channel: use.absence for channel, use in self.sensors.items() if use.absence is not None}


def prepare(
    frame: SensorFrame,
    preparation: Preparation,
    *,
    image_changes: Sequence[ImageChange] | None = None,
    bev_change: FloatArray | None = None,
    depth_from: SensorFrame | None = None,
) -> PreparedFrame:
    """One frame as the network wants it.

    `image_changes`, one a camera, alter the cut of the pictures. `bev_change` [4, 4], any affine map of the reference frame
    (mirror, turn, scale), is applied to points, velocities and sensor poses alike; truth boxes are the caller's
    (`training.data.augmentation`). Depth targets stay in the camera's own metres; they come from the LiDAR and the camera poses
    of `depth_from`, where that is given: a frame whose sensors were made to fail would teach wrong depths.

    A sensor without one usable measurement is absent, see `sensors.points`; `PreparedFrame.absent` says why, in the words of
    `SensorFrame.absent` where the frame holds nothing of it.

    Raises:
        SensorDataError, ValueError: the frame is none, see `sensors.checks.frame.check_frame`, or `cameras` has another length
            than the configuration's.
    """
    check_frame(frame)
    change = np.eye(4) if bev_change is None else bev_change
    sample = Sample(frame, preparation, change, image_changes, depth_from)
    parts = {modality.name: modality.prepare(sample) for modality in preparation.modalities}
    sensors = {channel: use for part in parts.values() for channel, use in part.sensors.items()}
    for channel in sensors.keys() & frame.absent:
        if sensors[channel].absence == NOT_GIVEN:
            sensors[channel] = replace(sensors[channel], absence=frame.absent[channel])
    return PreparedFrame({name: part.item for name, part in parts.items()}, sensors)


def collate(frames: Sequence[PreparedFrame], preparation: Preparation) -> SensorBatch:
    """B prepared frames as one batch, points padded to the longest (rounded up, so that few shapes occur).

    A modality that no frame has is absent. Where `lift_tables` are wanted, they are built here, in the loader's worker.
    """
    parts = {
        modality.name: modality.collate([frame.items[modality.name] for frame in frames], preparation)
        for modality in preparation.modalities
    }
    return SensorBatch({name: part for name, part in parts.items() if part is not None}, len(frames))
