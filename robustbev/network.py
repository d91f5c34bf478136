"""The network: encoders, fuser, backbone and heads as one module, from tensors to tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from bev.backbone import BEVBackbone
from bev.detection.head import HeatmapHead
from bev.motion import MOTION_CHANNELS
from fusion import BEVFeatures, FusedBEV, Fuser, hide
from fusion.kernels.tokens import sound_coverage
from robustbev.checks import check_batch, check_views, check_weights
from robustbev.config import DETECTION, ModelConfig
from robustbev.perception import Perception, TrainingOutputs, trust_in
from robustbev.precision import FLOAT32, Precision
from robustbev.tasks.detection import Detection
from robustbev.tasks.task import Task
from sensors.batch import SensorBatch, map_tensors
from sensors.modality import Encoded, MovingFeatures, SensorFeatures

MEASURE_MOTION = ("lidar", "radar")  # kinds of sensors: from sweep to sweep, and by Doppler


class PerceptionNetwork(nn.Module):
    """Encoders, fuser, backbone and the heads of the tasks, handed in built.

    Letters: B samples, C channels, M modalities, Q channels of measured motion, X and Y cells.
    """

    precision: Precision
    """What inference computes in; `robustbev.load` chooses it. Training has its own: `training.loop.step`."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        encoders: Mapping[str, nn.Module],
        fuser: Fuser,
        backbone: BEVBackbone,
        heads: Mapping[str, Task],
        auxiliary: Mapping[str, HeatmapHead],
        image_heads: Mapping[str, HeatmapHead],
    ) -> None:
        super().__init__()
        self.config = config
        self.precision = FLOAT32
        self.frozen: tuple[str, ...] = ()
        self.grid = config.grid.bev()
        self.encoders = nn.ModuleDict(encoders)
        self.fuser, self.backbone, self.heads = fuser, backbone, nn.ModuleDict(heads)
        self.auxiliary, self.image_heads = nn.ModuleDict(auxiliary), nn.ModuleDict(image_heads)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def freeze(self, prefixes: Sequence[str]) -> None:
        """Let the parameters whose names start with one of `prefixes` learn no more, and their batch statistics stand still.

        Raises:
            ValueError: a prefix fits no parameter.
        """
        names = [name for name, _ in self.named_parameters()]
        for prefix in prefixes:
            if not any(is_under(name, prefix) for name in names):
                parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
                meant = dict.fromkeys(name.partition(f".{prefix}.")[0] for name in names if f".{prefix}." in name)
                hint = f"; did you mean {' or '.join(f'{above}.{prefix}' for above in meant)}?" if meant else ""
                raise ValueError(f"freeze: no parameter lies under {prefix!r}; the model's parts are {parts}{hint}")
        self.frozen = tuple(prefixes)
        for name, parameter in self.named_parameters():
            if any(is_under(name, prefix) for prefix in self.frozen):
                parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As of every module, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for name, module in self.named_modules():
            if any(is_under(name, prefix) for prefix in self.frozen):
                module.eval()
        return self

    def forward(self, batch: SensorBatch) -> Perception:
        return self.perceive_features(self.encode(batch), batch.batch_size)

    def encode(self, batch: SensorBatch) -> dict[str, BEVFeatures | None]:
        """Each modality's grid [B, C, X, Y]; None where the batch has no such modality (nothing is computed).

        Raises:
            ValueError: the batch does not fit the model, see `robustbev.checks.check_batch`, or the weights are not float32.
        """
        with self._autocast():
            encoded = self._encode(batch)
        return {name: None if part is None else part.bev for name, part in encoded.items()}

    def _encode(self, batch: SensorBatch) -> dict[str, Encoded | None]:
        check_weights(self)
        check_batch(batch, self.config, self.device)
        encoded: dict[str, Encoded | None] = dict.fromkeys(self.config.modalities)
        for name, encoder in self.encoders.items():
            if (part := batch.part(name)) is not None:
                output = encoder(part)
                encoded[name] = Encoded(output, {}) if isinstance(output, BEVFeatures) else output
        return encoded

    def encoder(self, name: str) -> Any:
        """The encoder of one modality, of the kind that its configuration says."""
        return self.encoders[name]

    def task(self, name: str) -> Task:
        """The head of one task."""
        task = self.heads[name]
        assert isinstance(task, Task)
        return task

    @property
    def detection(self) -> Detection:
        """The task that every model has."""
        task = self.heads[DETECTION]
        assert isinstance(task, Detection)
        return task

    def perceive_features(self, features: Mapping[str, BEVFeatures | None], batch_size: int) -> Perception:
        """Fuse, and answer every task: `features` as `encode` gives them, any of them None. One encoding serves every subset."""
        with self._autocast():
            fused = self.fuser(features, grid_shape=self.grid.shape, batch_size=batch_size)
        sensed = self._sensed(features, fused.coverage)
        outputs = self._answer(fused.features, self._measured(features, batch_size), sensed)
        if self.precision.name != "float32":
            fused = FusedBEV(fused.features.float(), fused.attention.float(), fused.coverage.float())
        return Perception(
            outputs,
            fused,
            tuple(self.config.modalities),
            perceived=sensed.flatten(1).amax(1) > 0,
            trust=trust_in(features, fused, tuple(self.config.modalities)),
            sensor_coverage={n: f.sensor_coverage for n, f in features.items() if isinstance(f, SensorFeatures)},
            cross_class_iou=self.config.detection.cross_class_iou,
        )

    def _senses(self, name: str) -> bool:
        return self.config.modalities[name].senses

    def _sensed(self, features: Mapping[str, BEVFeatures | None], coverage: Tensor) -> Tensor:
        """[B, X, Y] the part of the fused grid's `coverage` that comes from modalities that sense."""
        if all(map(self._senses, features)):
            return coverage
        parts = [f.coverage for name, f in features.items() if f is not None and self._senses(name)]
        return torch.stack([torch.zeros_like(coverage), *map(sound_coverage, parts)]).amax(0)

    def _autocast(self) -> AbstractContextManager[object]:
        return self.precision.autocast(self.device.type)

    def _measured(self, features: Mapping[str, BEVFeatures | None], batch_size: int) -> Tensor:
        """[B, Q, X, Y] what the sensors that are there measure of motion by themselves, for the head; 0 where none does."""
        shape = (batch_size, MOTION_CHANNELS, *self.grid.shape)
        parts = []
        for kind in MEASURE_MOTION:
            of_kind = [features.get(name) for name, modality in self.config.modalities.items() if modality.kind == kind]
            measured = [
                torch.where(seen.coverage[:, None] > 0, seen.motion, 0.0)
                for seen in of_kind
                if isinstance(seen, MovingFeatures)
            ]
            part = measured[0] if measured else torch.zeros(shape, device=self.device)
            for other in measured[1:]:  # of several of a kind the first that knows anything of a cell
                part = torch.where((part != 0).any(1, keepdim=True), part, other)
            parts.append(part)
        return torch.cat(parts, dim=1)

    def _answer(self, grids: Tensor, motion: Tensor, coverage: Tensor) -> dict[str, Any]:
        with self._autocast():
            seen = self.backbone(grids)
            logits = {name: head(seen, motion) for name, head in self.heads.items()}
        return {name: self.task(name).decode(_float32(of_task), coverage) for name, of_task in logits.items()}

    def training_outputs(self, batch: SensorBatch, views: Sequence[Tensor] | None = ()) -> TrainingOutputs:
        """Logits of every task, of each modality's auxiliary head, of the depth bins and of objects in the pictures.

        `views`: each [B, M] bool of modalities that the fuser may see (modality dropout); () is one view of everything, None
        does without fuser, backbone and tasks (the encoders learn through their auxiliary heads alone). What a
        view hides has coverage 0, exactly as if it were absent, while its encoder goes on learning through its auxiliary head
        and the other views. The encoders run once, however many views there are. ValueError as of `encode`.
        """
        check_views(views or (), batch.batch_size, tuple(self.config.modalities))
        encoded = self._encode(batch)
        features = {name: None if part is None else part.bev for name, part in encoded.items()}
        depth_logits, image = {}, {}
        for name, head in self.image_heads.items():
            part = encoded[name]
            if part is not None:
                depth_logits[name] = part.extras["depth_logits"]
                image[name] = head(part.extras["features"]).unflatten(0, batch.part(name).present.shape)
        auxiliary = {
            name: head(features[name].features)  # type: ignore[union-attr]
            for name, head in self.auxiliary.items()
            if features[name] is not None
        }
        logits = {} if views is None else self._logits(features, views, batch.batch_size)
        return TrainingOutputs(logits, auxiliary, depth_logits, image)

    def _logits(
        self, features: Mapping[str, BEVFeatures | None], views: Sequence[Tensor], batch_size: int
    ) -> dict[str, tuple[Any, ...]]:
        """Of each task, one a view; all views at once: they share the batch statistics, too."""
        seen = [hide(features, kept) for kept in views] or [dict(features)]
        fused = [self.fuser(view, grid_shape=self.grid.shape, batch_size=batch_size).features for view in seen]
        motion = torch.cat([self._measured(view, batch_size) for view in seen])
        grids = self.backbone(torch.cat(fused))
        return {name: _chunk(_float32(head(grids, motion)), len(seen)) for name, head in self.heads.items()}


def _float32(logits: Any) -> Any:
    """What autocast computed in half precision, as answers, losses and numpy want it."""
    return map_tensors(logits, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)


def _chunk(logits: Any, count: int) -> tuple[Any, ...]:
    """`count` equal parts of the batch."""
    return tuple(map_tensors(logits, partial(_part, count, i)) for i in range(count))


def _part(count: int, index: int, batch: Tensor) -> Tensor:
    return batch.chunk(count)[index]


def is_under(name: str, prefix: str) -> bool:
    """Whether a dotted name is `prefix` or lies under it."""
    return f"{name}.".startswith(f"{prefix}.")
