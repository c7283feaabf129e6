"""DeepSpeed's side of the trainer: the ranks, the engine, its parameters made whole, and its state in and out."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bertfast import checkpoint
from bertfast.atomic import write_fault, write_json
from bertfast.config import Config
from bertfast.errors import BertfastError, CheckpointError, ConfigError
from bertfast.machine import cores
from bertfast.model import BertClassifier
from bertfast.optim import ADAMW_KEYS, adamw, scheduler_of, thaw_step, trained_groups
from bertfast.resolve import BatchSizes, resolve_deepspeed, resolve_precision, resolve_warmup_steps
from bertfast.schedules import schedule, thawing

_OWN_OPTIMIZERS = {"adam", "adamw"}
_LONGEST_BUILD = 900  # seconds; DeepSpeed's ops take under one minute each
_STATE, _MODEL = "state", "model"  # the two folders of a training checkpoint: DeepSpeed's, and transformers'
_FACTS = "run.json"  # beside them


@dataclass(frozen=True)
class Ranks:
    """This process among all: its number, theirs, and its device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.world_size > 1:
            torch.distributed.barrier()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether any rank says so; the same answer on every rank."""
        if self.world_size == 1:
            return flag
        return bool(self.sum(torch.tensor(int(flag), device=self.device)).item())

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in order of rank, on every rank."""
        if self.world_size == 1:
            return [value]
        gathered = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, value)
        return gathered


def start_ranks(device: str | None, threads: int | None) -> Ranks:
    """Choose the device and, where a launcher started several processes, join them; without a launcher this is the only rank.

    device: "cpu", "gpu" or None for a GPU where there is one.

    Raises:
        ConfigError: "gpu" where there is none.
    """
    has_gpu = torch.cuda.is_available()
    if device == "gpu" and not has_gpu:
        raise ConfigError("GPU was asked for, but torch sees none; leave GPU out, or install a torch built for your GPU")
    on_gpu = has_gpu and device != "cpu"
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank, local_size = (
        int(os.environ.get("LOCAL_RANK", 0)),
        int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size),
    )
    if on_gpu:
        torch.cuda.set_device(local_rank)
        return Ranks(rank, world_size, torch.device("cuda", local_rank))
    torch.set_num_threads(threads or max(1, cores() // local_size))
    _keep_freed_memory()
    return Ranks(rank, world_size, torch.device("cpu"))


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


def build_engine(model: BertClassifier, config: Config, sizes: BatchSizes, total_steps: int, ranks: Ranks, steps_per_epoch: int = 1):
    """The DeepSpeed engine around `model`, with bertfast's parameter groups, and AdamW and the schedule where the config leaves them to us.

    DeepSpeed builds the optimizer itself where it is another one than Adam or AdamW, or is offloaded; and the scheduler where the config has one.
    """
    import deepspeed

    resolved = resolve_deepspeed(config, sizes, total_steps, ranks.device.type, model.config.hidden_size)
    if resolve_precision(config.deepspeed, ranks.device.type) == "bf16" and "bf16" not in resolved:
        model.compute_dtype = torch.bfloat16
    block, optimization = resolved["optimizer"], config.bertfast.optimization
    kind, params = str(block.get("type", "AdamW")).lower(), block["params"]
    for layer in model.layers:
        layer.recomputes = config.bertfast.model.gradient_checkpointing == "selective"
    groups = trained_groups(model, params, optimization)
    names = [group.pop("name", None) for group in groups]  # DeepSpeed copies groups by their keys, and knows these not
    depths = [group.pop("depth", 0) for group in groups]
    offloaded = resolved.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none") != "none"
    decoupled = kind == "adamw" or params.get("adam_w_mode", True)
    optimizer = None
    if (
        kind in _OWN_OPTIMIZERS
        and decoupled
        and not offloaded
        and set(params) <= ADAMW_KEYS | {"torch_adam", "adam_w_mode", "bias_correction"}
    ):
        optimizer = adamw(groups, params)
        del resolved["optimizer"]
    scheduler = None
    if "scheduler" not in resolved:
        factor = schedule(optimization.schedule, resolve_warmup_steps(config.bertfast.run, total_steps), total_steps)
        interval = optimization.unfreeze_epochs
        if interval is not None:
            thaws = [thaw_step(name, depth, interval, steps_per_epoch) for name, depth in zip(names, depths, strict=True)]
            factor = thawing(factor, thaws)
        scheduler = scheduler_of(factor)
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
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ConfigError(f"DeepSpeed cannot start with this config ({type(error).__name__}: {reason})") from error
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


def whole_state(engine) -> dict[str, torch.Tensor]:
    """Every parameter by our name, float32 on the CPU, whatever the ZeRO stage and precision; all ranks must call, the first gets it."""
    import deepspeed

    masters = _masters(engine)
    first = torch.distributed.get_rank() == 0
    state = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            if first:
                state[name] = masters.get(name, parameter).detach().float().cpu().clone()
    return state


def save_training_state(engine, folder: Path, step: int, client_state: dict, write_model, ranks: Ranks) -> None:
    """Write the checkpoint of `step`: DeepSpeed's state by all ranks, the model by the first, then sealed and renamed into place.

    client_state: plain data; DeepSpeed keeps it with the weights, and run.json for whoever asks before they are loaded.
    write_model: called on the first rank with a folder, to fill it with the model as transformers loads it.

    Raises:
        CheckpointError: naming the folder that cannot be written.
    """
    final = checkpoint.step_folder(folder, step)
    beside = checkpoint.unfinished(final)
    try:
        if ranks.is_first:
            checkpoint.remove(beside)
            beside.mkdir(parents=True)
        ranks.barrier()
        engine.save_checkpoint(str(beside), tag=_STATE, client_state=client_state, save_latest=False)
        ranks.barrier()
        if ranks.is_first:
            (beside / _MODEL).mkdir()
            write_model(beside / _MODEL)
            write_json(beside / _FACTS, client_state)
            checkpoint.seal(beside, step)
            checkpoint.put_in_place(final)
        ranks.barrier()
    except BaseException as error:
        if ranks.is_first:
            checkpoint.recover(final)
            checkpoint.remove(beside)
        fault = (
            str(error) if isinstance(error, RuntimeError | BertfastError) else write_fault(error)
        )  # torch's of a full disk is a RuntimeError
        if fault is None:
            raise
        raise CheckpointError(f"{final}: cannot be written: {fault}; the checkpoints before it are kept") from error


def saved_facts(path: Path) -> dict | None:
    """The client state of a checkpoint, without loading it; None where an earlier bertfast wrote it, which kept it with the weights alone."""
    file = path / _FACTS
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def load_training_state(engine, path: Path) -> dict:
    """Load weights, optimizer and schedule from a checkpoint; returns the client state that was saved with them.

    Raises:
        CheckpointError: it does not fit, whatever DeepSpeed says to that: it raises errors of many kinds, some plain Exceptions.
    """
    try:
        _, client_state = engine.load_checkpoint(str(path), tag=_STATE)
    except Exception as error:
        raise CheckpointError(
            f"{path}: does not fit this run ({type(error).__name__}: {error}); resume with the config that wrote it"
        ) from error
    if client_state is None:
        raise CheckpointError(f"{path}: DeepSpeed finds no state there; resume with the ZeRO stage that wrote it")
    return client_state


def model_folder(path: str) -> str:
    """The transformers folder that a path means: a run's folder holds it as `model`, a training checkpoint too."""
    inner = checkpoint.standing(Path(path) / _MODEL)
    return str(inner) if not (Path(path) / "config.json").is_file() and (inner / "config.json").is_file() else path


def _masters(engine) -> dict[str, torch.Tensor]:
    """The float32 master of each half-precision parameter, where DeepSpeed holds it whole on this rank."""
    if next(engine.module.parameters()).dtype == torch.float32 or engine.zero_optimization_stage() > 0:
        return {}
    from deepspeed.utils import safe_get_full_fp32_param

    found = {name: safe_get_full_fp32_param(parameter) for name, parameter in engine.module.named_parameters()}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _keep_freed_memory() -> None:
    """Have glibc keep freed blocks rather than hand them back and fault them in again at every step (5 to 10 % of a step on a CPU)."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library has no mallopt, and needs none
        libc = ctypes.CDLL("libc.so.6")
        mmap_threshold, trim_threshold = -3, -1
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)


@contextlib.contextmanager
def _deepspeed_prints_to_stderr():
    """Standard output belongs to the run's own lines."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
