"""Forward and backward of a training step as CUDA graphs, one pair for each size of micro-batch that comes often.

At batch 32 of short texts a BERT-base has some 2 ms of work in a step and several hundred kernels: launched one by one from Python they take longer
than they run. A recording replays them with one launch for the forward and one for the backward, the way of torch.cuda.make_graphed_callables: between
the two, and after them, autograd goes on as ever. A gradient arrives at every parameter, so ZeRO's hooks fire, micro-steps add up, and clipping and
loss scaling see what they always see. Dropout is right under replay, because its bits follow from a key in static memory, (seed, step), and not from
a state on the host.

A micro-batch is recorded for its bucket (see buckets.py), once its bucket was met a few times; until then, and beyond a bound on the recordings, it
takes the plain path, padded all the same. Recordings share one pool of memory, so a forward must be followed by its own backward.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bertfast.config import BatchSizes, Config
from bertfast.engine.capture import Capture, CudaCapture
from bertfast.errors import BertfastError, ConfigError
from bertfast.model import RandomBits
from bertfast.packing import Extent, PackedBatch, bucket_of
from bertfast.wording import reason
from bertfast_kernels import HAS_TRITON

COMMON_AFTER = 3  # a bucket is recorded when it is met for the so-manieth time and one more
MOST_GRAPHS = 64  # recordings; each keeps a few MB of the driver's memory
_READ = ("input_ids", "token_type_ids", "position_ids", "cu_seqlens", "example_ids")  # what the model reads of a batch


def graphs_for(
    model: nn.Module,
    config: Config,
    sizes: BatchSizes,
    device: torch.device,
    invariant_dropout: bool,
    capture: Callable[[torch.device], Capture] | None = None,
) -> tuple[GraphedForward | None, str | None]:
    """(what replays `model`'s forward where the config wants it and it can be, a line for the run's log).

    The model's own `forward` is put behind it, so that model(batch, bits) replays. A run on a CPU that asks for nothing gets (None, None).
    capture: what records, where it is not torch's CUDA graphs; no GPU is then asked for.

    Raises:
        ConfigError: run.cuda_graphs is true, and something in the config or the machine stands in the way.
    """
    wanted = config.bertfast.run.cuda_graphs
    if wanted is False:
        return None, None
    reason = obstacle(config, device if capture is None else None, invariant_dropout)
    if reason is None and wanted == "auto":
        reason = "beside DeepSpeed's own step forward and backward are recorded only where the config says true"
    if reason is None:
        graphed = GraphedForward(model, (capture or CudaCapture)(device), lends=sizes.micro_steps == 1, strict=wanted is True)
        model.forward = graphed
        return graphed, f"CUDA graphs: forward and backward are replayed, for up to {MOST_GRAPHS} sizes of micro-batch"
    if wanted is True:
        raise ConfigError(f"bertfast.run.cuda_graphs is true, but {reason}; leave it out, or 'auto', to do without")
    return None, None if device.type == "cpu" else f"CUDA graphs: off, because {reason}"


def obstacle(config: Config, device: torch.device | None, invariant_dropout: bool) -> str | None:
    """Why a run cannot be recorded; None where it can. device: None leaves out what only a GPU needs."""
    block, offloads = config.bertfast, config.zero.offloads
    found = {
        "the device is a CPU": device is not None and device.type == "cpu",
        "Triton is not installed, and the torch form of attention needs the lengths on the host": device is not None and not HAS_TRITON,
        "ZeRO stage 3 gathers weights anew in every step": config.zero.stage == 3,
        f"{' and '.join(offloads)} moves states between host and device": bool(offloads),
        "DeepSpeed's flops_profiler counts what modules do, which a replay does not call": config.deepspeed.get("flops_profiler", {}).get(
            "enabled"
        ),
        "run.packing_invariant_dropout is false, and a replay needs dropout by key": not invariant_dropout,
        "pre-training has masked tokens, whose number changes": block.pretrain is not None,
        "several tasks share a batch in numbers that change": block.multitask is not None,
        "the pieces of truncation 'hierarchical' cannot be padded": block.truncation.is_hierarchical,
        f"head.pooling {block.head.pooling!r} knows no empty sequences": block.head.pooling != "cls",
        "loss.r_drop makes two of each example": bool(block.loss.r_drop),
    }
    return next((reason for reason, holds in found.items() if holds), None)


class GraphedForward:
    """In the place of model.forward: replays it in training mode for batches padded to their bucket, and calls it for all others.

    capture: what records. lends: gradients are handed out in the memory in which a replay leaves them. That spares a copy of them all, and needs
    that each is used up before the next forward: there is one micro-step in a step. strict: a recording that fails ends the run; else the run goes on without
    recordings. `counts` has the micro-batches that were "replayed" and "plain", and the "graphs" recorded.
    """

    def __init__(
        self,
        model: nn.Module,
        capture: Capture,
        lends: bool,
        strict: bool = True,
        common_after: int = COMMON_AFTER,
        most: int = MOST_GRAPHS,
    ):
        self._plain, self._model, self._capture = model.forward, model, capture
        self._lends, self._strict, self._common_after, self._most = lends, strict, common_after, most
        self._met: Counter[Extent] = Counter()
        self._recorded: dict[Extent, _Recorded] = {}
        self._addresses: list[int] = []
        self.fault: str | None = None
        self.counts: Counter[str] = Counter(graphs=0, replayed=0, plain=0)
        self.turn = 0  # counts replays of a forward: the backward of an earlier one would find its activations overwritten

    def __call__(self, batch: PackedBatch, bits: RandomBits | None = None) -> Tensor:
        """Logits [B, C]; see BertClassifier.forward."""
        if not self._model.training or not torch.is_grad_enabled():
            return self._plain(batch, bits)
        key = None if bits is None else bits.key
        recorded = None if key is None else self._recording(batch, key)
        if key is None or recorded is None:
            self.counts["plain"] += 1
            return self._plain(batch, bits)
        self.counts["replayed"] += 1
        recorded.load(batch, key)
        return _Replay.apply(self, recorded, *recorded.parameters)

    def _recording(self, batch: PackedBatch, key: Tensor) -> _Recorded | None:
        """The recording for this batch, made now where it is time; None where it takes the plain path. key: of dropout."""
        if self.fault is not None or batch.cu_pieces is not None or bucket_of(batch.extent) != batch.extent:
            return None
        parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        addresses = [parameter.data_ptr() for parameter in parameters]
        if addresses != self._addresses:  # whoever moved the weights made the recordings worthless
            self._recorded, self._addresses = {}, addresses
        bucket = batch.extent
        self._met[bucket] += 1
        if bucket not in self._recorded and self._met[bucket] > self._common_after and len(self._recorded) < self._most:
            self._record(bucket, batch, key, parameters)
        return self._recorded.get(bucket)

    def _record(self, bucket: Extent, batch: PackedBatch, key: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        try:
            self._recorded[bucket] = _Recorded(self._plain, parameters, batch, key, self._capture)
        except RuntimeError as error:  # how CUDA says that something cannot be recorded
            self.fault = f"{type(error).__name__}: {reason(error)}"
            if self._strict:
                raise BertfastError(
                    f"a micro-batch of {bucket} could not be recorded as a CUDA graph ({self.fault}); set bertfast.run.cuda_graphs to false"
                ) from error
            warnings.warn(f"CUDA graphs: off from here on, a micro-batch of {bucket} could not be recorded ({self.fault})", stacklevel=2)
            return
        self.turn += 1
        self.counts["graphs"] += 1

    def gradients(self, recorded: _Recorded, upstream: Tensor) -> list[Tensor | None]:
        """Of every parameter. One that has no gradient yet keeps a tensor that nobody else holds, and copies any other: so what is lent is a new one."""
        found = recorded.backward(upstream)
        return [gradient if gradient is None or not self._lends else gradient.detach() for gradient in found]


class _Recorded:
    """The recordings of one bucket and the static memory that they read and write."""

    def __init__(
        self, forward: Callable[..., Tensor], parameters: Sequence[nn.Parameter], batch: PackedBatch, key: Tensor, capture: Capture
    ):
        self.parameters = parameters
        self._forward = forward
        self._static = [getattr(batch, name).clone() for name in _READ]
        self._key = key.clone()
        self._batch = dataclasses.replace(batch, labels=None, piece_ids=None, **dict(zip(_READ, self._static, strict=True)))
        self._live: Tensor | None = None  # the logits with their graph, between a forward and its backward
        self._upstream: Tensor  # in the shape of the logits, which the first forward tells
        capture.warm_up(self._run_both)
        self._replay_forward, (self.logits,) = capture.record(self._run_forward)
        self._replay_backward, gradients = capture.record(self._run_backward)
        self._gradients = [None if gradient is None else capture.unowned(gradient) for gradient in gradients]

    def load(self, batch: PackedBatch, key: Tensor) -> None:
        """Copy what the model reads into the static memory."""
        torch._foreach_copy_(self._static, [getattr(batch, name) for name in _READ])
        self._key.copy_(key)

    def forward(self) -> Tensor:
        """The logits, in the static memory."""
        self._replay_forward()
        return self.logits

    def backward(self, upstream: Tensor) -> list[Tensor | None]:
        """The gradients, in memory that the next replay may use for something else."""
        self._upstream.copy_(upstream)
        self._replay_backward()
        return self._gradients

    def _run_both(self) -> None:
        (logits,) = self._run_forward()
        self._upstream = torch.zeros_like(logits)
        self._run_backward()

    def _run_forward(self) -> tuple[Tensor]:
        with torch.enable_grad():
            # A tensor of its own: what the torch form of attention knows of lengths it keeps on the tensor that it gets.
            batch = dataclasses.replace(self._batch, cu_seqlens=self._batch.cu_seqlens[:])
            live = self._live = self._forward(batch, RandomBits(key=self._key))
        return (live.detach(),)

    def _run_backward(self) -> tuple[Tensor | None, ...]:
        live, self._live = self._live, None
        assert live is not None  # a forward went before
        return torch.autograd.grad(live, self.parameters, self._upstream, allow_unused=True)


class _Replay(torch.autograd.Function):
    """A recorded forward, and a recorded backward that gives every parameter its gradient."""

    @staticmethod
    def forward(ctx: Any, graphed: GraphedForward, recorded: _Recorded, *parameters: Tensor) -> Tensor:
        graphed.turn += 1
        ctx.graphed, ctx.recorded, ctx.turn = graphed, recorded, graphed.turn
        return recorded.forward().clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        if ctx.turn != ctx.graphed.turn:
            raise RuntimeError("another micro-batch was replayed between a forward and its backward, which share their memory with it")
        return None, None, *ctx.graphed.gradients(ctx.recorded, upstream)
