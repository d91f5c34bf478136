"""One training step: modality dropout, forward pass, losses. Readable alone; the loop and Ray wrap it.

Letters: B samples, M modalities, N cameras, V views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bev.detection.losses import depth_loss, focal_loss
from bev.detection.targets import make_image_targets, make_targets
from bev.layers import ConvBlock, ResidualBlock
from fusion import draw_subsets, drop_members, drop_modalities
from robustbev import PerceptionModel, Precision, StrictModel, choose_precision
from robustbev.config import DETECTION
from robustbev.precision import PrecisionSetting
from sensors.batch import CameraBatch, SensorBatch
from sensors.camera.encoder import CameraEncoder
from training.data.batch import TrainingBatch
from training.tasks.assembly import training_tasks
from training.tasks.task import LossSettings

Probability = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class DropoutConfig(StrictModel):
    """How a training sample goes without sensors. Never without all of them."""

    schedule: Literal["independent", "structured", "split"] = "independent"
    """What the fuser sees of a sample. independent: each modality goes by its own probability. structured: a part of the
    modalities, every part but none and all drawn alike. split: such a part in one view and the rest in another."""
    whole_view: bool = False
    """Also see each sample with all that it has, from the same pass of the encoders; losses are means over the views. After
    the sandwich rule of universally slimmable networks (Yu and Huang, ICCV 2019): the largest and a random one at each step."""
    modality: dict[str, Probability] = Field(default={})
    """Of each modality by its name, to be hidden; of one that is not named, `others`."""
    others: Probability = 0.25
    single_camera: Probability = 0.05  # each camera by itself

    @property
    def hides(self) -> bool:
        """Whether whole modalities are ever hidden from the fuser."""
        return self.schedule != "independent" or max([self.others, *self.modality.values()]) > 0

    def probability(self, modality: str) -> float:
        """Of a modality to be hidden."""
        return self.modality.get(modality, self.others)


class LossWeights(StrictModel):
    """Weights of the parts of the loss."""

    heatmap: Weight = 1.0
    offset: Weight = 0.25
    height: Weight = 0.25
    size: Weight = 0.25
    yaw: Weight = 0.25  # of the axis along which a box lies
    heading: Weight = 0.25  # which way along it
    velocity: Weight = 0.25
    attribute: Weight = 0.1
    auxiliary: Weight = 0.3  # heatmap of each modality by itself
    depth: Weight = 0.3
    image: Weight = 0.3  # heatmap of objects in the pictures, before the lift
    tasks: dict[str, Weight] = Field(default={})
    """Of all losses of a task beside detection, by its name; 1 where it is not named."""


class StepConfig(StrictModel):
    """How a training step drops, weighs and computes."""

    stage: Literal["joint", "encoders"] = "joint"
    """encoders: by their auxiliary heads, depth and pictures alone, the first of two stages; the second freezes them."""
    dropout: DropoutConfig = DropoutConfig()
    weights: LossWeights = LossWeights()
    class_balance: Annotated[float, Field(ge=0, le=1)] = 0.5
    """How far rare classes weigh as much as frequent ones in every heatmap: 0, every object counts the same; 1, every class."""
    precision: PrecisionSetting = "auto"
    """Of everything but geometry, softmax and accumulators. auto: bfloat16 where the device computes it natively, float16 on
    older GPUs, float32 elsewhere; see `robustbev.choose_precision`."""
    compile: bool = False
    """On a GPU, let torch.compile make one kernel of normalisation, activation and shortcut of every convolution: some 20 s at
    the start, after which steps take a tenth less time (docs/gpu.md)."""


@dataclass(frozen=True)
class StepOutput:
    """The loss and what it is made of."""

    loss: Tensor  # scalar with gradient
    parts: dict[str, Tensor]
    """Detached scalars, weighted as they enter the loss; of one modality as auxiliary_NAME, depth_NAME and image_NAME, of a task
    beside detection as TASK/NAME."""


class TrainingStep(nn.Module):
    """Batch -> loss. A module, so that DistributedDataParallel can wrap it.

    Args:
        model: on the device on which it is to learn.
        config: of the step.
        precision: what to compute in; None: chosen by `config.precision` for the model's device.
    """

    def __init__(self, model: PerceptionModel, config: StepConfig, precision: Precision | None = None) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.tasks = training_tasks(model.config)
        if config.compile and model.device.type == "cuda":
            _compile_blocks(model)
        self.precision = precision or choose_precision(config.precision, model.device, training=True)

    def draw(self, batch: TrainingBatch, generator: torch.Generator) -> TrainingBatch:
        """The batch without the single cameras that this step drops, and with the views of its modality dropout.

        Args:
            batch: on the CPU still: what is drawn moves with it, and no step has to wait for masks from a GPU.
            generator: on the CPU; the dropout depends on it alone.
        """
        views = self._views(modality_present(batch.sensors, tuple(self.model.config.modalities)), generator)
        sensors, probability = batch.sensors, self.config.dropout.single_camera
        for name, part in sensors.parts.items() if probability > 0 else ():
            if isinstance(part, CameraBatch):
                present = drop_members(part.present, probability, generator)
                sensors = sensors.having(**{name: replace(part, present=present)})
        return replace(batch, sensors=sensors, views=torch.stack(views))

    def forward(self, batch: TrainingBatch) -> StepOutput:
        """`batch`: as `draw` gives it, on the model's device. Nothing here makes the host wait for that device."""
        model, weights, sensors = self.model, self.config.weights, batch.sensors
        assert batch.views is not None, "draw the dropout first"
        targets = make_targets(batch.boxes, batch.box_valid, model.grid, len(model.config.classes))
        with self.precision.autocast(batch.box_valid.device.type):
            outputs = model.training_outputs(sensors, None if self.config.stage == "encoders" else batch.views.unbind())
        balance = self.config.class_balance
        settings = LossSettings(balance)
        parts: dict[str, Tensor] = {}
        for task, views in outputs.logits.items():
            for name, value in self.tasks[task].losses(views, targets, batch.truth.get(task), settings).items():
                parts[name if task == DETECTION else f"{task}/{name}"] = value
        available = modality_present(sensors, tuple(model.config.modalities))
        for i, name in enumerate(model.config.modalities):
            if name in outputs.auxiliary:
                logits = outputs.auxiliary[name]
                parts[f"auxiliary_{name}"] = focal_loss(logits, targets.heatmap, available[:, i], balance=balance)
        for name, logits in outputs.depth_logits.items():
            if name in batch.depth_m:
                encoder, present = model.encoder(name), sensors.part(name).present
                parts[f"depth_{name}"] = depth_loss(logits, batch.depth_m[name], encoder.bins, present)
        for name, logits in outputs.image.items():
            parts[f"image_{name}"] = self._image_loss(logits, batch, sensors.part(name), model.encoder(name))
        for name in parts:
            task, of_task, _ = name.partition("/")
            weight = weights.tasks.get(task, 1.0) if of_task else getattr(weights, name.partition("_")[0])
            parts[name] = parts[name] * weight
        loss = torch.stack(list(parts.values())).sum()
        return StepOutput(loss, {name: value.detach() for name, value in parts.items()})

    def _image_loss(self, logits: Tensor, batch: TrainingBatch, cameras: CameraBatch, encoder: CameraEncoder) -> Tensor:
        target = make_image_targets(
            batch.boxes,
            batch.box_valid,
            cameras.intrinsics,
            cameras.reference_T_camera,
            cameras.present,
            logits.shape[2],
            image_size=encoder.image_size,
            stride=encoder.stride_px,
        )
        use, balance = cameras.present.flatten(), self.config.class_balance
        return focal_loss(logits.flatten(0, 1), target.flatten(0, 1), use, balance=balance)

    def _views(self, available: Tensor, generator: torch.Generator) -> list[Tensor]:
        """[B, M] bool of what the samples have -> which of it the fuser may see in each view, [B, M] bool."""
        config = self.config.dropout
        if config.schedule == "independent":
            probabilities = [config.probability(name) for name in self.model.config.modalities]
            views = [drop_modalities(len(available), probabilities, generator, available=available)]
        else:
            views = [draw_subsets(available, generator)]
        if config.schedule == "split":
            rest = available & ~views[0]
            views.append(torch.where(rest.any(1, keepdim=True), rest, available))  # of a single sensor nothing is left
        if config.whole_view and config.hides:
            views.append(available)
        return views


def _compile_blocks(model: nn.Module) -> None:
    """Every convolution with what follows it, for itself."""
    # One function is compiled for each width, stride and size, of which there are more than the eight that torch expects.
    # `recompile_limit`, by the only name that torch 2.6 has for it.
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
    residual = [module for module in model.modules() if isinstance(module, ResidualBlock)]
    inside = {id(part) for block in residual for part in block.modules()}
    for block in (*residual, *(m for m in model.modules() if isinstance(m, ConvBlock) and id(m) not in inside)):
        block.compile()


def modality_present(sensors: SensorBatch, modalities: Sequence[str]) -> Tensor:
    """[B, M] bool: does the sample have the modality at all?"""
    columns = [None if (part := sensors.part(name)) is None else part.present.any(1) for name in modalities]
    first = next((c for c in columns if c is not None), None)
    device = None if first is None else first.device
    absent = torch.zeros(sensors.batch_size, dtype=torch.bool, device=device)
    return torch.stack([absent if c is None else c for c in columns], dim=1)
