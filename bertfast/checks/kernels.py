"""`bertfast compile`: every kernel that a config needs, compiled ahead of time for one or more GPUs, none of which has to be there.

Of the checkpoint it needs config.json alone, and of the data nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

from bertfast.config import Config, resolve_precision
from bertfast.engine import DTYPES
from bertfast.errors import BertfastError
from bertfast.machine import cores
from bertfast.tasks import get_task
from bertfast.weights import GELU_FORMS, config_of_checkpoint, model_folder
from bertfast.wording import counted
from bertfast_kernels import TARGETS, CompiledKernel, EncoderShape, Target, compile_kernels, local_target

_TABLE_WIDTH = 190  # characters, where there is no terminal to fill: no row is wrapped then
_MOST_PROCESSES = 16  # each takes some 400 MB


class Encoder(NamedTuple):
    """What a config trains, as far as its kernels go: its shape, and in a line where that is from."""

    shape: EncoderShape
    source: str


def encoder_of(config: Config) -> Encoder:
    """The shape of a config's encoder on a GPU, where a precision of "auto" is fp16.

    Raises:
        CheckpointError: there is no config.json for the checkpoint, or it describes a network that bertfast does not compute.
    """
    block = config.bertfast
    bert, source = config_of_checkpoint(model_folder(block.model.checkpoint))
    dropouts = [
        bert.hidden_dropout_prob if block.model.hidden_dropout_prob is None else block.model.hidden_dropout_prob,
        bert.attention_probs_dropout_prob if block.model.attention_probs_dropout_prob is None else block.model.attention_probs_dropout_prob,
    ]
    task = get_task(block.task)
    num_labels = task.num_labels if task.is_complete else bert.num_labels
    assert num_labels is not None  # a BertConfig that is told nothing of labels has two
    lengths = [part.max_sequence_length for part in (block.train_input, block.eval_input) if part is not None]
    precision = resolve_precision(config.deepspeed, "cuda")
    shape = EncoderShape(
        hidden_size=bert.hidden_size,
        intermediate_size=bert.intermediate_size,
        heads=bert.num_attention_heads,
        head_size=bert.hidden_size // bert.num_attention_heads,
        vocab=bert.vocab_size,
        dtype=DTYPES[precision],
        dropout=max(dropouts),
        trains_without_dropout=min(dropouts) == 0.0,
        max_seqlen=min(max(lengths, default=bert.max_position_embeddings), bert.max_position_embeddings),
        positions=bert.max_position_embeddings,
        segments=bert.type_vocab_size,
        num_labels=num_labels if num_labels > 1 else None,
        gelu=GELU_FORMS[bert.hidden_act],
    )
    labels = "a score" if num_labels == 1 else f"{num_labels} classes"
    known = "" if task.is_complete else " (the checkpoint's: the task's are known once its data are read)"
    return Encoder(shape, f"{source}; {precision}, dropout {shape.dropout:g}, up to {shape.max_seqlen} tokens, {labels}{known}")


def choose_targets(names: Sequence[str]) -> list[str | Target]:
    """The named ones, in order and once each; without a name this machine's GPU, or every target where it has none."""
    gpu = None if names else local_target()
    return list(dict.fromkeys(names)) or ([gpu] if gpu else list(TARGETS))


def compile_encoders(encoders: Sequence[Encoder], targets: Sequence[str | Target]) -> list[CompiledKernel]:
    """Compile what they need, on every core, and fill Triton's cache; on a terminal a bar shows how far it is.

    Raises:
        BertfastError: Triton is missing, or set to interpret.
    """
    from rich.console import Console
    from rich.progress import Progress

    processes = max(1, min(cores(), _MOST_PROCESSES))
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("compiling", total=None)
        try:
            shapes = list(dict.fromkeys(encoder.shape for encoder in encoders))
            return compile_kernels(shapes, targets, processes, lambda done, total: bar.update(task, completed=done, total=total))
        except (RuntimeError, ImportError) as error:
            raise BertfastError(f"nothing can be compiled: {error}") from error


def print_kernels(kernels: Sequence[CompiledKernel], source: str) -> None:
    """One table on standard output, a row for each kernel and a column for each target; then each kernel that does not fit, and why."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    targets = list(dict.fromkeys(kernel.target for kernel in kernels))
    rows: dict[tuple[str, ...], dict[str, CompiledKernel]] = {}
    for kernel in kernels:
        rows.setdefault((kernel.kernel, kernel.dtype, kernel.shape_class, str(kernel.num_warps)), {})[kernel.target] = kernel
    title = "Registers a thread, and bytes of shared memory where there are any"
    table = Table("kernel", "dtype", "constants", "warps", *targets, title=title)
    for row, found in rows.items():
        table.add_row(*row, *(_cell(found.get(target), Text) for target in targets))
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _TABLE_WIDTH)
    console.print(source, soft_wrap=True, highlight=False, markup=False)
    console.print(table)
    faults = [kernel for kernel in kernels if not kernel.fits]
    for kernel in faults:
        console.print(Text(f"{kernel.kernel} ({kernel.dtype}, {kernel.shape_class}) on {kernel.target}: {kernel.problem}", "bold red"))
    done = f"{counted(len(kernels), 'compilation')} for {', '.join(targets)}"
    console.print(f"{done}: {len(faults)} do not fit." if faults else f"{done}: all fit, none spills.")


def _cell(kernel: CompiledKernel | None, text):
    if kernel is None:
        return ""
    if not kernel.fits:
        return text("does not fit", "bold red")
    return f"{kernel.registers}" + (f", {kernel.shared_memory:,} B" if kernel.shared_memory else "")
