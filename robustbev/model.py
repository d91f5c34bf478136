"""The model as a robot uses it: one frame of sensor data in, what it sees out.

Letters: B samples, M modalities, T boxes, X and Y cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cached_property
from typing import Any, Literal, TypeVar, get_args

import torch
from numpy.typing import NDArray

from bev.lift.kept import KeptTables
from robustbev.config import DETECTION, RigConfig
from robustbev.cuda_graphs import CudaGraphs
from robustbev.detections import Detections
from robustbev.inference import (
    blank_frame,
    on_rig,
    preparation,
    subsets_of,
    warn_of_absent,
    warn_of_calibration,
    without,
)
from robustbev.network import PerceptionNetwork
from robustbev.perception import Perception
from sensors.batch import SensorBatch, map_tensors
from sensors.errors import SensorDataError
from sensors.frames import Absence, SensorFrame
from sensors.modality import Preparation
from sensors.points import SensorUse
from sensors.prepare import collate, prepare

T = TypeVar("T")
OnBadSensor = Literal["raise", "absent"]


class PerceptionModel(PerceptionNetwork):
    """The network that also takes frames of numpy arrays; `build` makes it from a `ModelConfig`."""

    @cached_property
    def graphs(self) -> CudaGraphs:
        """By which `perceive` answers on a GPU."""
        return CudaGraphs()

    @cached_property
    def tables(self) -> KeptTables:
        """The cameras' look-up tables that `perceive` and `batch` keep on a CPU while a calibration stays."""
        return KeptTables()

    @cached_property
    def _calibration_known(self) -> set[str]:
        """Channels whose calibration `perceive` has looked at."""
        return set()

    def perceive(
        self,
        frame: SensorFrame,
        rig: RigConfig | None = None,
        *,
        min_score: float = 0.05,
        on_bad_sensor: OnBadSensor = "raise",
    ) -> Detections:
        """What the model sees in one frame of numpy arrays: boxes, who was used and whom it trusted. Runs on the model's device.

        Several threads may call it at a time, each with frames of its own: answers are those of one thread, to the bit. `warm_up`
        takes what first calls cost.

        A sensor without one usable measurement (no sweep, no return, every point NaN or out of reach) is absent, never an empty
        world: `Detections.sensors` says why, and a SensorDataWarning names it.

        The first calibration of each sensor is looked at as by a replay, and a SensorDataWarning tells once what is odd: an
        extrinsic that is the inverse or in millimetres, axes that are not optical, intrinsics of another resolution, cameras that
        look against their names.

        Args:
            frame: pictures and points, each with its pose in the ego frame at the frame's time: the vehicle's motion since it was
                measured is included (`sensors.readings.frame_at` sees to it). A sensor that is not there is left out, a modality
                that is not there is None and costs nothing. Cameras may come in any order; their channels tell them apart.
            rig: the names of the sensors, where they are others than those of the training, `config.rig`.
            min_score: boxes of a lower score are left out.
            on_bad_sensor: what becomes of a sensor whose data cannot be: arrays of another shape or type, a calibration or time
                that is none, more sweeps or pictures than the rig says. "raise", or "absent": as if the sensor had given nothing,
                to the bit; `Detections.sensors` and a SensorDataWarning name it. What is wrong with the frame or the call is
                raised in any case.

        Raises:
            SensorDataError: with `on_bad_sensor="raise"`, of the sensor that is its `channel`; a CalibrationError, if its
                calibration is none. Of the frame's own time or pose, always.
            ValueError: `frame` is none, or holds what is no reading or a sensor that the rig does not have; the model is in
                training mode, does not know its rig, or has weights that are not float32.
        """
        if not 0 <= min_score < 1:
            raise ValueError(f"min_score: expected 0 to less than 1, got {min_score}")
        if on_bad_sensor not in get_args(OnBadSensor):
            raise ValueError(f"on_bad_sensor: expected 'raise' or 'absent', got {on_bad_sensor!r}")
        wanted, rig = self._wanted(rig)
        seen = self._perceive_sound(frame, rig, wanted, on_bad_sensor)
        assert seen.sensors is not None  # of a frame
        assert seen.trust is not None  # of a model
        warn_of_absent(seen.sensors)
        warn_of_calibration(frame, seen.sensors, self._calibration_known)
        trust = dict(zip(seen.modalities, seen.trust[0].tolist(), strict=True))
        boxes = seen.shown(0)
        boxes = boxes[boxes.score >= min_score]
        return Detections(
            token=frame.token,
            time_us=int(frame.time_us),
            perceived=bool(seen.perceived[0]),
            classes=self.config.classes,
            attributes=self.config.attributes,
            center_m=boxes.center_m.numpy(),
            size_m=boxes.size_m.numpy(),
            yaw_rad=boxes.yaw_rad.numpy(),
            velocity_mps=boxes.velocity_mps.numpy(),
            label=boxes.label.numpy(),
            attribute=boxes.attribute.numpy(),
            score=boxes.score.numpy(),
            modalities=seen.modalities,
            attention=seen.fused.attention[0].float().numpy(),
            coverage=seen.fused.coverage[0].float().numpy(),
            outputs=_arrays(seen) if seen.perceived[0] else {},
            sensors=seen.sensors,
            trust=trust,
            null_share=max(0.0, 1 - sum(trust.values())),
        )

    def warm_up(self, rig: RigConfig | None = None) -> None:
        """Answer some noise with every subset of the modalities (of more than three: all, each alone, all but each).

        So that no later call is a first one: memory is taken, kernels are chosen, on a GPU compiled and recorded as graphs. Takes
        some calls' time. It sees nothing of the robot's, and the answers are lost.

        Args:
            rig: as `perceive` takes it.

        Raises:
            ValueError: as `perceive`.
        """
        wanted, rig = self._wanted(rig)
        for subset in subsets_of(tuple(self.config.modalities)):
            frame = blank_frame(self.config, rig, subset)
            for _ in range(2):
                perceive_frame(self, on_rig(frame, rig), wanted)

    def batch(self, frames: Sequence[SensorFrame], rig: RigConfig | None = None) -> SensorBatch:
        """Frames of numpy arrays as tensors on the model's device, sample b of frame b: what `encode` and the model itself take.

        Cameras are put in the places of the rig's, pictures cut to the network's size, points merged, padded and counted. Depth
        targets are not among them.

        Args:
            frames: B of them, at least one, each as `perceive` takes it, of any subset of the sensors.
            rig: as `perceive` takes it.

        Raises:
            SensorDataError, ValueError: as `perceive`; or there is no frame.
        """
        given: Any = frames
        if not isinstance(given, Sequence) or not given:
            got = "none" if isinstance(given, Sequence) else type(given).__name__
            raise ValueError(f"frames: expected a list of at least one SensorFrame, got {got}: give one as [frame]")
        wanted, rig = self._wanted(rig)
        wanted = _for_inference(wanted, self)
        return collate([prepare(on_rig(frame, rig), wanted) for frame in frames], wanted).to(self.device)

    def _wanted(self, rig: RigConfig | None) -> tuple[Preparation, RigConfig]:
        """What the model wants of frames of this rig, else of its own, and which that is; ValueError where it knows none."""
        wanted, rig = preparation(self.config, rig), self.config.rig if rig is None else rig
        assert rig is not None  # or there would be no preparation
        return wanted, rig

    def _perceive_sound(
        self, frame: SensorFrame, rig: RigConfig, wanted: Preparation, on_bad_sensor: OnBadSensor
    ) -> Perception:
        """What is seen in the frame, or in what is left of it without a bad sensor, and without the next."""
        try:
            return perceive_frame(self, on_rig(frame, rig), wanted)
        except SensorDataError as error:
            if on_bad_sensor == "raise" or error.channel is None:
                raise
            bad, use = error.channel, SensorUse(Absence.of(error))
        seen = self._perceive_sound(without(frame, bad), rig, wanted, on_bad_sensor)
        return replace(seen, sensors={**(seen.sensors or {}), bad: use})


def _arrays(seen: Perception) -> dict[str, dict[str, NDArray[Any]]]:
    """The first sample's outputs of the tasks beside detection."""
    return {
        task: {field.name: getattr(output, field.name)[0].numpy() for field in fields(output)}
        for task, output in seen.outputs.items()
        if task != DETECTION
    }


@torch.inference_mode()
def perceive_frame(model: PerceptionModel, frame: SensorFrame, preparation: Preparation) -> Perception:
    """What the model sees in one frame, as tensors: B = 1, on the CPU but for the fused features, which stay where they are.

    A modality that is None costs nothing. On a GPU the answer is replayed, see `robustbev.cuda_graphs`.

    Args:
        model: in evaluation mode, on any device.
        frame: of any subset of the sensors, none included.
        preparation: what the model wants to be given; depth targets are not made.

    Raises:
        SensorDataError, ValueError: see `sensors.prepare.prepare`.
    """
    if model.training:
        raise ValueError("the model is in training mode, in which it answers at random: call model.eval() first")
    preparation = _for_inference(preparation, model)
    prepared = prepare(frame, preparation)
    batch = collate([prepared], preparation)
    seen: Perception = model.graphs(model, batch) if model.device.type == "cuda" else model(batch.to(model.device))
    fused = replace(seen.fused, attention=seen.fused.attention.cpu(), coverage=seen.fused.coverage.cpu())
    sensors = dict(prepared.sensors)
    for modality in preparation.modalities:
        if modality.name in seen.sensor_coverage:
            shares = seen.sensor_coverage[modality.name][0].tolist()
            for channel, share in zip(modality.channels, shares, strict=True):
                sensors[channel] = replace(sensors[channel], coverage=share)
    return replace(
        seen,
        outputs=_on_cpu(seen.outputs),
        fused=fused,
        perceived=seen.perceived.cpu(),
        trust=_on_cpu(seen.trust),
        sensor_coverage=_on_cpu(seen.sensor_coverage),
        sensors=sensors,
    )


def _for_inference(preparation: Preparation, model: PerceptionModel) -> Preparation:
    """Without depth targets; a CPU keeps its lift tables, and a GPU makes them itself, in a fiftieth of the time."""
    on_cpu = model.device.type != "cuda"
    return replace(preparation, depth_targets=False, lift_tables=on_cpu, lift_table=model.tables)


def _on_cpu(value: T) -> T:
    return map_tensors(value, lambda tensor: tensor.cpu())
