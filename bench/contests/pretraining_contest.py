"""Masked language modelling on the same examples, bertfast's and transformers': contenders in processes of their own, which take turns.

bertfast trains with its own Pretrainer on DeepSpeed. transformers' BertForMaskedLM has its DataCollatorForLanguageModeling, a plain loop, bfloat16
autocast where asked, and torch's fused AdamW. "full blocks" is the same text end to end, cut into blocks of the full length, as transformers'
own example script does it: no padding, but texts run into one another. Batches are masked and padded (or packed) outside of the times.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import torch

from bench.harness.intervals import take_turns
from bench.harness.memory import peak_resident_bytes
from bertfast.config.load import load_config

CONTENDERS = (
    "transformers fp32",
    "transformers bf16 autocast",
    "transformers bf16 autocast, full blocks",
    "bertfast fp32",
    "bertfast bf16",
)
LEARNING_RATE, WEIGHT_DECAY = 5e-5, 0.01
_TOTAL_STEPS = 10_000  # of the schedule, so that its rate stands nearly still
_CLS_AND_SEP = 2


class Job(NamedTuple):
    """What every contender is given. text: a file; length: max_sequence_length; batch_size: examples in a step."""

    text: str
    checkpoint: str
    length: int
    batch_size: int
    rounds: int
    steps_per_round: int
    seed: int

    def config(self, bf16: bool, model_dir: str) -> dict[str, Any]:
        """Of bertfast's contenders."""
        return {
            "gradient_clipping": 1.0,
            "bf16": {"enabled": bf16},
            "optimizer": {"type": "AdamW", "params": {"lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY}},
            "bertfast": {
                "model": {"checkpoint": self.checkpoint},
                "pretrain": {"text_files": [self.text], "next_sentence": False},
                "train_input": {"max_sequence_length": self.length, "batch_size": self.batch_size},
                "run": {"model_dir": model_dir, "max_steps": _TOTAL_STEPS, "seed": self.seed, "logging_steps": 10**9},
            },
        }


class Step(NamedTuple):
    """One optimizer step to take: its real tokens, and what takes it and gives its loss."""

    tokens: int
    take: Callable[[], float]


def bertfast_steps(job: Job, bf16: bool, folder: str) -> Iterator[Step]:
    """The steps of bertfast's own trainer."""
    from bertfast.training.guards import LossWatch
    from bertfast.training.trainer import Trainer

    trainer = Trainer(load_config(job.config(bf16, folder)), device="cpu", pretrains=True)
    run = trainer._prepare()
    watch = LossWatch(run.train_set, run.ranks)
    for given in run.batches.steps(0, _TOTAL_STEPS):
        tokens = sum(batch.num_tokens for batch in given[1])
        yield Step(tokens, lambda given=given: trainer._step(run, watch, *given).share.item())


def transformers_steps(job: Job, bf16: bool, full_blocks: bool, folder: str) -> Iterator[Step]:
    """The steps of a plain loop around BertForMaskedLM."""
    from transformers import AutoTokenizer, BertForMaskedLM, DataCollatorForLanguageModeling

    from bertfast.engine.optimizer import linear_schedule, parameter_groups
    from bertfast.packing.plans import plan_examples

    examples = examples_of(job, folder)
    if full_blocks:
        examples = blocks_of(examples, job.length)
    collator = DataCollatorForLanguageModeling(AutoTokenizer.from_pretrained(job.checkpoint), mlm_probability=0.15)
    torch.manual_seed(job.seed)
    model = BertForMaskedLM.from_pretrained(job.checkpoint, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, WEIGHT_DECAY), lr=LEARNING_RATE, fused=True)
    schedule = linear_schedule(_TOTAL_STEPS // 10, _TOTAL_STEPS)(optimizer)

    def take(features: Any) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**features).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        return loss.item()

    lengths = np.array([len(ids) for ids in examples], dtype=np.int32)
    for epoch in range(_TOTAL_STEPS):
        plan = plan_examples(lengths, min(job.batch_size, len(lengths)), seed=job.seed, epoch=epoch)
        for index in range(len(plan)):
            chosen = plan.micro_batches(index, 0)[0].tolist()
            features = collator([{"input_ids": examples[row].tolist()} for row in chosen if row >= 0])
            yield Step(int(features["attention_mask"].sum()), lambda features=features: take(features))


def examples_of(job: Job, folder: str) -> list[np.ndarray]:
    """bertfast's examples of the text, before they are masked: ids with [CLS] and [SEP]."""
    from bertfast.engine.ranks import Ranks
    from bertfast.training.objectives.masked_words import MaskedWords

    objective = MaskedWords(load_config(job.config(False, folder)), Ranks(0, 1, torch.device("cpu")))
    data = objective.training_set(objective.tokenizer())
    found = []
    for first in range(0, len(data), 256):
        batch = data.batch(np.arange(first, min(first + 256, len(data))))
        ids = batch.input_ids.clone()
        ids[batch.masked_rows] = batch.masked_labels.to(ids.dtype)
        found += np.split(ids.numpy(), batch.cu_seqlens[1:-1].numpy())
    return found


def blocks_of(examples: Sequence[np.ndarray], length: int) -> list[np.ndarray]:
    """The same tokens end to end, in blocks of `length` with a [CLS] and a [SEP] each; what is left over at the end is dropped."""
    cls, sep, room = examples[0][0], examples[0][-1], length - _CLS_AND_SEP
    stream = np.concatenate([ids[1:-1] for ids in examples])
    blocks = stream[: len(stream) // room * room].reshape(-1, room)
    return [np.concatenate([[cls], block, [sep]]).astype(np.int32) for block in blocks]


def work(name: str, job: Job, pipe: Connection) -> None:
    """The process of one contender. It answers the number of a round with its seconds for 1,000 real tokens; "facts" with facts."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    from bertfast.engine.ranks import start_ranks

    start_ranks("cpu", None)  # the same threads and allocator for all
    tokens, losses = 0, []
    with tempfile.TemporaryDirectory() as folder:
        steps = None
        while (question := pipe.recv()) is not None:
            try:
                if steps is None:
                    steps = _steps(name, job, folder)
                if question == "facts":
                    answer: Any = {
                        "peak_bytes": peak_resident_bytes(),
                        "threads": torch.get_num_threads(),
                        "tokens": tokens,
                        "last_loss": round(losses[-1], 4),
                    }
                else:
                    answer, counted, some = _round(steps, job.steps_per_round)
                    tokens, losses = tokens + counted, losses + some
            except Exception as error:  # whatever it is, the others go on, and the row says so
                traceback.print_exc()
                answer = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0][:200]}"
            pipe.send(answer)
        if steps is not None:
            steps.close()


def _steps(name: str, job: Job, folder: str) -> Iterator[Step]:
    if name.startswith("bertfast"):
        return bertfast_steps(job, name.endswith("bf16"), folder)
    return transformers_steps(job, "bf16" in name, "blocks" in name, folder)


def _round(steps: Iterator[Step], count: int) -> tuple[float, int, list[float]]:
    """Seconds for 1,000 real tokens over `count` steps, the tokens, and the losses."""
    seconds, tokens, losses = 0.0, 0, []
    for _ in range(count):
        step = next(steps)
        gc.collect()
        gc.disable()  # a collection would be charged to whoever's step it falls into
        began = time.perf_counter()
        losses.append(step.take())
        seconds += time.perf_counter() - began
        gc.enable()
        tokens += step.tokens
    return seconds * 1e3 / tokens, tokens, losses


def contest(names: Sequence[str], job: Job) -> tuple[dict[str, list[float]], dict[str, dict[str, Any]], dict[str, str]]:
    """Let them take turns: seconds for 1,000 tokens by round, what each says of itself, and why another did not run."""
    context = multiprocessing.get_context("spawn")
    pipes, processes, faults = {}, [], {}
    for name in names:
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=work, args=(name, job, theirs), daemon=True))
        processes[-1].start()
        theirs.close()

    def ask(name: str, question: Any) -> Any:
        try:
            pipes[name].send(question)
            return pipes[name].recv()
        except (OSError, EOFError):
            return "its process has died; was there memory enough?"

    def turn(name: str) -> Callable[[int], float]:
        def take(index: int) -> float:
            if isinstance(answer := ask(name, index), str):
                raise SystemExit(f"{name}: {answer}")
            return answer

        return take

    try:
        for name in names:  # a round to start, one after the other: data is tokenised once, and nobody is timed
            if isinstance(answer := ask(name, -1), str):
                faults[name] = answer
        running = [name for name in names if name not in faults]
        seconds = take_turns({name: turn(name) for name in running}, job.rounds, warm_up=1) if running else {}
        return seconds, {name: ask(name, "facts") for name in running}, faults
    finally:
        for pipe in pipes.values():
            with suppress(OSError):  # it has died, and said why
                pipe.send(None)
        for process in processes:
            process.join(timeout=30)
            if process.is_alive():
                process.terminate()
