"""The contenders of a training step: what a user would pick, each as its own documentation sets it up, and bertfast.

All of them start from the same folder of weights, take the same examples with dropout 0.1, clip gradients to norm 1 and step AdamW on the same
schedule. With dropout off their losses must agree over the first steps, which holds weights, loss, gradients and optimizer together (the size of a gradient, and with it clipping, AdamW divides out).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bertfast.packing.batch import PackedBatch

LEARNING_RATE, WEIGHT_DECAY, TOTAL_STEPS = 5e-5, 0.01, 10_000
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCES = {"fp32": 2e-4, "bf16": 2e-2, "fp16": 1e-2}  # of a loss against the float32 baseline's, relative


@dataclass(frozen=True)
class Peer:
    """How one contender trains. engine: "loop" (plain PyTorch), "compile" (the same compiled), "deepspeed", "bertfast" (the trainer's own step),
    or "bertfast loop" (our model in a plain loop, with no DeepSpeed)."""

    name: str
    engine: str
    precision: str = "fp32"
    attention: str = "sdpa"
    fused: bool = True  # AdamW
    grouped: bool = False  # its batches hold examples of like lengths
    graphs: bool = False  # ours: batches padded to buckets, forward and backward replayed (on a CPU there is nothing to replay)
    recomputes: bool = False  # ours: selective gradient checkpointing
    stage: int = 0  # ours: of ZeRO

    @property
    def is_ours(self) -> bool:
        return self.engine.startswith("bertfast")

    @property
    def needs_deepspeed(self) -> bool:
        return self.engine in ("deepspeed", "bertfast")


BASELINE = "transformers fp32"
PEERS = {
    peer.name: peer
    for peer in (
        Peer(BASELINE, "loop"),
        Peer("transformers fp32, length-grouped", "loop", grouped=True),
        Peer("transformers fp32, eager attention", "loop", attention="eager"),
        Peer("transformers fp32, AdamW not fused", "loop", fused=False),
        Peer("transformers fp32, torch.compile", "compile"),
        Peer("transformers bf16 autocast", "loop", "bf16"),
        Peer("transformers bf16 autocast, length-grouped", "loop", "bf16", grouped=True),
        Peer("transformers bf16 autocast, torch.compile", "compile", "bf16"),
        Peer("transformers bf16 autocast, length-grouped, torch.compile", "compile", "bf16", grouped=True),
        Peer("transformers fp16 autocast", "loop", "fp16"),
        Peer("transformers fp16 autocast, length-grouped", "loop", "fp16", grouped=True),
        Peer("transformers fp16 autocast, torch.compile", "compile", "fp16"),
        Peer("DeepSpeed, transformers fp32", "deepspeed"),
        Peer("DeepSpeed, transformers bf16", "deepspeed", "bf16"),
        Peer("DeepSpeed, transformers fp16", "deepspeed", "fp16"),
        Peer("bertfast fp32, bare loop", "bertfast loop"),
        Peer("bertfast bf16, bare loop", "bertfast loop", "bf16"),
        Peer("bertfast fp32", "bertfast"),
        Peer("bertfast bf16", "bertfast", "bf16"),
        Peer("bertfast fp16", "bertfast", "fp16"),
        Peer("bertfast bf16, graphs", "bertfast", "bf16", graphs=True),
        Peer("bertfast bf16, graphs, recomputing", "bertfast", "bf16", graphs=True, recomputes=True),
        Peer("bertfast fp16, graphs, ZeRO 1", "bertfast", "fp16", graphs=True, stage=1),
    )
}
QUICK = (BASELINE, "transformers bf16 autocast", "transformers bf16 autocast, length-grouped", "bertfast fp32", "bertfast bf16")


def peers_for(device: str, names: Sequence[str] | None = None) -> list[Peer]:
    """The contenders that a device can run, all of them or those named; a CPU trains in no fp16."""
    return [peer for name, peer in PEERS.items() if (names is None or name in names) and (peer.precision != "fp16" or device != "cpu")]


@dataclass
class Contender:
    """One contender at work. prepare(batch): its form of a batch, made ahead of time. step(prepared): a whole optimizer step; its mean loss.
    warming(prepared batches): those that it must meet, in this order, before it is timed."""

    prepare: Callable[[PackedBatch], Any]
    step: Callable[[Any], Tensor]
    module: nn.Module
    warming: Callable[[Sequence[Any]], Sequence[Any]] = lambda batches: ()

    def set_dropout(self, on: bool) -> None:
        """Off is the module's evaluation mode, which changes nothing else in a BERT: gradients flow, and steps are taken."""
        self.module.train(on)


def build(peer: Peer, folder: Path, batch_size: int, device: str) -> Contender:
    """Set a contender up on the weights in `folder`."""
    torch.manual_seed(0)
    if peer.engine == "bertfast":
        return _bertfast(peer, folder, batch_size, device)
    if peer.engine == "bertfast loop":
        return _bertfast_loop(peer, folder, device)
    if peer.engine == "deepspeed":
        return _deepspeed(peer, folder, batch_size, device)
    return _transformers(peer, folder, device)


def check_losses(losses: Mapping[str, Sequence[float]], precisions: Mapping[str, str]) -> None:
    """Hold each contender's losses over the same batches, without dropout, against the first contender's.

    Raises:
        SystemExit: naming the contender and the step at which it does something else.
    """
    name_of_first, first = next(iter(losses.items()))
    for name, found in losses.items():
        tolerance = max(TOLERANCES[precisions[name]], TOLERANCES[precisions[name_of_first]])
        for step, (ours, theirs) in enumerate(zip(found, first, strict=True)):
            if not abs(ours - theirs) <= tolerance * abs(theirs):
                raise SystemExit(
                    f"{name} does not train as {name_of_first} does: its loss at step {step + 1}, without dropout, is {ours:.6f}, "
                    f"and not {theirs:.6f}; nothing was timed"
                )


# ------------------------------------------------------------------------------------------------------------------------------ the peers


def _load(folder: Path, attention: str, device: str) -> nn.Module:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    return model.to(device).train()


def _features(device: str) -> Callable[[PackedBatch], dict[str, Tensor]]:
    """Padded to the longest of the batch, as DataCollatorWithPadding does."""
    return lambda batch: {name: value.long().to(device) for name, value in batch.to_features().items()}


def _optimizer(model: nn.Module, fused: bool = True) -> tuple[torch.optim.Optimizer, Any]:
    from bertfast.engine.optimizer import linear_schedule, parameter_groups

    optimizer = torch.optim.AdamW(parameter_groups(model, WEIGHT_DECAY), lr=LEARNING_RATE, fused=fused or None)
    return optimizer, linear_schedule(0, TOTAL_STEPS)(optimizer)


def _loop_step(
    forward: Callable[[Any], Tensor],
    parameters: Iterable[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    scaler: Any = None,
) -> Callable[[Any], Tensor]:
    """A plain PyTorch loop's step around forward(prepared), which gives the mean loss."""
    parameters = list(parameters)

    def step(prepared: Any) -> Tensor:
        loss = forward(prepared)
        if scaler is None:
            loss.backward()
        else:
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        schedule.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def _transformers(peer: Peer, folder: Path, device: str) -> Contender:
    model = _load(folder, peer.attention, device)
    optimizer, schedule = _optimizer(model, peer.fused)
    called = torch.compile(model, dynamic=True) if peer.engine == "compile" else model
    dtype, scaler = DTYPES.get(peer.precision), torch.amp.GradScaler(device) if peer.precision == "fp16" else None

    def forward(features: dict[str, Tensor]) -> Tensor:
        with torch.autocast(device, dtype, enabled=dtype is not None):
            return called(**features).loss

    return Contender(_features(device), _loop_step(forward, model.parameters(), optimizer, schedule, scaler), model)


def _deepspeed(peer: Peer, folder: Path, batch_size: int, device: str) -> Contender:
    from bertfast.engine.build import join_ranks
    from bertfast.engine.ranks import start_ranks

    join_ranks(start_ranks("cpu" if device == "cpu" else "gpu", None))
    import deepspeed

    model = _load(folder, peer.attention, device)
    optimizer, schedule = _optimizer(model)
    config: dict[str, Any] = {"train_batch_size": batch_size, "gradient_clipping": 1.0, "zero_optimization": {"stage": 0}}
    if peer.precision != "fp32":
        config[peer.precision] = {"enabled": True}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=schedule, config=config, dist_init_required=False)

    def step(features: dict[str, Tensor]) -> Tensor:
        loss = engine(**features).loss
        engine.backward(loss)
        engine.step()
        return loss.detach()

    return Contender(_features(device), step, engine)


# -------------------------------------------------------------------------------------------------------------------------------- bertfast


def _bits(device: str) -> Callable[[], Any]:
    """Dropout's bits of one step after the other, as the trainer makes them."""
    from bertfast.model.bert import RandomBits

    count = iter(range(10**9))
    if device != "cpu":
        return lambda: RandomBits.of_step(42, next(count), torch.device(device))
    return lambda: RandomBits(stream=np.random.Generator(np.random.SFC64(np.random.SeedSequence([42, next(count)]))))


def bertfast_config(folder: Path, batch_size: int, precision: str = "fp32", peer: Peer | None = None, device: str = "cpu") -> Any:
    """The config that a user of the same recipe would write; with what `peer` asks for."""
    from bertfast.config.load import load_config

    return load_config(
        {
            "gradient_clipping": 1.0,
            "bf16": {"enabled": precision == "bf16"},
            "fp16": {"enabled": precision == "fp16"},
            "zero_optimization": {"stage": peer.stage if peer else 0},
            "optimizer": {"type": "AdamW", "params": {"lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY}},
            "bertfast": {
                "task": "mnli",
                "model": {"checkpoint": str(folder), "gradient_checkpointing": "selective" if peer and peer.recomputes else False},
                "train_input": {"data_dir": "unused", "batch_size": batch_size},
                "run": {"warmup_ratio": 0.0, "cuda_graphs": bool(peer and peer.graphs and device != "cpu")},
            },
        }
    )


def _bertfast(peer: Peer, folder: Path, batch_size: int, device: str) -> Contender:
    from bertfast.config.resolve import resolve_batch_sizes
    from bertfast.engine.build import build_engine
    from bertfast.engine.cuda_graphs import COMMON_AFTER, graphs_for
    from bertfast.engine.ranks import start_ranks
    from bertfast.engine.whole_step import whole_step_of
    from bertfast.model.bert import BertClassifier
    from bertfast.model.losses import loss_sum
    from bertfast.packing.buckets import bucket_of, padded

    config = bertfast_config(folder, batch_size, peer.precision, peer, device)
    ranks, sizes = start_ranks("cpu" if device == "cpu" else "gpu", None), resolve_batch_sizes(config, 1)
    engine = build_engine(BertClassifier.from_pretrained(str(folder)), config, sizes, TOTAL_STEPS, ranks)
    whole, _ = whole_step_of(engine, config, sizes.micro_steps, ranks.device, device != "cpu")
    if whole is None:
        graphs_for(engine.module, config, sizes, ranks.device, invariant_dropout=device != "cpu")
    bits = _bits(device)

    def prepare(batch: PackedBatch) -> PackedBatch:
        return (padded(batch, bucket_of(batch.extent)) if peer.graphs else batch).to(device)

    def warming(batches: Sequence[PackedBatch]) -> list[PackedBatch]:
        one_each = {batch.extent: batch for batch in batches}.values() if peer.graphs else ()
        return [batch for batch in one_each for _ in range(COMMON_AFTER + 2)]

    def step(batch: PackedBatch) -> Tensor:
        examples = (batch.unpadded or batch.extent).sequences
        if whole is not None and engine.module.training:
            return whole.take([batch], [bits()], lambda forward, batch: _share(forward(batch), batch, examples), examples)[0].share
        loss = loss_sum(engine(batch, bits()), batch.labels) / examples
        engine.backward(loss, scale_wrt_gas=False)
        engine.step()
        return loss.detach()

    return Contender(prepare, step, engine, warming)


class _Loss(NamedTuple):
    share: Tensor
    rows_BC: Tensor
    example_ids: Tensor


def _share(logits_BC: Tensor, batch: PackedBatch, examples: int) -> _Loss:
    from bertfast.model.losses import loss_sum

    return _Loss(loss_sum(logits_BC, batch.labels) / examples, logits_BC, batch.example_ids)


def _bertfast_loop(peer: Peer, folder: Path, device: str) -> Contender:
    from bertfast.engine.ranks import start_ranks
    from bertfast.model.bert import BertClassifier
    from bertfast.model.losses import loss_sum

    start_ranks("cpu" if device == "cpu" else "gpu", None)  # the same threads and allocator as with DeepSpeed
    model = BertClassifier.from_pretrained(str(folder)).to(device).train()
    model.compute_dtype = DTYPES.get(peer.precision)
    optimizer, schedule = _optimizer(model)
    bits = _bits(device)

    def forward(batch: PackedBatch) -> Tensor:
        return loss_sum(model(batch, bits()), batch.labels) / batch.num_sequences

    return Contender(lambda batch: batch.to(device), _loop_step(forward, model.parameters(), optimizer, schedule), model)
