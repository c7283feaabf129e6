"""What a run knows before its first step: data, model, plan, engine, folder; and what it can say of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bertfast.config import (
    BatchSizes,
    Config,
    check_monitors,
    check_optimizer_fits,
    resolve_batch_sizes,
    resolve_deepspeed,
    resolve_total_steps,
)
from bertfast.data import TrainingSet, tokenizer_fingerprint
from bertfast.engine import (
    Capture,
    GraphedForward,
    Precision,
    Ranks,
    WholeStep,
    build_engine,
    check_engine_config,
    graphs_for,
    join_ranks,
    shortage,
    whole_step_of,
)
from bertfast.model import RandomBits
from bertfast.training.batches import TrainingBatches
from bertfast.training.footprint import footprint_of, smaller_training
from bertfast.training.identity import checksum_of_weights, network_of, settings_of
from bertfast.training.loader import check_fit
from bertfast.training.objectives.objective import Forward, Objective
from bertfast.training.places import check_places
from bertfast.training.run_folder import RunFolder
from bertfast.training.state import RunState
from bertfast.wording import counted
from bertfast_kernels import cpu_kernels_fault


@dataclass(frozen=True)
class Run:
    """One training, ready for its first step. Nothing of it changes but what it holds: the engine's weights and the folder's files."""

    config: Config
    objective: Objective
    ranks: Ranks
    precision: Precision
    sizes: BatchSizes
    train_set: TrainingSet
    eval_sets: dict[str, Any]
    batches: TrainingBatches
    total_steps: int
    invariant_dropout: bool  # its bits are keyed by example, and not by micro-batch
    model_summary: str  # what became of the checkpoint's weights
    engine: Any  # DeepSpeed's, around the model
    whole_step: WholeStep | None  # takes the steps in the engine's place
    graphs: GraphedForward | None
    graphs_line: str | None
    folder: RunFolder

    @property
    def steps_per_epoch(self) -> int:
        return self.batches.steps_per_epoch

    @property
    def in_buckets(self) -> bool:
        """Whether batches are padded up to few sizes, for which steps are recorded."""
        return self.graphs is not None or (self.whole_step is not None and self.whole_step.replays)

    @property
    def eval_every(self) -> int | None:
        """Steps between evaluations; None where there is nothing to evaluate on."""
        return (self.config.bertfast.run.eval_steps or self.steps_per_epoch) if self.eval_sets else None

    @property
    def save_every(self) -> int:
        """Steps between checkpoints."""
        return self.config.bertfast.run.save_steps or self.eval_every or self.steps_per_epoch

    def is_due(self, step: int, every: int | None) -> bool:
        """Whether something that happens every so many steps, and after the last one, happens after `step` of them."""
        return every is not None and (step % every == 0 or step == self.total_steps)

    def forward(self, step: int, micro_step: int) -> Forward:
        """The model with the dropout of a micro-step, whose bits come from seed and step alone, so that a resumed run meets the same."""
        bits = self.bits(step, micro_step)
        return lambda batch: self.engine(batch, bits)

    def bits(self, step: int, micro_step: int) -> RandomBits:
        """What feeds the dropout of a micro-step."""
        place = None if self.invariant_dropout else (micro_step, self.ranks.rank)
        return RandomBits.of_step(self.config.bertfast.run.seed, step, self.ranks.device, place)

    def opening_lines(self, state: RunState) -> list[str]:
        """What a person is told before the first step."""
        plan, sizes = self.batches.plan, self.sizes
        shape = f"{counted(sizes.world_size, 'rank')} x {counted(sizes.micro_steps, 'micro-step')} on {self.ranks.device.type}, {self.precision}"
        lines = [
            self.model_summary,
            f"{len(self.train_set):,} examples of {self.objective.task.name}, {self.total_steps} steps of "
            f"{plan.examples / self.steps_per_epoch:,.0f} examples ({shape}), share of real tokens {plan.fill:.1%}",
        ]
        asked = self.config.zero.stage
        if asked != self.engine.zero_optimization_stage():
            lines.append(f"ZeRO stage {asked} has nothing to divide on one rank: it runs as stage 0")
        estimate, _ = footprint_of(self.config, self.precision, self.engine.module, plan, self.train_set)
        if wanting := shortage(estimate, self.ranks.device.type):
            lines.append(f"{wanting.sentence}; should it run out: {smaller_training(self.config, sizes)}")
        if self.ranks.device.type == "cpu" and (fault := cpu_kernels_fault()):
            lines.append(f"C++ kernels: off, because {fault}; torch's own take their place, and a step takes up to twice as long")
        resuming = f"resuming after step {state.step}" if state.step else None
        lines += [line for line in (self.graphs_line, *self.folder.notes, resuming) if line]
        return lines + self.objective.data_lines(self.train_set, self.eval_sets) + self.objective.lines()

    def results(self, state: RunState) -> dict[str, Any]:
        """What results.json would say of a state."""
        seconds, task = max(state.seconds, 1e-9), self.objective.task
        return {
            "task": task.name,
            "main_metric": task.main_metric,
            "metrics": state.metrics or {},
            "training": {
                "steps": state.step,
                "best_step": state.best_step,
                "epochs": round(state.step / self.steps_per_epoch, 4),
                "examples": state.examples,
                "train_seconds": round(state.seconds, 3),
                "samples_per_second": round(state.examples / seconds, 2),
                "tokens_per_second": round(state.tokens / seconds, 1),
                "real_token_share": round(self.batches.plan.fill, 5),
                "real_token_share_if_padded": round(state.tokens / max(state.padded_tokens, 1), 5),
                "batch_size": self.sizes.global_batch,
                "world_size": self.ranks.world_size,
                "device": self.ranks.device.type,
                "precision": self.precision,
                "zero_stage": self.engine.zero_optimization_stage(),
                **(
                    {"cuda_graphs": dict(replayer.counts)}
                    if (replayer := self.graphs or self.whole_step) is not None and self.in_buckets
                    else {}
                ),
                **({"resumed_with_changes": state.changes} if state.changes else {}),
            },
            **self.objective.results(state.best),
        }


def prepare(
    config: Config,
    objective: Objective,
    ranks: Ranks,
    precision: Precision,
    mark: Callable[[str], None],
    capture: type[Capture] | None = None,
) -> Run:
    """Load what the objective needs, hold data and model against each other, plan, and start the engine.

    Args:
        precision: "fp16", "bf16" or "fp32".
        mark: told the name of each stage as it ends.
        capture: what records CUDA graphs, where it is not torch.

    Raises:
        BertfastError: the config, data or checkpoint cannot be used (see bertfast.errors).
    """
    settings = config.bertfast
    check_monitors(config.deepspeed)
    check_places(config)
    sizes = resolve_batch_sizes(config, ranks.world_size)
    check_optimizer_fits(config, ranks.world_size, ranks.device.type)
    join_ranks(ranks)
    check_engine_config(config, sizes, ranks)
    mark("DeepSpeed and the process group")
    tokenizer = objective.tokenizer()
    mark("tokenizer")
    train_set, eval_sets = objective.training_set(tokenizer), objective.evaluation_sets(tokenizer)
    mark("data")
    torch.manual_seed(settings.run.seed)
    model = objective.model()
    for dataset in (train_set, *eval_sets.values()):
        check_fit(dataset, model)
    mark("model")
    batches = TrainingBatches(train_set, objective.training_source, sizes, settings.run.seed, ranks)
    total_steps = resolve_total_steps(settings, batches.steps_per_epoch)
    objective.begin(train_set, batches.steps_per_epoch, total_steps)
    asked = settings.run.packing_invariant_dropout
    invariant_dropout = ranks.device.type != "cpu" if asked is None else asked
    summary, weights, network = model.loaded.summary(), checksum_of_weights(model), network_of(model)
    engine = build_engine(model, config, sizes, total_steps, ranks, batches.steps_per_epoch)
    whole_step, graphs_line = whole_step_of(engine, config, sizes.micro_steps, ranks.device, invariant_dropout, capture)
    graphs = None
    if whole_step is None:
        graphs, graphs_line = graphs_for(model, config, sizes, ranks.device, invariant_dropout, capture)
    resolved = resolve_deepspeed(config, sizes, total_steps, ranks.device.type, model.config.hidden_size)
    identity = {  # what a person sets comes first, and is named first where it differs; then what follows from it
        "seed": settings.run.seed,
        "world_size": ranks.world_size,
        "device": ranks.device.type,
        "precision": precision,
        "planner": batches.plan.planner,
        "batch size": sizes.global_batch,
        "micro-steps": sizes.micro_steps,
        # Its state, which a checkpoint holds, has these settings too.
        "optimizer": {"type": str(resolved["optimizer"]["type"]).lower(), "params": {**resolved["optimizer"]["params"]}},
        "zero stage": engine.zero_optimization_stage(),
        "packing_invariant_dropout": invariant_dropout,
        **settings_of(config, resolved, engine.gradient_clipping()),
        **objective.identity(),
        "network": network,
        "tokenizer": tokenizer_fingerprint(tokenizer)[:16],
        "weights": weights,
        "steps per epoch": batches.steps_per_epoch,
        "training examples": len(train_set),
        "training tokens": int(train_set.lengths.sum(dtype=np.int64)),
        "training data": train_set.checksums(),
        "evaluation data": {name: dataset.checksums() for name, dataset in eval_sets.items()},
    }
    folder = RunFolder(settings.run, objective, engine, tokenizer, identity, ranks)
    mark("engine")
    return Run(
        config,
        objective,
        ranks,
        precision,
        sizes,
        train_set,
        eval_sets,
        batches,
        total_steps,
        invariant_dropout,
        summary,
        engine,
        whole_step,
        graphs,
        graphs_line,
        folder,
    )
