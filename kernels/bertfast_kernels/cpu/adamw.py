"""AdamW and the gradients' clipping on a CPU, a pass over all parameters each: see source/adamw.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import AdamW

from bertfast_kernels.cpu.calls import pointer, run
from bertfast_kernels.cpu.products import keep_half, room_for_half

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _unwrapped(method: _Method) -> _Method:
    """A method of torch's without the wrapper that keeps its compiler out: at its first call that imports torch._dynamo, with sympy, for over a second."""
    return getattr(method, "__wrapped__", method)


class CpuAdamW(AdamW):
    """torch's fused AdamW (Loshchilov and Hutter 2019) for float32 parameters on a CPU: the same state, and the same values within rounding.

    `clip` measures the gradients, and the next step multiplies as it reads them. Copies in bfloat16 that the products keep are written with the
    values. A sparse gradient (of a matrix, in its rows) gives what the dense one would: a row that never had a gradient has moments of 0,
    so that only its decay is computed. There must be C++ kernels (see `cpu_kernels_fault`). A step of a parameter that is not float32, or has gaps
    between its elements, is a ValueError.
    """

    add_param_group, zero_grad = _unwrapped(AdamW.add_param_group), _unwrapped(AdamW.zero_grad)
    state_dict, load_state_dict = _unwrapped(AdamW.state_dict), _unwrapped(AdamW.load_state_dict)

    def __init__(self, groups: Any, **settings: Any):
        super().__init__(groups, **settings, fused=True)
        self._factor = 1.0
        self._moved: dict[Tensor, tuple[tuple[Tensor, Tensor], tuple[int, int], Tensor]] = {}

    def clip(self, max_norm: float) -> float:
        """Have the next step read gradients whose norm together is max_norm, where it is larger (Pascanu et al. 2013); gives their norm."""
        values = [grad._values() if grad.is_sparse else grad for grad in self._coalesced().values()]
        arrays = (ctypes.c_void_p * len(values))(*(value.data_ptr() for value in values))
        counts = (ctypes.c_long * len(values))(*(value.numel() for value in values))
        norm = run("squares", arrays, counts, len(values), torch.get_num_threads()) ** 0.5
        self._factor = min(1.0, max_norm / (norm + 1e-6)) if norm == norm else norm  # a NaN reaches the weights, as torch's does
        return norm

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grads, factor, self._factor = self._coalesced(), self._factor, 1.0
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter in grads]
            if not parameters:
                continue
            states = [self._state_of(parameter) for parameter in parameters]
            torch._foreach_add_([state["step"] for state in states], 1)
            beta1, beta2 = group["betas"]
            halves: list[tuple[Tensor, Tensor]] = []
            held: list[Tensor] = []  # until the call has ended
            described = (_Parameter * len(parameters))()
            for place, parameter, state in zip(described, parameters, states, strict=True):
                step, half = state["step"].item(), room_for_half(parameter)
                held += self._describe(place, parameter, grads[parameter], state, half)
                halves += [] if half is None else [(parameter, half)]
                place.rate, place.decay = float(group["lr"]), group["weight_decay"]
                place.correction1, place.correction2 = 1 - beta1**step, 1 - beta2**step
            run("adamw", described, len(parameters), beta1, beta2, group["eps"], factor, torch.get_num_threads())
            torch.autograd.graph.increment_version(parameters)
            for parameter, half in halves:
                keep_half(parameter, half, self)
        return loss

    def _coalesced(self) -> dict[Tensor, Tensor]:
        """The gradients of the parameters that have one, without gaps; a sparse one with each row once."""
        found = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if (grad := parameter.grad) is not None:
                    if grad.is_sparse and not grad.is_coalesced():
                        grad = parameter.grad = grad.coalesce()
                    found[parameter] = grad if grad.is_sparse else grad.contiguous()
        return found

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state

    def _describe(self, place: _Parameter, parameter: Tensor, grad: Tensor, state: dict[str, Tensor], half: Tensor | None) -> list[Tensor]:
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        if any(tensor.dtype != torch.float32 or not tensor.is_contiguous() for tensor in (parameter, mean, square)):
            raise ValueError(f"a parameter of {list(parameter.shape)} or its state is not float32 without gaps, as CpuAdamW takes them")
        held = [grad]
        place.value, place.mean, place.square, place.half = map(pointer, (parameter, mean, square, half))
        place.columns = parameter.shape[-1] if parameter.dim() else 1
        place.rows = parameter.numel() // max(place.columns, 1)
        if grad.is_sparse:
            rows, values = grad._indices()[0], grad._values().contiguous()
            slots = torch.full((len(parameter),), -1, dtype=torch.int32)
            slots[rows] = torch.arange(len(rows), dtype=torch.int32)
            place.grad, place.slots, place.moved = map(pointer, (values, slots, self._moved_rows(parameter, mean, square)))
            held += [values, slots]
        else:
            place.grad = grad.data_ptr()
            self._moved.pop(parameter, None)
        return held

    def _moved_rows(self, parameter: Tensor, mean: Tensor, square: Tensor) -> Tensor:
        """uint8 [rows], 1 where a moment of a row can be other than 0: found once, then kept by the steps."""
        versions, kept = (mean._version, square._version), self._moved.get(parameter)
        if (
            kept is None or kept[0][0] is not mean or kept[0][1] is not square or kept[1] != versions
        ):  # loaded ones may lie where others lay
            moved = torch.empty(len(parameter), dtype=torch.uint8)
            run("moved", pointer(mean), pointer(square), *parameter.shape, pointer(moved), torch.get_num_threads())
            kept = self._moved[parameter] = ((mean, square), versions, moved)
        return kept[2]


class _Parameter(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("value", "grad", "mean", "square", "half", "slots", "moved")),
        ("rows", ctypes.c_long),
        ("columns", ctypes.c_long),
        *((name, ctypes.c_float) for name in ("rate", "decay", "correction1", "correction2")),
    ]
