"""Parameter groups, learning rate and averaged weights."""

import pytest
import torch

from tests.training.loop.toy import ToyModel
from training.loop.optim import AveragedWeights, OptimConfig, build_optimizer, lr_factor, named_parameters, set_lr


def test_only_weights_of_layers_decay() -> None:
    optimizer = build_optimizer(ToyModel(), OptimConfig(weight_decay=0.1))
    decay = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["names"]}
    assert {name for name, value in decay.items() if value > 0} == {"net.0.weight", "net.4.weight"}
    assert decay["null"] == decay["net.1.weight"] == decay["net.0.bias"] == 0
    assert dict(named_parameters(optimizer)).keys() == dict(ToyModel().named_parameters()).keys()


class Deep(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(12))


def rates(model: torch.nn.Module, **lr_scale: float) -> dict[str, float]:
    optimizer = build_optimizer(model, OptimConfig(lr=1.0, lr_scale=lr_scale))
    assert set_lr(optimizer, 0.5) == 0.5
    return {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}


def test_the_longest_entry_scales_the_learning_rate() -> None:
    rate = rates(ToyModel(), **{"net": 0.5, "net.0": 0.1, "net.0.bias": 0.2})
    assert (rate["net.0.weight"], rate["net.0.bias"]) == (0.05, 0.1)
    assert (rate["net.4.weight"], rate["null"]) == (0.25, 0.5)


def test_an_entry_means_whole_parts_of_a_name() -> None:
    rate = rates(Deep(), **{"blocks.1": 0.1})
    assert {name for name, value in rate.items() if value != 0.5} == {"blocks.1.weight", "blocks.1.bias"}


def test_an_entry_that_decides_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no parameter lies under 'nett'; did you mean net"):
        rates(ToyModel(), nett=0.1)
    with pytest.raises(ValueError, match=r"no parameter lies under 'block'; did you mean blocks"):
        rates(Deep(), block=0.1)
    with pytest.raises(ValueError, match=r"'net\.0' does nothing, .* under net\.0\.bias, net\.0\.weight as well"):
        rates(ToyModel(), **{"net.0": 0.1, "net.0.weight": 0.2, "net.0.bias": 0.3})
    frozen = ToyModel()
    frozen.net[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"'net\.0' does nothing, what lies under it is frozen; leave it out"):
        rates(frozen, **{"net.0": 0.1})


def test_learning_rate_rises_then_falls_along_a_cosine() -> None:
    config = OptimConfig(warmup_fraction=0.1, final_lr_fraction=0.02)
    factors = [lr_factor(step, 100, config) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.51)
    assert factors[100] == pytest.approx(0.02)
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_the_average_forgets_the_first_weights_and_copies_statistics() -> None:
    model = ToyModel()
    average = AveragedWeights(model, 0.9)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
        for buffer in model.buffers():
            buffer.fill_(3)
    for step in range(1, 201):
        average.update(model, step)
    assert all(torch.allclose(p, torch.ones_like(p), atol=1e-4) for p in average.model.parameters())
    assert all(bool((b == 3).all()) for b in average.model.buffers())
    assert not average.model.training
    assert not any(p.requires_grad for p in average.model.parameters())
