"""The sweep of the attention kernels: 12 heads of 64, at MNLI's lengths and at fixed ones, without dropout and with."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from bench.cases.attention_cases import mnli_lengths
from bench.cases.kernel_cases import DTYPE, Maker
from bench.sweep.candidates import Case, Change, Recorded
from bertfast_kernels import Dropout
from bertfast_kernels.attention import op
from bertfast_kernels.attention.plan import AttentionPlan, attention_plan
from bertfast_kernels.primitives.lazy_triton import Launch, record_launches
from bertfast_kernels.tiling import cdiv

# T tokens, N heads, H head size, M queries, L keys

_IN_BLOCKS = {"plan": AttentionPlan(0, 0)}  # the kernels of any length, for sequences that others would take


def attention_cases(make: Maker) -> Iterator[Case]:
    mnli = mnli_lengths(make.seed)
    if make.tiny:
        batches = {"MNLI 3": mnli[:3] // 8 + 1, "fixed 70": np.full(1, 70), "fixed 130": np.full(1, 130)}
    else:
        batches = {"MNLI 32": mnli[:32], "MNLI 420": mnli[:420], "fixed 128": np.full(128, 128), "fixed 512": np.full(32, 512)}
    for name, lengths in batches.items():
        for p in (0.0, 0.1):
            yield from _Batch(make, name, np.sort(lengths), p).cases()


class _Batch:
    """A batch's inputs, and the cases of the kernels that its plan takes."""

    def __init__(self, make: Maker, name: str, lengths: np.ndarray, p: float):
        self.make, self.name, self.p = make, name, p
        self.heads, self.size = (2, 16) if make.tiny else (12, 64)
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        self.tokens, self.longest, self.sequences = int(bounds[-1]), int(lengths.max()), len(lengths)
        self.cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=make.device)
        example = torch.from_numpy(np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)).to(make.device)
        self.dropout = Dropout(p, 4, torch.tensor([make.seed, 7], device=make.device), example)
        width = self.heads * self.size
        shapes = ((self.tokens, 3, self.heads, self.size), (self.tokens, width))
        self.inputs = make.keep(lambda: tuple(make.normal(*shape, grad=False) for shape in shapes))
        self.set_bytes = 4 * self.tokens * width * DTYPE.itemsize

    def cases(self) -> Iterator[Case]:
        plan = attention_plan(self.tokens, self.sequences, self.longest, DTYPE.itemsize, self.size, True)
        backwards = (
            ("medium_backward",)
            if plan.medium
            else ("short_backward",)
            if plan.longest
            else ("long_backward_queries", "long_backward_keys")
        )
        forward = "medium_forward" if plan.medium else "short_forward" if plan.longest else "long_forward"
        for kernel in (forward, *backwards):
            candidates = self._tiny(kernel) if self.make.tiny else getattr(self, f"_{kernel}")()
            yield Case(
                kernel,
                self.name,
                self.p,
                lambda change, index, kernel=kernel: self._record(kernel, change, index),
                self.set_bytes,
                {"default": Change(), **candidates},
            )

    def _record(self, kernel: str, change: Change, index: int) -> Recorded:
        """The kernel's launches alone are timed; a backward's others, and the forward whose statistics it reads, run before."""
        qkv, dout = self.inputs(index)
        words = (self.p, self.dropout.site, self.dropout.key, self.dropout.example_ids)
        with record_launches() as forward:
            out, stats = op._launch_forward(qkv, self.cu_seqlens, self.longest, *words, wgmma=True, **change.arguments)
        if "forward" in kernel:
            return Recorded([], [change.of(launch) for launch in forward], (out, stats))
        with record_launches() as backward:
            dqkv = op._launch_backward(dout, qkv, out, stats, self.cu_seqlens, self.longest, *words, wgmma=True, **change.arguments)
        if change.arguments:  # another plan, whose launches take the place of the one
            return Recorded(forward, backward, (dqkv,))
        timed = [change.of(launch) for launch in backward if launch.kernel.__name__ == kernel]
        return Recorded([*forward, *backward], timed, (dqkv,))

    def _tiny(self, kernel: str) -> dict[str, Change]:
        if kernel == "medium_forward":
            return {"64x128": self._blocks(64, 128, 4, 1, None), "64x32": self._blocks(64, 32, 4, 1, None)}
        return {"8w": Change({}, {"num_warps": 8})}

    def _short_forward(self) -> dict[str, Change]:
        tried = {f"4w {limit}r": Change({}, {"maxnreg": limit}) for limit in (80, 96, 128, 168)}
        tried |= {f"8w {limit}r": Change({}, {"num_warps": 8, "maxnreg": limit}) for limit in (None, 64, 96)}
        return tried | self._heads()

    def _short_backward(self) -> dict[str, Change]:
        tried = {f"4w {limit}r": Change({}, {"maxnreg": limit}) for limit in (128, 168, 200)}
        tried |= {f"8w {limit}r": Change({}, {"num_warps": 8, "maxnreg": limit}) for limit in (None, 80, 128)}
        return tried | self._heads()

    def _heads(self) -> dict[str, Change]:
        """More heads a program: fewer programs that find nothing to do. The grid's first axis holds the programs of a sequence."""
        return {f"{heads} heads": Change({"plan": AttentionPlan(128, None, heads)}) for heads in (4, 12)}

    def _medium_forward(self) -> dict[str, Change]:
        tried = {}
        for queries, keys, warps, stages, limit in (
            (128, 32, 8, 2, 80), (128, 32, 8, 2, 128), (128, 32, 8, 1, None), (128, 32, 4, 2, None), (128, 64, 8, 1, None), (128, 64, 8, 2, 128),
            (128, 64, 4, 1, None), (128, 128, 8, 1, None), (128, 128, 8, 1, 128), (128, 128, 4, 1, None), (64, 128, 4, 1, None), (64, 128, 4, 1, 128),
            (64, 128, 4, 1, 168), (64, 128, 8, 1, None), (64, 64, 4, 1, None), (64, 64, 4, 2, None), (64, 32, 4, 2, None),
        ):  # fmt: skip
            tried[f"{queries}x{keys} {warps}w {stages}s {limit}r"] = self._blocks(queries, keys, warps, stages, limit)
        for queries, keys, warps, stages, limit in (
            (64, 128, 4, 1, None), (64, 64, 4, 2, None), (64, 64, 4, 1, 128), (128, 64, 8, 2, None), (128, 128, 8, 1, None),
        ):  # fmt: skip
            tried[f"long {queries}x{keys} {warps}w {stages}s {limit}r"] = self._blocks(queries, keys, warps, stages, limit, _IN_BLOCKS)
        return tried

    def _medium_backward(self) -> dict[str, Change]:
        tried = {}
        for keys, warps, stages, limit in (
            (32, 8, 2, 128), (32, 8, 2, 168), (32, 8, 1, None), (32, 8, 1, 128), (32, 4, 2, None), (32, 4, 1, None), (16, 8, 2, None), (16, 4, 2, None),
            (64, 8, 1, None), (64, 8, 2, None),
        ):  # fmt: skip
            tried[f"128x{keys} {warps}w {stages}s {limit}r"] = Change(
                {}, {"L": keys, "num_warps": warps, "num_stages": stages, "maxnreg": limit}
            )
        return tried | {"long": Change(_IN_BLOCKS)}

    def _long_forward(self) -> dict[str, Change]:
        tiles = (
            (128, 64, 8, 2, None), (128, 64, 8, 3, None), (128, 64, 8, 2, 128), (128, 32, 8, 3, None), (128, 32, 8, 3, 128), (128, 32, 8, 2, 128),
            (128, 128, 8, 2, None), (64, 64, 4, 2, None), (64, 64, 4, 3, None), (64, 64, 4, 3, 168), (64, 128, 4, 2, None), (64, 32, 4, 3, None),
            (64, 32, 4, 3, 128), (128, 64, 4, 2, None),
        )  # fmt: skip
        return {f"{m}x{keys} {w}w {s}s {limit}r": self._blocks(m, keys, w, s, limit) for m, keys, w, s, limit in tiles}

    def _long_backward_queries(self) -> dict[str, Change]:
        tiles = (
            (128, 64, 8, 2, None), (128, 64, 8, 3, None), (128, 64, 8, 2, 128), (128, 32, 8, 2, None), (128, 32, 8, 3, None), (128, 32, 8, 3, 128),
            (64, 64, 4, 2, None), (64, 64, 4, 3, None), (64, 64, 4, 2, 168), (64, 32, 4, 3, None), (64, 32, 4, 3, 168), (64, 128, 4, 2, None),
        )  # fmt: skip
        return {f"{m}x{keys} {w}w {s}s {limit}r": self._blocks(m, keys, w, s, limit) for m, keys, w, s, limit in tiles}

    def _long_backward_keys(self) -> dict[str, Change]:
        tiles = (
            (64, 64, 4, 1, None), (64, 64, 4, 3, None), (64, 64, 4, 2, 168), (64, 64, 8, 2, None), (64, 128, 8, 2, None), (64, 128, 8, 3, None),
            (64, 128, 8, 1, None), (32, 64, 4, 3, None), (32, 128, 8, 3, None), (32, 128, 8, 2, 128), (128, 64, 8, 2, None), (32, 64, 4, 2, 168),
        )  # fmt: skip
        return {f"{m}x{keys} {w}w {s}s {limit}r": self._blocks(m, keys, w, s, limit, axis="L") for m, keys, w, s, limit in tiles}

    def _blocks(
        self, queries: int, keys: int, warps: int, stages: int, limit: int | None, arguments: dict | None = None, axis: str = "M"
    ) -> Change:
        """A tile of a kernel whose grid counts the blocks of queries, or of keys: on its third axis in medium_forward, on its second elsewhere."""

        def grid(launch: Launch) -> tuple[int, ...]:
            blocks = cdiv(self.longest, launch.options[axis])
            if launch.kernel.__name__ == "medium_forward":
                return launch.grid[0], launch.grid[1], blocks
            return launch.grid[0], blocks, launch.grid[2]

        options = {"M": queries, "L": keys, "num_warps": warps, "num_stages": stages, "maxnreg": limit}
        return Change(arguments or {}, options, grid)
