"""The optimizer step of one rank on a GPU in 16 bits, without DeepSpeed's loops, and where it can be as one CUDA graph.

The weights are float32 and stay where DeepSpeed's engine has them. Forward and backward work on copies in 16 bits, whose gradients GpuAdamW reads as they
come; it leaves the next copies. So a step has no cast, no copy of gradients and no host that waits. A size of micro-batch that comes often is recorded with all of
that, from the embeddings to the new weights: a replay is one launch. On an H100 a step of BERT-base on 32 pairs of MNLI takes the host 54 ms launch by launch.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from bertfast.config import Config
from bertfast.engine.capture import Capture, CudaCapture
from bertfast.engine.cuda_graphs import COMMON_AFTER, MOST_GRAPHS, obstacle
from bertfast.errors import BertfastError, ConfigError
from bertfast.model import RandomBits
from bertfast.packing import Extent, PackedBatch, bucket_of
from bertfast.wording import reason
from bertfast_kernels import GpuAdamW

_READ = ("input_ids", "token_type_ids", "position_ids", "cu_seqlens", "example_ids", "labels")
Forward = Callable[[Any], Any]
LossOf = Callable[[Forward, Any], Any]  # (the model, a micro-batch) -> what has a share, to go backward from, and rows_BC; a named tuple


def whole_step_of(
    engine: Any,
    config: Config,
    micro_steps: int,
    device: torch.device,
    invariant_dropout: bool,
    capture: Callable[[torch.device], Capture] | None = None,
) -> tuple[WholeStep | None, str | None]:
    """(what takes the steps of an engine that has a GpuAdamW, a line for the run's log); (None, None) for any other engine.

    capture: what records, where it is not torch's CUDA graphs.

    Raises:
        ConfigError: run.cuda_graphs is true, and something in the config stands in the way.
    """
    if not isinstance(engine.optimizer, GpuAdamW):
        return None, None
    wanted = config.bertfast.run.cuda_graphs
    hindrance = obstacle(config, None, invariant_dropout) or ("there are several micro-steps in a step" if micro_steps > 1 else None)
    if wanted is True and hindrance:
        raise ConfigError(f"bertfast.run.cuda_graphs is true, but {hindrance}; leave it out, or 'auto', to do without")
    if wanted is False or hindrance:
        return WholeStep(engine, None), f"CUDA graphs: off, because {hindrance}" if wanted is not False else None
    step = WholeStep(engine, (capture or CudaCapture)(device), strict=wanted is True)
    return step, f"CUDA graphs: whole steps are replayed, for up to {MOST_GRAPHS} sizes of batch"


class WholeStep:
    """Takes optimizer steps in the place of an engine's `backward` and `step`; its schedule and its counts of steps go on as with those.

    capture: what records; None records nothing. strict: a recording that fails ends the run; else it goes on without recordings.
    `counts` has the steps that were "replayed" and "plain", and the "graphs" recorded.
    """

    def __init__(
        self, engine: Any, capture: Capture | None, strict: bool = True, common_after: int = COMMON_AFTER, most: int = MOST_GRAPHS
    ):
        self._engine, self._capture, self._strict = engine, capture, strict
        self._common_after, self._most = common_after, most
        self.optimizer: GpuAdamW = engine.optimizer
        copies = self.optimizer.copies
        self._copies = {name: copies[parameter] for name, parameter in engine.module.named_parameters() if parameter in copies}
        self._met: Counter[tuple[Extent, Any]] = Counter()
        self._recorded: dict[tuple[Extent, Any], _Recording] = {}
        self.fault: str | None = None
        self.counts: Counter[str] = Counter(graphs=0, replayed=0, plain=0)

    @property
    def replays(self) -> bool:
        """Whether batches are to come padded to their buckets."""
        return self._capture is not None

    def take(self, batches: Sequence[PackedBatch], bits: Sequence[RandomBits], loss_of: LossOf, divisor: Any = None) -> list[Any]:
        """One step over the micro-batches: what loss_of said of each, without its graph.

        loss_of: called with the model and a micro-batch. divisor: all that loss_of depends on besides; a recording serves the same alone.
        """
        recorded = self._recording(batches[0], bits[0], loss_of, divisor) if len(batches) == 1 else None
        if recorded is None:
            self.counts["plain"] += 1
            losses = self._plain(batches, bits, loss_of)
        else:
            self.counts["replayed"] += 1
            self.optimizer.load_rates()
            losses = [recorded.replay(batches[0], bits[0])]
        engine = self._engine
        engine.lr_scheduler.step()
        engine.global_steps += 1
        engine.global_samples += engine.train_batch_size()
        engine.micro_steps += len(batches)
        return losses

    def gradients(self, batch: PackedBatch, bits: RandomBits, loss_of: LossOf) -> tuple[Any, list[Tensor | None]]:
        """(what loss_of says, the gradients of the copies in 16 bits, times the loss scale)."""
        loss = loss_of(lambda given: functional_call(self._engine.module, self._copies, (given, bits), tie_weights=False), batch)
        share = loss.share if self.optimizer.scale is None else loss.share * self.optimizer.scale
        gradients = torch.autograd.grad(share, list(self.optimizer.copies.values()), allow_unused=True)
        return loss._replace(share=loss.share.detach(), rows_BC=loss.rows_BC.detach()), list(gradients)

    def _plain(self, batches: Sequence[PackedBatch], bits: Sequence[RandomBits], loss_of: LossOf) -> list[Any]:
        losses, sums = [], None
        for batch, its_bits in zip(batches, bits, strict=True):
            loss, gradients = self.gradients(batch, its_bits, loss_of)
            losses.append(loss)
            if len(batches) == 1:
                sums = gradients
            elif sums is None:
                sums = [None if gradient is None else gradient.float() for gradient in gradients]
            else:
                sums = [_sum(total, gradient) for total, gradient in zip(sums, gradients, strict=True)]
        assert sums is not None
        self.optimizer.take_step(sums)
        return losses

    def _recording(self, batch: PackedBatch, bits: RandomBits, loss_of: LossOf, divisor: Any) -> _Recording | None:
        """The recording for this batch, made now where it is time; None where it takes the plain path."""
        if self._capture is None or self.fault is not None or bits.key is None or batch.cu_pieces is not None or batch.labels is None:
            return None
        if bucket_of(batch.extent) != batch.extent:
            return None
        kind = batch.extent, divisor
        self._met[kind] += 1
        if kind not in self._recorded and self._met[kind] > self._common_after and len(self._recorded) < self._most:
            try:
                self._recorded[kind] = _Recording(self, self._capture, batch, bits.key, loss_of)
                self.counts["graphs"] += 1
            except RuntimeError as error:  # how CUDA says that something cannot be recorded
                self.fault = f"{type(error).__name__}: {reason(error)}"
                where = f"a step of {batch.extent} could not be recorded as a CUDA graph ({self.fault})"
                if self._strict:
                    raise BertfastError(f"{where}; set bertfast.run.cuda_graphs to false") from error
                warnings.warn(f"CUDA graphs: off from here on, {where}", stacklevel=2)
        return self._recorded.get(kind)


class _Recording:
    """The recording of one kind of step, and the static memory that it reads and writes."""

    def __init__(self, owner: WholeStep, capture: Capture, batch: PackedBatch, key: Tensor, loss_of: LossOf):
        self._owner, self._loss_of = owner, loss_of
        self._static = [getattr(batch, name).clone() for name in _READ]
        self._key = key.clone()
        self._batch = dataclasses.replace(batch, piece_ids=None, **dict(zip(_READ, self._static, strict=True)))
        self._gradients: list[Tensor] = []
        capture.warm_up(self._begin)
        self._replay, (self._share, self._rows) = capture.record(self._run)
        owner.optimizer.fill(self._table, self._gradients)  # their memory is the recording's own, whoever holds it
        self._gradients = []

    def replay(self, batch: PackedBatch, bits: RandomBits) -> Any:
        """The step with this batch."""
        assert bits.key is not None
        torch._foreach_copy_(self._static, [getattr(batch, name) for name in _READ])
        self._key.copy_(bits.key)
        self._replay()
        return self._loss._replace(share=self._share.clone(), rows_BC=self._rows, example_ids=batch.example_ids)

    def _gradients_now(self) -> list[Tensor | None]:
        # A tensor of its own: what the torch form of attention knows of lengths it keeps on the tensor that it gets.
        batch = dataclasses.replace(self._batch, cu_seqlens=self._batch.cu_seqlens[:])
        self._loss, gradients = self._owner.gradients(batch, RandomBits(key=self._key), self._loss_of)
        return self._owner.optimizer.readable(gradients)

    def _begin(self) -> None:
        """Forward and backward alone, from whose gradients the table's size is known."""
        self._table = self._owner.optimizer.table(self._gradients_now())

    def _run(self) -> tuple[Tensor, Tensor]:
        self._gradients = [gradient for gradient in self._gradients_now() if gradient is not None]
        if not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
            self._owner.optimizer.fill(self._table, self._gradients)
        self._owner.optimizer.launch(self._table)
        return self._loss.share, self._loss.rows_BC


def _sum(total: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    return total if gradient is None else gradient.float() if total is None else total.add_(gradient)
