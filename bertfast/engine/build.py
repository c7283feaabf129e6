"""DeepSpeed's engine around a model, and the process group that it works in."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

import torch

from bertfast.config import BatchSizes, Config, is_own_adamw, resolve_deepspeed, resolve_precision, resolve_warmup_steps, takes_whole_steps
from bertfast.engine.memory import DTYPES
from bertfast.engine.optimizer import adamw, scheduler_of, thaw_step, trained_groups, whole_adamw
from bertfast.engine.ranks import Ranks
from bertfast.engine.schedules import schedule, thawing
from bertfast.errors import BertfastError, ConfigError
from bertfast.model import BertEncoder, Reader
from bertfast.wording import reason
from bertfast_kernels import CpuAdamW

_LONGEST_BUILD = 900  # seconds; DeepSpeed's ops take under one minute each


def join_ranks(ranks: Ranks) -> None:
    """Start the process group, once per process; alone, as a group of one in this process's memory: no port, and nothing that a child would inherit.

    Raises:
        BertfastError: DeepSpeed, which only training and several ranks need, is not installed.
    """
    if "MASTER_ADDR" not in os.environ:
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed's engine insists on it, in a group that the caller began too
    if torch.distributed.is_initialized():
        return
    try:
        import deepspeed
        from deepspeed.utils import logger
    except ModuleNotFoundError as error:
        if error.name != "deepspeed":
            raise
        raise BertfastError(
            "training, and any work of several ranks, needs deepspeed, which is not installed: pip install deepspeed"
        ) from None
    logger.setLevel("WARNING")
    # DeepSpeed would compile this op here, for half a minute, and wait for ever on the lock of a build that was killed. Only its inference uses it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if ranks.device.type == "cuda" else "gloo"
    if "MASTER_ADDR" not in os.environ:
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def build_engine(model: BertEncoder, config: Config, sizes: BatchSizes, total_steps: int, ranks: Ranks, steps_per_epoch: int = 1):
    """The DeepSpeed engine around `model`, with bertfast's parameter groups, and AdamW and the schedule where the config leaves them to us.

    DeepSpeed builds the optimizer itself where it is another one than Adam or AdamW, or is offloaded; and the scheduler where the config has one.
    """
    import deepspeed
    from deepspeed.utils.logging import set_log_level_from_string

    resolved = resolve_deepspeed(config, sizes, total_steps, ranks.device.type, model.config.hidden_size)
    precision = resolve_precision(config.deepspeed, ranks.device.type)
    is_whole = takes_whole_steps(config, sizes.world_size, ranks.device.type)
    if precision != "fp32" and precision not in resolved:
        model.compute_dtype = DTYPES[precision]
    block, optimization = resolved["optimizer"], config.bertfast.optimization
    params = block["params"]
    model.set_recomputing(config.bertfast.model.gradient_checkpointing == "selective")
    groups = trained_groups(model, params, optimization)
    names = [group.pop("name", None) for group in groups]  # DeepSpeed copies groups by their keys, and knows these not
    depths = [group.pop("depth", 0) for group in groups]
    optimizer: torch.optim.Optimizer | None = None
    if is_own_adamw(block, config.zero.offloads_optimizer):
        keeps_float32 = (
            not is_whole
            and not any(key in resolved for key in ("bf16", "fp16"))
            and resolved.get("zero_optimization", {}).get("stage", 0) == 0
        )
        if is_whole:
            model.to(ranks.device)
            optimizer = whole_adamw(groups, params, DTYPES[precision], resolved["gradient_clipping"], config.deepspeed.get("fp16"))
        else:
            optimizer = adamw(groups, params, on_cpu=keeps_float32 and ranks.device.type == "cpu")
        del resolved["optimizer"]
    scheduler = None
    if "scheduler" not in resolved:
        factor = schedule(optimization.schedule, resolve_warmup_steps(config.bertfast.run, total_steps), total_steps)
        interval = optimization.unfreeze_epochs
        if interval is None:
            scheduler = scheduler_of(factor)
        else:
            thaws = [thaw_step(name, depth, interval, steps_per_epoch) for name, depth in zip(names, depths, strict=True)]
            scheduler = scheduler_of(thawing(factor, thaws))
    join_ranks(ranks)
    if optimizer is None:
        free_abandoned_builds()
    with _refusals_in_a_line():
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            model_parameters=None if optimizer else groups,
            lr_scheduler=scheduler,
            config=resolved,
            dist_init_required=False,
        )
    if "steps_per_print" in resolved and "log_level" not in config.deepspeed:
        set_log_level_from_string("info")  # at which DeepSpeed says how far it is; not before, since it first says its whole config so
    engine.group_names = names
    if ranks.world_size == 1 and engine.zero_optimization_stage() == 0:
        engine.enable_backward_allreduce = False  # it would flatten and copy all gradients for a sum over one rank
        # where the words' matrix is the decoder too, each row has a gradient
        is_replayed = config.bertfast.run.cuda_graphs  # a recorded gradient is dense
        model.embeddings.sparse_gradient = isinstance(optimizer, CpuAdamW) and isinstance(model, Reader) and not is_replayed
    if isinstance(optimizer, CpuAdamW):
        engine.clip_fp32_gradients = lambda: optimizer.clip(engine.gradient_clipping())
    if ranks.device.type == "cuda":
        engine.clip_fp32_gradients = lambda: clip_gradients(engine)
    return engine


def check_engine_config(config: Config, sizes: BatchSizes, ranks: Ranks) -> None:
    """Have DeepSpeed read the config and build nothing, before any data is read. The process group must have been joined.

    Raises:
        ConfigError: with the first thing that DeepSpeed finds.
    """
    from deepspeed.runtime.config import DeepSpeedConfig

    with _refusals_in_a_line():
        DeepSpeedConfig(resolve_deepspeed(config, sizes, total_steps=1, device_type=ranks.device.type, hidden_size=1))


def clip_gradients(engine) -> None:
    """What DeepSpeed's own does for float32 gradients under stage 0, in a few launches for all parameters and without waiting for the GPU."""
    torch.nn.utils.clip_grad_norm_(engine.module.parameters(), engine.gradient_clipping())


def rates_by_part(engine) -> dict[str, float] | None:
    """The rates of now of the head, each layer and the embeddings, where they differ; None where there is one for all."""
    if engine.group_names[0] is None:
        return None
    return dict(zip(engine.group_names, engine.get_lr(), strict=True))


def free_abandoned_builds() -> None:
    """Remove the locks of builds of DeepSpeed's ops (its CPU Adam, say) that were killed: whoever needs the op next would wait for ever.

    The folder of a build has the op's name, as DeepSpeed's builders give it. Some are names that others may use too ("quantizer"), so a folder whose
    build.ninja compiles nothing of DeepSpeed's is left alone; that file is written after the lock, and is not there where a build was killed early.
    """
    from deepspeed.ops.op_builder.all_ops import ALL_OPS
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    names = {builder.name for builder in ALL_OPS.values()}
    for lock in (
        *root.glob("*/lock"),
        *root.glob("*/*/lock"),
    ):  # torch puts a folder for its version and CUDA's in between where none is set
        if lock.parent.name not in names:
            continue
        with contextlib.suppress(FileNotFoundError):  # the build ended just now
            if time.time() - lock.stat().st_mtime > _LONGEST_BUILD and _compiles_deepspeed(lock.parent / "build.ninja"):
                lock.unlink()


def _compiles_deepspeed(rules: Path) -> bool:
    """Whether a build's rules name sources of DeepSpeed's; True where it has none yet."""
    return not rules.is_file() or "deepspeed" in rules.read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def _refusals_in_a_line():
    """What DeepSpeed says no with becomes a ConfigError; what it prints goes to standard error, since standard output belongs to the run's own lines."""
    from deepspeed.runtime.config import DeepSpeedConfigError
    from deepspeed.runtime.zero.utils import ZeRORuntimeException
    from pydantic import ValidationError

    refusals = (
        AssertionError,
        ValueError,
        TypeError,
        KeyError,
        ImportError,
        NotImplementedError,
        DeepSpeedConfigError,
        ZeRORuntimeException,
    )
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except refusals as error:
        said = reason(error)
        if isinstance(error, ValidationError):  # its first line counts the faults, and names none
            fault = error.errors()[0]
            said = f"{'.'.join(map(str, fault['loc'])) or error.title}: {fault['msg']}"
        raise ConfigError(f"DeepSpeed cannot start with this config ({type(error).__name__}: {said})") from error
