"""Models as files: safetensors and config.json, of which nothing is executed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from robustbev.assembly import build
from robustbev.card import ModelCard
from robustbev.checkpoints import CheckpointError, find_checkpoint
from robustbev.config import Modality, ModelConfig, RigConfig
from robustbev.model import PerceptionModel
from robustbev.network import is_under
from robustbev.precision import PrecisionSetting, PrecisionWarning, choose_precision, usable_device
from sensors.documents import DocumentError
from sensors.frames import KINDS
from sensors.tensor_files import read_tensors

FORMAT_VERSION = 1
_LARGEST_TEXT_BYTES = 2**20  # of a configuration; ours have some 50,000


def gated_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model as those of the same model with a `gated` fuser around its own: `fuser.X` is `fuser.base.X`.

    Weights that are of a gated model already come back as they are.
    """
    if any(name.startswith("fuser.base.") for name in state):
        return dict(state)
    return {_moved(name): tensor for name, tensor in state.items()}


def _moved(name: str) -> str:
    return name.replace("fuser.", "fuser.base.", 1) if name.startswith("fuser.") else name


def save(model: PerceptionModel, directory: str | Path, card: ModelCard | None = None) -> Path:
    """Write `model.safetensors`, `config.json` and a model card into `directory`, each whole or not at all; -> the directory.

    The card, `README.md`, tells whoever is handed the folder what the model was trained on, what it reaches and what it cannot.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    header = {"format": "robustbev", "format_version": str(FORMAT_VERSION)}
    write_whole(directory / "model.safetensors", safetensors.torch.save(state, metadata=header))
    write_whole(directory / "config.json", model.config.model_dump_json(indent=2).encode())
    write_card(directory, model.config, card or ModelCard())
    return directory


def write_card(directory: str | Path, config: ModelConfig, card: ModelCard) -> Path:
    """Write the model card of a saved model anew; -> the file."""
    path = Path(directory) / "README.md"
    write_whole(path, card.markdown(config).encode())
    return path


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    precision: PrecisionSetting = "auto",
    threads: int | None = None,
) -> PerceptionModel:
    """A saved model in evaluation mode. Nothing in the files is executed and no class is named in them.

    Args:
        path: a directory written by `save`, its `model.safetensors` beside `config.json`, or a run of `robustbev train`, whose
            newest checkpoint it is then.
        device: where the model shall compute.
        precision: what it shall compute in; auto: float32 on a CPU, on a GPU the shortest float that it has, see
            `choose_precision`. The weights stay float32. One that the device emulates is warned of.
        threads: CPU threads for one call; None: torch's choice. It holds for the whole process, and is worth a look: see
            docs/deployment.md.

    Raises:
        CheckpointError: a file is missing or damaged, or weights and configuration do not belong together.
        DeviceError: torch cannot use the device here.
        ValueError: `threads` is no number from 1 on.
    """
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ValueError(f"threads: expected None or a number from 1 on, got {threads!r}")
    device = usable_device(device)
    path = find_checkpoint(Path(path))
    directory = path if path.is_dir() else path.parent
    weights = directory / "model.safetensors" if path.is_dir() else path
    config_file = directory / "config.json"
    if not config_file.is_file():
        raise CheckpointError(f"{config_file}: not found; expected a directory with model.safetensors and config.json")
    state = read_state(weights)
    try:
        if config_file.stat().st_size > _LARGEST_TEXT_BYTES:
            raise CheckpointError(
                f"{config_file}: expected at most {_LARGEST_TEXT_BYTES} bytes of configuration, got more"
            )
        config = ModelConfig.model_validate_json(config_file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        hint = ""
        # Where each kind of sensor, and what made boxes of heatmaps, had a key of its own.
        if first["type"] == "extra_forbidden" and key in (*KINDS, "decode"):
            hint = (
                "; an earlier version wrote this, before modalities and tasks went by name: use that one, or train anew"
            )
        elif first["type"] in ("literal_error", "union_tag_invalid") and key.startswith("tasks."):
            hint = "; this version has no such task: use the one that it was trained with"
        raise CheckpointError(f"{config_file}: no valid model configuration: {key}: {first['msg']}{hint}") from error
    try:
        with torch.device("meta"):
            outline = build(config)  # a config that is not of these weights must not fill the memory first
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:  # sizes beyond what torch can count
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{config_file}: describes no network that can be built: {reason}") from error
    _check_fit(outline, state, source=str(weights))
    model = build(config)
    load_weights(model, state, source=str(weights))
    model.precision = choose_precision(precision, device)
    if model.precision.warning is not None:
        warnings.warn(model.precision.warning, PrecisionWarning, stacklevel=2)
    if threads is not None:
        torch.set_num_threads(threads)
    return model.to(device).eval()


def with_sensor(
    model: PerceptionModel, name: str, config: Modality, *, rig: RigConfig | None = None, freeze: bool = True
) -> PerceptionModel:
    """A model that has one modality more, with fresh weights, beside all that `model` has; `model` stays as it is.

    Gates that start closed add it to the fuser. Where it is lost, and at first what it adds to the fused grid wherever it sees,
    the answer is that of `model` to the bit while that stays frozen. It is saved, loaded, trained and exported as any model.

    Args:
        model: whose fuser is not of kind `gated`.
        name: of the modality, none that the model has.
        config: of its kind, with its `channels`, where the model knows its sensors.
        rig: whose data it will be given; None: the model's own and `config.channels`.
        freeze: whether what the model had before learns no more.

    Raises:
        ValueError: a name, channels or a fuser that do not fit.
    """
    old = model.config
    if old.fuser.kind == "gated":
        raise ValueError(
            "with_sensor: expected a model whose fuser is not gated, which takes no gates: train one with all its sensors"
        )
    if name in old.modalities:
        raise ValueError(f"with_sensor: the model has a modality {name} already; give this one another name")
    if rig is None and old.rig is not None:
        if config.channels is None:
            raise ValueError(
                f"with_sensor: expected channels, the names of the sensors of {name}, or a rig that has them"
            )
        key = f"{config.kind}_channels"
        channels = dict.fromkeys((*getattr(old.rig, key), *config.channels))
        rig = old.rig.model_copy(update={key: tuple(channels)})
    fuser = old.fuser.model_copy(update={"kind": "gated", "base": old.fuser.kind, "adds": (name,)})
    more = {"modalities": {**old.modalities, name: config}, "fuser": fuser, "rig": rig}
    new = build(ModelConfig.model_validate(dict(old) | more))
    fresh = (f"encoders.{name}", f"auxiliary.{name}", f"image_heads.{name}", "fuser.added")
    load_weights(new, gated_state(model.state_dict()), source="the model", may_lack=fresh)
    if freeze:
        parts = {".".join(key.split(".")[:2]) for key, _ in new.named_parameters()}
        new.freeze(sorted(part for part in parts if not any(is_under(part, prefix) for prefix in fresh)))
    new.precision = model.precision
    return new.to(model.device).train(model.training)


def read_state(weights: Path) -> dict[str, Tensor]:
    """The weights in a safetensors file by name; CheckpointError where it is none."""
    try:
        return read_tensors(weights)
    except DocumentError as error:
        raise CheckpointError(f"{weights}: {error}") from error


def load_weights(model: nn.Module, state: Mapping[str, Tensor], *, source: str, may_lack: Sequence[str] = ()) -> None:
    """Strictly load `state`; CheckpointError naming the tensors that do not fit, before anything is changed.

    Parts of the model that start with one of `may_lack` keep their fresh weights where `state` has none for them.
    """
    model.load_state_dict(_check_fit(model, state, source=source, may_lack=may_lack))


def _check_fit(
    model: nn.Module, state: Mapping[str, Tensor], *, source: str, may_lack: Sequence[str] = ()
) -> dict[str, Tensor]:
    """All that `model` is to load, by name."""
    own = model.state_dict()
    state = dict(state) | {
        n: t for n, t in own.items() if n not in state and any(is_under(n, part) for part in may_lack)
    }
    faults = [f"missing {name} {list(own[name].shape)}" for name in own if name not in state]
    faults += [f"unexpected {name[:100]} {list(state[name].shape)}" for name in state if name not in own]
    faults += [
        f"{name}: expected {list(own[name].shape)}, got {list(state[name].shape)}"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    if faults:
        shown = "; ".join(faults[:4]) + (f"; and {len(faults) - 4} more" if len(faults) > 4 else "")
        raise CheckpointError(
            f"{source}: weights of another architecture: {shown}. Use the config that they were trained with; "
            "those of an earlier version may not fit any (CHANGELOG.md)"
        )
    return state


def write_whole(path: Path, data: bytes) -> None:
    """Write to a temporary file beside `path`, then rename: readers see the old file or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.unlink(missing_ok=True)  # of a process that was killed, or a link that would be followed
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
