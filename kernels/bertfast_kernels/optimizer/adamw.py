"""AdamW over all parameters of a model in three launches, with their copies in 16 bits, the clipping and the loss scale (Loshchilov and Hutter 2019).

    g = gradient / scale * min(1, max_norm / (norm + 1e-6))       norm: of all gradients together, over the scale
    m = b1 m + (1 - b1) g      v = b2 v + (1 - b2) g^2
    w = (1 - rate * decay) w - rate / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)

The first kernel adds up squares, a second of one program finds out by what a gradient is multiplied, whether this step counts and how the scale
goes on, and the third does the rest, reading each gradient in the dtype in which it came and writing the copy that the next forward reads: 30 bytes a parameter with
gradients in 16 bits, where a cast, a norm, a clipping, torch's fused AdamW and a cast of the weights move 52. Nothing is asked of the GPU: the step's number, the powers of the betas and the
scale are its own, so a step can be recorded as a CUDA graph. Where tensors lie is in a table of addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW

from bertfast_kernels.optimizer.loss_scale import LossScale
from bertfast_kernels.primitives.lazy_triton import jit, launch, multiprocessors, tl

# N parameters (tensors), G groups, K chunks of up to _CHUNK elements, P programs

_CHUNK = 1024  # elements of a turn: 8 a thread of 4 warps, two 16-byte loads of float32
_COUNTERS = ("scale", "good steps", "hysteresis")  # float32 [3], the loss scale's state


@jit
def _place(table_ptr, chunks_ptr, chunk, N: tl.constexpr, CHUNK: tl.constexpr):
    """(number of the tensor, the chunk's first element, elements of the tensor)."""
    tensor = tl.load(chunks_ptr + 2 * chunk)
    return tensor, tl.multiple_of(tl.load(chunks_ptr + 2 * chunk + 1), CHUNK), tl.load(table_ptr + 5 * N + tensor)


@jit
def _array(table_ptr, which: tl.constexpr, tensor, like_ptr, N: tl.constexpr):
    """The tensor's address in the table, a multiple of 16, as a pointer of the kind of like_ptr."""
    return tl.multiple_of(tl.load(table_ptr + which * N + tensor).to(like_ptr.dtype), 16)


@jit
def _read(ptr, start, size, CHUNK: tl.constexpr, WHOLE: tl.constexpr):
    """A chunk, float32, zeros beyond the tensor. WHOLE: nothing lies beyond, so that loads are 16 bytes wide."""
    offset = start + tl.arange(0, CHUNK)
    if WHOLE:
        return tl.load(ptr + offset).to(tl.float32)
    else:
        return tl.load(ptr + offset, mask=offset < size, other=0.0).to(tl.float32)


@jit
def _write(ptr, x, start, size, CHUNK: tl.constexpr, WHOLE: tl.constexpr):
    offset = start + tl.arange(0, CHUNK)
    if WHOLE:
        tl.store(ptr + offset, x.to(ptr.dtype.element_ty))
    else:
        tl.store(ptr + offset, x.to(ptr.dtype.element_ty), mask=offset < size)


@jit(do_not_specialize=["n_chunks"])
def _squares_kernel(table_ptr, chunks_ptr, grad_like, partial_ptr, n_chunks, N: tl.constexpr, CHUNK: tl.constexpr):
    total = tl.zeros([CHUNK], tl.float32)
    for chunk in range(tl.program_id(0), n_chunks, tl.num_programs(0)):
        tensor, start, size = _place(table_ptr, chunks_ptr, chunk, N, CHUNK)
        grads = _array(table_ptr, 1, tensor, grad_like, N)
        if start + CHUNK <= size:  # noqa: SIM108
            grad = _read(grads, start, size, CHUNK, True)
        else:
            grad = _read(grads, start, size, CHUNK, False)
        total += grad * grad
    tl.store(partial_ptr + tl.program_id(0), tl.sum(total, 0))


@jit(do_not_specialize=["n_partials", "max_norm", "window", "hysteresis", "least"])
def _settle_kernel(
    partial_ptr, powers_ptr, step_ptr, scaler_ptr, now_ptr, n_partials, max_norm, window, hysteresis, least,
    BLOCK: tl.constexpr, SCALED: tl.constexpr, ADAPTS: tl.constexpr, RENEWS: tl.constexpr, CORRECTED: tl.constexpr,
):  # fmt: skip
    """now: what a gradient is multiplied by, 1 - b1^t, the root of 1 - b2^t, and 1 where the step counts, else 0."""
    place = tl.arange(0, BLOCK)
    squares = tl.sum(tl.load(partial_ptr + place, mask=place < n_partials, other=0.0), 0)
    factor = 1.0
    counts = tl.full((), 1.0, tl.float32)
    if SCALED:
        scale = tl.load(scaler_ptr)
        factor = 1.0 / scale
        is_finite = squares < float("inf")  # false for NaN
        counts = tl.where(is_finite, 1.0, 0.0)
        if ADAPTS:
            good = tl.load(scaler_ptr + 1) + 1.0
            left = tl.load(scaler_ptr + 2)
            grows = is_finite & (good >= window)
            shrinks = (is_finite == 0) & (left <= 1.0)
            renewed = is_finite if RENEWS else grows
            tl.store(scaler_ptr, tl.where(grows, scale * 2.0, tl.where(shrinks, tl.maximum(scale * 0.5, least), scale)))
            tl.store(scaler_ptr + 1, tl.where(is_finite & (grows == 0), good, 0.0))
            tl.store(scaler_ptr + 2, tl.where(renewed, hysteresis, tl.where(is_finite | shrinks, left, left - 1.0)))
    norm = tl.sqrt(squares) * factor
    if_clipped = max_norm / (norm + 1e-6)
    clip = tl.where((max_norm > 0.0) & (if_clipped < 1.0), if_clipped, 1.0)
    clip = tl.where(norm == norm, clip, norm)  # a NaN reaches the weights, as torch's does
    c1 = 1.0
    c2 = 1.0
    goes_on = counts > 0.0
    if CORRECTED:
        power1 = tl.load(powers_ptr)
        power2 = tl.load(powers_ptr + 1)
        power1 = tl.where(goes_on, power1 * tl.load(powers_ptr + 2), power1)
        power2 = tl.where(goes_on, power2 * tl.load(powers_ptr + 3), power2)
        tl.store(powers_ptr, power1)
        tl.store(powers_ptr + 1, power2)
        c1 = (1.0 - power1).to(tl.float32)
        c2 = tl.sqrt((1.0 - power2).to(tl.float32))
    tl.store(step_ptr, tl.load(step_ptr) + counts)
    tl.store(now_ptr, factor * clip)
    tl.store(now_ptr + 1, c1)
    tl.store(now_ptr + 2, c2)
    tl.store(now_ptr + 3, counts)


@jit(do_not_specialize=["beta2", "rest1", "rest2", "eps"])
def _adamw_kernel(
    table_ptr, chunks_ptr, grad_like, copy_like, rates_ptr, now_ptr, rest1, beta2, rest2, eps, N: tl.constexpr, CHUNK: tl.constexpr
):
    """Program k does chunk k. rates: [G, 2], the learning rate and the weight decay of each group. rest1, rest2: 1 less the betas, as exact as float32 is."""
    if tl.load(now_ptr + 3) > 0.0:
        tensor, start, size = _place(table_ptr, chunks_ptr, tl.program_id(0), N, CHUNK)
        if start + CHUNK <= size:
            _update(
                table_ptr, tensor, start, size, grad_like, copy_like, rates_ptr, now_ptr, rest1, beta2, rest2, eps, N, CHUNK, True
            )  # fmt: skip
        else:
            _update(
                table_ptr, tensor, start, size, grad_like, copy_like, rates_ptr, now_ptr, rest1, beta2, rest2, eps, N, CHUNK, False
            )  # fmt: skip


@jit
def _update(
    table_ptr, tensor, start, size, grad_like, copy_like, rates_ptr, now_ptr, rest1, beta2, rest2, eps,
    N: tl.constexpr, CHUNK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    values, grads = _array(table_ptr, 0, tensor, rates_ptr, N), _array(table_ptr, 1, tensor, grad_like, N)
    means, squares = _array(table_ptr, 2, tensor, rates_ptr, N), _array(table_ptr, 3, tensor, rates_ptr, N)
    group = tl.load(table_ptr + 6 * N + tensor)
    rate, decay = tl.load(rates_ptr + 2 * group), tl.load(rates_ptr + 2 * group + 1)
    grad = _read(grads, start, size, CHUNK, WHOLE)
    value = _read(values, start, size, CHUNK, WHOLE)
    mean = _read(means, start, size, CHUNK, WHOLE)
    square = _read(squares, start, size, CHUNK, WHOLE)
    grad *= tl.load(now_ptr)
    mean += (grad - mean) * rest1
    square = square * beta2 + grad * grad * rest2
    value -= value * (rate * decay)
    value -= (rate / tl.load(now_ptr + 1)) * mean / (tl.sqrt(square) / tl.load(now_ptr + 2) + eps)
    _write(values, value, start, size, CHUNK, WHOLE)
    _write(means, mean, start, size, CHUNK, WHOLE)
    _write(squares, square, start, size, CHUNK, WHOLE)
    _write(_array(table_ptr, 4, tensor, copy_like, N), value, start, size, CHUNK, WHOLE)


class Table(NamedTuple):
    """Where the tensors of a step lie, on the device: filled before a step runs, and read by it.

    parameters: those that have a gradient. addresses: int64 [7, N] (values, gradients, means, squares, copies, elements, group).
    chunks: int64 [K, 2], the tensor and the first element of each. like: any tensor of the dtype that every gradient has.
    """

    parameters: list[Tensor]
    addresses: Tensor
    chunks: Tensor
    like: Tensor


class GpuAdamW(AdamW):
    """torch's AdamW for float32 parameters on a GPU, which reads gradients that came in 16 bits and leaves a copy of every parameter in 16 bits.

    `copies` are leaves: the gradients are theirs. `take_step` takes them; `step` is torch's, by the parameters' own `grad`. The state is torch's, save
    that one number of steps serves all parameters, and that state_dict() has the loss scale's and the betas' powers besides. It runs under Triton's interpreter, too.

    groups, settings: as AdamW's; all groups have the same betas and eps. dtype: of the copies, bfloat16 or float16. max_norm: gradients are clipped to it; 0 is not
    at all. loss_scale: how the losses are multiplied, None for bfloat16. corrects: whether the moments are corrected for their start at 0.

    Raises:
        ValueError: a parameter is not float32 and contiguous.
    """

    def __init__(
        self, groups: Any, dtype: torch.dtype, max_norm: float = 0.0, loss_scale: LossScale | None = None, corrects: bool = True, **settings: Any
    ):  # fmt: skip
        super().__init__(groups, **settings)
        self._dtype, self._max_norm, self._loss_scale, self._corrects = dtype, max_norm, loss_scale, corrects
        self._group_of = {parameter: index for index, group in enumerate(self.param_groups) for parameter in group["params"]}
        for parameter in self._group_of:
            if parameter.dtype != torch.float32 or not parameter.is_contiguous():
                raise ValueError(
                    f"GpuAdamW holds contiguous float32 parameters, and one is {parameter.dtype} of shape {tuple(parameter.shape)}"
                )
        device = next(iter(self._group_of)).device
        self.copies = {parameter: parameter.detach().to(dtype).requires_grad_() for parameter in self._group_of}
        for parameter in self._group_of:
            self.state[parameter] = {
                "step": torch.zeros(()), "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)
            }  # fmt: skip
        self._steps = torch.zeros(1, device=device)
        beta1, beta2 = self.param_groups[0]["betas"]
        self._powers = torch.tensor([1.0, 1.0, beta1, beta2], dtype=torch.float64, device=device)
        self._now = torch.zeros(4, device=device)
        self._rates = torch.zeros((len(self.param_groups), 2), device=device)
        self._copy_like = self._now.to(dtype)
        self._rates_there: list[tuple[float, float]] | None = None
        scale = loss_scale or LossScale()
        self._scaler = torch.tensor([scale.first, 0.0, float(scale.hysteresis)], device=device)
        self._partial = torch.zeros(8 * multiprocessors(device), device=device)

    @property
    def scale(self) -> Tensor | None:
        """What a loss is to be multiplied by before its backward: a float32 scalar on the device; None without a loss scale."""
        return None if self._loss_scale is None else self._scaler[0]

    def load_rates(self) -> None:
        """Bring the groups' rates to the device, where they have changed. The host does not wait."""
        rates = [(float(group["lr"]), float(group["weight_decay"])) for group in self.param_groups]
        if rates != self._rates_there:
            on_gpu = self._rates.is_cuda
            self._rates.copy_(torch.tensor(rates, pin_memory=on_gpu), non_blocking=on_gpu)
            self._rates_there = rates

    def readable(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients as the kernels read them: without gaps, from a multiple of 16 bytes on."""
        return [None if gradient is None else _aligned(gradient) for gradient in gradients]

    def table(self, gradients: Sequence[Tensor | None]) -> Table:
        """The table for these gradients of the parameters, in the order of `copies`; None for one that has none, which stays as it is."""
        there = [(parameter, gradient) for parameter, gradient in zip(self._group_of, gradients, strict=True) if gradient is not None]
        sizes = [parameter.numel() for parameter, _ in there]
        chunks = np.concatenate([
            np.stack([np.full(-(-size // _CHUNK), index), np.arange(0, size, _CHUNK)], 1) for index, size in enumerate(sizes)
        ])  # fmt: skip
        device = self._now.device
        addresses = torch.zeros((7, len(there)), dtype=torch.int64, device=device)
        table = Table(
            [parameter for parameter, _ in there], addresses, torch.from_numpy(chunks).to(device), self._now.to(there[0][1].dtype)
        )
        self.fill(table, [gradient for _, gradient in there])
        return table

    def fill(self, table: Table, gradients: Sequence[Tensor]) -> None:
        """Write down where everything lies, the gradients of table.parameters among it.

        Raises:
            ValueError: an address that 16 does not divide, or gradients of several dtypes.
        """
        rows: list[list[int]] = []
        for parameter, gradient in zip(table.parameters, gradients, strict=True):
            state = self.state[parameter]
            tensors = (parameter, gradient, state["exp_avg"], state["exp_avg_sq"], self.copies[parameter])
            rows.append([*(tensor.data_ptr() for tensor in tensors), parameter.numel(), self._group_of[parameter]])
            if any(address % 16 for address in rows[-1][:5]) or gradient.dtype != table.like.dtype or not gradient.is_contiguous():
                raise ValueError(f"a gradient of {gradient.dtype} and shape {tuple(gradient.shape)} cannot be read: it is not aligned")
        table.addresses.copy_(torch.tensor(rows, dtype=torch.int64).T)

    def launch(self, table: Table) -> None:
        """The step itself: three launches. Where they are recorded as a CUDA graph, which can copy nothing from the host, `fill` may come after them."""
        self._opt_called = True  # which torch's schedules ask for
        n, n_chunks = len(table.parameters), len(table.chunks)
        beta1, beta2 = self.param_groups[0]["betas"]
        scale = self._loss_scale or LossScale(adapts=False)
        programs, where = len(self._partial), (table.addresses, table.chunks, table.like)
        launch(_squares_kernel, (programs,), *where, self._partial, n_chunks, N=n, CHUNK=_CHUNK, num_warps=4)
        launch(
            _settle_kernel, (1,), self._partial, self._powers, self._steps, self._scaler, self._now, programs, float(self._max_norm),
            float(scale.window), float(scale.hysteresis), float(scale.least), BLOCK=1 << (programs - 1).bit_length(),
            SCALED=self._loss_scale is not None, ADAPTS=scale.adapts, RENEWS=scale.renews, CORRECTED=self._corrects, num_warps=4,
        )  # fmt: skip
        launch(
            _adamw_kernel, (n_chunks,), *where, self._copy_like, self._rates, self._now, 1 - beta1, beta2, 1 - beta2, self.param_groups[0]["eps"],
            N=n, CHUNK=_CHUNK, num_warps=4,
        )  # fmt: skip

    def take_step(self, gradients: Sequence[Tensor | None]) -> None:
        """One step by these gradients of `copies`, in their order, multiplied by `scale` where there is a loss scale."""
        self.load_rates()
        self.launch(self.table(self.readable(gradients)))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure: it would be evaluated on the parameters
        """torch's: by the gradients of the parameters themselves."""
        assert closure is None
        self.take_step([parameter.grad for parameter in self._group_of])

    @torch.no_grad()
    def refresh(self) -> None:
        """Write the copies anew, after somebody else has written the parameters; they stay where they are."""
        torch._foreach_copy_(list(self.copies.values()), list(self._group_of))

    def state_dict(self) -> dict[str, Any]:
        for state in self.state.values():
            state["step"] = self._steps[0].detach().cpu().clone()
        return {**super().state_dict(), "loss_scale": self._scaler.tolist(), "powers": self._powers.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state_dict = dict(state_dict)
        scaler, powers = state_dict.pop("loss_scale", None), state_dict.pop("powers", None)
        kept = {parameter: (state["exp_avg"], state["exp_avg_sq"]) for parameter, state in self.state.items()}
        super().load_state_dict(state_dict)
        steps = {float(state["step"]) for state in self.state.values()}
        if len(steps) != 1:
            raise ValueError(f"the parameters took {sorted(steps)} steps; GpuAdamW counts the same for all")
        (count,) = steps
        beta1, beta2 = self.param_groups[0]["betas"]
        self._steps.fill_(count)
        # Multiplied step by step they have other last bits than a power.
        self._powers.copy_(torch.tensor([*(powers or [beta1**count, beta2**count])[:2], beta1, beta2], dtype=torch.float64))
        if scaler is not None:
            self._scaler.copy_(torch.tensor(scaler))
        for parameter, (mean, square) in kept.items():  # where they were: a recorded step knows them by their addresses
            state = self.state[parameter]
            mean.copy_(state["exp_avg"])
            square.copy_(state["exp_avg_sq"])
            state["exp_avg"], state["exp_avg_sq"] = mean, square
        self._rates_there = None
        self.refresh()


def _aligned(gradient: Tensor) -> Tensor:
    gradient = gradient.contiguous()
    return gradient.clone() if gradient.data_ptr() % 16 else gradient
