"""Parameters made whole, and DeepSpeed's state in and out."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from bertfast.engine.ranks import Ranks
from bertfast.errors import BertfastError, CheckpointError
from bertfast.storage import folders, write_fault, write_json

_STATE = "state"  # the folder of a training checkpoint that is DeepSpeed's

_FACTS = "run.json"  # beside them


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
    final = folders.step_folder(folder, step)
    beside = folders.unfinished(final)
    try:
        if ranks.is_first:
            folders.remove(beside)
            beside.mkdir(parents=True)
        ranks.barrier()
        # `latest` names the folder of the state: zero_to_fp32.py, which DeepSpeed leaves beside it, looks there.
        engine.save_checkpoint(str(beside), tag=_STATE, client_state=client_state, save_latest=True)
        ranks.barrier()
        if ranks.is_first:
            (beside / folders.MODEL).mkdir()
            write_model(beside / folders.MODEL)
            write_json(beside / _FACTS, client_state)
            folders.seal(beside, step)
            folders.put_in_place(final)
        ranks.barrier()
    except BaseException as error:
        if ranks.is_first:
            folders.recover(final)
            folders.remove(beside)
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
    """Load weights, optimizer and schedule from a checkpoint; returns the client state that was saved with them. Rates and other settings of the
    optimizer are then those of this engine's config, and the rates those of its schedule at the step that was saved.

    Raises:
        CheckpointError: it does not fit, whatever DeepSpeed says to that: it raises errors of many kinds, some plain Exceptions.
    """
    own = [{key: value for key, value in group.items() if key != "params"} for group in engine.lr_scheduler.optimizer.param_groups]
    try:
        _, client_state = engine.load_checkpoint(str(path), tag=_STATE)
    except Exception as error:
        raise CheckpointError(
            f"{path}: does not fit this run ({type(error).__name__}: {error}); resume with the config that wrote it"
        ) from error
    if client_state is None:
        raise CheckpointError(f"{path}: DeepSpeed finds no state there; resume with the ZeRO stage that wrote it")
    if schedule_follows_config(engine):
        _go_on_by_own_schedule(engine.lr_scheduler, own)
    return client_state


def schedule_follows_config(engine) -> bool:
    """Whether the rates after a load are those of this engine's config: all but those of torch's own schedulers, whose settings are part of the
    state that is loaded, as the optimizer's are."""
    return _is_ours(engine.lr_scheduler) or hasattr(engine.lr_scheduler, "last_batch_iteration")


def _is_ours(scheduler) -> bool:
    return isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)


def _go_on_by_own_schedule(scheduler, own: list[dict]) -> None:
    """Undo what a load has done to a schedule, save for its step: it brings the rate of the next step as the schedule that was saved had it, which is
    another where the length of the run has changed, and the base rates. own: each group's settings before the load."""
    groups = scheduler.optimizer.param_groups
    for group, settings in zip(groups, own, strict=True):
        group.update(settings)
    if _is_ours(scheduler):
        scheduler.base_lrs = [group["initial_lr"] for group in groups]
        rates = [base * factor(scheduler.last_epoch) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates
    elif scheduler.last_batch_iteration >= 0:  # DeepSpeed's own keep their step alone, and give their rates to the groups as they step
        scheduler.step(scheduler.last_batch_iteration)


def _masters(engine) -> dict[str, torch.Tensor]:
    """The float32 master of each half-precision parameter, where DeepSpeed holds it whole on this rank."""
    if next(engine.module.parameters()).dtype == torch.float32 or engine.zero_optimization_stage() > 0:
        return {}
    from deepspeed.utils import safe_get_full_fp32_param

    found = {name: safe_get_full_fp32_param(parameter) for name, parameter in engine.module.named_parameters()}
    return {name: tensor for name, tensor in found.items() if tensor is not None}
