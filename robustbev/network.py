"""The network: encoders, fuser, backbone and heads as one module, from tensors to tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from bev.backbone import BEVBackbone
from bev.detection.boxes import Boxes
from bev.detection.head import DetectionHead, DetectionLogits, HeatmapHead, decode
from bev.detection.merge import merge_boxes, no_boxes
from bev.motion import MOTION_CHANNELS
from fusion import BEVFeatures, FusedBEV, Fuser, LateFusion, ObjectAlignment
from robustbev.checks import check_batch, check_views, check_weights
from robustbev.config import ModelConfig
from robustbev.perception import Perception, TrainingOutputs
from robustbev.precision import FLOAT32, Precision
from sensors.batch import SensorBatch
from sensors.modality import Encoded, MovingFeatures

MEASURE_MOTION = ("lidar", "radar")  # kinds of sensors: from sweep to sweep, and by Doppler


class PerceptionNetwork(nn.Module):
    """Encoders, fuser, backbone and head, handed in built.

    Letters: B samples, C channels, M modalities, K classes, T boxes, X and Y cells.
    """

    nms_radius_m: Tensor  # [K], NaN: by the boxes' own size
    allowed_attributes: Tensor  # [K, A] bool
    precision: Precision
    """What inference computes in; `robustbev.load` chooses it. Training has its own: `training.loop.step`."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        encoders: Mapping[str, nn.Module],
        fuser: Fuser,
        backbone: BEVBackbone,
        head: DetectionHead,
        auxiliary: Mapping[str, HeatmapHead],
        image_heads: Mapping[str, HeatmapHead],
        alignment: ObjectAlignment | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.precision = FLOAT32
        self.frozen: tuple[str, ...] = ()
        self.grid = config.grid.bev()
        self.encoders = nn.ModuleDict(encoders)
        self.fuser, self.backbone, self.head = fuser, backbone, head
        self.auxiliary, self.image_heads = nn.ModuleDict(auxiliary), nn.ModuleDict(image_heads)
        self.alignment = alignment
        radius = [config.decode.nms_radius_m.get(name, math.nan) for name in config.classes]
        self.register_buffer("nms_radius_m", torch.tensor(radius), persistent=False)
        allowed = [config.can_have(name, attribute) for name in config.classes for attribute in config.attributes]
        allowed_map = torch.tensor(allowed, dtype=torch.bool).view(len(config.classes), len(config.attributes))
        self.register_buffer("allowed_attributes", allowed_map, persistent=False)

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
        check_batch(batch, self.config, self.nms_radius_m.device)
        encoded: dict[str, Encoded | None] = dict.fromkeys(self.config.modalities)
        for name, encoder in self.encoders.items():
            if (part := batch.part(name)) is not None:
                output = encoder(part)
                encoded[name] = Encoded(output, {}) if isinstance(output, BEVFeatures) else output
        return encoded

    def encoder(self, name: str) -> Any:
        """The encoder of one modality, of the kind that its configuration says."""
        return self.encoders[name]

    def perceive_features(self, features: Mapping[str, BEVFeatures | None], batch_size: int) -> Perception:
        """Fuse, detect and decode: `features` as `encode` gives them, any of them None. One encoding serves every subset."""
        with self._autocast():
            fused = self.fuser(features, grid_shape=self.grid.shape, batch_size=batch_size)
        perceived = fused.coverage.flatten(1).amax(1) > 0
        if isinstance(self.fuser, LateFusion):
            boxes = self._merged_boxes(self.fuser, features, batch_size)
        else:
            boxes = self._detect(fused.features, self._measured(features, batch_size), perceived)
        if self.precision.name != "float32":
            fused = FusedBEV(fused.features.float(), fused.attention.float(), fused.coverage.float())
        return Perception(
            boxes, fused, tuple(self.config.modalities), perceived, cross_class_iou=self.config.decode.cross_class_iou
        )

    def _autocast(self) -> AbstractContextManager[object]:
        return self.precision.autocast(self.nms_radius_m.device.type)

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
            part = measured[0] if measured else torch.zeros(shape, device=self.nms_radius_m.device)
            for other in measured[1:]:  # of several of a kind the first that knows anything of a cell
                part = torch.where((part != 0).any(1, keepdim=True), part, other)
            parts.append(part)
        return torch.cat(parts, dim=1)

    def _detect(self, grids: Tensor, motion: Tensor, perceived: Tensor) -> Boxes:
        with self._autocast():
            logits = self.head(self.backbone(grids), motion)
        boxes = decode(
            logits, self.grid, max_boxes=self.config.decode.max_boxes, nms_radius_m=self.nms_radius_m,
            allowed=self.allowed_attributes,
        )  # fmt: skip
        return replace(boxes, score=torch.where(perceived[:, None], boxes.score, 0.0))

    def _merged_boxes(self, fuser: LateFusion, features: Mapping[str, BEVFeatures | None], batch_size: int) -> Boxes:
        """Late fusion: the boxes of each sensor that is there, from its own grid alone, merged."""
        with self._autocast():
            grids = fuser.separate(features, grid_shape=self.grid.shape, batch_size=batch_size)
        present = [(name, g) for g, name in zip(grids, fuser.modalities, strict=True) if features.get(name) is not None]
        max_boxes = self.config.decode.max_boxes
        if not present:
            count = min(max_boxes, len(self.config.classes) * self.grid.num_cells)
            return no_boxes(batch_size, count, self.nms_radius_m.device)
        # One after the other: in one batch a convolution's last bits could depend on how many sensors there are.
        boxes = [
            self._detect(
                g.features, self._measured({name: features[name]}, batch_size), g.coverage.flatten(1).amax(1) > 0
            )
            for name, g in present
        ]
        coverage = [g.coverage for _, g in present]
        return merge_boxes(boxes, coverage, self.grid, radius_m=self.nms_radius_m, max_boxes=max_boxes)

    def training_outputs(self, batch: SensorBatch, views: Sequence[Tensor] | None = ()) -> TrainingOutputs:
        """Logits of the head, of each modality's auxiliary head, of the depth bins and of objects in the pictures.

        `views`: each [B, M] bool of modalities that the fuser may see (modality dropout); () is one view of everything, None
        does without fuser, backbone and head (the encoders learn through their auxiliary heads alone). What a
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
        detection = () if views is None else self._detect_views(features, views, batch.batch_size)
        return TrainingOutputs(detection, features, auxiliary, depth_logits, image)

    def _detect_views(
        self, features: Mapping[str, BEVFeatures | None], views: Sequence[Tensor], batch_size: int
    ) -> tuple[DetectionLogits, ...]:
        if isinstance(self.fuser, LateFusion):
            return self._detect_each(self.fuser, features, batch_size)
        seen = [_hide(features, kept) for kept in views] or [dict(features)]
        fused = [self.fuser(view, grid_shape=self.grid.shape, batch_size=batch_size).features for view in seen]
        # All views at once: they share the batch statistics, too.
        motion = torch.cat([self._measured(view, batch_size) for view in seen])
        return self.head(self.backbone(torch.cat(fused)), motion).chunk(len(seen))

    def _detect_each(
        self, fuser: LateFusion, features: Mapping[str, BEVFeatures | None], batch_size: int
    ) -> tuple[DetectionLogits, ...]:
        """Late fusion: the logits of each sensor's own detector. It always sees its sensor, and nothing else to lose.

        What a detector says of a sample without its sensor passes no gradient: there it had nothing to see.
        """
        grids = fuser.separate(features, grid_shape=self.grid.shape, batch_size=batch_size)
        motion = torch.cat([self._measured({name: features.get(name)}, batch_size) for name in fuser.modalities])
        logits = self.head(self.backbone(torch.cat([g.features for g in grids])), motion).chunk(len(grids))
        return tuple(
            DetectionLogits(
                *(
                    torch.where(grid.coverage.amax((1, 2))[:, None, None, None] > 0, part, part.detach())
                    for part in (of_one.heatmap, of_one.regression, of_one.attributes)
                )
            )
            for of_one, grid in zip(logits, grids, strict=True)
        )


def _hide(features: Mapping[str, BEVFeatures | None], kept: Tensor) -> dict[str, BEVFeatures | None]:
    """The same features with coverage 0 where `kept` [B, M] is False."""
    return {
        name: None if f is None else replace(f, coverage=f.coverage * kept[:, i, None, None])
        for i, (name, f) in enumerate(features.items())
    }


def is_under(name: str, prefix: str) -> bool:
    """Whether a dotted name is `prefix` or lies under it."""
    return f"{name}.".startswith(f"{prefix}.")
