"""A model's answers on a GPU by CUDA graphs: a frame's some thousand launches recorded once, and replayed as one.

A graph is of one set of shapes: which modalities there are, how many samples, cameras, LiDARs and radars, and how many points at
most. Points are padded to a few lengths, so that a drive needs a few graphs. What is recorded is a copy of the model, in which
all is done beforehand that depends on the weights alone; the encoders, of which none waits for another, run side by side.
"""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from threading import Lock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bev.pillars import PillarEncoder
from robustbev.network import PerceptionNetwork
from robustbev.perception import Perception
from sensors.batch import CameraBatch, SensorBatch, map_tensors
from sensors.camera.encoder import CameraEncoder

_MOST_GRAPHS = 16  # of one model; those of 7 subsets and two lengths of points
_WARMUPS = 3  # runs before a graph is recorded: kernels are compiled, and libraries choose theirs and take their memory
_FEWEST_POINTS = 512  # what is padded to more costs nothing: so radars, with hundreds of points, need few graphs
_RECORDING = Lock()  # of a process, that records one graph at a time


class GraphWarning(UserWarning):
    """A model cannot be recorded as a CUDA graph; it answers all the same, each launch by itself."""


@dataclass(frozen=True)
class _Recorded:
    batch: SensorBatch  # where the graph reads
    seen: Perception  # where it writes
    play: Callable[[], None]


class CudaGraphs:
    """`graphs(model, batch)` is `model(batch)`, replayed. For a model in evaluation mode; holds its graphs, not the model.

    Weights may change or move in between, as by an optimiser or `load_state_dict`; what is written past autograd, to
    `weight.data`, goes unnoticed.
    """

    def __init__(self) -> None:
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._of: Hashable = None  # the state of the model that they are of
        self._folded: PerceptionNetwork | None = None  # whose weights all of them read
        self._pool: object | None = None
        self._streams: dict[torch.device, list[torch.cuda.Stream]] = {}  # memory is shared by graphs of one stream
        self._done: torch.cuda.Event | None = None  # the last answer is out of its graph's memory
        self._lock = Lock()
        self._refused = False

    def __deepcopy__(self, memo: object) -> CudaGraphs:
        return CudaGraphs()

    def __getstate__(self) -> dict[str, object]:
        return {}  # graphs are of this process

    def __setstate__(self, state: object) -> None:
        self.__init__()  # type: ignore[misc]

    @torch.inference_mode()
    def __call__(self, model: PerceptionNetwork, batch: SensorBatch) -> Perception:
        """What `model` sees, on its device, in memory that the next call leaves alone. `batch` may lie on the CPU.

        Warns:
            GraphWarning: the model cannot be recorded; says why, once.
        """
        with torch.cuda.device_of(next(model.parameters())):  # for a model on a CPU, as in tests, this does nothing
            if not self._refused:
                with self._lock:
                    recorded = self._recorded.get(key := (model.device, _shapes(batch)))
                    seen = None if recorded is None else self._replayed(recorded, batch)
                    # Asked while the device computes; an answer by weights that are no longer the model's is thrown away.
                    state = _state(model)
                    if seen is None or state != self._of:
                        recorded = seen = None  # what is stale gives its memory back before more is taken
                        recorded = self._find(model, batch, key, state)
                        seen = None if recorded is None else self._replayed(recorded, batch)
                    if seen is not None:
                        self._recorded.move_to_end(key)
                        return seen
            return model(batch.to(model.device))

    def _find(self, model: PerceptionNetwork, batch: SensorBatch, key: Hashable, state: Hashable) -> _Recorded | None:
        """The graph of such batches, made if there is none; None where it cannot be made."""
        if self._refused:  # by what another thread asked meanwhile
            return None
        if state != self._of:  # a graph has the weights that it was recorded with
            self._forget()
            self._of = state
        if key not in self._recorded:
            given, reason = _padded(batch).to(model.device), None
            try:
                with _RECORDING:
                    self._recorded[key] = self._record(model, given)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
            if reason is not None:
                self._forget()
                model(given)  # a batch that it cannot answer at all says nothing of its graphs, and raises here
                self._refused = True
                warnings.warn(
                    f"this model cannot be recorded as a CUDA graph and answers launch by launch, which is slower: {reason}",
                    GraphWarning,
                    stacklevel=4,
                )
                return None
            if len(self._recorded) > _MOST_GRAPHS:
                self._recorded.popitem(last=False)
        return self._recorded[key]

    def _replayed(self, recorded: _Recorded, batch: SensorBatch) -> Perception:
        if self._done is not None:
            self._done.wait()  # another thread may ask on a stream of its own
        for target, source in zip(recorded.batch.tensors(), batch.tensors(), strict=True):
            if target.shape != source.shape:  # points: what lies behind their count is not looked at
                target = target[:, : source.shape[1]]
            target.copy_(source, non_blocking=True)
        recorded.play()
        seen = map_tensors(recorded.seen, torch.clone)  # the next replay writes where it lies
        if self._done is not None:
            self._done.record()
        return seen

    def _forget(self) -> None:
        """All graphs, and the memory that they shared."""
        if self._done is not None:
            self._done.synchronize()  # it is read by the last replay yet
        self._recorded.clear()
        self._folded = self._pool = self._done = None

    def _record(self, model: PerceptionNetwork, batch: SensorBatch) -> _Recorded:
        batch = batch.copied()  # the caller's own memory must not become what the graph reads
        if self._folded is None:
            self._folded = folded(model)
        model = self._folded
        device = model.device
        encoders = [encoder for encoder in model.encoders.values() if isinstance(encoder, CameraEncoder)]
        if device not in self._streams:
            self._streams[device] = [torch.cuda.Stream(device) for _ in (*model.config.modalities, *encoders)]
        stream, *others = self._streams[device]
        for encoder in encoders:
            # One each: memory of one stream would go from a table to the next while the first is read.
            encoder.beside = others.pop()
        beside = dict(zip(tuple(model.config.modalities)[1:], others, strict=True))
        here = torch.cuda.current_stream(device)
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            for _ in range(_WARMUPS):
                _answer(model, batch, beside)
        here.wait_stream(stream)
        if self._pool is None:
            self._pool, self._done = torch.cuda.graph_pool_handle(), torch.cuda.Event()
        graph = torch.cuda.CUDAGraph()
        # The outer context comes back to this stream where a recording fails, which torch's own does not. What other threads do
        # on the device meanwhile is their business.
        with (
            torch.cuda.stream(here),
            torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"),  # type: ignore[arg-type]  # its stub lacks the handle's type
        ):
            seen = _answer(model, batch, beside)
        return _Recorded(batch, seen, graph.replay)


def _answer(model: PerceptionNetwork, batch: SensorBatch, beside: Mapping[str, torch.cuda.Stream]) -> Perception:
    """`model(batch)`, with the encoders of some modalities on streams of their own."""
    here = torch.cuda.current_stream(model.device)
    features = {}
    # The first, on this stream, comes last, and so runs beside the others.
    for name in reversed(tuple(model.config.modalities)):
        stream = beside.get(name, here)
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            features[name] = model.encode(batch.only((name,)))[name]
    for stream in beside.values():
        here.wait_stream(stream)
    return model.perceive_features(features, batch.batch_size)


def folded(model: PerceptionNetwork) -> PerceptionNetwork:
    """A copy that answers the same in evaluation mode, but for rounding, with less to do for each frame.

    Batch normalisation goes into the convolution before it, and the weights of layers that autocast runs in half precision are
    made narrow once, and not for every frame.
    """
    model = copy.deepcopy(model)
    for block in model.modules():
        if isinstance(block, nn.Sequential):
            for i, (layer, norm) in enumerate(pairwise(block)):
                if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    block[i], block[i + 1] = fuse_conv_bn_eval(layer, norm), nn.Identity()
    if model.precision.name == "float32":
        return model
    # The pillars' is no layer, but a weight.
    wide = {id(module.linear) for module in model.modules() if isinstance(module, PillarEncoder)}
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and id(module) not in wide:
            for name in ("weight", "bias"):
                parameter = module._parameters.pop(name)
                # A plain attribute: a parameter of a model is float32, see `robustbev.checks.check_weights`.
                setattr(module, name, None if parameter is None else parameter.to(getattr(torch, model.precision.name)))
    return model


def _state(model: PerceptionNetwork) -> Hashable:
    """What a graph of the model is recorded with, and good for as long as it stays."""
    weights = tuple(map(_version, (*model.parameters(), *model.buffers())))
    return model.precision.name, model.training, weights


def _version(tensor: Tensor) -> tuple[int, int]:
    """Where its numbers are, and how often they were changed there."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _shapes(batch: SensorBatch) -> Hashable:
    """What tells batches of one graph from those of another."""
    points = {id(part.points) for part in batch.parts.values() if not isinstance(part, CameraBatch)}
    shapes = tuple(
        ((tensor.shape[0], _longer(tensor.shape[1])) if id(tensor) in points else tuple(tensor.shape), tensor.dtype)
        for tensor in batch.tensors()
    )
    tables = tuple(isinstance(part, CameraBatch) and part.lift is not None for part in batch.parts.values())
    return batch.batch_size, tuple(batch.parts), tables, shapes


def _padded(batch: SensorBatch) -> SensorBatch:
    """The batch with as many points as its graph is for, zeros behind."""
    parts = {}
    for name, part in batch.parts.items():
        if not isinstance(part, CameraBatch):
            more = _longer(part.points.shape[1]) - part.points.shape[1]
            part = replace(part, points=F.pad(part.points, (0, 0, 0, more)))
        parts[name] = part
    return replace(batch, parts=parts)


def _longer(count: int) -> int:
    """How many points the graph is for: one of four lengths for each doubling, a multiple of `_FEWEST_POINTS`."""
    return count + -count % max(1 << max(count.bit_length() - 3, 0), _FEWEST_POINTS)
