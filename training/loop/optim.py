"""The optimiser: parameter groups, learning rate over the steps, averaged weights."""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from robustbev import StrictModel
from robustbev.network import is_under

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(StrictModel):
    """AdamW (Loshchilov and Hutter, 2019) with a linear warm-up and a cosine decay."""

    lr: Positive = 1e-3
    lr_scale: dict[str, Positive] = Field(default_factory=dict)
    """Factor on the learning rate of what lies under a part of the model, e.g. {"camera.vit": 0.1}; the longest entry decides."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[Share, Share] = (0.9, 0.99)
    eps: Positive = 1e-8
    warmup_fraction: Share = 0.05
    """Share of all steps over which the learning rate rises from near 0."""
    final_lr_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    clip_norm: Positive | None = 10.0
    """Largest norm of all gradients together; null does not clip."""
    ema_decay: Share | None = 0.999
    """Decay of the averaged weights, which are the ones evaluated and shipped; null keeps no average."""
    accumulation: Annotated[int, Field(ge=1)] = 1
    """Batches per optimiser step."""


def lr_factor(step: int, total_steps: int, config: OptimConfig) -> float:
    """Factor on the learning rate of step `step` (from 0) of `total_steps`. A pure function, so there is no state to save."""
    warmup = round(config.warmup_fraction * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_lr_fraction + (1 - config.final_lr_fraction) * cosine


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `model`.

    Every group carries `base_lr` (before the schedule) and `names`, its parameters' names in order.

    Raises:
        ValueError: an entry of `lr_scale` decides for no parameter that learns.
    """
    return torch.optim.AdamW(_groups(model, config), lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's learning rate to `base_lr` times `factor`; returns the largest, which is the one to report."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return max(float(group["lr"]) for group in optimizer.param_groups)


def named_parameters(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, parameter) of an optimiser made by `build_optimizer`."""
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


def _groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    decayed = _decayed_names(model)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    entry = {name: _entry(name, config) for name in parameters}
    _check_entries(model, config, set(entry.values()))
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        scale = config.lr_scale.get(entry[name], 1.0)
        decay = name in decayed
        group = groups.setdefault(
            (scale, decay),
            {
                "params": [],
                "names": [],
                "lr": config.lr * scale,
                "base_lr": config.lr * scale,
                "weight_decay": config.weight_decay if decay else 0.0,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _entry(name: str, config: OptimConfig) -> str:
    """The entry of `lr_scale` that decides for a parameter, the longest that it lies under; "" where there is none."""
    return max((entry for entry in config.lr_scale if is_under(name, entry)), key=len, default="")


def _check_entries(model: nn.Module, config: OptimConfig, used: set[str]) -> None:
    names = [name for name, _ in model.named_parameters()]
    for entry in config.lr_scale:
        if entry in used:
            continue
        under = [name for name in names if is_under(name, entry)]
        if not under:
            near = difflib.get_close_matches(entry, _prefixes(names), n=1, cutoff=0.3)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"optim.lr_scale: no parameter lies under {entry!r}{hint}")
        longer = sorted({_entry(name, config) for name in under} - {entry})
        why = f"under {', '.join(longer)} as well, which decide" if longer else "frozen"
        raise ValueError(f"optim.lr_scale: {entry!r} does nothing, what lies under it is {why}; leave it out")


def _decayed_names(model: nn.Module) -> set[str]:
    """Names of the weight matrices and kernels.

    Biases, norms and what a module holds directly (null and position embeddings, queries) are not decayed: pulled to
    zero, an embedding loses its meaning.
    """
    names = set()
    for prefix, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim >= 2 and not isinstance(module, nn.Embedding):
            names.add(f"{prefix}.weight" if prefix else "weight")
    return names


def _prefixes(names: list[str]) -> list[str]:
    """What an entry of `lr_scale` can be: every module that holds parameters, and the parameters."""
    prefixes = {
        ".".join(parts[:depth]) for parts in (name.split(".") for name in names) for depth in range(1, len(parts) + 1)
    }
    return sorted(prefixes)


class AveragedWeights:
    """An exponential moving average of a model's weights, kept in a second model that is always in evaluation mode.

    The decay grows from 0.1 to `decay` over the first steps, so that the random initial weights are forgotten soon.
    Buffers (running statistics) are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights of `model` after optimiser step `step` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(list(self.model.parameters()), weights, 1 - decay)
        for average, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)


def clip_gradients(model: nn.Module, max_norm: float | None) -> Tensor:
    """Scale all gradients so that their common norm is at most `max_norm`; returns the norm from before, [] float32."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    if max_norm is None:
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
