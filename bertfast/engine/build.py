"""DeepSpeed's engine around a model, and the process group that it works in."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

import torch

from bertfast.config import BatchSizes, Config, resolve_deepspeed, resolve_precision, resolve_warmup_steps
from bertfast.engine.optimizer import ADAMW_KEYS, adamw, scheduler_of, thaw_step, trained_groups
from bertfast.engine.ranks import Ranks
from bertfast.engine.schedules import schedule, thawing
from bertfast.errors import BertfastError, ConfigError
from bertfast.model import BertEncoder
from bertfast.wording import reason

_OWN_OPTIMIZERS = {"adam", "adamw"}
_LONGEST_BUILD = 900  # seconds; DeepSpeed's ops take under one minute each


def join_ranks(ranks: Ranks) -> None:
    """Start the process group, once per process; alone, as a group of one in this process's memory: no port, and nothing that a child would inherit.

    Raises:
        BertfastError: DeepSpeed, which only training and several ranks need, is not installed.
    """
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
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed's engine insists on it
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def build_engine(model: BertEncoder, config: Config, sizes: BatchSizes, total_steps: int, ranks: Ranks, steps_per_epoch: int = 1):
    """The DeepSpeed engine around `model`, with bertfast's parameter groups, and AdamW and the schedule where the config leaves them to us.

    DeepSpeed builds the optimizer itself where it is another one than Adam or AdamW, or is offloaded; and the scheduler where the config has one.
    """
    import deepspeed

    resolved = resolve_deepspeed(config, sizes, total_steps, ranks.device.type, model.config.hidden_size)
    if resolve_precision(config.deepspeed, ranks.device.type) == "bf16" and "bf16" not in resolved:
        model.compute_dtype = torch.bfloat16
    block, optimization = resolved["optimizer"], config.bertfast.optimization
    kind, params = str(block.get("type", "AdamW")).lower(), block["params"]
    model.set_recomputing(config.bertfast.model.gradient_checkpointing == "selective")
    groups = trained_groups(model, params, optimization)
    names = [group.pop("name", None) for group in groups]  # DeepSpeed copies groups by their keys, and knows these not
    depths = [group.pop("depth", 0) for group in groups]
    decoupled = kind == "adamw" or params.get("adam_w_mode", True)
    optimizer = None
    if (
        kind in _OWN_OPTIMIZERS
        and decoupled
        and not config.zero.offloads_optimizer
        and set(params) <= ADAMW_KEYS | {"torch_adam", "adam_w_mode", "bias_correction"}
    ):
        optimizer = adamw(groups, params)
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
    try:
        with _deepspeed_prints_to_stderr():
            engine, *_ = deepspeed.initialize(
                model=model,
                optimizer=optimizer,
                model_parameters=None if optimizer else groups,
                lr_scheduler=scheduler,
                config=resolved,
                dist_init_required=False,
            )
    except (AssertionError, ValueError, TypeError, KeyError, ImportError, NotImplementedError) as error:  # how it says no to a config
        raise ConfigError(f"DeepSpeed cannot start with this config ({type(error).__name__}: {reason(error)})") from error
    engine.group_names = names
    if ranks.world_size == 1 and engine.zero_optimization_stage() == 0:
        engine.enable_backward_allreduce = False  # it would flatten and copy all gradients for a sum over one rank
    if ranks.device.type == "cuda":
        engine.clip_fp32_gradients = lambda: clip_gradients(engine)
    return engine


def clip_gradients(engine) -> None:
    """What DeepSpeed's own does for float32 gradients under stage 0, in a few launches for all parameters and without waiting for the GPU."""
    torch.nn.utils.clip_grad_norm_(engine.module.parameters(), engine.gradient_clipping())


def rates_by_part(engine) -> dict[str, float] | None:
    """The rates of now of the head, each layer and the embeddings, where they differ; None where there is one for all."""
    if engine.group_names[0] is None:
        return None
    return dict(zip(engine.group_names, engine.get_lr(), strict=True))


def free_abandoned_builds() -> None:
    """Remove the locks of builds of DeepSpeed's ops (its CPU Adam, say) that were killed: whoever needs the op next would wait for ever."""
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in root.glob("**/deepspeed_*/lock"):
        with contextlib.suppress(FileNotFoundError):  # the build ended just now
            if time.time() - lock.stat().st_mtime > _LONGEST_BUILD:
                lock.unlink()


@contextlib.contextmanager
def _deepspeed_prints_to_stderr():
    """Standard output belongs to the run's own lines."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
